"""Displays of events with several streams: places and words by a second derivation, pictures that show what they
should."""

from __future__ import annotations

import re
from itertools import pairwise

import h5py
import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pytest
from made_streams import VERTEX, empty_event, made_event, one_hit

from nufm.data.detector import TrackStream, load_stream_detector
from nufm.data.streams import Hits, StreamEvent
from nufm.display.stream_geometry import (
    along_beam,
    around,
    boxes,
    hit_positions,
    start_of,
    stream_line,
    track_path,
    truth_line,
)
from nufm.display.stream_interactive import stream_figure, write_stream_html
from nufm.display.stream_panels import GHOST_COLOURS, ghost_panel, hierarchy_panel, share_panel, stream_panels
from nufm.display.streams import close_up, draw_stream_event, merged, turned


@pytest.fixture(scope="module")
def made():
    return made_event()


def pixels(path, colour: str) -> int:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    picture = np.rint(matplotlib.image.imread(path)[..., :3] * 255)
    return int((np.abs(picture - rgb).max(-1) <= 2).sum())


def test_picture(made, tmp_path) -> None:
    path = draw_stream_event(made, tmp_path / "new" / "event.png", simulated=True)
    height, width = matplotlib.image.imread(path).shape[:2]
    assert width == 2400 and height > 3000
    # electromagnetic, hadronic, muonic and ghosts, primary, secondary and the muon
    for colour in ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#882255"):
        assert pixels(path, colour) > 3000, colour
    assert matplotlib.pyplot.get_fignums() == []
    bare = draw_stream_event(made_event(truth=False), tmp_path / "bare.png")
    assert matplotlib.image.imread(bare).shape[0] < 0.75 * height  # without the three rows of truth
    assert pixels(bare, "#d55e00") < 200 and pixels(bare, "#0072b2") < 200


@pytest.mark.parametrize("event", [empty_event(), one_hit()], ids=lambda e: e.name)
def test_hardly_anything(event, tmp_path) -> None:
    path = draw_stream_event(event, tmp_path / "event.png")
    assert 0.003 < (matplotlib.image.imread(path)[..., :3] < 0.99).any(-1).mean() < 0.2
    page = write_stream_html(event, tmp_path / "event.html").read_text(encoding="utf-8")
    assert ("no voxel was hit" in page) == (event.n_hits == 0)


def test_nothing_at_all(tmp_path) -> None:
    event = empty_event()
    for stream in load_stream_detector("fasercal").streams:
        event = event.without(stream)
    assert stream_line(event).count("not read out") == 4
    assert draw_stream_event(event, tmp_path / "none.png").stat().st_size > 20_000
    assert len(stream_figure(event).data) == 4  # the outlines


def test_positions(made) -> None:
    """Voxel (i, j, k) of module m: the centre, counted by hand from the numbers of fasercal.yaml."""
    hits = made.voxels["cal3d"]
    x, y = -24 + hits.index[:, 0] + 0.5, -24 + hits.index[:, 1] + 0.5
    z = -119.45 + 24.1 * hits.module + 1.1 * (hits.index[:, 2] + 0.5)
    np.testing.assert_allclose(hit_positions(made, "cal3d"), np.stack([x, y, z], axis=1), atol=1e-9)
    assert hit_positions(made.without("cal3d"), "cal3d").shape == (0, 3)


def test_outlines() -> None:
    detector = load_stream_detector("fasercal")
    found = boxes(detector)
    assert [b.stream for b in found] == ["cal3d"] * 10 + ["ahcal", "ecal", "muon"]
    low, high = around([b for b in found if b.stream == "cal3d"])
    np.testing.assert_allclose([low, high], [[-24, -24, -119.45], [24, 24, 119.45]])
    assert along_beam(detector) == ["cal3d", "ecal", "ahcal", "muon"]
    assert all(a.high[2] <= b.low[2] for a, b in pairwise(found[:10]))


def test_close_up_has_the_modules_that_were_hit() -> None:
    low, high = close_up(one_hit(), "cal3d")
    np.testing.assert_allclose([low[2], high[2]], [-119.45 + 3 * 24.1, -119.45 + 3 * 24.1 + 22])
    np.testing.assert_allclose(close_up(empty_event(), "cal3d")[1][2], 119.45)
    low, high = close_up(made_event(), "ahcal")
    place = hit_positions(made_event(), "ahcal")
    assert ((place > low) & (place < high)).all()


@pytest.mark.parametrize(("charge", "side"), [(-1.0, 1), (1.0, -1), (0.0, 0)])
def test_track_in_the_field(charge, side) -> None:
    """A momentum of p along the beam in a field B along y: a circle of R = p / 0.3 B, to -x for a positive charge."""
    shape = TrackStream(("charge", "px", "py", "pz", "chi2"), 10, (-500, -500, 2600), (500, 500, 5600), (0, 1.5, 0))
    straight, bent = track_path(shape, np.array([charge, 0.0, 0.0, 10.0, 1.0]), np.array([1.0, 2.0, 0.0]))
    np.testing.assert_allclose(straight, [[1, 2, 0], [1, 2, 260]], atol=1e-9)
    np.testing.assert_allclose(bent[-1, 1:], [2, 560], atol=1e-6)
    radius = 10 / (0.299792458 * 1.5)  # m
    expected = side * 100 * (radius - np.sqrt(radius**2 - 3.0**2))
    assert bent[-1, 0] - 1 == pytest.approx(expected, rel=0.02, abs=1e-6)


def test_tracks_that_cannot_be_drawn() -> None:
    shape = load_stream_detector("fasercal").tracks["muon"]
    assert track_path(shape, np.array([1.0, 0.0, 0.0, -3.0, 1.0]), np.zeros(3)) is None
    curled = track_path(shape, np.array([1.0, 0.0, 0.0, 0.3, 1.0]), np.zeros(3))[1]
    assert len(curled) < 1000 and np.isfinite(curled).all()
    bare = TrackStream(("charge",), 1, (0, 0, 0), (1, 1, 1))
    assert track_path(bare, np.ones(1), np.zeros(3)) is None


def test_where_tracks_start(made) -> None:
    np.testing.assert_allclose(start_of(made), VERTEX / 10, rtol=1e-6)
    without = start_of(made.replace(truth={}))
    assert np.abs(without - VERTEX / 10).max() < 15  # the first hits
    np.testing.assert_array_equal(start_of(empty_event()), np.zeros(3))
    unknown = {"vertex": np.full(3, np.nan, np.float32)}
    np.testing.assert_allclose(start_of(made.replace(truth=unknown)), without)


def test_words(made, tmp_path) -> None:
    line = stream_line(made)
    assert re.fullmatch(
        r"detector fasercal   ·   3DCal [\d,]+ hits, [\d.]+ GeV   ·   ECAL [\d.]+ GeV   ·   AHCAL \d+ hits, [\d.]+ GeV"
        r"   ·   muon spectrometer 1 track",
        line,
    )
    with h5py.File(tmp_path / "sim.h5", "w") as file:
        file.attrs["producer"] = "simulated by nufm"
    assert stream_line(made.replace(name=f"{tmp_path / 'sim.h5'}#3")).endswith("simulated by nufm")
    words = truth_line(made)
    for part in ("νµ CC", "no charm", "Eν 431 GeV", "p(lepton) 176 GeV/c", "p(jet) 236 GeV/c", "missing pT 2.14 GeV/c",
                 "vertex (2.3, -4.1, -42.0) cm"):  # fmt: skip
        assert part in words
    assert truth_line(empty_event()) == ""
    unknown = {"flavour": np.int64(-1), "vertex": np.full(3, np.nan, np.float32), "lepton": np.zeros(3, np.float32)}
    assert truth_line(made.replace(truth=unknown)) == ""


def test_panels(made) -> None:
    panels = stream_panels(made)
    assert [p.title for p in panels] == [
        *("energy", "particle category (truth)", "hierarchy (truth)", "ghosts (truth)")
    ]
    assert set(panels[0].panels) == {"cal3d", "ahcal"} and set(panels[1].panels) == {"cal3d"}
    limits = {p.limits for p in panels[0].panels.values()}
    assert len(limits) == 1  # one scale for both
    hits = made.voxels["cal3d"]
    n = int((hits.ghost == 1).sum())
    assert any(name.startswith(f"ghost  {n:,}") for name in ghost_panel(hits).names)
    assert any(name.startswith(f"ghost or no label  {n:,}") for name in hierarchy_panel(hits).names)
    assert stream_panels(empty_event())[1:] == []


def particle(detector: str, kind: int) -> StreamEvent:
    """A straight track in the crop of a single particle."""
    index = np.arange(12, dtype=np.int32)[:, None] + np.array([[40, 50, 60]], np.int32)
    hits = Hits(index, np.zeros(12, np.int32), np.full(12, 25.0, np.float32))
    return StreamEvent(voxels={"voxels": hits}, truth={"particle": np.int64(kind)}, detector=detector, name=detector)


def test_single_particles(tmp_path) -> None:
    """A detector of one stream, whose charge may be in another unit."""
    for detector, kind, words in (
        ("superfgd", 2, ("300 photoelectrons", "truth: muon", "charge of a voxel (photoelectrons)")),
        ("pilarnet_crop", 4, ("300 MeV", "truth: proton", "energy of a voxel (MeV)")),
    ):
        event = particle(detector, kind)
        page = write_stream_html(event, tmp_path / "p.html").read_text(encoding="utf-8")
        assert all(w in page for w in words)
        picture = matplotlib.image.imread(draw_stream_event(event, tmp_path / "p.png"))
        assert 1000 < picture.shape[0] < 1800 and 0.005 < (picture[..., :3] < 0.99).any(-1).mean() < 0.3
        low, high = close_up(event, "voxels")
        place = hit_positions(event, "voxels")
        assert ((place > low) & (place < high)).all() and (high - low).max() < 25


def test_ghosts_are_shares_along_the_line_of_sight(made) -> None:
    panel = ghost_panel(made.voxels["cal3d"].select(np.arange(4)).replace(ghost=np.array([0, 1, 1, 1], np.int8)))
    first, rgb = merged(np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), panel)
    real, ghost = (np.array([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for c in GHOST_COLOURS[:2])
    assert first.tolist() == [0, 3]
    np.testing.assert_allclose(rgb, [real / 3 + 2 * ghost / 3, ghost])
    assert len(merged(np.zeros((0, 2)), panel)[0]) == 0


def test_a_cell_has_its_commonest_class() -> None:
    shares = np.eye(3)[[0, 0, 1, 2]]
    shares = np.concatenate([shares, np.zeros((3, 3))])  # three without a label
    panel = share_panel("t", shares, ("a", "b", "c"), ("#ff0000", "#00ff00", "#0000ff"))
    place = np.array([[0.0, 0]] * 3 + [[1.0, 0]] + [[0.0, 0], [0.0, 0], [2.0, 0]])
    _, rgb = merged(place, panel)
    np.testing.assert_allclose(rgb[:2], [[1, 0, 0], [0, 0, 1]])
    assert rgb[2].min() > 0.8  # nothing but no label


def test_soft_shares_are_coloured_by_the_largest() -> None:
    shares = np.array([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0], [0, 0, 0], [np.nan] * 3])
    panel = share_panel("t", shares, ("a", "b", "c"), ("#ff0000", "#00ff00", "#0000ff"))
    np.testing.assert_allclose(panel.rgb[:2], [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(panel.rgb[2], panel.rgb[3])
    assert panel.names[panel.code[2]].startswith("ghost or no label  2") and panel.behind == (panel.code[2],)
    assert len(share_panel("t", np.zeros((0, 3)), ("a", "b", "c"), ("#ff0000",) * 3).names) == 0


def test_turning_keeps_distances(made) -> None:
    place = hit_positions(made, "cal3d")[:50]
    before = np.linalg.norm(place[1:] - place[:-1], axis=1)
    after = turned(place)
    np.testing.assert_allclose(np.linalg.norm(after[1:] - after[:-1], axis=1), before, rtol=1e-9)
    ahead = turned(np.array([[0.0, 0, 0], [0, 0, 10], [0, 10, 0]]))
    assert ahead[1, 0] > ahead[0, 0] and ahead[2, 1] > ahead[0, 1]  # z to the right, y up


def test_figure(made) -> None:
    figure = stream_figure(made, simulated=True)
    buttons = figure.layout.updatemenus[0].buttons
    assert [b.label for b in buttons] == [p.title for p in stream_panels(made)]
    for button in buttons:
        assert len(button.args[0]["visible"]) == len(figure.data)
    energy = [t for t in figure.data if t.visible is True and getattr(t, "text", None) is not None]
    shown = sum(len(t.x) for t in energy if t.mode == "markers")
    assert shown == made.n_hits
    text = " ".join(t for trace in energy for t in np.atleast_1d(trace.text)[:3])
    assert re.search(r"3DCal module \d, voxel \d+ \d+ \d+<br>[\d.e-]+ MeV", text) and "AHCAL, voxel" in text
    assert sum(t.type == "mesh3d" for t in figure.data) == int((made.matrices["ecal"] > 0.002 * made.matrices[
        "ecal"].max()).sum())  # fmt: skip
    assert "simulated by nufm" in figure.layout.title.text
    named = {t.name for t in figure.data}
    assert "true vertex" in named and any("171 GeV/c, charge -1" in n for n in named)


def test_ten_thousand_hits_in_a_hovered_page(made, tmp_path) -> None:
    hits = made.voxels["cal3d"]
    page = write_stream_html(made, tmp_path / "event.html", hover={"cal3d": [f"<br>no {i}" for i in range(len(hits))]})
    text = page.read_text(encoding="utf-8")
    assert f"no {len(hits) - 1}" in text and "http-equiv" not in text and 'src="http' not in text
    with pytest.raises(ValueError, match="argument"):
        write_stream_html(made, page, hover={"cal3d": ["too few"]})


def test_charge_below_zero_is_drawn(tmp_path) -> None:
    """Pedestal-subtracted charges may be negative: the logarithmic scale ends before."""
    hits = Hits(np.arange(9, dtype=np.int32).reshape(3, 3), np.zeros(3, np.int32), np.array([-1, 0, 2.0], np.float32))
    event = one_hit().replace(voxels={"cal3d": hits})
    draw_stream_event(event, tmp_path / "low.png")
    assert len(stream_figure(event).data) == 5
