"""A neutrino interaction in the modular pixel detector: final state, deposits, drift, voxels.

The detector (arXiv 2509.08461, §2): liquid argon, 2 × 2 × 7 m in x, y, z, 5 mm pixels, drift along x to the next of the
anodes at x = ±0.9 and ±0.3 m (cathodes at ±0.6 and 0 m halve the way between them), 0.3 m at most; between the outer
anodes and the faces of the volume, 0.1 m. Deposits are collected in cells of 1 × 5 × 5 mm³ and smeared by Gaussians of
σ = 1.3 mm across and 0.9 mm along the drift, per metre of drift; then the charge is counted in voxels of 5 mm.

The charge of a cell is taken to be spread evenly in it, and each neighbouring voxel gets exactly the share that the
Gaussian carries there (:func:`spill`): no random numbers. Some crosses a cathode, as it would in a reconstruction from
arrival times. Charge is energy in MeV, without recombination, attenuation and noise, of which the paper says nothing.
Voxels with less than ``threshold`` are not written.

Labels are those of PILArNet-M (:mod:`nufm.simulation.truth`), decided in the cells before the smearing; a voxel has the
label of the fragment that left most energy in it.

Shape legend: C cells with energy, N voxels, F fragments, P primaries.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field

import numpy as np
from numba import njit

from nufm.simulation.medium import LIQUID_ARGON
from nufm.simulation.particles import MASS, codes_of
from nufm.simulation.pixelmaps.generator import Interaction, generate
from nufm.simulation.transport import Primaries, Settings, Transported, transport
from nufm.simulation.truth import LabelRules, Truth, make_truth
from nufm.simulation.voxels import W_ARGON, Lattice, Recombination

DETECTOR = "pixel_lartpc"
LATTICE = Lattice((400, 400, 1400), 5.0)
ANODES = (-900.0, -300.0, 300.0, 900.0)  # mm
CELLS = 5  # cells per voxel along the drift
# The same cells as cubes: coordinates with x five times longer.
_STRETCHED = Lattice((CELLS * LATTICE.size[0], *LATTICE.size[1:]), LATTICE.pitch)
_STRETCH = np.array([CELLS, 1.0, 1.0], dtype=np.float32)
# Shares of the classes νµ CC, νe CC, NC; published are 74 % CC, and how νe and νµ share them is not said.
MIXES = {"published": (0.37, 0.37, 0.26), "balanced": (1 / 3, 1 / 3, 1 / 3)}
_ATTEMPTS = 1000


@dataclass(frozen=True)
class PixelSpec:
    """Everything but the seed that decides what events look like.

    Attributes:
        mix: "published": 37 % νµ CC, 37 % νe CC, 26 % NC; "balanced": a third each. Neutral currents are of both
            flavours equally.
        energy: of the neutrino, least and largest, GeV; uniform.
        diffusion: σ across and along the drift, mm per metre of drift.
        threshold: MeV below which a voxel is not written; a minimum-ionising particle leaves 1 MeV in one, and
            pixels of this kind trigger on a tenth to a fifth of that.
        min_points: events with fewer voxels are drawn again, in the same class.
        settings: cuts and steps of the transport.
    """

    mix: str = "published"
    energy: tuple[float, float] = (0.2, 10.0)
    diffusion: tuple[float, float] = (1.3, 0.9)
    threshold: float = 0.1
    min_points: int = 10
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if self.mix not in MIXES:
            raise ValueError(f"mix is '{self.mix}', expected one of {', '.join(MIXES)}")
        if not 0.2 <= self.energy[0] <= self.energy[1] <= 20:
            raise ValueError(f"neutrino energies are {self.energy} GeV, expected 0.2 <= low <= high <= 20")
        if min(self.diffusion) < 0 or max(self.diffusion) > 4:
            raise ValueError(f"diffusion is {self.diffusion} mm per metre, expected 0 … 4: into the next voxel only")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclass(frozen=True)
class PixelEvent:
    """An event with what it came from.

    Attributes:
        truth: voxels and labels in the layout of PILArNet-M. The number of electrons (column 6) is energy / W, and the
            path length (column 7) is not kept: 0. ``below_threshold`` and ``outside`` complete the energy.
        interaction: the neutrino and what came of it.
        label: 0 νµ CC, 1 νe CC, 2 NC.
        vertex: float64 (3,) mm from the detector's centre.
    """

    truth: Truth
    interaction: Interaction
    label: int
    vertex: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)

    def labels(self) -> dict[str, np.ndarray]:
        """The truth of ``nufm.data.images.TRUTH``. A neutral current has no charged lepton: NaN."""
        lepton = self.interaction.momentum[0, :3] if self.interaction.is_cc else np.full(3, np.nan)
        return {
            "interaction": np.int64(self.label),
            "mode": np.int64(self.interaction.mode),
            "neutrino_energy": np.float32(self.interaction.energy),
            "inelasticity": np.float32(self.interaction.inelasticity),
            "lepton": lepton.astype(np.float32),
            "vertex": self.vertex.astype(np.float32),
        }


def simulate_event(spec: PixelSpec, seed: int, stream: int, index: int) -> PixelEvent:
    """One event; the same arguments give the same event, anywhere.

    Raises:
        ValueError: 1000 draws in a row gave fewer than ``min_points`` voxels.
    """
    label, neutrino = draw_class(spec, seed, stream, index)
    high = LATTICE.high
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, index, attempt)))
        interaction = generate(rng.uniform(*spec.energy), neutrino, label != 2, rng)
        vertex = rng.uniform(-high, high)
        deposited = transport(
            primaries_of(interaction, vertex),
            LIQUID_ARGON,
            (-high, high),
            int(rng.integers(2**62)),
            settings=spec.settings,
        )
        truth = read_out(deposited, spec)
        if len(truth) >= spec.min_points:
            return PixelEvent(truth, interaction, label, vertex)
    raise ValueError(
        f"event {index}: {_ATTEMPTS} draws in a row had fewer than min_points = {spec.min_points} voxels (the last one "
        f"{len(truth)}); lower min_points, or raise the energies"
    )


def draw_class(spec: PixelSpec, seed: int, stream: int, index: int) -> tuple[int, int]:
    """Class of an event, and PDG of its neutrino. They have their own random numbers: events that are drawn again must
    not change the shares."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, index)))
    label = int(rng.choice(3, p=MIXES[spec.mix]))
    return label, (14, 12, 14 if rng.uniform() < 0.5 else 12)[label]


def primaries_of(interaction: Interaction, vertex: np.ndarray) -> Primaries:
    """What the transport follows: all but neutrinos; ``vertex`` (3,) in mm."""
    seen = np.abs(interaction.pdg) != interaction.neutrino
    pdg, momentum = interaction.pdg[seen], interaction.momentum[seen] * 1000
    size = np.linalg.norm(momentum[:, :3], axis=1)
    mass = MASS[codes_of(pdg)]
    n = len(pdg)
    return Primaries(
        pdg=pdg,
        kinetic=np.hypot(size, mass) - mass,
        position=np.tile(vertex, (n, 1)),
        direction=momentum[:, :3] / size[:, None],
        time=np.zeros(n),
    )


# ---------------------------------------------------------------------- from deposits to voxels


def read_out(deposited: Transported, spec: PixelSpec) -> Truth:
    """Voxels and labels of a transported event."""
    stretched = dataclasses.replace(
        deposited, step_start=deposited.step_start * _STRETCH, step_end=deposited.step_end * _STRETCH
    )
    n_primaries = int((deposited.track_parent < 0).sum())
    cells = make_truth(
        stretched,
        np.zeros(n_primaries, dtype=np.int32),
        _STRETCHED,
        LIQUID_ARGON.density,
        LabelRules(threshold=1e-6),
        Recombination(b=0.0),  # lengths are stretched
    )
    return smear(cells, spec)


def smear(cells: Truth, spec: PixelSpec) -> Truth:
    """Voxels of 5 mm from cells of 1 × 5 × 5 mm³: diffusion, the threshold, the label with most energy.

    Energy is conserved: cells = voxels + ``below_threshold`` + ``outside``.
    """
    voxel, energy, time, fragment, below, outside = _smear(
        cells.point[:, :3].astype(np.int64),
        cells.point[:, 4].astype(np.float64),
        cells.point[:, 5].astype(np.float64),
        np.repeat(np.arange(len(cells.cluster)), cells.cluster[:, 0]),
        np.array(LATTICE.size),
        LATTICE.pitch,
        np.array(ANODES),
        spec.diffusion[0] / 1000,
        spec.diffusion[1] / 1000,
        spec.threshold,
    )
    order = np.lexsort((voxel, fragment))
    point = np.zeros((len(voxel), 8), dtype=np.float32)
    point[:, :3] = np.stack(np.unravel_index(voxel[order], LATTICE.size), axis=1)
    point[:, 3] = point[:, 4] = energy[order]
    point[:, 5] = time[order]
    point[:, 6] = energy[order] / W_ARGON
    cluster, extra = _kept_rows(cells.cluster, cells.cluster_extra, np.bincount(fragment, minlength=len(cells.cluster)))
    return Truth(point, cluster, extra, cells.below_threshold + below, cells.outside + outside)


def _kept_rows(cluster: np.ndarray, extra: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fragments that have points still, numbered anew; a group's number is that of its first fragment."""
    kept = points > 0
    kept[0] = True  # the row of low-energy deposits is always there
    cluster, extra = cluster[kept], extra[kept]
    cluster[:, 0] = points[kept]
    cluster[1:, 1] = np.arange(len(cluster) - 1)
    _, head, group = np.unique(cluster[1:, 2], return_index=True, return_inverse=True)
    cluster[1:, 2] = head[group.reshape(-1)]
    return cluster, extra


@njit(cache=True, error_model="numpy")
def spill(low, high, border, sigma):
    """Share of a charge that is spread evenly from ``low`` to ``high`` and smeared by a Gaussian which lies above
    ``border``, for low < high <= border or border <= low < high.

    The integral of Φ((u − b)/σ) over u is (u − b) Φ((u − b)/σ) + σ φ((u − b)/σ).
    """
    if sigma <= 0.0:
        return 1.0 if low >= border else 0.0
    total = 0.0
    for sign, u in ((1.0, high), (-1.0, low)):
        t = (u - border) / sigma
        total += sign * sigma * (
            0.5 * t * math.erfc(-t / math.sqrt(2.0)) + math.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)
        )  # fmt: skip
    return total / (high - low)


@njit(cache=True, error_model="numpy")
def _smear(cell, energy, time, fragment, size, pitch, anodes, across, along, threshold):
    """Of voxels with at least ``threshold``: number, energy, mean time, fragment with most energy; and the energy of
    the others, and that which left the lattice."""
    n = cell.shape[0]
    most = 27 * n  # a cell gives to its voxel and the 26 around it
    bits = 4
    while (1 << bits) <= most:
        bits += 1
    table = np.full(1 << bits, -1, dtype=np.int32)
    mask = (1 << bits) - 1
    voxel = np.empty(most, dtype=np.int64)
    sums = np.zeros((most, 2))
    head = np.empty(most, dtype=np.int32)  # the last gift to each voxel; others follow, one per fragment
    giver = np.empty(most, dtype=np.int32)
    gift = np.empty(most)
    following = np.empty(most, dtype=np.int32)
    n_voxels = 0
    n_gifts = 0
    below = 0.0
    outside = 0.0
    thin = pitch / CELLS
    px = np.empty(3)
    pt = np.empty(3)
    for i in range(n):
        drift = 1e30  # from the middle of the cell to the next anode
        for anode in anodes:
            drift = min(drift, abs((cell[i, 0] + 0.5) * thin - 0.5 * pitch * size[0] - anode))
        part = cell[i, 0] % CELLS
        px[2] = spill(part * thin, (part + 1) * thin, pitch, along * drift)
        px[0] = spill((CELLS - 1 - part) * thin, (CELLS - part) * thin, pitch, along * drift)
        px[1] = 1.0 - px[0] - px[2]
        pt[0] = pt[2] = spill(0.0, pitch, pitch, across * drift)
        pt[1] = 1.0 - 2.0 * pt[0]
        for k in range(27):
            a, b, c = k // 9, k // 3 % 3, k % 3
            e = energy[i] * px[a] * pt[b] * pt[c]
            if e < 1e-9:  # MeV: crumbs
                below += e
                continue
            x, y, z = cell[i, 0] // CELLS + a - 1, cell[i, 1] + b - 1, cell[i, 2] + c - 1
            if x < 0 or y < 0 or z < 0 or x >= size[0] or y >= size[1] or z >= size[2]:
                outside += e
                continue
            key = (x * size[1] + y) * size[2] + z
            slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
            while table[slot] >= 0 and voxel[table[slot]] != key:
                slot = (slot + 1) & mask
            v = table[slot]
            if v < 0:
                v = n_voxels
                n_voxels += 1
                table[slot] = v
                voxel[v] = key
                head[v] = -1
            sums[v, 0] += e
            sums[v, 1] += e * time[i]
            g = head[v]
            while g >= 0 and giver[g] != fragment[i]:
                g = following[g]
            if g < 0:
                g = n_gifts
                n_gifts += 1
                giver[g] = fragment[i]
                gift[g] = 0.0
                following[g] = head[v]
                head[v] = g
            gift[g] += e
    owner = np.empty(n_voxels, dtype=np.int64)
    kept = np.zeros(n_voxels, dtype=np.bool_)
    for v in range(n_voxels):
        if sums[v, 0] < threshold:
            below += sums[v, 0]
            continue
        kept[v] = True
        sums[v, 1] /= sums[v, 0]
        best = head[v]
        g = following[best]
        while g >= 0:
            if gift[g] > gift[best] or (gift[g] == gift[best] and giver[g] < giver[best]):
                best = g
            g = following[g]
        owner[v] = giver[best]
    rows = np.flatnonzero(kept)
    return voxel[rows], sums[rows, 0], sums[rows, 1], owner[rows], below, outside
