"""From 3D events to pixel maps: the charge projected onto XZ and YZ, cut out about the interaction.

The 3D events are those of PILArNet-M files of any detector whose voxels are cubes (``nufm/data/detectors``), simulated
by nufm or public. A file may hold ``truth/<name>`` (n, ...) beside the voxels (see ``nufm.data.images.TRUTH``), and an
attribute ``detector``. View XZ sums over y and YZ over x, over the whole detector; a pixel is as large as a voxel.

The maps are centred on the interaction (arXiv 2509.08461, §II), pixel (size//2, size//2); on what the paper does not
say. Here it is, in this order, whichever is known: the true vertex of the neutrino; the point where most of the charge
comes from, by the creation points of its particles (``cluster_extra``), if there is charge near it, since files without
vertices hold zeros; the mean position of the charge.

Shape legend: N voxels, P pixels of a view.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from nufm.data import detector as detector_files
from nufm.data import event as event_arrays
from nufm.data import image_hdf5, images, pilarnet
from nufm.data.cache import cached, new_folder
from nufm.data.detector import FOLDER, load_detector
from nufm.data.event import Event
from nufm.data.image_hdf5 import truth_columns, write_maps
from nufm.data.images import VIEWS, ImageEvent, View
from nufm.data.pilarnet import PILArNetReader, find_files

log = logging.getLogger(__name__)

SIZE = 512  # pixels per edge, arXiv 2509.08461, §II
NEAR = 200.0  # mm: one and a half radiation lengths of argon, within which most photons leave charge
Centre = Literal["vertex", "charge"]


# ---------------------------------------------------------------------- one event


def project(event: Event, size: int = SIZE, centre: np.ndarray | None = None) -> ImageEvent:
    """The maps of an event.

    Args:
        event: voxels and their energies.
        size: pixels per edge.
        centre: (3,) index, whole or not, of the voxel that the maps are centred on; None: see :func:`centre_of`.

    Raises:
        ValueError: a detector without cubic voxels, or a centre that is not a point.
    """
    pitch = pixel_pitch(event.detector)
    centre = centre_of(event) if centre is None else np.asarray(centre, dtype=np.float64)
    if centre.shape != (3,) or not np.isfinite(centre).all():
        raise ValueError(f"{event.name}: the centre of the maps is {centre}, expected three finite voxel indices")
    local = event.voxel.astype(np.int64) - np.floor(centre).astype(np.int64) + size // 2
    views = {}
    for axis, name in enumerate(VIEWS):
        place = local[:, [axis, 2]]
        inside = ((place >= 0) & (place < size)).all(axis=1)
        cells, row = np.unique(place[inside] @ (size, 1), return_inverse=True)
        total = np.bincount(row.reshape(-1), weights=event.energy[inside], minlength=len(cells))
        pixel = np.stack(np.divmod(cells, size), axis=1).astype(np.int32)
        views[name] = View(pixel, total.astype(np.float32))
    return ImageEvent(views, (size, size), pitch, "MeV", {}, event.name, event.seed)


def centre_of(event: Event, vertex: np.ndarray | None = None, kind: Centre = "vertex") -> np.ndarray:
    """float64 (3,) voxel index, not necessarily whole, of what the maps are centred on.

    Args:
        event: its voxels, and their particles where they are known.
        vertex: (3,) mm from the detector's centre: the true one; None or NaN = unknown.
        kind: ``vertex``: the first known of ``vertex``, the creation point that most charge comes from, and the mean
            position of the charge; ``charge``: the mean position. An event without charge: the detector's middle.
    """
    detector = load_detector(event.detector)
    if kind == "vertex" and vertex is not None and np.isfinite(vertex).all():
        return _index(event.detector, np.asarray(vertex))
    if len(event) == 0 or event.energy.sum() == 0:
        return np.array(detector.lattice, dtype=np.float64) / 2
    if kind == "vertex" and event.vertex is not None and event.particle is not None:
        known = event.particle >= 0
        if known.any():
            points, row = np.unique(event.vertex[known], axis=0, return_inverse=True)
            from_there = np.bincount(row.reshape(-1), weights=event.energy[known])
            origin = points[from_there.argmax()].astype(np.float64)
            if np.linalg.norm(detector.position(event.voxel) - origin, axis=1).min() <= NEAR:
                return _index(event.detector, origin)
    return np.average(event.voxel, axis=0, weights=event.energy) + 0.5  # of the voxels' middles


def _index(detector: str, position: np.ndarray) -> np.ndarray:
    """Voxel index of a position (3,) in mm from the detector's centre."""
    geometry = load_detector(detector)
    return np.asarray(position, dtype=np.float64) / geometry.pitch_mm + geometry.centre_voxel


def pixel_pitch(detector: str) -> float:
    """Edge of a voxel in mm, the same along all axes.

    Raises:
        ValueError: it is not.
    """
    pitch = load_detector(detector).pitch_mm
    if len(set(pitch)) > 1:
        raise ValueError(
            f"detector '{detector}' has voxels of {' × '.join(map(str, pitch))} mm, expected cubes, so that a pixel is "
            "as wide as it is high; rebin the voxels to cubes first"
        )
    return float(pitch[0])


# ---------------------------------------------------------------------- files


class VolumeFile:
    """The events of one PILArNet-M file as pixel maps, projected when they are read.

    Args:
        path: the file.
        size: pixels per edge.
        centre: see :func:`centre_of`.
        detector: whose events they are; None: what the file's attribute ``detector`` says, else ``pilarnet``.
        energy_threshold: MeV; voxels with at most this energy are dropped.

    Attributes:
        n_events, shape, pitch, unit: of all its events.
        producer: who made them.
        truth: name -> array (n_events, ...).

    Raises:
        ValueError: it is not of that layout, its detector is not known, or its truth is not what it should be.
    """

    unit = "MeV"

    def __init__(
        self,
        path: str | Path,
        size: int = SIZE,
        centre: Centre = "vertex",
        detector: str | None = None,
        energy_threshold: float = 0.0,
    ) -> None:
        self.path, self.centre = Path(path), centre
        if centre not in ("vertex", "charge"):
            raise ValueError(f"centre is '{centre}', expected 'vertex' or 'charge'")
        if size < 1:
            raise ValueError(f"size is {size}, expected 1 or more pixels per edge")
        with h5py.File(self.path, "r", locking="best-effort") as file:
            said = str(file.attrs.get("detector", ""))
            self.producer = str(file.attrs.get("producer", ""))
            self.truth = truth_columns(file, len(file["point"]), self.path)
        if detector is not None and said and detector != said:
            raise ValueError(f"{path}: events of the detector '{said}', expected '{detector}'; leave the detector out")
        self.detector = detector or said or "pilarnet"
        try:
            self.shape, self.pitch = (size, size), pixel_pitch(self.detector)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        self._reader = PILArNetReader(self.path, energy_threshold, min_points=0, detector=self.detector)
        self.n_events = len(self._reader)

    def event(self, row: int, name: str) -> ImageEvent:
        event = self._reader[row].replace(name=name)
        vertex = self.truth["vertex"][row] if "vertex" in self.truth else None
        maps = project(event, self.shape[0], centre_of(event, vertex, self.centre))
        return maps.replace(truth={n: values[row] for n, values in self.truth.items()})

    def close(self) -> None:
        self._reader.close()


def ensure_maps(
    paths: str | Path | list[str | Path],
    size: int = SIZE,
    centre: Centre = "vertex",
    detector: str | None = None,
    energy_threshold: float = 0.0,
) -> Path:
    """The maps of 3D files from the cache; projected first if they are not there.

    The name in the cache comes from the files (path, size, time), the arguments, and the code that reads, projects and
    writes events, so that a change of any of these makes other maps.

    Args:
        paths: file, folder, glob, or a list of these.
        size, centre, detector, energy_threshold: as for :class:`VolumeFile`.

    Returns:
        The folder, with a file of maps for each of the files.
    """
    files = find_files(paths)
    stats = [(str(path.resolve()), (s := path.stat()).st_size, s.st_mtime_ns) for path in files]
    digest = hashlib.sha256(json.dumps([stats, size, centre, detector, energy_threshold]).encode())
    for module in (detector_files, event_arrays, image_hdf5, images, pilarnet):
        digest.update(Path(module.__file__).read_bytes())
    for source in (Path(__file__), *sorted(FOLDER.glob("*.yaml"))):
        digest.update(source.read_bytes())

    def make(folder: Path) -> None:
        with new_folder(folder) as temporary:
            for number, path in enumerate(files):
                source = VolumeFile(path, size, centre, detector, energy_threshold)
                log.info("%s: projecting %d events onto pixel maps, once", path, source.n_events)
                said = {"producer": source.producer, "source": str(path), "detector": source.detector, "centre": centre}
                write_maps(temporary / f"maps_{number:05d}.h5", _events(source), said)
                source.close()

    return cached(f"pixelmaps-{digest.hexdigest()[:16]}", make)


def _events(source: VolumeFile) -> Iterator[ImageEvent]:
    return (source.event(row, f"{source.path}#{row}") for row in range(source.n_events))
