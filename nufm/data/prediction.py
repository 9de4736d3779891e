"""What a model says about the points of events.

Shape legend: N points, C classes, B events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class PointPrediction:
    """Of the points of a :class:`nufm.data.event.PointBatch`, row by row.

    Attributes:
        label: int64 (N,) class, -1 none.
        confidence: float32 (N,) in [0, 1], how sure the model is of ``label`` (and of the instance).
        probability: float32 (N, C) of every class; None where the model gives none.
        instance: int64 (N,) 0..n-1 within its event, -1 none; None for models that only classify.
        momentum: float32 (N,) GeV/c of the point's instance, NaN none; None for models that do not say.
    """

    label: Tensor
    confidence: Tensor
    probability: Tensor | None = None
    instance: Tensor | None = None
    momentum: Tensor | None = None


@dataclass(frozen=True)
class EventPrediction:
    """Of one event, its rows in the order in which the event was read (after the energy cut).

    Attributes:
        name: where the event comes from, ``file.h5#index``.
        classes: names of the C classes.
        voxel: int32 (N, 3) lattice index.
        energy: float32 (N,) MeV.
        label, confidence, probability, instance, momentum: as in :class:`PointPrediction`.
    """

    name: str
    classes: tuple[str, ...]
    voxel: np.ndarray
    energy: np.ndarray
    label: np.ndarray
    confidence: np.ndarray
    probability: np.ndarray | None = None
    instance: np.ndarray | None = None
    momentum: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.voxel)


@dataclass(frozen=True)
class StreamPrediction:
    """Of the B events of a :class:`nufm.data.streams.StreamBatch`.

    Attributes:
        probability: label -> float32 (B, K) of every class.
        value: quantity -> float32 (B, ...), in the units of ``QUANTITIES``.
    """

    probability: dict[str, Tensor]
    value: dict[str, Tensor]


# GeV/c; below, a transverse momentum says nothing: the motion of the nucleon that was hit gives every event that much
# (Fermi momentum of lead 0.265 GeV/c: E. J. Moniz et al., Phys. Rev. Lett. 26 (1971) 445), and nothing else gives the
# visible momentum of a νµ or νe charged current any, unless charm decays into neutrinos.
LEAST_TRANSVERSE = 0.3

# Quantities that are predicted of whole events -> what they are, and their unit.
QUANTITIES = {
    "visible": ("visible momentum", "GeV/c"),
    "jet": ("momentum of the hadronic jet", "GeV/c"),
    "lepton": ("momentum of the primary lepton, visible minus jet", "GeV/c"),
    "missing_pt": ("transverse part of the visible momentum", "GeV/c"),
    "vertex": ("interaction vertex", "mm"),
}


@dataclass(frozen=True)
class StreamEventPrediction:
    """Of one event with several streams.

    Attributes:
        name: where the event comes from.
        classes: label -> names of the K classes.
        probability: label -> float32 (K,).
        value: quantity -> float32 (...), in the units of ``QUANTITIES``.
    """

    name: str
    classes: dict[str, tuple[str, ...]]
    probability: dict[str, np.ndarray]
    value: dict[str, np.ndarray]

    def label(self, name: str) -> str:
        """The most probable class of a label."""
        return self.classes[name][int(self.probability[name].argmax())]
