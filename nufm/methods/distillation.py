"""A small network on pixel maps learns from a large one: knowledge distillation.

Hinton, Vinyals, Dean, arXiv 1503.02531, §2: with logits z of the student and v of the teacher,

    L = (1 - a) · CE(softmax(z), label) + a · T² · KL(softmax(v/T) ‖ softmax(z/T))

T² keeps the gradients of both terms of one size. Teachers say probabilities p; softmax(log p / T) = softmax(v/T).

The teacher is asked once about every training event, before the training and as the event is in its file; its answers
are kept (:mod:`nufm.commands.teacher`). A student whose events are augmented learns the same answers: flips and shifts
leave an interaction what it is. An event without a label teaches by the teacher's answer alone.

That is an open question of arXiv 2509.08461, §6: an image-text model as teacher of a network of less than 100 ms.

Shape legend: n training events, B events of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nufm.data.datamodule import EventDataModule
from nufm.data.images import ImageBatch
from nufm.methods.image_classification import ImageClassification
from nufm.models.image_network import LABEL, ImageNetwork

SMALLEST = 1e-30  # of a probability in a logarithm


@dataclass(frozen=True)
class SoftTargets:
    """What a teacher says of events.

    Attributes:
        names: of the n events, no two alike.
        probability: float32 (n, K).
    """

    names: tuple[str, ...]
    probability: np.ndarray


class Distillation(ImageClassification):
    """Trains a student.

    Args:
        network: the student.
        teacher: run folder or export of any network on pixel maps, an image-text model too.
        temperature: T.
        soft_share: a, of the teacher's answers in the loss; 0 = labels alone, 1 = answers alone.
        task, options: of :class:`nufm.methods.image_classification.ImageClassification`.

    Attributes:
        ask: what gives the teacher's answers about the training events of a data module; ``scripts/finetune.py`` sets
            it.

    Raises:
        ValueError: a temperature or share that cannot be meant.
    """

    def __init__(
        self,
        network: ImageNetwork,
        teacher: str | None = None,
        temperature: float = 2.0,
        soft_share: float = 0.5,
        task: str = "pixelmaps",
        **options: Any,
    ) -> None:
        super().__init__(network, task, **options)
        if not temperature > 0 or not 0 <= soft_share <= 1:
            raise ValueError(
                f"temperature is {temperature} and soft_share {soft_share}, expected a positive number and 0 … 1"
            )
        self.teacher, self.temperature, self.soft_share = teacher, temperature, soft_share
        self.ask: Callable[[EventDataModule], SoftTargets] | None = None
        self._row: dict[str, int] = {}
        # Not part of a checkpoint: as large as the training sample, and made again in no time from what was kept.
        self.register_buffer("_answers", torch.zeros(0, network.n_classes[LABEL]), persistent=False)

    def prepare_data(self) -> None:
        """Asks the teacher in one process of a machine; the others read what was kept."""
        self._asked()

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.set_targets(self._asked())

    def _asked(self) -> SoftTargets:
        if self.ask is None:
            raise ValueError("nobody asks the teacher: start the training with scripts/finetune.py, or set 'ask'")
        return self.ask(self.trainer.datamodule)

    def set_targets(self, targets: SoftTargets) -> None:
        """Take what the teacher says of the training events.

        Raises:
            ValueError: other classes than the student's, numbers that are no probabilities, or two events of one name.
        """
        k, p = self.network.n_classes[LABEL], targets.probability
        if p.shape != (len(targets.names), k):
            raise ValueError(
                f"teacher {self.teacher}: answers of shape {p.shape}, expected ({len(targets.names)}, {k}): "
                f"probabilities of {', '.join(self.task.labels[LABEL])}"
            )
        wrong = ~(np.isfinite(p).all(1) & (p >= 0).all(1) & (np.abs(p.sum(1) - 1) < 1e-2))
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f"teacher {self.teacher}: says {p[i].tolist()} of {targets.names[i]}, expected probabilities that sum "
                "to 1"
            )
        self._row = {name: row for row, name in enumerate(targets.names)}
        if len(self._row) < len(targets.names):
            raise ValueError("two training events have the same name: rename one of the files")
        self._answers = torch.from_numpy(np.ascontiguousarray(p, dtype=np.float32)).to(self._answers.device)

    def answers(self, batch: ImageBatch) -> Tensor:
        """float32 (B, K) probabilities that the teacher gave.

        Raises:
            ValueError: it was not asked about an event.
        """
        if unknown := [name for name in batch.names if name not in self._row]:
            raise ValueError(f"{unknown[0]}: the teacher was not asked about this event")
        return self._answers[[self._row[name] for name in batch.names]]

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        target = self.task.targets(batch.truth, batch.names)[LABEL]
        logits, answers = self.network(batch)[LABEL], self.answers(batch)
        hard, soft = self.loss(logits, target), softened(logits, answers, self.temperature)
        loss = (1 - self.soft_share) * hard + self.soft_share * soft
        agree = (logits.argmax(1) == answers.argmax(1)).float().mean()
        shown = {"train/loss": loss.detach(), "train/hard_loss": hard.detach(), "train/soft_loss": soft.detach()}
        self.log_dict(shown | {"train/agreement": agree}, batch_size=batch.n_events, sync_dist=True)
        return loss


def softened(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(log p / T) ‖ softmax(z / T)), mean over the events.

    Args:
        logits: z (B, K).
        answers: p (B, K), probabilities.
        temperature: T.
    """
    wanted = (answers.clamp(min=SMALLEST).log() / temperature).log_softmax(1)
    found = (logits / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(found, wanted, reduction="batchmean", log_target=True)
