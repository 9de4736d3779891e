"""Neutrino interactions in the forward direction of the LHC: deep-inelastic scattering off a nucleon.

A simple model with exact four-momentum conservation, not a tuned generator:
- energy of the interacting neutrinos ∝ E exp(−E/E₀): a flux that falls exponentially times a cross-section ∝ E, so that
  most interact with some hundred GeV to 1 TeV, as at FASER (Phys. Rev. Lett. 133, 021802 (2024)).
- x from valence and sea shapes, y from q + q̄(1−y)² (antineutrinos: the other way round), q̄/q = 0.2.
- hadrons by longitudinal phase space: charged multiplicity −0.05 + 1.43 ln W² (D. Zieminska et al., Phys. Rev. D 27
  (1983) 47), transverse momenta of 0.3 GeV per component, nucleon backward, charm forward.
- the nucleon moves in a Fermi gas of 0.265 GeV (lead; E. J. Moniz et al., Phys. Rev. Lett. 26 (1971) 445), which gives
  even charged currents without neutrinos a transverse momentum; x and y are meant for a nucleon at rest.
- left out: other nuclear effects of tungsten, resonances, decays in flight of K⁰s and hyperons, spin.

Shape legend: P particles of an event. Energies and momenta in GeV, lengths in mm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from nufm.simulation.fasercal.decays import (
    C_TAU_MM,
    CHARM_HADRONS,
    MASS,
    TAU_DECAYS,
    boosted,
    charge_of,
    charm_products,
    decay,
    phase_space,
    tau_products,
)

FLAVOURS = ("numu", "nue", "tau_e", "tau_mu", "tau_had", "nc")  # numbers of nufm.data.streams.FLAVOUR_NAMES
# Interactions by flavour in an emulsion detector on the beam axis, DPMJET-like (F. Kling, L. J. Nevay, Phys. Rev. D 104
# (2021) 113008): νµ : νe : ντ about 70 : 29 : 0.8; NC / CC = 0.31; τ → e, µ, hadrons by the branching fractions.
NATURAL = (0.534, 0.221, 0.0011, 0.0011, 0.0038, 0.239)
# Charm in charged currents at these energies: 10 to 15 % (FASERν, Eur. Phys. J. C 80 (2020) 61); c → e, µ 9.6 % each.
NATURAL_CHARM = (0.88, 0.0115, 0.0115, 0.097)
TRANSVERSE = 0.3  # GeV per component
LEAST_W = 2.5  # GeV: below, there is no jet
CHARM_LEAST_W = 5.0
NUCLEON = 0.93892
FERMI_MOMENTUM = 0.265  # GeV


@dataclass
class Particles:
    """What the generator makes, in the order it is made.

    Attributes:
        pdg: P numbers.
        mother: P rows of the particle it comes from, -1 for the interaction itself.
        momentum: P four-momenta (px, py, pz, E).
        start, end: P places (mm); ``end`` is where an unstable particle decays.
        decayed: P flags.
    """

    pdg: list[int] = field(default_factory=list)
    mother: list[int] = field(default_factory=list)
    momentum: list[np.ndarray] = field(default_factory=list)
    start: list[np.ndarray] = field(default_factory=list)
    end: list[np.ndarray] = field(default_factory=list)
    decayed: list[bool] = field(default_factory=list)

    def add(self, pdg: int, momentum: np.ndarray, start: np.ndarray, mother: int = -1) -> int:
        self.pdg.append(int(pdg))
        self.mother.append(mother)
        self.momentum.append(momentum)
        self.start.append(start)
        self.end.append(start)
        self.decayed.append(False)
        return len(self.pdg) - 1

    def decay(self, row: int, products: tuple[int, ...], rng: np.random.Generator) -> list[int]:
        """Adds the products of ``row``, after its flight; returns their rows."""
        momentum = self.momentum[row]
        place = self.start[row]
        c_tau = C_TAU_MM.get(abs(self.pdg[row]), 0.0)
        place = place + momentum[:3] / MASS[abs(self.pdg[row])] * c_tau * rng.exponential()
        self.end[row], self.decayed[row] = place, True
        momenta = decay(momentum, products, rng)
        return [self.add(p, m, place, row) for p, m in zip(products, momenta, strict=True)]


@dataclass(frozen=True)
class Interaction:
    """One interaction.

    Attributes:
        particles: all of it, without the incoming neutrino and the nucleon.
        neutrino: PDG of the incoming neutrino.
        energy: its energy, GeV.
        is_cc: charged current.
        lepton: row of the outgoing lepton.
        tau_mode: 0, or 1 e, 2 µ, 3 one-prong, 4 ρ, 5 three-prong, 6 other.
        charm: 0 none, 1 → e, 2 → µ, 3 → hadrons.
        charm_row: row of the charmed hadron, -1 if none.
        vertex: (3,) mm.
        nucleon: PDG of the target.
        target: (4,) its four-momentum.
        x, y, w: Bjorken's x and y; W in GeV.
    """

    particles: Particles
    neutrino: int
    energy: float
    is_cc: bool
    lepton: int
    tau_mode: int
    charm: int
    charm_row: int
    vertex: np.ndarray
    nucleon: int
    target: np.ndarray
    x: float
    y: float
    w: float


@dataclass(frozen=True)
class Beam:
    """Neutrinos and what they do.

    Attributes:
        mix: "balanced": the six classes of flavour equally often, and in charged currents the four of charm; "natural":
            as expected on the beam axis.
        energy_scale: E₀ of the spectrum, GeV.
        energy_range: GeV.
        antineutrinos: share of them.
        fiducial_mm: distance of vertices from the faces of a module.
    """

    mix: str = "balanced"
    energy_scale: float = 300.0
    energy_range: tuple[float, float] = (20.0, 4000.0)
    antineutrinos: float = 0.35
    fiducial_mm: float = 10.0

    def __post_init__(self) -> None:
        if self.mix not in ("balanced", "natural"):
            raise ValueError(f"mix is '{self.mix}', expected 'balanced' or 'natural'")


def generate(beam: Beam, low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> Interaction:
    """One interaction in one of the boxes ``low`` (M, 3) to ``high`` (M, 3), mm."""
    weights = np.full(6, 1 / 6) if beam.mix == "balanced" else np.array(NATURAL)
    flavour = int(rng.choice(6, p=weights / weights.sum()))
    charm_weights = (0.25, 0.25, 0.25, 0.25) if beam.mix == "balanced" else NATURAL_CHARM
    charm = int(rng.choice(4, p=charm_weights)) if flavour != 5 else 0
    family = {0: 14, 1: 12, 5: 12 if rng.uniform() < 0.3 else 14}.get(flavour, 16)
    anti = rng.uniform() < beam.antineutrinos
    tau_mode = {2: 1, 3: 2}.get(flavour, 0)
    if flavour == 4:
        hadronic = [(m, s) for m, s, _ in TAU_DECAYS if m > 2]
        shares = np.array([s for _, s in hadronic])
        tau_mode = hadronic[rng.choice(len(hadronic), p=shares / shares.sum())][0]
    module = rng.integers(len(low))
    vertex = rng.uniform(low[module] + beam.fiducial_mm, high[module] - beam.fiducial_mm)
    is_cc = flavour != 5
    outgoing = family - 1 if is_cc else family
    while True:
        energy, x, y, lepton = _scatter(beam, MASS[outgoing], anti, rng)
        q = np.array([0.0, 0.0, energy, energy]) - lepton
        target = rng.normal(size=3)
        target *= FERMI_MOMENTUM * rng.uniform() ** (1 / 3) / np.linalg.norm(target)
        target = np.append(target, math.sqrt(NUCLEON**2 + target @ target))
        system = q + target
        w = math.sqrt(max(system[3] ** 2 - system[:3] @ system[:3], 0.0))
        if w > (CHARM_LEAST_W if charm else LEAST_W):
            break
    sign = -1 if anti else 1
    nucleon = 2212 if rng.uniform() < 0.41 else 2112  # protons in polystyrene and tungsten by mass
    particles = Particles()
    row = particles.add(outgoing * sign, lepton, vertex)
    total = (1 if nucleon == 2212 else 0) + (sign if is_cc else 0)
    species = _species(w, total, sign * _charmed(rng) if charm else 0, rng)
    charm_row = -1
    for pdg, momentum in zip(species, _longitudinal_phase_space(w, species, system, q, rng), strict=True):
        added = particles.add(pdg, momentum, vertex)
        if abs(pdg) in CHARM_HADRONS:
            charm_row = added
    if tau_mode:
        particles.decay(row, tau_products(tau_mode, 15 * sign, rng), rng)
    if charm:
        particles.decay(charm_row, charm_products(particles.pdg[charm_row], charm, rng), rng)
    for i in range(len(particles.pdg)):
        if particles.pdg[i] == 111:
            particles.decay(i, (22, 22), rng)
    return Interaction(
        particles, family * sign, energy, is_cc, row, tau_mode, charm, charm_row, vertex, nucleon, target, x, y, w
    )


def _scatter(
    beam: Beam, mass: float, anti: bool, rng: np.random.Generator
) -> tuple[float, float, float, np.ndarray]:
    """(E, x, y, four-momentum of the outgoing lepton) that are kinematically allowed."""
    while True:
        energy = rng.gamma(2.0, beam.energy_scale)
        x = rng.beta(1.5, 4.0) if rng.uniform() < 0.75 else rng.beta(1.0, 8.0)
        y = rng.uniform()
        valence, sea = ((1 - y) ** 2, 0.2) if anti else (1.0, 0.2 * (1 - y) ** 2)
        lepton_energy = (1 - y) * energy
        if not beam.energy_range[0] < energy < beam.energy_range[1] or lepton_energy <= mass:
            continue
        if rng.uniform() * 1.2 > valence + sea:
            continue
        p = math.sqrt(lepton_energy**2 - mass**2)
        q2 = 2 * NUCLEON * energy * x * y
        cosine = (2 * energy * lepton_energy - q2 - mass**2) / (2 * energy * p) if p > 0 else 2.0
        if abs(cosine) > 1:
            continue
        sine, phi = math.sqrt(1 - cosine**2), rng.uniform(0, 2 * math.pi)
        vector = [p * sine * math.cos(phi), p * sine * math.sin(phi), p * cosine, lepton_energy]
        return energy, x, y, np.array(vector)


def _charmed(rng: np.random.Generator) -> int:
    shares = [share for share, *_ in CHARM_HADRONS.values()]
    return list(CHARM_HADRONS)[rng.choice(len(shares), p=shares)]


def _species(w: float, charge: int, charmed: int, rng: np.random.Generator) -> list[int]:
    """Hadrons of a system of mass ``w`` and total charge; the nucleon first, a charmed hadron last."""
    while True:
        mean = 1.5 * max(-0.05 + 1.43 * math.log(w * w), 1.5)
        n = max(round(rng.normal(mean, 0.3 * mean)), 3 if charmed else 2)
        nucleon = 2212 if rng.uniform() < 0.5 else 2112
        kinds = rng.choice([111, 130, 321, 211], size=n - 1 - bool(charmed), p=[0.29, 0.05, 0.08, 0.58])
        charged = kinds > 200
        need = charge - charge_of(nucleon) - charge_of(charmed)
        k = int(charged.sum())
        if (k - need) % 2 or abs(need) > k:
            continue
        signs = rng.permutation([1] * ((k + need) // 2) + [-1] * ((k - need) // 2)).astype(np.int64)
        kinds[charged] *= signs
        species = [nucleon, *kinds.tolist(), *([charmed] if charmed else [])]
        if sum(math.hypot(MASS[abs(s)], 1.5 * TRANSVERSE) for s in species) < 0.95 * w or n <= 3:
            return species


def _longitudinal_phase_space(
    w: float, species: list[int], system: np.ndarray, q: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Four-momenta (n, 4) in the laboratory; their sum is ``system`` exactly."""
    mass = np.array([MASS[abs(s)] for s in species])
    n = len(mass)
    for attempt in range(100):
        width = TRANSVERSE * 0.93**attempt  # close to the threshold there is room for less
        across = rng.normal(0.0, width, (n, 2))
        across -= across.mean(0)
        transverse = np.sqrt(mass**2 + (across**2).sum(1))
        if transverse.sum() < 0.98 * w:
            break
    else:
        return boosted(phase_space(w, mass.tolist(), rng), system)
    reach = math.log(w / transverse.mean())
    rapidity = np.sort(rng.uniform(-reach, reach, n))
    along = transverse * np.sinh(rapidity - rapidity.mean())
    along[0], along[-1] = -abs(along[0]) - 1e-3, abs(along[-1]) + 1e-3
    # Forward momenta times a, backward ones times b: no momentum along the axis in sum, energy W.
    ahead = along > 0
    forward, backward = along[ahead].sum(), -along[~ahead].sum()
    scale = np.where(ahead, math.sqrt(backward / forward), math.sqrt(forward / backward))
    low, high = 0.0, w / (np.abs(along * scale).sum() / 2)
    for _ in range(80):
        middle_scale = 0.5 * (low + high)
        energy = np.sqrt(transverse**2 + (middle_scale * scale * along) ** 2).sum()
        low, high = (middle_scale, high) if energy < w else (low, middle_scale)
    along = along * scale * 0.5 * (low + high)
    momenta = np.column_stack([across, along, np.sqrt(transverse**2 + along**2)])
    backwards = system * (-1, -1, -1, 1)
    axis = boosted(q[None], backwards)[0, :3]  # the boson's direction in the rest frame of the hadrons
    momenta[:, :3] = momenta[:, :3] @ _rotation(axis)
    return boosted(momenta, system)


def _rotation(axis: np.ndarray) -> np.ndarray:
    """Rows: two directions across ``axis``, and its own; vectors v @ rows turn z into ``axis``."""
    z = axis / np.linalg.norm(axis)
    x = np.cross(z, (0.0, 1.0, 0.0) if abs(z[1]) < 0.9 else (1.0, 0.0, 0.0))
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])
