"""Semantic segmentation: a class for every point, learnt from labels.

Panda's protocol (arXiv 2512.01324; DeepLearnPhysics/pimm, configs/panda/semseg): cross-entropy plus 0.05 times
Lovász-softmax (Berman et al., arXiv 1705.08790), four regimes (``nufm.methods.finetuning``). The sparse UResNet is
trained with it too: regime scratch, constant rate, cross-entropy alone (DeepLearnPhysics/spine, config/uresnet).

Shape legend: N points, K classes.
"""

from __future__ import annotations

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
        task: ``motif`` or ``pid``.
        lovasz_weight: weight of the Lovász-softmax loss beside the cross-entropy.
        class_weights: ``none``, or ``balanced``: class c of a batch weighs N / (K N_c), so that rare classes count as
            much as frequent ones.
        options: of :class:`nufm.methods.finetuning.FineTuning`.
    """

    kind = "semantic"

    def __init__(
        self,
        network: SemanticModel,
        task: str = "motif",
        lovasz_weight: float = 0.05,
        class_weights: Literal["none", "balanced"] = "none",
        **options: Any,
    ) -> None:
        if options.get("regime") == "lin" and getattr(network, "decoder", None) is not None:
            network = network.without_decoder()
        super().__init__(network, task, **options)
        self.lovasz_weight, self.class_weights = lovasz_weight, class_weights
        self.scores = ConfusionScores(len(self.task.classes))

    def loss(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Losses of logits (N, K) against classes int64 (N,), -1 ignored; each 0 where no point has a class."""
        logits, target = logits.float()[target >= 0], target[target >= 0]
        if len(target) == 0:
            nothing = logits.sum()  # 0, and connected to the weights: other ranks may have points
            return {"cross_entropy": nothing, "lovasz": nothing}
        weight = None
        if self.class_weights == "balanced":
            weight = len(target) / (logits.shape[1] * torch.bincount(target, minlength=logits.shape[1]).clamp(min=1))
        return {
            "cross_entropy": F.cross_entropy(logits, target, weight),
            "lovasz": lovasz_softmax(logits.softmax(1), target) if self.lovasz_weight else logits.new_zeros(()),
        }

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        target, _ = self.task.targets(batch.labels, batch.names)
        parts = self.loss(self.network(batch), target)
        total = parts["cross_entropy"] + self.lovasz_weight * parts["lovasz"]
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
