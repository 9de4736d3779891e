"""What a masked model says of an event of several sub-detectors, in MeV and on the lattice: what displays draw; and the
transform between MeV and what the model sees.

Shape legend: N hits of a stream, K voxels of its hidden patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nufm.data.stream_transforms import StandardizeStreams
from nufm.data.streams import StreamEvent
from nufm.data.transforms import Compose, Transform


@dataclass(frozen=True, eq=False)
class HiddenVoxels:
    """The patches of a stream that were hidden from a model, and what it says of each of their voxels.

    Attributes:
        shown: bool (N,) hits that the model saw.
        target: bool (N,) hits that it should find: hidden, and not left out of the target as ghosts may be.
        index: int (K, 3) voxels of the hidden patches, hit or not.
        module: int (K,).
        occupancy: float (K,) in [0, 1], how sure it is that there is a hit.
        charge: float (K,) MeV, if there is one.

    Raises:
        ValueError: fields that do not fit together.
    """

    shown: np.ndarray
    target: np.ndarray
    index: np.ndarray
    module: np.ndarray
    occupancy: np.ndarray
    charge: np.ndarray

    def __post_init__(self) -> None:
        k = len(self.index)
        shapes = {"index": (k, 3), "module": (k,), "occupancy": (k,), "charge": (k,), "target": self.shown.shape}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"'{name}' has shape {getattr(self, name).shape}, expected {shape}")
        for name in ("occupancy", "charge"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"'{name}' is not finite; has the training diverged?")

    def likeliest(self) -> np.ndarray:
        """int (n,) the likeliest of the K voxels, as many as there are to be found: which voxels are held to be hit,
        whatever the probabilities are worth."""
        n = min(int(self.target.sum()), len(self.occupancy))
        return np.argsort(-self.occupancy, kind="stable")[:n]


@dataclass(frozen=True, eq=False)
class StreamReconstruction:
    """What a masked model says of what was hidden from it.

    Attributes:
        event: as read.
        voxels: stream -> its hidden patches.
        matrices: stream -> float32 MeV, of those that were hidden.
        tracks: stream -> probability that there is a track, and the mean charge, px, py, pz (GeV/c) if there is, of
            those that were hidden.
    """

    event: StreamEvent
    voxels: Mapping[str, HiddenVoxels]
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)
    tracks: Mapping[str, tuple[float, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StreamRelations:
    """What a model says of the hits that it saw of one stream.

    Attributes:
        event: as read.
        stream: whose hits.
        shown: bool (N,) hits that the model saw.
        ghost: float (N,) probability of a ghost; NaN where it did not see the hit, as in the following.
        hierarchy, category: float (N, 3) shares of ``HIERARCHY_NAMES`` and ``CATEGORY_NAMES``.

    Raises:
        ValueError: a wrong shape.
    """

    event: StreamEvent
    stream: str
    shown: np.ndarray
    ghost: np.ndarray
    hierarchy: np.ndarray
    category: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.event.voxels.get(self.stream, ()))
        for name, shape in {"shown": (n,), "ghost": (n,), "hierarchy": (n, 3), "category": (n, 3)}.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{self.event.name}: '{name}' has shape {getattr(self, name).shape}, expected {shape}: one row per "
                    f"hit of '{self.stream}'"
                )


def standardized_by(transforms: Sequence[Transform]) -> StandardizeStreams:
    """The transform that standardised values follow from MeV by.

    Raises:
        ValueError: there is none, or not exactly one.
    """
    flat = _flat(transforms)
    found = [t for t in flat if isinstance(t, StandardizeStreams)]
    if len(found) != 1:
        names = ", ".join(type(t).__name__ for t in flat) or "none"
        raise ValueError(f"cannot turn what is predicted into MeV: expected one StandardizeStreams, found {names}")
    return found[0]


def zero_charges(transforms: Sequence[Transform], streams: Sequence[str]) -> dict[str, float]:
    """stream -> what the transforms make of no charge at all; 0 where none of them standardises.

    Raises:
        ValueError: not exactly one standardises, or it has no numbers for a stream.
    """
    if not any(isinstance(t, StandardizeStreams) for t in _flat(transforms)):
        return dict.fromkeys(streams, 0.0)
    standard = standardized_by(transforms)
    return {stream: standard.zero(stream) for stream in streams}


def _flat(transforms: Sequence[Transform]) -> list[Transform]:
    """The transforms in their order, those inside of compositions too."""
    return [t for outer in transforms for t in (_flat(outer.transforms) if isinstance(outer, Compose) else (outer,))]
