"""Point-MAE and PoLAr-MAE pretraining: hide most tokens of an event, and say what was in them.

Pang et al., "Masked Autoencoders for Point Cloud Self-supervised Learning" (Point-MAE), arXiv 2203.06604; Young et al.,
"Particle Trajectory Representation Learning with Masked Point Modeling" (PoLAr-MAE), arXiv 2502.02558; numbers from
DeepLearnPhysics/PoLAr-MAE (configs/polarmae.yml, pointmae.yml).

    visible tokens -> encoder ┐
    mask tokens + positions   ┴-> decoder -> points of each masked token (Chamfer distance)
                                          -> energies at its true points (PoLAr-MAE only)

Energy infilling: the true positions of a masked token are given, in an order; a mini-PointNet that sees the order makes
one vector of them, and one linear map gives the energies slot by slot. So no assignment of predictions is needed.

Only visible tokens are embedded and encoded. The published code encodes all, with a mask in attention.

Shape legend: T tokens, M masked tokens, K slots of a full token, P slots of masked tokens, C columns (x, y, z, energy).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from nufm.data.event import Event, PointBatch
from nufm.data.tokens import EventReconstruction, EventTokens
from nufm.data.transforms import Transform
from nufm.methods.event_tokens import event_reconstruction
from nufm.methods.schedules import decays, warmup_cosine
from nufm.models.token_encoder import MiniPointNet, TokenEncoder, TokenTransformer, init_linear
from nufm.models.tokens import Tokens
from nufm.ops.random import counter_uniform


class Reconstruction(NamedTuple):
    """What the model says of the masked tokens of a batch.

    Attributes:
        tokens: all of them.
        masked: bool (T,), which were hidden.
        hidden: the masked ones, M of them, P slots.
        points: float (M, K, C) predicted points: position from the token's centre over its radius, then features; the
            first ``hidden.counts[i]`` of token i count.
        energy: float (P, C-3) features predicted at the true points, slot by slot; None without energy infilling.
        visible: float (V, width) what the encoder says of the visible tokens.
    """

    tokens: Tokens
    masked: Tensor
    hidden: Tokens
    points: Tensor
    energy: Tensor | None
    visible: Tensor


class MaskedPoints(LightningModule):
    """Masked point modelling on volumetric tokens. Defaults are PoLAr-MAE's: 29,570,080 parameters.

    Args:
        encoder: of the visible tokens.
        energy_infilling: predict energies at the true points too (PoLAr-MAE); false: Point-MAE.
        mask_ratio: share of an event's tokens that are hidden, rounded down.
        decoder_depth: blocks of the decoder, which is as wide as the encoder and shares its positions.
        targets: what the Chamfer distance sees: ``all`` columns (energy is a fourth coordinate), or ``position``.
        learning_rate: peak. The published one is 1e-4 for batches of 128 events (rule: times √(batch/128)).
        warmup: share of the steps over which the rate rises.
        rate_floor: where the rate begins and ends, over the peak.
        weight_decay: of AdamW.
        decay: ``weights`` spares biases, norms and the mask token; ``all`` as published.

    Raises:
        ValueError: a share out of range.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        energy_infilling: bool = True,
        mask_ratio: float = 0.6,
        decoder_depth: int = 4,
        targets: Literal["all", "position"] = "all",
        learning_rate: float = 1e-4,
        warmup: float = 0.025,
        rate_floor: float = 0.086,
        weight_decay: float = 0.05,
        decay: Literal["weights", "all"] = "weights",
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio is {mask_ratio}, expected a share between 0 and 1")
        self.save_hyperparameters(ignore=["encoder"])
        self.encoder = encoder
        made, width, slots = encoder.arguments, encoder.channels, encoder.tokenizer.max_points
        self.decoder = TokenTransformer(
            width,
            decoder_depth,
            made["heads"],
            made["mlp_ratio"],
            made["drop_path"],
            made["attention_dropout"],
            made["norm"],
            final_norm=True,
            unit=encoder.unit,
        )
        self.decoder.apply(init_linear)
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.columns = 3 if targets == "position" else encoder.in_channels
        self.point_head = nn.Linear(width, self.columns * slots)
        self.order_encoder = self.energy_head = None
        if energy_infilling:
            self.features = encoder.in_channels - 3
            if self.features < 1:
                raise ValueError(f"energy infilling needs energies, the encoder has {encoder.in_channels} columns")
            self.order_encoder = MiniPointNet(3, width, slots, slot_code=True, padding=made["padding"])
            self.energy_head = nn.Linear(2 * width, self.features * slots)

    # ------------------------------------------------------------------ one step

    def reconstruct(self, batch: PointBatch) -> Reconstruction:
        """Hide tokens, drawn from each event's own seed, and predict what is in them.

        Raises:
            ValueError: a batch without seeds.
        """
        if batch.seeds is None:
            raise ValueError(f"{batch.names[:1]} …: the batch has no seeds, from which masks are drawn; set seeds (B,)")
        tokens = self.encoder.tokens(batch)
        masked = mask_tokens(tokens, batch.seeds, self.hparams.mask_ratio)
        visible = self.encoder.encode(tokens.select(~masked)).feat
        x = self.mask_token.to(visible.dtype).expand(len(tokens), -1)
        x = x.index_copy(0, (~masked).nonzero()[:, 0], visible)
        position = self.encoder.positions(tokens)
        x = self.decoder(x, position, tokens.centre, tokens.offsets)[-1][masked]  # (M, width)
        hidden = tokens.select(masked)
        points = self.point_head(x).unflatten(1, (-1, self.columns))
        energy = None
        if self.energy_head is not None:
            order = self.order_encoder(hidden.points[:, :3], hidden)
            energy = self.energy_head(torch.cat([order, x], dim=1)).unflatten(1, (-1, self.features))
            energy = energy[hidden.segments.index, hidden.slot]
        return Reconstruction(tokens, masked, hidden, points, energy, visible)

    def losses(self, found: Reconstruction) -> dict[str, Tensor]:
        """Chamfer distance, and mean squared error of the energies; 0 where nothing was hidden."""
        hidden = found.hidden
        parts = {"chamfer": chamfer(found.points.float(), hidden.points[:, : self.columns], hidden.starts)}
        if found.energy is not None:
            wrong = (found.energy.float() - hidden.points[:, 3:]).square()
            parts["energy"] = wrong.mean() if len(wrong) else wrong.sum()
        return parts

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        found = self.reconstruct(batch)
        parts = self.losses(found)
        total = sum(parts.values())  # both with weight 1, as published
        tokens, hidden = found.tokens, found.hidden
        if len(hidden) == 0:
            warnings.warn(
                f"{batch.names[:1]} …: nothing to learn from, {len(tokens)} tokens of {len(batch)} points and none is "
                f"hidden; is the tokenizer's radius {self.encoder.tokenizer.radius:g} in units of the coordinates?",
                stacklevel=2,
            )
        shown = {
            **{f"train/{name}": part.detach() for name, part in parts.items()},
            "train/tokens_per_event": len(tokens) / batch.n_events,
            "train/points_per_token": len(tokens.members) / max(1, len(tokens)),
            "train/tokens_left_out": tokens.left_out.sum().float(),
        }
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # a step that is written
            # One prediction for all: a model that does no better has learnt the mean shape, nothing of what is around.
            same = found.points.detach().float().mean(0).expand_as(found.points)
            shown["train/chamfer_constant"] = chamfer(same, hidden.points[:, : self.columns], hidden.starts)
            # 1 if the features of different tokens point everywhere, 0 if all are the same.
            feat = F.normalize(found.visible.detach().float(), dim=-1)
            shown["train/feature_std"] = feat.std(0, correction=0).norm() if len(feat) else feat.sum()
        self.log_dict(shown, batch_size=batch.n_events, sync_dist=True)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=batch.n_events, sync_dist=True)
        return total

    def examples(
        self, event: Event, transforms: Sequence[Transform], grid_size: float
    ) -> dict[str, EventTokens | EventReconstruction]:
        """What there is to draw of an event, by name: see :func:`nufm.methods.event_tokens.event_reconstruction`."""
        found = event_reconstruction(self, event, transforms, grid_size)
        return {"tokens": found.tokens, "reconstruction": found}

    # ------------------------------------------------------------------ optimisation

    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return min(1.0, self.global_step / max(1, int(self.trainer.estimated_stepping_batches)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        hp = self.hparams
        if not math.isfinite(self.trainer.estimated_stepping_batches):
            raise ValueError("the schedule needs the length of the training: set trainer.max_steps or max_epochs")
        return torch.optim.AdamW(self.parameter_groups(), lr=hp.learning_rate)

    def parameter_groups(self) -> list[dict]:
        """AdamW groups: with weight decay, and without."""
        hp = self.hparams
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.named_parameters():
            groups[hp.decay == "all" or decays(name, parameter)].append(parameter)
        return [
            {"params": parameters, "weight_decay": hp.weight_decay if decayed else 0.0}
            for decayed, parameters in groups.items()
            if parameters
        ]

    def on_train_batch_start(self, batch: PointBatch, batch_idx: int) -> None:
        """Learning rate of this step: a function of the progress alone, without a state to agree with."""
        rate = self.hparams.learning_rate * warmup_cosine(
            self.progress(), self.hparams.warmup, self.hparams.rate_floor
        )
        for group in self.optimizers().param_groups:
            group["lr"] = rate
        self.log("train/learning_rate", rate)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norms = torch._foreach_norm([p.grad for p in self.parameters() if p.grad is not None])
        self.log("train/gradient_norm", torch.stack(norms).norm())


# ---------------------------------------------------------------------- masks and distances


def mask_tokens(tokens: Tokens, seeds: Tensor, ratio: float) -> Tensor:
    """bool (T,): a random share ``ratio`` of each event's tokens, rounded down, so that a lone token stays visible.

    Args:
        tokens: of B events.
        seeds: int64 (B,) of each event's own random stream: an event's mask does not depend on its batch mates.
        ratio: share to hide.
    """
    place = torch.arange(len(tokens), device=tokens.offsets.device)
    key = counter_uniform(seeds[tokens.event], place - tokens.offsets[tokens.event])
    by_key = torch.argsort(key)
    order = by_key[torch.argsort(tokens.event[by_key], stable=True)]
    rank = torch.empty_like(order).scatter_(0, order, place) - tokens.offsets[tokens.event]
    n_hidden = (ratio * tokens.offsets.diff().double()).floor().long()
    return rank < n_hidden[tokens.event]


def chamfer(predicted: Tensor, points: Tensor, starts: Tensor) -> Tensor:
    """Chamfer distance of sets of different sizes (Fan et al., arXiv 1612.00603; squared distances).

    Set i has n points q and the first n predictions p count: (1/n) Σ_q min_p |q - p|² + (1/n) Σ_p min_q |q - p|², mean
    over the sets; 0 without sets.

    Args:
        predicted: float (M, K, C).
        points: float (P, C), set after set.
        starts: int64 (M+1,) where each set begins; none has 0 or more than K points.

    Returns:
        Scalar, differentiable in ``predicted``.
    """
    m, k, _ = predicted.shape
    if m == 0:
        return predicted.sum()
    counts = starts.diff()
    is_point = torch.arange(k, device=counts.device) < counts[:, None]  # (M, K)
    true = points.new_zeros(m * k, points.shape[1])
    true[is_point.flatten()] = points
    true = true.view(m, k, -1)
    with torch.no_grad():  # who is nearest to whom; the distances themselves are taken again, exactly
        # Not by matrix products, which a GPU may round to ten bits.
        apart = torch.cdist(predicted, true, compute_mode="donot_use_mm_for_euclid_dist")  # prediction, point
        apart.masked_fill_(~is_point[:, None], math.inf)
        nearest_point = apart.argmin(2)
        apart.masked_fill_(~is_point[:, :, None], math.inf)
        nearest_prediction = apart.argmin(1)

    def distance(a: Tensor, b: Tensor, of_b: Tensor) -> Tensor:
        near = b.gather(1, of_b[..., None].expand(-1, -1, b.shape[2]))
        return (F.mse_loss(a, near, reduction="none").sum(2) * is_point).sum(1)

    both = distance(predicted, true, nearest_point) + distance(true, predicted, nearest_prediction)
    return (both / counts).mean()
