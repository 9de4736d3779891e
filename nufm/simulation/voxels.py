"""From steps to voxels: energy split at voxel borders in proportion to length (compiled).

Shape legend: S steps of the transport, V voxels with energy, D deposits (one per voxel and track that left
energy in it), R pairs of neighbouring voxels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

W_ARGON = (
    23.6e-6  # MeV per electron-ion pair in liquid argon (M. Miyajima et al., Phys. Rev. A 9 (1974) 1438)
)

# The modified box model falls off below this argument (where A = 0.93 gives its maximum, at 0.7 of a
# minimum-ionising particle in liquid argon at 0.5 kV/cm); a step that lost less by chance keeps the value
# there.
BOX_MODEL_FLOOR = 0.47

# Called from compiled code only: no wrappers for Python, which halves the compile time.
_inner = njit(cache=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


@dataclass(frozen=True)
class Lattice:
    """Voxels of a detector centred on the origin.

    Attributes:
        size: number of voxels along x, y, z.
        pitch: edge of a voxel in mm.

    Raises:
        ValueError: a size or the pitch is not positive, or the lattice has more than 2^31 voxels.
    """

    size: tuple[int, int, int] = (768, 768, 768)
    pitch: float = 3.0

    def __post_init__(self) -> None:
        if len(self.size) != 3 or any(int(n) != n or n < 1 for n in self.size) or not self.pitch > 0:
            raise ValueError(
                f"lattice of {self.size} voxels of {self.pitch} mm: expected three sizes >= 1 and a pitch > 0"
            )
        if math.prod(self.size) >= 2**31:
            raise ValueError(f"lattice of {self.size} voxels has more than 2^31; use fewer or larger voxels")

    @property
    def high(self) -> np.ndarray:
        """float64 (3,) upper corner in mm; the lower one is its negative."""
        return 0.5 * self.pitch * np.asarray(self.size, dtype=np.float64)


@dataclass(frozen=True)
class Recombination:
    """How much of the ionisation charge survives: the modified box model.

    R = ln(A + B x) / (B x) with x = (dE/dx) / (density * field); R. Acciarri et al. (ArgoNeuT), JINST 8
    (2013) P08005.

    Attributes:
        a: A.
        b: B in kV/cm g/cm2 / MeV; 0 switches recombination off (R = 1).
        field: drift field in kV/cm.
        w: MeV per electron-ion pair.
    """

    a: float = 0.930
    b: float = 0.212
    field: float = 0.5
    w: float = W_ARGON


@dataclass(frozen=True)
class Deposits:
    """Energy by voxel, and by voxel and track.

    Attributes:
        index: int64 (V,) voxel number (x * ny + y) * nz + z.
        energy: float64 (V,) MeV.
        time: float64 (V,) ns, mean weighted with energy.
        length: float64 (V,) cm of path (of a deposit at one point: the range of an electron of that energy).
        electrons: float64 (V,) ionisation electrons that escape recombination.
        head: int32 (V,) the voxel's last deposit; ``next`` leads to the others, -1 ends.
        track: int32 (D,).
        track_energy: float64 (D,) MeV.
        next: int32 (D,).
        pairs: int32 (R, 2) voxels that share a face, edge or corner, each pair once.
        outside: MeV that fell outside the lattice.
    """

    index: np.ndarray
    energy: np.ndarray
    time: np.ndarray
    length: np.ndarray
    electrons: np.ndarray
    head: np.ndarray
    track: np.ndarray
    track_energy: np.ndarray
    next: np.ndarray
    pairs: np.ndarray
    outside: float

    def coordinates(self, lattice: Lattice) -> np.ndarray:
        """int32 (V, 3) lattice coordinates."""
        return np.stack(np.unravel_index(self.index, lattice.size), axis=1).astype(np.int32)


def voxelise(
    track: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    energy: np.ndarray,
    time: np.ndarray,
    lattice: Lattice,
    density: float,
    recombination: Recombination,
) -> Deposits:
    """Collect steps in voxels.

    A voxel takes of a step's energy the share of the step's length that lies in it. What lies outside the
    lattice is
    added up in ``outside``: sum(energy) of voxels + ``outside`` = sum(energy) of steps, to float64 rounding.

    Args:
        track: int32 (S,).
        start: float32 or float64 (S, 3) mm, origin at the detector's centre.
        end: (S, 3) mm.
        energy: (S,) MeV.
        time: (S,) ns.
        lattice: the voxels.
        density: of the medium, g/cm3.
        recombination: for the number of electrons.
    """
    index, sums, head, dep_track, dep_energy, dep_next, pairs, n_voxels, n_deposits, n_pairs, outside = (
        _voxelise(
            np.ascontiguousarray(track, dtype=np.int32),
            np.ascontiguousarray(start, dtype=np.float64),
            np.ascontiguousarray(end, dtype=np.float64),
            np.ascontiguousarray(energy, dtype=np.float64),
            np.ascontiguousarray(time, dtype=np.float64),
            np.asarray(lattice.size, dtype=np.int64),
            float(lattice.pitch),
            -lattice.high,
            float(density),
            np.array([recombination.a, recombination.b, recombination.field, recombination.w]),
        )
    )
    sums = sums[:n_voxels]
    return Deposits(
        index=index[:n_voxels].copy(),
        energy=sums[:, 0].copy(),
        time=sums[:, 1].copy(),
        length=sums[:, 2].copy(),
        electrons=sums[:, 3].copy(),
        head=head[:n_voxels].copy(),
        track=dep_track[:n_deposits].copy(),
        track_energy=dep_energy[:n_deposits].copy(),
        next=dep_next[:n_deposits].copy(),
        pairs=pairs[:n_pairs].copy(),
        outside=outside,
    )


@_inner
def electron_range(energy):
    """Practical range in g/cm2 of an electron of ``energy`` MeV, 0.01 to 3 MeV.

    L. Katz, A. S. Penfold, Rev. Mod. Phys. 24 (1952) 28: 0.412 E^(1.265 - 0.0954 ln E).
    """
    e = min(max(energy, 0.01), 2.5)
    return 0.412 * e ** (1.265 - 0.0954 * math.log(e)) * max(energy / e, 1e-3)


@_inner
def _slot(table, index, key):
    """Slot of ``key`` in an open-addressing table of positions in ``index`` (-1: free)."""
    mask = table.shape[0] - 1
    h = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    slot = np.int64(h) & mask
    while table[slot] >= 0 and index[table[slot]] != key:
        slot = (slot + 1) & mask
    return slot


@_inner
def _neighbours(table, index, n_voxels, size):
    """Pairs of touching voxels, each once: the 13 neighbours that come after a voxel in the numbering."""
    pairs = np.empty((13 * n_voxels, 2), dtype=np.int32)
    n = 0
    for v in range(n_voxels):
        key = index[v]
        z = key % size[2]
        y = (key // size[2]) % size[1]
        x = key // (size[2] * size[1])
        for d in range(14, 27):  # offsets (0, 0, 1) to (1, 1, 1) of the 3 x 3 x 3 block
            a, b, c = x + d // 9 - 1, y + (d // 3) % 3 - 1, z + d % 3 - 1
            if a < 0 or b < 0 or c < 0 or a >= size[0] or b >= size[1] or c >= size[2]:
                continue
            other = table[_slot(table, index, (a * size[1] + b) * size[2] + c)]
            if other >= 0:
                pairs[n, 0], pairs[n, 1] = v, other
                n += 1
    return pairs, n


@njit(cache=True, error_model="numpy")
def _voxelise(track, start, end, energy, time, size, pitch, low, density, recombination):
    n_steps = track.shape[0]
    # Upper limit of the pieces: a step enters one new voxel per border it crosses (3: rounding at the ends).
    capacity = 1
    for s in range(n_steps):
        crossings = 0
        for k in range(3):
            a = math.floor((start[s, k] - low[k]) / pitch)
            b = math.floor((end[s, k] - low[k]) / pitch)
            crossings += abs(a - b)
        capacity += crossings + 4 if crossings > 0 else 1
    index = np.empty(capacity, dtype=np.int64)
    sums = np.zeros((capacity, 4))  # energy, energy * time, length, electrons
    head = np.empty(capacity, dtype=np.int32)
    dep_track = np.empty(capacity, dtype=np.int32)
    dep_energy = np.empty(capacity)
    dep_next = np.empty(capacity, dtype=np.int32)
    bits = 4
    while (1 << bits) < 2 * capacity:
        bits += 1
    table = np.full(1 << bits, -1, dtype=np.int32)
    n_voxels = 0
    n_deposits = 0
    last_key, last_voxel = np.int64(-1), 0  # most pieces lie in the same voxel as the one before
    outside = 0.0
    x0 = np.empty(3)
    d = np.empty(3)
    cell = np.empty(3, dtype=np.int64)
    sign = np.empty(3, dtype=np.int64)
    border = np.empty(3)
    rec_a, rec_b, rec_field, rec_w = recombination[0], recombination[1], recombination[2], recombination[3]

    for s in range(n_steps):
        e = energy[s]
        length = 0.0
        for k in range(3):
            x0[k] = (start[s, k] - low[k]) / pitch
            x1 = (end[s, k] - low[k]) / pitch
            d[k] = x1 - x0[k]
            length += d[k] * d[k]
            cell[k] = math.floor(x0[k])
            if d[k] > 0:
                sign[k] = 1
                border[k] = (cell[k] + 1 - x0[k]) / d[k]
            elif d[k] < 0:
                sign[k] = -1
                border[k] = (cell[k] - x0[k]) / d[k]
            else:
                sign[k] = 0
                border[k] = 2.0
                if cell[k] == size[k] and x0[k] == size[k]:
                    cell[k] -= 1  # a step in the upper face of the box belongs to the box
        length = math.sqrt(length) * pitch * 0.1
        point = length == 0.0
        if point:
            length = electron_range(e) / density
            for k in range(3):
                border[k] = 2.0
        survive = 1.0
        if rec_b > 0.0 and e > 0.0:
            x = rec_b * (e / length) / (density * rec_field)
            x = max(x, BOX_MODEL_FLOOR)
            survive = min(1.0, math.log(rec_a + x) / x)
        electrons = e * survive / rec_w

        t = 0.0
        while t < 1.0:
            k = 0
            if border[1] < border[k]:
                k = 1
            if border[2] < border[k]:
                k = 2
            until = min(border[k], 1.0)
            w = until - t
            if w > 0.0:
                inside = (
                    cell[0] >= 0 and cell[1] >= 0 and cell[2] >= 0
                    and cell[0] < size[0] and cell[1] < size[1] and cell[2] < size[2]
                )  # fmt: skip
                if inside:
                    key = (cell[0] * size[1] + cell[1]) * size[2] + cell[2]
                    v = last_voxel
                    if key != last_key:
                        slot = _slot(table, index, key)
                        v = table[slot]
                        if v < 0:
                            v = n_voxels
                            n_voxels += 1
                            table[slot] = v
                            index[v] = key
                            head[v] = -1
                        last_key, last_voxel = key, v
                    row = sums[v]
                    row[0] += w * e
                    row[1] += w * e * time[s]
                    row[2] += w * length
                    row[3] += w * electrons
                    dep = head[v]
                    while dep >= 0 and dep_track[dep] != track[s]:
                        dep = dep_next[dep]
                    if dep < 0:
                        dep = n_deposits
                        n_deposits += 1
                        dep_track[dep] = track[s]
                        dep_energy[dep] = 0.0
                        dep_next[dep] = head[v]
                        head[v] = dep
                    dep_energy[dep] += w * e
                else:
                    outside += w * e
                t = until
            if t >= 1.0:
                break
            cell[k] += sign[k]
            edge = cell[k] + 1 if sign[k] > 0 else cell[k]
            border[k] = (edge - x0[k]) / d[k]

    pairs, n_pairs = _neighbours(table, index, n_voxels, size)
    for v in range(n_voxels):
        if sums[v, 0] > 0.0:
            sums[v, 1] /= sums[v, 0]
    return index, sums, head, dep_track, dep_energy, dep_next, pairs, n_voxels, n_deposits, n_pairs, outside
