"""Muons in the magnetised iron: circles of p = 0.3 B R, resolution by the PDG formula, χ² and pulls."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import kstest

from nufm.data.detector import load_stream_detector
from nufm.simulation.fasercal.spectrometer import FEATURES, fit, measure, tracks

STREAM = load_stream_detector("fasercal").tracks["muon"]
FRONT = np.array([20.0, -30.0, 2600.0])


def column(rows, name):
    return np.array([row[FEATURES.index(name)] for row in rows])


def sample(p, n=300, charge=-1, seed=0, direction=(0.01, -0.02, 1.0)):
    rng = np.random.default_rng(seed)
    u = np.array(direction) / np.linalg.norm(direction)
    return [fit(STREAM, measure(STREAM, FRONT, u, p, charge, rng)) for _ in range(n)]


@pytest.mark.parametrize(("p", "charge"), [(20.0, 1), (60.0, -1), (300.0, 1)])
def test_momentum_from_a_circle(p, charge):
    """Places on an exact circle of radius R = p / (0.3 B), without matter: the fit gives p back."""
    airy = dataclasses.replace(STREAM, material={"polystyrene": 1.0})
    radius = p / (0.3 * 1.5) * 1e3  # mm
    z = np.array(STREAM.planes_mm)
    x = -charge * (radius - np.sqrt(radius**2 - (z - z[0]) ** 2))  # q (v × B): a positive charge goes to −x
    found = fit(airy, np.column_stack([x, np.zeros(len(z)), z]))
    # polystyrene takes 0.6 GeV over 3 m, which the fit puts back at the front
    assert found[FEATURES.index("p")] == pytest.approx(p, rel=0.01, abs=0.4)
    assert found[0] == charge and found[1] == 10 and found[7] == 15


def test_resolution_is_that_of_multiple_scattering():
    """PDG eq. 35.31 for 3 m of iron in 1.5 T: σ(k) = 0.016 / (L p) √(L/X₀) with k = 0.3 B / p, so σ_p/p = 15.5 %."""
    expected = 0.016 / 3.0 * math.sqrt(3.0 / 0.01757) / (0.3 * 1.5)
    for p in (30.0, 100.0):
        inverse = 1.0 / column(sample(p), "p")
        assert np.std(inverse) * p == pytest.approx(expected, rel=0.25)
        assert np.median(inverse) * p == pytest.approx(1.0, abs=0.04)


def test_errors_and_chi2_are_right():
    rows = sample(80.0, 400)
    pull = (1.0 / column(rows, "p") - 1.0 / 80.0) * column(rows, "p") ** 2 / column(rows, "error_1")
    assert np.mean(pull) == pytest.approx(0.0, abs=0.25) and np.std(pull) == pytest.approx(1.0, abs=0.2)
    assert np.mean(column(rows, "chi2") / column(rows, "ndof")) == pytest.approx(1.0, abs=0.1)
    assert kstest(column(rows, "p_value"), "uniform").pvalue > 1e-4
    slope = column(rows, "px") / column(rows, "pz")
    assert np.mean((slope - 0.01) / column(rows, "error_2")) == pytest.approx(0.0, abs=0.25)


class Still(np.random.Generator):
    """No scattering and no error of a place: every normal number is 0."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def normal(self, loc=0.0, scale=1.0, size=None):
        return np.zeros(size)


@pytest.mark.parametrize("direction", [(0.0, 0.0, 1.0), (0.05, -0.08, 1.0)])
@pytest.mark.parametrize("p", [4.0, 5.0, 8.0, 20.0])
def test_slow_muons_without_noise(p, direction):
    """They lose most of their momentum in the iron (3.8 GeV over all of it): the fit puts it back."""
    u = np.array(direction) / np.linalg.norm(direction)
    found = fit(STREAM, measure(STREAM, FRONT, u, p, 1, Still()))
    assert found[FEATURES.index("p")] == pytest.approx(p, rel=0.03)
    assert found[FEATURES.index("chi2")] < 0.1 and found[0] == 1


@pytest.mark.parametrize("p", [4.5, 6.0])
def test_errors_of_slow_muons_are_right(p):
    rows = sample(p, 300)
    pull = (1.0 / column(rows, "p") - 1.0 / p) * column(rows, "p") ** 2 / column(rows, "error_1")
    assert np.median(column(rows, "p")) == pytest.approx(p, rel=0.03)
    assert np.mean(pull) == pytest.approx(0.0, abs=0.3) and np.std(pull) == pytest.approx(1.0, abs=0.3)
    assert np.mean(column(rows, "chi2") / column(rows, "ndof")) == pytest.approx(1.0, abs=0.2)


def test_error_of_an_inclined_track():
    """What bends is q/p over the cosine, and the iron is thicker: pulls stay 1 at 50 degrees (cosine 0.6)."""
    wide = dataclasses.replace(STREAM, low_mm=(-9e3, -9e3, *STREAM.low_mm[2:]), high_mm=(9e3, 9e3, *STREAM.high_mm[2:]))
    rng, u = np.random.default_rng(1), np.array([0.0, math.sin(0.9), math.cos(0.9)])
    rows = [fit(wide, measure(wide, FRONT, u, 60.0, 1, rng)) for _ in range(300)]
    pull = (1.0 / column(rows, "p") - 1.0 / 60.0) * column(rows, "p") ** 2 / column(rows, "error_1")
    assert np.median(column(rows, "p")) == pytest.approx(60.0, rel=0.05)
    assert np.std(pull) == pytest.approx(1.0, abs=0.15)


def test_charge_and_direction():
    for charge in (1, -1):
        rows = sample(50.0, 100, charge)
        assert (column(rows, "charge") == charge).mean() > 0.99
        assert np.median(column(rows, "py") / column(rows, "pz")) == pytest.approx(-0.02, abs=0.003)
        norm = np.hypot(np.hypot(column(rows, "px"), column(rows, "py")), column(rows, "pz"))
        assert np.allclose(norm, column(rows, "p"), rtol=1e-4)
    straight = column(sample(3000.0, 100), "charge")
    assert 0.5 < (straight == -1).mean() < 1.0  # no sagitta is left to tell


def test_slow_and_wide_tracks_are_short():
    rng = np.random.default_rng(0)
    slow = measure(STREAM, FRONT, np.array([0.0, 0.0, 1.0]), 1.2, -1, rng)
    assert 2 <= len(slow) < 5  # 0.38 GeV in each slab
    wide = measure(STREAM, np.array([480.0, 0.0, 2600.0]), np.array([0.1, 0.0, 1.0]), 50.0, -1, rng)
    assert len(wide) == 1 and fit(STREAM, wide) is None
    assert fit(STREAM, np.zeros((0, 3))) is None
    outside = measure(STREAM, np.array([600.0, 0.0, 2600.0]), np.array([0.0, 0.0, 1.0]), 50.0, -1, rng)
    assert outside.shape == (0, 3)


def test_tracks_of_an_event():
    rng = np.random.default_rng(0)
    exits = np.zeros((14, 7))
    assert tracks(STREAM, exits, np.full(14, 105.66), np.ones(14), rng).shape == (0, 11)
    exits[1:] = [0.0, 0.0, 2600.0, 0.0, 0.0, 1.0, 1e5]
    exits[1, 6] = 1.2e3
    found = tracks(STREAM, exits, np.full(14, 105.66), np.ones(14), rng)
    assert found.shape == (10, 11) and found.dtype == np.float32 and np.isfinite(found).all()
    assert (np.diff(found[:, 1]) <= 0).all() and found[-1, 1] == 10  # the short one is left out


def test_a_rounding_before_the_front_is_no_step():
    rng = np.random.default_rng(0)
    place = np.array([0.0, 0.0, np.nextafter(2600.0, 0.0)])
    assert len(measure(STREAM, place, np.array([0.0, 0.0, 1.0]), 100.0, 1, rng)) == 10
