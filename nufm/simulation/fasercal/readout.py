"""From light to hits: three projections of the voxel calorimeter and the voxels that are consistent with them.

The calorimeter is read out in projections: XZ and YZ in every layer, XY summed over each module. A voxel whose three
projections fire is a candidate, whether it holds energy or not: the ghosts are those that do not. The amplitudes of the
candidates follow from the projections by multiplicative iterations that keep them non-negative (maximum-likelihood
expectation maximisation: L. A. Shepp, Y. Vardi, IEEE Trans. Med. Imaging 1 (1982) 113; three views instead of many).
Thresholds and the removal of isolated voxels: detector simulation rubbiaa/FASER. Its cap of 3000 candidates per layer
is never met here, since a layer has 48 × 48 = 2304 voxels.

Shape legend: M modules of nx × ny × nz voxels, D deposits, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nufm.simulation.fasercal.compiled import entry


@dataclass(frozen=True)
class Readout:
    """How hits are made.

    Attributes:
        view_threshold: MeV, for a pixel of a projection.
        voxel_threshold: MeV, for the amplitude of a voxel.
        neighbours_mev: a voxel is kept if its six neighbours hold this much together.
        iterations: of the amplitudes.
        ahcal_threshold: MeV, for a cell of the hadronic calorimeter (a fifth of a minimum-ionising particle).
    """

    view_threshold: float = 0.5
    voxel_threshold: float = 0.5
    neighbours_mev: float = 1.0
    iterations: int = 12
    ahcal_threshold: float = 0.12


@entry
def project(cell, energy, modules, nx, ny, nz):
    """Projections of deposits: XZ float64 (M, nz, nx), YZ (M, nz, ny), XY (M, nx, ny), MeV."""
    xz, yz = np.zeros((modules, nz, nx)), np.zeros((modules, nz, ny))
    xy = np.zeros((modules, nx, ny))
    for d in range(len(cell)):
        z = cell[d] % nz
        rest = cell[d] // nz
        y = rest % ny
        rest //= ny
        x, m = rest % nx, rest // nx
        xz[m, z, x] += energy[d]
        yz[m, z, y] += energy[d]
        xy[m, x, y] += energy[d]
    return xz, yz, xy


@entry
def candidates(xz, yz, xy, threshold):
    """int32 (C, 4) module, x, y, z, in rising order, of the voxels whose three projections are above ``threshold``."""
    modules, nz, nx = xz.shape
    ny = yz.shape[2]
    found, total = np.empty((0, 4), np.int32), 0
    for fill in (False, True):  # count, then write
        n = 0
        if fill:
            found = np.empty((total, 4), np.int32)
        for m in range(modules):
            for x in range(nx):
                for y in range(ny):
                    if xy[m, x, y] <= threshold:
                        continue
                    for z in range(nz):
                        if xz[m, z, x] > threshold and yz[m, z, y] > threshold:
                            if fill:
                                found[n, 0], found[n, 1], found[n, 2], found[n, 3] = m, x, y, z
                            n += 1
        total = n
    return found


@entry
def amplitudes(found, xz, yz, xy, iterations):
    """float64 (C,) MeV: non-negative amplitudes whose projections approach the measured ones."""
    n = len(found)
    _, nz, nx = xz.shape
    ny = yz.shape[2]
    measured = np.concatenate((xz.ravel(), yz.ravel(), xy.ravel()))
    pixel = np.empty((n, 3), np.int32)  # of each candidate in the three views
    amplitude = np.empty(n)
    for c in range(n):
        m, x, y, z = found[c]
        pixel[c, 0] = (m * nz + z) * nx + x
        pixel[c, 1] = xz.size + (m * nz + z) * ny + y
        pixel[c, 2] = xz.size + yz.size + (m * nx + x) * ny + y
        amplitude[c] = min(measured[pixel[c, 0]], measured[pixel[c, 1]], measured[pixel[c, 2]])
    ratio = np.empty_like(measured)
    for _ in range(iterations):
        ratio[:] = 1e-12
        for c in range(n):
            for view in range(3):
                ratio[pixel[c, view]] += amplitude[c]
        for i in range(len(ratio)):
            ratio[i] = measured[i] / ratio[i]
        for c in range(n):
            amplitude[c] *= (ratio[pixel[c, 0]] + ratio[pixel[c, 1]] + ratio[pixel[c, 2]]) / 3.0
    return amplitude


@entry
def keep(found, amplitude, modules, nx, ny, nz, threshold, neighbours):
    """bool (C,): voxels above ``threshold`` whose six neighbours hold at least ``neighbours`` MeV together."""
    grid = np.zeros((modules, nx + 2, ny + 2, nz + 2))
    for c in range(len(found)):
        m, x, y, z = found[c]
        if amplitude[c] >= threshold:
            grid[m, x + 1, y + 1, z + 1] = amplitude[c]
    kept = np.zeros(len(found), np.bool_)
    for c in range(len(found)):
        m, x, y, z = found[c]
        around = grid[m, x, y + 1, z + 1] + grid[m, x + 2, y + 1, z + 1] + grid[m, x + 1, y, z + 1]
        around += grid[m, x + 1, y + 2, z + 1] + grid[m, x + 1, y + 1, z] + grid[m, x + 1, y + 1, z + 2]
        kept[c] = amplitude[c] >= threshold and around >= neighbours
    return kept


def reconstruct(
    cell: np.ndarray, energy: np.ndarray, modules: int, lattice: tuple[int, int, int], rules: Readout
) -> tuple[np.ndarray, np.ndarray]:
    """Hits from the deposits (D,) of one event.

    Returns:
        int32 (N, 4) module, x, y, z in rising order, and float64 (N,) MeV.
    """
    xz, yz, xy = project(cell, energy, modules, *lattice)
    found = candidates(xz, yz, xy, rules.view_threshold)
    amplitude = amplitudes(found, xz, yz, xy, rules.iterations)
    kept = keep(found, amplitude, modules, *lattice, rules.voxel_threshold, rules.neighbours_mev)
    return found[kept], amplitude[kept]
