"""Residuals of reconstructed quantities: median, spread, robust resolution, and distances in space.

Shape legend: N events.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nufm.metrics.samples import SampleMetric

MAD_TO_SIGMA = 1.4826  # 1/Φ⁻¹(3/4): the MAD of a normal distribution times this is its standard deviation


class Residuals(SampleMetric):
    """Residuals d = reco - true, and fractional ones r = d/true, of one quantity.

    σ_MAD = 1.4826 · median|r - median r|, so that it is σ where r is normal; r is of the events whose true value is
    larger than ``least`` in size (the talk of F. Cufino, NPML 2026, names σ_MAD without its factor). The IQR is the
    difference of the 75 % and 25 % quantiles of d, interpolated linearly as in NumPy. Events whose truth is not finite
    do not count.

    Args:
        least: of nothing, a residual is no fraction: below this size of the true value there is no r.

    Example:
        >>> momentum = Residuals()
        >>> momentum.update(found.norm(dim=1), batch.truth["jet"].norm(dim=1))
        >>> momentum.compute()["sigma_mad"]
    """

    higher_is_better = False

    def __init__(self, least: float = 0.0) -> None:
        super().__init__(reco=(torch.float64, ()), true=(torch.float64, ()))
        self.least = least

    def update(self, reco: Tensor, true: Tensor) -> None:
        """Add events: float (N,) each.

        Raises:
            ValueError: other shapes, or a reconstructed value that is not finite where the truth is.
        """
        if reco.shape != true.shape or reco.dim() != 1:
            raise ValueError(
                f"Residuals: reco has shape {tuple(reco.shape)}, true {tuple(true.shape)}, expected (N,) for both"
            )
        known = true.isfinite()
        _check_finite("Residuals", reco[known])
        self.keep(reco=reco[known], true=true[known])

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars ``median``, ``q25``, ``q75``, ``iqr`` of d; ``fractional_median``, ``sigma_mad`` of r;
        ``mean_absolute`` of d; int64 ``count``, ``fractional_count``. NaN without events."""
        reco, true = self.samples("reco"), self.samples("true")
        difference = reco - true
        apart = true.abs() > self.least
        ratio = difference[apart] / true[apart]
        low, middle, high = quantiles(difference, (0.25, 0.5, 0.75))
        centre = quantiles(ratio, (0.5,))[0]
        return {
            "median": middle,
            "q25": low,
            "q75": high,
            "iqr": high - low,
            "mean_absolute": difference.abs().mean(),
            "fractional_median": centre,
            "sigma_mad": MAD_TO_SIGMA * quantiles((ratio - centre).abs(), (0.5,))[0],
            "count": torch.tensor(len(true)),
            "fractional_count": apart.sum().cpu(),
        }


class Distances(SampleMetric):
    """Distances ‖reco - true‖₂ of points in space, such as vertices: mean, median and quantiles, in their unit."""

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__(distance=(torch.float64, ()))

    def update(self, reco: Tensor, true: Tensor) -> None:
        """Add events: float (N, 3) each; events whose truth is not finite do not count.

        Raises:
            ValueError: other shapes, or a reconstructed value that is not finite where the truth is.
        """
        if reco.shape != true.shape or reco.dim() != 2:
            raise ValueError(
                f"Distances: reco has shape {tuple(reco.shape)}, true {tuple(true.shape)}, expected (N, 3) for both"
            )
        known = true.isfinite().all(1)
        _check_finite("Distances", reco[known])
        self.keep(distance=(reco[known].double() - true[known].double()).norm(dim=1))

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars ``mean``, ``median``, ``q68``, ``q95``; int64 ``count``. NaN without events."""
        distance = self.samples("distance")
        median, q68, q95 = quantiles(distance, (0.5, 0.68, 0.95))
        count = torch.tensor(len(distance))
        return {"mean": distance.mean(), "median": median, "q68": q68, "q95": q95, "count": count}


def quantiles(values: Tensor, levels: tuple[float, ...]) -> Tensor:
    """float64 (len(levels),), linear between neighbours as in NumPy; NaN without values.

    torch.quantile refuses more than 16 million values.
    """
    if len(values) == 0:
        return torch.full((len(levels),), torch.nan, dtype=torch.float64)
    ordered = values.double().cpu().sort().values
    place = torch.tensor(levels, dtype=torch.float64) * (len(ordered) - 1)
    below = place.floor().long()
    above = (below + 1).clamp(max=len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _check_finite(name: str, reco: Tensor) -> None:
    bad = ~reco.isfinite()
    if bool(bad.any()):
        raise ValueError(f"{name}: reco holds {float(reco[bad][0])} ({int(bad.sum())} such values), expected numbers")
