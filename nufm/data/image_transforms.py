"""Transforms of pixel maps: brightness and resolution, which travel with the weights, and augmentations.

Energies are in MeV (or grey values 0 … 255) until :class:`Brightness` maps them to [0, 1], which is what networks see.
What sums energies up (:class:`Rebin`, :class:`Coarse`) hence comes before it; the data module checks that.
YAML names a transform by its import path: ``{class_path: nufm.data.image_transforms.Rebin, init_args: {factor: 4}}``.

Shape legend: N pixels of a view, H rows, W columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nufm.data.images import ImageEvent, View
from nufm.data.transforms import Transform

GREY_LEVELS = 255  # the largest grey value


@dataclass(frozen=True)
class Brightness(Transform):
    """Energies as brightness in [0, 1].

    E in MeV becomes log(1 + E/scale) / log(1 + full/scale), or E/full with ``linear``; what is below 0 becomes 0, above
    ``full`` 1. The paper's images are grey, how charge becomes grey it does not say. A minimum-ionising particle leaves
    1 MeV in 5 mm of argon: 0.18 with the defaults, 45 of 255 grey values. Grey images are divided by 255, whatever the
    arguments.

    Args:
        curve: ``log`` or ``linear``.
        full: MeV in a pixel that is white.
        scale: MeV up to which the logarithm is about linear; for ``log`` only.

    Raises:
        ValueError: an unknown curve, or energies that are not positive.
    """

    curve: Literal["log", "linear"] = "log"
    full: float = 50.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.curve not in ("log", "linear"):
            raise ValueError(f"Brightness: curve is '{self.curve}', expected 'log' or 'linear'")
        for field in ("full", "scale"):
            value = getattr(self, field)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"Brightness: {field} is {value}, expected a positive energy in MeV")

    def values(self, energy: np.ndarray, unit: str = "MeV") -> np.ndarray:
        """float32 in [0, 1], of energies of any shape in ``unit``."""
        energy = np.asarray(energy, dtype=np.float64)
        if unit == "grey":
            value = energy / GREY_LEVELS
        elif self.curve == "linear":
            value = energy / self.full
        else:
            value = np.log1p(np.maximum(energy, 0) / self.scale) / math.log1p(self.full / self.scale)
        return np.clip(value, 0.0, 1.0).astype(np.float32)

    def __call__(self, event: ImageEvent, rng: np.random.Generator) -> ImageEvent:
        views = {n: View(v.pixel, self.values(v.energy, event.unit)) for n, v in event.views.items()}
        return event.replace(views=views)


# ---------------------------------------------------------------------- resolution and size


@dataclass(frozen=True)
class Rebin(Transform):
    """Pixels of ``factor`` × ``factor`` become one that holds the sum of their energies: the map has fewer pixels, the
    pitch grows. Grey values, which are no energies, are averaged over the block, as when a picture is made smaller.

    Raises:
        ValueError: a factor below 1, or a map that does not divide by it.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        _check_factor(self)

    def __call__(self, event: ImageEvent, rng: np.random.Generator) -> ImageEvent:
        if self.factor == 1:
            return event
        views = {n: _blocks(v, self.factor, event) for n, v in event.views.items()}
        shape = (event.shape[0] // self.factor, event.shape[1] // self.factor)
        return event.replace(views=views, shape=shape, pitch=event.pitch * self.factor)


@dataclass(frozen=True)
class Coarse(Transform):
    """What pixels ``factor`` times larger would see, on a map of as many pixels as before: the resolution of
    :class:`Rebin` for a network of fixed input size. Pitch and shape stay what they were.

    Args:
        factor: pixels per edge of a block.
        share: the pixels of a block share its energy, so that the sum stays; else each shows all of it, as a picture
            that is made larger does (the paper does not say which). Grey values are the mean of the block either way.

    Raises:
        ValueError: a factor below 1, or a map that does not divide by it.
    """

    factor: int = 2
    share: bool = True

    def __post_init__(self) -> None:
        _check_factor(self)

    def __call__(self, event: ImageEvent, rng: np.random.Generator) -> ImageEvent:
        if self.factor == 1:
            return event
        corner = np.stack(np.divmod(np.arange(self.factor**2), self.factor), axis=1)
        views = {}
        for name, view in event.views.items():
            block = _blocks(view, self.factor, event)
            pixel = (block.pixel[:, None] * self.factor + corner).reshape(-1, 2).astype(np.int32)
            energy = np.repeat(block.energy, self.factor**2)
            if self.share and event.unit == "MeV":
                energy = energy / np.float32(self.factor**2)
            views[name] = View(pixel, energy)
        return event.replace(views=views)


def _check_factor(transform: Rebin | Coarse) -> None:
    if transform.factor < 1:
        raise ValueError(f"{type(transform).__name__}: factor is {transform.factor}, expected 1 or more pixels")


def _blocks(view: View, factor: int, event: ImageEvent) -> View:
    """Blocks of ``factor`` × ``factor`` pixels as pixels; sums of MeV, means of grey values."""
    if event.shape[0] % factor or event.shape[1] % factor:
        raise ValueError(
            f"{event.name}: a map of {event.shape[0]} × {event.shape[1]} pixels cannot be cut into blocks of {factor} "
            f"× {factor}; choose a factor that divides both, or put a Window of such a size before it"
        )
    columns = event.shape[1] // factor
    block = view.pixel.astype(np.int64) // factor
    cells, row = np.unique(block[:, 0] * columns + block[:, 1], return_inverse=True)
    total = np.bincount(row.reshape(-1), weights=view.energy, minlength=len(cells))
    if event.unit == "grey":
        total = total / factor**2
    return View(np.stack(np.divmod(cells, columns), axis=1).astype(np.int32), total.astype(np.float32))


@dataclass(frozen=True)
class Window(Transform):
    """The ``size`` × ``size`` pixels about the middle; where the map is smaller, pixels without charge are added.

    The pixel (H//2, W//2), where the interaction is in maps that are centred on it, becomes (size//2, size//2).

    Raises:
        ValueError: no size.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Window: size is {self.size}, expected 1 or more pixels")

    def __call__(self, event: ImageEvent, rng: np.random.Generator) -> ImageEvent:
        shape = (self.size, self.size)
        step = np.array([self.size // 2 - n // 2 for n in event.shape])
        return event.replace(views={n: _moved(v, step, shape) for n, v in event.views.items()}, shape=shape)


def _moved(view: View, step: np.ndarray, shape: tuple[int, int]) -> View:
    """Pixels ``step`` (2,) further on; those that leave the map are lost."""
    pixel = view.pixel + step
    inside = ((pixel >= 0) & (pixel < shape)).all(axis=1)
    return View(pixel[inside].astype(np.int32), view.energy[inside])


# ---------------------------------------------------------------------- augmentations


@dataclass(frozen=True)
class FlipTransverse(Transform):
    """With probability ``p`` each, independently: x becomes -x, y becomes -y, about the middle of the map; of the
    lepton's momentum and the vertex too. The beam stays along z, which is never flipped."""

    p: float = 0.5

    def __call__(self, event: ImageEvent, rng: np.random.Generator) -> ImageEvent:
        views, truth = dict(event.views), dict(event.truth)
        for axis, name in enumerate(("xz", "yz")):
            if rng.random() >= self.p:
                continue
            if name in views:
                pixel = views[name].pixel.copy()
                pixel[:, 0] = event.shape[0] - 1 - pixel[:, 0]
                views[name] = View(pixel, views[name].energy)
            for what in ("lepton", "vertex"):
                if what in truth:
                    sign = np.ones(3, dtype=np.float32)
                    sign[axis] = -1
                    truth[what] = truth[what] * sign
        return event.replace(views=views, truth=truth)


@dataclass(frozen=True)
class ShiftPixels(Transform):
    """All charge moves by up to ``pixels`` along x, y and z, whole pixels, each equally likely; both views by the same
    number of columns, since they share z. Charge that leaves the map is lost; the vertex, measured from the detector's
    centre, stays.

    Raises:
        ValueError: a negative number of pixels.
    """

    pixels: int = 8

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ValueError(f"ShiftPixels: pixels is {self.pixels}, expected 0 or more")

    def __call__(self, event: ImageEvent, rng: np.random.Generator) -> ImageEvent:
        x, y, z = rng.integers(-self.pixels, self.pixels, size=3, endpoint=True)
        steps = {"xz": np.array([x, z]), "yz": np.array([y, z])}
        return event.replace(views={n: _moved(v, steps[n], event.shape) for n, v in event.views.items()})
