"""Pictures of pixel maps and of how well they are told apart: what is in them, and events that have little to show."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toy_maps import toy_event, toy_events

from nufm.data.image_hdf5 import write_maps
from nufm.data.image_png import write_png_folder
from nufm.data.images import ImageEvent, View
from nufm.display.command import display, holds_images
from nufm.display.image_interactive import image_figure, write_image_html, write_image_page
from nufm.display.image_scores import (
    compared_rejection,
    compared_roc,
    efficiency_purity,
    rejection_curves,
    rejection_points,
)
from nufm.display.images import (
    LEAST,
    Said,
    close_up,
    draw_examples,
    draw_image_event,
    edges,
    image_line,
    image_truth,
    view_title,
)
from nufm.display.stream_panels import Explanation

EMPTY = View(np.zeros((0, 2), np.int32), np.zeros(0, np.float32))


def one_pixel(row: int, column: int, energy: float = 1.0, size: int = 200) -> ImageEvent:
    view = View(np.array([[row, column]], np.int32), np.array([energy], np.float32))
    return ImageEvent({"xz": view, "yz": EMPTY}, (size, size), name="one")


def shows(path: Path) -> np.ndarray:
    picture = imread(path)[..., :3]
    assert min(picture.shape[:2]) > 300 and picture.std() > 0.005
    return picture


# ---------------------------------------------------------------------------------------- where and what


def test_close_up_holds_the_charge():
    """Of 100 pixels in a square and one 90 pixels away, the square; never less than LEAST pixels, never outside."""
    grid = np.stack(np.meshgrid(np.arange(60, 70), np.arange(80, 90), indexing="ij"), -1).reshape(-1, 2)
    pixel = np.concatenate([grid, [[150, 180]]]).astype(np.int32)
    event = ImageEvent({"yz": View(pixel, np.ones(101, np.float32))}, (200, 200))
    rows, columns = close_up(event)
    assert rows.start <= 60 and rows.stop >= 70 and columns.start <= 80 and columns.stop >= 90
    assert rows.stop - rows.start == columns.stop - columns.start == LEAST
    heavy = ImageEvent({"yz": View(pixel, np.r_[np.ones(100), 50.0].astype(np.float32))}, (200, 200))
    rows, columns = close_up(heavy)
    assert rows.start <= 60 and rows.stop >= 151 and columns.stop >= 181, "far, but a third of the charge"
    assert close_up(one_pixel(0, 199)) == (slice(0, LEAST), slice(200 - LEAST, 200))
    assert close_up(ImageEvent({}, (40, 50))) == (slice(0, 40), slice(0, 50))
    small = one_pixel(3, 3, size=8)
    assert close_up(small) == (slice(0, 8), slice(0, 8))


def test_lengths():
    """The middle of a map is 0; 32 pixels of 5 mm are 16 cm; without a pitch, pixels are counted."""
    event = toy_event(0)
    np.testing.assert_allclose(edges(event, 0)[[0, 16, 32]], [-8, 0, 8])
    np.testing.assert_array_equal(edges(event.replace(pitch=0.0), 1)[[0, 32]], [0, 32])


def test_words():
    event = toy_event(1, 3)
    assert image_truth(event) == "truth: νe CC, quasi-elastic, neutrino 4.00 GeV, y 0.25, lepton 0.75 GeV/c at 0°"
    unknown = {"interaction": np.int64(-1), "neutrino_energy": np.float32(np.nan)}
    assert image_truth(event.replace(truth=unknown)) == "" == image_truth(event.replace(truth={}))
    sideways = {"lepton": np.array([0, 2, 0], np.float32)}
    assert image_truth(event.replace(truth=sideways)) == "truth: lepton 2.00 GeV/c at 90°"
    assert image_line(one_pixel(1, 1), True) == "200 × 200 pixels of 5 mm   ·   1 with charge   ·   simulated by nufm"
    assert "mm" not in image_line(one_pixel(1, 1).replace(pitch=0.0), False)
    assert view_title(one_pixel(1, 1, 2500.0), "xz") == "XZ: 1 pixel, 2.50 GeV"
    assert view_title(event.without("yz"), "yz") == "YZ: not read out"
    assert "grey" in view_title(one_pixel(1, 1, 200.0).replace(unit="grey"), "xz")


# ---------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    "event",
    [
        toy_event(1),
        toy_event(0, missing="xz"),
        one_pixel(5, 7),
        one_pixel(5, 7, 200.0).replace(unit="grey", pitch=0.0),
        ImageEvent({"xz": EMPTY, "yz": EMPTY}, (32, 48), name="no charge"),
        ImageEvent({}, (32, 32), name="not read out"),
    ],
    ids=["shower", "missing view", "one pixel", "grey", "no charge", "nothing"],
)
def test_events_of_all_kinds_are_drawn(event, tmp_path):
    shows(draw_image_event(event, tmp_path / "new" / "event.png", simulated=True, said=["prediction: NC 100 %"]))
    page = write_image_html(event, tmp_path / "event.html", said=["prediction: NC <100 %>"]).read_text()
    assert "plotly" in page and "NC &lt;100 %&gt;" in page, "text of others is no markup"


def test_row_0_is_at_the_bottom(tmp_path):
    """Charge in the lowest rows darkens the lower half of the view."""
    low = np.zeros((64, 64), np.float32)
    low[2:12] = 5
    low[60, 60] = 1
    event = ImageEvent({"xz": View.of_image(low), "yz": EMPTY}, (64, 64))
    picture = shows(draw_image_event(event, tmp_path / "event.png", simulated=False))
    height, width = picture.shape[:2]
    view = 1 - picture[int(0.14 * height) : int(0.5 * height), int(0.1 * width) : int(0.42 * width)].mean(2)
    half = len(view) // 2
    assert view[half:].sum() > 2 * view[:half].sum()


def test_page_holds_the_energies():
    """The heat map has the pixels at their places (cm from the middle), nothing where there is no charge."""
    energy = {(10, 20): 1.0, (12, 21): 10.0}
    view = View(np.array(list(energy), np.int32), np.array(list(energy.values()), np.float32))
    figure = image_figure(ImageEvent({"yz": view}, (32, 32), name="two"), simulated=False)
    (heat,) = [trace for trace in figure.data if trace.type == "heatmap"]
    np.testing.assert_allclose(heat.x, (np.array([20, 21]) - 15.5) / 2)
    np.testing.assert_allclose(heat.y, (np.array([10, 11, 12]) - 15.5) / 2)
    values = np.asarray(heat.customdata, dtype=float)
    assert values.shape == (3, 2) and values[0, 0] == 1 and values[2, 1] == 10 and np.isnan(values).sum() == 4
    np.testing.assert_allclose(heat.z[[0, 2], [0, 1]], [0, 1])
    assert [a.text for a in figure.layout.annotations][:2] == ["XZ: not read out", "YZ: 2 pixels, 11 MeV"]
    assert "not read out" in [a.text for a in figure.layout.annotations]


def test_several_events_on_one_page(tmp_path):
    path = write_image_page(toy_events(3), [["first"], ["second"], ["third"]], tmp_path / "page.html", "some", True)
    text = path.read_text()
    assert all(word in text for word in ("first", "second", "third")) and "simulated by nufm" in text
    assert text.count("Plotly.newPlot(") >= 3 and len(text) < 9e6, "plotly's code once"


def test_examples(tmp_path):
    said = [Said(("prediction: NC 90 %", "because " * 200), False), Said(("νe CC",), None)]
    shows(draw_examples(toy_events(2), said, tmp_path / "examples.png", "title", "simulated by nufm", ["wrong", "?"]))
    with pytest.raises(ValueError, match="2 events with 1 predictions"):
        draw_examples(toy_events(2), said[:1], tmp_path / "x.png")
    with pytest.raises(ValueError, match="expected as many, not none"):
        draw_examples([], [], tmp_path / "x.png")


# ---------------------------------------------------------------------------------------- scores


def test_rejection_is_that_of_every_threshold():
    """By brute force: the share of the signal above each score, over that of the background."""
    rng = np.random.default_rng(0)
    score, kind = rng.normal(size=60).round(1), rng.integers(0, 3, 60)
    score += 0.5 * (kind == 1)
    x, y = rejection_points(score, kind == 1, kind == 2)
    expected = []
    for cut in sorted(set(score[kind > 0]), reverse=True):
        found, wrong = (score[kind == 1] >= cut).mean(), (score[kind == 2] >= cut).mean()
        if wrong > 0:
            expected.append((found, 1 / wrong))
    np.testing.assert_allclose(np.stack([x, y], 1), expected)
    assert y[-1] == 1 and x[-1] == 1
    assert len(rejection_points(score, kind == 5, kind == 2)[0]) == 0, "no signal"
    assert len(rejection_points(score, kind == 1, kind == 5)[0]) == 0, "no background"


def test_score_pictures(tmp_path):
    rng = np.random.default_rng(0)
    target = rng.integers(-1, 3, 80)
    score = rng.dirichlet((1, 1, 1), 80)
    score[np.arange(80), target] += 1 * (target >= 0)
    names = ("νµ CC", "νe CC", "NC")
    shows(rejection_curves(score, target, names, tmp_path / "rejection.png"))
    shows(rejection_curves(score[:1], target[:1], names, tmp_path / "one.png"))
    both = {"a": score, "b": rng.dirichlet((1, 1, 1), 80)}
    assert not np.array_equal(
        shows(compared_roc(both, target, names, tmp_path / "roc.png", "simulated by nufm")),
        shows(compared_rejection(both, target, names, tmp_path / "both.png", "simulated by nufm")),
    )
    counts = np.array([[50, 3, 7], [2, 40, 8], [0, 0, 0]])
    shows(efficiency_purity(counts, names, tmp_path / "matrix.png"))
    shows(efficiency_purity(np.zeros((3, 3), int), names, tmp_path / "empty.png"))
    for wrong in (np.zeros((2, 3)), np.full((3, 3), -1), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match=re.escape("expected counts (3, 3)")):
            efficiency_purity(wrong, names, tmp_path / "x.png")
    for draw in (rejection_curves, lambda s, *a: compared_roc({"a": s}, *a)):
        with pytest.raises(ValueError, match=re.escape("score has shape (80, 2), expected (80, 3)")):
            draw(score[:, :2], target, names, tmp_path / "x.png")


# ---------------------------------------------------------------------------------------- the command


class Classifier:
    """Stands for a loaded checkpoint of pixel maps."""

    inputs = "images"


def run(*arguments: object) -> int:
    return display(
        lambda source: Classifier(),
        lambda *asked: pytest.fail("no tokens of pixel maps"),
        lambda event, encoder: Explanation(lines=(f"said of {event.name}",)),
        [str(a) for a in arguments],
    )


def test_files_of_maps_are_drawn(tmp_path, capsys):
    maps, folder = tmp_path / "maps.h5", tmp_path / "png"
    write_maps(maps, toy_events(3), {"producer": "simulated by nufm"})
    write_png_folder(folder, toy_events(3))
    for path, stem in ((maps, "maps_1"), (folder, "png_1")):
        assert run(path, "--event", 1, "--out", tmp_path / "out") == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / "out" / f"{stem}.{end}") for end in ("png", "html")]
        shows(tmp_path / "out" / f"{stem}.png")
    page = (tmp_path / "out" / "maps_1.html").read_text()
    assert "simulated by nufm" in page and json.dumps("truth: νe CC")[1:-1] in page


def test_with_a_checkpoint(tmp_path):
    write_maps(tmp_path / "maps.h5", toy_events(1))
    assert run(tmp_path / "maps.h5", "--checkpoint", "RUN", "--out", tmp_path) == 0
    assert "said of " in (tmp_path / "maps_0.html").read_text()


def test_bad_input_is_told(tmp_path, capsys):
    write_maps(tmp_path / "maps.h5", toy_events(2))
    for flags, words in (
        (("--event", 2), "there is no event 2; it holds 2 events"),
        (("--tokens", "5"), "holds pixel maps: --tokens is for those in the PILArNet-M layout"),
        (("--min-points", "5"), "--min-points is for those in the PILArNet-M layout"),
    ):
        assert run(tmp_path / "maps.h5", *flags, "--out", tmp_path / "out") == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_holds_maps(tmp_path, genuine_file):
    write_maps(tmp_path / "a" / "maps.h5", toy_events(1))
    write_png_folder(tmp_path / "png", toy_events(1))
    (tmp_path / "text.h5").write_text("no HDF5")
    for path in (tmp_path / "a" / "maps.h5", tmp_path / "a", tmp_path / "png", tmp_path / "png" / "events.csv"):
        assert holds_images(path), path
    for path in (genuine_file, tmp_path / "text.h5", tmp_path / "nothing.h5", tmp_path):
        assert not holds_images(path), path
