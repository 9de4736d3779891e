"""What can be wrong with pixel maps that no network was trained on: noise, dead pixels, a wrong gain, a missing view.

They act on events as they were read, with energies in MeV (or grey values), before the transforms of the weights. The
random numbers of a view come from a stream of its own and do not depend on the strength: with the same seed a stronger
corruption has the same noise, only more of it, and the same pixels dead and some more. So strengths, models and views
are compared on the same draws. arXiv 2509.08461 has none of these; its half resolution is
:class:`nufm.data.image_transforms.Coarse`.

Shape legend: N pixels with charge of a view, H rows, W columns.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nufm.data.images import VIEWS, ImageEvent, View
from nufm.data.transforms import Transform


class ViewCorruption(Transform):
    """A transform of each view by itself: subclasses define ``corrupt``."""

    @abstractmethod
    def corrupt(self, view: View, shape: tuple[int, int], rng: np.random.Generator) -> View:
        """The view as it would have been read; ``view`` itself stays as it is."""

    def __call__(self, event: ImageEvent, rng: np.random.Generator) -> ImageEvent:
        # One seed for each view, missing or not: what one view draws must not hang on the other being there.
        streams = dict(zip(VIEWS, rng.integers(2**63, size=len(VIEWS)), strict=True))
        views = {
            name: self.corrupt(view, event.shape, np.random.default_rng(int(streams[name])))
            for name, view in event.views.items()
        }
        return event.replace(views=views)


@dataclass(frozen=True)
class PixelNoise(ViewCorruption):
    """Gaussian noise N(0, sigma²) on every pixel of the map, with charge or without; then zero suppression: what is not
    above ``threshold`` is dropped, signal included.

    Of H·W pixels without charge a share Φ(-threshold/sigma) is left, with charge that is not there.

    Args:
        sigma: MeV (or grey values).
        threshold: MeV (or grey values).

    Raises:
        ValueError: a value is negative or not finite.
    """

    sigma: float
    threshold: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "sigma", 0, math.inf)
        _check(self, "threshold", 0, math.inf)

    def corrupt(self, view: View, shape: tuple[int, int], rng: np.random.Generator) -> View:
        image = rng.standard_normal(shape, dtype=np.float32) * np.float32(self.sigma)
        image[view.pixel[:, 0], view.pixel[:, 1]] += view.energy
        rows, columns = np.nonzero(image > self.threshold)
        return View(np.stack([rows, columns], axis=1).astype(np.int32), image[rows, columns])


@dataclass(frozen=True)
class DeadPixels(ViewCorruption):
    """A share of the pixels of the map, or of its whole columns, reads nothing.

    Args:
        share: probability of each pixel or column, in [0, 1]; the two views have their own.
        of: ``pixels``, or ``columns``: all pixels of one z.

    Raises:
        ValueError: a share outside [0, 1], or another ``of``.
    """

    share: float
    of: Literal["pixels", "columns"] = "pixels"

    def __post_init__(self) -> None:
        _check(self, "share", 0, 1)
        if self.of not in ("pixels", "columns"):
            raise ValueError(f"DeadPixels: of is '{self.of}', expected 'pixels' or 'columns'")

    def corrupt(self, view: View, shape: tuple[int, int], rng: np.random.Generator) -> View:
        if self.of == "columns":
            alive = (rng.random(shape[1]) >= self.share)[view.pixel[:, 1]]
        else:
            alive = (rng.random(shape) >= self.share)[view.pixel[:, 0], view.pixel[:, 1]]
        return View(view.pixel[alive], view.energy[alive])


@dataclass(frozen=True)
class Gain(ViewCorruption):
    """Every energy × ``factor``, the same for all pixels of both views: a scale that is calibrated wrongly.

    Args:
        factor: 1 is right.

    Raises:
        ValueError: it is not a positive number.
    """

    factor: float

    def __post_init__(self) -> None:
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise ValueError(f"Gain: factor is {self.factor}, expected a positive number")

    def corrupt(self, view: View, shape: tuple[int, int], rng: np.random.Generator) -> View:
        return View(view.pixel, view.energy * np.float32(self.factor))


@dataclass(frozen=True)
class PixelGain(ViewCorruption):
    """Every pixel has a gain of its own: energies × exp(sigma·z - sigma²/2), z standard normal; the mean factor is 1.

    Args:
        sigma: of the logarithm; for small values the relative spread of the gains.

    Raises:
        ValueError: it is negative or not finite.
    """

    sigma: float

    def __post_init__(self) -> None:
        _check(self, "sigma", 0, math.inf)

    def corrupt(self, view: View, shape: tuple[int, int], rng: np.random.Generator) -> View:
        # The whole map is drawn, so that a pixel has its gain whatever else has charge.
        z = rng.standard_normal(shape, dtype=np.float32)[view.pixel[:, 0], view.pixel[:, 1]]
        factor = np.exp(np.float32(self.sigma) * z - np.float32(self.sigma**2 / 2))
        return View(view.pixel, view.energy * factor)


@dataclass(frozen=True)
class WithoutView(Transform):
    """The event as if a view had not been read out.

    Args:
        view: ``xz`` or ``yz``.

    Raises:
        ValueError: another view.
    """

    view: str

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"WithoutView: view is '{self.view}', expected one of {', '.join(VIEWS)}")

    def __call__(self, event: ImageEvent, rng: np.random.Generator) -> ImageEvent:
        return event.without(self.view)


def _check(corruption: Transform, name: str, least: float, most: float) -> None:
    value = getattr(corruption, name)
    if not (math.isfinite(value) and least <= value <= most):
        bounds = f"from {least} to {most}" if math.isfinite(most) else f"of at least {least}"
        raise ValueError(f"{type(corruption).__name__}: {name} is {value}, expected a number {bounds}")
