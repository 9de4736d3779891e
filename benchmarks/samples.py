"""Events that the speed benchmarks run on: simulated by nufm into the cache, and the genuine one of the tests.

Shape legend: N points, B events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nufm.data.event import Event, PointBatch
from nufm.data.pilarnet import PILArNetReader
from nufm.data.transforms import compose, event_transforms
from nufm.ops.pool import pool_cells
from nufm.simulation.dataset import ensure_dataset

GENUINE = Path(__file__).parents[1] / "tests" / "data" / "pilarnet_m_event.h5"
EVENTS = 256  # about 1.2 million voxels, a few seconds of simulation
SEED = 0
LEAST = 1024  # voxels of the smallest event
ENERGY_CUT = 0.13  # MeV, of Panda
PANDA_CELL = 0.001  # edge of a lattice cell in normalised coordinates, of Panda


@dataclass(frozen=True)
class Points:
    """Packed lattice points.

    Attributes:
        grid: int64 (N, 3).
        offsets: int64 (B+1,) from 0 to N.
    """

    grid: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.grid)

    def to(self, device: torch.device) -> Points:
        return Points(self.grid.to(device), self.offsets.to(device))


@cache
def simulated(n_events: int = EVENTS, energy_cut: float = -1.0) -> tuple[Event, ...]:
    """The first simulated events, in order; without an energy cut unless one is given."""
    folder = ensure_dataset({"train": max(n_events, EVENTS)}, seed=SEED)
    reader = PILArNetReader(folder / "train", energy_threshold=energy_cut, min_points=0, max_events=n_events)
    return tuple(reader[i] for i in range(n_events))


def genuine(energy_cut: float = ENERGY_CUT) -> Event:
    """The one genuine PILArNet-M event that the tests carry."""
    return PILArNetReader(GENUINE, energy_threshold=energy_cut, min_points=0)[0]


def pack(events: Sequence[Event]) -> Points:
    """Voxels of events, each counted from its own corner."""
    counts = np.cumsum([0, *(len(e) for e in events)])
    grid = np.concatenate([e.voxel - e.voxel.min(0, initial=2**30) for e in events]).astype(np.int64)
    return Points(torch.from_numpy(grid), torch.from_numpy(counts))


def about(n: int) -> Points:
    """Whole events with about ``n`` voxels in all: the first ones, and one that makes up for the rest.

    Crops would have other neighbours than events, and a growth would be measured between the two.
    """
    pool, chosen, left = list(simulated()), [], n
    while pool and len(pool[0]) <= left - LEAST:
        left -= len(pool[0])
        chosen.append(pool.pop(0))
    if not pool:
        raise ValueError(f"{n} voxels asked for, {EVENTS} simulated events have {n - left}; raise EVENTS")
    return pack([*chosen, min(pool, key=lambda event: abs(len(event) - left))])


def panda_batch(events: Sequence[Event]) -> PointBatch:
    """Events above 0.13 MeV as Panda's encoder takes them: normalised, on its lattice."""
    rng = np.random.default_rng(SEED)  # for the transforms' signature: those of an event draw nothing
    done = [compose(event_transforms(PANDA_CELL), e.select(e.energy > ENERGY_CUT), rng) for e in events]
    return PointBatch.from_events(done, PANDA_CELL)


def panda_points(events: Sequence[Event]) -> Points:
    """The lattice points of :func:`panda_batch`."""
    batch = panda_batch(events)
    return Points(batch.grid, batch.offsets)


def halved(points: Points, n: int) -> list[Points]:
    """``n`` resolutions, each half as fine as the one before."""
    levels = [points]
    for _ in range(n - 1):
        last = levels[-1]
        pooled = pool_cells(last.grid, last.offsets)
        levels.append(Points(pooled.grid, pooled.offsets))
    return levels


def events_of_sizes(published: Sequence[int]) -> list[Event]:
    """Nested batches of 1, 2, 4, … events whose totals come close to the ``published`` ones.

    Batch b is the first 2^b of the events returned. No event is cut: each is the unused one whose size is nearest to
    what is left, shared out evenly.
    """
    pool = list(simulated())
    chosen: list[Event] = []
    for batch, total in enumerate(published):
        while len(chosen) < 2**batch:
            wanted = (total - sum(len(e) for e in chosen)) / (2**batch - len(chosen))
            chosen.append(pool.pop(min(range(len(pool)), key=lambda i: abs(len(pool[i]) - wanted))))
    return chosen
