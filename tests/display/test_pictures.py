"""Pictures exist, show what they should, and are not blank."""

from __future__ import annotations

import time

import h5py
import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pytest

from nufm.display.event import compare_panels, draw_event
from nufm.display.geometry import geometry, headline, is_simulated, short_name
from nufm.display.plots import read_metrics, score_bars, training_curves


def ink(path) -> float:
    """Share of pixels that are not white."""
    return float((matplotlib.image.imread(path)[..., :3] < 0.99).any(-1).mean())


def has_colour(path, colour: str, least: int) -> bool:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    picture = np.rint(matplotlib.image.imread(path)[..., :3] * 255)
    return int((np.abs(picture - rgb).max(-1) <= 2).sum()) >= least


def test_event_picture(genuine, tmp_path) -> None:
    magenta = np.tile([1.0, 0.0, 1.0], (len(genuine), 1))
    path = draw_event(genuine, tmp_path / "new" / "event.png", {"features": magenta})
    height, width = matplotlib.image.imread(path).shape[:2]
    assert width > 2000 and height > 1500
    assert 0.02 < ink(path) < 0.4
    assert has_colour(path, "#e69f00", 2000)  # tracks
    assert has_colour(path, "#0072b2", 1000)  # showers
    assert has_colour(path, "#ff00ff", 1000)
    assert matplotlib.pyplot.get_fignums() == []  # nothing left open
    bare = draw_event(genuine.replace(motif=None, pid=None, particle=None), tmp_path / "bare.png")
    assert matplotlib.image.imread(bare).shape[0] < 0.6 * height  # one row
    assert not has_colour(bare, "#0072b2", 1)


def test_comparison(genuine, tmp_path) -> None:
    colours = {
        "untrained": np.tile([0.0, 1.0, 0.0], (len(genuine), 1)),
        "pretrained": np.tile([1.0, 0.0, 1.0], (len(genuine), 1)),
    }
    path = compare_panels(genuine, colours, tmp_path / "compare.png")
    picture = matplotlib.image.imread(path)[..., :3]
    left, right = np.split(picture, [picture.shape[1] // 2], axis=1)
    green, pink = (lambda p: (p == [0, 1, 0]).all(-1).sum()), (lambda p: (p == [1, 0, 1]).all(-1).sum())
    assert green(left) > 1000 and pink(right) > 1000 and green(right) == 0 and pink(left) == 0
    with pytest.raises(ValueError, match="drop voxels"):
        compare_panels(genuine, {"x": np.zeros((5, 3))}, path)


def test_empty_and_single(empty, single, tmp_path) -> None:
    path = draw_event(empty, tmp_path / "empty.png")
    blank = draw_event(empty, tmp_path / "blank.png", title=" ", panels=[])
    assert 0.003 < ink(path) < 0.1 and ink(blank) > 0.003
    compare_panels(empty, {"features": np.zeros((0, 3))}, tmp_path / "none.png")
    path = draw_event(single, tmp_path / "single.png")
    assert ink(path) > 0.02
    assert headline(single).startswith("detector pilarnet   ·   1 voxel   ·")


def test_large_event_is_quick(genuine, tmp_path) -> None:
    rng = np.random.default_rng(0)
    voxel = rng.integers(0, 768, (30000, 3), dtype=np.int32)
    event = genuine.select(rng.integers(0, len(genuine), 30000)).replace(voxel=voxel)
    start = time.process_time()
    draw_event(event, tmp_path / "large.png")
    assert time.process_time() - start < 20


def test_positions_in_cm(genuine) -> None:
    space = geometry(genuine)
    expected = (genuine.voxel - 384.0) * 0.3 + 0.15
    np.testing.assert_allclose(space.position, expected)
    assert (space.low < expected.min(0)).all() and (space.high > expected.max(0)).all()
    low, high = space.core(genuine.energy)
    inside = ((expected >= low) & (expected <= high)).all(1)
    assert genuine.energy[inside].sum() > 0.9 * genuine.energy.sum()
    assert 0 < (~inside).sum() < 100  # the far neutron-like deposits
    with pytest.raises(ValueError, match="unknown detector 'nowhere'"):
        geometry(genuine.replace(detector="nowhere"))


def test_headline(genuine, genuine_file, tmp_path) -> None:
    assert headline(genuine) == "detector pilarnet   ·   1,390 voxels   ·   905 MeV"
    assert headline(genuine, simulated=True).endswith("simulated by nufm")
    assert short_name(genuine) == "pilarnet_m_event.h5, event 0"
    with h5py.File(tmp_path / "sim.h5", "w") as file:
        file.attrs["producer"] = "simulated by nufm"
    assert is_simulated(genuine.replace(name=f"{tmp_path / 'sim.h5'}#3"))
    assert not is_simulated(genuine) and not is_simulated(genuine.replace(name="event"))


def report(seeds: int = 3) -> dict:
    rng = np.random.default_rng(0)
    classes = ["shower", "track", "Michel", "delta", "LED"]
    rows = {}
    for row, score in (("raw", 0.4), ("untrained", 0.6), ("pretrained", 0.8)):
        f1 = (score + 0.02 * rng.normal(size=(seeds, 5))).tolist()
        rows[row] = {"label": row, "per_seed": [{"macro_f1": float(np.mean(f)), "f1": f} for f in f1]}
    return {"task": "probe", "classes": classes, "simulated": True, "scores": rows}


@pytest.mark.parametrize("seeds", [1, 3])
def test_score_bars(seeds: int, tmp_path) -> None:
    path = score_bars(report(seeds), tmp_path / "probe.png")
    picture = np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    # Bars of 40, 60 and 80 per cent.
    areas = [(picture == rgb).all(-1).sum() for rgb in ([0xB8] * 3, [0x56, 0xB4, 0xE9], [0xD5, 0x5E, 0x00])]
    assert areas[1] / areas[0] == pytest.approx(1.5, abs=0.15) and areas[2] / areas[0] == pytest.approx(
        2, abs=0.2
    )


def test_bad_reports_are_refused(tmp_path) -> None:
    bad = report()
    bad["scores"]["raw"]["per_seed"] = []
    with pytest.raises(ValueError, match="'raw' has no scores"):
        score_bars(bad, tmp_path / "x.png")
    bad = report()
    bad["classes"] = ["one"]
    with pytest.raises(ValueError, match="5 class scores, expected 1"):
        score_bars(bad, tmp_path / "x.png")


CSV = """epoch,step,train/loss,train/mask_kl,train/mask_teacher_entropy,train/feature_std,probe/macro_f1,lr
0,0,8.0,5.0,3.0,0.9,,
0,10,7.0,4.5,2.5,0.9,,
0,10,,,,,0.61,
0,20,nan,4.0,2.5,0.9,,
,,,,,,,1e-3
"""


def test_training_curves(tmp_path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(CSV.replace(",,,,,,,1e-3", "0,20,,,,,,1e-3"))
    series = read_metrics(file)
    np.testing.assert_array_equal(series["train/loss"], [[0, 10], [8, 7]])  # the NaN is left out
    np.testing.assert_array_equal(series["probe/macro_f1"], [[10], [0.61]])
    path = training_curves(file, tmp_path / "training.png")
    assert 0.01 < ink(path) < 0.3
    rows, columns = matplotlib.image.imread(path).shape[:2]
    assert columns > 1.3 * rows  # five panels: two rows of three


def test_bad_metrics_are_refused(tmp_path) -> None:
    file = tmp_path / "metrics.csv"
    with pytest.raises(FileNotFoundError):
        training_curves(file, tmp_path / "x.png")
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column 'step'"):
        training_curves(file, tmp_path / "x.png")
    file.write_text("step,train/loss\n1,oops\n")
    with pytest.raises(ValueError, match="line 2, column 'train/loss'"):
        training_curves(file, tmp_path / "x.png")
    file.write_text("step,train/loss\n")
    assert training_curves(file, tmp_path / "x.png").exists()
