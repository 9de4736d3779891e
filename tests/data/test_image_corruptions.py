"""Corruptions of pixel maps against counts, sums and the normal distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nufm.data.image_corruptions import DeadPixels, Gain, PixelGain, PixelNoise, WithoutView
from nufm.data.images import ImageEvent, View

SHAPE = (64, 96)


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def event(n: int = 400, energy: float | None = None, missing: str = "", shape: tuple[int, int] = SHAPE) -> ImageEvent:
    draw, views = rng(1), {}
    for name in ("xz", "yz"):
        flat = draw.choice(shape[0] * shape[1], n, replace=False)
        pixel = np.stack(np.divmod(flat, shape[1]), axis=1).astype(np.int32)
        values = draw.exponential(1.0, n) + 0.2 if energy is None else np.full(n, energy)
        views[name] = View(pixel, values.astype(np.float32))
    views.pop(missing, None)
    return ImageEvent(views, shape, name="made.h5#0")


ALL = (
    PixelNoise(0.3, 0.9),
    DeadPixels(0.3),
    DeadPixels(0.3, "columns"),
    Gain(1.2),
    PixelGain(0.3),
)


def same(a: ImageEvent, b: ImageEvent, view: str) -> bool:
    return np.array_equal(a.image(view), b.image(view))


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize("corruption", ALL)
def test_the_same_seed_is_the_same_corruption_and_the_event_stays(corruption):
    before = event()
    kept = before.image("xz").copy()
    first, second = corruption(before, rng()), corruption(before, rng())
    assert all(same(first, second, v) for v in ("xz", "yz"))
    assert np.array_equal(before.image("xz"), kept)
    assert first.truth == before.truth and first.shape == before.shape and first.name == before.name


@pytest.mark.parametrize("corruption", ALL)
@pytest.mark.parametrize("missing", ["xz", "yz"])
def test_a_view_that_is_missing_stays_missing_and_the_other_draws_the_same(corruption, missing):
    other = "yz" if missing == "xz" else "xz"
    whole, part = corruption(event(), rng()), corruption(event(missing=missing), rng())
    assert set(part.views) == {other}
    assert same(whole, part, other)


@pytest.mark.parametrize("corruption", ALL)
def test_an_empty_event_and_one_pixel_are_legal(corruption):
    empty = event(0)
    assert set(corruption(empty, rng()).views) == {"xz", "yz"}
    one = corruption(event(1), rng())
    assert one.views["xz"].energy.dtype == np.float32 and one.views["xz"].pixel.dtype == np.int32


@pytest.mark.parametrize("corruption", [PixelNoise(0.0), DeadPixels(0.0), Gain(1.0), PixelGain(0.0)])
def test_strength_nothing_changes_nothing(corruption):
    assert all(same(corruption(event(), rng()), event(), v) for v in ("xz", "yz"))


@pytest.mark.parametrize("corruption", [PixelNoise(0.5), DeadPixels(0.5), PixelGain(0.5)])
def test_the_two_views_draw_their_own(corruption):
    alike = event()
    alike = alike.replace(views={"xz": alike.views["xz"], "yz": alike.views["xz"]})
    found = corruption(alike, rng())
    assert not same(found, found.replace(views={"xz": found.views["yz"]}), "xz")


# ---------------------------------------------------------------------- one by one


def test_noise_fills_empty_pixels_as_the_normal_distribution_says():
    """Of pixels without charge a share Φ(-t/σ) is above t, with the mean of the truncated normal, σ φ(t/σ)/Φ(-t/σ)."""
    sigma, threshold = 0.2, 0.3
    found = PixelNoise(sigma, threshold)(event(0, shape=(512, 512)), rng()).views["xz"]
    x = threshold / sigma
    share = 0.5 * math.erfc(x / math.sqrt(2))
    n = 512 * 512
    assert abs(len(found) - n * share) < 4 * math.sqrt(n * share)
    mean = sigma * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) / share
    assert found.energy.mean() == pytest.approx(mean, abs=4 * sigma / math.sqrt(len(found)))
    assert found.energy.min() > threshold


def test_noise_moves_charge_by_its_sigma_and_suppression_takes_signal_too():
    strong = event(2000, energy=50.0)
    moved = PixelNoise(0.4)(strong, rng()).image("xz")
    pixel = strong.views["xz"].pixel
    change = moved[pixel[:, 0], pixel[:, 1]] - 50.0
    assert abs(change.mean()) < 4 * 0.4 / math.sqrt(2000)
    assert change.std() == pytest.approx(0.4, rel=0.07)
    weak = PixelNoise(0.0, threshold=0.5)(event(100, energy=0.5), rng())
    assert len(weak.views["xz"]) == 0  # at the threshold is not above it


def test_a_stronger_noise_is_the_same_noise():
    """Twice the σ without charge: the same pixels at the same number of σ, twice the values."""
    one, two = (PixelNoise(s, 3 * s)(event(0), rng()).views["xz"] for s in (0.1, 0.2))
    assert np.array_equal(one.pixel, two.pixel)
    np.testing.assert_allclose(two.energy, 2 * one.energy, rtol=1e-6)


def test_dead_pixels_are_a_share_and_those_of_a_smaller_share_are_among_them():
    whole = event(4000)
    few, many = (DeadPixels(s)(whole, rng()) for s in (0.1, 0.4))
    left = [len(e.views["xz"]) for e in (few, many)]
    for kept, share in zip(left, (0.1, 0.4), strict=True):
        assert abs(kept - 4000 * (1 - share)) < 4 * math.sqrt(4000 * share * (1 - share))
    assert not ((many.image("xz") > 0) & (few.image("xz") == 0)).any()
    alive = many.image("xz") > 0
    assert np.array_equal(many.image("xz")[alive], whole.image("xz")[alive])
    assert len(DeadPixels(1.0)(whole, rng()).views["yz"]) == 0


def test_dead_columns_are_whole_columns():
    full = ImageEvent(
        {v: View.of_image(np.ones(SHAPE, dtype=np.float32)) for v in ("xz", "yz")}, SHAPE, name="full.h5#0"
    )
    found = DeadPixels(0.25, "columns")(full, rng())
    for view in ("xz", "yz"):
        counts = (found.image(view) > 0).sum(0)
        assert set(counts.tolist()) == {0, SHAPE[0]}
        assert abs((counts == 0).sum() - 0.25 * SHAPE[1]) < 4 * math.sqrt(SHAPE[1] * 0.25 * 0.75)


def test_the_gain_of_all_pixels_is_the_factor():
    found = Gain(0.7)(event(), rng())
    np.testing.assert_allclose(found.image("yz"), 0.7 * event().image("yz"), rtol=1e-6)


def test_the_gain_of_each_pixel_is_log_normal_with_mean_one():
    sigma, n = 0.25, 6000
    factor = PixelGain(sigma)(event(n, energy=1.0), rng()).views["xz"].energy.astype(np.float64)
    spread = math.sqrt(math.exp(sigma**2) - 1)
    assert factor.mean() == pytest.approx(1.0, abs=4 * spread / math.sqrt(n))
    assert np.log(factor).std() == pytest.approx(sigma, rel=0.05)
    # A pixel's gain does not hang on what else has charge.
    whole, few = event(n, energy=1.0), event(n, energy=1.0)
    few = few.replace(views={"xz": View(few.views["xz"].pixel[:10], few.views["xz"].energy[:10])})
    first = PixelGain(sigma)(few, rng()).views["xz"].energy
    assert np.array_equal(first, PixelGain(sigma)(whole, rng()).views["xz"].energy[:10])


def test_without_a_view():
    assert set(WithoutView("xz")(event(), rng()).views) == {"yz"}
    assert set(WithoutView("xz")(event(missing="xz"), rng()).views) == {"yz"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PixelNoise(-0.1), "sigma is -0.1"),
        (lambda: PixelNoise(float("nan")), "sigma is nan"),
        (lambda: PixelNoise(0.1, -1.0), "threshold is -1.0"),
        (lambda: DeadPixels(1.5), "share is 1.5, expected a number from 0 to 1"),
        (lambda: DeadPixels(0.1, "rows"), "'pixels' or 'columns'"),
        (lambda: Gain(0.0), "expected a positive number"),
        (lambda: Gain(float("inf")), "expected a positive number"),
        (lambda: PixelGain(-1), "sigma is -1"),
        (lambda: WithoutView("xy"), "expected one of xz, yz"),
    ],
)
def test_values_that_cannot_be_meant(make, words):
    with pytest.raises(ValueError, match=words):
        make()
