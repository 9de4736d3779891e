"""Reader of PILArNet-M HDF5 files.

PILArNet-M (Young, Terao et al., arXiv 2502.02558; DeepLearnPhysics/PILArNet-M on the Hugging Face Hub)
stores one event per row of each data set, as a flat array of variable length:

    point          rows of 8           x, y, z (voxel index), voxel value (MeV), energy deposit (MeV), time,
                                       electrons, dx
    cluster        rows of 5 (v1)      points, fragment id, particle (group) id, interaction id, motif
                   rows of 6 (v2, v3)  the same, PID
    cluster_extra  not in v1
                   rows of 5 (v2)      mass (MeV), |p| (GeV/c), vertex x, y, z (mm)
                   rows of 6 (v3)      the same, is primary

Files with ``point`` alone hold unlabelled events.

Points are stored fragment by fragment in the order of the cluster rows, so a point's labels are its cluster
row's. The first cluster row of an event holds its low-energy deposits (ids -1). As in the published code,
the voxel value (column 3) is the energy. Beside ``x.h5`` there may be ``x_points.npy``, the number of points
of each event.

Shape legend: N points after the energy cut, M cluster rows.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from nufm.data.cache import cache_folder
from nufm.data.detector import load_detector
from nufm.data.event import MOTIF_NAMES, PID_NAMES, Event

log = logging.getLogger(__name__)

FIELDS = ("point", "cluster", "cluster_extra")
POINT_COLUMNS = 8
NO_PID = len(PID_NAMES) - 1  # class "none"
NO_LABELS = 0  # columns of ``cluster`` in files without it
SUFFIXES = (".h5", ".hdf5")
MAX_OPEN_FILES = 128  # per process: many systems allow 1024 in all, and there are workers


def find_files(paths: str | Path | Iterable[str | Path], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Files named by a path, a folder (its files with one of ``suffixes``), a glob, or a list: sorted, each once.

    Raises:
        FileNotFoundError: one of them names nothing.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    found: set[Path] = set()
    for path in paths:
        path = Path(path).expanduser()
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = [p for p in path.iterdir() if p.suffix in suffixes]
        else:
            matches = [Path(p) for p in glob.glob(str(path), recursive=True)]
        if not matches:
            wanted = (
                f"a folder without {' or '.join('*' + s for s in suffixes)} files"
                if path.is_dir()
                else "not there"
            )
            raise FileNotFoundError(
                f"{path} is {wanted}; give an HDF5 file, a folder of them, or a glob such as 'data/*.h5'"
            )
        found.update(matches)
    # A file for every event: event 10 comes after event 9, whether or not the names are padded with zeros.
    return sorted(found, key=_by_number if all(path.suffix == ".npz" for path in found) else str)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """The name in parts that sort numbers by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def chosen_events(passes: np.ndarray, max_events: int | None, subset_seed: int | None) -> np.ndarray:
    """int64, the events that are used, in file order, of those that ``passes`` bool (n,); subsets are nested.

    Args:
        passes: which events may be used.
        max_events: how many; None = all.
        subset_seed: draw them at random with this seed; None = the first ones.

    Raises:
        ValueError: ``max_events`` is not positive.
    """
    if max_events is not None and max_events < 1:
        raise ValueError(f"max_events is {max_events}, expected a positive number or None for all events")
    chosen = np.flatnonzero(passes)
    if max_events is None:
        return chosen
    if subset_seed is None:
        return chosen[:max_events]
    return np.sort(np.random.default_rng(subset_seed).permutation(chosen)[:max_events])


class PILArNetReader:
    """The events of one or more PILArNet-M files (v1, v2 or v3), in sorted file order.

    Selection, as published: an event needs at least ``min_points`` points *before* the energy cut; then
    points with energy <= ``energy_threshold`` are dropped, so that fewer, even no points may remain. Events
    below the minimum are counted in ``n_below_minimum`` and reported in the log.

    Labels: ``particle`` and ``interaction`` ids are renumbered 0..n-1 within the event, negative ids become
    -1. PID -1 becomes class 5, "none". The raw PID code of the kaon is also 5, so kaons share that class, as
    in the published code. v1 files have no PID: ``pid`` is None. Files with ``point`` alone are
    unlabelled: all labels are None. Without ``cluster_extra``, ``momentum`` and
    ``vertex`` are None; for points of no particle both hold -1.

    Files are opened when first needed, once in each process, so a reader can be handed to workers by fork or
    spawn.

    Args:
        paths: file, folder, glob, or a list of these.
        energy_threshold: points must have more than this, in MeV.
        min_points: smallest number of points before the cut; 0 keeps every event.
        max_events: keep this many of the events that pass: the first ones, so that subsets are nested; None
            = all.
        subset_seed: draw the ``max_events`` at random with this seed instead (still nested, and in file
            order).
        detector: whose events they are, a file in ``nufm/data/detectors``; None: what the files' attribute ``detector``
            says, else ``pilarnet``.

    Raises:
        FileNotFoundError: a path names nothing.
        ValueError: a file is not what it should be: says which, where, what was found and expected, and a
            remedy.
    """

    def __init__(
        self,
        paths: str | Path | list[str | Path],
        energy_threshold: float = 0.13,
        min_points: int = 1024,
        max_events: int | None = None,
        subset_seed: int | None = None,
        detector: str | None = None,
    ) -> None:
        self.files = find_files(paths)
        self.detector = load_detector(detector or _detector_of(self.files)).name
        self.energy_threshold = energy_threshold
        self.min_points = min_points
        self._open_files: dict[Path, dict[str, h5py.Dataset]] = {}
        self._pid = os.getpid()

        self.cluster_columns: list[int] = []
        counts = []
        for path in self.files:
            columns, points = _inspect(path)
            self.cluster_columns.append(columns)
            counts.append(points)
        self._counts = counts
        file_index = np.repeat(np.arange(len(counts)), [len(c) for c in counts])
        row_index = np.concatenate([np.arange(len(c)) for c in counts])
        passes = np.concatenate(counts) >= min_points

        self.n_total = len(passes)
        self.n_below_minimum = int(self.n_total - passes.sum())
        chosen = chosen_events(passes, max_events, subset_seed)
        self._file_index, self._row_index = file_index[chosen], row_index[chosen]

        where = str(self.files[0]) if len(self.files) == 1 else f"{len(self.files)} files, {self.files[0]} …"
        log.info(
            "%s: %d events, %d of them used, %d below the minimum of %d points",
            where,
            self.n_total,
            len(chosen),
            self.n_below_minimum,
            min_points,
        )
        if len(chosen) == 0:
            log.warning(
                "%s: no event has the minimum of %d points; lower min_points to use smaller events",
                where,
                min_points,
            )
        elif max_events is not None and len(chosen) < max_events:
            log.warning(
                "%s: max_events is %d, but only %d events have the minimum of %d points",
                where,
                max_events,
                len(chosen),
                min_points,
            )

    def __len__(self) -> int:
        return len(self._row_index)

    def __iter__(self) -> Iterator[Event]:
        return (self[i] for i in range(len(self)))

    @property
    def points_before_cut(self) -> np.ndarray:
        """int64 (len(self),) points of each event before the energy cut."""
        counts = [self._counts[f][r] for f, r in zip(self._file_index, self._row_index, strict=True)]
        return np.array(counts, dtype=np.int64)

    def name(self, index: int) -> str:
        """``file#row`` of an event, the row counted in the file, events below the minimum included."""
        return f"{self.files[self._file_index[index]]}#{self._row_index[index]}"

    def __getitem__(self, index: int) -> Event:
        """Event ``index``; every field is checked while it is read.

        Raises:
            IndexError: no such event.
            ValueError: the event is damaged: says the file, event, field, what was found and expected, a
                remedy.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"event {index} of {len(self)}")
        path, row = self.files[self._file_index[index]], int(self._row_index[index])
        columns = self.cluster_columns[self._file_index[index]]
        name = f"{path}#{row}"
        handle = self._handle(path)

        point = _rows(handle, "point", row, POINT_COLUMNS, path)
        if columns == NO_LABELS:
            self._check_count(index, len(point), name)
            voxel, energy = self._check_points(point, name)
            keep = energy > self.energy_threshold
            return Event(voxel=voxel[keep], energy=energy[keep], detector=self.detector, name=name)
        cluster = _rows(handle, "cluster", row, columns, path)
        if (cluster[:, 0] < 0).any() or not np.array_equal(cluster, np.rint(cluster)):
            bad = int(np.argmax((cluster[:, 0] < 0) | (cluster != np.rint(cluster)).any(1)))
            raise _damaged(
                name, "cluster", f" row {bad}", cluster[bad].tolist(), "whole numbers, with a size >= 0"
            )
        cluster = cluster.astype(np.int64)
        sizes = cluster[:, 0]
        if sizes.sum() != len(point):
            raise _damaged(
                name, "point", "", f"{len(point)} rows", f"{sizes.sum()} rows, the sum of the cluster sizes"
            )
        self._check_count(index, len(point), name)
        voxel, energy = self._check_points(point, name)
        self._check_classes(cluster, name)

        keep = energy > self.energy_threshold
        owner = np.repeat(np.arange(len(cluster)), sizes)[keep]

        def per_point(values: np.ndarray) -> np.ndarray:
            return values[owner]

        pid = None
        if columns >= 6:
            pid = per_point(np.where(cluster[:, 5] < 0, NO_PID, cluster[:, 5]))
        momentum = vertex = None
        if "cluster_extra" in handle:
            extra = _rows(handle, "cluster_extra", row, None, path, n_rows=len(cluster))
            if not np.isfinite(extra[:, 1:5]).all():
                bad = int(np.argmin(np.isfinite(extra[:, 1:5]).all(1)))
                raise _damaged(name, "cluster_extra", f" row {bad}", extra[bad].tolist(), "finite numbers")
            momentum = per_point(extra[:, 1].astype(np.float32))
            vertex = per_point(extra[:, 2:5].astype(np.float32))
        return Event(
            voxel=voxel[keep],
            energy=energy[keep],
            motif=per_point(cluster[:, 4]),
            pid=pid,
            particle=_compact(per_point(cluster[:, 2])),
            interaction=_compact(per_point(cluster[:, 3])),
            momentum=momentum,
            vertex=vertex,
            detector=self.detector,
            name=name,
        )

    def _check_count(self, index: int, found: int, name: str) -> None:
        """The index made the selection, so it must be that of this file."""
        counted = int(self._counts[self._file_index[index]][self._row_index[index]])
        if counted != found:
            raise ValueError(
                f"{name}: field 'point' has {found} rows, but the index says {counted}; the companion "
                f"{_companion(self.files[self._file_index[index]]).name} belongs to another file, remove or rebuild it"
            )

    def _check_points(self, point: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Voxels int32 (n, 3) and energies float32 (n,) of all points, before the cut."""
        energy = point[:, 3].astype(np.float32)
        bad = ~np.isfinite(energy) | (energy < 0)
        if bad.any():
            i = int(np.argmax(bad))
            raise _damaged(
                name, "point", f" row {i}, column 3 (energy)", energy[i], "a finite value >= 0 MeV"
            )
        lattice = np.array(load_detector(self.detector).lattice)
        position = point[:, :3]
        whole = np.rint(position)
        bad = position != whole  # NaN is unequal to itself, so it is caught here too
        if bad.any():
            i = int(np.argmax(bad.any(1)))
            raise _damaged(
                name, "point", f" row {i}, columns 0-2 (voxel)", position[i].tolist(), "whole lattice indices"
            )
        bad = (whole < 0) | (whole >= lattice)
        if bad.any():
            i = int(np.argmax(bad.any(1)))
            raise _damaged(
                name,
                "point",
                f" row {i}, columns 0-2 (voxel)",
                position[i].tolist(),
                f"indices on the lattice of '{self.detector}', 0 to {(lattice - 1).tolist()}",
            )
        return whole.astype(np.int32), energy

    @staticmethod
    def _check_classes(cluster: np.ndarray, name: str) -> None:
        checks = [(4, "motif", len(MOTIF_NAMES) - 1)]
        if cluster.shape[1] >= 6:
            checks.append((5, "PID", NO_PID))
        for column, what, highest in checks:
            bad = (cluster[:, column] < -1) | (cluster[:, column] > highest)
            if bad.any():
                i = int(np.argmax(bad))
                raise _damaged(
                    name,
                    "cluster",
                    f" row {i}, column {column} ({what})",
                    int(cluster[i, column]),
                    f"a class from -1 to {highest}",
                )

    # ---- files

    def _handle(self, path: Path) -> dict[str, h5py.Dataset]:
        """The file's data sets, opened in this process: an HDF5 handle must not be shared across a fork."""
        if self._pid != os.getpid():
            self._open_files, self._pid = {}, os.getpid()
        if path not in self._open_files:
            if len(self._open_files) >= MAX_OPEN_FILES:
                self._open_files.pop(next(iter(self._open_files)))["point"].file.close()
            handle = _open(path)
            # kept, because looking a data set up by name takes as long as reading an event from it
            self._open_files[path] = {field: handle[field] for field in FIELDS if field in handle}
        return self._open_files[path]

    def close(self) -> None:
        """Close the files; they open again when needed."""
        if self._pid == os.getpid():
            for handle in self._open_files.values():
                handle["point"].file.close()
        self._open_files = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open_files": {}}


def _detector_of(files: list[Path]) -> str:
    """The detector that the files name; PILArNet-M's own name none."""
    named: dict[str, Path] = {}
    for path in files:
        with _open(path) as handle:
            named.setdefault(str(handle.attrs.get("detector", "pilarnet")), path)
    if len(named) > 1:
        (one, first), (other, second) = list(named.items())[:2]
        raise ValueError(
            f"{second}: events of the detector '{other}', but {first} has those of '{one}'; read them one by one"
        )
    return next(iter(named))


def _inspect(path: Path) -> tuple[int, np.ndarray]:
    """Columns of ``cluster`` (0: there is none), and int64 (events,) points of each event before any cut."""
    with _open(path) as handle:
        labelled = "cluster" in handle or "cluster_extra" in handle
        for field in ("point", "cluster") if labelled else ("point",):
            if field not in handle or not isinstance(handle[field], h5py.Dataset):
                raise ValueError(
                    f"{path}: data set '{field}' is missing, found {sorted(handle)}, expected 'point', "
                    "'cluster' and perhaps 'cluster_extra'; is this a PILArNet-M file?"
                )
        lengths = {f: len(handle[f]) for f in FIELDS if f in handle}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"{path}: data sets of different length, found {lengths} events, expected one row per "
                "event in each; the file is damaged or was not closed, get it again"
            )
        for field in lengths:
            if h5py.check_vlen_dtype(handle[field].dtype) is None or handle[field].ndim != 1:
                raise ValueError(
                    f"{path}: data set '{field}' has type {handle[field].dtype} and {handle[field].ndim} "
                    "dimensions, expected one array of variable length per event"
                )
        columns = _cluster_columns(handle, path) if labelled else NO_LABELS
        companion = _companion(path)
        if companion.is_file():
            try:
                points = np.load(companion, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(
                    f"{companion}: not a NumPy array of points per event ({error}); remove or rebuild it"
                ) from error
            if points.shape != (lengths["point"],):
                raise ValueError(
                    f"{companion}: found shape {points.shape}, expected ({lengths['point']},), one number "
                    f"per event of {path.name}; remove or rebuild it"
                )
            return columns, points.astype(np.int64)
        return columns, _cached_counts(path, handle, columns)


def _companion(path: Path) -> Path:
    return path.with_name(f"{path.stem}_points.npy")


def _damaged(event: str, field: str, place: str, found: object, expected: str) -> ValueError:
    return ValueError(
        f"{event}: field '{field}'{place}: found {found}, expected {expected}; "
        "the file is damaged or not PILArNet-M, get it again"
    )


def _open(path: Path) -> h5py.File:
    if not h5py.is_hdf5(path):
        head = path.read_bytes()[:8] if path.stat().st_size < 2**20 else path.open("rb").read(8)
        raise ValueError(
            f"{path}: not an HDF5 file, found a file that starts with {head!r}; give a PILArNet-M .h5 file"
        )
    try:
        # "best-effort": some network file systems cannot lock, which is no reason not to read
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be opened, it is truncated or damaged ({error}); get it again"
        ) from error


def _flat(handle: Mapping[str, h5py.Dataset], field: str, rows: int | slice, path: Path) -> np.ndarray:
    try:
        return handle[field][rows]
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{path}#{rows}: field '{field}' cannot be read, the file is truncated or damaged ({error}); "
            "get it again"
        ) from error


def _rows(
    handle: Mapping[str, h5py.Dataset],
    field: str,
    row: int,
    columns: int | None,
    path: Path,
    n_rows: int | None = None,
) -> np.ndarray:
    """One event's array as a table of ``columns``, or of ``n_rows`` where the width is to be found."""
    flat = np.asarray(_flat(handle, field, row, path))
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.number):
        raise _damaged(
            f"{path}#{row}", field, "", f"an array of {flat.dtype} {flat.shape}", "a flat array of numbers"
        )
    if columns is not None:
        if flat.size % columns:
            raise _damaged(f"{path}#{row}", field, "", f"{flat.size} values", f"rows of {columns} columns")
        return flat.reshape(-1, columns)
    if n_rows == 0 and flat.size == 0:
        return flat.reshape(0, 5)
    if not n_rows or flat.size not in (5 * n_rows, 6 * n_rows):
        raise _damaged(
            f"{path}#{row}", field, "", f"{flat.size} values", f"5 or 6 columns for each of {n_rows} clusters"
        )
    return flat.reshape(n_rows, -1)


def _cluster_columns(handle: h5py.File, path: Path) -> int:
    """5 for v1 files, 6 for v2 and v3: the width that makes the cluster sizes add up to the points.

    The file does not say. Some events fit both widths by chance, and a damaged event fits neither, so
    several vote.
    """
    votes = {6: 0, 5: 0}
    for row in range(min(len(handle["cluster"]), 32)):
        flat, n_points = (
            np.asarray(_flat(handle, "cluster", row, path)),
            len(_flat(handle, "point", row, path)),
        )
        for columns in votes:
            if flat.size and flat.size % columns == 0:
                votes[columns] += int(flat[::columns].sum() * POINT_COLUMNS == n_points)
    if votes[5] == votes[6]:  # nothing to go by: the reader's checks will name the event and the field
        return 6
    return max(votes, key=votes.__getitem__)


def _cached_counts(path: Path, handle: h5py.File, columns: int) -> np.ndarray:
    """int64 (events,) points per event: counted once, then kept in the cache folder."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{columns}"
    cached = cache_folder() / "index" / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if cached.is_file():
        try:
            counts = np.load(cached, allow_pickle=False)
            if counts.shape == (len(handle["point"]),):
                return counts
        except (OSError, ValueError) as error:
            log.warning("%s: index cannot be read (%s), making it again", cached, error)
    counts = np.zeros(len(handle["point"]), dtype=np.int64)
    if len(counts) > 20000:
        log.info("%s: counting the points of %d events, once", path, len(counts))
    for start in range(0, len(counts), 4096):
        # The cluster sizes are a hundredth of the points; without them the points themselves must be read.
        block = _flat(handle, "cluster" if columns else "point", slice(start, start + 4096), path)
        sizes = [int(flat[::columns].sum()) if columns else flat.size // POINT_COLUMNS for flat in block]
        counts[start : start + len(block)] = sizes
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_suffix(f".{os.getpid()}.tmp.npy")
        np.save(temporary, counts)
        os.replace(temporary, cached)
    except OSError as error:
        log.warning(
            "%s: index cannot be kept (%s); set NUFM_CACHE to a writable folder to save the time",
            cached,
            error,
        )
    return counts


def _compact(ids: np.ndarray) -> np.ndarray:
    """Instance ids renumbered 0..n-1 in rising order; negative ids become -1."""
    valid = ids >= 0
    compact = np.full(len(ids), -1, dtype=np.int64)
    compact[valid] = np.unique(ids[valid], return_inverse=True)[1].reshape(-1)
    return compact
