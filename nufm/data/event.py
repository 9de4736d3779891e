"""What an event is, and what a batch of events is.

Shape legend: N points (voxels), C feature columns, B events in a batch, D = 3 space dimensions.

An :class:`Event` lives on the CPU in NumPy, before and during the transforms. A :class:`PointBatch` is
several events packed end to end in torch tensors, told apart by ``offsets`` (B+1,), the ``cu_seqlens``
convention. Both are frozen: a change makes a new object (``replace``). Labels use -1 for "ignore" everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

POINT_LABELS = ("motif", "pid", "particle", "interaction")

# Semantic classes of PILArNet-M (reference: PILArNet-M data card; SPINE shape enum).
MOTIF_NAMES = ("shower", "track", "Michel", "delta", "LED")
PID_NAMES = ("photon", "electron", "muon", "pion", "proton", "none")


@dataclass(frozen=True)
class Event:
    """One detector event.

    Attributes:
        voxel: int32 (N, 3) lattice index.
        energy: float32 (N,) deposited energy in MeV.
        motif: int64 (N,) 0 shower, 1 track, 2 Michel, 3 delta, 4 low-energy deposit (LED), -1 ignore.
        pid: int64 (N,) 0 photon, 1 electron, 2 muon, 3 pion, 4 proton, 5 none, -1 ignore.
        particle: int64 (N,) particle (group) instance, 0..n-1 within the event, -1 none.
        interaction: int64 (N,) interaction instance, 0..n-1 within the event, -1 none.
        momentum: float32 (N,) momentum of the point's particle in GeV/c, -1 unknown.
        vertex: float32 (N, 3) creation point of the point's particle in mm from the detector centre.
        coord: float32 (N, 3) coordinates the model sees, set by transforms (dimensionless); None before.
        origin: float32 (N, 3) coordinates before augmentation, kept by views to match points, and for the published
            lattice of fine-tuning; None otherwise.
        feat: float32 (N, C) further feature columns set by transforms; None before.
        columns: names of the C feature columns.
        detector: name of a file in ``nufm/data/detectors``.
        name: where the event comes from, ``file.h5#index``, used in messages.
        seed: seed of the event's own random stream; 0 if there is none.

    Raises:
        ValueError: a field has the wrong shape or length, an energy is NaN, infinite or negative.
    """

    voxel: np.ndarray
    energy: np.ndarray
    motif: np.ndarray | None = None
    pid: np.ndarray | None = None
    particle: np.ndarray | None = None
    interaction: np.ndarray | None = None
    momentum: np.ndarray | None = None
    vertex: np.ndarray | None = None
    coord: np.ndarray | None = None
    origin: np.ndarray | None = None
    feat: np.ndarray | None = None
    columns: tuple[str, ...] = ()
    detector: str = "pilarnet"
    name: str = "event"
    seed: int = 0

    def __post_init__(self) -> None:
        n = len(self.voxel)
        expected = {"voxel": (n, 3), "vertex": (n, 3), "coord": (n, 3), "origin": (n, 3)}
        for field in ("voxel", "energy", *POINT_LABELS, "momentum", "vertex", "coord", "origin"):
            value = getattr(self, field)
            if value is None:
                continue
            want = expected.get(field, (n,))
            if value.shape != want:
                raise ValueError(f"{self.name}: field '{field}' has shape {value.shape}, expected {want}")
        if not np.issubdtype(self.voxel.dtype, np.integer):
            raise ValueError(
                f"{self.name}: field 'voxel' has dtype {self.voxel.dtype}, expected an integer lattice index"
            )
        if self.feat is not None and self.feat.shape != (n, len(self.columns)):
            raise ValueError(
                f"{self.name}: field 'feat' has shape {self.feat.shape}, expected {(n, len(self.columns))} "
                f"for the columns {self.columns}"
            )
        bad = ~np.isfinite(self.energy) | (self.energy < 0)
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"{self.name}: field 'energy' of point {i} is {self.energy[i]}, "
                "expected a finite value >= 0 MeV"
            )

    def __len__(self) -> int:
        return len(self.voxel)

    def replace(self, **changes: object) -> Event:
        return dataclasses.replace(self, **changes)

    def select(self, index: np.ndarray) -> Event:
        """The points ``index`` (boolean mask or integers), in that order."""
        point_fields = ("voxel", "energy", *POINT_LABELS, "momentum", "vertex", "coord", "origin", "feat")
        return self.replace(**{f: v[index] for f in point_fields if (v := getattr(self, f)) is not None})


@dataclass(frozen=True)
class PointBatch:
    """B events packed end to end.

    Attributes:
        coord: float (N, 3) coordinates the model sees.
        grid: int64 (N, 3) lattice cells of ``coord``, >= 0, minimum 0 within each event.
        feat: float (N, C) model input, one column per name in ``columns``.
        offsets: int64 (B+1,) from 0 to N; event b holds the rows offsets[b]:offsets[b+1].
        columns: names of the feature columns.
        origin: float (N, 3) coordinates before augmentation, or None.
        labels: name -> int64 (N,), -1 = ignore; also ``momentum``, float32 (N,) GeV/c of the point's particle, -1
            unknown.
        seeds: int64 (B,) seed of each event's own random stream.
        names: B event names for messages.
        grid_size: edge of a lattice cell in the units of ``coord``.
    """

    coord: Tensor
    grid: Tensor
    feat: Tensor
    offsets: Tensor
    columns: tuple[str, ...] = ()
    origin: Tensor | None = None
    labels: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    seeds: Tensor | None = None
    names: tuple[str, ...] = ()
    grid_size: float = 0.0

    def __post_init__(self) -> None:
        n = len(self.coord)
        if self.offsets.dtype != torch.int64 or self.offsets.dim() != 1 or len(self.offsets) < 1:
            raise ValueError(
                f"offsets must be int64 (B+1,), found {self.offsets.dtype} {tuple(self.offsets.shape)}"
            )
        for field in ("grid", "feat", "origin"):
            value = getattr(self, field)
            if value is not None and len(value) != n:
                raise ValueError(f"'{field}' has {len(value)} rows, 'coord' has {n}")
        for name, value in self.labels.items():
            if len(value) != n:
                raise ValueError(f"label '{name}' has {len(value)} rows, 'coord' has {n}")
        if self.grid.dtype != torch.int64:
            raise ValueError(f"'grid' has dtype {self.grid.dtype}, expected int64")
        if self.columns and self.feat.shape[1] != len(self.columns):
            raise ValueError(
                f"'feat' has {self.feat.shape[1]} columns, expected {len(self.columns)}: {self.columns}"
            )
        if self.offsets.device.type == "cpu":  # on a GPU this check would wait for the device
            if (
                int(self.offsets[0]) != 0
                or int(self.offsets[-1]) != n
                or bool((self.offsets.diff() < 0).any())
            ):
                raise ValueError(f"offsets must rise from 0 to N = {n}, found {self.offsets.tolist()[:8]}…")

    @property
    def n_events(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Tensor:
        """int64 (B,) points per event."""
        return self.offsets.diff()

    @property
    def event_index(self) -> Tensor:
        """int64 (N,) which event each point belongs to."""
        index = torch.arange(self.n_events, device=self.offsets.device)
        return index.repeat_interleave(self.counts, output_size=len(self.coord))

    def __len__(self) -> int:
        return len(self.coord)

    def replace(self, **changes: object) -> PointBatch:
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PointBatch:
        def move(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, dict):
                return {k: move(v) for k, v in value.items()}
            return value

        return self.replace(**{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def pin_memory(self) -> PointBatch:
        def pin(value: object) -> object:
            if isinstance(value, Tensor):
                return value.pin_memory()
            if isinstance(value, dict):
                return {k: pin(v) for k, v in value.items()}
            return value

        return self.replace(**{f.name: pin(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def select(self, events: Sequence[int]) -> PointBatch:
        """The events numbered ``events``, in that order."""
        counts, offsets = self.counts, self.offsets
        events = [int(e) for e in events]
        rows = [torch.arange(int(offsets[e]), int(offsets[e + 1]), device=offsets.device) for e in events]
        index = torch.cat(rows) if rows else offsets.new_zeros(0)
        return self.replace(
            coord=self.coord[index],
            grid=self.grid[index],
            feat=self.feat[index],
            offsets=offsets_from_counts(counts[events]),
            origin=None if self.origin is None else self.origin[index],
            labels={k: v[index] for k, v in self.labels.items()},
            seeds=None if self.seeds is None else self.seeds[events],
            names=tuple(self.names[e] for e in events) if self.names else (),
        )

    def split(self) -> list[PointBatch]:
        """B batches of one event each."""
        return [self.select([b]) for b in range(self.n_events)]

    @classmethod
    def from_events(
        cls, events: Sequence[Event], grid_size: float, lattice: Literal["coord", "origin"] = "coord"
    ) -> PointBatch:
        """Pack transformed events; the model input is x, y, z followed by the events' own feature columns.

        Args:
            events: each with ``coord`` and ``feat`` set, all with the same columns.
            grid_size: edge of a lattice cell in the units of ``coord``; cells count from each event's own
                minimum, so that an event's lattice does not depend on its batch mates.
            lattice: which coordinates the cells are made of: those the model sees, or those before augmentation.

        Raises:
            ValueError: no events, an event that was not transformed, or differing columns.
        """
        if not events:
            raise ValueError(
                "cannot pack an empty list of events; an event without points is legal, "
                "a batch without events is not"
            )
        columns = events[0].columns
        for event in events:
            if event.coord is None or event.feat is None:
                raise ValueError(
                    f"{event.name}: 'coord' or 'feat' is not set; apply the transforms before packing"
                )
            if event.columns != columns:
                raise ValueError(
                    f"{event.name}: feature columns {event.columns}, expected {columns} as in "
                    f"{events[0].name}"
                )
        coord = np.concatenate([e.coord for e in events]).astype(np.float32, copy=False)
        feat = np.concatenate([e.feat for e in events]).astype(np.float32, copy=False)
        if lattice == "origin" and any(e.origin is None for e in events):
            raise ValueError(f"{events[0].name}: 'origin' is not set, from which the lattice was to be made")
        position = [e.origin if lattice == "origin" else e.coord for e in events]
        cells = [np.floor(p / grid_size).astype(np.int64) for p in position]
        # minimum over a copy with contiguous axes: NumPy is ten times slower along the first of two axes
        grid = np.concatenate([c - c.T.copy().min(1) if len(c) else c for c in cells])
        labels = {}
        for name in POINT_LABELS:
            if all(getattr(e, name) is not None for e in events):
                labels[name] = torch.from_numpy(
                    np.concatenate([getattr(e, name) for e in events]).astype(np.int64)
                )
        if all(e.momentum is not None for e in events):
            labels["momentum"] = torch.from_numpy(np.concatenate([e.momentum for e in events]).astype(np.float32))
        has_origin = all(e.origin is not None for e in events)
        return cls(
            coord=torch.from_numpy(coord),
            grid=torch.from_numpy(grid),
            feat=torch.from_numpy(np.concatenate([coord, feat], axis=1)),
            offsets=offsets_from_counts(torch.tensor([len(e) for e in events])),
            columns=("x", "y", "z", *columns),
            origin=torch.from_numpy(np.concatenate([e.origin for e in events])) if has_origin else None,
            labels=labels,
            seeds=torch.tensor([e.seed for e in events], dtype=torch.int64),
            names=tuple(e.name for e in events),
            grid_size=grid_size,
        )


def offsets_from_counts(counts: Tensor) -> Tensor:
    """int64 (B+1,) offsets from the (B,) numbers of points per event."""
    return torch.cat([counts.new_zeros(1, dtype=torch.int64), counts.to(torch.int64).cumsum(0)])
