"""Brightness, resolution and augmentations of pixel maps, against dense arrays and formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from image_events import image_event

from nufm.checkpoint.describe import TRANSFORMS, build, describe_transform
from nufm.data.image_transforms import Brightness, Coarse, FlipTransverse, Rebin, ShiftPixels, Window
from nufm.data.images import VIEWS, ImageEvent, View

RNG = np.random.default_rng(0)
ALL = (Brightness(), Brightness("linear", 20.0), Rebin(2), Coarse(2), Coarse(2, share=False), Window(8))
AUGMENT = (FlipTransverse(), ShiftPixels(3))


def dense(event: ImageEvent) -> np.ndarray:
    return np.stack([event.image(v) for v in VIEWS])


def test_brightness_of_known_energies():
    """0 is black, ``full`` white, more is white too; a minimum-ionising particle is as bright as the docstring says."""
    log = Brightness().values(np.array([0.0, 1.0, 50.0, 80.0, -0.5]))
    assert log == pytest.approx([0, math.log(2) / math.log(51), 1, 1, 0])
    assert round(255 * log[1]) == 45
    linear = Brightness("linear", full=20.0).values(np.array([5.0, 20.0, 30.0, -1.0]))
    assert linear == pytest.approx([0.25, 1, 1, 0])
    assert Brightness().values(np.array([0, 51, 255]), "grey") == pytest.approx([0, 0.2, 1])
    assert log.dtype == np.float32


def test_brightness_keeps_pixels_and_unit():
    event = image_event(1)
    bright = Brightness()(event, RNG)
    assert bright.unit == "MeV" and all((bright.views[v].pixel == event.views[v].pixel).all() for v in VIEWS)
    expected = np.log1p(dense(event).astype(float)) / math.log(51)
    assert dense(bright) == pytest.approx(np.minimum(expected, 1), abs=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 4, 16])
def test_rebin_sums_blocks(factor):
    event = image_event(2, n=60)
    rebinned = Rebin(factor)(event, RNG)
    n = 16 // factor
    assert dense(rebinned) == pytest.approx(dense(event).reshape(2, n, factor, n, factor).sum((2, 4)), rel=1e-6)
    assert rebinned.shape == (n, n) and rebinned.pitch == 5.0 * factor


def test_rebin_of_grey_values_is_the_mean():
    event = image_event(3, n=100, unit="grey")
    rebinned = dense(Rebin(4)(event, RNG))
    assert rebinned == pytest.approx(dense(event).reshape(2, 4, 4, 4, 4).mean((2, 4)), rel=1e-6)
    assert rebinned.max() <= 255


def test_rebin_of_maps_that_are_not_square():
    view = View(np.array([[0, 0], [1, 5], [3, 2]], np.int32), np.array([1, 2, 4], np.float32))
    event = ImageEvent({"xz": view}, (4, 6))
    assert Rebin(2)(event, RNG).image("xz").tolist() == [[1, 0, 2], [0, 4, 0]]


@pytest.mark.parametrize("unit", ["MeV", "grey"])
@pytest.mark.parametrize("share", [True, False])
def test_coarse_is_rebin_enlarged(unit, share):
    event = image_event(4, n=60, unit=unit)
    coarse = Coarse(4, share)(event, RNG)
    enlarged = dense(Rebin(4)(event, RNG)).repeat(4, axis=1).repeat(4, axis=2)
    if share and unit == "MeV":
        assert dense(coarse).sum() == pytest.approx(dense(event).sum(), rel=1e-5)
        enlarged /= 16
    assert dense(coarse) == pytest.approx(enlarged, rel=1e-6)
    assert (coarse.shape, coarse.pitch) == (event.shape, event.pitch)


@pytest.mark.parametrize("size", [4, 7, 15, 16, 17, 30])
def test_window_keeps_the_middle(size):
    event = image_event(5, n=120)
    window = Window(size)(event, RNG)
    assert window.shape == (size, size)
    padded = np.pad(dense(event), ((0, 0), (20, 20), (20, 20)))
    first = 20 + 8 - size // 2  # pixel 8 of 16, where the interaction is, becomes pixel size // 2
    assert (dense(window) == padded[:, first : first + size, first : first + size]).all()
    assert window.image("xz")[size // 2, size // 2] == event.image("xz")[8, 8]


def test_flips_are_independent_and_turn_the_truth():
    event, seen = image_event(6), set()
    for seed in range(40):
        flipped = FlipTransverse()(event, np.random.default_rng(seed))
        sign = np.ones(3)
        for axis, view in enumerate(VIEWS):
            turned = (flipped.image(view) == event.image(view)[::-1]).all()
            assert turned or (flipped.image(view) == event.image(view)).all()
            sign[axis] = -1 if turned else 1
        for name in ("lepton", "vertex"):
            assert (flipped.truth[name] == event.truth[name] * sign).all() and flipped.truth[name].dtype == np.float32
        seen.add(tuple(sign[:2]))
    assert len(seen) == 4
    assert (FlipTransverse(p=0)(event, RNG).image("xz") == event.image("xz")).all()
    assert (FlipTransverse(p=1)(event, RNG).image("yz") == event.image("yz")[::-1]).all()


def test_shifts_share_z_and_lose_what_leaves():
    event, seen = image_event(7, n=120), set()
    padded = np.pad(dense(event), ((0, 0), (3, 3), (3, 3)))
    for seed in range(60):
        moved = dense(ShiftPixels(3)(event, np.random.default_rng(seed)))
        x, y, z = np.random.default_rng(seed).integers(-3, 3, 3, endpoint=True)
        assert (moved[0] == padded[0, 3 - x : 19 - x, 3 - z : 19 - z]).all()
        assert (moved[1] == padded[1, 3 - y : 19 - y, 3 - z : 19 - z]).all()
        seen |= {int(x), int(y), int(z)}
    assert seen == set(range(-3, 4))


@pytest.mark.parametrize("transform", [*ALL, *AUGMENT], ids=str)
def test_empty_missing_and_one_pixel(transform):
    none = View(np.zeros((0, 2), np.int32), np.zeros(0, np.float32))
    one = View(np.array([[8, 8]], np.int32), np.array([2.0], np.float32))
    for views in ({}, {"yz": none}, {"xz": one, "yz": none}, {"xz": one}):
        event = ImageEvent(views, (16, 16))
        changed = transform(event, np.random.default_rng(1))
        assert set(changed.views) == set(views)
        assert all((len(changed.views[v]) > 0) == (len(views[v]) > 0) for v in views)
        assert all(v.energy.dtype == np.float32 for v in changed.views.values())
    assert one.pixel.tolist() == [[8, 8]] and one.energy.tolist() == [2]  # the event that was given stays as it is


@pytest.mark.parametrize("transform", [*ALL, *AUGMENT], ids=str)
def test_transforms_travel_with_the_weights(transform):
    assert build(describe_transform(transform), TRANSFORMS, "here") == transform


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Brightness("sqrt"), "curve is 'sqrt', expected 'log' or 'linear'"),
        (lambda: Brightness(full=0), "full is 0, expected a positive energy"),
        (lambda: Brightness(scale=math.nan), "scale is nan"),
        (lambda: Rebin(0), "factor is 0, expected 1 or more"),
        (lambda: Coarse(-1), "Coarse: factor is -1"),
        (lambda: Window(0), "size is 0"),
        (lambda: ShiftPixels(-1), "pixels is -1"),
        (lambda: Rebin(3)(image_event(1, name="a.h5#3"), RNG), "a.h5#3: a map of 16 × 16 .* blocks of 3 × 3; choose"),
    ],
)
def test_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
