"""Tables of one medium: stopping powers, ranges and interaction rates on one logarithmic energy grid.

Built in NumPy once per medium and cached; the compiled transport only interpolates. Lengths in mm, energies
in MeV.

Sources, by part:

- heavy charged particles: Bethe formula restricted to transfers below the delta-ray cut, with Sternheimer
  density effect (PDG review, "Passage of particles through matter", eqs. 34.5, 34.12), Barkas shell
  correction (W. H. Barkas, UCRL-10292, 1962), and below 2 MeV per proton mass the harmonic sum with the
  Lindhard-Scharff velocity-proportional stopping (Varelas and Biersack, Nucl. Instrum. Methods 79 (1970)
  213); radiative losses of muons as a smooth fit to the PDG liquid-argon table, scaled with 1/X0;
- electrons, positrons: Berger-Seltzer collision loss restricted to the cut (ICRU Report 37), Moller and
  Bhabha cross sections above it; bremsstrahlung of Koch and Motz (Rev. Mod. Phys. 31 (1959) 920, 3BS) with
  the screening functions of Butcher and Messel (Nucl. Phys. 20 (1960) 15), normalised to the medium's
  radiation length;
- photons: Klein-Nishina with a fitted binding factor, photoelectric fit of medium.py, pair production in the
  parametrisation of the Geant4 Physics Reference Manual (Bethe-Heitler model, 5 % to 100 GeV);
- neutrons below 20 MeV: n-p cross section of J. L. Gammel (in Fast Neutron Physics II, 1963), black nucleus
  otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nufm.simulation.medium import PHOTOELECTRIC, Medium
from nufm.simulation.particles import ELECTRON_MASS, KAON_MASS, MUON_MASS, PION_MASS, PROTON_MASS

K_HALF = 0.1535375  # MeV cm2/mol: 2 pi N_A r_e^2 m_e c^2
AVOGADRO = 0.602214076  # per barn cm2 and mole
RADIUS_SQUARED = 0.0794078  # barn: classical electron radius squared
T_MIN, T_MAX, PER_DECADE = 1e-3, 1e5, 50
HEAVY_MASSES = (MUON_MASS, PION_MASS, KAON_MASS, PROTON_MASS)  # rows of Tables.heavy


@dataclass(frozen=True)
class Settings:
    """Cuts and step lengths of the transport; the defaults suit 3 mm voxels.

    Attributes:
        delta_cut: electrons knocked on above this kinetic energy become tracks, MeV.
        bremsstrahlung_cut: photons radiated above this energy become tracks, MeV.
        collision_cut: collisions between this and ``delta_cut`` are sampled one by one but deposited on the
            spot, MeV.
        electron_stop: electrons below this kinetic energy deposit it on the spot, MeV.
        photon_stop: photons below this energy are absorbed on the spot, MeV.
        neutron_stop: neutrons below this kinetic energy are captured nearby, MeV.
        step_max: longest step of a charged particle, mm.
        step_min: shortest step, and the residual range at which a particle is stopped, mm.
        heavy_range_fraction: a heavy particle's step is at most this share of its residual range.
        electron_range_fraction: the same for electrons and positrons.

    Raises:
        ValueError: a value that is not > 0, or cuts that contradict each other.
    """

    delta_cut: float = 0.15
    bremsstrahlung_cut: float = 0.1
    collision_cut: float = 0.01
    electron_stop: float = 0.1
    photon_stop: float = 0.02
    neutron_stop: float = 0.5
    step_max: float = 1.5
    step_min: float = 0.15
    heavy_range_fraction: float = 0.1
    electron_range_fraction: float = 0.3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"transport settings: '{name}' is {value}, expected a number > 0")
        if self.collision_cut >= self.delta_cut:
            raise ValueError(
                f"transport settings: 'collision_cut' {self.collision_cut} MeV must be below 'delta_cut' "
                f"{self.delta_cut} MeV"
            )
        if self.step_min > self.step_max:
            raise ValueError(
                f"transport settings: 'step_min' {self.step_min} mm must not exceed 'step_max' "
                f"{self.step_max} mm"
            )
        if max(self.heavy_range_fraction, self.electron_range_fraction) > 0.5:
            raise ValueError(
                "transport settings: steps of more than half the range do not follow the loss; use <= 0.5"
            )


# Rows of Tables.grid. Four heavy species in the order mu, pi, K, p; two of e-, e+; three hadron groups pi,
# K, nucleon. (NumPy integers for the reason given in particles.py.)
HEAVY_LOSS, HEAVY_RANGE = np.int64(0), np.int64(4)  # restricted MeV/mm; mm
ELECTRON_LOSS, ELECTRON_RANGE = np.int64(8), np.int64(10)  # restricted MeV/mm; mm
HARD_RATE, PHOTON_RATE = np.int64(12), np.int64(14)  # 1/mm
ATTENUATION = np.int64(16)  # 1/mm
PHOTO_SHARE, COMPTON_SHARE = np.int64(17), np.int64(18)  # of photoelectric, of that and Compton
INELASTIC_RATE, ELASTIC_RATE = np.int64(19), np.int64(22)  # 1/mm
NEUTRON_RATE = np.int64(25)  # below 20 MeV, 1/mm
HYDROGEN_SHARE, SCATTER_SHARE = np.int64(26), np.int64(27)  # elastic on hydrogen, elastic on all
N_ROWS = 28


class Tables(NamedTuple):
    """What the compiled code reads of a medium. G grid points in ln(T / MeV), E elements."""

    log_min: float
    inverse_step: float
    grid: np.ndarray  # (N_ROWS, G)
    element: (
        np.ndarray
    )  # (E, 5) Z, A, cumulative share of interactions, the same without hydrogen, first level
    xi: float  # MeV/mm: 2 pi r_e^2 m_e c^2 n_e
    radiation_length: float
    z_effective: float
    binding: float  # MeV given to the ion by a photoelectric absorption
    muon_lifetime: float  # of a bound mu-
    capture_energy: float
    capture_spread: float
    capture_time: float
    delta_cut: float
    bremsstrahlung_cut: float
    collision_cut: float
    electron_stop: float
    photon_stop: float
    neutron_stop: float
    step_max: float
    step_min: float
    heavy_fraction: float
    electron_fraction: float


def energy_grid() -> np.ndarray:
    """Kinetic energies (G,) of all tables, MeV."""
    n = round(np.log10(T_MAX / T_MIN)) * PER_DECADE + 1
    return np.geomspace(T_MIN, T_MAX, n)


def density_effect(medium: Medium, beta_gamma: np.ndarray) -> np.ndarray:
    """Sternheimer's delta (same shape as ``beta_gamma``); PDG review eq. 34.7, insulator."""
    a, k, x0, x1, c = medium.sternheimer
    x = np.log10(beta_gamma)
    high = 2 * np.log(10) * x - c
    return np.where(x < x0, 0.0, high + a * np.where(x < x1, np.clip(x1 - x, 0, None) ** k, 0.0))


def heavy_loss(medium: Medium, mass: float, kinetic: np.ndarray, cut: float = np.inf) -> np.ndarray:
    """Mean energy loss in MeV/mm of a singly charged particle, counting transfers below ``cut`` MeV only.

    Args:
        mass: MeV, well above the electron's.
        kinetic: MeV, any shape.
    """
    low = np.minimum(kinetic, 2.0 / PROTON_MASS * mass)  # the Bethe formula is trusted above this velocity
    join = np.full_like(low, 2.0 / PROTON_MASS * mass)
    bethe = _bethe(medium, mass, np.maximum(kinetic, join), cut)
    # below: 1/S = 1/S_LS + 1/S_high, S_high falling as T^-0.8 and fixed by continuity at the joining velocity
    at_join = _bethe(medium, mass, join, cut)
    velocity = np.sqrt(2 * low / mass) * 137.036
    lindhard = 0.0
    for e in medium.elements:
        # Lindhard-Scharff for charge one, 8 pi e^2 a_0 Z / (1 + Z^(2/3))^(3/2) v/v_0, times 1.7 to meet
        # PSTAR in argon
        per_atom = 1.7 * 8 * np.pi * 1.43996e-13 * 0.529177e-8 * e.z / (1 + e.z ** (2 / 3)) ** 1.5 * velocity
        lindhard = lindhard + per_atom * e.fraction / e.a * AVOGADRO * 1e24 * medium.density / 10
    lindhard_join = lindhard / np.sqrt(low) * np.sqrt(join)
    s_high = 1 / np.maximum(1 / at_join - 1 / np.maximum(lindhard_join, 1.2 * at_join), 1e-9)
    slow = 1 / (1 / np.maximum(lindhard, 1e-12) + (low / join) ** 0.8 / s_high)
    slow = slow * at_join / (1 / (1 / lindhard_join + 1 / s_high))
    return np.where(kinetic >= join, bethe, slow)


def _bethe(medium: Medium, mass: float, kinetic: np.ndarray, cut: float) -> np.ndarray:
    gamma = 1 + kinetic / mass
    bg2 = gamma**2 - 1
    beta2 = bg2 / gamma**2
    t_max = max_transfer(mass, kinetic)
    upper = np.minimum(cut, t_max)
    i = medium.mean_excitation * 1e-6
    eta2 = np.maximum(bg2, 0.13**2)
    ev = medium.mean_excitation
    shell = (0.422377 / eta2 + 0.0304043 / eta2**2 - 0.00038106 / eta2**3) * 1e-6 * ev**2
    shell = shell + (3.850190 / eta2 - 0.1667989 / eta2**2 + 0.00157955 / eta2**3) * 1e-9 * ev**3
    z_mean = medium.z_over_a * _mean_a(medium)
    bracket = (
        0.5 * np.log(2 * ELECTRON_MASS * bg2 * upper / i**2)
        - beta2 / 2 * (1 + upper / t_max)
        - density_effect(medium, np.sqrt(bg2)) / 2
        - shell / z_mean
    )
    loss = 2 * K_HALF * medium.z_over_a / beta2 * bracket  # MeV cm2/g
    if mass < 110.0:
        # radiative loss of muons, PDG liquid argon table: 8e-4 at 0.9 GeV, 0.11 at 35 GeV (MeV cm2/g)
        x0 = medium.radiation_length / 10 * medium.density
        loss = loss + 3.5e-6 * kinetic / (1 + 2500.0 / kinetic) * 19.55 / x0
    return loss * medium.density / 10


def _mean_a(medium: Medium) -> float:
    return 1 / sum(e.fraction / e.a for e in medium.elements)


def max_transfer(mass: float, kinetic: np.ndarray) -> np.ndarray:
    """Largest energy a heavy particle can give to an electron at rest, MeV (PDG review eq. 34.4)."""
    gamma = 1 + kinetic / mass
    ratio = ELECTRON_MASS / mass
    return 2 * ELECTRON_MASS * (gamma**2 - 1) / (1 + 2 * gamma * ratio + ratio**2)


def electron_collision_loss(
    medium: Medium, kinetic: np.ndarray, positron: bool, cut: float = np.inf
) -> np.ndarray:
    """Mean collision loss in MeV/mm of e- or e+ counting transfers below ``cut`` (ICRU 37, Berger and
    Seltzer)."""
    tau = kinetic / ELECTRON_MASS
    gamma = tau + 1
    beta2 = 1 - 1 / gamma**2
    delta = density_effect(medium, np.sqrt(gamma**2 - 1))
    i = medium.mean_excitation * 1e-6 / ELECTRON_MASS
    if positron:
        d = np.minimum(cut / ELECTRON_MASS, tau)
        y = 1 / (gamma + 1)
        inner = d**2 / 2 - tau * d**3 / 3 + d**4 / 4
        f = np.log(tau * d) - beta2 / tau * (tau + 2 * d - y * (1.5 * d**2 + y * (d - d**3 / 3 + y * inner)))
    else:
        d = np.minimum(cut / ELECTRON_MASS, tau / 2)
        f = -1 - beta2 + np.log((tau - d) * d) + tau / (tau - d)
        f = f + (d**2 / 2 + (2 * tau + 1) * np.log1p(-d / tau)) / gamma**2
    loss = K_HALF * medium.z_over_a / beta2 * (np.log(2 * (gamma + 1) / i**2) + f - delta)
    return np.maximum(loss, 1e-3) * medium.density / 10


def hard_collision_rate(xi: float, kinetic: np.ndarray, positron: bool, cut: float) -> np.ndarray:
    """Moller (e-) or Bhabha (e+) collisions per mm with a transfer above ``cut`` MeV."""
    tau = kinetic / ELECTRON_MASS
    gamma = tau + 1
    beta2 = 1 - 1 / gamma**2
    top = 1.0 if positron else 0.5
    x = np.minimum(cut / kinetic, top)
    if positron:
        y = 1 / (gamma + 1)
        b1, b2 = 2 - y**2, (1 - 2 * y) * (3 + y**2)
        b4 = (1 - 2 * y) ** 3
        b3 = b4 + (1 - 2 * y) ** 2
        total = (
            (1 / x - 1) / beta2 + b1 * np.log(x) + b2 * (1 - x) - b3 * (1 - x**2) / 2 + b4 * (1 - x**3) / 3
        )
        return xi / (ELECTRON_MASS * tau) * np.where(x < 1, total, 0.0)
    total = (gamma - 1) ** 2 / gamma**2 * (0.5 - x) + 1 / x - 1 / (1 - x)
    total = total - (2 * gamma - 1) / gamma**2 * np.log((1 - x) / x)
    return xi / (ELECTRON_MASS * beta2 * tau) * np.where(x < 0.5, total, 0.0)


def screening(delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Butcher-Messel screening functions Phi1, Phi2 (same shape as ``delta``)."""
    far = 21.12 - 4.184 * np.log(delta + 0.952)
    phi1 = np.where(delta <= 1, 20.867 - 3.242 * delta + 0.625 * delta**2, far)
    phi2 = np.where(delta <= 1, 20.209 - 1.930 * delta - 0.086 * delta**2, far)
    return phi1, phi2


def bremsstrahlung_shape(z: float, energy: np.ndarray, k: np.ndarray) -> np.ndarray:
    """k dN/dk times X0: photons of energy ``k`` per electron of total energy ``energy``, both MeV,
    broadcast."""
    y = k / energy
    rest = np.maximum(energy - k, ELECTRON_MASS)
    delta = 136.0 * ELECTRON_MASS * z ** (-1 / 3) * y / rest
    phi1, phi2 = screening(delta)
    offset = np.log(z) / 3 + coulomb_correction(z)
    full = 20.867 / 4 - offset
    a1 = np.maximum(phi1 / 4 - offset, 0) / full
    a2 = np.maximum(phi2 / 4 - offset, 0) / full
    return (1 + (1 - y) ** 2) * a1 - 2 / 3 * (1 - y) * a2


def coulomb_correction(z: float) -> float:
    """Davies-Bethe-Maximon f(Z)."""
    a2 = (z / 137.036) ** 2
    return a2 * (1 / (1 + a2) + 0.20206 - 0.0369 * a2 + 0.0083 * a2**2 - 0.002 * a2**3)


def bremsstrahlung(medium: Medium, kinetic: np.ndarray, low: float, high: float, power: int) -> np.ndarray:
    """Integral of k^power dN/dk over photon energies low..min(high, T), per mm. power 0: photons, 1: loss in
    MeV."""
    out = np.zeros_like(kinetic)
    nodes, weights = np.polynomial.legendre.leggauss(48)
    z = effective_z(medium)
    for i, t in enumerate(kinetic):
        top = min(high, t)
        if top <= low:
            continue
        # in ln k for the photon number, in k for the energy: both integrands are then smooth
        u0, u1 = (np.log(low), np.log(top)) if power == 0 else (low, top)
        u = 0.5 * (u1 - u0) * nodes + 0.5 * (u1 + u0)
        k = np.exp(u) if power == 0 else u
        shape = bremsstrahlung_shape(z, np.full_like(k, t + ELECTRON_MASS), k)
        out[i] = 0.5 * (u1 - u0) * np.sum(weights * shape)
    return out * low_energy_factor(kinetic) / medium.radiation_length


def low_energy_factor(kinetic: np.ndarray) -> np.ndarray:
    """Ratio of the true radiative loss to the Born approximation below some tens of MeV."""
    return 1 + 0.12 / kinetic * np.exp(-kinetic)  # meets ESTAR (argon) within 10 % from 0.07 to 1 MeV


def effective_z(medium: Medium) -> float:
    """Atomic number of the one-element medium with the same screening, weighted with each element's
    radiation."""
    weights = [e.fraction / e.a * e.z * (e.z + 1) for e in medium.elements]
    return float(
        np.exp(sum(w * np.log(e.z) for w, e in zip(weights, medium.elements, strict=True)) / sum(weights))
    )


def photoelectric(medium: Medium, energy: np.ndarray) -> np.ndarray:
    """Photoelectric attenuation in 1/mm at photon energies (MeV)."""
    total = np.zeros_like(energy)
    for e in medium.elements:
        edge, *c = PHOTOELECTRIC[e.z]
        inside = np.clip(energy, max(edge, 0.01), 0.8)
        log = np.log(inside)
        sigma = np.exp(c[0] + log * (c[1] + log * (c[2] + log * c[3])))
        sigma = (
            sigma
            * np.where(energy > 0.8, 0.8 / energy, 1.0)
            * np.where(energy < 0.01, (0.01 / energy) ** 3, 1.0)
        )
        total += sigma * e.fraction / e.a
    return total * AVOGADRO * medium.density / 10


def compton(medium: Medium, energy: np.ndarray) -> np.ndarray:
    """Incoherent attenuation in 1/mm: Klein-Nishina times a binding factor fitted to C, Ar and Xe (1 % at 50
    keV)."""
    k = energy / ELECTRON_MASS
    small = k < 1e-2  # the closed form cancels there
    ks = np.where(small, 1e-2, k)
    full = (1 + ks) / ks**2 * (2 * (1 + ks) / (1 + 2 * ks) - np.log1p(2 * ks) / ks)
    full = full + np.log1p(2 * ks) / (2 * ks) - (1 + 3 * ks) / (1 + 2 * ks) ** 2
    full = np.where(small, 4 / 3 * (1 - 2 * k), full) * 2 * np.pi * RADIUS_SQUARED
    total = np.zeros_like(energy)
    for e in medium.elements:
        bound = 1 - 1 / (1 + (energy / (1.48e-3 * e.z**0.7)) ** 1.45)
        total += full * bound * e.z * e.fraction / e.a
    return total * AVOGADRO * medium.density / 10


def pair_production(medium: Medium, energy: np.ndarray) -> np.ndarray:
    """Pair conversion (nucleus and electrons) in 1/mm."""
    safe = np.maximum(energy, 1.5)
    x = np.log(safe / ELECTRON_MASS)
    p = np.stack([x**i for i in range(6)])
    f1 = np.array([8.7842e2, -1.9625429e3, 1.2949e3, -2.0028e2, 1.2575e1, -2.8333e-1]) @ p
    f2 = np.array([-1.0342e1, 1.7692e1, -8.2391, 1.3063, -9.0815e-2, 2.3586e-3]) @ p
    f3 = np.array([-4.5263e2, 1.1161e3, -8.6749e2, 2.1773e2, -2.0467e1, 6.5372e-1]) @ p
    threshold = 2 * ELECTRON_MASS
    low = (np.maximum(energy - threshold, 0) / (1.5 - threshold)) ** 2
    total = np.zeros_like(energy)
    for e in medium.elements:
        sigma = e.z * (e.z + 1) * np.maximum(f1 + f2 * e.z + f3 / e.z, 0) * 1e-6  # microbarn -> barn
        total += np.where(energy < 1.5, sigma * low, sigma) * e.fraction / e.a
    return total * AVOGADRO * medium.density / 10


def hadron_rates(medium: Medium, kinetic: np.ndarray) -> np.ndarray:
    """Nuclear interactions per mm, (6, G): inelastic of pions, kaons, nucleons, then elastic in the same
    order.

    The tabulated lengths are high-energy values; below 1 GeV pions see the Delta resonance (about 1.8 times
    the asymptotic cross section at 180 MeV: D. Ashery et al., Phys. Rev. C 23 (1981) 2173, scaled with
    A^(2/3)) and charged particles the Coulomb barrier. Elastic scattering follows from the difference of
    collision and interaction length.
    """
    elastic_share = medium.nuclear_interaction_length / medium.nuclear_collision_length - 1
    delta = 0.85 / (1 + ((kinetic - 180.0) / 90.0) ** 2)
    rise = 1 - np.exp(-kinetic / 25.0)
    pion = (1 + delta) * rise / medium.pion_interaction_length
    kaon = 0.8 * rise / medium.pion_interaction_length
    nucleon = (1 - np.exp(-kinetic / 12.0)) / medium.nuclear_interaction_length
    rates = np.stack([pion, kaon, nucleon])
    return np.concatenate([rates, rates * elastic_share])


def neutron_rates(medium: Medium, kinetic: np.ndarray) -> np.ndarray:
    """Neutrons below 20 MeV, (3, G): interactions per mm, share elastic on hydrogen, share elastic on
    anything."""
    on_hydrogen = np.zeros_like(kinetic)
    elastic = np.zeros_like(kinetic)
    inelastic = np.zeros_like(kinetic)
    t = np.minimum(kinetic, 20.0)
    triplet = 3 * np.pi / (1.206 * t + (-1.86 + 0.09415 * t + 0.0001306 * t**2) ** 2)
    singlet = np.pi / (1.206 * t + (0.4223 + 0.13 * t) ** 2)
    for e in medium.elements:
        per_barn = AVOGADRO * medium.density * e.fraction / e.a / 10
        if e.z == 1:
            on_hydrogen += (triplet + singlet) * per_barn
            continue
        radius = 1.35 * e.a ** (1 / 3) + 4.55 / np.sqrt(t)  # fm, with the reduced wavelength
        total = np.minimum(2 * np.pi * radius**2 / 100, 3.5)
        open_ = 1 - np.exp(-np.maximum(t - e.first_level * (1 + 1 / e.a), 0) / 3.0)
        inelastic += 0.5 * total * open_ * per_barn
        elastic += (total - 0.5 * total * open_) * per_barn
    rate = on_hydrogen + elastic + inelastic
    return np.stack([rate, on_hydrogen / rate, (on_hydrogen + elastic) / rate])


def range_of(loss: np.ndarray, kinetic: np.ndarray) -> np.ndarray:
    """Continuous-slowing-down range (G,) mm from losses (G,) MeV/mm on the grid; below the grid S ~
    sqrt(T)."""
    log = np.log(kinetic)
    integrand = kinetic / loss  # dR = dT/S = T/S dlnT
    steps = 0.5 * (integrand[1:] + integrand[:-1]) * np.diff(log)
    return 2 * kinetic[0] / loss[0] + np.concatenate([[0.0], np.cumsum(steps)])


@lru_cache(maxsize=8)
def build_tables(medium: Medium, settings: Settings) -> Tables:
    """All tables of ``medium``; computed once per process (about 0.1 s)."""
    kinetic = energy_grid()
    xi = K_HALF * medium.z_over_a * medium.density / 10
    grid = np.empty((N_ROWS, len(kinetic)))
    for i, mass in enumerate(HEAVY_MASSES):
        grid[HEAVY_LOSS + i] = heavy_loss(medium, mass, kinetic, settings.delta_cut)
        grid[HEAVY_RANGE + i] = range_of(heavy_loss(medium, mass, kinetic), kinetic)
    radiated = bremsstrahlung(medium, kinetic, 0.0, np.inf, 1)
    soft = bremsstrahlung(medium, kinetic, 0.0, settings.bremsstrahlung_cut, 1)
    for i, positron in enumerate((False, True)):
        grid[ELECTRON_LOSS + i] = (
            electron_collision_loss(medium, kinetic, positron, settings.delta_cut) + soft
        )
        grid[ELECTRON_RANGE + i] = range_of(
            electron_collision_loss(medium, kinetic, positron) + radiated, kinetic
        )
        grid[HARD_RATE + i] = hard_collision_rate(xi, kinetic, positron, settings.delta_cut)
        grid[PHOTON_RATE + i] = bremsstrahlung(medium, kinetic, settings.bremsstrahlung_cut, np.inf, 0)
    processes = np.stack([f(medium, kinetic) for f in (photoelectric, compton, pair_production)])
    grid[ATTENUATION] = processes.sum(0)
    grid[PHOTO_SHARE : COMPTON_SHARE + 1] = np.cumsum(processes, 0)[:2] / grid[ATTENUATION]
    grid[INELASTIC_RATE : ELASTIC_RATE + 3] = hadron_rates(medium, kinetic)
    grid[NEUTRON_RATE : SCATTER_SHARE + 1] = neutron_rates(medium, kinetic)
    element = np.zeros((len(medium.elements), 5))
    weight = np.array([e.fraction / e.a * e.a**0.7 for e in medium.elements])
    bound = weight * np.array([e.z > 1 for e in medium.elements])
    element[:, 0] = [e.z for e in medium.elements]
    element[:, 1] = [e.a for e in medium.elements]
    element[:, 2] = np.cumsum(weight) / weight.sum()
    element[:, 3] = np.cumsum(bound) / max(bound.sum(), 1e-300)
    element[:, 4] = [e.first_level for e in medium.elements]
    heaviest = max(medium.elements, key=lambda e: e.fraction * e.z**4 / e.a)
    return Tables(
        log_min=float(np.log(T_MIN)),
        inverse_step=float(PER_DECADE / np.log(10)),
        grid=grid,
        element=element,
        xi=float(xi),
        radiation_length=float(medium.radiation_length),
        z_effective=effective_z(medium),
        binding=float(PHOTOELECTRIC[heaviest.z][0]),
        muon_lifetime=float(medium.muon_minus_lifetime),
        capture_energy=float(medium.neutron_capture_energy),
        capture_spread=float(medium.neutron_capture_spread),
        capture_time=float(medium.neutron_capture_time),
        delta_cut=float(settings.delta_cut),
        bremsstrahlung_cut=float(settings.bremsstrahlung_cut),
        collision_cut=float(settings.collision_cut),
        electron_stop=float(settings.electron_stop),
        photon_stop=float(settings.photon_stop),
        neutron_stop=float(settings.neutron_stop),
        step_max=float(settings.step_max),
        step_min=float(settings.step_min),
        heavy_fraction=float(settings.heavy_range_fraction),
        electron_fraction=float(settings.electron_range_fraction),
    )
