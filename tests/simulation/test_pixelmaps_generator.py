"""Final states of neutrino interactions up to 10 GeV, against kinematics, formulas and cross-section tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from nufm.simulation.fasercal.decays import MASS, charge_of
from nufm.simulation.pixelmaps import generator
from nufm.simulation.pixelmaps.generator import (
    DEEP_INELASTIC,
    FERMI_MOMENTUM,
    NUCLEON,
    QUASI_ELASTIC,
    RESONANT,
    Interaction,
    cross_sections,
    elastic_cross_section,
    generate,
)

PROTON, NEUTRON = 2212, 2112


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Minkowski product of (px, py, pz, E)."""
    return float(a[3] * b[3] - a[:3] @ b[:3])


def neutrino(i: Interaction) -> np.ndarray:
    return np.array([0.0, 0.0, i.energy, i.energy])


@pytest.fixture(scope="module")
def interactions() -> list[Interaction]:
    rng = np.random.default_rng(5)
    return [generate(rng.uniform(0.2, 10.0), (12, 14)[k % 2], k % 4 != 0, rng) for k in range(5000)]


def of(interactions: list[Interaction], mode: int, is_cc: bool | None = None) -> list[Interaction]:
    return [i for i in interactions if i.mode == mode and is_cc in (None, i.is_cc)]


def test_four_momentum_charge_and_baryon_number_are_conserved(interactions) -> None:
    for i in interactions:
        np.testing.assert_allclose(i.momentum.sum(0), neutrino(i) + i.target, atol=1e-9)
        assert sum(charge_of(int(p)) for p in i.pdg) == (i.nucleon == PROTON)
        assert sum(p in (PROTON, NEUTRON) for p in i.pdg) == 1


def test_particles_are_on_their_mass_shells(interactions) -> None:
    for i in interactions:
        mass2 = i.momentum[:, 3] ** 2 - (i.momentum[:, :3] ** 2).sum(1)
        np.testing.assert_allclose(mass2, [MASS[abs(int(p))] ** 2 for p in i.pdg], atol=1e-6)


def test_targets_are_nucleons_of_a_fermi_gas(interactions) -> None:
    momentum = np.array([np.linalg.norm(i.target[:3]) for i in interactions])
    assert momentum.max() <= FERMI_MOMENTUM
    # uniform in a sphere: (p/pF)³ is uniform, but for the small preference of each mode
    assert ((momentum / FERMI_MOMENTUM) ** 3).mean() == pytest.approx(0.5, abs=0.03)


def test_leptons_and_modes_are_those_asked_for(interactions) -> None:
    for i in interactions:
        assert i.pdg[0] == (i.neutrino - 1 if i.is_cc else i.neutrino)
        others = i.pdg[1:]
        assert np.isin(others, (PROTON, NEUTRON, 111, 211, -211)).all()
        if i.mode == QUASI_ELASTIC:
            assert len(others) == 1
            assert np.linalg.norm(i.momentum[1, :3]) >= FERMI_MOMENTUM  # Pauli
            assert not i.is_cc or (i.nucleon, others[0]) == (NEUTRON, PROTON)
        elif i.mode == RESONANT:
            assert len(others) == 2
        else:
            assert len(others) >= 2


def test_q2_and_w_are_those_of_the_four_momenta(interactions) -> None:
    for i in interactions:
        q = neutrino(i) - i.momentum[0]
        system = q + i.target
        assert -dot(q, q) == pytest.approx(i.q2, abs=1e-6)
        assert math.sqrt(dot(system, system)) == pytest.approx(i.w, abs=1e-6)
        assert i.inelasticity == pytest.approx(q[3] / i.energy, abs=1e-12)


def test_y_of_deep_inelastic_scattering_follows_its_formula() -> None:
    """Density (1 + (1 − y)²/5) × the share of x that is allowed; x is distributed as ¾ Beta(3/2, 4) + ¼ Beta(1,
    8). Every y becomes, through the integral at the energy its neutrino had in the nucleon's frame, a number that is
    uniform."""
    rng = np.random.default_rng(11)
    found = []
    grid = np.linspace(1e-4, 1.0, 2000)
    while len(found) < 400:
        i = generate(rng.uniform(6.0, 10.0), 12, bool(rng.integers(2)), rng)
        if i.mode != DEEP_INELASTIC:
            continue
        k, mass = neutrino(i), MASS[i.nucleon]
        energy = dot(k, i.target) / mass
        density = (1 + 0.2 * (1 - grid) ** 2) * _room(grid, energy)
        cumulative = integrate.cumulative_trapezoid(density, grid, initial=0.0)
        y = dot(k - i.momentum[0], i.target) / dot(k, i.target)
        found.append(np.interp(y, grid, cumulative) / cumulative[-1])
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def _room(y: np.ndarray, energy: float) -> np.ndarray:
    """Share of x with W > 1.6 GeV and Q² <= 4E(E − ν), massless leptons."""
    highest = 1 - (1.6**2 - NUCLEON**2) / (2 * NUCLEON * energy * y)
    highest = np.minimum(highest, 4 * energy**2 * (1 - y) / (2 * NUCLEON * energy * y))
    return 0.75 * stats.beta(1.5, 4.0).cdf(highest) + 0.25 * stats.beta(1.0, 8.0).cdf(highest)


def test_mean_charged_multiplicity_grows_as_measured(interactions) -> None:
    """−0.05 + 1.43 ln W² (Zieminska et al. 1983), within the 15 % that charge and mass of few hadrons cost."""
    chosen = of(interactions, DEEP_INELASTIC, True)
    w = np.array([i.w for i in chosen])
    charged = np.array([sum(charge_of(int(p)) != 0 for p in i.pdg[1:]) for i in chosen])
    for low, high in ((1.6, 2.0), (2.0, 2.5), (2.5, 3.2), (3.2, 5.0)):
        here = (w >= low) & (w < high)
        assert here.sum() > 50
        assert charged[here].mean() == pytest.approx((-0.05 + 1.43 * np.log(w[here] ** 2)).mean(), rel=0.15)


def test_deltas_decay_as_isospin_demands(interactions) -> None:
    chosen = of(interactions, RESONANT)
    w = np.array([i.w for i in chosen])
    assert w.min() >= 1.08
    assert w.max() <= 1.6
    assert np.median(w) == pytest.approx(1.232, abs=0.02)
    doubly = [i for i in chosen if i.is_cc and i.nucleon == PROTON]
    assert all(sorted(i.pdg[1:]) == [211, PROTON] for i in doubly)
    single = [i for i in chosen if i.is_cc and i.nucleon == NEUTRON]
    kept = sum(111 in i.pdg for i in single)
    assert stats.binomtest(kept, len(single), 2 / 3).pvalue > 1e-3
    # 3 : 1 per nucleon, 18 protons and 22 neutrons
    assert stats.binomtest(len(doubly), len(doubly) + len(single), 54 / 76).pvalue > 1e-3


def test_elastic_cross_section_at_zero_q2() -> None:
    """dσ/dQ²(0) = G_F² cos²θ_C (1 + g_A²)/(2π) for a massless lepton, at any energy: only the charge and the axial
    charge count there."""
    expected = 1.1663787e-5**2 * 0.9743**2 * (1 + 1.267**2) / (2 * math.pi) * 0.3893794e-27 * 1e38
    for energy in (0.5, 2.0, 10.0):
        assert elastic_cross_section(energy, np.array([1e-9]), 0.0)[0] == pytest.approx(expected, rel=1e-5)


def test_elastic_q2_is_drawn_from_the_cross_section() -> None:
    rng = np.random.default_rng(3)
    energy, mass = 2.0, MASS[13]
    drawn = [generator._draw(QUASI_ELASTIC, energy, mass, NEUTRON, True, rng)[1] for _ in range(1500)]
    grid = np.linspace(1e-6, 4.0, 20_000)
    cumulative = integrate.cumulative_trapezoid(elastic_cross_section(energy, grid, mass), grid, initial=0.0)
    cumulative /= cumulative[-1]
    assert stats.kstest(drawn, lambda q2: np.interp(q2, grid, cumulative)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("energy", "total", "elastic"), [(1.0, (0.80, 1.15), (0.50, 0.75)), (3.0, (0.60, 0.85), (0.18, 0.35)),
                                     (10.0, (0.60, 0.75), (0.05, 0.12))]
)  # fmt: skip
def test_cross_sections_are_near_the_measured_ones(energy, total, elastic) -> None:
    """J. A. Formaggio, G. P. Zeller, Rev. Mod. Phys. 84 (2012) 1307, fig. 9: σ/E in 1e-38 cm²/GeV per nucleon for νµ
    charged currents, and the quasi-elastic share of it, read off with its spread."""
    sigma = cross_sections(energy)
    assert total[0] < sigma.sum() / energy < total[1]
    assert elastic[0] < sigma[0] / sigma.sum() < elastic[1]


def test_the_quasi_elastic_cross_section_levels_off_near_its_measured_size() -> None:
    """About 1e-38 cm² per neutron from 1 to 10 GeV (the same review, fig. 10): 0.55 per nucleon of argon."""
    for energy in (1.0, 2.0, 5.0, 10.0):
        assert cross_sections(energy)[0] == pytest.approx(0.55, rel=0.15)


@pytest.mark.parametrize(("energy", "neutrino"), [(1.5, 14), (8.0, 12)])
def test_modes_share_events_as_their_cross_sections_do(energy, neutrino) -> None:
    rng = np.random.default_rng(8)
    sigma = cross_sections(energy, MASS[neutrino - 1])
    modes = [generate(energy, neutrino, True, rng).mode for _ in range(1000)]
    assert stats.chisquare(np.bincount(modes, minlength=3), 1000 * sigma / sigma.sum()).pvalue > 1e-3
    assert (np.argmax(sigma) == DEEP_INELASTIC) == (energy > 3)


def test_low_energies_make_no_pions() -> None:
    rng = np.random.default_rng(0)
    assert {generate(0.2, 14, True, rng).mode for _ in range(100)} == {QUASI_ELASTIC}


@pytest.mark.parametrize("energy", [0.1, 21.0, float("nan")])
def test_energies_beyond_the_tables_are_refused(energy) -> None:
    with pytest.raises(ValueError, match=r"neutrino energy .* expected 0\.2"):
        generate(energy, 14, True, np.random.default_rng(0))
