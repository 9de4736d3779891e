"""Events written by hand, step by step, for the tests of voxels and labels."""

from __future__ import annotations

import numpy as np

from nufm.simulation.transport import Process, Transported
from nufm.simulation.truth import LabelRules, Truth, make_truth
from nufm.simulation.voxels import Lattice, Recombination

LATTICE = Lattice(size=(64, 64, 64), pitch=3.0)
DENSITY = 1.396


class Sketch:
    """Collects tracks and steps; positions are given in voxels, (0, 0, 0) being the corner of the lattice."""

    def __init__(self, lattice: Lattice = LATTICE) -> None:
        self.lattice = lattice
        self.tracks: list[tuple[int, int, int, float, np.ndarray]] = []
        self.steps: list[tuple[int, np.ndarray, np.ndarray, float, float]] = []

    def millimetres(self, position) -> np.ndarray:
        return np.asarray(position, dtype=float) * self.lattice.pitch - self.lattice.high

    def track(
        self, pdg: int, parent: int = -1, process: Process = Process.PRIMARY, momentum=100.0, at=(0, 0, 0)
    ) -> int:
        self.tracks.append((pdg, parent, int(process), momentum, self.millimetres(at)))
        return len(self.tracks) - 1

    def step(self, track: int, start, end, energy: float, time: float = 0.0) -> None:
        self.steps.append((track, self.millimetres(start), self.millimetres(end), energy, time))

    def fill(self, track: int, voxels, energy: float = 1.0) -> None:
        """A deposit of ``energy`` in the middle of each of the voxels."""
        for voxel in voxels:
            middle = np.asarray(voxel, dtype=float) + 0.5
            self.step(track, middle, middle, energy)

    def transported(self) -> Transported:
        n = len(self.tracks)
        pdg, parent, process, momentum, position = zip(*self.tracks, strict=True) if n else ((),) * 5
        track, start, end, energy, time = zip(*self.steps, strict=True) if self.steps else ((),) * 5
        return Transported(
            step_track=np.array(track, dtype=np.int32),
            step_start=np.array(start, dtype=np.float32).reshape(-1, 3),
            step_end=np.array(end, dtype=np.float32).reshape(-1, 3),
            step_energy=np.array(energy, dtype=np.float32),
            step_time=np.array(time, dtype=np.float32),
            track_pdg=np.array(pdg, dtype=np.int32),
            track_parent=np.array(parent, dtype=np.int32),
            track_process=np.array(process, dtype=np.int8),
            track_kinetic=np.array(momentum, dtype=float),
            track_momentum=np.array(momentum, dtype=float),
            track_position=np.array(position, dtype=float).reshape(-1, 3),
            track_direction=np.tile([0.0, 0.0, 1.0], (n, 1)),
            track_time=np.zeros(n),
            kinetic_in=0.0,
            released=0.0,
            deposited=float(np.sum(energy)),
            escaped=0.0,
        )

    def truth(self, interaction=None, **rules) -> Truth:
        tr = self.transported()
        primaries = int((tr.track_parent < 0).sum())
        ids = np.zeros(primaries, dtype=int) if interaction is None else np.asarray(interaction)
        return make_truth(tr, ids, self.lattice, DENSITY, LabelRules(**rules), Recombination())


def line(start, n: int, direction=(1, 0, 0)) -> list[tuple[int, int, int]]:
    """n voxels in a row."""
    return [tuple(np.asarray(start) + k * np.asarray(direction)) for k in range(n)]


def labels(truth: Truth) -> dict[tuple[int, int, int], tuple[int, int]]:
    """Voxel -> (motif, particle id)."""
    rows = np.repeat(truth.cluster, truth.cluster[:, 0], axis=0)
    return {
        tuple(point[:3].astype(int)): (int(row[4]), int(row[2]))
        for point, row in zip(truth.point, rows, strict=True)
    }


def motifs(truth: Truth, voxels) -> set[int]:
    """Motifs of the given voxels."""
    found = labels(truth)
    return {found[tuple(int(i) for i in voxel)][0] for voxel in voxels}
