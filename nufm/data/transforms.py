"""Transforms: event in, event out, with the random numbers they may use handed to them.

``NormalizeCoord``, ``LogEnergy`` (or ``RawEnergy``), ``GridSample`` and ``WithoutLED`` prepare an event for a network
and travel with its weights; the others are augmentations. They act on ``Event.coord`` and ``Event.feat``; the lattice
index, the energy in MeV and the labels stay what they were. Packing builds the input columns x, y, z from ``coord``, so
an augmentation that moves points need not touch ``feat``.

Values are those of Panda (Young, Terao, arXiv 2512.01324; public configurations in DeepLearnPhysics/pimm).
YAML names a transform by its import path: ``{class_path: nufm.data.transforms.RandomFlip, init_args: {p:
    0.5}}``.

Shape legend: N points, C feature columns. Coordinates are dimensionless after ``NormalizeCoord`` (the
detector's half diagonal is 1), energies are in MeV.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nufm.data.event import MOTIF_NAMES, Event

Axis = Literal["x", "y", "z"]
AXES: tuple[Axis, ...] = ("x", "y", "z")


class Transform(ABC):
    """A function ``(event, rng) -> event``; subclasses are frozen dataclasses, their fields the arguments."""

    @abstractmethod
    def __call__(self, event: Event, rng: np.random.Generator) -> Event:
        """The transformed event; the one given stays as it is."""


class CoordTransform(Transform):
    """A transform that moves points and changes nothing else: subclasses define ``move``."""

    @abstractmethod
    def move(self, coord: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """New coordinates float32 (N, 3); ``coord`` itself stays as it is."""

    def __call__(self, event: Event, rng: np.random.Generator) -> Event:
        return event.replace(coord=self.move(_coord(event, self), rng))


def compose(transforms: Sequence[Transform], event: Event, rng: np.random.Generator) -> Event:
    """The transforms applied one after the other."""
    for moving, group in itertools.groupby(transforms, lambda t: isinstance(t, CoordTransform)):
        if moving:  # one new event for the whole run: making events would cost more than moving their points
            group = list(group)
            coord = _coord(event, group[0])
            for transform in group:
                coord = transform.move(coord, rng)
            event = event.replace(coord=coord)
        else:
            for transform in group:
                event = transform(event, rng)
    return event


@dataclass(frozen=True)
class Compose(Transform):
    """Several transforms, applied in order."""

    transforms: tuple[Transform, ...]

    def __call__(self, event: Event, rng: np.random.Generator) -> Event:
        return compose(self.transforms, event, rng)


def _coord(event: Event, who: Transform) -> np.ndarray:
    if event.coord is None:
        raise ValueError(f"{event.name}: {type(who).__name__} needs 'coord'; put NormalizeCoord before it")
    return event.coord


@dataclass(frozen=True)
class NormalizeCoord(Transform):
    """``coord`` = (voxel - centre) / scale on each axis.

    The defaults map the 768³ lattice into the unit ball: scale = 768·√3/2.

    Args:
        centre: voxel index that becomes 0.
        scale: voxels per unit of ``coord``.
    """

    centre: float = 384.0
    scale: float = 665.10751

    def __call__(self, event: Event, rng: np.random.Generator) -> Event:
        coord = (event.voxel.astype(np.float32) - np.float32(self.centre)) / np.float32(self.scale)
        return event.replace(coord=coord)

    def inverse(self, coord: np.ndarray) -> np.ndarray:
        """float64, the voxel index (not necessarily whole) that has the coordinates ``coord``."""
        return np.asarray(coord, dtype=np.float64) * self.scale + self.centre


@dataclass(frozen=True)
class LogEnergy(Transform):
    """``feat`` = one column, y = 2·[log10(E + ε) - log10 ε] / [log10(E_max + ε) - log10 ε] - 1.

    0 MeV becomes -1 and ``e_max`` becomes 1; larger energies go above 1, nothing is clipped.

    Args:
        epsilon: ε in MeV. Panda pretrains with 0.01; PoLAr-MAE and its successors' segmentation use 0.13.
        e_max: E_max in MeV.
    """

    epsilon: float = 0.01
    e_max: float = 20.0

    def __call__(self, event: Event, rng: np.random.Generator) -> Event:
        low, span = self._range()
        # float64 inside: in float32, ε = 0.01 would cost the last digits of small deposits
        y = 2.0 * (np.log10(event.energy.astype(np.float64) + self.epsilon) - low) / span - 1.0
        return event.replace(feat=y.astype(np.float32)[:, None], columns=("log_energy",))

    def inverse(self, feat: np.ndarray) -> np.ndarray:
        """float64, energy in MeV that becomes ``feat``: E = 10^[(y + 1)/2·span + log10 ε] - ε; below 0 for y < -1."""
        low, span = self._range()
        return 10.0 ** ((np.asarray(feat, dtype=np.float64) + 1.0) / 2.0 * span + low) - self.epsilon

    def _range(self) -> tuple[float, float]:
        """log10 of ε, and how far above it that of E_max + ε is."""
        low = math.log10(self.epsilon)
        return low, math.log10(self.e_max + self.epsilon) - low


@dataclass(frozen=True)
class RawEnergy(Transform):
    """``feat`` = one column, the energy of the voxel in MeV: the input of the sparse UResNet (arXiv 1903.05663)."""

    def __call__(self, event: Event, rng: np.random.Generator) -> Event:
        return event.replace(feat=event.energy.astype(np.float32)[:, None], columns=("energy",))

    def inverse(self, feat: np.ndarray) -> np.ndarray:
        """float64, the energy in MeV."""
        return np.asarray(feat, dtype=np.float64)


@dataclass(frozen=True)
class GridSample(Transform):
    """One point, chosen at random, of every occupied cell; the points kept stay in their order.

    A PILArNet voxel is 0.0015 wide, 1.5 cells of the default size, so an event that was not scaled loses only
    points that share a voxel.

    Args:
        size: edge of a cell in the units of ``coord``.
    """

    size: float = 0.001

    def __call__(self, event: Event, rng: np.random.Generator) -> Event:
        coord = _coord(event, self)
        if len(coord) == 0:
            return event
        cell = np.floor(coord.T.copy() / self.size).astype(np.int64)
        cell -= cell.min(1, keepdims=True)
        extent = cell.max(1) + 1
        if float(extent[0]) * float(extent[1]) * float(extent[2]) >= 2.0**63:
            raise ValueError(
                f"{event.name}: field 'coord' spans {extent.tolist()} cells of {self.size}, more than fit in "
                "63 bits; is 'size' in the units of 'coord'?"
            )
        code = (cell[0] * extent[1] + cell[1]) * extent[2] + cell[2]
        shuffled = rng.permutation(len(code))
        _, first = np.unique(code[shuffled], return_index=True)
        if len(first) == len(code):
            return event
        return event.select(np.sort(shuffled[first]))


@dataclass(frozen=True)
class WithoutLED(Transform):
    """Drops the points whose truth is a low-energy deposit (LED), as PoLAr-MAE (arXiv 2502.02558) does before all else.

    They are a fifth of the points of PILArNet-M. Events without labels have no such truth.

    Raises:
        ValueError: the event has no ``motif`` labels.
    """

    def __call__(self, event: Event, rng: np.random.Generator) -> Event:
        if event.motif is None:
            raise ValueError(
                f"{event.name}: WithoutLED drops low-energy deposits by their truth, but field 'motif' is missing; use "
                "labelled events, or leave WithoutLED out of the transforms: a model trained with it has never seen "
                "such deposits"
            )
        return event.select(event.motif != MOTIF_NAMES.index("LED"))


@dataclass(frozen=True)
class EnergyJitter(Transform):
    """With probability ``p``, each point's log energy × (1 + clip(N(0, σ), ±clip)).

    It multiplies the scaled value, as published, so a point near y = 0 hardly changes.

    Args:
        sigma: standard deviation σ.
        clip: bound of the relative change.
        p: probability that the event is changed at all.
    """

    sigma: float = 0.05
    clip: float = 0.05
    p: float = 0.8

    def __call__(self, event: Event, rng: np.random.Generator) -> Event:
        if "log_energy" not in event.columns or event.feat is None:
            raise ValueError(
                f"{event.name}: EnergyJitter needs the column 'log_energy', found {event.columns}; "
                "put LogEnergy before it"
            )
        if rng.random() >= self.p:
            return event
        factor = 1.0 + np.clip(rng.standard_normal(len(event)) * self.sigma, -self.clip, self.clip)
        feat = event.feat.copy()
        feat[:, event.columns.index("log_energy")] *= factor.astype(np.float32)
        return event.replace(feat=feat)


@dataclass(frozen=True)
class CenterShift(CoordTransform):
    """Subtracts the centre of the bounding box."""

    def move(self, coord: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if len(coord) == 0:
            return coord
        axes = coord.T.copy()  # NumPy is ten times slower along the first of two axes
        return coord - (axes.min(1) + axes.max(1)) / np.float32(2)


@dataclass(frozen=True)
class RandomRotate(CoordTransform):
    """With probability ``p``, a right-handed rotation about one axis through the origin.

    Args:
        axis: rotation axis.
        p: probability of rotating at all.
        max_angle: the angle is uniform in ±max_angle, in radians.
    """

    axis: Axis = "z"
    p: float = 0.8
    max_angle: float = math.pi

    def move(self, coord: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.p:
            return coord
        angle = rng.uniform(-self.max_angle, self.max_angle)
        first, second = (AXES.index(self.axis) + 1) % 3, (AXES.index(self.axis) + 2) % 3
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        rotated = coord.copy()
        rotated[:, first] = cos * coord[:, first] - sin * coord[:, second]
        rotated[:, second] = sin * coord[:, first] + cos * coord[:, second]
        return rotated


@dataclass(frozen=True)
class RandomFlip(CoordTransform):
    """Changes the sign of each of ``axes`` independently, with probability ``p`` each."""

    axes: tuple[Axis, ...] = AXES
    p: float = 0.5

    def move(self, coord: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        sign = np.ones(3, dtype=np.float32)
        for axis in self.axes:
            if rng.random() < self.p:
                sign[AXES.index(axis)] = -1
        return coord * sign


@dataclass(frozen=True)
class CubeSymmetry(CoordTransform):
    """With probability ``p``, one of the 48 rotations and reflections of the cube: axes in any order, each with any
    sign. Points keep their lattice, which a rotation by another angle does not: up to rounding, points in different
    cells stay in different cells.

    Args:
        p: probability that the event is changed at all.
    """

    p: float = 1.0

    def move(self, coord: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.p:
            return coord
        sign = np.where(rng.random(3) < 0.5, -1, 1).astype(np.float32)
        return coord[:, rng.permutation(3)] * sign


@dataclass(frozen=True)
class CoordJitter(CoordTransform):
    """Adds clip(N(0, σ), ±clip) to every coordinate. The defaults are 0.17 and 0.67 PILArNet voxels.

    Args:
        sigma: standard deviation in the units of ``coord``.
        clip: bound in the units of ``coord``.
    """

    sigma: float = 0.00025
    clip: float = 0.001

    def move(self, coord: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal(coord.shape, dtype=np.float32) * np.float32(self.sigma)
        return coord + np.clip(noise, -self.clip, self.clip)


def event_transforms(grid_size: float = 0.001) -> list[Transform]:
    """What every event goes through before an encoder sees it, as published."""
    return [NormalizeCoord(), LogEnergy(), GridSample(grid_size)]


def view_augmentation() -> list[Transform]:
    """Augmentation of a view in Panda's pretraining, in its order."""
    rotations = [RandomRotate(axis) for axis in ("z", "x", "y")]
    return [CenterShift(), *rotations, RandomFlip(), CoordJitter()]
