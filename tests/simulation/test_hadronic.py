"""Decays, captures and nuclear interactions: exact kinematics, published shares, and the energy each must
account for."""

import numpy as np
import pytest
from beams import ARGON_WITHOUT_NUCLEI, balance, children, shoot, slab

from nufm.simulation.hadronic import CAPTURE_SEPARATION, SEPARATION
from nufm.simulation.medium import LIQUID_ARGON, PLASTIC_SCINTILLATOR
from nufm.simulation.particles import (
    ELECTRON_MASS,
    MUON_MASS,
    PION_LIFETIME,
    PION_MASS,
    PION_ZERO_MASS,
    Process,
)
from nufm.simulation.stopping import hadron_rates


def test_michel_spectrum():
    """V-A: dN/dx = 2 x^2 (3 - 2x), end point 52.83 MeV, mean 0.7 of it (36.98 MeV)."""
    n = 4000
    out = shoot(-13, 0.0, n)
    energy = out.track_kinetic[children(out, n, Process.DECAY, -11)] + ELECTRON_MASS
    assert len(energy) == n
    end = (MUON_MASS**2 + ELECTRON_MASS**2) / (2 * MUON_MASS)
    assert end == pytest.approx(52.83, abs=0.005)
    assert 52.5 < energy.max() <= end
    assert energy.mean() == pytest.approx(0.7 * end, abs=4 * 0.2 * end / np.sqrt(n))
    x = np.sort(energy / end)
    cumulative = 2 * x**3 - x**4
    assert np.abs(cumulative - (np.arange(n) + 0.5) / n).max() < 1.63 / np.sqrt(n)  # Kolmogorov, 1 %


@pytest.mark.parametrize(
    "medium, share, error", [(LIQUID_ARGON, 0.74, 0.04), (PLASTIC_SCINTILLATOR, 0.078, 0.025)]
)
def test_capture_of_stopped_negative_muons(medium, share, error):
    """About three quarters are captured on argon, 8 % on carbon (Suzuki et al. 1987); mean life of the bound
    muon."""
    n = 2000
    out = shoot(13, 0.0, n, medium)
    decays = children(out, n, Process.DECAY, 11)
    assert 1 - len(decays) / n == pytest.approx(share, abs=error)
    mean = out.track_time[decays].mean()
    assert mean == pytest.approx(medium.muon_minus_lifetime, abs=4 * mean / np.sqrt(len(decays)))
    neutrons = len(children(out, n, Process.CAPTURE, 2112)) / max(n - len(decays), 1)
    assert 0.5 < neutrons < 1.8  # D. F. Measday, Phys. Rep. 354 (2001) 243: about one per capture
    assert out.escaped > 0.6 * MUON_MASS * (n - len(decays))  # the neutrino takes most


def test_positive_muons_always_decay_with_the_free_lifetime():
    n = 1500
    out = shoot(-13, 0.0, n)
    times = out.track_time[children(out, n, Process.DECAY)]
    assert len(times) == n
    assert times.mean() == pytest.approx(2197, abs=4 * 2197 / np.sqrt(n))


def test_positive_pion_chain():
    """pi+ -> mu+ (4.12 MeV) -> e+, at rest."""
    n = 200
    out = shoot(211, 0.0, n)
    muons = children(out, n, Process.DECAY, -13)
    assert len(muons) == n
    np.testing.assert_allclose(out.track_kinetic[muons], 4.1196, atol=2e-3)
    positrons = (out.track_pdg == -11) & (out.track_process == Process.DECAY)
    assert positrons.sum() == n
    np.testing.assert_array_equal(np.sort(out.track_parent[positrons]), np.sort(muons))


def test_positive_kaon_decays():
    """K+ at rest: muon of 152.5 MeV or charged pion of 108.6 MeV with a pi0 of 110.6 MeV (momenta 235.5,
    205.1)."""
    n = 100
    out = shoot(321, 0.0, n)
    muons, pions = children(out, n, Process.DECAY, -13), children(out, n, Process.DECAY, 211)
    assert len(muons) + len(pions) == n and len(pions) > 5
    np.testing.assert_allclose(out.track_momentum[muons], 235.53, atol=0.05)
    np.testing.assert_allclose(out.track_momentum[pions], 205.14, atol=0.05)
    neutral = children(out, n, Process.DECAY, 111)
    np.testing.assert_allclose(out.track_momentum[neutral], 205.14, atol=0.05)


@pytest.mark.parametrize("kinetic", [0.0, 50.0, 700.0])
def test_neutral_pion_to_two_photons(kinetic):
    """Invariant mass, momentum along the pion, flat decay angle."""
    n = 400
    out = shoot(111, kinetic, n, box=slab(1.0))
    rows = children(out, n, Process.DECAY, 22)
    assert len(rows) == 2 * n
    energy = out.track_kinetic[rows].reshape(n, 2)
    way = out.track_direction[rows].reshape(n, 2, 3)
    cosine = (way[:, 0] * way[:, 1]).sum(1)
    np.testing.assert_allclose(np.sqrt(2 * energy.prod(1) * (1 - cosine)), PION_ZERO_MASS, rtol=1e-6)
    total = (energy[..., None] * way).sum(1)
    momentum = np.sqrt(kinetic * (kinetic + 2 * PION_ZERO_MASS))
    np.testing.assert_allclose(total, np.tile([0, 0, momentum], (n, 1)), atol=1e-5)
    if kinetic:
        beta = momentum / (kinetic + PION_ZERO_MASS)
        star = (energy[:, 0] - energy[:, 1]) / energy.sum(1) / beta
        assert star.std() == pytest.approx(1 / np.sqrt(3), rel=0.1) and np.abs(star).max() <= 1 + 1e-9


def test_decay_in_flight():
    """P = L m / (p c tau) for pions over 30 cm; the muon keeps up with the pion."""
    n, kinetic, length = 4000, 250.0, 300.0
    out = shoot(211, kinetic, n, ARGON_WITHOUT_NUCLEI, box=slab(length))
    momentum = np.sqrt(kinetic * (kinetic + 2 * PION_MASS)) * 0.95  # slows a little on the way
    expected = n * length * PION_MASS / (momentum * PION_LIFETIME * 299.792458)
    muons = children(out, n, Process.DECAY, -13)
    assert abs(len(muons) - expected) < 4 * np.sqrt(expected)
    assert out.track_direction[muons, 2].min() > 0.9


def test_interaction_length():
    """Protons of 3 GeV in a quarter of the nuclear interaction length (PDG: 85.7 cm)."""
    n, length = 1500, 214.0
    out = shoot(2212, 3000.0, n, box=slab(length))
    hit = len(np.unique(out.track_parent[children(out, n, Process.HADRON_INELASTIC)])) / n
    expected = 1 - np.exp(-length / LIQUID_ARGON.nuclear_interaction_length)
    assert hit == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / n))


def test_pion_cross_section_peaks_at_the_delta():
    rates = hadron_rates(LIQUID_ARGON, np.array([50.0, 180.0, 600.0, 5000.0]))[0]
    assert rates[1] > 1.5 * rates[3] and rates[1] > rates[2] > rates[0] * 0.8
    assert 1 / rates[3] == pytest.approx(1067.0, rel=0.01)


def test_pion_interactions():
    """200 MeV pi+ on argon: absorption (no pion out) in a third to a half, charge exchange in some per cent
    to a fifth, protons among the products (Ashery et al., Phys. Rev. C 23 (1981) 2173; D. Rowntree et al., C
    60 (1999) 054610)."""
    n = 800
    out = shoot(211, 200.0, n)
    rows = children(out, n, Process.HADRON_INELASTIC)
    hit = np.unique(out.track_parent[rows])
    pions = rows[np.isin(out.track_pdg[rows], (211, -211, 111))]
    absorbed = 1 - len(np.unique(out.track_parent[pions])) / len(hit)
    exchanged = len(np.unique(out.track_parent[pions[out.track_pdg[pions] == 111]])) / len(hit)
    protons = (out.track_pdg[rows] == 2212).sum() / len(hit)
    assert 0.25 < absorbed < 0.55
    assert 0.04 < exchanged < 0.25
    assert 1.0 < protons < 4.0
    # no single interaction makes more than came in
    made = np.bincount(out.track_parent[rows], weights=out.track_kinetic[rows], minlength=n)[:n]
    assert made.max() < 200.0 + PION_MASS


def test_stopped_negative_pions_make_stars():
    """The whole rest energy is accounted for: particles, heat and 8.5 MeV per freed nucleon; no decays."""
    n = 300
    out = shoot(-211, 0.0, n)
    assert len(children(out, n, Process.DECAY)) == 0
    rows = children(out, n, Process.CAPTURE)
    nucleons = np.isin(out.track_pdg[rows], (2112, 2212))
    freed = np.bincount(out.track_parent[rows[nucleons]], minlength=n)
    energy = np.bincount(out.track_parent[rows], weights=out.track_kinetic[rows], minlength=n)
    own = out.step_track < n
    heat = np.bincount(out.step_track[own], weights=out.step_energy[own].astype(np.float64), minlength=n)
    np.testing.assert_allclose(energy + heat + SEPARATION * freed, PION_MASS, rtol=1e-5)
    assert 2.0 < freed.mean() < 6.0
    assert out.track_kinetic[rows].max() < PION_MASS


def test_muon_capture_budget():
    n = 300
    out = shoot(13, 0.0, n)
    rows = children(out, n, Process.CAPTURE)
    captured = np.unique(out.track_parent[rows])
    energy = np.bincount(out.track_parent[rows], weights=out.track_kinetic[rows], minlength=n)[captured]
    freed = np.bincount(out.track_parent[rows[np.isin(out.track_pdg[rows], (2112, 2212))]], minlength=n)[
        captured
    ]
    excitation = energy + CAPTURE_SEPARATION * freed
    assert excitation.max() < MUON_MASS and 10 < excitation.mean() < 25


def test_neutrons_make_isolated_blips():
    """Deposits far from the start and from each other; below 20 MeV all kinetic energy and the 6.1 MeV of
    capture stay."""
    n = 40
    out = shoot(2112, 5.0, n)
    assert out.deposited == pytest.approx(n * (5.0 + 6.099), rel=1e-6)
    assert abs(balance(out)) < 1e-8
    assert np.linalg.norm(out.step_start, axis=1).mean() > 200
    assert out.step_energy.max() < 1.0
    plastic = shoot(2112, 5.0, n, PLASTIC_SCINTILLATOR)
    recoils = (plastic.track_pdg == 2212) & (plastic.track_process == Process.NEUTRON)
    assert recoils.sum() > 2 * n  # hydrogen moderates by knocking protons on
    assert plastic.track_kinetic[recoils].max() < 5.0


def test_fast_hadrons_make_pions():
    out = shoot(2212, 2000.0, 60)
    assert np.isin(out.track_pdg, (111, 211, -211)).sum() > 5
    assert abs(balance(out)) < 1e-7
