"""HDF5 files of pixel maps: the sparse layout that nufm writes, and dense arrays made elsewhere;
``nufm.data.image_files`` describes both.

Shape legend: n events of the file, N pixels of all of them in a view, V views, H rows, W columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from nufm.data.images import CLASSES, TRUTH, VIEWS, ImageEvent, View

LAYOUT = "pixelmaps 1"
HDF5 = (".h5", ".hdf5")
CHUNK_ROWS = 16_384
MOST_PIXELS = 16_384  # per edge: a number in a file must not ask for all memory
AT_ONCE = 256  # events that wait until they are written


class SparseFile:
    """One HDF5 file of the sparse layout, read event by event.

    Attributes:
        n_events, shape, pitch, unit: of all its events.
        producer: who made them.
        source: the file of 3D events that they were projected from, row by row; empty if there is none.
        truth: name -> array (n_events, ...).

    Raises:
        ValueError: it is not of this layout, or its data sets do not fit together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_hdf5(self.path)
        try:
            self._inspect()
        except BaseException:
            self.close()
            raise

    def _inspect(self) -> None:
        file, said = self._file, dict(self._file.attrs)
        if missing := {"shape", "pitch", "unit", "n_events"} - set(said):
            raise ValueError(
                f"{self.path}: found the attributes {sorted(said)}, expected also {', '.join(sorted(missing))}; the "
                "file is damaged or was not closed, make it again"
            )
        try:
            self.n_events, self.pitch, self.unit = int(said["n_events"]), float(said["pitch"]), str(said["unit"])
            rows, columns = (int(n) for n in said["shape"])
        except (TypeError, ValueError) as error:
            told = ", ".join(f"{name} = {said[name]}" for name in ("n_events", "shape", "pitch"))
            raise ValueError(f"{self.path}: found {told}, expected numbers, of the shape two ({error})") from error
        if not (1 <= min(rows, columns) and max(rows, columns) <= MOST_PIXELS):
            raise ValueError(f"{self.path}: shape is {rows} × {columns}, expected 1 … {MOST_PIXELS} pixels per edge")
        self.shape = (rows, columns)
        self.producer, self.source = str(said.get("producer", "")), str(said.get("source", ""))
        self.truth = truth_columns(file, self.n_events, self.path)
        self._views: dict[str, tuple[np.ndarray, np.ndarray | None, h5py.Dataset, h5py.Dataset]] = {}
        if unknown := set(file.get("views", ())) - set(VIEWS):
            raise ValueError(f"{self.path}: unknown view '{min(unknown)}', expected {', '.join(VIEWS)}")
        for view, group in file.get("views", {}).items():
            if missing := {"offsets", "pixel", "energy"} - set(group):
                raise ValueError(f"{self.path}: 'views/{view}/{min(missing)}' is missing, found {sorted(group)}")
            for name, kind, shape in (("offsets", "iu", ()), ("pixel", "iu", (2,)), ("energy", "iuf", ())):
                data = group[name]
                if not isinstance(data, h5py.Dataset) or data.dtype.kind not in kind or data.shape[1:] != shape:
                    raise ValueError(
                        f"{self.path}: 'views/{view}/{name}' is {getattr(data, 'dtype', 'a group')} "
                        f"{getattr(data, 'shape', '')}, expected {'whole ' if kind == 'iu' else ''}numbers "
                        f"({', '.join(['rows', *map(str, shape)])})"
                    )
            offsets = group["offsets"][:].astype(np.int64)
            rows = {name: len(group[name]) for name in ("pixel", "energy")}
            rising = len(offsets) == self.n_events + 1 and offsets[0] == 0 and (np.diff(offsets) >= 0).all()
            if not rising or set(rows.values()) != {int(offsets[-1])}:
                raise ValueError(
                    f"{self.path}: 'views/{view}/offsets' are {len(offsets)} numbers from {offsets[:1].tolist()} to "
                    f"{offsets[-1:].tolist()}, and the rows are {rows}; expected {self.n_events + 1} that rise from 0 "
                    "to the number of rows of each; the file is damaged, make it again"
                )
            present = group["present"][:].astype(bool) if "present" in group else None
            if present is not None and present.shape != (self.n_events,):
                raise ValueError(
                    f"{self.path}: 'views/{view}/present' has shape {present.shape}, expected ({self.n_events},)"
                )
            self._views[view] = (offsets, present, group["pixel"], group["energy"])

    def event(self, row: int, name: str) -> ImageEvent:
        """Event ``row`` of 0..n-1, with a name for messages.

        Raises:
            ValueError: it cannot be read, or is not what it should be.
        """
        views = {}
        for view, (offsets, present, pixel, energy) in self._views.items():
            if present is not None and not present[row]:
                continue
            rows = slice(int(offsets[row]), int(offsets[row + 1]))
            try:
                views[view] = View(pixel[rows].astype(np.int32), energy[rows].astype(np.float32))
            except (OSError, RuntimeError) as error:
                raise unreadable(name, f"view '{view}'", error) from error
        truth = {n: values[row] for n, values in self.truth.items()}
        return ImageEvent(views, self.shape, self.pitch, self.unit, truth, name)

    def close(self) -> None:
        self._file.close()


def open_hdf5(path: Path) -> h5py.File:
    """The file, open for reading.

    Raises:
        ValueError: it is not HDF5, or damaged.
    """
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path}: not an HDF5 file; give an .h5 file of pixel maps, or a folder with PNG and CSV")
    try:
        # "best-effort": some network file systems cannot lock, which is no reason not to read
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened, it is truncated or damaged ({error}); get it again") from error


def unreadable(name: str, what: str, error: Exception) -> ValueError:
    return ValueError(f"{name}: {what} cannot be read, the file is truncated or damaged ({error}); get it again")


def truth_columns(file: h5py.File, n_events: int, path: Path) -> dict[str, np.ndarray]:
    """``truth/<name>`` of a file: name -> array (n, ...), in the types of ``TRUTH``; names that are not on that list
    are left alone.

    Raises:
        ValueError: a column has another length or shape, or holds what is no class.
    """
    group = file.get("truth", {})
    if isinstance(group, h5py.Dataset):
        raise ValueError(f"{path}: 'truth' is a data set, expected a group with some of {', '.join(TRUTH)}")
    found = {}
    for name in set(group) & set(TRUTH):
        shape, kind, _ = TRUTH[name]
        data = file[f"truth/{name}"]
        if not isinstance(data, h5py.Dataset) or data.shape != (n_events, *shape) or data.dtype.kind not in "iuf":
            raise ValueError(
                f"{path}: data set 'truth/{name}' is {getattr(data, 'dtype', 'a group')} {getattr(data, 'shape', '')}, "
                f"expected numbers {(n_events, *shape)}"
            )
        values = data[:]
        if name in CLASSES:
            check_classes(values, CLASSES[name], f"{path}: data set 'truth/{name}'")
        found[name] = values.astype(kind)
    return {name: found[name] for name in TRUTH if name in found}


def check_classes(values: np.ndarray, names: tuple[str, ...], where: str) -> None:
    """Refuses numbers that are no class; -1 = unknown.

    Raises:
        ValueError: names the first row that holds one.
    """
    bad = ~np.isin(values, np.arange(-1, len(names)))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{where}, row {row}: class {values[row]}, expected 0 … {len(names) - 1} ({', '.join(names)}), or -1 if it "
            "is not known"
        )


# ---------------------------------------------------------------------- writing


def write_maps(
    path: str | Path,
    events: Iterable[ImageEvent],
    attributes: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> int:
    """Write events into one file of the sparse layout; it appears when it is complete, or not at all.

    Truth that only some events have is written as unknown (-1, NaN) for the others.

    Args:
        path: an HDF5 file (.h5 or .hdf5); its folder is made.
        events: of one shape, pitch and unit, at least one.
        attributes: of the file, such as its producer.
        overwrite: replace an existing file.

    Returns:
        The number of events.

    Raises:
        ValueError: a name that does not end in .h5 or .hdf5, no events, or events of different kind.
        FileExistsError: the file is there, and ``overwrite`` is not set.
    """
    path = Path(path).expanduser()
    if path.suffix not in HDF5:
        raise ValueError(f"{path}: expected a name that ends in .h5 or .hdf5")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; choose another name, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            writer = _Writer(file)
            for event in events:
                writer.add(event)
            writer.finish()
            file.attrs.update({"layout": LAYOUT, **(attributes or {})})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return writer.n


class _Writer:
    """Appends events to an open file, some hundred at a time."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.first: ImageEvent | None = None
        self.waiting: dict[str, list[View]] = {view: [] for view in VIEWS}
        self.sizes: dict[str, list[int]] = {view: [] for view in VIEWS}
        self.present: dict[str, list[bool]] = {view: [] for view in VIEWS}
        self.truth: dict[str, list[np.ndarray | None]] = {name: [] for name in TRUTH}
        self.n = 0

    def add(self, event: ImageEvent) -> None:
        if self.first is None:
            self._begin(event)
        for what in ("shape", "pitch", "unit"):
            if getattr(event, what) != getattr(self.first, what):
                raise ValueError(
                    f"{event.name}: {what} is {getattr(event, what)}, expected {getattr(self.first, what)} as in "
                    f"{self.first.name}; write events of one kind into a file"
                )
        for view in VIEWS:
            self.present[view].append(view in event.views)
            self.sizes[view].append(len(event.views.get(view, ())))
            if view in event.views:
                self.waiting[view].append(event.views[view])
        for name in TRUTH:
            self.truth[name].append(event.truth.get(name))
        self.n += 1
        if self.n % AT_ONCE == 0:
            self._flush()

    def _begin(self, event: ImageEvent) -> None:
        self.first = event
        self.file.attrs.update({"shape": event.shape, "pitch": event.pitch, "unit": event.unit})
        # uint16 holds every index of a map that fits into memory
        pixel = np.uint16 if max(event.shape) <= 2**16 else np.int32
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        for view in VIEWS:
            for name, kind, shape in (("pixel", pixel, (2,)), ("energy", np.float32, ())):
                self.file.create_dataset(
                    *(f"views/{view}/{name}", (0, *shape), kind),
                    **{"maxshape": (None, *shape), "chunks": (CHUNK_ROWS, *shape), **options},
                )

    def _flush(self) -> None:
        for view, waiting in self.waiting.items():
            if not waiting:
                continue
            for name in ("pixel", "energy"):
                rows = np.concatenate([getattr(v, name) for v in waiting])
                data = self.file[f"views/{view}/{name}"]
                data.resize(len(data) + len(rows), axis=0)
                data[len(data) - len(rows) :] = rows
            waiting.clear()

    def finish(self) -> None:
        if self.first is None:
            raise ValueError(f"{self.file.filename}: there are no events to write")
        self._flush()
        self.file.attrs["n_events"] = self.n
        for view in VIEWS:
            self.file[f"views/{view}/offsets"] = np.concatenate([[0], np.cumsum(self.sizes[view])]).astype(np.int64)
            if not all(self.present[view]):
                self.file[f"views/{view}/present"] = np.array(self.present[view])
        for name, values in self.truth.items():
            shape, kind, _ = TRUTH[name]
            unknown = np.full(shape, -1 if kind is np.int64 else np.nan, dtype=kind)
            if any(value is not None for value in values):
                self.file[f"truth/{name}"] = np.stack(
                    [unknown if value is None else np.asarray(value, dtype=kind) for value in values]
                )
