"""Views of an event for self-distillation: large global crops and small local crops of it.

Rules and numbers: Panda (Young, Terao, arXiv 2512.01324; public pretraining configuration in
DeepLearnPhysics/pimm), after Sonata (Wu et al., arXiv 2503.16429).

Shape legend: N points of the event, B events, G global and L local views per event.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nufm.data.event import Event, PointBatch
from nufm.data.transforms import EnergyJitter, Transform, compose, view_augmentation


@dataclass(frozen=True)
class Views:
    """The views of one event; ``globals_[0]`` is the principal one."""

    globals_: tuple[Event, ...]
    locals_: tuple[Event, ...]


@dataclass(frozen=True)
class ViewBatch:
    """The views of B events, packed event by event.

    Attributes:
        globals_: B·G views in the order event 0 view 0, event 0 view 1, event 1 view 0, …
        locals_: B·L views in the same order.
        n_global: G.
        n_local: L.
    """

    globals_: PointBatch
    locals_: PointBatch
    n_global: int
    n_local: int

    def __post_init__(self) -> None:
        if self.n_global < 1 or self.globals_.n_events % self.n_global:
            raise ValueError(
                f"{self.globals_.n_events} global views are no multiple of n_global = {self.n_global}"
            )
        if self.locals_.n_events != self.n_events * self.n_local:
            raise ValueError(
                f"{self.locals_.n_events} local views of {self.n_events} events, expected {self.n_local} each"
            )

    @property
    def n_events(self) -> int:
        return self.globals_.n_events // self.n_global

    @property
    def names(self) -> tuple[str, ...]:
        """B names of the events."""
        return self.globals_.names[:: self.n_global]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewBatch:
        return ViewBatch(
            self.globals_.to(device, non_blocking),
            self.locals_.to(device, non_blocking),
            self.n_global,
            self.n_local,
        )

    def pin_memory(self) -> ViewBatch:
        return ViewBatch(self.globals_.pin_memory(), self.locals_.pin_memory(), self.n_global, self.n_local)


def nearest_points(coord: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """int64 (size,) rows of ``coord`` (N, 3) nearest to ``centre`` (3,), in rising order; ties go to the
    lower rows.

    On a lattice ties are common: settling them by row makes the crop independent of how the selection is
        computed.
    """
    n = len(coord)
    if size >= n:
        return np.arange(n)
    shift = coord - centre
    distance = np.einsum("nd,nd->n", shift, shift)
    radius = np.partition(distance, size - 1)[size - 1]
    chosen = distance < radius
    tied = np.flatnonzero(distance == radius)
    chosen[tied[: size - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


@dataclass(frozen=True)
class MultiView:
    """Global and local crops of an event, each augmented on its own.

    A crop is the ``size`` points of the whole event nearest to a centre, size = floor(U(scale) ·
    min(max_points, N)), at least one point. Centres: the first global view anywhere in the event; the other
    global views in the first; local views at points of the first that no earlier local view of the event
    covers (when all are covered, the count starts again). The views of an event without points are without
    points.

    Views keep ``origin`` (coordinates before augmentation), which says which points of two views are the
    same, and carry no labels: nothing in the pretraining may see them.

    Args:
        n_global: G, at least 1.
        n_local: L, may be 0.
        global_scale: range of the share of the points in a global view.
        local_scale: range of the share of the points in a local view.
        max_points: cap on the N that the shares refer to.
        shared: applied once per event, and only its global views see the result; ``None`` = energy jitter, as
            published. Transforms that move points belong in the augmentations.
        global_augment: applied to each global view; ``None`` = as published: centre shift, rotations about
            z, x, y, flips, jitter.
        local_augment: applied to each local view; ``None`` = the same list.
    """

    n_global: int = 2
    n_local: int = 6
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.1, 0.4)
    max_points: int = 30000
    # None rather than the published lists: the YAML of a run cannot show objects that are defaults.
    shared: list[Transform] | None = None
    global_augment: list[Transform] | None = None
    local_augment: list[Transform] | None = None

    def __post_init__(self) -> None:
        if self.n_global < 1 or self.n_local < 0 or self.max_points < 1:
            raise ValueError(
                f"n_global = {self.n_global} must be >= 1, n_local = {self.n_local} >= 0, "
                f"max_points = {self.max_points} >= 1"
            )
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= 1:
                raise ValueError(f"{name} = ({low}, {high}): expected 0 <= low <= high <= 1")

    def __call__(self, event: Event, rng: np.random.Generator) -> Views:
        if event.coord is None or event.feat is None:
            raise ValueError(
                f"{event.name}: 'coord' or 'feat' is not set; apply the event transforms before the views"
            )
        shared = [EnergyJitter()] if self.shared is None else self.shared
        global_augment = view_augmentation() if self.global_augment is None else self.global_augment
        local_augment = view_augmentation() if self.local_augment is None else self.local_augment

        coord = event.coord
        clean = event.replace(
            motif=None, pid=None, particle=None, interaction=None, momentum=None, vertex=None, origin=coord
        )
        jittered = compose(shared, clean, rng)
        if len(jittered) != len(clean):
            raise ValueError(
                f"{event.name}: a shared transform changed the number of points from {len(clean)} to "
                f"{len(jittered)}; views need the same points, so sample points before the views"
            )

        def view(source: Event, rows: np.ndarray, augment: Sequence[Transform]) -> Event:
            cropped = source.select(rows).replace(seed=int(rng.integers(2**63 - 1)))
            return compose(augment, cropped, rng)

        def size(scale: tuple[float, float]) -> int:
            return max(1, math.floor(rng.uniform(*scale) * min(self.max_points, len(coord))))

        if len(coord) == 0:
            nothing = np.zeros(0, dtype=np.int64)
            return Views(
                tuple(view(jittered, nothing, global_augment) for _ in range(self.n_global)),
                tuple(view(clean, nothing, local_augment) for _ in range(self.n_local)),
            )

        principal = nearest_points(coord, coord[rng.integers(len(coord))], size(self.global_scale))
        global_rows = [principal]
        for _ in range(self.n_global - 1):
            global_rows.append(nearest_points(coord, coord[rng.choice(principal)], size(self.global_scale)))

        local_rows = []
        covered = np.zeros(len(coord), dtype=bool)
        for _ in range(self.n_local):
            candidates = principal[~covered[principal]]
            if len(candidates) == 0:
                covered[:] = False
                candidates = principal
            rows = nearest_points(coord, coord[rng.choice(candidates)], size(self.local_scale))
            covered[rows] = True
            local_rows.append(rows)

        return Views(
            tuple(view(jittered, rows, global_augment) for rows in global_rows),
            tuple(view(clean, rows, local_augment) for rows in local_rows),
        )


def collate_views(samples: Sequence[Views], grid_size: float) -> ViewBatch:
    """Pack the views of several events.

    Args:
        samples: the views of B >= 1 events, all with the same numbers of views.
        grid_size: edge of a lattice cell in the units of ``coord``.
    """
    n_global, n_local = len(samples[0].globals_), len(samples[0].locals_)
    globals_ = PointBatch.from_events([view for s in samples for view in s.globals_], grid_size)
    if n_local:
        locals_ = PointBatch.from_events([view for s in samples for view in s.locals_], grid_size)
    else:
        locals_ = globals_.select([])
    return ViewBatch(globals_, locals_, n_global, n_local)
