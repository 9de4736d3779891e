"""Files of pixel maps, and the reader of all of them.

**Sparse HDF5**, what nufm writes. n events; N pixels with charge of all events in view V (``xz``, ``yz``):

    attributes of the file      layout = "pixelmaps 1", n_events, shape (H, W), pitch (mm, 0 = unknown), unit ("MeV" |
                                "grey"), producer ("simulated by nufm" | what else), and more for people; source: the
                                file of 3D events whose rows these are
    views/V/offsets  (n+1,)     int64: event e has the rows offsets[e]:offsets[e+1]
    views/V/pixel    (N, 2)     integer, row and column; row 0 is the lowest transverse coordinate, column 0 furthest
                                upstream
    views/V/energy   (N,)       float32
    views/V/present  (n,)       bool: the view was read out; absent = in all events. A view whose group is absent is
                                missing in all events.
    truth/<name>     (n, ...)   names, shapes, units of ``nufm.data.images.TRUTH``; -1 or NaN = unknown. Any may be
                                absent.

**Dense HDF5**, made elsewhere. One of

    images           (n, V, H, W)   views in the order xz, yz; with one view alone, the attribute ``views`` names it
    xz, yz           (n, H, W)      each; if the attribute ``views`` of the file names one, the other may be absent

    labels (label)   (n,)           names or numbers of classes, see ``nufm.data.images.class_numbers``; optional.
                                    ``truth/<name>`` as above may be there, too.

of bytes, grey values 0 … 255, or of any numbers with an attribute ``unit`` of the file, ``MeV`` or ``grey``. Further
attributes: ``pitch`` (mm), ``row_0`` ("lowest" transverse coordinate, the default, or "highest" as in a picture),
``producer``. A view of zeros is an empty view, not a missing one.

**PNG and CSV**: a table ``*.csv`` in UTF-8 with a line for each event,

    name,xz,yz,label
    7,maps/7_xz.png,maps/7_yz.png,numu CC
    8,maps/8_xz.png,,NC                                 this event has no view yz

The pictures, relative to the table, are 8-bit and grey (or R = G = B), all of one size, z to the right and the
transverse coordinate UP, as a picture of the detector: the top line of a picture is the highest row of a map. An empty
cell is a missing view; a file that is not there is an error, and so is a path that names the other view. The column
``label`` may be absent, empty cells are unknown. Columns with the names of ``TRUTH`` (neutrino_energy; lepton_x,
lepton_y, lepton_z) are read as well, others are left alone.

**3D events** in PILArNet-M files are projected when they are read: :mod:`nufm.data.pixelmaps`.

Nothing is ever unpickled.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol

import h5py
import numpy as np

from nufm.data.image_arrays import ArrayFile, is_array_file
from nufm.data.image_hdf5 import HDF5, LAYOUT, SparseFile
from nufm.data.image_png import COLUMNS, PngTable
from nufm.data.images import TRUTH, VIEWS, ImageEvent, Unit, class_numbers, unknown
from nufm.data.pilarnet import chosen_events, find_files
from nufm.data.pixelmaps import SIZE, Centre, VolumeFile

log = logging.getLogger(__name__)

TABLES = (".csv",)
MAX_OPEN_FILES = 128  # per process: many systems allow 1024 in all, and there are workers
LOOKED_AT = 16  # events whose views are compared
Kind = Literal["sparse", "dense", "png", "volume"]


def find_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """HDF5 files and tables named by a path, a folder, a glob, or a list of these: sorted, each once.

    Raises:
        FileNotFoundError: one of them names nothing.
        ValueError: pictures without a table, or HDF5 files beside tables.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    for path in map(Path, paths):
        folder = path.expanduser()
        alone = folder.is_dir() and any(folder.glob("*.png")) and not any(folder.glob("*.csv"))
        if path.suffix.lower() == ".png" or alone:
            raise ValueError(
                f"{path}: pictures without a table, expected a file events.csv with the columns {', '.join(COLUMNS)} "
                "that says which belong together; give that"
            )
    files = find_files(paths, (*HDF5, *TABLES))
    if 0 < sum(path.suffix in TABLES for path in files) < len(files):
        raise ValueError(
            f"{', '.join(map(str, paths))}: HDF5 files beside tables, found {', '.join(p.name for p in files[:5])}; "
            "name the file that is meant, or a glob"
        )
    return files


def image_kind(path: str | Path) -> Kind:
    """What a file of images is: ``sparse`` or ``dense`` HDF5, the table of ``png`` files, or a ``volume`` of 3D events.

    Raises:
        ValueError: none of these.
    """
    path = Path(path)
    if path.suffix in TABLES:
        return "png"
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path}: not an HDF5 file; give an .h5 file of pixel maps, or a table of PNG files (.csv)")
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            if str(file.attrs.get("layout", "")) == LAYOUT:
                return "sparse"
            if "point" in file:
                return "volume"
            if is_array_file(file):
                return "dense"
            found, said = sorted(file), sorted(file.attrs)
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened, it is truncated or damaged ({error}); get it again") from error
    raise ValueError(
        f"{path}: found {', '.join(found) or 'no data sets'} and the attributes {', '.join(said) or 'none'}, expected "
        f"the attribute layout = '{LAYOUT}', or images (events, views, rows, columns), or xz and yz (events, rows, "
        "columns), or 3D events (point)"
    )


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
    """The events of one or more files of pixel maps, in sorted file order. Truth that only some of the files have is
    unknown (-1, NaN) in events of the others.

    Files are opened when first needed, once in each process, so a reader can be handed to workers by fork or spawn.

    Args:
        paths: file, folder, glob, or a list of these.
        max_events: keep this many of the events: the first ones, so that subsets are nested; None = all.
        subset_seed: draw the ``max_events`` at random with this seed instead (still nested, and in file order).
        size: pixels per edge that the maps must have; None: those of the first file, and 512 for 3D events.
        centre: of 3D events, what their maps are centred on, see :func:`nufm.data.pixelmaps.centre_of`.
        detector: of 3D events; None: what the file says, else ``pilarnet``.
        labels: label as in dense files and tables -> name of its class, where they are named otherwise.
        unit: of the values of dense files that do not say.
        pitch: mm per pixel of dense files and pictures that do not say.

    Raises:
        FileNotFoundError: a path names nothing.
        ValueError: a file is not what it should be: says which, where, what was found and expected, and a remedy.

    Attributes:
        files: sorted.
        n_total: events of the files.
        shape, pitch, unit: of all events.
        producer: who made the events of the first file, as it says.
    """

    def __init__(
        self,
        paths: str | Path | list[str | Path],
        max_events: int | None = None,
        subset_seed: int | None = None,
        size: int | None = None,
        centre: Centre = "vertex",
        detector: str | None = None,
        labels: Mapping[str, str] | None = None,
        unit: Unit | None = None,
        pitch: float | None = None,
    ) -> None:
        self.files = find_images(paths)
        self.size, self.centre, self.detector = size, centre, detector
        class_numbers([], labels)  # refuses what is no class, whatever the files hold
        self._said = {"labels": dict(labels or {}), "unit": unit, "pitch": pitch}
        if pitch is not None and not (np.isfinite(pitch) and pitch > 0):
            raise ValueError(f"pitch is {pitch}, expected a positive number of mm")
        self._open_files: dict[Path, ImageFile] = {}
        self._pid = os.getpid()

        counts, self._sources, known = [], [], set()
        for number, path in enumerate(self.files):
            file = self._file(path)
            if number == 0:
                self.shape, self.pitch, self.unit, self.producer = file.shape, file.pitch, file.unit, file.producer
            self._check(file, path)
            counts.append(file.n_events)
            known |= set(file.truth)
            self._sources.append(getattr(file, "source", "") or str(path))
        self.n_total = sum(counts)
        self._unknown = {name: unknown(name) for name in TRUTH if name in known}
        chosen = chosen_events(np.ones(self.n_total, dtype=bool), max_events, subset_seed)
        self._file_index = np.repeat(np.arange(len(counts)), counts)[chosen]
        self._row_index = np.concatenate([np.arange(n) for n in counts])[chosen]
        if any(image_kind(path) in ("dense", "png") for path in self.files):
            self._look_at_the_beam_axis()
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
            theirs = file.shape[0] if file.shape[0] == file.shape[1] else "null"
            raise ValueError(
                f"{path}: maps of {file.shape[0]} × {file.shape[1]} pixels, expected {self.size} × {self.size}; to use "
                f"them, set the size to theirs (--data.size {theirs}), and cut or pad them with the transform "
                "nufm.data.image_transforms.Window if the network takes one size only"
            )
        for what in ("shape", "pitch", "unit"):
            if getattr(file, what) != getattr(self, what):
                raise ValueError(
                    f"{path}: {what} is {getattr(file, what)}, expected {getattr(self, what)} as in {self.files[0]}; "
                    "files of different kind cannot be read together, read them one by one"
                )

    def _look_at_the_beam_axis(self) -> None:
        """Warns of maps made elsewhere whose views share their rows: both see the same charge along z, so that their
        sums over rows go together, unless rows and columns were exchanged."""
        of_columns, of_rows = [], []
        for index in range(min(len(self), LOOKED_AT)):
            one, other = (self[index].image(view) for view in VIEWS)
            for found, axis in ((of_columns, 0), (of_rows, 1)):
                sums = np.stack([one.sum(axis), other.sum(axis)])
                if one.shape[1 - axis] > 1 and (np.ptp(sums, axis=1) > 0).all():
                    found.append(np.corrcoef(sums)[0, 1])
        if of_columns and of_rows and np.mean(of_rows) > np.mean(of_columns) + 0.3:
            log.warning(
                "%s: the rows of the two views go together (correlation %.2f), the columns do not (%.2f); expected the "
                "beam axis z along the columns, are rows and columns exchanged?",
                *(self.files[0], np.mean(of_rows), np.mean(of_columns)),
            )

    def __len__(self) -> int:
        return len(self._row_index)

    def __iter__(self) -> Iterator[ImageEvent]:
        return (self[i] for i in range(len(self)))

    def name(self, index: int) -> str:
        """``file#row`` of an event, the row counted in the file; maps in the cache are named after the 3D events."""
        return f"{self._sources[self._file_index[index]]}#{self._row_index[index]}"

    def __getitem__(self, index: int) -> ImageEvent:
        """Event ``index``; every field is checked while it is read.

        Raises:
            IndexError: no such event.
            ValueError: the event is damaged: says the file, event, view, what was found and expected.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"event {index} of {len(self)}")
        path, row = self.files[self._file_index[index]], int(self._row_index[index])
        event = self._file(path).event(row, self.name(index))
        if self._unknown.keys() <= event.truth.keys():
            return event
        return event.replace(truth={**self._unknown, **event.truth})

    def truths(self) -> dict[str, np.ndarray]:
        """Truth of all events (n, ...), without reading their pixels: names as in ``TRUTH``, -1 or NaN where
        unknown."""
        found = {name: unknown(name, len(self)) for name in self._unknown}
        for number, path in enumerate(self.files):
            own = np.arange(*np.searchsorted(self._file_index, (number, number + 1)))
            for name, values in self._file(path).truth.items() if len(own) else ():
                found[name][own] = values[self._row_index[own]]
        return found

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
        kind = image_kind(path)
        if kind == "volume":
            return VolumeFile(path, self.size or SIZE, self.centre, self.detector)
        if kind == "sparse":
            return SparseFile(path)
        if kind == "dense":
            return ArrayFile(path, **self._said)
        return PngTable(path, self._said["labels"], self._said["pitch"])

    def close(self) -> None:
        """Close the files; they open again when needed."""
        if self._pid == os.getpid():
            for file in self._open_files.values():
                file.close()
        self._open_files = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open_files": {}}
