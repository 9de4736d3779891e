"""A detector is data: one YAML file per detector in ``nufm/data/detectors``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

FOLDER = Path(__file__).parent / "detectors"


@dataclass(frozen=True)
class Detector:
    """Geometry and units of one detector.

    Attributes:
        name: name of its file in ``nufm/data/detectors``.
        lattice: voxels per axis; indices run from 0 to lattice - 1.
        pitch_mm: edge of a voxel per axis in mm.
        centre_voxel: voxel index (not necessarily whole) of the point that positions in mm are measured from.
        axes: names of the axes, in the order of the lattice columns.
        units: quantity -> unit.
        medium: what the detector is made of.
        description: one line for people.
    """

    name: str
    lattice: tuple[int, int, int]
    pitch_mm: tuple[float, float, float]
    centre_voxel: tuple[float, float, float]
    axes: tuple[str, str, str]
    units: dict[str, str]
    medium: str = ""
    description: str = ""

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Full edge lengths in mm."""
        return tuple(n * p for n, p in zip(self.lattice, self.pitch_mm, strict=True))

    def position(self, voxel: np.ndarray) -> np.ndarray:
        """float64 (N, 3) position in mm from the detector centre of the low corners of the voxels (N, 3)."""
        return (np.asarray(voxel, dtype=np.float64) - self.centre_voxel) * self.pitch_mm


@lru_cache
def load_detector(name: str) -> Detector:
    """The detector described by ``nufm/data/detectors/<name>.yaml``.

    Raises:
        ValueError: no such file, or a field is missing or unknown.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise ValueError(f"unknown detector '{name}': {path} does not exist; known detectors: {known}")
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return Detector(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except TypeError as error:
        raise ValueError(
            f"{path}: {error}; expected the fields {', '.join(Detector.__annotations__)}"
        ) from error


# ---------------------------------------------------------------------- several sub-detectors


@dataclass(frozen=True)
class VoxelStream:
    """A sub-detector that gives hits on a lattice.

    Attributes:
        lattice: voxels per axis of a module.
        pitch_mm: edge of a voxel per axis.
        low_mm: low corner of module 0, from the origin of positions.
        modules: how many; module m is ``m * module_pitch_mm`` further along the last axis.
        module_pitch_mm: distance of modules.
        material: substance -> mm in one layer, for the simulation.
    """

    lattice: tuple[int, int, int]
    pitch_mm: tuple[float, float, float]
    low_mm: tuple[float, float, float]
    modules: int = 1
    module_pitch_mm: float = 0.0
    material: dict[str, float] | None = None

    def position(self, index: np.ndarray, module: np.ndarray) -> np.ndarray:
        """float64 (N, 3) mm: centres of the voxels ``index`` (N, 3) of the modules (N,)."""
        place = (np.asarray(index, dtype=np.float64) + 0.5) * self.pitch_mm + self.low_mm
        place[:, 2] += np.asarray(module) * self.module_pitch_mm
        return place


@dataclass(frozen=True)
class MatrixStream:
    """A sub-detector that gives one dense array of energies: ``shape`` cells across the beam, ``pitch_mm`` apart, from
    the corner ``low_mm`` (3,) on, ``depth_mm`` deep."""

    shape: tuple[int, ...]
    pitch_mm: tuple[float, ...]
    low_mm: tuple[float, float, float]
    depth_mm: float
    material: dict[str, float] | None = None


@dataclass(frozen=True)
class TrackStream:
    """A sub-detector that gives at most ``max_tracks`` fitted tracks of ``features`` each; it begins at ``low_mm`` (3,)
    and ends at ``high_mm``; ``field_tesla`` (3,) is uniform, between ``planes_mm`` along the beam."""

    features: tuple[str, ...]
    max_tracks: int
    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]
    field_tesla: tuple[float, float, float] = (0.0, 0.0, 0.0)
    planes_mm: tuple[float, ...] = ()
    material: dict[str, float] | None = None


@dataclass(frozen=True)
class StreamDetector:
    """A detector of several sub-detectors, each a stream.

    Attributes:
        name: name of its file in ``nufm/data/detectors``.
        voxels, matrices, tracks: stream -> its geometry.
        axes: names of the axes; the last is along the beam.
        units: quantity -> unit.
        origin: what positions in mm are measured from.
        description: one line for people.
    """

    name: str
    voxels: dict[str, VoxelStream]
    matrices: dict[str, MatrixStream]
    tracks: dict[str, TrackStream]
    axes: tuple[str, str, str]
    units: dict[str, str]
    origin: str = ""
    description: str = ""

    @property
    def streams(self) -> tuple[str, ...]:
        return (*self.voxels, *self.matrices, *self.tracks)


@lru_cache
def load_stream_detector(name: str) -> StreamDetector:
    """The detector of several streams described by ``nufm/data/detectors/<name>.yaml``.

    Raises:
        ValueError: no such file, or a field is missing or unknown.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"unknown detector '{name}': {path} does not exist")
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    kinds = {"voxels": VoxelStream, "matrices": MatrixStream, "tracks": TrackStream}
    try:
        for kind, cls in kinds.items():
            fields[kind] = {s: cls(**_tuples(v)) for s, v in (fields.get(kind) or {}).items()}
        return StreamDetector(**_tuples(fields))
    except TypeError as error:
        raise ValueError(f"{path}: {error}; expected the fields {', '.join(StreamDetector.__annotations__)}") from error


def _tuples(fields: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
