"""Semantic segmentation: a class for every point, learnt from labels.

Panda's protocol (arXiv 2512.01324; DeepLearnPhysics/pimm, configs/panda/semseg): cross-entropy plus 0.05 times
Lovász-softmax (Berman et al., arXiv 1705.08790), four regimes (``nufm.methods.finetuning``). The sparse UResNet is
trained with it too: regime scratch, constant rate, cross-entropy alone (DeepLearnPhysics/spine, config/uresnet).
PoLAr-MAE's: focal loss, γ = 2, with weights of the classes (DeepLearnPhysics/PoLAr-MAE, configs/part_segmentation_*).

Shape legend: N points, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nufm.data.event import PointBatch
from nufm.methods.finetuning import FineTuning
from nufm.metrics.confusion import ConfusionScores
from nufm.models.segmenter import SemanticModel


class Segmentation(FineTuning):
    """Trains a :class:`nufm.models.segmenter.SemanticModel`.

    Args:
        network: maps a batch to logits. In the regime ``lin`` its decoder, if it has one, is left out.
        task: ``motif``, ``motif4`` or ``pid``.
        lovasz_weight: weight of the Lovász-softmax loss beside the cross-entropy.
        class_weights: ``none``; ``balanced``: class c of a batch weighs N / (K N_c), K the classes that occur in it, so
            that rare classes count as much as frequent ones; or a weight for each class.
        focal_gamma: γ of the focal loss; 0: cross-entropy. Between 0 and 1 its gradient has no bound.
        options: of :class:`nufm.methods.finetuning.FineTuning`.

    Raises:
        ValueError: weights or γ out of range, or as :class:`nufm.methods.finetuning.FineTuning`.
    """

    kind = "semantic"

    def __init__(
        self,
        network: SemanticModel,
        task: str = "motif",
        lovasz_weight: float = 0.05,
        class_weights: Literal["none", "balanced"] | list[float] = "none",
        focal_gamma: float = 0.0,
        **options: Any,
    ) -> None:
        if options.get("regime") == "lin" and network.head_layers():
            network = network.without_decoder()
        super().__init__(network, task, **options)
        if not (focal_gamma == 0 or 1 <= focal_gamma < math.inf):
            raise ValueError(f"focal_gamma is {focal_gamma}, expected 0 (cross-entropy) or at least 1")
        self.lovasz_weight, self.class_weights, self.focal_gamma = lovasz_weight, class_weights, focal_gamma
        self.register_buffer("alpha", given_weights(class_weights, self.task.classes), persistent=False)
        self.main_loss = "focal" if focal_gamma else "cross_entropy"
        self.scores = ConfusionScores(len(self.task.classes))

    def loss(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Losses of logits (N, K) against classes int64 (N,), -1 ignored; each 0 where no point has a class."""
        logits, target = logits.float()[target >= 0], target[target >= 0]
        if len(target) == 0:
            nothing = logits.sum()  # 0, and connected to the weights: other ranks may have points
            return {self.main_loss: nothing, "lovasz": nothing}
        weight = balanced_weights(target, logits.shape[1]) if self.class_weights == "balanced" else self.alpha
        return {
            self.main_loss: focal_loss(logits, target, self.focal_gamma, weight),
            "lovasz": lovasz_softmax(logits.softmax(1), target) if self.lovasz_weight else logits.new_zeros(()),
        }

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        target, _ = self.task.targets(batch.labels, batch.names)
        parts = self.loss(self.network(batch), target)
        total = parts[self.main_loss] + self.lovasz_weight * parts["lovasz"]
        self.log_dict(
            {f"train/{k}": v.detach() for k, v in parts.items()}, batch_size=batch.n_events, sync_dist=True
        )
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=batch.n_events, sync_dist=True)
        return total

    def validation_step(self, batch: PointBatch, batch_idx: int) -> None:
        target, _ = self.task.targets(batch.labels, batch.names)
        logits = self.network(batch)
        self.scores.update(logits.argmax(1), target)

    def on_validation_epoch_end(self) -> None:
        found = self.scores.compute()
        self.log("val/macro_f1", found["macro_f1"].float(), prog_bar=True)
        self.log_dict({f"val/{name}": found[name].float() for name in ("miou", "accuracy")})
        for name, f1 in zip(self.task.classes, found["f1"], strict=True):
            self.log(f"val/f1_{name}", f1.float())
        self.scores.reset()


def focal_loss(logits: Tensor, target: Tensor, gamma: float, weight: Tensor | None = None) -> Tensor:
    """Focal loss (Lin et al., arXiv 1708.02002, eq. 5) of a softmax: (1/N) Σ_i -w_c (1 - p_i)^γ log p_i, where p_i is
    the probability of the true class c of point i.

    Divided by the number of points, as in the published code of PoLAr-MAE, and not by the sum of the weights. γ = 0 is
    the cross-entropy.

    Args:
        logits: float (N, K).
        target: int64 (N,) in 0..K-1, N >= 1.
        gamma: γ.
        weight: float (K,) w, or None for 1.
    """
    loss = F.cross_entropy(logits, target, reduction="none")
    if gamma:
        loss = (-torch.expm1(-loss)) ** gamma * loss  # 1 - p without the rounding of p near 1
    if weight is not None:
        loss = loss * weight[target]
    return loss.mean()


def balanced_weights(target: Tensor, n_classes: int) -> Tensor:
    """float (K,): N / (K' N_c) for the K' classes that occur, so that the weights of the points sum to N."""
    counts = torch.bincount(target, minlength=n_classes)
    return len(target) / ((counts > 0).sum() * counts.clamp(min=1))


def given_weights(weights: str | Sequence[float], classes: Sequence[str]) -> Tensor | None:
    """Weights as a configuration lists them, as float32 (K,); None for a rule by name.

    Raises:
        ValueError: not one positive number for each class.
    """
    if isinstance(weights, str):
        if weights not in ("none", "balanced"):
            raise ValueError(f"class_weights is '{weights}', expected 'none', 'balanced' or a number for each class")
        return None
    if len(weights) != len(classes) or not all(0 < w < math.inf for w in weights):
        raise ValueError(
            f"class_weights are {list(weights)}, expected one positive number for each of {', '.join(classes)}"
        )
    return torch.tensor(weights, dtype=torch.float32)


def lovasz_softmax(probability: Tensor, target: Tensor) -> Tensor:
    """The Lovász extension of the mean Jaccard loss over the classes that occur (arXiv 1705.08790, eq. 9, algorithm 1).

    For each class, errors |[target = c] - p_c| are sorted from large to small and weighted by how much the Jaccard loss
    1 - |intersection| / |union| rises when the points down to each are wrong.

    Args:
        probability: float (N, K), rows sum to 1.
        target: int64 (N,) in 0..K-1, N >= 1.

    Returns:
        Scalar in [0, 1].
    """
    truth = F.one_hot(target, probability.shape[1]).to(probability.dtype)
    error, order = (truth - probability).abs().sort(dim=0, descending=True)
    truth_sorted = truth.gather(0, order)
    total = truth.sum(0)
    intersection = total - truth_sorted.cumsum(0)
    union = total + (1 - truth_sorted).cumsum(0)
    jaccard = 1 - intersection / union
    weight = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    loss = (error * weight).sum(0)
    return loss[total > 0].mean()
