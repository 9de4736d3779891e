"""What each voxel is: semantic class, particle, interaction, by the rules of the field.

The classes are those of PILArNet-M; the rules follow the two public generations of the labelling software,
DeepLearnPhysics/Supera (SuperaMCParticleCluster) and DeepLearnPhysics/SuperaAtomic (LArTPCMLReco3D), in plain
form:

1. *Track*: a visible charged particle other than an electron. A secondary stub of at most ``scatter_size``
   voxels is part of the track it comes from; a nuclear fragment or a neutron's recoil of at most
   ``nucleus_size`` voxels is a low-energy deposit, like any stub without a visible parent.
2. *Delta*: an electron knocked on by a track, with at least ``delta_size`` voxels that the track does not
   cross; else it is part of the track. Electrons knocked on by electrons are part of those.
3. *Michel*: the electron of a muon's decay (process and parent, not topology).
4. *Shower*: primary electrons, conversions, electrons of other decays, and all that touches them. Deposits of
   one electromagnetic cascade that touch are one fragment; all its fragments form the group of the photon,
   electron, Michel or delta at the top of the cascade. A fragment of less than ``compton_size`` voxels that
   does not hold a primary or decay electron is a low-energy deposit, a larger one of Compton electrons a
   shower fragment.
5. *Low-energy deposit (LED)*: what is left: isolated Compton and photo-electrons, neutron recoils. One that
   touches something larger is part of it, looking for a shower first, then a Michel, a delta, a track.

"Touch" means to share a voxel, or a voxel's face, edge or corner. Where several objects left energy in one
voxel, the voxel carries the label of the first in the order track, Michel, shower, delta, LED (as in SPINE);
between two of one class, of the one with more energy. A voxel's energy is the sum over all of them.

Shape legend: V voxels with energy, N voxels above the threshold, F fragments (rows of ``cluster`` but the
first), T tracks, P primaries, D deposits, R pairs of touching voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from nufm.simulation.particles import MASS, PDG, Process
from nufm.simulation.transport import Transported
from nufm.simulation.voxels import Lattice, Recombination, voxelise

SHOWER, TRACK, MICHEL, DELTA, LED = range(5)
CLASS_NAMES = ("shower", "track", "Michel", "delta", "LED")

# PDG number (absolute) -> particle class of PILArNet-M: photon, electron, muon, pion, proton; 5 is the kaon.
PID_OF_PDG = {22: 0, 11: 1, 13: 2, 211: 3, 2212: 4, 321: 5}


@dataclass(frozen=True)
class LabelRules:
    """Thresholds of the rules above.

    Attributes:
        delta_size: voxels of its own that make a delta (Supera: 10, SuperaAtomic: 3; 3 comes nearer to the
            published share of deltas).
        compton_size: voxels that make a shower fragment (both: 10).
        nucleus_size: nuclear fragments and neutron recoils up to this many voxels are LED (SuperaAtomic: 10).
        scatter_size: stubs up to this many voxels are not tracks (SuperaAtomic, LEScatterSize: 2).
        threshold: MeV; voxels with less are not written, and deposits with less do not count in sizes (both:
            0.01).

    Raises:
        ValueError: a size or the threshold is negative.
    """

    delta_size: int = 3
    compton_size: int = 10
    nucleus_size: int = 10
    scatter_size: int = 2
    threshold: float = 0.01

    def __post_init__(self) -> None:
        for field in ("delta_size", "compton_size", "nucleus_size", "scatter_size", "threshold"):
            if not getattr(self, field) >= 0:
                raise ValueError(
                    f"label rules: field '{field}' is {getattr(self, field)}, expected a number >= 0"
                )


@dataclass(frozen=True)
class Truth:
    """An event as PILArNet-M stores it.

    Attributes:
        point: float32 (N, 8): voxel index x, y, z, voxel value (MeV), energy deposit (MeV, the same number),
            time (ns, mean weighted with energy), ionisation electrons after recombination, path length (cm).
            Sorted by cluster row, then by voxel.
        cluster: int64 (F + 1, 6): points, fragment id, particle (group) id, interaction id, motif, PID. The
            first row holds the low-energy deposits: ids and PID -1. A group's id is the id of its first
            fragment.
        cluster_extra: float32 (F + 1, 5): mass (MeV), momentum (GeV/c), and creation point x, y, z (mm from
            the detector's centre) of the particle at the head of the group; -1 in the first row.
        below_threshold: MeV in voxels that were not written.
        outside: MeV outside the lattice.
    """

    point: np.ndarray
    cluster: np.ndarray
    cluster_extra: np.ndarray
    below_threshold: float
    outside: float

    def __len__(self) -> int:
        return len(self.point)


def make_truth(
    transported: Transported,
    interaction: np.ndarray,
    lattice: Lattice,
    density: float,
    rules: LabelRules,
    recombination: Recombination,
) -> Truth:
    """Voxels and labels of a transported event.

    Args:
        transported: the event; the first P tracks are its primaries.
        interaction: int (P,) interaction id of each primary.
        lattice: the voxels.
        density: of the medium, g/cm3.
        rules: thresholds of the labels.
        recombination: for the number of electrons.

    Raises:
        ValueError: the number of interaction ids is not the number of primaries.
    """
    tr = transported
    parent = tr.track_parent.astype(np.int32)
    n_primaries = int((parent < 0).sum())
    if len(interaction) != n_primaries:
        raise ValueError(
            f"{len(interaction)} interaction ids for {n_primaries} primaries, expected one for each"
        )
    assert (parent < np.arange(len(parent))).all(), "a track must come after its parent"
    deposits = voxelise(
        tr.step_track,
        tr.step_start,
        tr.step_end,
        tr.step_energy,
        tr.step_time,
        lattice,
        density,
        recombination,
    )
    fragment, root_kind, root_top, origin = _label(
        tr.track_pdg.astype(np.int32),
        parent,
        tr.track_process.astype(np.int32),
        deposits.head,
        deposits.track,
        deposits.track_energy,
        deposits.next,
        deposits.pairs,
        rules.delta_size,
        rules.compton_size,
        rules.nucleus_size,
        rules.scatter_size,
        rules.threshold,
    )

    kept = deposits.energy >= rules.threshold
    fragment = fragment[kept]
    root = np.unique(fragment[fragment >= 0])  # the tracks that stand for the fragments, rising
    top = root_top[root]
    ids = np.asarray(interaction, dtype=np.int64)[origin[root]]
    order = np.lexsort((root, root != top, top, ids))
    root, top, ids = root[order], top[order], ids[order]
    rank = np.zeros(
        len(parent) + 1, dtype=np.int64
    )  # cluster row of each root; LED (-1) looks up the last entry
    rank[root] = np.arange(1, len(root) + 1)
    row = rank[fragment]

    first = np.zeros(len(parent), dtype=np.int64)  # group id: the first fragment of the group
    heads, rows = np.unique(top, return_index=True)
    first[heads] = rows
    cluster = np.full((len(root) + 1, 6), -1, dtype=np.int64)
    cluster[:, 0] = np.bincount(row, minlength=len(root) + 1)
    cluster[0, 4] = LED
    cluster[1:, 1] = np.arange(len(root))
    cluster[1:, 2] = first[top]
    cluster[1:, 3] = ids
    cluster[1:, 4] = root_kind[root]
    cluster[1:, 5] = [PID_OF_PDG.get(abs(int(p)), -1) for p in tr.track_pdg[top]]
    extra = np.full((len(root) + 1, 5), -1, dtype=np.float32)
    extra[1:, 0] = [_MASS_OF_PDG.get(int(p), 0.0) for p in tr.track_pdg[top]]
    extra[1:, 1] = tr.track_momentum[top] * 1e-3
    extra[1:, 2:] = tr.track_position[top]

    order = np.lexsort((deposits.index[kept], row))
    point = np.empty((len(row), 8), dtype=np.float32)
    point[:, :3] = deposits.coordinates(lattice)[kept][order]
    point[:, 3] = point[:, 4] = deposits.energy[kept][order]
    point[:, 5] = deposits.time[kept][order]
    point[:, 6] = deposits.electrons[kept][order]
    point[:, 7] = deposits.length[kept][order]
    return Truth(point, cluster, extra, float(deposits.energy[~kept].sum()), float(deposits.outside))


_MASS_OF_PDG = {int(pdg): float(mass) for pdg, mass in zip(PDG, MASS, strict=True)}
_IONISATION = int(Process.IONISATION)
_DECAY, _CAPTURE, _NEUTRON = int(Process.DECAY), int(Process.CAPTURE), int(Process.NEUTRON)
_PRIMARY, _CONVERSION = int(Process.PRIMARY), int(Process.CONVERSION)
# Called from compiled code only: no wrappers for Python, which halves the compile time.
_inner = njit(cache=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
_NUCLEUS = 1_000_000_000  # PDG numbers of nuclei lie above


@_inner
def _is_track(pdg):
    """Charged, not an electron."""
    a = abs(pdg)
    return a > _NUCLEUS or a == 13 or a == 211 or a == 321 or a == 2212


@_inner
def _find(root, a):
    """Representative of ``a``, with path halving."""
    while root[a] != a:
        root[a] = root[root[a]]
        a = root[a]
    return a


@_inner
def _union(root, a, b):
    """Join the sets of ``a`` and ``b``; the lower number, the older track, stands for both."""
    a, b = _find(root, a), _find(root, b)
    if a < b:
        root[b] = a
    elif b < a:
        root[a] = b


@_inner
def _gather(head, track, energy, following, of_track):
    """Deposits by (voxel, object of the track ``of_track``), as CSR arrays start (V+1,), object, energy."""
    n_voxels = head.shape[0]
    start = np.zeros(n_voxels + 1, dtype=np.int32)
    thing = np.empty(track.shape[0], dtype=np.int32)
    total = np.empty(track.shape[0])
    n = 0
    for v in range(n_voxels):
        begin = n
        d = head[v]
        while d >= 0:
            u = of_track[track[d]]
            k = begin
            while k < n and thing[k] != u:
                k += 1
            if k == n:
                thing[n] = u
                total[n] = 0.0
                n += 1
            total[k] += energy[d]
            d = following[d]
        start[v + 1] = n
    return start, thing[:n].copy(), total[:n].copy()


@_inner
def _first_guess(pdg, parent, process):
    """Class by particle and process alone, and the unit (track number) that each track is part of."""
    n = pdg.shape[0]
    kind = np.full(n, LED, dtype=np.int8)
    unit = np.arange(n).astype(np.int32)
    for t in range(n):
        p = parent[t]
        if abs(pdg[t]) == 11:
            if process[t] == _IONISATION and p >= 0:
                if kind[unit[p]] == TRACK:
                    kind[t] = DELTA
                else:
                    unit[t] = unit[p]
            elif process[t] == _DECAY or process[t] == _CAPTURE:
                kind[t] = MICHEL if p >= 0 and abs(pdg[p]) == 13 else SHOWER
            elif process[t] == _PRIMARY or process[t] == _CONVERSION:
                kind[t] = SHOWER
        elif _is_track(pdg[t]):
            kind[t] = TRACK
    return kind, unit


@_inner
def _absorb_small_tracks(
    pdg, parent, process, kind, unit, start, thing, total, delta_size, nucleus_size, scatter_size, threshold
):
    """Rules 1 and 2: small deltas and stubs join their parent or become LED. Changes kind and unit."""
    n = pdg.shape[0]
    size = np.zeros(n, dtype=np.int32)
    own = np.zeros(n, dtype=np.int32)  # voxels in which the parent's unit left nothing
    for v in range(start.shape[0] - 1):
        for k in range(start[v], start[v + 1]):
            if total[k] < threshold:
                continue
            u = thing[k]
            size[u] += 1
            if parent[u] >= 0:
                mother = unit[parent[u]]
                alone = True
                for j in range(start[v], start[v + 1]):
                    if thing[j] == mother and total[j] >= threshold:
                        alone = False
                if alone:
                    own[u] += 1
    for t in range(n):
        u = unit[t]
        if u != t:
            unit[t] = unit[u]  # u was settled before: it is older
            continue
        p = parent[t]
        if kind[t] == DELTA and own[t] < delta_size:
            unit[t] = unit[p]
        elif kind[t] == TRACK and p >= 0:
            fragment = abs(pdg[t]) > _NUCLEUS or process[t] == _NEUTRON
            if size[t] <= (nucleus_size if fragment else scatter_size):
                if kind[unit[p]] == TRACK and not fragment:
                    unit[t] = unit[p]
                else:
                    kind[t] = LED


@_inner
def _tops(pdg, parent, kind, unit):
    """Head of each track's group: photon, electron, Michel or delta on top of its cascade, else itself."""
    n = pdg.shape[0]
    top = np.arange(n).astype(np.int32)
    for t in range(n):
        p = parent[t]
        if unit[t] != t:
            top[t] = top[unit[t]]
        elif p >= 0 and (kind[t] == SHOWER or kind[t] == LED) and (pdg[t] == 22 or abs(pdg[t]) == 11):
            if (pdg[p] == 22 or abs(pdg[p]) == 11) and kind[unit[p]] != TRACK:
                top[t] = top[p]
    return top


@_inner
def _join_cascades(kind, unit, top, process, start, thing, pairs):
    """Rule 4: touching units of one cascade become one fragment; returns the root unit of each track."""
    n = kind.shape[0]
    root = np.arange(n).astype(np.int32)
    for v in range(start.shape[0] - 1):
        for k in range(start[v], start[v + 1]):
            for j in range(start[v], k):
                a, b = thing[k], thing[j]
                if top[a] == top[b] and kind[a] != TRACK and kind[b] != TRACK:
                    _union(root, a, b)
    for r in range(pairs.shape[0]):
        v, w = pairs[r, 0], pairs[r, 1]
        for k in range(start[v], start[v + 1]):
            a = thing[k]
            if kind[a] == TRACK:
                continue
            for j in range(start[w], start[w + 1]):
                b = thing[j]
                if a != b and top[a] == top[b] and kind[b] != TRACK:
                    _union(root, a, b)
    for t in range(n):
        root[t] = _find(root, unit[t])
    return root


@_inner
def _rank(kind):
    """Who absorbs a touching low-energy deposit: shower, then Michel, delta, track."""
    if kind == SHOWER:
        return 0
    if kind == MICHEL:
        return 1
    return 2 if kind == DELTA else 3


@_inner
def _priority(kind):
    """Who names a shared voxel: track, then Michel, shower, delta, LED."""
    if kind == TRACK:
        return 0
    if kind == MICHEL:
        return 1
    return kind + 2 if kind == SHOWER else kind


@_inner
def _fragment_kinds(pdg, parent, process, kind, unit, root, start, thing, total, compton_size, threshold):
    """Class of each fragment (at its root's number), after rule 4."""
    n = kind.shape[0]
    result = np.full(n, LED, dtype=np.int8)
    fixed = np.zeros(
        n, dtype=np.bool_
    )  # holds a primary or decay electron, or is no electromagnetic fragment
    grows = np.zeros(n, dtype=np.bool_)  # has electrons, which make a large fragment a shower
    size = np.zeros(n, dtype=np.int32)
    for t in range(n):
        r = root[t]
        if unit[t] != t:
            continue
        electromagnetic = pdg[t] == 22 or abs(pdg[t]) == 11
        grows[r] |= electromagnetic
        if kind[t] == LED:
            continue
        if kind[t] == SHOWER:
            if result[r] == LED:
                result[r] = SHOWER
            fixed[r] |= process[t] != _CONVERSION
        else:
            result[r] = kind[t]
            fixed[r] = True
    for v in range(start.shape[0] - 1):
        for k in range(start[v], start[v + 1]):
            if total[k] >= threshold:
                size[thing[k]] += 1
    for r in range(n):
        if root[r] == r and unit[r] == r and not fixed[r] and grows[r]:
            result[r] = SHOWER if size[r] >= compton_size else LED
    return result


@_inner
def _absorb_low_energy(kinds, root, start, thing, pairs):
    """Rule 5: the fragment (root number) a low-energy fragment becomes part of; itself if it touches none."""
    n = kinds.shape[0]
    into = np.arange(n).astype(np.int32)
    n_voxels = start.shape[0] - 1
    for r in range(n_voxels + pairs.shape[0]):
        if r < n_voxels:
            v, w = r, r
        else:
            v, w = pairs[r - n_voxels, 0], pairs[r - n_voxels, 1]
        for k in range(start[v], start[v + 1]):
            for j in range(start[w], start[w + 1]):
                a, b = thing[k], thing[j]
                if (kinds[a] == LED) == (kinds[b] == LED):
                    continue
                if kinds[a] != LED:
                    a, b = b, a
                best = into[a]
                if best == a or (_rank(kinds[b]), b) < (_rank(kinds[best]), best):
                    into[a] = b
    return into


@njit(cache=True, error_model="numpy")
def _label(
    pdg, parent, process, head, track, energy, following, pairs,
    delta_size, compton_size, nucleus_size, scatter_size, threshold,
):  # fmt: skip
    """Fragment (root track, -1 LED) of each voxel; class and head of each root; primary of each track."""
    n = pdg.shape[0]
    kind, unit = _first_guess(pdg, parent, process)
    start, thing, total = _gather(head, track, energy, following, unit)
    _absorb_small_tracks(
        pdg,
        parent,
        process,
        kind,
        unit,
        start,
        thing,
        total,
        delta_size,
        nucleus_size,
        scatter_size,
        threshold,
    )
    top = _tops(pdg, parent, kind, unit)
    start, thing, total = _gather(head, track, energy, following, unit)
    root = _join_cascades(kind, unit, top, process, start, thing, pairs)
    start, thing, total = _gather(head, track, energy, following, root)
    kinds = _fragment_kinds(
        pdg, parent, process, kind, unit, root, start, thing, total, compton_size, threshold
    )
    into = _absorb_low_energy(kinds, root, start, thing, pairs)

    fragment = np.full(head.shape[0], -1, dtype=np.int32)
    for v in range(head.shape[0]):
        best = -1
        best_energy = 0.0
        for k in range(start[v], start[v + 1]):
            r = into[thing[k]]
            if kinds[r] == LED:
                continue
            e = 0.0
            for j in range(start[v], start[v + 1]):
                if into[thing[j]] == r:
                    e += total[j]
            if best >= 0:
                a, b = _priority(kinds[r]), _priority(kinds[best])
                if a > b or (a == b and (e < best_energy or (e == best_energy and r >= best))):
                    continue
            best, best_energy = r, e
        fragment[v] = best
    origin = np.arange(n).astype(np.int32)
    for t in range(n):
        if parent[t] >= 0:
            origin[t] = origin[parent[t]]
    return fragment, kinds, top, origin
