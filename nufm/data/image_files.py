"""Files of pixel maps, and the reader of all of them.

**Sparse HDF5**, what nufm writes. n events; N pixels with charge of all events in view V (``xz``, ``yz``):

    attributes of the file      layout = "pixelmaps 1", n_events, shape (H, W), pitch (mm, 0 = unknown), unit ("MeV" |
                                "grey"), producer ("simulated by nufm" | what else), and more for people
    views/V/offsets  (n+1,)     int64: event e has the rows offsets[e]:offsets[e+1]
    views/V/pixel    (N, 2)     integer, row and column; row 0 is the lowest transverse coordinate, column 0 furthest
                                upstream
    views/V/energy   (N,)       float32
    views/V/present  (n,)       bool: the view was read out; absent = in all events. A view whose group is absent is
                                missing in all events.
    truth/<name>     (n, ...)   names, shapes, units of ``nufm.data.images.TRUTH``; -1 or NaN = unknown. Any may be
                                absent.

**3D events** in PILArNet-M files are projected when they are read: :mod:`nufm.data.pixelmaps`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from nufm.data.image_hdf5 import HDF5, SparseFile
from nufm.data.images import TRUTH, ImageEvent
from nufm.data.pilarnet import chosen_events, find_files
from nufm.data.pixelmaps import SIZE, Centre, VolumeFile, is_volume_file

log = logging.getLogger(__name__)

MAX_OPEN_FILES = 128  # per process: many systems allow 1024 in all, and there are workers


class ImageFile(Protocol):
    """What the reader asks of a file of any kind."""

    n_events: int
    shape: tuple[int, int]
    pitch: float
    unit: str
    producer: str
    truth: dict[str, np.ndarray]

    def event(self, row: int, name: str) -> ImageEvent: ...

    def close(self) -> None: ...


class ImageReader:
    """The events of one or more files of pixel maps, in sorted file order.

    Files are opened when first needed, once in each process, so a reader can be handed to workers by fork or spawn.

    Args:
        paths: file, folder, glob, or a list of these.
        max_events: keep this many of the events: the first ones, so that subsets are nested; None = all.
        subset_seed: draw the ``max_events`` at random with this seed instead (still nested, and in file order).
        size: pixels per edge that the maps must have; None: those of the first file, and 512 for 3D events.
        centre: of 3D events, what their maps are centred on, see :func:`nufm.data.pixelmaps.centre_of`.
        detector: of 3D events; None: what the file says, else ``pilarnet``.

    Raises:
        FileNotFoundError: a path names nothing.
        ValueError: a file is not what it should be: says which, where, what was found and expected, and a remedy.

    Attributes:
        files: sorted.
        n_total: events of the files.
        shape, pitch, unit: of all events.
    """

    def __init__(
        self,
        paths: str | Path | list[str | Path],
        max_events: int | None = None,
        subset_seed: int | None = None,
        size: int | None = None,
        centre: Centre = "vertex",
        detector: str | None = None,
    ) -> None:
        self.files = find_files(paths, HDF5)
        self.size, self.centre, self.detector = size, centre, detector
        self._open_files: dict[Path, ImageFile] = {}
        self._pid = os.getpid()

        counts = []
        for number, path in enumerate(self.files):
            file = self._file(path)
            if number == 0:
                self.shape, self.pitch, self.unit, self.producer = file.shape, file.pitch, file.unit, file.producer
            self._check(file, path)
            counts.append(file.n_events)
        self.n_total = sum(counts)
        chosen = chosen_events(np.ones(self.n_total, dtype=bool), max_events, subset_seed)
        self._file_index = np.repeat(np.arange(len(counts)), counts)[chosen]
        self._row_index = np.concatenate([np.arange(n) for n in counts])[chosen]
        self.close()
        where = str(self.files[0]) if len(self.files) == 1 else f"{len(self.files)} files, {self.files[0]} …"
        log.info(
            "%s: %d events of %d × %d pixels (%s), %d of them used",
            *(where, self.n_total, *self.shape, self.unit, len(self)),
        )
        if max_events is not None and len(self) < max_events:
            log.warning("%s: max_events is %d, but there are only %d", where, max_events, len(self))

    def _check(self, file: ImageFile, path: Path) -> None:
        if self.size is not None and file.shape != (self.size, self.size):
            raise ValueError(
                f"{path}: maps of {file.shape[0]} × {file.shape[1]} pixels, expected {self.size} × {self.size}; if the "
                f"network takes these, set the size to theirs (--data.size {file.shape[0]}); if not, cut or pad them "
                "with the transform nufm.data.image_transforms.Window"
            )
        for what in ("shape", "pitch", "unit"):
            if getattr(file, what) != getattr(self, what):
                raise ValueError(
                    f"{path}: {what} is {getattr(file, what)}, expected {getattr(self, what)} as in {self.files[0]}; "
                    "files of different kind cannot be read together, read them one by one"
                )

    def __len__(self) -> int:
        return len(self._row_index)

    def __iter__(self) -> Iterator[ImageEvent]:
        return (self[i] for i in range(len(self)))

    def name(self, index: int) -> str:
        """``file#row`` of an event, the row counted in the file."""
        return f"{self.files[self._file_index[index]]}#{self._row_index[index]}"

    def __getitem__(self, index: int) -> ImageEvent:
        """Event ``index``; every field is checked while it is read.

        Raises:
            IndexError: no such event.
            ValueError: the event is damaged: says the file, event, view, what was found and expected.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"event {index} of {len(self)}")
        path, row = self.files[self._file_index[index]], int(self._row_index[index])
        return self._file(path).event(row, self.name(index))

    def truths(self) -> dict[str, np.ndarray]:
        """Truth of all events (n, ...), without reading their pixels: names as in ``TRUTH``, -1 or NaN where
        unknown."""
        found = {
            name: np.full((len(self), *shape), -1 if kind is np.int64 else np.nan, dtype=kind)
            for name, (shape, kind, _) in TRUTH.items()
        }
        known = set()
        for number, path in enumerate(self.files):
            own = np.arange(*np.searchsorted(self._file_index, (number, number + 1)))
            for name, values in self._file(path).truth.items() if len(own) else ():
                found[name][own] = values[self._row_index[own]]
                known.add(name)
        return {name: values for name, values in found.items() if name in known}

    # ---- files

    def _file(self, path: Path) -> ImageFile:
        """The file, opened in this process: an HDF5 handle must not be shared across a fork."""
        if self._pid != os.getpid():
            self._open_files, self._pid = {}, os.getpid()
        if path not in self._open_files:
            if len(self._open_files) >= MAX_OPEN_FILES:
                self._open_files.pop(next(iter(self._open_files))).close()
            self._open_files[path] = self._opened(path)
        return self._open_files[path]

    def _opened(self, path: Path) -> ImageFile:
        if is_volume_file(path):
            return VolumeFile(path, self.size or SIZE, self.centre, self.detector)
        return SparseFile(path)

    def close(self) -> None:
        """Close the files; they open again when needed."""
        if self._pid == os.getpid():
            for file in self._open_files.values():
                file.close()
        self._open_files = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open_files": {}}
