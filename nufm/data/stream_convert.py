"""From npz files, one per event, to one HDF5 file of many events, and back: see ``nufm/data/stream_files.py``."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from nufm.data.stream_files import StreamReader
from nufm.data.stream_hdf5 import Record
from nufm.data.stream_npz import NPZ_DETECTOR, write_npz
from nufm.data.streams import TRUTH

UNKNOWN = {f"truth/{name}": np.full(shape, -1 if kind is np.int64 else np.nan, kind) for name, (shape, kind, _) in
           TRUTH.items()}  # fmt: skip
UNKNOWN |= {f"identity/{name}": np.int64(-1) for name in ("run", "event")}
LABELS = ("ghost", "hierarchy", "category")
Origin = tuple[float, float, float]


def to_hdf5(
    paths: str | Path | list[str | Path],
    out: str | Path,
    origin_mm: Origin = (0.0, 0.0, 0.0),
    each: Callable[[], None] | None = None,
) -> int:
    """Write the events of stream files, npz or HDF5, into one HDF5 file; it appears when it is complete, or not at all.

    Every event is checked. Truth that only some events have is written as unknown (-1, NaN) for the others.

    Args:
        paths: file, folder, glob, or a list of these.
        out: an HDF5 file that is not there.
        origin_mm: where the centre of 3DCal is in the frame of the npz files' vertices.
        each: called after each event.

    Returns:
        The number of events.

    Raises:
        ValueError: an event is not what it should be, or has other labels of its hits than the first one.
        FileExistsError: ``out`` is there.
    """
    from nufm.simulation.fasercal.dataset import write_events  # imported here: it brings Numba

    out, reader = Path(out).expanduser(), StreamReader(paths, origin_mm=origin_mm)
    if out.exists():
        raise FileExistsError(f"{out} is there already; choose another name, or remove it")
    if len(reader) == 0:
        raise ValueError(f"{paths}: there are no events")
    temporary = out.with_name(f".{out.stem}.{os.getpid()}{out.suffix}")
    try:
        attributes = {"detector": reader.detector, "producer": reader.producer}
        write_events(temporary, _records(reader, each), attributes)
        _drop_unknown(temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return len(reader)


def _records(reader: StreamReader, each: Callable[[], None] | None) -> Iterator[Record]:
    """Checked records with the same fields in all of them."""
    labels: dict[str, set[str]] = {}
    for i in range(len(reader)):
        record, event = reader.record(i), reader[i]
        for stream, hits in event.voxels.items():
            found = {name for name in LABELS if getattr(hits, name) is not None}
            if labels.setdefault(stream, found) != found:
                raise ValueError(
                    f"{event.name}: stream '{stream}' has the labels {sorted(found) or 'none'}, expected "
                    f"{sorted(labels[stream]) or 'none'} as in the events before it; convert them into two files"
                )
            record.setdefault(f"hits/{stream}/module", hits.module)
        yield UNKNOWN | record
        if each is not None:
            each()


def _drop_unknown(path: Path) -> None:
    """Remove the truth that no event has."""
    with h5py.File(path, "r+") as file:
        for name, unknown in UNKNOWN.items():
            if np.array_equal(file[name][:], np.broadcast_to(unknown, file[name].shape), equal_nan=True):
                del file[name]
        for group in ("truth", "identity"):
            if group in file and len(file[group]) == 0:
                del file[group]


def to_npz(
    paths: str | Path | list[str | Path],
    folder: str | Path,
    origin_mm: Origin = (0.0, 0.0, 0.0),
    each: Callable[[], None] | None = None,
) -> int:
    """Write the events of HDF5 files as npz files ``run_<run>_event_<event>.npz``; the folder appears when it is
    complete, or not at all. What the npz layout cannot hold, :func:`nufm.data.stream_npz.write_npz` says.

    Args:
        paths: file, folder, glob, or a list of these.
        folder: a folder that is not there, or empty.
        origin_mm: where the centre of 3DCal shall be in the frame of the npz files' vertices.
        each: called after each event.

    Returns:
        The number of events.

    Raises:
        ValueError: events of a detector that has no npz layout, or two events of the same run and number.
        FileExistsError: the folder is there and not empty.
    """
    reader, folder = StreamReader(paths), Path(folder).expanduser()
    if reader.detector != NPZ_DETECTOR:
        raise ValueError(
            f"{paths}: events of the detector '{reader.detector}', the npz layout is for '{NPZ_DETECTOR}' only"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty; choose another name, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        for i in range(len(reader)):
            record, event = reader.record(i), reader[i]  # the event is made for its checks
            record |= {f"hits/{s}/module": h.module for s, h in event.voxels.items()}
            run, number = int(record.get("identity/run", 0)), int(record.get("identity/event", i))
            path = temporary / f"run_{run}_event_{number}.npz"
            if path.exists():
                raise ValueError(f"{event.name}: a second event {number} of run {run}, each may be there once")
            write_npz(path, record, origin_mm, reader.producer)
            if each is not None:
                each()
        temporary.chmod(0o755)  # mkdtemp makes it private
        if folder.exists():
            folder.rmdir()
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(reader)
