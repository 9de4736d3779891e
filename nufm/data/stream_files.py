"""Files of events with several streams: one HDF5 file of many events, or one npz file per event.

**HDF5**, layout 1. n events of one detector (``nufm/data/detectors/<detector>.yaml``); S stands for a stream of it, N
for the hits of all events, T for the tracks of all events:

    attributes of the file          layout = 1, detector, producer ("simulated by nufm" | what else), version, spec
                                    (JSON), seed, stream (0 train, 1 val, 2 test), first (index of the first event in
                                    that stream)
    hits/S/index        (N, 3)      integer, voxel within its module
    hits/S/module       (N,)        integer; may be absent if the stream has one module
    hits/S/charge       (N,)        float32, MeV
    hits/S/ghost        (N,)        int8: 0 real, 1 ghost, 2 not a ghost but unmatched              } absent where there
    hits/S/hierarchy    (N, 3)      float16 or float32: shares of HIERARCHY_NAMES, 0 for ghosts     } is no truth
    hits/S/category     (N, 3)      the same for CATEGORY_NAMES                                     }
    hits/S/offsets      (n+1,)      int64: event e holds the rows offsets[e]:offsets[e+1]
    matrices/S          (n, ...)    float32, MeV; ECAL (n, 5, 5)
    tracks/S/features   (T, F)      float32, all columns of the fit; muon spectrometer F = 11: charge, n_points, px,
                                    py, pz, p (GeV/c), chi2, ndof, p_value, error_1, error_2. The reader keeps tracks
                                    with at least 3 points and chi2 > 0, and of them the columns that the detector
                                    names. A file may hold just these columns instead.
    tracks/S/offsets    (n+1,)      int64
    present/S           (n,)        bool: the stream was read out in this event; absent = in all of them. A stream
                                    whose group is absent is missing in every event.
    truth/<name>        (n, ...)    names, shapes and units of ``nufm.data.streams.TRUTH``: flavour, charm, particle
                                    (int64, -1 unknown); visible, jet, lepton (n, 3) GeV/c; vertex (n, 3) mm from the
                                    detector's origin; neutrino_energy GeV (float32, NaN unknown). Any may be absent.
    extra               (n, E)      float32, hand-crafted numbers; optional
    identity/run        (n,)        int64, and identity/event likewise; optional
    group               (n,)        int64, never falling: events with equal numbers belong together; optional

Any compression that HDF5 brings itself (gzip, lzf) may be used; chunks of about 16,384 rows keep reading one event
cheap.

A writer takes the events one by one as *records*: a dictionary from the path of a data set to this event's array,

    {"hits/cal3d/index": (N, 3), "hits/cal3d/charge": (N,), ..., "matrices/ecal": (5, 5),
     "tracks/muon/features": (T, 11), "truth/flavour": 3, "truth/vertex": (3,), ...}

without offsets and ``present``, which the writer makes: rows below ``hits/`` and ``tracks/`` are put end to end, all
else is stacked. A record without any path of a stream that others have means that the stream is missing in that event.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nufm.data.detector import load_stream_detector
from nufm.data.pilarnet import chosen_events, find_files
from nufm.data.stream_hdf5 import EventFile, Record
from nufm.data.stream_npz import NPZ_DETECTOR, TRACK_COLUMNS, npz_producer, npz_record
from nufm.data.streams import HIT_TRUTH, TRUTH, Hits, StreamEvent

log = logging.getLogger(__name__)

HDF5, NPZ = (".h5", ".hdf5"), ".npz"
MIN_TRACK_POINTS = 3
MAX_OPEN_FILES = 128  # per process: many systems allow 1024 in all, and there are workers


class StreamReader:
    """The events of one or more stream files, HDF5 or npz, in sorted file order.

    Files are opened when first needed, once in each process, so a reader can be handed to workers by fork or spawn.

    Args:
        paths: file, folder, glob, or a list of these.
        min_voxels: events with fewer hits that are not ghosts in the detector's first voxel stream are left out; the
            published data have at least 20. npz files are made with that minimum, and all of them are used.
        max_events: keep this many of the events that pass: the first ones, so that subsets are nested; None = all.
        subset_seed: draw the ``max_events`` at random with this seed instead (still nested, and in file order).
        origin_mm: where the detector's origin is in the frame of npz files; it is taken from their vertices.
        together: ``max_events`` counts groups of events, all events of which are kept.

    Raises:
        FileNotFoundError: a path names nothing.
        ValueError: a file is not what it should be: says which, where, what was found and expected, and a remedy.

    Attributes:
        files: sorted.
        detector: whose events they are.
        n_total, n_below_minimum: events of the files, and those with fewer than ``min_voxels`` hits.
        group: int64 (len(self),) events with equal numbers belong together; None if the files do not say.
    """

    def __init__(
        self,
        paths: str | Path | list[str | Path],
        min_voxels: int = 0,
        max_events: int | None = None,
        subset_seed: int | None = None,
        origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
        together: bool = False,
    ) -> None:
        self.files = find_files(paths, (*HDF5, NPZ))
        self.min_voxels, self.origin_mm = min_voxels, tuple(origin_mm)
        self._open_files: dict[Path, EventFile] = {}
        self._pid = os.getpid()

        detectors: dict[str, Path] = {}
        passes, groups = [], []
        for path in self.files:
            if path.suffix == NPZ:
                detectors.setdefault(NPZ_DETECTOR, path)
                passes.append(np.ones(1, dtype=bool))
                groups.append(None)
                continue
            with EventFile(path) as file:
                detectors.setdefault(file.detector.name, path)
                few = file.real_voxels() < min_voxels if min_voxels > 0 else np.zeros(file.n_events, dtype=bool)
                passes.append(~few)
                groups.append(file.group)
        if len(detectors) > 1:
            told = ", ".join(f"'{name}' in {path}" for name, path in detectors.items())
            raise ValueError(f"events of different detectors cannot be read together: {told}; read them one by one")
        self.detector = next(iter(detectors))
        self.n_total = sum(map(len, passes))
        self.n_below_minimum = int(sum((~p).sum() for p in passes))
        group = None if any(g is None for g in groups) else _numbered(groups)
        may = np.concatenate(passes)
        if not together:
            chosen = chosen_events(may, max_events, subset_seed)
        elif group is None:
            raise ValueError(f"{paths}: events are to be taken in groups, but a file has no data set 'group'")
        else:
            of_groups = chosen_events(np.bincount(group, may) > 0, max_events, subset_seed)
            chosen = np.flatnonzero(may & np.isin(group, of_groups))
        self._file_index = np.repeat(np.arange(len(passes)), [len(p) for p in passes])[chosen]
        self._row_index = np.concatenate([np.arange(len(p)) for p in passes])[chosen]
        self.group = None if group is None else group[chosen]
        self._report(max_events, len(np.unique(self.group)) if together else len(self))

    def _report(self, max_events: int | None, count: int) -> None:
        """Says in the log what is used; ``count`` is what ``max_events`` counts."""
        where = str(self.files[0]) if len(self.files) == 1 else f"{len(self.files)} files, {self.files[0]} …"
        log.info(
            "%s: %d events of '%s', %d of them used, %d below the minimum of %d hits",
            *(where, self.n_total, self.detector, len(self), self.n_below_minimum, self.min_voxels),
        )
        if len(self) == 0:
            log.warning("%s: no event has the minimum of %d hits; lower min_voxels", where, self.min_voxels)
        elif max_events is not None and count < max_events:
            log.warning("%s: max_events is %d, but there are only %d", where, max_events, count)

    def __len__(self) -> int:
        return len(self._row_index)

    def __iter__(self) -> Iterator[StreamEvent]:
        return (self[i] for i in range(len(self)))

    def name(self, index: int) -> str:
        """``file#row`` of an event, the row counted in the file; an npz file is one event."""
        path = self.files[self._file_index[index]]
        return str(path) if path.suffix == NPZ else f"{path}#{self._row_index[index]}"

    def __getitem__(self, index: int) -> StreamEvent:
        """Event ``index``; every field is checked while it is read.

        Raises:
            IndexError: no such event.
            ValueError: the event is damaged: says the file, event, stream, field, what was found and expected.
        """
        return event_from_record(self.record(index), self.detector, self.name(index))

    def record(self, index: int) -> Record:
        """Event ``index`` as it is written: path of a data set -> array."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"event {index} of {len(self)}")
        path, row = self.files[self._file_index[index]], int(self._row_index[index])
        if path.suffix == NPZ:
            return npz_record(path, self.origin_mm)
        return self._file(path).record(row)

    @property
    def producer(self) -> str:
        """Who made the events of the first file, as it says."""
        path = self.files[0]
        return npz_producer(path) if path.suffix == NPZ else str(self._file(path).attributes.get("producer", ""))

    def truths(self) -> dict[str, np.ndarray]:
        """Truth of all events (n, ...), without reading their hits: names as in ``TRUTH``, -1 or NaN where unknown."""
        found = {
            name: np.full((len(self), *shape), -1 if kind is np.int64 else np.nan, dtype=kind)
            for name, (shape, kind, _) in TRUTH.items()
        }
        known = set()
        for number, path in enumerate(self.files):
            own = np.arange(*np.searchsorted(self._file_index, (number, number + 1)))
            record = self.record(own[0]) if path.suffix == NPZ and len(own) else {}
            for name, values in found.items() if len(own) else ():
                if path.suffix == NPZ:
                    column = record.get(f"truth/{name}")
                else:
                    column = self._file(path).stacked(f"truth/{name}", self._row_index[own])
                if column is not None:
                    values[own] = column
                    known.add(name)
        return {name: values for name, values in found.items() if name in known}

    # ---- files

    def _file(self, path: Path) -> EventFile:
        """The file, opened in this process: an HDF5 handle must not be shared across a fork."""
        if self._pid != os.getpid():
            self._open_files, self._pid = {}, os.getpid()
        if path not in self._open_files:
            if len(self._open_files) >= MAX_OPEN_FILES:
                self._open_files.pop(next(iter(self._open_files))).close()
            self._open_files[path] = EventFile(path)
        return self._open_files[path]

    def close(self) -> None:
        """Close the files; they open again when needed."""
        if self._pid == os.getpid():
            for file in self._open_files.values():
                file.close()
        self._open_files = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open_files": {}}


def _numbered(groups: list[np.ndarray]) -> np.ndarray:
    """int64, the groups of several files, none of which is in two files."""
    first, numbers = 0, []
    for group in groups:
        numbers.append(np.unique(group, return_inverse=True)[1].reshape(-1) + first)
        first += len(np.unique(group))
    return np.concatenate(numbers)


# ---------------------------------------------------------------------- records and events


def event_from_record(record: Record, detector: str, name: str) -> StreamEvent:
    """The event that a record describes.

    Raises:
        ValueError: a field is not what it should be.
    """
    geometry = load_stream_detector(detector)
    voxels = {s: _hits(record, s, name) for s in geometry.voxels if f"hits/{s}/index" in record}
    matrices = {
        s: np.asarray(record[f"matrices/{s}"], dtype=np.float32) for s in geometry.matrices if f"matrices/{s}" in record
    }
    tracks = {
        s: _kept_tracks(np.asarray(record[f"tracks/{s}/features"], dtype=np.float32), t.features, name, s)
        for s, t in geometry.tracks.items()
        if f"tracks/{s}/features" in record
    }
    truth = {n: np.asarray(record[f"truth/{n}"], dtype=k) for n, (_, k, _) in TRUTH.items() if f"truth/{n}" in record}
    extra = np.asarray(record["extra"], dtype=np.float32) if "extra" in record else None
    return StreamEvent(voxels, matrices, tracks, truth, extra, detector, name)


def _hits(record: Record, stream: str, name: str) -> Hits:
    def field(attribute: str, kind: type) -> np.ndarray | None:
        value = record.get(f"hits/{stream}/{attribute}")
        if value is None:
            return None
        if np.issubdtype(kind, np.integer) and not np.issubdtype(value.dtype, np.integer):
            raise ValueError(
                f"{name}: stream '{stream}', field '{attribute}' has dtype {value.dtype}, expected integers"
            )
        return value.astype(kind)

    index = field("index", np.int32)
    module = field("module", np.int32)
    return Hits(
        index=index,
        module=np.zeros(len(index), dtype=np.int32) if module is None else module,
        charge=field("charge", np.float32),
        ghost=field("ghost", np.int8),
        **{k: field(k, np.float32) for k in HIT_TRUTH if k != "ghost"},
    )


def _kept_tracks(rows: np.ndarray, features: tuple[str, ...], name: str, stream: str) -> np.ndarray:
    """Tracks (T, F) that were fitted well enough, with the columns ``features``."""
    if rows.ndim != 2 or rows.shape[1] not in (len(features), len(TRACK_COLUMNS)):
        raise ValueError(
            f"{name}: stream '{stream}', field 'tracks' has shape {rows.shape}, expected (T, {len(TRACK_COLUMNS)}) "
            f"with the columns {', '.join(TRACK_COLUMNS)}, or (T, {len(features)}) with {', '.join(features)}"
        )
    if rows.shape[1] == len(features):
        return rows
    column = {c: rows[:, i] for i, c in enumerate(TRACK_COLUMNS)}
    kept = (column["n_points"] >= MIN_TRACK_POINTS) & (column["chi2"] > 0)
    return np.stack([column[f] for f in features], 1)[kept]
