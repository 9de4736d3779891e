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
