"""Linear probe: how much of the truth can be read off frozen features with one linear layer.

Protocol of Panda (DeepLearnPhysics/Panda, notebooks/base.ipynb): softmax regression per point, AdamW, unweighted
cross-entropy, macro-F1 over all points of all held-out events. Train and test never share an event.
Shape legend: N points, C feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from nufm.data.event import MOTIF_NAMES, PointBatch
from nufm.metrics.confusion import ConfusionScores
from nufm.models.ptv3 import PointTransformerV3, upcast
from nufm.ops.neighbors import neighbor_map

Features = Callable[[PointBatch], Tensor]


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is fitted. Published: AdamW 1e-3, 65 536 points a batch, 5 epochs over about 1000 events.

    Attributes:
        epochs: passes over the points.
        batch_size: points in a batch.
        learning_rate: of AdamW, falling to 0 along a cosine.
        weight_decay: of AdamW.
    """

    epochs: int = 5
    batch_size: int = 65536
    learning_rate: float = 1e-3
    weight_decay: float = 0.01


def encoder_features(encoder: PointTransformerV3) -> Features:
    """Features (N, sum of channels): all stages carried up to the input points, in evaluation mode."""

    def features(batch: PointBatch) -> Tensor:
        was_training = encoder.training
        encoder.eval()
        try:
            return upcast(encoder(batch)).float()
        finally:
            encoder.train(was_training)

    return features


def raw_features(batch: PointBatch) -> Tensor:
    """What is known without a network, (N, 3): energy as the model sees it, occupied cells in the 3³ and 5³ around."""
    counts = [(neighbor_map(batch.grid, batch.offsets, k) >= 0).sum(1) - 1 for k in (3, 5)]
    return torch.cat([batch.feat[:, 3:4], torch.stack(counts, 1).to(batch.feat.dtype)], dim=1)


@torch.no_grad()
def collect(
    features: Features, batches: Iterable[PointBatch], label: str, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Features (N, C) and labels (N,) of all labelled points, on the CPU.

    Raises:
        ValueError: the events carry no such label.
    """
    feats, labels = [], []
    for batch in batches:
        if label not in batch.labels:
            raise ValueError(f"{batch.names[:1]}: no '{label}' labels to probe; found {sorted(batch.labels)}")
        keep = batch.labels[label] >= 0
        feats.append(features(batch.to(device)).cpu()[keep])
        labels.append(batch.labels[label][keep])
    return torch.cat(feats), torch.cat(labels)


class LinearProbe(nn.Module):
    """Standardisation by the training points' mean and spread, then one linear layer."""

    def __init__(self, mean: Tensor, std: Tensor, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        # Not initialised here: a probe during a training must not draw from the training's random numbers.
        self.linear = torch.nn.utils.skip_init(nn.Linear, len(mean), n_classes)

    def forward(self, feat: Tensor) -> Tensor:
        return self.linear((feat - self.mean) / self.std)


def fit_probe(feat: Tensor, label: Tensor, n_classes: int, settings: ProbeSettings, seed: int) -> LinearProbe:
    """Fit a probe to features (N, C) and labels (N,); the seed fixes its start and the order of the points."""
    if len(feat) == 0:
        raise ValueError("no labelled points to fit a probe to")
    generator = torch.Generator().manual_seed(seed)
    probe = LinearProbe(feat.mean(0), feat.std(0, correction=0).clamp(min=1e-6), n_classes)
    bound = feat.shape[1] ** -0.5
    with torch.no_grad():
        probe.linear.weight.uniform_(-bound, bound, generator=generator)
        probe.linear.bias.zero_()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    per_epoch = -(-len(feat) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.epochs * per_epoch)
    with torch.enable_grad():
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(feat), generator=generator).split(settings.batch_size):
                loss = F.cross_entropy(probe(feat[rows]), label[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return probe.eval()


@torch.no_grad()
def score_probe(probe: LinearProbe, feat: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Per-class precision, recall, F1 and their means over all points."""
    scores = ConfusionScores(probe.linear.out_features)
    for rows in torch.arange(len(feat)).split(262144):
        scores.update(probe(feat[rows]).argmax(1), label[rows])
    return scores.compute()


class OnlineProbe(Callback):
    """Probes the features while a method pretrains, on a few held-back labelled events; the same for all methods.

    The method offers ``encoder``; the data module offers ``probe_dataloader(split, n_events)``. Labels never reach
    the method.

    Args:
        every_n_steps: optimiser steps between two probes.
        n_events: validation events to fit on, and as many others to score on.
        settings: how the probe is fitted.
    """

    def __init__(self, every_n_steps: int = 1000, n_events: int = 250, settings: ProbeSettings | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.n_events = n_events
        self.settings = settings or ProbeSettings()
        self._last = -1

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Raises ValueError if there are no two validation events: now, and not at the first probe."""
        found = len(trainer.datamodule.reader("val"))
        if found < 2:
            raise ValueError(f"the online probe needs at least 2 events in the split 'val', found {found}")

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps or step == self._last:
            return
        self._last = step
        # Every rank computes the same score: no rank waits for another, and the value needs no reduction.
        # Fitted and scored on different events, both of val, which leaves test unseen.
        n = min(2 * self.n_events, len(trainer.datamodule.reader("val")))
        batches = list(trainer.datamodule.probe_dataloader("val", n))
        halves: tuple[list[PointBatch], list[PointBatch]] = ([], [])
        first = 0
        for batch in batches:
            cut = min(max(n // 2 - first, 0), batch.n_events)
            for half, events in zip(halves, (range(cut), range(cut, batch.n_events)), strict=True):
                if len(events):
                    half.append(batch.select(events))
            first += batch.n_events
        features = encoder_features(module.encoder)
        train, test = (collect(features, half, "motif", module.device) for half in halves)
        probe = fit_probe(*train, len(MOTIF_NAMES), self.settings, seed=0)
        module.log("probe/macro_f1", score_probe(probe, *test)["macro_f1"], rank_zero_only=True, prog_bar=True)
