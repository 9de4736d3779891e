"""Augmentations of single particles in crops; their hand-crafted numbers turn and move with them.

They act on hits in voxels, before :class:`nufm.data.stream_transforms.StandardizeStreams` or after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nufm.data.detector import load_stream_detector
from nufm.data.particles import COLUMNS, STREAM, edge_share
from nufm.data.streams import StreamEvent
from nufm.data.transforms import Transform

POSITIONS, DIRECTIONS, SIZES = ("centroid", "start"), ("direction",), ("box",)


@dataclass(frozen=True)
class TurnParticle(Transform):
    """One of the rotations and reflections that change ``axes`` among themselves and their signs; all are as probable.
    (0, 1, 2): the 48 symmetries of the cube, for a crop that is one (SuperFGD); (0, 1): the 8 of the square (PILArNet,
    whose drift direction stays).

    Args:
        axes: numbers of the axes.
        p: probability that the event is changed at all.

    Raises:
        ValueError: the crop has not the same length along these axes.
    """

    axes: tuple[int, ...] = (0, 1, 2)
    p: float = 1.0

    def __call__(self, event: StreamEvent, rng: np.random.Generator) -> StreamEvent:
        if rng.random() >= self.p or STREAM not in event.voxels:
            return event
        lattice = np.array(load_stream_detector(event.detector).voxels[STREAM].lattice)
        if len(set(lattice[list(self.axes)])) != 1:
            raise ValueError(
                f"{event.name}: TurnParticle of the axes {list(self.axes)}, but the crop of '{event.detector}' has "
                f"{lattice.tolist()} voxels; name axes of equal length, (0, 1) for PILArNet"
            )
        order, flip = np.arange(3), np.zeros(3, dtype=bool)
        order[list(self.axes)] = rng.permutation(self.axes)
        flip[list(self.axes)] = rng.random(len(self.axes)) < 0.5
        hits = event.voxels[STREAM]
        index = hits.index[:, order]
        index = np.where(flip, lattice - 1 - index, index).astype(np.int32)
        extra = None if event.extra is None else turned(event.extra, event.detector, order, flip)
        return event.replace(voxels={**event.voxels, STREAM: hits.replace(index=index)}, extra=extra)


@dataclass(frozen=True)
class ShiftParticle(Transform):
    """All hits move by the same whole number of voxels along each axis, uniform in ±reach as far as they stay in the
    crop.

    Args:
        reach: voxels along x, y, z; published: 6, 6, 6 (SuperFGD) and 6, 6, 5 (PILArNet).
        p: probability that the event is changed at all.
    """

    reach: tuple[int, ...] = (6, 6, 6)
    p: float = 1.0

    def __call__(self, event: StreamEvent, rng: np.random.Generator) -> StreamEvent:
        hits = event.voxels.get(STREAM)
        if rng.random() >= self.p or hits is None or len(hits) == 0:
            return event
        lattice = np.array(load_stream_detector(event.detector).voxels[STREAM].lattice)
        low = np.maximum(-np.array(self.reach), -hits.index.min(0))
        high = np.minimum(self.reach, lattice - 1 - hits.index.max(0))
        shift = rng.integers(low, high + 1)
        hits = hits.replace(index=(hits.index + shift).astype(np.int32))
        extra = None if event.extra is None else shifted(event.extra, event.detector, shift, lattice, hits.index)
        return event.replace(voxels={**event.voxels, STREAM: hits}, extra=extra)


def turned(extra: np.ndarray, detector: str, order: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """The numbers (31,) of a particle whose new axis i is its old axis ``order[i]``, reversed where ``flip[i]``."""
    columns, made = COLUMNS[detector], extra.copy()
    for name in (*POSITIONS, *DIRECTIONS, *SIZES):
        rows = [columns.index(f"{name}_{axis}") for axis in "xyz"]
        values = extra[rows][order]
        if name in POSITIONS:
            values = np.where(flip, 1 - values, values)
        elif name in DIRECTIONS:
            values = np.where(flip, -values, values)
        made[rows] = values
    if "wall_low_x" in columns:
        rows = [[columns.index(f"wall_{side}_{axis}") for side in ("low", "high")] for axis in "xyz"]
        walls = extra[np.array(rows)][order]
        made[np.array(rows)] = np.where(flip[:, None], walls[:, ::-1], walls)
    return made


def shifted(
    extra: np.ndarray, detector: str, shift: np.ndarray, lattice: np.ndarray, index: np.ndarray
) -> np.ndarray:
    """The numbers (31,) of a particle that moved by ``shift`` (3,) voxels in its crop to ``index`` (N, 3): its crop was
    cut out as far on the other side. A crop that would reach beyond the volume is at its wall: the shares of the way to
    the walls stay in [0, 1]. Numbers of PILArNet are those of the whole volume and stay."""
    columns, made = COLUMNS[detector], extra.copy()
    if "wall_low_x" not in columns:
        return made
    volume = np.array(load_stream_detector(f"{detector}_volume").voxels[STREAM].lattice)
    for name in POSITIONS:
        rows = [columns.index(f"{name}_{axis}") for axis in "xyz"]
        made[rows] += shift / (lattice - 1)
    made[columns.index("at_edge")] = edge_share(index, lattice)
    moved = shift / (volume - lattice)
    for side, sign in (("low", -1), ("high", 1)):
        rows = [columns.index(f"wall_{side}_{axis}") for axis in "xyz"]
        made[rows] = np.clip(made[rows] + sign * moved, 0.0, 1.0)
    return made
