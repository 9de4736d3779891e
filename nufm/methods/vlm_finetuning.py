"""QLoRA fine-tuning of an image-text model on pixel maps (arXiv 2509.08461, section 3).

The model sees both views and the question, and learns to say the answer: "I classify the pixel maps as <label>." and,
if asked for, a sentence on what the pictures show. The loss is the cross-entropy of the answer's tokens alone.

As published: fused AdamW, constant rate 2e-4 after a warm-up over 3 % of the steps, gradient norm at most 0.3, batches
of 4 and 2 of them accumulated, one epoch. The paper does not say: weight decay (0 here, as is the default of its
libraries), and what the answers of the training say behind the label (``explanations``). The libraries' schedule named
``constant`` leaves the warm-up out, whatever is asked for; here it is done.

Shape legend: B events, L tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nufm.data.explanations import teaching_sentences
from nufm.data.images import ImageBatch
from nufm.methods.image_classification import ImageClassification
from nufm.models.image_network import LABEL
from nufm.models.vlm import VisionLanguageClassifier
from nufm.models.vlm_inputs import IGNORED


class VLMFineTuning(ImageClassification):
    """Trains the adapters of a :class:`nufm.models.vlm.VisionLanguageClassifier`.

    Checkpoints hold the adapters alone.

    Args:
        network: what is trained.
        task: ``pixelmaps``.
        explanations: answers go on with a sentence made from the truth (``nufm.data.explanations``); else they end
            behind the label.
        checkpoint_activations: keep the inputs of blocks only for the backward pass: less memory, more time.
        learning_rate: of AdamW, constant after the warm-up.
        warmup: share of the steps over which the rate rises from 0.
        weight_decay: of AdamW.

    Raises:
        ValueError: as :class:`nufm.methods.finetuning.FineTuning`, or a network without adapters.
    """

    def __init__(
        self,
        network: VisionLanguageClassifier,
        task: str = "pixelmaps",
        explanations: bool = True,
        checkpoint_activations: bool = False,
        learning_rate: float = 2e-4,
        warmup: float = 0.03,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            network,
            task,
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            decay="all",
            schedule="constant",
        )
        self.regime = "adapters"
        self.explanations = explanations
        if not any(True for _ in network.adapter_parameters()):
            raise ValueError("network.rank is 0: there are no adapters to train; set it to 8, as published")
        # Bases are loaded in evaluation mode, and a Trainer begins with the modes it finds: in that one, activations
        # would be kept whatever is asked for.
        network.train()
        if checkpoint_activations and network.composer is not None:
            network.checkpoint_activations()

    @property
    def needs_encoder(self) -> bool:
        """The base comes with the network."""
        return False

    def load_encoder(self, encoder: torch.nn.Module) -> None:
        raise ValueError(
            "an image-text model starts from its base: name that with --model.network.base, and leave --pretrained out"
        )

    # ---- training

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        target = self.task.targets(batch.truth, batch.names)[LABEL]
        loss, label_loss = self.answer_loss(batch, target)
        options = {"batch_size": batch.n_events, "sync_dist": True}
        self.log("train/loss", loss.detach(), prog_bar=True, **options)
        self.log("train/label_loss", label_loss, **options)
        return loss

    def answer_loss(self, batch: ImageBatch, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy per token of the answers, and per event of their labels (without gradient).

        The mean is over the tokens of this batch on this process. Batches that are accumulated, and those of several
        processes, count alike whatever their number of tokens, as in the training loops of transformers before 4.46:
        where answers differ in length, that is not quite the mean of all tokens.

        Args:
            batch: events.
            target: int64 (B,) classes; events without one (-1) do not count.
        """
        network, known = self.network, (target >= 0).tolist()
        answers = self.answers(batch, target)
        inputs = network.prepare_answers(batch, answers)
        wanted = inputs.pop("labels")
        n = max(map(len, answers))
        wanted = wanted[:, -n:]
        wanted[torch.tensor([not k for k in known], device=wanted.device)] = IGNORED
        logits = network.last_logits(inputs, n + 1)[:, :-1].float()
        each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
        each, counted = each.view(wanted.shape), wanted != IGNORED
        # The sum of no terms is 0 and stays connected to the weights: other processes may have events.
        loss = each.sum() / counted.sum().clamp(min=1)
        begin = len(network.composer.prefix_tokens())
        lengths = [len(tokens) for tokens in network.composer.label_tokens()]
        of_label = [each[i, begin : begin + lengths[k]].sum() for i, k in enumerate(target.tolist()) if k >= 0]
        return loss, torch.stack(of_label).mean().detach() if of_label else loss.detach()

    def answers(self, batch: ImageBatch, target: Tensor) -> list[list[int]]:
        """What is learnt to be said of every event, as tokens; of one without a class, anything."""
        classes = target.clamp(min=0).tolist()
        why = [""] * len(classes)
        if self.explanations:
            truth = {**batch.truth, LABEL: target.clamp(min=0)}
            why = teaching_sentences(batch.replace(truth=truth))
        composer = self.network.composer
        return [composer.answer_tokens(k, sentence) for k, sentence in zip(classes, why, strict=True)]

    # ---- optimisation

    def rate_and_momentum(self) -> tuple[float, float]:
        """Linear warm-up, then constant."""
        if self.warmup <= 0:
            return 1.0, 0.9
        steps = self.warmup * int(self.trainer.estimated_stepping_batches)
        return min(1.0, (self.global_step + 1) / max(1.0, steps)), 0.9

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.warmup > 0 and not math.isfinite(self.trainer.estimated_stepping_batches):
            raise ValueError(
                f"a warm-up over {self.warmup:g} of the steps needs the length of the training: set trainer.max_steps "
                "or max_epochs, or model.warmup to 0"
            )
        parameters = [p for _, p in self.network.adapter_parameters()]
        group = {"params": parameters, "peak": self.peak, "weight_decay": self.weight_decay}
        return torch.optim.AdamW([group], lr=self.peak, fused=True)
