"""Electrons, positrons, photons and their showers against NIST, PDG and exact kinematics."""

import numpy as np
import pytest
from beams import TABLES, children, path_lengths, shoot, slab

from nufm.simulation.medium import LIQUID_ARGON, PLASTIC_SCINTILLATOR
from nufm.simulation.particles import ELECTRON_MASS, Process

X0 = LIQUID_ARGON.radiation_length


def first_depth(out, n: int) -> np.ndarray:
    """z (n,) of the first child of each of n primaries."""
    z = np.full(n, np.nan)
    rows = np.flatnonzero((out.track_parent >= 0) & (out.track_parent < n))[::-1]
    z[out.track_parent[rows]] = out.track_position[rows, 2]
    return z


@pytest.mark.parametrize("pdg", [11, -11])
def test_radiation_length(pdg):
    """High-energy electrons keep exp(-x/X0) of their energy after radiation: PDG X0 of liquid argon, 14.0 cm.

    4000 electrons of 5 GeV in a tenth of X0: the mean radiated share has an error of 3 %.
    """
    n, energy, length = 1000, 5000.0, 0.1 * X0
    radiated = 0.0
    for seed in range(4):
        out = shoot(pdg, energy, n, box=slab(length), seed=seed)
        radiated += out.track_kinetic[children(out, n, Process.BREMSSTRAHLUNG)].sum() / (4 * n * energy)
    assert -length / np.log(1 - radiated) == pytest.approx(X0, rel=0.08)


@pytest.mark.parametrize("medium, name", [(LIQUID_ARGON, "argon"), (PLASTIC_SCINTILLATOR, "vinyltoluene")])
@pytest.mark.parametrize("energy", [0.5, 2.0, 10.0])
def test_attenuation_of_photons(medium, name, energy):
    """Mean free path measured on 3000 photons: NIST XAAMDI within 6 % (error 1.8 %)."""
    table = np.loadtxt(TABLES / f"photon_{name}.csv", delimiter=",")
    n = 3000
    depth = first_depth(shoot(22, energy, n, medium), n)
    assert not np.isnan(depth).any()
    expected = 10 / (np.interp(energy, table[:, 0], table[:, 1]) * medium.density)
    assert depth.mean() == pytest.approx(expected, rel=0.06)


def test_conversion_length():
    """A layer of 9 cm converts 1 - exp(-7/9 L/X0) of 1 GeV photons (cross section 4 % below complete
    screening)."""
    n, length = 2500, 90.0
    out = shoot(22, 1000.0, n, box=slab(length))
    converted = len(children(out, n, Process.CONVERSION, -11)) / n
    expected = 1 - np.exp(-7 / 9 * 0.96 * length / X0)
    assert converted == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / n))


@pytest.mark.parametrize("energy, share", [(0.1, 0.138), (1.0, 0.440), (10.0, 0.684)])
def test_compton_energy_transfer(energy, share):
    """Mean share of the energy a Klein-Nishina electron takes (F. H. Attix, Introduction to Radiological
    Physics, fig. 7.8 and table), and its upper edge 2k/(1+2k). First scatters in scintillator, where little
    else happens."""
    n = 6000
    out = shoot(22, energy, n, PLASTIC_SCINTILLATOR)
    rows = children(out, n, Process.COMPTON)
    _, first = np.unique(out.track_parent[rows], return_index=True)
    fraction = out.track_kinetic[rows[first]] / energy
    assert fraction.mean() == pytest.approx(share, rel=0.04)
    k = energy / ELECTRON_MASS
    edge = 2 * k / (1 + 2 * k)
    assert fraction.max() <= edge + 1e-9 and fraction.max() > 0.98 * edge
    # angle and energy of the electron belong together: cot phi = (1 + k) tan(theta / 2)
    cosine = out.track_direction[rows[first], 2]
    lost = fraction / (1 - fraction) / k  # 1 - cos theta
    tangent = np.sqrt(lost / (2 - lost))
    phi = np.arctan2(1.0, (1 + k) * tangent)
    np.testing.assert_allclose(cosine, np.cos(phi), atol=1e-6)


def test_pairs():
    """Both members share E - 2 m, symmetrically, at about m/E of the photon's direction."""
    n, energy = 1500, 200.0
    out = shoot(22, energy, n, box=slab(300.0))
    scattered = out.track_parent[children(out, n, Process.COMPTON)]  # these convert with less
    minus = children(out, n, Process.CONVERSION, 11)
    plus = children(out, n, Process.CONVERSION, -11)
    minus, plus = (rows[~np.isin(out.track_parent[rows], scattered)] for rows in (minus, plus))
    assert len(minus) == len(plus) > 0.7 * n
    total = out.track_kinetic[minus] + out.track_kinetic[plus]
    np.testing.assert_allclose(total, energy - 2 * ELECTRON_MASS, rtol=1e-9)
    share = out.track_kinetic[plus] / (energy - 2 * ELECTRON_MASS)
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert 0.24 < share.std() < 0.34  # 0.289 if flat, a little more for Bethe-Heitler
    assert np.median(np.arccos(out.track_direction[plus, 2])) < 10 * ELECTRON_MASS / energy


def test_annihilation():
    n = 50
    out = shoot(-11, 3.0, n)
    rows = children(out, n, Process.ANNIHILATION)
    assert len(rows) == 2 * n
    np.testing.assert_allclose(out.track_kinetic[rows], ELECTRON_MASS)
    np.testing.assert_allclose(out.track_direction[rows[::2]], -out.track_direction[rows[1::2]], atol=1e-12)
    assert out.released == pytest.approx(2 * ELECTRON_MASS * n - 2 * ELECTRON_MASS * count_pairs(out))


def count_pairs(out) -> int:
    return int(((out.track_process == Process.CONVERSION) & (out.track_pdg == -11)).sum())


@pytest.mark.parametrize("energy", [0.5, 1.0, 5.0])
def test_electron_path_length(energy):
    """Path of slow electrons: integral of 1/S of NIST ESTAR. Collisions above the cut cut paths short, hence
    8 %."""
    table = np.loadtxt(TABLES / "electron_argon.csv", delimiter=",")
    t = np.geomspace(0.0125, energy, 2000)
    loss = np.exp(np.interp(np.log(t), np.log(table[:, 0]), np.log(table[:, 1] + table[:, 2])))
    integrand = 1 / loss
    expected = (
        (0.0006 + np.sum(0.5 * (integrand[1:] + integrand[:-1]) * np.diff(t))) * 10 / LIQUID_ARGON.density
    )
    n = 500
    assert path_lengths(shoot(11, energy, n), n).mean() == pytest.approx(expected, rel=0.08)


def longitudinal(energy: float, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth (in X0), radius (in Moliere radii) and share of the deposits of n photon showers."""
    out = shoot(22, energy, n)
    middle = 0.5 * (out.step_start + out.step_end).astype(np.float64)
    radius = np.hypot(middle[:, 0], middle[:, 1]) / LIQUID_ARGON.moliere_radius
    return middle[:, 2] / X0, radius, out.step_energy / out.step_energy.sum()


def test_showers_grow_with_the_logarithm_of_the_energy():
    """Depth of the maximum ln(E/Ec) + 0.5 X0 for photons (PDG review eq. 34.36), within 0.8 X0; centre of
    gravity moves by 1 X0 per factor e; containment: about 85 % within one Moliere radius (90 % in heavy
    media), 25 X0 hold all."""
    centres = []
    energies = [200.0, 600.0, 1800.0]
    for energy in energies:
        depth, radius, weight = longitudinal(energy, int(36000 / energy))
        centres.append(np.sum(depth * weight))
        profile, edges = np.histogram(depth, bins=np.arange(0, 25, 0.25), weights=weight)
        smooth = np.convolve(profile, np.ones(7), "same")
        peak = edges[np.argmax(smooth)] + 0.125
        assert peak == pytest.approx(np.log(energy / LIQUID_ARGON.critical_energy) + 0.5, abs=1.0)
        assert 0.78 < weight[radius < 1].sum() < 0.93
        assert 0.95 < weight[radius < 3.5].sum() < 0.995
        assert weight[depth < 25].sum() > 0.985
    slope = np.diff(centres) / np.diff(np.log(energies))
    assert (slope > 0.6).all() and (slope < 1.5).all()
