"""Neutrino interactions with argon up to 10 GeV: quasi-elastic, resonant, deep-inelastic.

A compact stand-in for the published generator (GENIE 3.0.6), with exact four-momentum conservation:
- The energy of the neutrinos that interact is uniform and the beam goes along +z, as published. No antineutrinos.
- They hit a nucleon of a Fermi gas (251 MeV/c, that of calcium; E. J. Moniz et al., Phys. Rev. Lett. 26 (1971) 445) on
  its mass shell; all is drawn in the nucleon's rest frame, with the energy that the neutrino has there.
- Quasi-elastic: Q² by C. H. Llewellyn Smith, Phys. Rept. 3 (1972) 261, dipole form factors, axial mass 1.03 GeV; no
  outgoing nucleon below the Fermi momentum (Pauli blocking; it shapes Q², not the share). Neutral currents: elastic,
  with the same Q².
- Resonant: the Δ(1232) alone, a Breit-Wigner in its mass, Q² by the dipole (1 + Q²/M_A²)⁻⁴, M_A = 1.05 GeV; it decays
  isotropically to a nucleon and a pion of the charges of isospin 3/2. (D. Rein, L. M. Sehgal, Ann. Phys. 133 (1981) 79
  have the other resonances, angles and interference.)
- Deep-inelastic: W > 1.6 GeV, x from shapes of valence and sea, y from q + q̄(1 − y)² with q̄/q = 0.2; a nucleon and
  pions, charged multiplicity −0.05 + 1.43 ln W² (D. Zieminska et al., Phys. Rev. D 27 (1983) 47), by longitudinal phase
  space as in :mod:`nufm.simulation.fasercal.generator`.
- The three share the events of an energy as their cross-sections do (:func:`cross_sections`). Neutral currents have the
  shares of charged ones: NC/CC is near 0.3 in each of them (elastic: L. A. Ahrens et al., Phys. Rev. D 35 (1987) 785).
- Left out: rescattering in the nucleus, its binding and excitation, pairs of nucleons, coherent pions, strangeness,
  charm, tau.

Shape legend: P outgoing particles, n draws. Energies and momenta in GeV; four-momenta are (px, py, pz, E).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nufm.simulation.fasercal.decays import MASS, boosted, charge_of, phase_space
from nufm.simulation.fasercal.generator import _longitudinal_phase_space

QUASI_ELASTIC, RESONANT, DEEP_INELASTIC = range(3)  # numbers of nufm.data.images.MODE_NAMES
FERMI_MOMENTUM = 0.251
PROTONS, NEUTRONS = 18, 22
NUCLEON = 0.5 * (MASS[2212] + MASS[2112])
PION = MASS[211]
AXIAL_MASS, RESONANT_MASS = 1.03, 1.05
DELTA_MASS, DELTA_WIDTH, DELTA_RANGE = 1.232, 0.117, (1.08, 1.6)
LEAST_W = 1.6
# 1e-38 cm² per nucleon: a Δ in argon far above threshold (bubble chambers: about 0.6 on p and 0.3 on n, of all charges;
# P. Rodrigues et al., Eur. Phys. J. C 76 (2016) 474), and all of σ/E above 30 GeV (J. A. Formaggio, G. P. Zeller, Rev.
# Mod. Phys. 84 (2012) 1307, per GeV).
RESONANT_PLATEAU, TOTAL_PER_GEV = 0.45, 0.677
_ATTEMPTS = 1000  # of a mode just above its threshold
_GRID = np.geomspace(0.1, 20.0, 60)  # GeV, of the cross-sections


@dataclass(frozen=True)
class Interaction:
    """One interaction.

    Attributes:
        pdg: int64 (P,), the outgoing lepton first.
        momentum: float64 (P, 4) four-momenta.
        neutrino: PDG of the incoming neutrino, 12 or 14.
        energy: its energy, GeV.
        is_cc: charged current.
        mode: QUASI_ELASTIC, RESONANT or DEEP_INELASTIC.
        nucleon: PDG of the target.
        target: float64 (4,) its four-momentum.
        q2: −(four-momentum transfer)² in GeV².
        w: mass of the hadrons, GeV.
    """

    pdg: np.ndarray
    momentum: np.ndarray
    neutrino: int
    energy: float
    is_cc: bool
    mode: int
    nucleon: int
    target: np.ndarray
    q2: float
    w: float

    @property
    def inelasticity(self) -> float:
        """1 − E(lepton)/E(neutrino) in the laboratory; below 0 if the nucleon's motion gave the lepton energy."""
        return 1 - float(self.momentum[0, 3]) / self.energy


# ---------------------------------------------------------------------- one interaction


def generate(energy: float, neutrino: int, is_cc: bool, rng: np.random.Generator) -> Interaction:
    """One interaction of a neutrino (PDG 12 or 14) with ``energy`` GeV along +z.

    Raises:
        ValueError: the energy is outside 0.2 to 20 GeV, for which the shares are known.
    """
    if not 0.2 <= energy <= _GRID[-1]:
        raise ValueError(f"neutrino energy is {energy} GeV, expected 0.2 … {_GRID[-1]:.0f} GeV")
    mass = MASS[neutrino - 1] if is_cc else 0.0
    shares = _shares(energy, mass)
    beam = np.array([0.0, 0.0, energy, energy])
    while True:
        # The cross-sections know what the kinematics allow: the mode stays until a nucleon and a (Q², W) fit.
        mode = int(rng.choice(3, p=shares))
        for _ in range(_ATTEMPTS):
            if (found := _attempt(beam, mode, neutrino, mass, is_cc, rng)) is not None:
                return found


def _attempt(
    beam: np.ndarray, mode: int, neutrino: int, mass: float, is_cc: bool, rng: np.random.Generator
) -> Interaction | None:
    """An interaction in a mode; None if what was drawn cannot be."""
    target = rng.normal(size=3)
    target *= FERMI_MOMENTUM * rng.uniform() ** (1 / 3) / np.linalg.norm(target)
    nucleon = _nucleon(mode, is_cc, rng)
    target = np.append(target, math.sqrt(MASS[nucleon] ** 2 + target @ target))
    seen = boosted(beam, target * (-1, -1, -1, 1))  # the neutrino in the rest frame of the nucleon
    species, q2, w = _draw(mode, seen[3], mass, nucleon, is_cc, rng)
    lepton = _lepton(seen, q2, w, mass, MASS[nucleon], rng)
    if lepton is None:
        return None
    lepton = boosted(lepton, target)
    system = beam + target - lepton
    if mode == QUASI_ELASTIC:
        if system[:3] @ system[:3] < FERMI_MOMENTUM**2:
            return None
        hadrons = system[None]
    elif mode == RESONANT:
        hadrons = boosted(phase_space(w, [MASS[abs(s)] for s in species], rng), system)
    else:
        hadrons = _longitudinal_phase_space(w, species, system, beam - lepton, rng)
    pdg = np.array([neutrino - 1 if is_cc else neutrino, *species])
    momentum = np.concatenate([lepton[None], hadrons])
    return Interaction(pdg, momentum, neutrino, float(beam[3]), is_cc, mode, nucleon, target, q2, w)


def _nucleon(mode: int, is_cc: bool, rng: np.random.Generator) -> int:
    """PDG of the target. A charged current of a neutrino needs a down quark: only neutrons where a nucleon alone comes
    out; 3 : 1 for p : n in the making of a Δ; n : p = 2 : 1 at high energies."""
    proton, neutron = (1, 1) if not is_cc else ((0, 1), (3, 1), (1, 2))[mode]
    proton, neutron = proton * PROTONS, neutron * NEUTRONS
    return 2212 if rng.uniform() * (proton + neutron) < proton else 2112


def _draw(
    mode: int, energy: float, mass: float, nucleon: int, is_cc: bool, rng: np.random.Generator
) -> tuple[list[int], float, float]:
    """Hadrons, Q² and W of an interaction in the rest frame of the nucleon, kinematically allowed or not."""
    charge = (nucleon == 2212) + is_cc
    if mode == QUASI_ELASTIC:
        species = [2212 if charge else 2112]
        grid, cumulative = _elastic_table(round(math.log(energy) * 50), mass)
        return species, float(np.interp(rng.uniform() * cumulative[-1], cumulative, grid)), MASS[species[0]]
    if mode == RESONANT:
        q2, w = _resonant(1, rng)
        return _delta_products(charge, rng), float(q2[0]), float(w[0])
    q2, w = _deep_inelastic(1, energy, rng)
    return _hadrons(float(w[0]), charge, rng) if w[0] > LEAST_W else [], float(q2[0]), float(w[0])


def _lepton(
    neutrino: np.ndarray, q2: float, w: float, mass: float, target: float, rng: np.random.Generator
) -> np.ndarray | None:
    """Four-momentum of the lepton in the rest frame of the nucleon (of mass ``target``); None if it cannot be."""
    cosine, energy = _kinematics(float(neutrino[3]), q2, w, mass, target)
    if not abs(cosine) <= 1:
        return None
    p, sine, phi = math.sqrt(energy**2 - mass**2), math.sqrt(1 - cosine**2), rng.uniform(0, 2 * math.pi)
    axis = neutrino[:3] / np.linalg.norm(neutrino[:3])
    across = np.cross(axis, (0.0, 1.0, 0.0) if abs(axis[1]) < 0.9 else (1.0, 0.0, 0.0))
    across /= np.linalg.norm(across)
    direction = cosine * axis + sine * (math.cos(phi) * across + math.sin(phi) * np.cross(axis, across))
    return np.append(p * direction, energy)


def _kinematics(energy, q2, w, mass, target):
    """cos θ and energy of the lepton; the cosine is NaN, or beyond ±1, where (Q², W) is not allowed.

    W² = M² + 2M(E − E′) − Q² and Q² = 2E(E′ − p′ cos θ) − m².
    """
    out = energy - (w * w + q2 - target**2) / (2 * target)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.sqrt(np.where(out > mass, out * out - mass**2, np.nan))
        return (2 * energy * out - mass**2 - q2) / (2 * energy * p), out


# ---------------------------------------------------------------------- Q² and W


def elastic_cross_section(energy: float, q2: np.ndarray, mass: float) -> np.ndarray:
    """dσ/dQ² of νn → lp, 1e-38 cm²/GeV² per neutron; 0 outside what the kinematics allow.

    C. H. Llewellyn Smith, Phys. Rept. 3 (1972) 261, eq. 3.18, with dipole form factors (vector mass² 0.71 GeV², g_A
    1.267), for an incoming neutrino of ``energy`` GeV on a nucleon at rest; ``mass`` of the lepton in GeV.
    """
    fermi2, cabibbo2, hbarc2 = 1.1663787e-5**2, 0.9743**2, 0.3893794e-27
    m2 = NUCLEON**2
    tau = q2 / (4 * m2)
    dipole = (1 + q2 / 0.71) ** -2
    electric, magnetic = dipole, 4.706 * dipole  # of the isovector current: G_E, G_M = µp − µn
    f1 = (electric + tau * magnetic) / (1 + tau)
    f2 = (magnetic - electric) / (1 + tau)  # ξ F2
    fa = -1.267 * (1 + q2 / AXIAL_MASS**2) ** -2
    fp = 2 * m2 * fa / (PION**2 + q2)
    ratio = mass**2 / m2
    a = (mass**2 + q2) / m2 * (
        (1 + tau) * fa**2 - (1 - tau) * f1**2 + tau * (1 - tau) * f2**2 + 4 * tau * f1 * f2
        - ratio / 4 * ((f1 + f2) ** 2 + (fa + 2 * fp) ** 2 - 4 * (1 + tau) * fp**2)
    )  # fmt: skip
    b = q2 / m2 * fa * (f1 + f2)
    c = 0.25 * (fa**2 + f1**2 + tau * f2**2)
    su = (4 * NUCLEON * energy - q2 - mass**2) / m2
    sigma = m2 * fermi2 * cabibbo2 / (8 * math.pi * energy**2) * (a - b * su + c * su**2)
    allowed = np.abs(_kinematics(energy, q2, NUCLEON, mass, NUCLEON)[0]) <= 1
    return np.where(allowed, np.maximum(sigma, 0.0), 0.0) * hbarc2 * 1e38


@lru_cache(maxsize=4096)
def _elastic_table(step: int, mass: float) -> tuple[np.ndarray, np.ndarray]:
    """Q² and the integral of dσ/dQ² up to it, at the energy exp(step/50): 2 % steps, finer than the shape changes."""
    energy = math.exp(step / 50)
    q2 = np.linspace(0.0, 1.0, 400) ** 2 * 2 * NUCLEON * energy**2 * 2 / (NUCLEON + 2 * energy)
    sigma = elastic_cross_section(energy, q2, mass)
    return q2, np.concatenate([[0.0], np.cumsum(0.5 * (sigma[1:] + sigma[:-1]) * np.diff(q2))])


def _resonant(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Q² and W (n,) of a Δ, from the inverted integrals of dipole and Breit-Wigner shape."""
    q2 = RESONANT_MASS**2 * (rng.uniform(size=n) ** (-1 / 3) - 1)
    low, high = np.arctan((np.array(DELTA_RANGE) - DELTA_MASS) / (DELTA_WIDTH / 2))
    return q2, DELTA_MASS + DELTA_WIDTH / 2 * np.tan(rng.uniform(low, high, n))


def _deep_inelastic(n: int, energy: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Q² and W (n,) of scattering off quarks; W is NaN where it is below the range of this picture."""
    x = np.where(rng.uniform(size=n) < 0.75, rng.beta(1.5, 4.0, n), rng.beta(1.0, 8.0, n))
    # 1 + 0.2 (1 − y)², integrated: a share 15/16 is flat, the rest falls
    y = np.where(rng.uniform(size=n) < 15 / 16, rng.uniform(size=n), 1 - rng.uniform(size=n) ** (1 / 3))
    q2 = 2 * NUCLEON * energy * x * y
    w2 = NUCLEON**2 + 2 * NUCLEON * energy * y - q2
    return q2, np.where(w2 > LEAST_W**2, np.sqrt(np.maximum(w2, 0.0)), np.nan)


# ---------------------------------------------------------------------- shares of the modes


@lru_cache(maxsize=8)
def _tables(mass: float) -> np.ndarray:
    """float64 (3, G): cross-sections of the modes at the energies of the grid."""
    rng = np.random.default_rng(0)
    sigma = np.zeros((3, len(_GRID)))
    for i, energy in enumerate(_GRID):
        q2 = np.linspace(0.0, 1.0, 1000) ** 2 * 4 * energy
        elastic = elastic_cross_section(energy, q2, mass)
        sigma[0, i] = NEUTRONS / (PROTONS + NEUTRONS) * np.sum(0.5 * (elastic[1:] + elastic[:-1]) * np.diff(q2))
        for mode, (q2, w), scale in (
            (RESONANT, _resonant(5000, rng), RESONANT_PLATEAU),
            (DEEP_INELASTIC, _deep_inelastic(5000, energy, rng), TOTAL_PER_GEV * energy),
        ):
            cosine = _kinematics(energy, q2, w, mass, NUCLEON)[0]
            sigma[mode, i] = scale * np.mean(np.abs(cosine) <= 1)
    return sigma


def cross_sections(energy: float, mass: float = MASS[13]) -> np.ndarray:
    """float64 (3,): σ per nucleon of argon, 1e-38 cm², of the three modes for charged currents at ``energy`` GeV.

    Quasi-elastic: the integral of :func:`elastic_cross_section`. Resonant: a plateau times the share of (Q², W) that
    the energy allows. Deep-inelastic: 0.677 E times the share of (x, y) with W > 1.6 GeV that it allows.
    """
    return np.array([np.interp(math.log(energy), np.log(_GRID), row) for row in _tables(mass)])


def _shares(energy: float, mass: float) -> np.ndarray:
    sigma = cross_sections(energy, mass)
    return sigma / sigma.sum()


# ---------------------------------------------------------------------- hadrons


def _delta_products(charge: int, rng: np.random.Generator) -> list[int]:
    """Nucleon and pion of a Δ of ``charge``: 2 : 1 for the pion that keeps the nucleon like the Δ (isospin 3/2)."""
    first = rng.uniform() < 2 / 3
    if charge == 2:
        return [2212, 211]
    if charge == 1:
        return [2212, 111] if first else [2112, 211]
    return [2112, 111] if first else [2212, -211]


def _hadrons(w: float, charge: int, rng: np.random.Generator) -> list[int]:
    """A nucleon and pions of total ``charge`` that fit into the mass ``w``; all charges of pions alike."""
    while True:
        mean = 1.5 * max(-0.05 + 1.43 * math.log(w * w), 1.3)
        n = max(round(rng.normal(mean, 0.3 * mean)), 2)
        nucleon = 2212 if rng.uniform() < 0.5 else 2112
        kinds = rng.choice([111, 211, -211], size=n - 1)
        species = [nucleon, *kinds.tolist()]
        if sum(map(charge_of, species)) == charge and sum(MASS[abs(s)] for s in species) < 0.95 * w:
            return species
