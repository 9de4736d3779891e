"""Regions of a pixel map, sentences written from the truth, and the regions that a text cites."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nufm.data.explanations import (
    REGIONS,
    Region,
    cited_regions,
    region_entered,
    region_signal,
    teaching_sentence,
    teaching_sentences,
)
from nufm.data.images import INTERACTION_NAMES, ImageBatch, ImageEvent, View

UPPER_DOWN_XZ = Region("xz", "upper", "downstream")
LOWER_DOWN_YZ = Region("yz", "lower", "downstream")


@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (1, 1)])
def test_regions_cover_every_pixel_once(shape):
    times = np.zeros((2, *shape), dtype=int)
    for region in REGIONS:
        times[region.slices(shape)] += 1
    assert (times == 1).all()
    assert len(set(map(str, REGIONS))) == 8


def test_region_signal_adds_up_and_knows_its_place():
    image = np.random.default_rng(0).random((2, 6, 6), dtype=np.float32)
    signal = region_signal(image)
    assert sum(signal.values()) == pytest.approx(image.sum(dtype=float))
    # by hand: upper is the rows with large numbers, downstream the columns with large numbers
    assert signal[UPPER_DOWN_XZ] == pytest.approx(sum(float(image[0, r, c]) for r in (3, 4, 5) for c in (3, 4, 5)))
    assert signal[LOWER_DOWN_YZ] == pytest.approx(sum(float(image[1, r, c]) for r in (0, 1, 2) for c in (3, 4, 5)))


@pytest.mark.parametrize(
    ("momentum", "view", "expected"),
    [
        ((1.0, -2.0, 3.0), "xz", UPPER_DOWN_XZ),
        ((1.0, -2.0, 3.0), "yz", LOWER_DOWN_YZ),
        ((-1.0, 0.0, -3.0), "xz", Region("xz", "lower", "upstream")),
    ],
)
def test_a_particle_enters_the_quarter_that_it_flies_into(momentum, view, expected):
    momentum = np.array(momentum, dtype=np.float32)
    assert region_entered(momentum, view) == expected
    # a straight line drawn from the middle of the map stays in that quarter
    line = np.zeros((2, 64, 64), dtype=np.float32)
    direction = momentum[[0 if view == "xz" else 1, 2]] / np.abs(momentum).max()
    for step in np.arange(1.0, 30.0):
        row, column = np.floor(32 + step * direction).astype(int)
        line[0 if view == "xz" else 1, row, column] = 1.0
    assert region_signal(line)[expected] == line.sum() > 10


def maps(**filled: float) -> np.ndarray:
    """Maps of 8 × 8 with a signal in the regions named like upper_downstream_xz."""
    image = np.zeros((2, 8, 8), dtype=np.float32)
    for name, value in filled.items():
        row, column, view = name.split("_")
        plane, rows, columns = Region(view, row, column).slices((8, 8))
        image[plane, rows, columns] = value
    return image


def test_the_lepton_is_pointed_at_in_the_view_that_shows_more_of_it():
    image = maps(upper_downstream_xz=1.0, lower_downstream_xz=3.0, lower_downstream_yz=1.0, lower_upstream_yz=1.0)
    along_x, along_y = np.array([2.0, -1.0, 4.0]), np.array([1.0, -2.0, 4.0])
    text = teaching_sentence(0, image, lepton=along_x)
    assert cited_regions(text) == [UPPER_DOWN_XZ]
    assert "track of a muon" in text and "about 20 %" in text  # 1 of 4, to the nearest ten: 25 rounds to even
    text = teaching_sentence(1, image, lepton=along_y)
    assert cited_regions(text) == [LOWER_DOWN_YZ]
    assert "shower of an electron" in text and "about 50 %" in text


def test_a_view_that_is_missing_or_dark_is_not_pointed_at():
    image = maps(upper_downstream_xz=1.0, lower_downstream_yz=1.0)
    lepton = np.array([2.0, -1.0, 4.0])
    assert cited_regions(teaching_sentence(0, image, np.array([False, True]), lepton)) == [LOWER_DOWN_YZ]
    image[0] = 0.0
    assert cited_regions(teaching_sentence(0, image, lepton=lepton)) == [LOWER_DOWN_YZ]
    image[1] = maps(upper_upstream_yz=1.0)[1]
    text = teaching_sentence(0, image, lepton=lepton)
    assert "cannot be told" in text and cited_regions(text) == [Region("yz", "upper", "upstream")]


def test_a_neutral_current_points_at_the_brightest_region_whatever_the_neutrino_does():
    image = maps(upper_downstream_xz=1.0, lower_downstream_yz=2.0, upper_upstream_yz=1.5)
    for lepton in (None, np.full(3, np.nan), np.array([2.0, 1.0, 4.0])):
        assert cited_regions(teaching_sentence(2, image, lepton=lepton)) == [LOWER_DOWN_YZ]
    assert cited_regions(teaching_sentence(1, image, lepton=np.full(3, np.nan))) == [LOWER_DOWN_YZ]


def test_no_signal_and_bad_input():
    dark = np.zeros((2, 8, 8), dtype=np.float32)
    assert teaching_sentence(0, dark, lepton=np.ones(3)) == "There is no signal in any view."
    assert teaching_sentence(0, maps(upper_upstream_xz=1.0), np.array([False, True])).startswith("There is no signal")
    with pytest.raises(ValueError, match=r"interaction is 3, expected one of 0: νµ CC"):
        teaching_sentence(3, dark)
    with pytest.raises(ValueError, match=r"shape \(8, 8\), expected \(2, H, W\)"):
        teaching_sentence(0, dark[0])


def test_sentences_of_a_batch():
    view = View.of_image(maps(upper_downstream_xz=1.0)[0])

    def event(interaction: int) -> ImageEvent:
        truth = {"interaction": np.int64(interaction), "lepton": np.array([1.0, 0.0, 1.0], dtype=np.float32)}
        return ImageEvent({"xz": view}, (8, 8), truth=truth, name=f"event {interaction}")

    batch = ImageBatch.from_events([event(i) for i in range(len(INTERACTION_NAMES))])
    texts = teaching_sentences(batch)
    assert [cited_regions(t) for t in texts] == [[UPPER_DOWN_XZ]] * 3
    assert len(set(texts)) == 3
    with pytest.raises(ValueError, match="event 1: truth 'interaction' is not known"):
        teaching_sentences(batch.replace(truth={"interaction": torch.tensor([0, -1, 2])}))
    with pytest.raises(ValueError, match="event 0: truth 'interaction' is not known"):
        teaching_sentences(batch.replace(truth={}))


def test_a_sentence_does_not_depend_on_batch_mates():
    """The lepton of an event is not forgotten because that of another is not known."""
    image = np.zeros((8, 8), dtype=np.float32)
    image[1, 1], image[6, 6] = 5.0, 1.0  # most charge is not where the lepton goes
    views = {name: View.of_image(image) for name in ("xz", "yz")}
    known = {"interaction": np.int64(0), "lepton": np.array([1.0, 0.5, 2.0], dtype=np.float32)}
    event = ImageEvent(views, (8, 8), truth=known, name="known")
    mate = ImageEvent(views, (8, 8), truth={"interaction": np.int64(1)}, name="mate")
    (alone,) = teaching_sentences(ImageBatch.from_events([event]))
    assert cited_regions(alone) == [UPPER_DOWN_XZ]
    first, second = teaching_sentences(ImageBatch.from_events([event, mate]))
    assert first == alone and [second] == teaching_sentences(ImageBatch.from_events([mate])) != [alone]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((f"It is in the {r}.", [r]) for r in REGIONS),
        ("THE UPPER DOWNSTREAM QUARTER OF THE XZ VIEW", [UPPER_DOWN_XZ]),
        ("a track in the downstream, upper quadrant of view X-Z", [UPPER_DOWN_XZ]),
        ("In the xz view the top-downstream\npart is bright", [UPPER_DOWN_XZ]),
        ("the upper downstream and the lower downstream quarter of the YZ view",
         [Region("yz", "upper", "downstream"), LOWER_DOWN_YZ]),
        ("lower downstream quarter of the YZ view, then the upper downstream quarter of the XZ view",
         [LOWER_DOWN_YZ, UPPER_DOWN_XZ]),
        ("the lower downstream quarter of the YZ view; the lower downstream quarter of the YZ view", [LOWER_DOWN_YZ]),
        ("bottom downstream of both views", [Region("xz", "lower", "downstream"), LOWER_DOWN_YZ]),
        ("about 0.5 of it is in the upper downstream quarter of the XZ view", [UPPER_DOWN_XZ]),
        ("the upper downstream quarter. The XZ view is dark.", []),  # the view stands in another sentence
        ("the upper half of the XZ view", []),
        ("a long track and a shower", []),
        ("", []),
    ],
)  # fmt: skip
def test_cited_regions(text, expected):
    assert cited_regions(text) == expected
