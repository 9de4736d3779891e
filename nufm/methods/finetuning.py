"""What supervised training on labels shares: which parts learn, how fast, and from which encoder they start.

The regimes of Panda (arXiv 2512.01324; configurations of DeepLearnPhysics/pimm, configs/panda):

    lin      frozen encoder, a linear layer on its features
    dec      frozen encoder, a decoder is trained
    full     everything is trained, the encoder more slowly
    scratch  everything is trained, from random weights

Shape legend: N points, K classes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import nn

from nufm.data.event import PointBatch
from nufm.data.streams import StreamBatch
from nufm.data.tasks import EventTask, Task, task_named
from nufm.methods.schedules import decays, one_cycle, warmup_cosine

Regime = Literal["lin", "dec", "full", "scratch"]
LayerRates = Literal["by_depth", "as_published"]


class FineTuning(LightningModule):
    """Base of supervised methods: freezing, learning rates, schedule. Subclasses define the steps.

    Args:
        network: what is trained. A network with an attribute ``encoder`` offers ``head_layers()``, what features pass
            behind it.
        task: what it learns, a name in ``nufm.data.tasks.TASKS`` or ``EVENT_TASKS``.
        regime: see the head of this file.
        learning_rate: peak rate of what is behind the encoder.
        encoder_rate: the encoder's rate over that; 1 in the regime scratch, whose encoder has nothing to keep.
        layer_decay: factor on the rate per layer, counted from the output.
        layer_rates: ``by_depth``: every layer, poolings and embedding included, is slower than the one after it.
            ``as_published``: only blocks are slowed, embedding and poolings train at the full rate, and within the
            decoder the blocks count from the finest stage, so that the coarsest is the fastest.
        weight_decay: of AdamW.
        decay: ``weights`` spares biases, norms, LayerScale and other vectors; ``all`` as published for PoLAr-MAE.
        warmup: share of the steps over which the rate rises.
        schedule: ``one_cycle`` (cosine; starts at 1/10, ends at 1/10⁴ of the peak), ``warmup_cosine`` (linear rise,
            then cosine; starts and ends at ``rate_floor`` of the peak) or ``constant``.
        rate_floor: where ``warmup_cosine`` begins and ends, over the peak.
        cycle_momentum: also cycle Adam's β₁ between 0.95 and 0.85, as published.

    Raises:
        ValueError: a regime that the network does not have, or a task of another kind than the method's.
    """

    kind: Literal["semantic", "panoptic", "event"]
    transfers = False  # whether the pretrained encoder may be of another detector, with other inputs than this run

    def __init__(
        self,
        network: nn.Module,
        task: str,
        regime: Regime = "full",
        learning_rate: float = 2.6e-3,
        encoder_rate: float = 1.0,
        layer_decay: float = 1.0,
        layer_rates: LayerRates = "by_depth",
        weight_decay: float = 0.04,
        decay: Literal["weights", "all"] = "weights",
        warmup: float = 0.05,
        schedule: Literal["one_cycle", "warmup_cosine", "constant"] = "one_cycle",
        rate_floor: float = 0.086,
        cycle_momentum: bool = False,
    ) -> None:
        super().__init__()
        self.task: Task | EventTask = task_named(task)
        if self.task.kind != self.kind:
            raise ValueError(f"the task '{task}' is {self.task.kind}, {type(self).__name__} learns {self.kind} ones")
        if not self.task.fits(network.n_classes):
            raise ValueError(
                f"network.n_classes is {network.n_classes}, the task '{task}' has {self.task.n_classes} classes: "
                f"{self.task.described()}"
            )
        encoder = getattr(network, "encoder", None)
        if regime != "scratch" and encoder is None:
            raise ValueError(f"regime '{regime}' needs an encoder; {type(network).__name__} has none: use 'scratch'")
        if regime in ("dec", "full") and not network.head_layers():
            raise ValueError(f"regime '{regime}' trains a decoder; {type(network).__name__} was built without one")
        self.regime, self.network = regime, network
        self.peak, self.encoder_rate, self.layer_decay, self.layer_rates = (
            learning_rate,
            1.0 if regime == "scratch" else encoder_rate,
            layer_decay,
            layer_rates,
        )
        self.weight_decay, self.decay = weight_decay, decay
        self.warmup, self.schedule, self.rate_floor = warmup, schedule, rate_floor
        self.cycle_momentum = cycle_momentum
        if self.frozen_encoder:
            # Now, not only in train(): a Trainer begins with the modes that it finds.
            encoder.requires_grad_(False).eval()

    @property
    def frozen_encoder(self) -> bool:
        return self.regime in ("lin", "dec")

    @property
    def needs_encoder(self) -> bool:
        """Whether the training starts from a pretrained encoder that must be given."""
        return self.regime != "scratch"

    def load_encoder(self, encoder: nn.Module) -> None:
        """Start from the weights of a pretrained encoder. A mask token is needed in pretraining only and left out.

        Raises:
            ValueError: the regime is scratch, or the weights do not fit.
        """
        if self.regime == "scratch":
            raise ValueError("regime 'scratch' starts from random weights; leave --pretrained out, or choose another")
        mine = self.network.encoder.state_dict()
        given = {k: v for k, v in encoder.state_dict().items() if not k.endswith("mask_token")}
        needed = {k for k in mine if not k.endswith("mask_token")}
        wrong = [k for k in sorted(needed ^ given.keys())] + [
            f"{k} {tuple(given[k].shape)} instead of {tuple(mine[k].shape)}"
            for k in sorted(needed & given.keys())
            if given[k].shape != mine[k].shape
        ]
        if wrong:
            raise ValueError(
                f"the pretrained encoder does not fit network.encoder; {len(wrong)} tensors differ: "
                f"{', '.join(wrong[:6])}"
            )
        self.network.encoder.load_state_dict(mine | given)

    def check_labels(self, batch: PointBatch | StreamBatch) -> None:
        """Raises ValueError if the events of a batch do not carry the labels of the task."""
        self.task.targets(batch.labels, batch.names)

    def train(self, mode: bool = True) -> FineTuning:
        """A frozen encoder stays in evaluation mode: drop path would make its features noisy, and its batch norms would
        move (published: they do)."""
        super().train(mode)
        if self.frozen_encoder:
            self.network.encoder.eval()
        return self

    # ------------------------------------------------------------------ optimisation

    def begins_anew(self, name: str) -> bool:
        """Whether a parameter of the network, by its name, has the full rate wherever it stands, since nothing was
        loaded into it."""
        return False

    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return min(1.0, self.global_step / max(1, int(self.trainer.estimated_stepping_batches)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.schedule != "constant" and not math.isfinite(self.trainer.estimated_stepping_batches):
            raise ValueError("the schedule needs the length of the training: set trainer.max_steps or max_epochs")
        scale = rates(self.network, self.encoder_rate, self.layer_decay, self.layer_rates)
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            rate = 1.0 if self.begins_anew(name) else scale[parameter]
            key = (rate, self.decay == "all" or decays(name, parameter))
            group = groups.setdefault(key, {"params": [], "peak": self.peak * key[0]})
            group.setdefault("weight_decay", self.weight_decay if key[1] else 0.0)
            group["params"].append(parameter)
        return torch.optim.AdamW(list(groups.values()), lr=self.peak)

    def rate_and_momentum(self) -> tuple[float, float]:
        """Learning rate of this step over its peak, and the β₁ that may be cycled with it."""
        if self.schedule == "one_cycle":
            return one_cycle(self.progress(), self.warmup)
        if self.schedule == "warmup_cosine":
            return warmup_cosine(self.progress(), self.warmup, self.rate_floor), 0.9
        return 1.0, 0.9

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rate, beta = self.rate_and_momentum()
        for group in self.optimizers().param_groups:
            group["lr"] = group["peak"] * rate
            group["betas"] = (beta if self.cycle_momentum else 0.9, 0.999)
        self.log("train/learning_rate", self.peak * rate)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norms = torch._foreach_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        self.log("train/gradient_norm", torch.stack(norms).norm())


def rates(
    network: nn.Module, encoder_rate: float, layer_decay: float, layer_rates: LayerRates
) -> dict[nn.Parameter, float]:
    """Learning rate of every parameter as a share of the peak (see :class:`FineTuning`).

    With n layers behind the encoder and m in it, layer i behind it has decay^(n-1-i), layer j of the encoder
    encoder_rate · decay^(m-1-j+n).
    """
    encoder = getattr(network, "encoder", None)
    inside = [] if encoder is None else encoder.layers()
    behind = network.head_layers()
    found = dict.fromkeys(network.parameters(), 1.0)
    if layer_rates == "as_published":
        # Blocks only; behind the encoder in the order of their registration, finest stage first.
        inside = [layer[-1:] for layer in inside[1:]]
        last = {layer[-1] for layer in behind}
        behind = [[module] for module in network.modules() if module in last]
    for layers, factor, after in ((inside, encoder_rate, len(behind)), (behind, 1.0, 0)):
        for position, layer in enumerate(layers):
            share = factor * layer_decay ** (len(layers) - 1 - position + after)
            found |= {parameter: share for module in layer for parameter in module.parameters()}
    return found
