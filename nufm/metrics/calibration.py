"""Whether a confidence of 0.9 is right nine times out of ten.

Shape legend: N points, C classes, M bins.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from nufm.metrics.contingency import from_units

# Sums are kept as integers, as contingency.UNIT explains; the larger unit leaves room for 2^33 points.
UNIT = 2**30
SMALLEST = 2.0**-23  # of a probability in a logarithm: float32's resolution beside 1, as in scikit-learn


class Calibration(Metric):
    """Expected and maximum calibration error of confidences, and, from probabilities, Brier score and NLL.

    Confidences fall into M bins of equal width, bin m from m/M up to but without (m+1)/M, the last with 1.
    With n_m points, mean confidence conf_m and fraction of right points acc_m in bin m, the expected
    calibration error is Σ_m n_m/n |acc_m − conf_m| and the maximum max_m |acc_m − conf_m| over bins that hold
    points (Guo et al., ICML 2017, arXiv 1706.04599, eq. 3 and 5).

    The Brier score is the mean over points of Σ_c (p_c − [c is true])², from 0 to 2 (Brier, Mon. Weather Rev.
    78 (1950) 1); NLL is the mean of −log p(true class) in nat, of a probability not below 2^-23.

    Args:
        n_bins: M.

    Raises:
        ValueError: ``n_bins`` is below 1.

    Example:
        >>> calibration = Calibration()
        >>> known = target >= 0
        >>> calibration.update(found.confidence[known], (found.label == target)[known])
        >>> calibration.compute()["expected_error"]
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    count: Tensor
    right: Tensor
    confidence: Tensor
    described: Tensor
    brier: Tensor
    nll: Tensor

    def __init__(self, n_bins: int = 15) -> None:
        super().__init__()
        if n_bins < 1:
            raise ValueError(f"n_bins is {n_bins}, expected at least 1")
        self.n_bins = n_bins
        for name in ("count", "right", "confidence"):
            self.add_state(name, torch.zeros(n_bins, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("described", "brier", "nll"):  # points with probabilities, and their sums
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        confidence: Tensor,
        correct: Tensor,
        probability: Tensor | None = None,
        target: Tensor | None = None,
    ) -> None:
        """Add points; leave out those whose class is unknown.

        Args:
            confidence: float (N,) in [0, 1].
            correct: bool (N,) whether the prediction is right.
            probability: float (N, C) of each class, with ``target``: int64 (N,) true class, 0..C-1.

        Raises:
            ValueError: a shape or dtype does not fit, a value is NaN or outside [0, 1], a class outside
                0..C-1, or only one of ``probability`` and ``target`` is given.
        """
        if confidence.dim() != 1 or not confidence.is_floating_point():
            raise ValueError(
                f"Calibration: confidence is {confidence.dtype} {tuple(confidence.shape)}, expected float (N,)"
            )
        if correct.shape != confidence.shape or correct.dtype != torch.bool:
            raise ValueError(
                f"Calibration: correct is {correct.dtype} {tuple(correct.shape)}, expected bool "
                f"{tuple(confidence.shape)}, such as pred == target"
            )
        _check_range("confidence", confidence)
        if (probability is None) != (target is None):
            raise ValueError("Calibration: probability and target are given together or not at all")
        if probability is not None:
            self._check_probability(probability, target, len(confidence))

        confidence = confidence.detach().float()
        row = (confidence * self.n_bins).long().clamp(max=self.n_bins - 1)
        # float32 times a power of two is exact.
        units = (confidence * UNIT).round().long()
        self.count += torch.bincount(row, minlength=self.n_bins)
        self.right += torch.bincount(row[correct], minlength=self.n_bins)
        self.confidence.index_add_(0, row, units)
        if probability is not None:
            probability = probability.detach().float()
            of_true = probability.gather(1, target[:, None])[:, 0]
            # Σ_c (p_c − t_c)² = Σ_c p_c² − p_true² + (1 − p_true)²
            square = probability.square().sum(1) - of_true.square() + (1 - of_true).square()
            self.brier += (square * UNIT).round().long().sum()
            self.nll += (-of_true.clamp(min=SMALLEST).log() * UNIT).round().long().sum()
            self.described += len(probability)

    @staticmethod
    def _check_probability(probability: Tensor, target: Tensor, n: int) -> None:
        if probability.dim() != 2 or len(probability) != n or not probability.is_floating_point():
            raise ValueError(
                f"Calibration: probability is {probability.dtype} {tuple(probability.shape)}, expected float "
                f"({n}, C)"
            )
        _check_range("probability", probability)
        if target.shape != (n,) or target.dtype != torch.int64:
            raise ValueError(
                f"Calibration: target is {target.dtype} {tuple(target.shape)}, expected int64 ({n},)"
            )
        outside = (target < 0) | (target >= probability.shape[1])
        if bool(outside.any()):
            raise ValueError(
                f"Calibration: target holds class {int(target[outside][0])}, expected "
                f"0..{probability.shape[1] - 1}; leave out points of unknown class"
            )

    def compute(self) -> dict[str, Tensor]:
        """Scores of all points so far.

        Returns:
            float64 scalars ``expected_error``, ``maximum_error``, ``accuracy``, ``mean_confidence``, ``brier``
            and ``nll`` (NaN without probabilities); for a reliability diagram ``bin_edges`` float64 (M+1,),
            ``bin_count`` int64 (M,), ``bin_confidence`` and ``bin_accuracy`` float64 (M,), NaN in empty bins.
        """
        count, right = from_units(self.count, 1), from_units(self.right, 1)
        confidence = from_units(self.confidence, UNIT)
        total, gap = count.sum(), (right - confidence).abs()
        filled = count > 0
        worst = torch.where(filled, gap / count, -1.0).max()
        edges = torch.arange(self.n_bins + 1, dtype=count.dtype, device=count.device) / self.n_bins
        return {
            "expected_error": gap.sum() / total,
            "maximum_error": torch.where(filled.any(), worst, torch.nan),
            "accuracy": right.sum() / total,
            "mean_confidence": confidence.sum() / total,
            "brier": from_units(self.brier, UNIT) / self.described,
            "nll": from_units(self.nll, UNIT) / self.described,
            "bin_edges": edges,
            "bin_count": self.count.clone(),
            "bin_confidence": confidence / count,
            "bin_accuracy": right / count,
        }


def _check_range(name: str, value: Tensor) -> None:
    bad = ~((value >= 0) & (value <= 1))  # NaN fails both
    if bool(bad.any()):
        raise ValueError(
            f"Calibration: {name} holds {float(value[bad][0])} ({int(bad.sum())} such values), expected "
            "numbers in [0, 1]; from logits pass their softmax"
        )
