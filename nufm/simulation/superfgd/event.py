"""One particle in a volume of optically isolated scintillator cubes: its energy, the light of it, the cubes seen.

The particle goes through the common transport (:func:`nufm.simulation.transport.transport`) in plastic scintillator
with a uniform magnetic field. Light of a step is quenched by Birks' law, dL/dx ∝ dE/dx / (1 + kB dE/dx); every cube
shares some with its six neighbours; each of its three fibres counts photoelectrons (Poisson). The charge of a cube is
the mean over its three fibres. Left out: attenuation along fibres, saturation and noise of the sensors, and the
ambiguity of three projections, which a single particle hardly has.

The volume is that of the public sample of S. Alonso-Monsalve et al. (Commun. Phys. 6, 119 (2023)): a cube of 2 m of
10 mm cubes, p, π±, µ±, e±. Its momenta and its field are not stated here: they were not found in a public source.

Shape legend: N cubes with charge, S steps.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

import numpy as np

from nufm.simulation.medium import PLASTIC_SCINTILLATOR, Medium
from nufm.simulation.particles import MASS, codes_of
from nufm.simulation.transport import Primaries, Settings, Transported, transport
from nufm.simulation.voxels import Lattice, Recombination, voxelise

DETECTOR = "superfgd_volume"
STREAM = "voxels"
# Classes in the order of the published tables (talk of F. Cufino, NPML 2026): proton, pion, muon, electron.
SPECIES = ((2212,), (211, -211), (13, -13), (11, -11))
NO_RECOMBINATION = Recombination(b=0.0)
_ATTEMPTS = 1000


@dataclass(frozen=True)
class Light:
    """From deposited energy to photoelectrons.

    Attributes:
        birks: kB in mm/MeV (polystyrene scintillator SCSN-38: M. Hirschberg et al., IEEE Trans. Nucl. Sci. 39 (1992)
            511).
        yield_per_mev: photoelectrons per MeV of unquenched energy and fibre. A minimum-ionising particle leaves 1.8 MeV
            in a cube and gives about 50 (the SuperFGD, arXiv 2603.14921).
        crosstalk: share of a cube's light that each of its six neighbours gets; 2 to 6 % measured (arXiv 2601.18338).
        threshold: photoelectrons, mean of the three fibres, below which a cube is not seen.
    """

    birks: float = 0.126
    yield_per_mev: float = 28.0
    crosstalk: float = 0.03
    threshold: float = 3.0


@dataclass(frozen=True)
class SuperFGDSpec:
    """Everything but the seed that decides what events look like.

    Attributes:
        momentum: least and largest momentum in MeV/c, uniform between; directions are isotropic, starts uniform in
            the volume.
        lattice: cubes; their box is the box of the transport.
        magnetic_field: tesla, uniform; 0.2 T along x as in the magnet of T2K's near detector.
        medium: fills the box.
        light: from energy to photoelectrons.
        settings: cuts and steps of the transport.
        min_hits: events with fewer cubes are drawn again, with another particle of the same class.
    """

    momentum: tuple[float, float] = (200.0, 1500.0)
    lattice: Lattice = field(default_factory=lambda: Lattice((200, 200, 200), 10.0))
    magnetic_field: tuple[float, float, float] = (0.2, 0.0, 0.0)
    medium: Medium = PLASTIC_SCINTILLATOR
    light: Light = field(default_factory=Light)
    settings: Settings = field(default_factory=Settings)
    min_hits: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.momentum[0] <= self.momentum[1]:
            raise ValueError(f"momentum is {self.momentum} MeV/c, expected 0 < low <= high")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclass(frozen=True)
class ParticleEvent:
    """One particle and the cubes that saw it.

    Attributes:
        index: int32 (N, 3) cube.
        charge: float32 (N,) photoelectrons, mean of the three fibres.
        particle: class, 0 to 3 as in ``SPECIES``.
        pdg: PDG number.
        momentum: float64 (3,) GeV/c at the start.
        start: float64 (3,) mm from the centre of the volume.
    """

    index: np.ndarray
    charge: np.ndarray
    particle: int
    pdg: int
    momentum: np.ndarray
    start: np.ndarray

    def record(self) -> dict[str, object]:
        """The event by the paths of a stream file (:mod:`nufm.data.stream_files`)."""
        return {
            f"hits/{STREAM}/index": self.index,
            f"hits/{STREAM}/charge": self.charge,
            "truth/particle": self.particle,
            "truth/visible": self.momentum.astype(np.float32),
            "truth/vertex": self.start.astype(np.float32),
        }


def simulate_event(spec: SuperFGDSpec, seed: int, stream: int, index: int) -> ParticleEvent:
    """One event; the same arguments give the same event, anywhere. Event ``index`` is of class ``index`` modulo 4.

    Raises:
        ValueError: 1000 draws in a row gave fewer than ``min_hits`` cubes.
    """
    particle = index % len(SPECIES)
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, index, attempt)))
        pdg = int(rng.choice(SPECIES[particle]))
        momentum, start = rng.uniform(*spec.momentum) * _isotropic(rng), rng.uniform(-1, 1, 3) * spec.lattice.high
        deposited = shoot(spec, pdg, momentum, start, int(rng.integers(2**62)))
        cubes, charge = read_out(spec, deposited, rng)
        if len(cubes) >= spec.min_hits:
            return ParticleEvent(cubes, charge, particle, pdg, momentum / 1000, start)
    raise ValueError(
        f"event {index}: {_ATTEMPTS} draws in a row gave fewer than min_hits = {spec.min_hits} cubes; lower min_hits, "
        "or raise the momenta"
    )


def shoot(spec: SuperFGDSpec, pdg: int, momentum: np.ndarray, start: np.ndarray, seed: int) -> Transported:
    """What a particle of ``momentum`` (3,) MeV/c that starts at ``start`` (3,) mm leaves in the volume."""
    size = float(np.linalg.norm(momentum))
    mass = float(MASS[codes_of(np.array([pdg]))[0]])
    primary = Primaries(
        pdg=np.array([pdg]),
        kinetic=np.array([np.hypot(size, mass) - mass]),
        position=np.asarray(start, dtype=np.float64)[None],
        direction=np.asarray(momentum, dtype=np.float64)[None] / size,
        time=np.zeros(1),
    )
    high = spec.lattice.high
    return transport(primary, spec.medium, (-high, high), seed, spec.magnetic_field, spec.settings)


def quenched(energy: np.ndarray, length: np.ndarray, birks: float) -> np.ndarray:
    """Light of steps (S,) in units of MeV: E / (1 + kB E / length), lengths in mm (J. B. Birks, 1951)."""
    return energy / (1 + birks * energy / length)


def read_out(spec: SuperFGDSpec, event: Transported, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cubes int32 (N, 3) that are seen, in the order of their numbers, and their charge float32 (N,)."""
    light, lattice = spec.light, spec.lattice
    energy = event.step_energy.astype(np.float64)
    length = np.linalg.norm(event.step_end.astype(np.float64) - event.step_start, axis=1)
    # Energy left on the spot is that of an electron at its end: it has the length of its range.
    point = length == 0
    length[point] = electron_range_mm(energy[point], spec.medium.density)
    visible = quenched(energy, length, light.birks) if light.birks else energy
    found = voxelise(
        event.step_track,
        event.step_start,
        event.step_end,
        visible,
        event.step_time,
        lattice,
        spec.medium.density,
        NO_RECOMBINATION,
    )
    cubes, amount = _with_neighbours(found.coordinates(lattice), found.energy, light.crosstalk, lattice.size)
    charge = rng.poisson(3 * light.yield_per_mev * amount) / 3
    seen = (charge >= light.threshold) & (charge > 0)
    return cubes[seen], charge[seen].astype(np.float32)


def _with_neighbours(
    cubes: np.ndarray, amount: np.ndarray, share: float, size: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Every cube gives ``share`` of its light to each face neighbour; what leaves the volume is lost."""
    steps = np.concatenate([np.eye(3, dtype=np.int32), -np.eye(3, dtype=np.int32)])
    there = np.concatenate([cubes, (cubes[:, None] + steps).reshape(-1, 3)])
    given = np.concatenate([amount * (1 - 6 * share), np.repeat(amount * share, 6)])
    inside = ((there >= 0) & (there < size)).all(1)
    number = np.ravel_multi_index(there[inside].T, size)
    cells, row = np.unique(number, return_inverse=True)
    total = np.bincount(row.reshape(-1), weights=given[inside], minlength=len(cells))
    return np.stack(np.unravel_index(cells, size), axis=1).astype(np.int32), total


def electron_range_mm(energy: np.ndarray, density: float) -> np.ndarray:
    """Practical range of electrons of ``energy`` MeV in a medium of ``density`` g/cm3; (S,) each.

    L. Katz, A. S. Penfold, Rev. Mod. Phys. 24 (1952) 28: 0.412 E^(1.265 - 0.0954 ln E) g/cm2, straight on from 2.5 MeV
    and, below its validity, in proportion to E.
    """
    inside = np.clip(energy, 0.01, 2.5)
    grams = 0.412 * inside ** (1.265 - 0.0954 * np.log(inside)) * np.maximum(energy / inside, 1e-3)
    return 10 * grams / density


def _isotropic(rng: np.random.Generator) -> np.ndarray:
    cosine, azimuth = rng.uniform(-1, 1), rng.uniform(0, 2 * np.pi)
    sine = np.sqrt(1 - cosine**2)
    return np.array([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine])
