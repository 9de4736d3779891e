"""One HDF5 file of events with several streams, open for reading; :mod:`nufm.data.stream_files` describes the layout.

Shape legend: n events of the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from nufm.data.detector import load_stream_detector

LAYOUT = 1
Record = dict[str, np.ndarray]  # path of a data set -> one event's part of it


@dataclass(frozen=True)
class _Stream:
    """What of a stream is in the file: its data sets by path, its offsets int64 (n+1,) if it is ragged, and in which
    events it is there, bool (n,), None = in all."""

    data: dict[str, h5py.Dataset]
    offsets: np.ndarray | None
    present: np.ndarray | None


class EventFile:
    """One HDF5 file of events, read event by event.

    Attributes:
        path: the file.
        attributes: of the file.
        detector: whose events they are.
        n_events: n.
        group: int64 (n,) or None.

    Raises:
        ValueError: it is not of this layout, or its data sets do not fit together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self._inspect()
        except BaseException:
            self.close()
            raise

    def _inspect(self) -> None:
        file = self._file
        self.attributes = dict(file.attrs)
        if self.attributes.get("layout") != LAYOUT or "detector" not in self.attributes:
            raise ValueError(
                f"{self.path}: found the attributes {sorted(self.attributes)}, expected layout = {LAYOUT} and "
                "detector; is it a file of events with several streams, made with scripts/simulate.py --detector or "
                "scripts/convert.py?"
            )
        self.detector = load_stream_detector(str(self.attributes["detector"]))
        self._streams: dict[str, _Stream] = {}
        lengths: dict[str, int] = {}
        for kind, known in (
            ("hits", self.detector.voxels),
            ("matrices", self.detector.matrices),
            ("tracks", self.detector.tracks),
        ):
            for stream in file.get(kind, ()):
                if stream not in known:
                    raise ValueError(
                        f"{self.path}: stream '{stream}' among the {kind}, the detector '{self.detector.name}' has "
                        f"{', '.join(known) or 'none of that kind'}"
                    )
                path = f"{kind}/{stream}"
                data, offsets = self._ragged(path) if kind != "matrices" else ({path: file[path]}, None)
                if kind == "hits" and known[stream].modules > 1 and f"{path}/module" not in data:
                    raise ValueError(
                        f"{self.path}: data set '{path}/module' is missing, the stream has {known[stream].modules} "
                        "modules"
                    )
                lengths[path] = len(file[path]) if offsets is None else len(offsets) - 1
                present = None
                if f"present/{stream}" in file:
                    present = file[f"present/{stream}"][:].astype(bool)
                    lengths[f"present/{stream}"] = len(present)
                self._streams[stream] = _Stream(data, offsets, present)
        self._stacked = {f"truth/{name}": data for name, data in file.get("truth", {}).items()}
        self._stacked |= {f"identity/{name}": data for name, data in file.get("identity", {}).items()}
        self._stacked |= {name: file[name] for name in ("extra", "group") if name in file}
        lengths |= {name: len(data) for name, data in self._stacked.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"{self.path}: events per data set are {lengths}, expected data sets, all with the same number; the "
                "file is damaged or was not closed, get it again"
            )
        self.n_events = next(iter(lengths.values()))
        self.group = file["group"][:] if "group" in file else None

    def _ragged(self, path: str) -> tuple[dict[str, h5py.Dataset], np.ndarray]:
        """Data sets and offsets of a stream of hits or tracks."""
        node = self._file[path]
        for name in ("index", "charge", "offsets") if path.startswith("hits/") else ("features", "offsets"):
            if name not in node:
                raise ValueError(f"{self.path}: data set '{path}/{name}' is missing, found {sorted(node)}")
        offsets = node["offsets"][:].astype(np.int64)
        data = {f"{path}/{name}": node[name] for name in node if name != "offsets"}
        rows = {name: len(value) for name, value in data.items()}
        if len(offsets) == 0 or offsets[0] != 0 or (np.diff(offsets) < 0).any() or set(rows.values()) != {offsets[-1]}:
            raise ValueError(
                f"{self.path}: '{path}/offsets' goes from {offsets[:1].tolist()} to {offsets[-1:].tolist()}, and the "
                f"rows are {rows}; expected a rise from 0 to the number of rows of each; the file is damaged, get it "
                "again"
            )
        return data, offsets

    def record(self, row: int) -> Record:
        """Event ``row``, of 0..n-1: path of a data set -> its part of it.

        Raises:
            ValueError: it cannot be read.
        """
        record: Record = {}
        for stream in self._streams.values():
            if stream.present is not None and not stream.present[row]:
                continue
            rows = row if stream.offsets is None else slice(int(stream.offsets[row]), int(stream.offsets[row + 1]))
            record.update(self._read(stream.data, rows))
        record.update(self._read(self._stacked, row))
        return record

    def stacked(self, name: str, rows: np.ndarray) -> np.ndarray | None:
        """``rows`` of a data set with one entry per event, such as ``truth/flavour``; None if it is absent."""
        return self._stacked[name][:][rows] if name in self._stacked else None

    def real_voxels(self) -> np.ndarray:
        """int64 (n,) hits of the detector's first voxel stream that are not ghosts, 0 where it is missing."""
        name = next(iter(self.detector.voxels), "")
        if name not in self._streams:
            return np.zeros(self.n_events, dtype=np.int64)
        stream = self._streams[name]
        counts = np.diff(stream.offsets)
        ghost = stream.data.get(f"hits/{name}/ghost")
        for first in range(0, self.n_events if ghost is not None else 0, 1024):
            edges = stream.offsets[first : first + 1025]
            ghosts_before = np.concatenate([[0], np.cumsum(ghost[int(edges[0]) : int(edges[-1])] == 1)])
            counts[first : first + 1024] -= np.diff(ghosts_before[edges - edges[0]])
        return counts

    def _read(self, data: dict[str, h5py.Dataset], rows: int | slice) -> Iterable[tuple[str, np.ndarray]]:
        for name, values in data.items():
            try:
                yield name, np.asarray(values[rows])
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"{self.path}: rows {rows} of data set '{name}' cannot be read, the file is truncated or damaged "
                    f"({error}); get it again"
                ) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path) -> h5py.File:
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path}: not an HDF5 file; give an .h5 file of events, or .npz files")
    try:
        # "best-effort": some network file systems cannot lock, which is no reason not to read
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened, it is truncated or damaged ({error}); get it again") from error
