"""Flavour, charm, momenta and vertex of an event at once, learnt from labels: the fine-tuning of the FASERCal model.

arXiv 2604.07037; losses and numbers as in the public code saulam/faserDL (spring 2026), classes and protocol as in the
talk of F. Cufino (NPML 2026): everything but the starting weights is the same whether the encoder is pretrained
(regime ``full``) or not (``scratch``).

    flavour, charm         cross-entropy, label smoothing 0.02
    visible, jet momentum  H(z_T, z_z) + 0.5 g_T (1 - cos Δφ) + 0.15 H(p / MADN),  g_T = p_T/(p_T + τ_T)
    lepton                 of p_visible - p_jet: 0.5 g H(to the truth) + 0.05 (1 - g) H(to 0), both over MADN;
                           g = |p|/(|p| + τ), so that events without a lepton have the second term alone
    vertex                 mean square of z-scores

H is the mean Huber loss (δ = 1), MADN = 1.4826 · median|q - median q|, τ the 5 % quantile of the training events that
have such a momentum: p_T above 0.3 GeV/c (of a νµ or νe charged current the visible p_T is the Fermi motion of the
nucleon alone), a lepton above 0.1 GeV/c. The terms are balanced by uncertainty weights within [0.3, 5].

Shape legend: B events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nufm.data.prediction import LEAST_TRANSVERSE
from nufm.data.streams import StreamBatch
from nufm.methods.calorimeter_losses import BoundedWeights
from nufm.methods.finetuning import FineTuning
from nufm.metrics import Distances, OneVsRest, Residuals
from nufm.models.event_network import MOMENTA, EventNetwork, direction, scaled_log

SMOOTHING = 0.02
ANGLE, COMPONENTS = 0.5, 0.15  # of the momenta
LEPTON, NO_LEPTON = 0.5, 0.05
WEIGHTS = (0.3, 1.0, 5.0)  # least, at the beginning, largest
WEIGHT_RATE = 0.1  # rate of the weights' own parameters over that of the heads, as in the public pretraining
MADN = 1.4826
LEAST = 0.1  # GeV/c, of a lepton; of transverse momenta LEAST_TRANSVERSE


@dataclass(frozen=True)
class Scales:
    """Scales of the targets, of training events; momenta in GeV/c, lengths in mm.

    Attributes:
        momentum: float64 (2, 2, 3) k, µ, σ of p_T and p_z, of visible and jet: the robust logarithm, k = MADN(p), µ and
            σ the median and MADN of log(1 + p/k).
        vertex: float64 (2, 3) mean and standard deviation.
        component: float64 (3, 3) MADN of p_x, p_y, p_z, of visible, jet and lepton.
        gate: float64 (3,) τ of p_T of visible and jet, and of |p| of the lepton.
    """

    momentum: np.ndarray
    vertex: np.ndarray
    component: np.ndarray
    gate: np.ndarray


def fit_scales(truth: Mapping[str, np.ndarray]) -> Scales:
    """The scales of events with these truths.

    A quantity that is missing or unknown in all events gets the scale 1, and so does one without any spread; the lepton
    is scaled by the events that have one, and τ is of those with p_T above ``LEAST_TRANSVERSE``, or a lepton above 0.1
    GeV/c.

    Args:
        truth: some of visible, jet, lepton and vertex, float (n, 3), NaN unknown.
    """
    momentum, component, gate = np.ones((2, 2, 3)), np.ones((3, 3)), np.ones(3)
    momentum[:, :, 1] = 0
    for i, name in enumerate((*MOMENTA, "lepton")):
        p = _known(truth.get(name))
        if name == "lepton":
            p = p[np.linalg.norm(p, axis=1) > 0]
        if len(p) == 0:
            continue
        component[i] = [_spread(p[:, axis]) for axis in range(3)]
        p_t = np.hypot(p[:, 0], p[:, 1])
        if i < len(MOMENTA):
            momentum[i] = [_robust_log(p_t), _robust_log(p[:, 2])]
        size, least = (p_t, LEAST_TRANSVERSE) if i < len(MOMENTA) else (np.linalg.norm(p, axis=1), LEAST)
        if (size > least).any():
            gate[i] = np.quantile(size[size > least], 0.05)
    vertex, places = np.stack([np.zeros(3), np.ones(3)]), _known(truth.get("vertex"))
    if len(places):
        spread = places.std(0)
        vertex = np.stack([places.mean(0), np.where(spread > 0, spread, 1.0)])
    return Scales(momentum, vertex, component, gate)


def _known(values: np.ndarray | None) -> np.ndarray:
    values = np.zeros((0, 3)) if values is None else np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values).all(1)]


def _robust_log(p: np.ndarray) -> tuple[float, float, float]:
    """k, µ, σ of momenta (n,); what is below 0 counts as 0."""
    p = p.clip(0)
    k = _spread(p)
    u = np.log1p(p / k)
    return k, float(np.median(u)), _spread(u)


def _spread(values: np.ndarray) -> float:
    """MADN; where it is 0, the standard deviation; where that is 0, 1."""
    madn = MADN * float(np.median(np.abs(values - np.median(values))))
    return madn or float(values.std()) or 1.0


class Multitask(FineTuning):
    """Trains an :class:`nufm.models.event_network.EventNetwork` on all its tasks at once.

    The scales of momenta and vertex come from the training events, unless the network has its own; the checkpoint holds
    them.

    Args:
        network: what is trained.
        task: ``fasercal``.
        options: of :class:`nufm.methods.finetuning.FineTuning`.

    Raises:
        ValueError: as :class:`nufm.methods.finetuning.FineTuning`.
    """

    kind = "event"

    def __init__(self, network: EventNetwork, task: str = "fasercal", **options: Any) -> None:
        super().__init__(network, task, **options)
        tasks = network.tasks
        self.wanted = (*tasks, "lepton") if set(MOMENTA) <= set(tasks) else tasks
        least, start, most = WEIGHTS
        self.balance = BoundedWeights({name: (start, most) for name in self.wanted}, least)
        self.register_buffer("component", torch.ones(3, 3))
        self.register_buffer("gate", torch.ones(3))
        self.auc = torch.nn.ModuleDict({label: OneVsRest(n) for label, n in network.n_classes.items()})
        self.residuals = torch.nn.ModuleDict({name: Residuals() for name in MOMENTA if name in tasks})
        self.vertex_distance = Distances()

    def check_labels(self, batch: StreamBatch) -> None:
        self.task.targets(batch.truth, batch.names, self.wanted)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.set_scales(fit_scales(self.trainer.datamodule.reader("train").truths()))

    def set_scales(self, scales: Scales) -> None:
        """Sets the scales of the losses, and those of the network where it was built without."""
        for buffer, values in ((self.component, scales.component), (self.gate, scales.gate)):
            buffer.copy_(torch.from_numpy(values))
        if not self.network.scaled:
            self.network.set_scaling(torch.from_numpy(scales.momentum), torch.from_numpy(scales.vertex))

    # ------------------------------------------------------------------ losses

    def losses(self, found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms, each a scalar; 0 where no event of the batch has that truth.

        Args:
            found: of the network, task -> float32 (B, numbers).
            truth: name -> int64 (B,) classes, -1 unknown, or float32 (B, 3), NaN unknown.
        """
        parts = {label: classification(found[label], truth[label]) for label in self.network.n_classes}
        momenta = {}
        for name in (n for n in MOMENTA if n in found):
            momenta[name] = self.network.momentum(found[name], name)
            known = truth[name].isfinite().all(1)
            at = MOMENTA.index(name)
            parts[name] = momentum_loss(
                found[name][known], momenta[name][known], truth[name][known].float(),
                self.network.momentum_scaling[at], self.component[at], self.gate[at],
            )  # fmt: skip
        if "lepton" in self.wanted:
            known = truth["lepton"].isfinite().all(1)
            lepton = (momenta["visible"] - momenta["jet"])[known]
            parts["lepton"] = lepton_loss(lepton, truth["lepton"][known].float(), self.component[2], self.gate[2])
        if "vertex" in found:
            known = truth["vertex"].isfinite().all(1)
            mean, spread = self.network.vertex_scaling
            wanted = (truth["vertex"][known].float() - mean) / spread
            parts["vertex"] = _mean((found["vertex"][known] - wanted).square())
        return {name: parts[name] for name in self.wanted}

    def training_step(self, batch: StreamBatch, batch_idx: int) -> Tensor:
        truth = self.task.targets(batch.truth, batch.names, self.wanted)
        parts = self.losses(self.network(batch), truth)
        total = self.balance(parts)
        shown = {f"train/{k}": v.detach() for k, v in parts.items()}
        shown |= {f"train/weight_{k}": w.detach() for k, w in self.balance.weights().items()}
        self.log_dict(shown, batch_size=batch.n_events, sync_dist=True)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=batch.n_events, sync_dist=True)
        return total

    # ------------------------------------------------------------------ validation

    def validation_step(self, batch: StreamBatch, batch_idx: int) -> None:
        truth = self.task.targets(batch.truth, batch.names, self.wanted)
        found = self.network(batch)
        parts = self.losses(found, truth)
        # Not balanced: the weights move, and with them what is the best.
        total = torch.stack(list(parts.values())).sum()
        shown = {f"val/loss_{k}": v for k, v in parts.items()} | {"val/loss": total}
        self.log_dict(shown, on_epoch=True, batch_size=batch.n_events, sync_dist=True)
        for label, metric in self.auc.items():
            metric.update(found[label].softmax(1), truth[label])
        for name, metric in self.residuals.items():
            metric.update(self.network.momentum(found[name], name).norm(dim=1), truth[name].norm(dim=1))
        if "vertex" in found:
            self.vertex_distance.update(self.network.vertex(found["vertex"]), truth["vertex"])

    def on_validation_epoch_end(self) -> None:
        for label, metric in self.auc.items():
            found = metric.compute()
            self.log(f"val/{label}_auc", found["macro"].float(), prog_bar=label == "flavour")
            for name, auc in zip(self.task.labels[label], found["auc"], strict=True):
                self.log(f"val/{label}_auc_{name}", auc.float())
            metric.reset()
        for name, metric in self.residuals.items():
            self.log(f"val/{name}_sigma_mad", metric.compute()["sigma_mad"].float())
            metric.reset()
        if "vertex" in self.wanted:
            self.log("val/vertex_mm", self.vertex_distance.compute()["mean"].float(), prog_bar=True)
            self.vertex_distance.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        slow = {"params": list(self.balance.parameters()), "peak": self.peak * WEIGHT_RATE, "weight_decay": 0.0}
        optimizer.add_param_group(slow)
        return optimizer


def classification(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K) against smoothed classes (B,), -1 ignored."""
    known = target >= 0
    return _mean(F.cross_entropy(logits[known], target[known], label_smoothing=SMOOTHING, reduction="none"))


def momentum_loss(
    found: Tensor, momentum: Tensor, truth: Tensor, scaling: Tensor, component: Tensor, gate: Tensor
) -> Tensor:
    """H(z_T, z_z) + 0.5 g_T (1 - cos Δφ) + 0.15 H(p / MADN), mean over the events.

    Args:
        found: (B, 4) of the head: z_T, a, b, z_z.
        momentum: (B, 3) GeV/c that they mean.
        truth: (B, 3) GeV/c.
        scaling: (2, 3) k, µ, σ of p_T and p_z.
        component: (3,) MADN of p_x, p_y, p_z in GeV/c.
        gate: scalar, τ_T in GeV/c.
    """
    p_t = truth[:, :2].norm(dim=1)
    wanted = torch.stack([scaled_log(p_t, scaling[0]), scaled_log(truth[:, 2], scaling[1])], dim=1)
    size = F.huber_loss(found[:, [0, 3]], wanted, reduction="none").mean(1)
    cos = (direction(found[:, 1:3]) * truth[:, :2]).sum(1) / p_t.clamp(min=1e-6)
    angle = p_t / (p_t + gate) * (1 - cos)
    parts = F.huber_loss(momentum / component, truth / component, reduction="none").mean(1)
    return _mean(size + ANGLE * angle + COMPONENTS * parts)


def lepton_loss(lepton: Tensor, truth: Tensor, component: Tensor, gate: Tensor) -> Tensor:
    """0.5 g H(lepton - truth) + 0.05 (1 - g) H(lepton), both over MADN, g = |p|/(|p| + τ); mean over the events.

    Args:
        lepton, truth: (B, 3) GeV/c; 0 for an event without a lepton.
        component: (3,) MADN in GeV/c.
        gate: scalar, τ in GeV/c.
    """
    size = truth.norm(dim=1)
    share = size / (size + gate)
    right = F.huber_loss(lepton / component, truth / component, reduction="none").mean(1)
    none = F.huber_loss(lepton / component, torch.zeros_like(lepton), reduction="none").mean(1)
    return _mean(LEPTON * share * right + NO_LEPTON * (1 - share) * none)


def _mean(values: Tensor) -> Tensor:
    """Mean, or a zero that is still part of the graph: other processes may have events."""
    return values.mean() if values.numel() else values.sum()

