"""Stream files: records of events into one HDF5 file of the layout of ``nufm/data/stream_files.py``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from nufm.simulation.progress import SimulationProgress

LAYOUT = 1
CHUNK_ROWS = 16_384


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
