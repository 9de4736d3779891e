"""Area under the ROC curve of each class against the rest.

Shape legend: N events, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nufm.metrics.samples import SampleMetric


class OneVsRest(SampleMetric):
    """One-vs-rest ROC AUC of every class and their unweighted mean, over all events of all batches and ranks.

    The AUC of class c is the probability that an event of c has a larger score for c than an event of another class,
    ties counting one half (Hanley, McNeil, Radiology 143 (1982) 29): with the mean ranks R_i of the N scores and n
    events of c, AUC = (Σ_{i in c} R_i - n (n + 1)/2) / (n (N - n)). It is NaN for a class without events, or without
    others, and the mean leaves it out. These are the numbers of scikit-learn's ``roc_auc_score``.

    Args:
        num_classes: K.
        ignore_index: target of events that do not count.

    Example:
        >>> auc = OneVsRest(6)
        >>> auc.update(logits.softmax(1), batch.truth["flavour"])
        >>> auc.compute()["macro"]
    """

    higher_is_better = True

    def __init__(self, num_classes: int, ignore_index: int = -1) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}, expected at least 2")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index {ignore_index} is one of the classes 0..{num_classes - 1}; choose another")
        super().__init__(score=(torch.float32, (num_classes,)), target=(torch.int64, ()))
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def update(self, score: Tensor, target: Tensor) -> None:
        """Add events.

        Args:
            score: float (N, K), the larger the likelier; within a column only the order matters, so that probabilities
                and logits of different events must have the same meaning: give probabilities.
            target: integer (N,) true class, or ``ignore_index``.

        Raises:
            ValueError: a shape or dtype does not fit, a score is NaN, or a class is outside 0..K-1.
        """
        if score.dim() != 2 or score.shape[1] != self.num_classes or not score.is_floating_point():
            raise ValueError(
                f"OneVsRest: score is {score.dtype} {tuple(score.shape)}, expected float (N, {self.num_classes})"
            )
        if target.shape != score.shape[:1] or target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(
                f"OneVsRest: target is {target.dtype} {tuple(target.shape)}, expected integer classes ({len(score)},)"
            )
        counted = target != self.ignore_index
        score, target = score[counted], target[counted]
        outside = (target < 0) | (target >= self.num_classes)
        if bool(outside.any()):
            raise ValueError(
                f"OneVsRest: target holds class {int(target[outside][0])}, expected 0..{self.num_classes - 1} or "
                f"{self.ignore_index} (ignore)"
            )
        if bool(score.isnan().any()):
            raise ValueError(f"OneVsRest: score holds NaN ({int(score.isnan().sum())} values), expected numbers")
        self.keep(score=score, target=target)

    def compute(self) -> dict[str, Tensor]:
        """``auc`` float64 (K,), ``macro`` float64 scalar, ``support`` int64 (K,) events of each class."""
        score, target = self.samples("score"), self.samples("target")
        support = torch.bincount(target, minlength=self.num_classes)
        auc = torch.stack([roc_auc(score[:, c], target == c) for c in range(self.num_classes)])
        return {"auc": auc, "macro": auc.nanmean(), "support": support}


def roc_auc(score: Tensor, positive: Tensor) -> Tensor:
    """Area under the ROC curve, float64 scalar on the CPU; NaN without positives or without negatives.

    Args:
        score: float (N,).
        positive: bool (N,).
    """
    score, positive = score.cpu(), positive.cpu()
    n, positives = len(score), int(positive.sum())
    if positives in (0, n):
        return torch.tensor(torch.nan, dtype=torch.float64)
    _, which, count = score.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    rank = last - (count.double() - 1) / 2  # equal scores share the mean of their ranks 1..N
    above = rank[which][positive].sum() - positives * (positives + 1) / 2
    return above / (positives * (n - positives))
