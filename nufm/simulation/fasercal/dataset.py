"""Simulated FASERCal events as stream files, and as a data set in the user's cache.

The files have the layout of ``nufm/data/stream_files.py``. Event ``index`` of stream ``stream`` (train 0, val 1,
test 2) has its own random stream, SeedSequence(seed, (stream, index, attempt)): a file does not depend on the number of
workers, and splits share no event. Events with fewer than 20 voxels that are no ghosts are drawn again, as in the
published data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
from filelock import FileLock

from nufm.data.cache import cache_folder
from nufm.simulation.dataset import EVENTS_PER_FILE, PRODUCER, STREAMS
from nufm.simulation.fasercal.generator import Beam, generate
from nufm.simulation.fasercal.geometry import CAL3D, world_of
from nufm.simulation.fasercal.readout import Readout
from nufm.simulation.fasercal.showers import Deposits, make_deposits
from nufm.simulation.fasercal.truth import Simulated, detect, event_arrays, event_record
from nufm.simulation.fasercal.workers import in_order
from nufm.simulation.progress import SimulationProgress

LAYOUT = 1
CHUNK_ROWS = 16_384
_ATTEMPTS = 1000
_HERE = "nufm.simulation.fasercal.dataset"


@dataclass(frozen=True)
class FASERCalSpec:
    """Everything but the seed that decides what events look like.

    Attributes:
        detector: a file of ``nufm/data/detectors`` with the streams cal3d, ecal, ahcal and muon.
        beam: neutrinos and their interactions.
        readout: thresholds and the three views.
        min_voxels: events with fewer voxels that are no ghosts are drawn again; 0 keeps all.
    """

    detector: str = "fasercal"
    beam: Beam = field(default_factory=Beam)
    readout: Readout = field(default_factory=Readout)
    min_voxels: int = 20

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@lru_cache(maxsize=1)
def _work_space(detector: str) -> Deposits:
    return make_deposits(world_of(detector))


def simulate(spec: FASERCalSpec, seed: int, stream: int, index: int) -> Simulated:
    """One event; the same arguments give the same event, anywhere.

    Raises:
        ValueError: 1000 draws in a row gave fewer than ``min_voxels`` voxels.
    """
    world = world_of(spec.detector)
    inside = world.kind == CAL3D
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, index, attempt)))
        interaction = generate(spec.beam, world.low[inside], world.high[inside], rng)
        event = detect(interaction, world, _work_space(spec.detector), spec.detector, spec.readout, rng)
        real = int((event.ghost != 1).sum())
        if real >= spec.min_voxels:
            return event
    raise ValueError(
        f"event {index}: {_ATTEMPTS} draws in a row had fewer than min_voxels = {spec.min_voxels} voxels that are no "
        f"ghosts (the last one {real}); lower min_voxels"
    )


def simulate_event(spec: FASERCalSpec, seed: int, stream: int, index: int) -> dict[str, np.ndarray]:
    """The event with the fields of the public per-event files, see :func:`nufm.simulation.fasercal.truth.event_record`.
    """
    return event_record(simulate(spec, seed, stream, index), stream, index)


def simulate_arrays(spec: FASERCalSpec, seed: int, stream: int, index: int) -> dict[str, np.ndarray]:
    """The event as a record of a stream file (a small part of what ``simulate_event`` gives: no list of deposits)."""
    return event_arrays(simulate(spec, seed, stream, index))


# ---------------------------------------------------------------------- files


def write_events(
    path: str | Path,
    records: Iterable[Mapping[str, np.ndarray]],
    attributes: Mapping[str, object],
    progress: SimulationProgress | None = None,
    overwrite: bool = False,
) -> Path:
    """Write records into one stream file; the file appears when it is complete, or not at all.

    Args:
        path: an HDF5 file (.h5 or .hdf5); its folder is made.
        records: one dictionary per event from the path of a data set to its array, see ``nufm/data/stream_files.py``.
        attributes: of the file: detector, producer, ...
        progress: counts the events.
        overwrite: replace an existing file.

    Raises:
        ValueError: a name that does not end in .h5 or .hdf5, or records whose paths do not agree.
        FileExistsError: the file is there, and ``overwrite`` is not set.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"{path}: expected a name that ends in .h5 or .hdf5")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; choose another name, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs.update({"layout": LAYOUT, **attributes})
            writer = _Writer(file)
            for record in records:
                writer.add(record)
                if progress is not None:
                    progress.advance()
            writer.finish()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class _Writer:
    """Appends events to the data sets of an open file, some hundred at a time."""

    def __init__(self, file: h5py.File, at_once: int = 256) -> None:
        self.file, self.at_once = file, at_once
        self.waiting: dict[str, list[np.ndarray]] = {}
        self.rows: dict[str, list[int]] = {}  # stream -> rows of each event
        self.present: dict[str, list[bool]] = {}
        self.n = 0

    def add(self, record: Mapping[str, np.ndarray]) -> None:
        streams = {_stream(p) for p in record if _is_ragged(p) or p.startswith("matrices/")}
        for stream in streams - set(self.present):
            self.present[stream] = [False] * self.n
            self.rows[stream] = [0] * self.n
        for stream in self.present:
            self.present[stream].append(stream in streams)
            sizes = {len(a) for p, a in record.items() if _is_ragged(p) and _stream(p) == stream}
            if len(sizes) > 1:
                raise ValueError(f"event {self.n}: the arrays of {stream} have {sorted(sizes)} rows, expected one")
            self.rows[stream].append(sizes.pop() if sizes else 0)
        for path, array in record.items():
            if not _is_ragged(path) and path not in self.waiting and self.n and not path.startswith("matrices/"):
                raise ValueError(f"event {self.n} has '{path}', which the events before it do not have")
            array = np.asarray(array)
            if path.startswith("matrices/") and path not in self.waiting:  # missing in all events so far
                self.waiting[path] = [np.zeros_like(array)] * self.n
            self.waiting.setdefault(path, []).append(array)
        for path in set(self.waiting) - set(record):
            if path.startswith("matrices/"):
                self.waiting[path].append(np.zeros(self._shape(path), np.float32))
            elif not _is_ragged(path):
                raise ValueError(f"event {self.n} has no '{path}', which the events before it have")
        self.n += 1
        if self.n % self.at_once == 0:
            self._flush()

    def _shape(self, path: str) -> tuple[int, ...]:
        return self.waiting[path][-1].shape if self.waiting[path] else self.file[path].shape[1:]

    def _flush(self) -> None:
        for path, arrays in self.waiting.items():
            if not arrays:
                continue
            rows = np.concatenate(arrays) if _is_ragged(path) else np.stack(arrays)
            if path in self.file:
                data = self.file[path]
                data.resize(len(data) + len(rows), axis=0)
                data[len(data) - len(rows) :] = rows
            else:
                shape = rows.shape[1:]
                options = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if _is_ragged(path) else {}
                chunk = CHUNK_ROWS if _is_ragged(path) else 1024
                self.file.create_dataset(
                    path, data=rows, maxshape=(None, *shape), chunks=(chunk, *shape), **options
                )
            self.waiting[path] = []

    def finish(self) -> None:
        self._flush()
        for stream, rows in self.rows.items():
            if stream.startswith(("hits/", "tracks/")):
                self.file[f"{stream}/offsets"] = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
            present = np.array(self.present[stream])
            if not present.all():
                self.file[f"present/{stream.split('/')[1]}"] = present


def _is_ragged(path: str) -> bool:
    return path.startswith(("hits/", "tracks/"))


def _stream(path: str) -> str:
    return "/".join(path.split("/")[:2])


def simulate_file(
    path: str | Path,
    n_events: int,
    seed: int = 0,
    workers: int | None = None,
    spec: FASERCalSpec | None = None,
    stream: int = 0,
    first: int = 0,
    progress: SimulationProgress | None = None,
    overwrite: bool = False,
) -> Path:
    """Simulate events into one file; the file appears when it is complete, or not at all.

    Args:
        path: an HDF5 file (.h5 or .hdf5); its folder is made.
        n_events: how many.
        seed: of the simulation, >= 0.
        workers: processes; None = one per core. The file's content is the same for any number.
        spec: what to simulate; None = the default.
        stream: of random numbers, see the head of this file.
        first: index of the first event in the stream.
        progress: shows events per second and the time left; None = silent.
        overwrite: replace an existing file.

    Raises:
        ValueError: an argument that cannot be meant.
        FileExistsError: the file is there, and ``overwrite`` is not set.
    """
    spec = spec or FASERCalSpec()
    for name, value, least in (("events", n_events, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    attributes = {
        "detector": spec.detector,
        "producer": PRODUCER,
        "version": simulation_version(),
        "spec": spec.to_json(),
        "seed": seed,
        "stream": stream,
        "first": first,
    }
    events = in_order(f"{_HERE}:simulate_arrays", (spec, seed, stream), range(first, first + n_events), workers)
    try:
        return write_events(path, events, attributes, progress, overwrite)
    finally:
        events.close()


def simulate_splits(
    folder: str | Path,
    n_events: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    spec: FASERCalSpec | None = None,
    progress: SimulationProgress | None = None,
) -> Path:
    """A data set ``folder/<split>/simulated_<number>.h5``; the folder appears when it is complete, or not at all.

    Args:
        folder: must not exist, or be empty.
        n_events: train, val, test -> number of events; a split of 0 events is left out.
        seed, workers, spec, progress: as for :func:`simulate_file`.

    Raises:
        ValueError: an unknown split, or an argument that cannot be meant.
        FileExistsError: the folder is there and not empty.
    """
    folder = Path(folder).expanduser()
    if unknown := set(n_events) - set(STREAMS):
        raise ValueError(f"unknown split {sorted(unknown)}, expected some of {', '.join(STREAMS)}")
    if not any(n_events.values()) or any(n < 0 for n in n_events.values()):
        raise ValueError(f"events per split are {dict(n_events)}, expected numbers >= 0 and at least one event")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty; choose another name, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        for split, total in n_events.items():
            for number, first in enumerate(range(0, total, EVENTS_PER_FILE)):
                if progress is not None:
                    progress.describe(f"simulating {split}")
                path = temporary / split / f"simulated_{number:05d}.h5"
                many = min(EVENTS_PER_FILE, total - first)
                simulate_file(path, many, seed, workers, spec, STREAMS[split], first, progress)
        temporary.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
        if folder.exists():
            folder.rmdir()
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def ensure_dataset(
    n_events: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    spec: FASERCalSpec | None = None,
    show_progress: bool = True,
) -> Path:
    """The data set with these events from the cache; simulated first if it is not there.

    As :func:`nufm.simulation.dataset.ensure_dataset`: the folder's name comes from the specification, the seed, the
    numbers of events, the detector's file and the simulation's code; processes that ask at the same time wait for one.

    Args:
        n_events: train, val, test -> number of events.
        seed, workers, spec: as for :func:`simulate_file`.
        show_progress: on standard error.

    Returns:
        The folder, with ``train``, ``val`` and ``test`` in it.
    """
    spec = spec or FASERCalSpec()
    numbers = {split: int(n) for split, n in n_events.items() if n}
    key = json.dumps([spec.to_json(), seed, sorted(numbers.items()), simulation_version()])
    folder = cache_folder() / "simulated" / f"{spec.detector}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():  # made by another process while this one waited
            return folder
        progress = SimulationProgress(sum(numbers.values())) if show_progress else None
        try:
            if progress is not None:
                progress.start(f"simulating into {folder}")
            simulate_splits(folder, numbers, seed, workers, spec, progress)
        finally:
            if progress is not None:
                progress.stop()
    return folder


def simulation_version() -> str:
    """Digest of the source files that decide what events look like, this package's and the detector's."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    sources = [p for p in here.glob("*.py") if p.stem not in ("__init__", "compiled", "workers")]
    sources += [here.parent / "rng.py", here.parents[1] / "data" / "detectors" / "fasercal.yaml"]
    for source in sorted(sources):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
