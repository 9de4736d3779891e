"""Classification scores of points, from one confusion matrix.

Shape legend: N points, C classes.

The only state is a matrix of integer counts. Batches and ranks add their counts, the divisions come last;
so the scores do not depend on how the points were cut into batches or spread over processes. (A mean of F1
scores of batches does: F1 is not linear in the counts.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class ConfusionScores(Metric):
    """Per-class precision, recall, F1 and IoU, their unweighted means, and the accuracy, over all points.

    With TP, FP, FN of a class taken from the pooled confusion matrix: precision = TP / (TP + FP),
    recall = TP / (TP + FN), F1 = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN).

    A ratio with denominator zero is NaN, and the means leave NaN out: a class absent from both truth and
    prediction does not enter ``macro_f1`` and ``miou``; a class that was predicted but never occurs enters
    them with 0. These are the conventions of scikit-learn with ``zero_division=nan``. Without points every
    score is NaN.

    Args:
        num_classes: C; classes are 0..C-1.
        ignore_index: target value of points that do not count; their prediction may be anything.

    Example:
        >>> scores = ConfusionScores(num_classes=5)
        >>> scores.update(logits.argmax(1), batch.labels["motif"])
        >>> scores.compute()["macro_f1"]
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor

    def __init__(self, num_classes: int, ignore_index: int = -1) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ignore_index {ignore_index} is one of the classes 0..{num_classes - 1}; choose another"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # int64: float32 counts stop growing at 2^24 points, a few thousand events.
        counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", counts, dist_reduce_fx="sum")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add points.

        Args:
            pred: integer (N,) predicted class (any shape, equal to that of ``target``).
            target: integer (N,) true class, or ``ignore_index``.

        Raises:
            ValueError: shapes differ, a dtype is not an integer, or a class is outside 0..C-1.
        """
        if pred.shape != target.shape:
            raise ValueError(
                f"ConfusionScores: pred has shape {tuple(pred.shape)}, target {tuple(target.shape)}, "
                "expected equal shapes; from logits (N, C) pass logits.argmax(1)"
            )
        for name, labels in (("pred", pred), ("target", target)):
            if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
                raise ValueError(
                    f"ConfusionScores: {name} has dtype {labels.dtype}, expected integer classes; "
                    "from logits (N, C) pass logits.argmax(1)"
                )
        # Widen first: with 16 classes or more, target * C + pred overflows int8.
        pred, target = pred.reshape(-1).long(), target.reshape(-1).long()
        counted = target != self.ignore_index
        pred, target = pred[counted], target[counted]
        for name, labels in (("pred", pred), ("target", target)):
            outside = (labels < 0) | (labels >= self.num_classes)
            if outside.any():
                remedy = f" or {self.ignore_index} (ignore)" if name == "target" else ""
                raise ValueError(
                    f"ConfusionScores: {name} holds class {int(labels[outside][0])} "
                    f"({int(outside.sum())} such points), expected 0..{self.num_classes - 1}{remedy}"
                )
        counts = torch.bincount(target * self.num_classes + pred, minlength=self.num_classes**2)
        self.confusion += counts.reshape(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """Scores of all points so far.

        Returns:
            ``precision``, ``recall``, ``f1``, ``iou``: float64 (C,); ``support``: int64 (C,) true points;
            ``macro_precision``, ``macro_recall``, ``macro_f1``, ``miou``, ``accuracy``: float64 scalars;
            ``confusion``: int64 (C, C), rows are the truth.
        """
        # Apple's GPU backend has no float64.
        confusion = self.confusion.to(torch.float32 if self.confusion.device.type == "mps" else torch.float64)
        hit, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        # 0 / 0 is NaN in IEEE arithmetic, which is the meaning wanted.
        precision, recall = hit / predicted, hit / true
        f1, iou = 2 * hit / (true + predicted), hit / (true + predicted - hit)
        return {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "iou": iou,
            "support": self.confusion.sum(1),
            "macro_precision": precision.nanmean(),
            "macro_recall": recall.nanmean(),
            "macro_f1": f1.nanmean(),
            "miou": iou.nanmean(),
            "accuracy": hit.sum() / confusion.sum(),
            "confusion": self.confusion.clone(),
        }
