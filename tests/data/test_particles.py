"""Particles out of larger events: crops, hand-crafted numbers, the public files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from nufm.data.detector import load_stream_detector
from nufm.data.event import PID_NAMES, Event
from nufm.data.particles import (
    CLUSTER_COLUMNS,
    COLUMNS,
    PARTICLE_NAMES,
    SHAPE_COLUMNS,
    cluster_numbers,
    cut_out,
    event_numbers,
    fit_in,
    pilarnet_records,
    read_scintillator,
    scintillator_files,
    scintillator_record,
    wall_numbers,
)
from nufm.data.pilarnet import PILArNetReader
from nufm.data.stream_files import event_from_record

GENUINE = Path(__file__).parent / "pilarnet_m_event.h5"


def line(n: int, start: tuple[int, int, int], step: tuple[int, int, int]) -> np.ndarray:
    return np.array(start) + np.arange(n)[:, None] * np.array(step)


# ---------------------------------------------------------------------- crops


def test_crop_is_centred_and_keeps_charges():
    index = line(21, (60, 100, 100), (1, 0, 0))
    crop = cut_out(index, np.arange(21.0), (120, 120, 120), (200, 200, 200))
    assert crop.origin.tolist() == [10, 40, 40]  # middle (70, 100, 100) less 59.5, rounded down
    assert np.array_equal(crop.index + crop.origin, index) and crop.charge.tolist() == list(range(21))


@pytest.mark.parametrize("end", (0, 199))
def test_crop_stays_in_the_volume(end):
    crop = cut_out(np.full((1, 3), end), np.ones(1), (120, 120, 120), (200, 200, 200))
    assert crop.origin.tolist() == [0 if end == 0 else 80] * 3
    assert crop.index.tolist() == [[end if end == 0 else 119] * 3]


def test_hits_beyond_the_crop_are_left_out():
    index = line(200, (0, 5, 5), (1, 0, 0))
    crop = cut_out(index, np.ones(200), (120, 120, 120), (200, 200, 200))
    assert len(crop.index) == 120 and crop.index[:, 0].tolist() == list(range(120)) and crop.origin[0] == 40


def test_crop_of_nothing_is_empty():
    crop = cut_out(np.zeros((0, 3), int), np.zeros(0), (120, 120, 120), (200, 200, 200))
    assert crop.index.shape == (0, 3) and crop.origin.tolist() == [40, 40, 40]


@pytest.mark.parametrize("seed", range(5))
def test_a_particle_that_fits_is_only_moved(seed):
    rng = np.random.default_rng(seed)
    index = np.unique(rng.integers(100, 100 + rng.integers(1, 168), (300, 3)), axis=0)
    crop = fit_in(index, np.ones(len(index)), (168, 168, 180))
    assert crop.scale == 1 and np.array_equal(crop.index + crop.origin, index)
    room = np.stack([crop.index.min(0), np.array([167, 167, 179]) - crop.index.max(0)])
    assert (np.abs(room[0] - room[1]) <= 1).all(), "as much room on either side"


def test_a_larger_particle_is_shrunk_and_its_charge_kept():
    index = line(501, (0, 100, 200), (1, 0, 0))
    crop = fit_in(index, np.ones(501), (168, 168, 180))
    assert crop.scale == pytest.approx(83.5 / 250)
    assert crop.index.min(0).tolist() == [0, 84, 90] and crop.index.max(0).tolist() == [167, 84, 90]
    assert crop.charge.sum() == 501 and len(crop.index) == 168 and len(np.unique(crop.index, axis=0)) == 168


# ---------------------------------------------------------------------- numbers


def test_numbers_have_the_published_count_and_names():
    assert len(CLUSTER_COLUMNS) == 25 and {len(c) for c in COLUMNS.values()} == {31}
    assert len(SHAPE_COLUMNS) == 16
    assert not {CLUSTER_COLUMNS[i].split("_")[0] for i in SHAPE_COLUMNS} & {"centroid", "start", "direction"}


def named(numbers: np.ndarray) -> dict[str, float]:
    return dict(zip(CLUSTER_COLUMNS, numbers.tolist(), strict=True))


def test_principal_axes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    index = np.unique((rng.normal(size=(200, 3)) * [30, 10, 3] + 60).round().astype(int), axis=0)
    found = named(cluster_numbers(index, rng.random(len(index)), (120, 120, 120), 0.0))
    spread = np.sqrt(PCA(3).fit(index).explained_variance_)
    assert [found[f"log_pca_{i}"] for i in (1, 2, 3)] == pytest.approx(np.log1p(spread), rel=1e-5)
    assert found["linearity"] == pytest.approx(np.log1p(spread[0] / spread[1]), rel=1e-5)
    assert found["planarity"] == pytest.approx(np.log1p(spread[1] / spread[2]), rel=1e-5)
    assert [found[f"centroid_{a}"] for a in "xyz"] == pytest.approx(index.mean(0) / 119)


@pytest.mark.parametrize("turned", (False, True))
def test_the_axis_points_to_the_end_with_more_charge(turned):
    """A stopping particle: charge rises along it; which end comes first in the list does not matter."""
    index, charge = line(11, (20, 30, 40), (2, 0, 0)), np.arange(11.0)
    if turned:
        index, charge = index[::-1], charge[::-1]
    found = named(cluster_numbers(index, charge, (120, 120, 120), 0.5))
    assert [found[f"direction_{a}"] for a in "xyz"] == pytest.approx([1, 0, 0])
    assert [found[f"start_{a}"] for a in "xyz"] == pytest.approx([20 / 119, 30 / 119, 40 / 119])
    assert found["length"] == pytest.approx(20 / (119 * np.sqrt(3)))
    assert found["charge_asymmetry"] == pytest.approx((40 - 10) / 55)  # 6 … 10 against 0 … 4
    assert found["at_edge"] == 0.5
    assert [found[f"box_{a}"] for a in "xyz"] == pytest.approx([21 / 120, 1 / 120, 1 / 120])
    assert found["log_density"] == pytest.approx(np.log1p(11 / 21))


@pytest.mark.parametrize("n", (0, 1))
def test_numbers_of_hardly_anything_are_finite(n):
    found = cluster_numbers(np.full((n, 3), 7), np.ones(n), (120, 120, 120), 0.0)
    assert found.shape == (25,) and np.isfinite(found).all()
    assert n or not found.any()


def test_walls():
    assert wall_numbers(np.array([0, 40, 80]), (120,) * 3, (200,) * 3).tolist() == [0, 1, 0.5, 0.5, 1, 0]


def test_particles_among_others():
    """Three particles, by hand."""
    centroid = np.array([[0.0, 0, 0], [0.3, 0, 0], [0.9, 0, 0]])
    found = event_numbers(centroid, np.array([10, 30, 60]), np.array([5.0, 4.0, 1.0]))
    assert found[:, 0] == pytest.approx([0.5, 0.4, 0.1]) and found[:, 1] == pytest.approx([0.1, 0.3, 0.6])
    assert found[:, 2].tolist() == [0, 0.5, 1] and found[:, 3].tolist() == [1, 0.5, 0]
    assert found[:, 4] * np.sqrt(3) == pytest.approx([0.3, 0.3, 0.6])
    assert found[:, 5] * np.sqrt(3) == pytest.approx([0.4, 0.1, 0.5])
    alone = event_numbers(centroid[:1], np.array([3]), np.array([0.0]))
    assert np.isfinite(alone).all() and alone[0, 4] == pytest.approx(1 / np.sqrt(3))


# ---------------------------------------------------------------------- PILArNet


def test_particles_of_a_genuine_event():
    """Counted from the event's labels alone."""
    event = PILArNetReader(GENUINE)[0]
    records = pilarnet_records(event, 4)
    ids = [i for i in np.unique(event.particle) if i >= 0]
    kept = [i for i in ids if (event.particle == i).sum() >= 5 and np.median(event.pid[event.particle == i]) < 5]
    assert len(records) == len(kept) > 1
    for record, i in zip(records, kept, strict=True):
        rows = event.particle == i
        made = event_from_record(record, "pilarnet_crop", "particle")
        hits = made.voxels["voxels"]
        assert made.truth["particle"] == np.median(event.pid[rows]) and record["group"] == 4
        assert hits.charge.sum() == pytest.approx(event.energy[rows].sum(), rel=1e-5)
        assert made.extra.shape == (31,) and np.isfinite(made.extra).all()
        extent = np.ptp(event.voxel[rows], axis=0) + 1
        assert (record["extra"][11] == 1) == (extent <= (168, 168, 180)).all()
    assert sum(r["extra"][25] for r in records) == pytest.approx(1, rel=1e-5)


def test_small_and_unknown_particles_are_left_out():
    n = 30
    event = Event(
        voxel=line(n, (0, 0, 0), (1, 1, 1)).astype(np.int32),
        energy=np.ones(n, np.float32),
        particle=np.repeat([0, 1, 2, -1], [4, 6, 10, 10]),
        pid=np.repeat([4, 4, PID_NAMES.index("none"), 5], [4, 6, 10, 10]),
    )
    records = pilarnet_records(event, 0)
    assert [r["truth/particle"] for r in records] == [4] and len(records[0]["hits/voxels/charge"]) == 6
    assert pilarnet_records(event, 0, min_voxels=7) == []


def test_events_without_pid_are_refused():
    event = Event(voxel=np.zeros((1, 3), np.int32), energy=np.ones(1, np.float32), name="f.h5#3")
    with pytest.raises(ValueError, match=r"f\.h5#3: particles need the labels"):
        pilarnet_records(event, 0)


# ---------------------------------------------------------------------- the public scintillator files


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", ("array", "tensor"))
def test_public_file(tmp_path, kind):
    hits = np.array([[-995.0, 5.0, 995.0, 12.5], [5.0, 5.0, 5.0, 7.0], [5.0, 5.0, 5.0, 1.0]])
    content = {"reco_hits": hits if kind == "array" else torch.from_numpy(hits), "true_nodes": np.zeros((4, 3))}
    event = read_scintillator(write(tmp_path / "event0.pt", content), 2)
    found = event.voxels["voxels"]
    assert found.index.tolist() == [[0, 100, 199], [100, 100, 100]]
    assert found.charge.tolist() == [12.5, 8.0], "hits of one cube are added"
    assert event.detector == "superfgd_volume" and event.truth["particle"] == 2
    record = scintillator_record(event)
    made = event_from_record(record, "superfgd", "particle")
    assert made.extra.shape == (31,) and made.truth["particle"] == 2
    assert load_stream_detector("superfgd").voxels["voxels"].lattice == (120, 120, 120)


class Runs:
    """A pickle that would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_file_with_code_in_it_is_refused(tmp_path):
    """The command would leave a file behind."""
    path = write(tmp_path / "event0.pt", {"reco_hits": Runs(f"touch {tmp_path / 'ran'}")})
    with pytest.raises(ValueError, match="running its code"):
        read_scintillator(path, 0)
    path.write_bytes(pickle.dumps({"reco_hits": Runs(f"touch {tmp_path / 'ran'}")}))
    with pytest.raises(ValueError, match=r"event0\.pt"):
        read_scintillator(path, 0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("hits", "said"),
    [
        (np.zeros((3, 2)), r"shape \(3, 2\), expected \(N, 4\)"),
        (np.array([[0.0, 0, np.nan, 1]]), "row 0 .* expected finite"),
        (np.array([[5.0, 5, 5, 1], [0.0, 0, 1200.0, 1]]), "row 1 is at .* expected -1000 to 1000 mm"),
    ],
)
def test_bad_hits_are_refused(tmp_path, hits, said):
    with pytest.raises(ValueError, match=said):
        read_scintillator(write(tmp_path / "event0.pt", {"reco_hits": hits}), 0)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'reco_hits' is missing, found \\['x'\\]"):
        read_scintillator(write(tmp_path / "event0.pt", {"x": np.zeros(2)}), 0)
    (tmp_path / "event1.pt").write_bytes(b"no file of torch")
    with pytest.raises(ValueError, match=r"event1\.pt"):
        read_scintillator(tmp_path / "event1.pt", 0)


def test_files_by_class(tmp_path):
    for name in PARTICLE_NAMES["superfgd"][:3]:
        write(tmp_path / name / "event7.pt", {})
    with pytest.raises(FileNotFoundError, match="electron"):
        scintillator_files(tmp_path)
    write(tmp_path / "electron" / "event1.pt", {})
    write(tmp_path / "electron" / "event0.pt", {})
    found = scintillator_files(tmp_path)
    assert [(p.name, c) for p, c in found][-2:] == [("event0.pt", 3), ("event1.pt", 3)] and len(found) == 5
