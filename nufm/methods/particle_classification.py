"""Particles from labels, with an encoder that another detector pretrained: the transfer of the FASERCal model.

Talk of F. Cufino (NPML 2026); numbers of the recipe as in the public code saulam/faserDL: cross-entropy with label
smoothing 0.02, AdamW, linear warm-up and cosine, learning rates that fall with depth. What begins anew has the full
rate, wherever it stands.

Shape legend: B particles, K classes.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from nufm.data.streams import StreamBatch
from nufm.methods.finetuning import FineTuning
from nufm.metrics import CertaintyAUC, ConfusionScores
from nufm.models.particle_network import LABEL, ParticleNetwork
from nufm.models.transfer import Reuse, Transferred, reused_parts, transfer


class ParticleClassification(FineTuning):
    """Trains a :class:`nufm.models.particle_network.ParticleNetwork`.

    Args:
        network: what is trained.
        task: ``superfgd`` or ``pilarnet_particles``.
        reuse: what is copied from a pretrained encoder of another detector: see :mod:`nufm.models.transfer`.
        label_smoothing: share of the target that is spread over all classes.
        options: of :class:`nufm.methods.finetuning.FineTuning`.

    Raises:
        ValueError: as :class:`nufm.methods.finetuning.FineTuning`, or an unknown ``reuse``.
    """

    kind = "event"
    # The pretrained encoder is of another detector: its inputs need not be those of this run.
    transfers = True

    def __init__(
        self,
        network: ParticleNetwork,
        task: str = "superfgd",
        reuse: Reuse = "talk",
        label_smoothing: float = 0.02,
        **options: Any,
    ) -> None:
        super().__init__(network, task, **options)
        reused_parts(reuse)  # an unknown choice stops here
        self.reuse, self.label_smoothing = reuse, label_smoothing
        self.transferred: Transferred | None = None
        self.scores, self.certainty = ConfusionScores(network.n_classes[LABEL]), CertaintyAUC()

    def load_encoder(self, encoder: nn.Module) -> None:
        """Start from what can be reused of a pretrained encoder, and say what that is.

        Raises:
            ValueError: the regime is scratch, or the encoder does not fit.
        """
        if self.regime == "scratch":
            raise ValueError("regime 'scratch' starts from random weights; leave --pretrained out, or choose another")
        if not hasattr(encoder, "calorimeter"):
            raise ValueError(
                f"the pretrained encoder is a {type(encoder).__name__}, expected a StreamEncoder: a run of "
                "scripts/pretrain.py with configs/tiny/fasercal_mae.yaml or fasercal_relational.yaml"
            )
        self.transferred = transfer(self.network.encoder, encoder, self.reuse)
        rank_zero_only(print)(f"transfer as in the {self.reuse}: {self.transferred}")

    def begins_anew(self, name: str) -> bool:
        """Whether a parameter of the network, by its name, has no pretrained start; such ones have the full rate."""
        inside = name.removeprefix("encoder.")
        return self.regime != "scratch" and inside != name and not inside.startswith(reused_parts(self.reuse))

    def check_labels(self, batch: StreamBatch) -> None:
        self.task.targets(batch.truth, batch.names)

    def training_step(self, batch: StreamBatch, batch_idx: int) -> Tensor:
        if self.network.sees_groups and batch.groups is None:
            raise ValueError(
                f"{batch.names[0]} …: network.context is {len(self.network.context)} blocks among the particles of an "
                "event, but the batches do not say which belong together; set data.together true, or network.context 0"
            )
        target = self.task.targets(batch.truth, batch.names)[LABEL]
        logits = self.network(batch)[LABEL]
        loss = self.loss(logits, target)
        right = (logits.argmax(1) == target)[target >= 0].float()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=batch.n_events, sync_dist=True)
        self.log("train/accuracy", right.mean(), batch_size=batch.n_events, sync_dist=True)
        return loss

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of logits (B, K) with smoothed classes (B,), -1 ignored; 0 where no particle has a class."""
        known = target >= 0
        if not bool(known.any()):
            return logits.sum() * 0  # connected to the weights: other processes may have particles
        return F.cross_entropy(logits[known], target[known], label_smoothing=self.label_smoothing)

    def validation_step(self, batch: StreamBatch, batch_idx: int) -> None:
        """``val/loss`` is the mean of all particles that have a class, whatever batches they come in."""
        target = self.task.targets(batch.truth, batch.names)[LABEL]
        probability = self.network.predict(batch).probability[LABEL]
        self.scores.update(probability.argmax(1), target)
        self.certainty.update(probability, target)
        known = target >= 0
        loss = F.nll_loss(probability[known].clamp(min=1e-12).log(), target[known], reduction="sum")
        n = int(known.sum())  # without any the mean is 0, with no weight; all processes log
        self.log("val/loss", loss / max(1, n), batch_size=n, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        found = self.scores.compute()
        self.log("val/accuracy", found["accuracy"].float(), prog_bar=True)
        for name, recall in zip(self.task.labels[LABEL], found["recall"], strict=True):
            self.log(f"val/recall_{name}", recall.float())
        self.log("val/certainty_auc", self.certainty.compute().float())
        self.scores.reset()
        self.certainty.reset()

