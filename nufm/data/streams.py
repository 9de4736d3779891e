"""An event of several sub-detectors, each a stream of its own kind, and a batch of such events.

Three kinds of stream, as the detector's file in ``nufm/data/detectors`` lists them:

    voxels    sparse hits on a lattice, or on one lattice per module
    matrix    a small dense array, one per event
    tracks    a list of fitted tracks, so many numbers each

A stream that was not read out is missing: its name is not there. A stream without hits or tracks is empty: its arrays
have no rows. Both are legal in any event, and an event may have nothing at all.

Shape legend: N hits of a stream, M modules, T tracks, F features of a track, B events in a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nufm.data.detector import StreamDetector, load_stream_detector
from nufm.data.event import offsets_from_counts

# Classes in the order of their numbers (FASERCal talk, NPML 2026; the order of the public code differs).
FLAVOUR_NAMES = ("νµ CC", "νe CC", "ντ CC → e", "ντ CC → µ", "ντ CC → had", "NC")
CHARM_NAMES = ("no charm", "charm → e", "charm → µ", "charm → had")
HIERARCHY_NAMES = ("background", "primary", "secondary")
CATEGORY_NAMES = ("electromagnetic", "muonic", "hadronic")

# Truth of an event: name -> (shape, kind, unit). Class numbers are int64, -1 unknown; the rest float32, NaN unknown.
TRUTH: dict[str, tuple[tuple[int, ...], type, str]] = {
    "flavour": ((), np.int64, ""),
    "charm": ((), np.int64, ""),
    "particle": ((), np.int64, ""),
    "visible": ((3,), np.float32, "GeV/c"),
    "jet": ((3,), np.float32, "GeV/c"),
    "lepton": ((3,), np.float32, "GeV/c"),
    "vertex": ((3,), np.float32, "mm"),
    "neutrino_energy": ((), np.float32, "GeV"),
}
CLASSES = {"flavour": FLAVOUR_NAMES, "charm": CHARM_NAMES}  # truths that are numbers of these
SLACK = 1e-3  # rounding of shares in half precision
HIT_TRUTH = {"ghost": (), "hierarchy": (3,), "category": (3,)}  # shape behind N


@dataclass(frozen=True)
class Hits:
    """Hits of one stream of one event.

    Attributes:
        index: int32 (N, 3) voxel within its module.
        module: int32 (N,) module, 0..M-1.
        charge: float32 (N,) raw charge, MeV-like; whatever the transforms made of it after them.
        ghost: int8 (N,) 0 real, 1 ghost (no true deposit: an ambiguity of the projections), 2 not a ghost but
            unmatched; None if unknown.
        hierarchy: float32 (N, 3) soft shares of ``HIERARCHY_NAMES`` that sum to 1, a row of 0 where there is no label
            (ghosts); None if unknown.
        category: float32 (N, 3) the same for ``CATEGORY_NAMES``.
    """

    index: np.ndarray
    module: np.ndarray
    charge: np.ndarray
    ghost: np.ndarray | None = None
    hierarchy: np.ndarray | None = None
    category: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)

    def replace(self, **changes: object) -> Hits:
        return self._placed_like(dataclasses.replace(self, **changes), {"index", "module"}.isdisjoint(changes))

    def select(self, rows: np.ndarray) -> Hits:
        """The hits ``rows`` (boolean mask or integers), in that order."""
        mask = rows.dtype == bool
        rows = np.flatnonzero(rows) if mask else rows  # take is several times faster than a mask
        taken = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return self._placed_like(Hits(**{k: None if v is None else v.take(rows, 0) for k, v in taken.items()}), mask)

    def _placed_like(self, other: Hits, same: bool) -> Hits:
        """``other``, whose voxels need no second check if they are some of this one's, each once: transforms make
        several events of one, and checking thousands of voxels takes longer than most of them."""
        if same:
            object.__setattr__(other, "_placed_in", getattr(self, "_placed_in", None))
        return other


@dataclass(frozen=True)
class StreamEvent:
    """One event of a detector with several streams.

    Attributes:
        voxels: stream -> its hits.
        matrices: stream -> float32 of the stream's shape.
        tracks: stream -> float32 (T, F), columns as the detector names them.
        truth: some of ``TRUTH``, as NumPy arrays.
        extra: float32 (E,) hand-crafted numbers that a network takes beside the streams; None if there are none.
        detector: name of a file in ``nufm/data/detectors``.
        name: where the event comes from, used in messages.
        seed: seed of the event's own random stream.

    Raises:
        ValueError: a stream that the detector does not have, a wrong shape, a module or voxel beyond the detector, a
            voxel that is hit twice, a class, flag or share that does not exist, values that are not finite, tracks
            with other features, more tracks than the detector gives.
    """

    voxels: Mapping[str, Hits] = field(default_factory=dict)
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)
    tracks: Mapping[str, np.ndarray] = field(default_factory=dict)
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)
    extra: np.ndarray | None = None
    detector: str = "fasercal"
    name: str = "event"
    seed: int = 0

    def __post_init__(self) -> None:
        geometry = load_stream_detector(self.detector)
        for kind, known in (("voxels", geometry.voxels), ("matrices", geometry.matrices), ("tracks", geometry.tracks)):
            if unknown := set(getattr(self, kind)) - set(known):
                raise ValueError(
                    f"{self.name}: stream '{min(unknown)}' among the {kind}, the detector '{self.detector}' has "
                    f"{', '.join(known) or 'none of that kind'}"
                )
        for stream, hits in self.voxels.items():
            _check_hits(hits, geometry, stream, self.name)
        for stream, values in self.matrices.items():
            _check_shape(values, geometry.matrices[stream].shape, self.name, stream, "values")
            _check_finite(values, self.name, stream, "values", "MeV")
        for stream, rows in self.tracks.items():
            wanted = geometry.tracks[stream]
            if rows.ndim != 2 or rows.shape[1] != len(wanted.features):
                raise ValueError(
                    f"{self.name}: stream '{stream}', field 'tracks' has shape {rows.shape}, expected (T, "
                    f"{len(wanted.features)}): {', '.join(wanted.features)}"
                )
            if len(rows) > wanted.max_tracks:
                raise ValueError(
                    f"{self.name}: stream '{stream}' has {len(rows)} tracks, expected at most {wanted.max_tracks}; "
                    "keep the longest"
                )
            _check_finite(rows, self.name, stream, "tracks", "numbers")
        for name, value in self.truth.items():
            if name not in TRUTH:
                raise ValueError(f"{self.name}: unknown truth '{name}', expected some of {', '.join(TRUTH)}")
            _check_shape(np.asarray(value), TRUTH[name][0], self.name, "truth", name)
            if name in CLASSES and not -1 <= int(value) < len(CLASSES[name]):
                raise ValueError(
                    f"{self.name}: truth '{name}' is {int(value)}, expected a class 0 … {len(CLASSES[name]) - 1}, or "
                    "-1 if it is not known"
                )
        if self.extra is not None:
            _check_finite(self.extra, self.name, "extra", "values", "numbers")

    @property
    def n_hits(self) -> int:
        """Hits of all voxel streams."""
        return sum(map(len, self.voxels.values()))

    def replace(self, **changes: object) -> StreamEvent:
        return dataclasses.replace(self, **changes)

    def without(self, stream: str) -> StreamEvent:
        """The event as if ``stream`` had not been read out."""
        kinds = ("voxels", "matrices", "tracks")
        return self.replace(**{k: {n: v for n, v in getattr(self, k).items() if n != stream} for k in kinds})


def _check_hits(hits: Hits, geometry: StreamDetector, stream: str, name: str) -> None:
    wanted, n = geometry.voxels[stream], len(hits.index)
    shapes = {"index": (n, 3), "module": (n,), "charge": (n,)} | {k: (n, *s) for k, s in HIT_TRUTH.items()}
    for attribute, shape in shapes.items():
        value = getattr(hits, attribute)
        if value is not None:
            _check_shape(value, shape, name, stream, attribute)
    for attribute in ("index", "module"):
        if not np.issubdtype(getattr(hits, attribute).dtype, np.integer):
            raise ValueError(
                f"{name}: stream '{stream}', field '{attribute}' has dtype {getattr(hits, attribute).dtype}, expected "
                "integers"
            )
    if n == 0:
        return
    _check_finite(hits.charge, name, stream, "charge", "MeV")
    if getattr(hits, "_placed_in", None) == (geometry.name, stream):
        return
    for attribute, value, limit in (
        ("module", hits.module[:, None], (wanted.modules,)),
        ("index", hits.index, wanted.lattice),
    ):
        if all(column.min() >= 0 and column.max() < most for column, most in zip(value.T, limit, strict=True)):
            continue
        row = int(np.argmax(((value < 0) | (value >= np.array(limit))).any(1)))
        allowed = " × ".join(f"0 … {m - 1}" for m in limit)
        raise ValueError(
            f"{name}: stream '{stream}', field '{attribute}' of hit {row} is {value[row].tolist()}, expected "
            f"{allowed} as in the detector '{geometry.name}'"
        )
    flat = np.ravel_multi_index((hits.module, *hits.index.T), (wanted.modules, *wanted.lattice))
    if (np.diff(np.sort(flat)) == 0).any():
        row = int(np.setdiff1d(np.arange(n), np.unique(flat, return_index=True)[1])[0])
        raise ValueError(
            f"{name}: stream '{stream}', field 'index': voxel {hits.index[row].tolist()} of module {hits.module[row]} "
            f"is hit twice (hit {row}), expected each voxel once; add the charges up"
        )
    for attribute, most in (("ghost", 2), ("hierarchy", 1 + SLACK), ("category", 1 + SLACK)):
        value = getattr(hits, attribute)
        if value is not None and not (value.min() >= 0 and value.max() <= most):  # NaN compares false
            row = int(np.argmax(~((value >= 0) & (value <= most)).reshape(n, -1).all(1)))
            raise ValueError(
                f"{name}: stream '{stream}', field '{attribute}' of hit {row} is {value[row].tolist()}, expected "
                f"{'a flag 0, 1 or 2' if attribute == 'ghost' else 'shares from 0 to 1'}"
            )
    object.__setattr__(hits, "_placed_in", (geometry.name, stream))


def _check_shape(value: np.ndarray, shape: tuple[int, ...], name: str, stream: str, attribute: str) -> None:
    if value.shape != tuple(shape):
        raise ValueError(
            f"{name}: stream '{stream}', field '{attribute}' has shape {value.shape}, expected {tuple(shape)}"
        )


def _check_finite(value: np.ndarray, name: str, stream: str, attribute: str, unit: str) -> None:
    bad = ~np.isfinite(value)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: stream '{stream}', field '{attribute}' at {list(place)} is {value[place]}, expected finite {unit}"
        )


# ---------------------------------------------------------------------- batches


@dataclass(frozen=True)
class HitBatch:
    """Hits of one stream of B events, packed end to end.

    Attributes:
        index: int64 (N, 3) voxel within its module.
        module: int64 (N,).
        charge: float32 (N,) after the transforms.
        offsets: int64 (B+1,); event b holds the rows offsets[b]:offsets[b+1]. A missing stream has none.
        labels: ``ghost`` int64 (N,), ``hierarchy`` and ``category`` float32 (N, 3), those that all events have.
    """

    index: Tensor
    module: Tensor
    charge: Tensor
    offsets: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def n_events(self) -> int:
        return len(self.offsets) - 1

    @property
    def event(self) -> Tensor:
        """int64 (N,) event of each hit."""
        number = torch.arange(self.n_events, device=self.offsets.device)
        return number.repeat_interleave(self.offsets.diff(), output_size=len(self))

    def replace(self, **changes: object) -> HitBatch:
        return dataclasses.replace(self, **changes)

    def select(self, rows: Tensor, offsets: Tensor) -> HitBatch:
        """The hits ``rows``, which are those of events with ``offsets``."""
        labels = {k: v[rows] for k, v in self.labels.items()}
        return HitBatch(self.index[rows], self.module[rows], self.charge[rows], offsets, labels)


@dataclass(frozen=True)
class MatrixBatch:
    """A dense stream of B events. values: float32 (B, cells), rows of 0 where ``present`` bool (B,) is false."""

    values: Tensor
    present: Tensor


@dataclass(frozen=True)
class TrackBatch:
    """Tracks of B events, packed. feat: float32 (T, F); offsets: int64 (B+1,); present: bool (B,) whether the stream
    was read out at all."""

    feat: Tensor
    offsets: Tensor
    present: Tensor


@dataclass(frozen=True)
class StreamBatch:
    """B events of a detector with several streams.

    Attributes:
        voxels, matrices, tracks: stream -> its batch; every stream of the detector is there, without rows where no
            event has it.
        truth: name -> tensor (B, ...), those that all events have (see ``TRUTH``).
        seeds: int64 (B,) seed of each event's own random stream.
        names: B event names, for messages.
        detector: name of the detector.
        extra: float32 (B, E), or None.
        groups: int64 (G+1,) offsets of consecutive events that belong together, such as the particles of one
            interaction; None if each stands alone.
    """

    voxels: dict[str, HitBatch]
    matrices: dict[str, MatrixBatch]
    tracks: dict[str, TrackBatch]
    truth: dict[str, Tensor]
    seeds: Tensor
    names: tuple[str, ...]
    detector: str
    extra: Tensor | None = None
    groups: Tensor | None = None

    @property
    def n_events(self) -> int:
        return len(self.names)

    def __len__(self) -> int:
        """Events."""
        return self.n_events

    @property
    def device(self) -> torch.device:
        return self.seeds.device

    def replace(self, **changes: object) -> StreamBatch:
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> StreamBatch:
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> StreamBatch:
        return _mapped(self, Tensor.pin_memory)

    def without(self, stream: str) -> StreamBatch:
        """The batch as if ``stream`` had not been read out in any event.

        Raises:
            ValueError: the detector has no such stream.
        """
        voxels, matrices, tracks = dict(self.voxels), dict(self.matrices), dict(self.tracks)
        if stream in voxels:
            gone = voxels[stream]
            voxels[stream] = gone.select(slice(0, 0), torch.zeros_like(gone.offsets))
        elif stream in matrices:
            gone = matrices[stream]
            matrices[stream] = MatrixBatch(torch.zeros_like(gone.values), torch.zeros_like(gone.present))
        elif stream in tracks:
            gone = tracks[stream]
            tracks[stream] = TrackBatch(gone.feat[:0], torch.zeros_like(gone.offsets), torch.zeros_like(gone.present))
        else:
            raise ValueError(f"no stream '{stream}', the batch has {', '.join([*voxels, *matrices, *tracks])}")
        return self.replace(voxels=voxels, matrices=matrices, tracks=tracks)

    @classmethod
    def from_events(cls, events: Sequence[StreamEvent], groups: Sequence[int] | None = None) -> StreamBatch:
        """Pack transformed events of one detector.

        Args:
            events: at least one.
            groups: numbers of consecutive events that belong together, or None.

        Raises:
            ValueError: no events, or events of different detectors.
        """
        if not events:
            raise ValueError(
                "cannot pack an empty list of events; an event without hits is legal, a batch without events is not"
            )
        detector = events[0].detector
        for event in events:
            if event.detector != detector:
                raise ValueError(
                    f"{event.name}: an event of the detector '{event.detector}' in a batch of '{detector}'"
                )
        geometry = load_stream_detector(detector)
        named = [name for name in TRUTH if all(name in e.truth for e in events)]
        extra = None
        if all(e.extra is not None for e in events):
            extra = torch.from_numpy(np.stack([e.extra for e in events]).astype(np.float32))
        return cls(
            voxels={s: _pack_hits([e.voxels.get(s) for e in events]) for s in geometry.voxels},
            matrices={
                s: _pack_matrix([e.matrices.get(s) for e in events], v.shape) for s, v in geometry.matrices.items()
            },
            tracks={
                s: _pack_tracks([e.tracks.get(s) for e in events], len(v.features)) for s, v in geometry.tracks.items()
            },
            truth={
                n: torch.from_numpy(np.stack([np.asarray(e.truth[n], dtype=TRUTH[n][1]) for e in events]))
                for n in named
            },
            seeds=torch.tensor([e.seed for e in events], dtype=torch.int64),
            names=tuple(e.name for e in events),
            detector=detector,
            extra=extra,
            groups=None if groups is None else offsets_from_counts(torch.tensor(list(groups), dtype=torch.int64)),
        )


def _pack_hits(streams: Sequence[Hits | None]) -> HitBatch:
    there = [h for h in streams if h is not None]
    offsets = offsets_from_counts(torch.tensor([0 if h is None else len(h) for h in streams]))
    if not there:
        none = torch.zeros(0, dtype=torch.int64)
        return HitBatch(none.view(0, 3), none, torch.zeros(0), offsets)
    labels = {}
    for name in HIT_TRUTH:
        if all(getattr(h, name) is not None for h in there):
            value = torch.from_numpy(np.concatenate([getattr(h, name) for h in there]))
            labels[name] = value.long() if name == "ghost" else value.float()
    return HitBatch(
        torch.from_numpy(np.concatenate([h.index for h in there]).astype(np.int64)),
        torch.from_numpy(np.concatenate([h.module for h in there]).astype(np.int64)),
        torch.from_numpy(np.concatenate([h.charge for h in there]).astype(np.float32)),
        offsets,
        labels,
    )


def _pack_matrix(values: Sequence[np.ndarray | None], shape: tuple[int, ...]) -> MatrixBatch:
    rows = [np.zeros(shape, np.float32) if v is None else v for v in values]
    packed = torch.from_numpy(np.stack(rows).astype(np.float32)).flatten(1)
    return MatrixBatch(packed, torch.tensor([v is not None for v in values]))


def _pack_tracks(tracks: Sequence[np.ndarray | None], features: int) -> TrackBatch:
    rows = [np.zeros((0, features), np.float32) if t is None else t for t in tracks]
    return TrackBatch(
        torch.from_numpy(np.concatenate(rows).astype(np.float32)),
        offsets_from_counts(torch.tensor([len(r) for r in rows])),
        torch.tensor([t is not None for t in tracks]),
    )


def _mapped(value: object, change) -> object:
    """``change`` applied to every tensor in a batch."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _mapped(v, change) for k, v in value.items()}
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(
            value, **{f.name: _mapped(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        )
    return value
