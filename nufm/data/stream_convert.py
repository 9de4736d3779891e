"""From npz files, one per event, to one HDF5 file of many events, and back: see ``nufm/data/stream_files.py``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from nufm.data.cache import new_folder
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
    out, reader = Path(out).expanduser(), _reader(paths, origin_mm)
    if out.exists():
        raise FileExistsError(f"{out} is there already; choose another name, or remove it")
    _write(reader, range(len(reader)), out, each)
    return len(reader)


def to_splits(
    paths: str | Path | list[str | Path],
    folder: str | Path,
    shares: Mapping[str, float],
    seed: int = 7,
    origin_mm: Origin = (0.0, 0.0, 0.0),
    each: Callable[[], None] | None = None,
) -> dict[str, int]:
    """Share the events of stream files out at random: ``folder/<split>/events.h5``; events of a group stay together.
    The folder appears when it is complete, or not at all.

    Args:
        paths: file, folder, glob, or a list of these.
        folder: a folder that is not there, or empty.
        shares: split -> its share of the events; they sum to 1. The public code has 85, 5 and 10 %.
        seed: of the draw. 7 is that of the public code, whose draw is another one.
        origin_mm: where the centre of 3DCal is in the frame of the npz files' vertices.
        each: called after each event.

    Returns:
        split -> number of its events.

    Raises:
        ValueError: shares that do not sum to 1 or leave a split empty, or a bad event (see :func:`to_hdf5`).
        FileExistsError: the folder is there and not empty.
    """
    reader = _reader(paths, origin_mm)
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"the shares are {dict(shares)}, expected positive numbers that sum to 1")
    group = np.arange(len(reader)) if reader.group is None else reader.group
    drawn = np.random.default_rng(seed).permutation(np.unique(group))
    ends = np.rint(np.cumsum(list(shares.values())) * len(drawn)).astype(int)
    parts = {s: np.flatnonzero(np.isin(group, p)) for s, p in zip(shares, np.split(drawn, ends[:-1]), strict=True)}
    if empty := [split for split, rows in parts.items() if len(rows) == 0]:
        raise ValueError(f"{paths}: {len(reader)} events leave none for {', '.join(empty)}; give it a larger share")
    with new_folder(folder) as temporary:
        for split, rows in parts.items():
            _write(reader, rows, temporary / split / "events.h5", each)
    return {split: len(rows) for split, rows in parts.items()}


def _reader(paths: str | Path | list[str | Path], origin_mm: Origin = (0.0, 0.0, 0.0)) -> StreamReader:
    reader = StreamReader(paths, origin_mm=origin_mm)
    if len(reader) == 0:
        raise ValueError(f"{paths}: there are no events")
    return reader


def _write(reader: StreamReader, rows: Sequence[int], out: Path, each: Callable[[], None] | None) -> None:
    """One HDF5 file of the events ``rows``."""
    from nufm.simulation.fasercal.writer import write_events  # imported here: only writing needs it

    temporary = out.with_name(f".{out.stem}.{os.getpid()}{out.suffix}")
    try:
        attributes = {"detector": reader.detector, "producer": reader.producer}
        write_events(temporary, _records(reader, rows, each), attributes)
        _drop_unknown(temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _records(reader: StreamReader, rows: Sequence[int], each: Callable[[], None] | None) -> Iterator[Record]:
    """Checked records with the same fields in all of them."""
    labels: dict[str, set[str]] = {}
    for i in rows:
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
    reader = _reader(paths)
    if reader.detector != NPZ_DETECTOR:
        raise ValueError(
            f"{paths}: events of the detector '{reader.detector}', the npz layout is for '{NPZ_DETECTOR}' only"
        )
    with new_folder(folder) as temporary:
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
    return len(reader)
