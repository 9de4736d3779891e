"""Masked and relational pretraining on events of several sub-detectors (the FASERCal model).

Alonso-Monsalve et al., arXiv 2604.07037; talk of F. Cufino, NPML 2026; numbers from the public code saulam/faserDL
(spring 2026) where the talk is silent.

    pass A   a quarter of the patches -> encoder -> latents -> decoder -> voxels and charges of the hidden patches,
                                                                         hidden matrix, hidden tracks
    pass B   three quarters           -> encoder -> latents -> decoder -> ghost, hierarchy and category of the hits of
                                                                         the visible patches (truth of a simulation)

Phase 1, "MAE", is pass A alone and takes no truth unless it is told to (``ghosts``). Phase 2, "relational", starts from
it and adds pass B in a share of the steps.

Only what is visible is embedded; masks come from each event's own seed, so they do not depend on batch mates.

Differs from the public code: the empty charge is that of the transform (the least in the batch there), random empty
voxels are drawn event by event, the tracks' loss counts in every step (every second, half the rows), and hidden patches
do not decide how many summaries a module has.

Shape legend: B events, T patches, M of them predicted, N hits, S voxels that a loss looks at.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from lightning import LightningModule
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from nufm.data.stream_reconstruction import zero_charges
from nufm.data.streams import StreamBatch
from nufm.methods.calorimeter_losses import (
    BoundedWeights,
    VoxelTargets,
    charge_loss,
    focal_occupancy,
    ghost_loss,
    smoothed,
    soft_cross_entropy,
    voxel_targets,
)
from nufm.methods.schedules import decays, warmup_cosine
from nufm.models.patches import Patches, PatchStack
from nufm.models.stream_decoder import RELATIONAL, Memory, StreamDecoder
from nufm.models.stream_encoder import Latents, StreamEncoder
from nufm.ops.pool import segment_reduce
from nufm.ops.random import counter_uniform

# Term -> weight at the beginning, largest weight.
WEIGHTS = {
    "occupancy": (1.0, 5.0),
    "charge": (1.0, 5.0),
    "ghost": (1.0, 5.0),
    "hierarchy": (0.05, 1.0),
    "category": (0.05, 0.8),
    "matrix": (0.05, 1.0),
    "tracks": (0.02, 0.05),
}
# Where the matrix and the tracks are always asked for: latents must not forget them for the calorimeters' sake.
KEPT_WEIGHTS = {"matrix": (0.5, 1.0), "tracks": (0.5, 1.0)}
ORTHONORMALITY = (1e-4, 3e-5)  # of the voxel bases: calorimeter, second calorimeter
AUC_VOXELS = 200_000  # at most, of a logged step

# Every use of an event's random stream has its own range of counters: pass, stream, use.
RANGE = 1 << 40


def _counter(relational: bool, stream: int, use: int) -> int:
    return ((int(relational) * 8 + stream) * 4 + use) * RANGE


class Masked(NamedTuple):
    """An event batch of which a part is hidden, and what the encoder makes of the rest.

    Attributes:
        patches: stream -> all its patches.
        keep: stream -> bool (T,), the visible ones.
        keep_matrix, keep_tracks: bool (B,), where that token is visible if it is there at all.
        latents: of what is visible.
        memory: the same as the decoder sees them.
    """

    patches: dict[str, Patches]
    keep: dict[str, Tensor]
    keep_matrix: Tensor
    keep_tracks: Tensor
    latents: Latents
    memory: Memory


class Voxels(NamedTuple):
    """What is said of voxels of one stream, and what is true. Logits and charges: float32 (S,)."""

    target: VoxelTargets
    occupancy: Tensor
    charge: Tensor


class MaskedCalorimeter(LightningModule):
    """Pretraining of a :class:`nufm.models.stream_encoder.StreamEncoder`. Defaults are the public code's.

    Args:
        encoder: of what is visible.
        mask_ratio: share of each module's patches that is hidden in pass A. A matrix and tracks are hidden with half of
            it.
        ghosts: ``as_input``: every hit is to be reconstructed, and no truth is read; ``not_reconstructed``: as
            published, voxels that are ghosts by the truth count as empty where they are hidden.
        relational: probability that a step has pass B; 0 is phase 1. Published: 0.5.
        relational_ratio: share of the patches that is hidden in pass B.
        supervised_share: share of a patch's hits that are not ghosts, at least one, whose hierarchy and category pass B
            sees in a step: it would learn them by heart. Whether a hit is a ghost it sees of all.
        single_tokens: which events are asked for their matrix and their tracks: those where they are ``hidden``, as
            published, or ``all``. As nothing rewards latents for what they are told of a visible muon, they forget it
            within a few hundred steps, and a training on few labels does not bring it back; ``all`` makes them keep it.
        decoder: arguments of :class:`nufm.models.stream_decoder.StreamDecoder`; null = base size.
        learning_rate: peak. Published: 1.5e-4 × events per step / 256.
        weight_rate: learning rate of the weights of the loss terms, over that of all else.
        warmup: share of the steps over which the rate rises.
        rate_floor: where the rate begins and ends, over the peak.
        weight_decay: of AdamW; none on biases, norms, learned vectors and voxel bases.

    Raises:
        ValueError: a share out of range, an unknown option.
    """

    def __init__(
        self,
        encoder: StreamEncoder,
        mask_ratio: float = 0.75,
        ghosts: Literal["as_input", "not_reconstructed"] = "as_input",
        relational: float = 0.0,
        relational_ratio: float = 0.25,
        supervised_share: float = 0.5,
        single_tokens: Literal["hidden", "all"] = "hidden",
        decoder: dict[str, int | float | list[int]] | None = None,
        learning_rate: float = 2.4e-3,
        weight_rate: float = 0.1,
        warmup: float = 0.1,
        rate_floor: float = 0.01,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__()
        for name, value in (("mask_ratio", mask_ratio), ("relational_ratio", relational_ratio)):
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value}, expected a share between 0 and 1")
        for name, value in (("relational", relational), ("supervised_share", supervised_share)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected 0 … 1")
        if ghosts not in ("as_input", "not_reconstructed"):
            raise ValueError(f"ghosts is '{ghosts}', expected 'as_input' or 'not_reconstructed'")
        if single_tokens not in ("hidden", "all"):
            raise ValueError(f"single_tokens is '{single_tokens}', expected 'hidden' or 'all'")
        self.save_hyperparameters(ignore=["encoder"])
        self.encoder = encoder
        self.decoder = StreamDecoder(encoder, **(decoder or {}))
        terms = {f"{t}_{s.stream}": WEIGHTS[t] for s in encoder.stacks for t in ("occupancy", "charge")}
        terms |= {t: WEIGHTS[t] for t in RELATIONAL}
        single = KEPT_WEIGHTS if single_tokens == "all" else WEIGHTS
        terms |= {t: single[t] for t in ("matrix", "tracks") if getattr(encoder, t) is not None}
        self.weights = BoundedWeights(terms)
        if relational == 0:  # several processes wait for the gradient of everything that could have one
            for head in self.decoder.relational_heads():
                head.requires_grad_(False)
        self.zero: dict[str, float] = {}  # stream -> standardised charge of an empty voxel; 0 if not named
        self.seed = 0  # of the run's data, which masks and the draw of pass B follow

    # ------------------------------------------------------------------ what is hidden

    def hide(self, batch: StreamBatch, relational: bool = False) -> Masked:
        """Hide a part of each module, drawn from each event's own seed, and encode the rest."""
        ratio = self.hparams.relational_ratio if relational else self.hparams.mask_ratio
        patches = self.encoder.patches(batch)
        keep = {
            stack.stream: keep_patches(patches[stack.stream], stack, batch.seeds, ratio, _counter(relational, i, 0))
            for i, stack in enumerate(self.encoder.stacks)
        }
        keep_matrix, keep_tracks = (
            counter_uniform(batch.seeds, torch.full_like(batch.seeds, _counter(relational, i, 0))) >= ratio / 2
            for i in (6, 7)
        )
        latents = self.encoder.encode(batch, patches, keep, keep_matrix, keep_tracks)
        return Masked(patches, keep, keep_matrix, keep_tracks, latents, self.decoder.memory(latents))

    # ------------------------------------------------------------------ pass A

    def voxels(self, batch: StreamBatch, masked: Masked, stream: int) -> Voxels:
        """What is said of the voxels of the hidden patches of a calorimeter."""
        stack = self.encoder.stacks[stream]
        name, hits = stack.stream, batch.voxels[stack.stream]
        hidden = masked.patches[name].select(~masked.keep[name])
        real = self.to_reconstruct(batch, name)[hidden.hit_rows]
        target = voxel_targets(
            hidden.hit_patch[real],
            hidden.slot[real],
            hits.charge[hidden.hit_rows[real]],
            hidden.event,
            stack.patch,
            batch.seeds,
            _counter(False, stream, 1),
            self.zero.get(name, 0.0),
        )
        decoded = self.decoder.decode_patches(masked.memory, name, hidden)
        said = self.decoder.patches[name](decoded, target.patch, target.slot, ("occupancy", "charge"))
        return Voxels(target, said["occupancy"], said["charge"])

    def to_reconstruct(self, batch: StreamBatch, stream: str) -> Tensor:
        """bool (N,), the hits that are to be reconstructed."""
        hits = batch.voxels[stream]
        every = torch.ones(len(hits), dtype=torch.bool, device=batch.device)
        first = stream == self.encoder.calorimeter.stream  # the only one with ghosts
        if self.hparams.ghosts == "as_input" or not first or len(hits) == 0:
            return every
        self.check_truth(hits.labels, f"{batch.names[:1]} …", relational=False)
        return hits.labels["ghost"] != 1

    def check_truth(self, labels: Collection[str], where: str, relational: bool) -> None:
        """ValueError if hits of the calorimeter have ``labels`` that are not all that is learnt from, in pass B if
        ``relational``."""
        said = f"{where}: stream '{self.encoder.calorimeter.stream}' has no field"
        if self.hparams.ghosts == "not_reconstructed" and "ghost" not in labels:
            remedy = "pretrain without truth: --model.ghosts as_input"
            raise ValueError(f"{said} 'ghost', which model.ghosts 'not_reconstructed' needs; {remedy}")
        for label in RELATIONAL if relational else ():
            if label not in labels:
                remedy = "the truth of a simulation; pretrain without it: --model.relational 0"
                raise ValueError(f"{said} '{label}', which relational pretraining learns from {remedy}")

    def reconstruction_losses(self, batch: StreamBatch, masked: Masked, said: Mapping[str, Voxels]) -> dict:
        """Terms of pass A; 0 where nothing was hidden."""
        terms: dict[str, Tensor] = {}
        for name, voxels in said.items():
            zero, true = self.zero.get(name, 0.0), voxels.target
            terms[f"occupancy_{name}"] = focal_occupancy(voxels.occupancy, true.filled)
            terms[f"charge_{name}"] = charge_loss(voxels.charge, true.charge, true.filled, zero)
        if self.encoder.matrix is not None:
            matrix = batch.matrices[self.encoder.matrix.stream]
            events = (matrix.present & self._asked(masked.keep_matrix)).nonzero()[:, 0]
            found = self.decoder.matrix(masked.memory, events)
            terms["matrix"] = _smooth_l1(found, matrix.values[events])
        if self.encoder.tracks is not None:
            tracks = batch.tracks[self.encoder.tracks.stream]
            events = (tracks.present & self._asked(masked.keep_tracks)).nonzero()[:, 0]
            logit, mean = self.decoder.tracks(masked.memory, events)
            counts = tracks.offsets.diff()
            owner = torch.arange(batch.n_events, device=batch.device).repeat_interleave(
                counts, output_size=len(tracks.feat)
            )
            true = segment_reduce(tracks.feat, owner, batch.n_events, "mean")[events, : mean.shape[1]]
            some = counts[events] > 0
            entropy = F.binary_cross_entropy_with_logits(logit, smoothed(some.float(), 0.05), reduction="none")
            terms["tracks"] = (entropy.mean() if len(events) else entropy.sum()) + _smooth_l1(mean[some], true[some])
        return terms

    def _asked(self, keep: Tensor) -> Tensor:
        """bool (B,), the events that are asked for a token which is visible in those of ``keep``."""
        return torch.ones_like(keep) if self.hparams.single_tokens == "all" else ~keep

    # ------------------------------------------------------------------ pass B

    def relational_losses(self, batch: StreamBatch, masked: Masked) -> dict[str, Tensor]:
        """Terms of pass B: truth of the hits of visible patches; ghosts have neither hierarchy nor category.

        Raises:
            ValueError: the events have no such truth.
        """
        stack = self.encoder.calorimeter
        hits = batch.voxels[stack.stream]
        if len(hits):
            self.check_truth(hits.labels, f"{batch.names[:1]} …", relational=True)
        shown = masked.patches[stack.stream].select(masked.keep[stack.stream])
        decoded = self.decoder.decode_patches(masked.memory, stack.stream, shown)
        said = self.decoder.patches[stack.stream](decoded, shown.hit_patch, shown.slot, tuple(RELATIONAL))
        if len(hits) == 0:
            return {name: value.sum() for name, value in said.items()}
        true = {name: hits.labels[name][shown.hit_rows] for name in RELATIONAL}
        ghost = true["ghost"] == 1
        chosen = self._supervised(shown, stack, batch.seeds, ~ghost)
        terms = {name: soft_cross_entropy(said[name][chosen], true[name][chosen]) for name in ("hierarchy", "category")}
        return {"ghost": ghost_loss(said["ghost"], ghost), **terms}

    def _supervised(self, shown: Patches, stack: PatchStack, seeds: Tensor, real: Tensor) -> Tensor:
        """int64 (S,): a share of each patch's hits that are ``real``, at least one; all those outside of training."""
        if not self.training or self.hparams.supervised_share == 1:
            return real.nonzero()[:, 0]
        voxel = (shown.group * stack.group_size + shown.place)[shown.hit_patch] * stack.patch_size + shown.slot
        key = counter_uniform(seeds[shown.event[shown.hit_patch]], _counter(True, 0, 1) + voxel)
        key = torch.where(real, key, 2.0)  # beyond all draws
        least = key.new_ones(len(shown)).scatter_reduce_(0, shown.hit_patch, key, "amin")
        return ((key < self.hparams.supervised_share) | (key == least[shown.hit_patch])).nonzero()[:, 0]

    # ------------------------------------------------------------------ one step

    def losses(self, batch: StreamBatch, relational: bool) -> tuple[dict[str, Tensor], Masked, dict[str, Voxels]]:
        """All terms of a step, what was hidden in pass A, and what was said of it."""
        masked = self.hide(batch)
        said = {stack.stream: self.voxels(batch, masked, i) for i, stack in enumerate(self.encoder.stacks)}
        terms = self.reconstruction_losses(batch, masked, said)
        if relational:
            terms |= self.relational_losses(batch, self.hide(batch, relational=True))
        return terms, masked, said

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the terms, and how far the voxel bases are from orthonormal."""
        penalty = sum(
            strength * part.voxels.overlap()
            for strength, part in zip(ORTHONORMALITY, self.decoder.patches.values(), strict=False)
        )
        return self.weights(terms) + penalty

    def training_step(self, batch: StreamBatch, batch_idx: int) -> Tensor:
        relational = self.has_pass_b(self.global_step)
        terms, masked, said = self.losses(batch, relational)
        total = self.total(terms)
        if not relational and self.hparams.relational > 0:  # a gradient of 0, not none: see __init__
            total = total + sum(p.sum() * 0 for head in self.decoder.relational_heads() for p in head.parameters())
        shown = {f"train/{name}": term.detach() for name, term in terms.items()}
        shown["train/patches_per_event"] = sum(len(p) for p in masked.patches.values()) / batch.n_events
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # a step that is written
            shown |= {f"train/loss_weight_{name}": w.detach() for name, w in self.weights.weights().items()}
            shown |= self._diagnostics(batch, masked, said)
        self.log_dict(shown, batch_size=batch.n_events, sync_dist=True)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=batch.n_events, sync_dist=True)
        return total

    def validation_step(self, batch: StreamBatch, batch_idx: int) -> None:
        """The same terms with masks that are the same every time; pass B always, if it is trained at all.

        ``val/charge_*`` depends on the batch size: the charge q₀ that voxels are weighted by is the batch's, as it is
        in training and in the public code. Compare runs of one batch size.
        """
        terms, _, _ = self.losses(batch, self.hparams.relational > 0)
        shown = {f"val/{name}": term for name, term in terms.items()}
        self.log_dict(shown, batch_size=batch.n_events, sync_dist=True)

    def has_pass_b(self, step: int) -> bool:
        """Whether an optimiser step has pass B, by the run's seed: the same in all processes, and after a resume."""
        draw = counter_uniform(torch.tensor(self.seed), torch.tensor(_counter(True, 0, 3) + step))
        return float(draw) < self.hparams.relational

    @torch.no_grad()
    def _diagnostics(self, batch: StreamBatch, masked: Masked, said: Mapping[str, Voxels]) -> dict[str, Tensor]:
        """What shows that nothing is learnt, or that all events look the same."""
        name, voxels = next(iter(said.items()))
        true, logit = voxels.target.filled[:AUC_VOXELS], voxels.occupancy[:AUC_VOXELS]
        shown = {}
        if bool(true.any()) and not bool(true.all()):
            auc = roc_auc_score(true.cpu().numpy(), logit.cpu().numpy())
            shown[f"train/occupancy_auc_{name}"] = torch.tensor(auc, device=self.device, dtype=torch.float32)
            # The best probability for all voxels, and one charge: a model that does no better has learnt no shapes.
            trials = torch.linspace(-4, 1, 21, device=self.device)
            shown[f"train/occupancy_constant_{name}"] = min(focal_occupancy(t.expand(len(true)), true) for t in trials)
            charge = voxels.target.charge
            middle = charge.median().expand(len(charge))
            zero = self.zero.get(name, 0.0)
            shown[f"train/charge_constant_{name}"] = charge_loss(middle, charge, voxels.target.filled, zero)
        feat = segment_reduce(masked.latents.feat.float(), masked.latents.event, batch.n_events, "mean")
        # 1 if the features of different events point everywhere, 0 if all are the same.
        shown["train/feature_std"] = F.normalize(feat, dim=-1).std(0, correction=0).norm()
        return shown

    # ------------------------------------------------------------------ optimisation

    def setup(self, stage: str | None = None) -> None:
        """Learns from the data what an empty voxel looks like, and the seed."""
        data = self.trainer.datamodule
        self.zero = zero_charges(data.transforms, [s.stream for s in self.encoder.stacks])
        self.seed = getattr(data, "seed", 0)

    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return min(1.0, self.global_step / max(1, int(self.trainer.estimated_stepping_batches)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if not math.isfinite(self.trainer.estimated_stepping_batches):
            raise ValueError("the schedule needs the length of the training: set trainer.max_steps or max_epochs")
        return torch.optim.AdamW(self.parameter_groups(), lr=self.hparams.learning_rate, betas=(0.9, 0.95))

    def parameter_groups(self) -> list[dict]:
        """AdamW groups: with weight decay, without, and the weights of the terms; ``scale`` is over the peak rate."""
        groups: dict[str, list[nn.Parameter]] = {"decayed": [], "spared": [], "weights": []}
        for name, parameter in self.named_parameters():
            if name.startswith("weights."):
                group = "weights"
            else:
                group = "decayed" if decays(name, parameter) and ".bases." not in name else "spared"
            groups[group].append(parameter)
        return [
            {
                "params": parameters,
                "weight_decay": self.hparams.weight_decay if group == "decayed" else 0.0,
                "scale": self.hparams.weight_rate if group == "weights" else 1.0,
            }
            for group, parameters in groups.items()
            if parameters
        ]

    def on_train_batch_start(self, batch: StreamBatch, batch_idx: int) -> None:
        """Learning rate of this step: a function of the progress alone, without a state to agree with."""
        rate = self.hparams.learning_rate * warmup_cosine(self.progress(), self.hparams.warmup, self.hparams.rate_floor)
        for group in self.optimizers().param_groups:
            group["lr"] = rate * group["scale"]
        self.log("train/learning_rate", rate)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norms = torch._foreach_norm([p.grad for p in self.parameters() if p.grad is not None])
        self.log("train/gradient_norm", torch.stack(norms).norm())


def keep_patches(patches: Patches, stack: PatchStack, seeds: Tensor, ratio: float, first: int) -> Tensor:
    """bool (T,), the patches of each module (or window) that stay visible: a share 1 - ``ratio``, rounded up or down at
    random so that the mean is right; of two or more at least one stays and one is hidden, and a lone one stays.

    Args:
        patches: of B events.
        stack: they belong to.
        seeds: int64 (B,) of the events' own random streams: a mask depends on neither batch mates nor other modules.
        ratio: share to hide.
        first: counter in these streams that the draws begin at.
    """
    index, event, group = patches.occupied
    place = patches.group * stack.group_size + patches.place
    key = counter_uniform(seeds[patches.event], first + place)
    by_key = torch.argsort(key)
    order = by_key[torch.argsort(index[by_key], stable=True)]
    count = event.new_zeros(len(event)).scatter_add_(0, index, torch.ones_like(index))
    start = count.cumsum(0) - count
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - start[index[order]]
    up = counter_uniform(seeds[event], first + stack.n_groups * stack.group_size + group)
    visible = (count * (1 - ratio) + up).floor().long()
    visible = torch.minimum(visible.clamp(min=1), (count - 1).clamp(min=1))
    return rank < visible[index]


def _smooth_l1(found: Tensor, true: Tensor) -> Tensor:
    """Mean, or a zero that is still part of the graph."""
    return F.smooth_l1_loss(found, true.to(found.dtype)) if len(found) else found.sum()
