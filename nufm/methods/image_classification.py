"""Interactions from pixel maps, learnt from labels: the CNN and ViT of arXiv 2509.08461, and a sparse network.

Cross-entropy without class weights. As published: Adam, whose weight decay is L2 regularisation (``optimizer: adam``);
CNN: rate 1e-6, weight decay 1e-4, batch 16, at most 300 epochs, stopped after 10 without a better validation loss; ViT:
rate 1e-4, weight decay 0.05, 10 epochs. The paper names no schedule: a constant rate is taken.

Shape legend: B events, K classes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nufm.data.images import ImageBatch
from nufm.methods.finetuning import FineTuning
from nufm.metrics import ConfusionScores, OneVsRest
from nufm.models.image_network import LABEL, ImageNetwork


class ImageClassification(FineTuning):
    """Trains a network on pixel maps (:class:`nufm.models.image_network.ImageNetwork`).

    Args:
        network: what is trained.
        task: ``pixelmaps``.
        regime: ``scratch``.
        optimizer: ``adamw``, or ``adam``: its weight decay is added to the gradient, as published.
        options: of :class:`nufm.methods.finetuning.FineTuning`.

    Raises:
        ValueError: as :class:`nufm.methods.finetuning.FineTuning`, or an unknown optimizer.
    """

    kind = "event"

    def __init__(
        self,
        network: ImageNetwork,
        task: str = "pixelmaps",
        regime: Literal["scratch"] = "scratch",
        optimizer: Literal["adamw", "adam"] = "adamw",
        **options: Any,
    ) -> None:
        super().__init__(network, task, regime, **options)
        if optimizer not in ("adamw", "adam"):
            raise ValueError(f"optimizer is '{optimizer}', expected 'adamw' or 'adam'")
        self.optimizer = optimizer
        self.scores, self.auc = (kind(network.n_classes[LABEL]) for kind in (ConfusionScores, OneVsRest))

    def check_labels(self, batch: ImageBatch) -> None:
        self.task.targets(batch.truth, batch.names)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        target = self.task.targets(batch.truth, batch.names)[LABEL]
        logits = self.network(batch)[LABEL]
        loss = self.loss(logits, target)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=batch.n_events, sync_dist=True)
        known = target >= 0
        right = (logits.argmax(1) == target)[known].float().sum() / known.sum().clamp(min=1)
        self.log("train/accuracy", right, batch_size=batch.n_events, sync_dist=True)
        return loss

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of logits (B, K) with classes (B,), -1 ignored; 0 where no event has a class."""
        known = target >= 0
        if not bool(known.any()):
            return logits.sum() * 0  # connected to the weights: other processes may have events
        return F.cross_entropy(logits[known], target[known])

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """``val/loss`` is the mean of all events that have a class, whatever batches they come in."""
        target = self.task.targets(batch.truth, batch.names)[LABEL]
        logits = self.network(batch)[LABEL]
        self.scores.update(logits.argmax(1), target)
        self.auc.update(logits.softmax(1), target)
        n = int((target >= 0).sum())  # without any the loss is 0, with no weight; all processes log
        loss = F.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
        self.log("val/loss", loss / max(1, n), batch_size=n, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        found, auc = self.scores.compute(), self.auc.compute()
        self.log("val/accuracy", found["accuracy"].float(), prog_bar=True)
        self.log("val/auc", auc["macro"].float(), prog_bar=True)
        for name, recall, one in zip(self.task.labels[LABEL], found["recall"], auc["auc"], strict=True):
            self.log(f"val/recall_{name}", recall.float())
            self.log(f"val/auc_{name}", one.float())
        self.scores.reset()
        self.auc.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        made = super().configure_optimizers()
        if self.optimizer == "adamw":
            return made
        groups = [{k: group[k] for k in ("params", "peak", "weight_decay")} for group in made.param_groups]
        return torch.optim.Adam(groups, lr=self.peak)
