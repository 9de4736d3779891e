"""Where the voxels of an event are, in cm, and what is said about the event above its picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nufm.data.detector import load_detector
from nufm.data.event import Event
from nufm.data.streams import StreamEvent

SIMULATED = "simulated by nufm"


@dataclass(frozen=True)
class Geometry:
    """An event in its detector, lengths in cm from the detector's centre.

    Attributes:
        position: float (N, 3) centres of the voxels.
        low, high: (3,) bounds of the picture: the voxels with a small margin; the detector, if there are
            none.
        pitch: (3,) edges of a voxel.
        axes: names of the axes.
    """

    position: np.ndarray
    low: np.ndarray
    high: np.ndarray
    pitch: np.ndarray
    axes: tuple[str, ...]

    def core(self, energy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds (3,), (3,) of a closer look: the region of 94 % of the energy, axis by axis, with a margin.

        Isolated voxels, from neutrons say, are often a metre away from an event of 30 cm. The whole event
        is returned where a closer look would show little more.
        """
        weight = energy if energy.sum() > 0 else np.ones(len(self.position))
        low, high = np.empty(3), np.empty(3)
        for axis in range(3):
            x = self.position[:, axis]
            order = np.argsort(x, kind="stable")
            share = np.cumsum(weight[order], dtype=np.float64) / weight.sum(dtype=np.float64)
            low[axis] = x[order[np.searchsorted(share, 0.03)]]
            high[axis] = x[order[min(np.searchsorted(share, 0.97), len(x) - 1)]]
        margin = np.maximum(0.2 * (high - low).max(), 3 * self.pitch)
        low, high = np.maximum(low - margin, self.low), np.minimum(high + margin, self.high)
        if (high - low).max() > 0.75 * (self.high - self.low).max():
            return self.low, self.high
        return low, high

    def label(self, axis: int) -> str:
        return f"{self.axes[axis]} (cm)"


def geometry(event: Event) -> Geometry:
    """Positions and bounds of an event's voxels.

    Raises:
        ValueError: the event's detector is not known.
    """
    detector = load_detector(event.detector)
    pitch = np.array(detector.pitch_mm) / 10
    position = position_cm(event, event.voxel)
    if len(event):
        low, high = position.min(0) - pitch / 2, position.max(0) + pitch / 2
        # An axis the event hardly extends along gets some room, or a straight track would be a line of no
        # width.
        margin = np.maximum(0.03 * (high - low).max(), pitch)
        low, high = low - margin, high + margin
    else:
        low = -np.array(detector.centre_voxel) * pitch
        high = low + np.array(detector.extent_mm) / 10
    return Geometry(position, low, high, pitch, tuple(detector.axes))


def position_cm(event: Event, voxel: np.ndarray) -> np.ndarray:
    """float64 (M, 3) positions in cm of places (M, 3) on the event's lattice; a whole index is a voxel's centre.

    Raises:
        ValueError: the event's detector is not known.
    """
    detector = load_detector(event.detector)
    return detector.position(voxel) / 10 + np.array(detector.pitch_mm) / 20


def headline(event: Event, simulated: bool | None = None) -> str:
    """Detector, number of voxels, total energy, and where the event comes from, in one line."""
    noun = "voxel" if len(event) == 1 else "voxels"
    parts = [f"detector {event.detector}", f"{len(event):,} {noun}", energy_text(float(event.energy.sum()))]
    if is_simulated(event) if simulated is None else simulated:
        parts.append("simulated by nufm")
    return "   ·   ".join(parts)


def short_name(event: Event) -> str:
    """The event's name without the folders of its file."""
    file, mark, row = event.name.rpartition("#")
    return f"{Path(file).name}, event {row}" if mark else event.name


def energy_text(energy: float) -> str:
    """An energy given in MeV, with a readable unit."""
    return f"{energy / 1000:.2f} GeV" if energy >= 1000 else f"{energy:.3g} MeV"


def is_simulated(event: Event | StreamEvent) -> bool:
    """Whether the event's file says that nufm's simulation made it (``producer``, an HDF5 attribute or npz field)."""
    path = Path(event.name.rpartition("#")[0] or event.name)
    if not path.is_file():
        return False
    if path.suffix == ".npz":
        from nufm.data.stream_npz import npz_producer

        return SIMULATED in npz_producer(path)
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return SIMULATED in str(file.attrs.get("producer", ""))
    except OSError:  # not HDF5: then not a file that nufm wrote
        return False
