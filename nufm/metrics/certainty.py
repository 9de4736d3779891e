"""Does a classifier know when it is wrong: predictive entropy against correctness. Shape legend: N samples, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nufm.metrics.one_vs_rest import roc_auc
from nufm.metrics.samples import SampleMetric


class CertaintyAUC(SampleMetric):
    """Area under the ROC curve of minus the predictive entropy as a score for being right.

    The "AUROC" of D. H. Koh, A. Mishra, K. Terao (JINST 18 (2023) P12013): the probability that a prediction which is
    right has less entropy than one which is wrong, ties counting one half. It is not an AUC of classes: a classifier
    that is never wrong has none (NaN).

    Args:
        ignore_index: target of samples that do not count.

    Example:
        >>> certainty = CertaintyAUC()
        >>> certainty.update(logits.softmax(1), batch.truth["particle"])
        >>> certainty.compute()
    """

    higher_is_better = True

    def __init__(self, ignore_index: int = -1) -> None:
        super().__init__(certainty=(torch.float64, ()), right=(torch.bool, ()))
        self.ignore_index = ignore_index

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Add samples.

        Args:
            probability: float (N, K), rows that sum to 1.
            target: integer (N,) true class, or ``ignore_index``.

        Raises:
            ValueError: shapes that do not fit, or rows that are no probabilities.
        """
        if probability.dim() != 2 or target.shape != probability.shape[:1]:
            raise ValueError(
                f"CertaintyAUC: probability is {tuple(probability.shape)} and target {tuple(target.shape)}, expected "
                "(N, K) and (N,)"
            )
        counted = target != self.ignore_index
        # On the CPU: Apple's GPU backend has no float64, and entropies of sure predictions differ by little.
        p, target = probability[counted].cpu().double(), target[counted].cpu()
        if len(p) and not bool(((p.sum(1) - 1).abs() < 1e-3).all() & (p >= 0).all()):
            raise ValueError("CertaintyAUC: rows of probability do not sum to 1; from logits pass logits.softmax(1)")
        self.keep(certainty=torch.special.xlogy(p, p).sum(1), right=p.argmax(1) == target)

    def compute(self) -> Tensor:
        """float64 scalar; NaN where all predictions are right, or all wrong."""
        return roc_auc(self.samples("certainty"), self.samples("right"))
