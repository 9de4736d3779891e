"""Panda pretraining: multi-view self-distillation of a Point Transformer V3.

Method and numbers: Panda (Young, Terao, arXiv 2512.01324), which applies Sonata (Wu et al., arXiv 2503.16429) to
liquid-argon events; self-distillation as in DINO (arXiv 2104.14294), targets as in SwAV (arXiv 2006.09882).

A student sees masked global crops and small local crops of an event; a teacher, its exponential moving average, sees
the whole global crops. At every point that both see, the student must predict the teacher's assignment to prototypes:

    mask   masked global view  -> teacher of the same view
    roll   masked global view  -> teacher of the other global view
    local  local view          -> teacher of the first global view

Shape legend: N points, M points of the level where features are compared, n matched points, C width, K prototypes,
V views in the batch. Views are ordered event by event: event 0 view 0, event 0 view 1, event 1 view 0, …
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from nufm.data.event import PointBatch, offsets_from_counts
from nufm.data.views import ViewBatch
from nufm.methods.schedules import between, cosine, decays, one_cycle
from nufm.models.heads import PrototypeHead
from nufm.models.ptv3 import Block, PointTransformerV3, Stage, pool_mean, upcast
from nufm.ops.neighbors import nearest
from nufm.ops.random import counter_normal, counter_uniform
from nufm.ops.serialize import quantize

Targets = Literal["sinkhorn", "centering", "sharpening"]


class Branch(nn.Module):
    """Encoder with its two heads; student and teacher are one each.

    Args:
        backbone: the encoder.
        hidden, bottleneck, prototypes: sizes of the heads.
        upcast_levels: how many pooling levels the coarsest features are carried up before the heads.
    """

    def __init__(
        self, backbone: PointTransformerV3, hidden: int, bottleneck: int, prototypes: int, upcast_levels: int
    ) -> None:
        super().__init__()
        width = sum(backbone.channels[-1 - upcast_levels :])
        self.upcast_levels = upcast_levels
        self.backbone = backbone
        self.mask_head = PrototypeHead(width, hidden, bottleneck, prototypes)
        self.unmask_head = PrototypeHead(width, hidden, bottleneck, prototypes)

    def forward(self, batch: PointBatch, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Features (M, C), un-augmented coordinates (M, 3) and offsets (V+1,) at the level where views are compared."""
        stages: list[Stage] = self.backbone(batch, mask)
        level = len(stages) - 1 - self.upcast_levels
        return upcast(stages, self.upcast_levels), pool_mean(batch.origin, stages, level), stages[level].offsets


class SelfDistillation(LightningModule):
    """Multi-view self-distillation. Defaults are the paper's; the few options that differ from it say so.

    Args:
        encoder: the student's encoder; the teacher starts as its copy, without drop path.
        head_hidden: hidden width of the two prototype heads.
        head_bottleneck: width in which features and prototypes are compared.
        prototypes: number of prototypes per head.
        upcast_levels: pooling levels between the coarsest stage and the one where views are compared.
        student_temperature: temperature of the student's softmax.
        teacher_temperature: temperature of the targets, from and to over the warm-up.
        targets: ``sinkhorn`` (Sinkhorn-Knopp over the global batch), ``centering`` (DINO: subtract a running mean,
            then sharpen), ``sharpening`` (neither: collapses, for the collapse study).
        sinkhorn_iterations: alternations of row and column normalisation.
        center_momentum: momentum of the running mean of ``centering``.
        teacher_momentum: momentum of the moving average, from and to (cosine) over the training.
        loss_weights: weights of the mask, roll and local losses.
        mask_size: edge of the masked cells in coordinate units, from and to over the warm-up.
        mask_ratio: share of the occupied cells that are masked, from and to over the warm-up.
        mask_scope: ``view`` draws the share in every view, so that a view's mask does not depend on its batch mates;
            ``batch`` draws it over the packed batch of each process, as published.
        mask_jitter: noise on masked coordinates: standard deviation, and the bound it is clipped to from above.
        match_distance: points of two views match if closer than this in un-augmented coordinates.
        warmup: share of the steps over which temperature, mask size and ratio, and learning rate rise.
        learning_rate: peak of the one-cycle schedule (cosine; starts at 1/10, ends at 1/10⁴ of it).
        layer_decay: factor on the learning rate per encoder block, counted down from the last block.
        weight_decay: from and to (cosine); none on biases, norms, LayerScale, mask token and other vectors.
        cycle_momentum: also cycle Adam's β₁ between 0.95 and 0.85, as published (a default of that scheduler).
    """

    def __init__(
        self,
        encoder: PointTransformerV3,
        head_hidden: int = 4096,
        head_bottleneck: int = 256,
        prototypes: int = 4096,
        upcast_levels: int = 2,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        targets: Targets = "sinkhorn",
        sinkhorn_iterations: int = 3,
        center_momentum: float = 0.9,
        teacher_momentum: tuple[float, float] = (0.994, 1.0),
        loss_weights: tuple[float, float, float] = (0.25, 0.25, 0.5),
        mask_size: tuple[float, float] = (0.01, 0.075),
        mask_ratio: tuple[float, float] = (0.5, 0.9),
        mask_scope: Literal["view", "batch"] = "view",
        mask_jitter: tuple[float, float] = (0.0005, 0.001),
        match_distance: float = 0.002,
        warmup: float = 0.05,
        learning_rate: float = 2.6e-3,
        layer_decay: float = 0.9,
        weight_decay: tuple[float, float] = (0.04, 0.2),
        cycle_momentum: bool = False,
    ) -> None:
        super().__init__()
        if encoder.embedding.mask_token is None:
            raise ValueError("self-distillation masks points: build the encoder with mask_token=True")
        if upcast_levels >= len(encoder.channels):
            raise ValueError(f"upcast_levels is {upcast_levels}, the encoder has {len(encoder.channels) - 1} poolings")
        self.save_hyperparameters(ignore=["encoder"])
        self.student = Branch(encoder, head_hidden, head_bottleneck, prototypes, upcast_levels)
        self.teacher = copy.deepcopy(self.student)
        self.teacher.requires_grad_(False)
        for module in self.teacher.modules():
            if isinstance(module, Block):
                module.drop_path = 0.0
        self.register_buffer("center_mask", torch.zeros(prototypes))
        self.register_buffer("center_unmask", torch.zeros(prototypes))

    # ------------------------------------------------------------------ one step

    def training_step(self, views: ViewBatch, batch_idx: int) -> Tensor:
        hp, globals_, locals_ = self.hparams, views.globals_, views.locals_
        if views.n_global < 2 or views.n_local < 1:
            raise ValueError(
                f"self-distillation compares views: found {views.n_global} global and {views.n_local} local views per "
                "event, expected at least 2 and 1 (data.views.n_global, data.views.n_local)"
            )
        n_events = globals_.n_events // views.n_global
        t = self.progress()
        warm = min(1.0, t / hp.warmup) if hp.warmup > 0 else 1.0
        masked, mask = mask_points(
            globals_, between(hp.mask_size, warm), between(hp.mask_ratio, warm), hp.mask_scope, hp.mask_jitter
        )

        with torch.no_grad():
            teacher, teacher_origin, teacher_offsets = self.teacher(globals_)
            teacher_mask = self.teacher.mask_head(teacher)
            principal, principal_offsets = _every_nth_view(teacher_offsets, views.n_global)
            teacher_unmask = self.teacher.unmask_head(teacher[principal])
        student, student_origin, student_offsets = self.student(masked, mask)
        student_mask = self.student.mask_head(student)
        local, local_origin, local_offsets = self.student(locals_)
        student_unmask = self.student.unmask_head(local)

        # Which teacher point does each student point see? The teacher's other view is its own list of views, rolled.
        rolled, rolled_offsets = _roll_views(teacher_offsets, views.n_global)
        same = nearest(student_origin, student_offsets, teacher_origin, teacher_offsets, hp.match_distance)
        other = nearest(student_origin, student_offsets, teacher_origin[rolled], rolled_offsets, hp.match_distance)
        # All local views of an event look at its first global view: one segment per event on both sides.
        event_offsets = local_offsets[:: views.n_local]
        near = nearest(local_origin, event_offsets, teacher_origin[principal], principal_offsets, hp.match_distance)

        parts = {
            "mask": (student_mask, teacher_mask, same, student_offsets, self.center_mask),
            "roll": (student_mask, teacher_mask[rolled], other, student_offsets, self.center_mask),
            "local": (student_unmask, teacher_unmask, near, local_offsets, self.center_unmask),
        }
        temperature = between(hp.teacher_temperature, warm)
        total = student_mask.new_zeros((), dtype=torch.float32)
        for (name, part), weight in zip(parts.items(), hp.loss_weights, strict=True):
            loss, entropy, use = self.distill(*part, temperature)
            total = total + weight * loss
            self.log_dict(
                {
                    f"train/{name}": loss.detach(),
                    f"train/{name}_teacher_entropy": entropy,
                    f"train/{name}_kl": loss.detach() - entropy,
                    f"train/{name}_prototype_use": use,
                    f"train/{name}_matched": (part[2] >= 0).float().mean(),
                },
                batch_size=n_events,
                sync_dist=True,  # a rank's loss is its share of the global batch's
            )
        # 1 if the features of different points point everywhere, 0 if all are the same.
        spread = F.normalize(teacher.float(), dim=-1).std(0, correction=0).norm() if len(teacher) else total.detach()
        self.log("train/feature_std", spread, batch_size=n_events, sync_dist=True)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=n_events, sync_dist=True)
        return total

    def distill(
        self, student: Tensor, teacher: Tensor, match: Tensor, offsets: Tensor, center: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy of the student's assignments with the teacher's, where they match.

        Args:
            student: (M, K) similarities of the student's points.
            teacher: (M', K) similarities of the teacher's points.
            match: int64 (M,) row of ``teacher`` seen by each student point, -1 none.
            offsets: int64 (V+1,) views of the student's points.
            center: (K,) running mean for ``centering``, updated in place.
            temperature: of the targets.

        Returns:
            Loss: mean over the matched points of a view, then over the views of all ranks that have a match, in nats.
            Teacher entropy, averaged alike (loss - entropy is the Kullback-Leibler divergence), and the share of
            prototypes that are some point's largest target.
        """
        matched = match >= 0
        teacher = teacher[match[matched]].float()
        with torch.no_grad():
            if self.hparams.targets == "sinkhorn":
                target = sinkhorn(teacher, temperature, self.hparams.sinkhorn_iterations)
            elif self.hparams.targets == "centering":
                target = ((teacher - center) / temperature).softmax(-1)
                count = all_sum(torch.tensor(float(len(teacher)), device=teacher.device))
                mean = all_sum(teacher.sum(0)) / count.clamp(min=1)
                momentum = torch.where(count > 0, self.hparams.center_momentum, 1.0)
                center.copy_(momentum * center + (1 - momentum) * mean)
            else:
                target = (teacher / temperature).softmax(-1)
            used = torch.zeros_like(center).index_fill_(0, target.argmax(-1), 1.0)
            use = (all_sum(used) > 0).float().mean()
        log_student = (student[matched].float() / self.hparams.student_temperature).log_softmax(-1)
        cross_entropy = -(target * log_student).sum(-1)
        entropy = -(target * target.clamp(min=1e-30).log()).sum(-1)
        n_views = len(offsets) - 1
        view = torch.arange(n_views, device=offsets.device).repeat_interleave(offsets.diff(), output_size=len(match))
        return view_mean(cross_entropy, view[matched], n_views), view_mean(entropy, view[matched], n_views), use

    # ------------------------------------------------------------------ optimisation

    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return min(1.0, self.global_step / max(1, self.total_steps))

    @property
    def total_steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        hp = self.hparams
        if not math.isfinite(self.trainer.estimated_stepping_batches):
            raise ValueError("the schedules need the length of the training: set trainer.max_steps or max_epochs")
        groups = parameter_groups(self.student, hp.learning_rate, hp.layer_decay)
        for group in groups:
            group["weight_decay"] = hp.weight_decay[0] if group["decays"] else 0.0
        return torch.optim.AdamW(groups, lr=hp.learning_rate)

    def on_train_batch_start(self, views: ViewBatch, batch_idx: int) -> None:
        """Learning rate, β₁ and weight decay of this step. Functions of the progress alone: no scheduler has a state
        that a resumed run, or one made longer, would have to agree with."""
        t, hp = self.progress(), self.hparams
        rate, beta = one_cycle(t, hp.warmup)
        decay = cosine(hp.weight_decay, t)
        for group in self.optimizers().param_groups:
            group["lr"] = group["peak"] * rate
            group["betas"] = (beta if hp.cycle_momentum else 0.9, 0.999)
            group["weight_decay"] = decay if group["decays"] else 0.0
        self.log("train/learning_rate", hp.learning_rate * rate)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norms = torch._foreach_norm([p.grad for p in self.student.parameters() if p.grad is not None])
        self.log("train/gradient_norm", torch.stack(norms).norm())

    def optimizer_step(self, *args: object, **kwargs: object) -> None:
        super().optimizer_step(*args, **kwargs)
        self.update_teacher()

    @torch.no_grad()
    def update_teacher(self) -> None:
        """teacher ← m teacher + (1 - m) student, m(t) cosine; once per optimiser step."""
        momentum = cosine(self.hparams.teacher_momentum, self.progress())
        teacher, student = list(self.teacher.parameters()), [p.detach() for p in self.student.parameters()]
        torch._foreach_lerp_(teacher, student, 1.0 - momentum)

    @property
    def encoder(self) -> PointTransformerV3:
        """What is probed and exported: the teacher's encoder."""
        return self.teacher.backbone


# ---------------------------------------------------------------------- masks and matching


def mask_points(
    batch: PointBatch, size: float, ratio: float, scope: Literal["view", "batch"], jitter: tuple[float, float]
) -> tuple[PointBatch, Tensor]:
    """Hide the points of randomly chosen cells of edge ``size``.

    Masked points keep their place but for a slight jitter, and are re-gridded; their features are replaced by the
    encoder's mask token. Draws come from each view's own seed.

    Args:
        batch: V views.
        size: cell edge in coordinate units, counted from each view's own minimum.
        ratio: share of the occupied cells to hide, rounded down.
        scope: draw the share per ``view`` or over the whole ``batch``.
        jitter: standard deviation of the noise on masked coordinates and its upper bound. Clipped from above only,
            as published: the lower tail stays.

    Returns:
        The batch with jittered masked points, and the mask, bool (N,).
    """
    view, n_views = batch.event_index, batch.n_events
    corner = batch.coord.new_full((n_views, 3), torch.inf)
    corner = corner.scatter_reduce(0, view[:, None].expand(-1, 3), batch.coord, "amin")
    cells = quantize(batch.coord - corner[view], batch.offsets, size)
    extent = cells.amax(0) + 1 if len(cells) else cells.new_ones(3)
    inside = (cells[:, 0] * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]
    occupied, cell = torch.unique(view * extent.prod() + inside, return_inverse=True)
    cell_view = occupied // extent.prod()
    key = counter_uniform(batch.seeds[cell_view], _grid_key(cells, cell, len(occupied)))
    group = cell_view if scope == "view" else torch.zeros_like(cell_view)
    n_groups = n_views if scope == "view" else 1
    counts = torch.bincount(group, minlength=n_groups)
    by_key = key.argsort()
    by_group = by_key[group[by_key].argsort(stable=True)]
    rank = torch.empty_like(group)
    starts = offsets_from_counts(counts)[:-1]
    rank[by_group] = torch.arange(len(group), device=group.device) - starts[group[by_group]]
    hidden = rank < (ratio * counts.double()).floor().long()[group]
    mask = hidden[cell]

    sigma, bound = jitter
    point = torch.arange(len(view), device=view.device) - batch.offsets[view]
    axis = torch.arange(3, device=view.device)
    # Counters of the noise start where those of the cells (which are >= 0) cannot be.
    noise = sigma * counter_normal(batch.seeds[view, None], -1 - (3 * point[:, None] + axis))
    coord = torch.where(mask[:, None], batch.coord + noise.clamp(max=bound).to(batch.coord.dtype), batch.coord)
    return batch.replace(coord=coord, grid=quantize(coord, batch.offsets, batch.grid_size)), mask


def _grid_key(cells: Tensor, cell: Tensor, n_cells: int) -> Tensor:
    """int64 (n_cells,) name of each occupied cell that does not depend on the extent of the batch."""
    name = (cells[:, 0] << 42) + (cells[:, 1] << 21) + cells[:, 2]
    return torch.zeros(n_cells, dtype=torch.int64, device=cell.device).scatter_(0, cell, name)


def _rows(offsets: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the given views one after the other, and their offsets."""
    counts = offsets.diff()[views]
    packed = offsets_from_counts(counts)
    shift = (offsets[views] - packed[:-1]).repeat_interleave(counts)
    return torch.arange(len(shift), device=offsets.device) + shift, packed


def _every_nth_view(offsets: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return _rows(offsets, torch.arange(0, len(offsets) - 1, n, device=offsets.device))


def _roll_views(offsets: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Each event's views, moved on by one: (0, 1, 2) becomes (1, 2, 0)."""
    views = torch.arange(len(offsets) - 1, device=offsets.device).view(-1, n).roll(-1, dims=1).flatten()
    return _rows(offsets, views)


# ---------------------------------------------------------------------- targets and means


@torch.no_grad()
def sinkhorn(similarity: Tensor, temperature: float, iterations: int) -> Tensor:
    """Soft assignments that use all prototypes equally often (SwAV, arXiv 2006.09882, §3.1; Sinkhorn-Knopp).

    Args:
        similarity: float32 (n, K), this rank's rows of the global batch; n may be 0.
        temperature: entropy of the assignments.
        iterations: alternations; the last one normalises the rows, so every row sums to 1.

    Returns:
        (n, K) targets.
    """
    # Every normalisation scales rows or columns, so that only the factors need to be kept, not the (n, K) products.
    kernel = (similarity / temperature).exp()
    row = kernel.new_ones(len(kernel))
    column = kernel.new_ones(kernel.shape[1])
    share = all_sum(torch.tensor(float(len(kernel)), device=kernel.device)) / kernel.shape[1]
    for _ in range(iterations):
        column = share / all_sum(row @ kernel).clamp(min=torch.finfo(kernel.dtype).tiny)
        row = 1 / (kernel @ column)
    return kernel * column * row[:, None]


def view_mean(value: Tensor, view: Tensor, n_views: int) -> Tensor:
    """Mean over the points of each view, then over the views of all ranks that have points.

    Returns this rank's share times the number of ranks, so that the mean over ranks (which is what distributed
    training takes of gradients) is the mean over the global batch.
    """
    sums = value.new_zeros(n_views).index_add(0, view, value)
    counts = torch.bincount(view, minlength=n_views)
    present = all_sum((counts > 0).sum().to(value.dtype))
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return (sums / counts.clamp(min=1)).sum() * world / present.clamp(min=1)


def all_sum(x: Tensor) -> Tensor:
    """Sum over ranks; ``x`` itself on one process."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


# ---------------------------------------------------------------------- parameter groups


def parameter_groups(student: Branch, learning_rate: float, layer_decay: float) -> list[dict]:
    """AdamW groups: the peak learning rate falls by ``layer_decay`` per encoder block counted from the last, all else
    trains at the full rate; biases, norms, LayerScale, mask token and vectors are not decayed (``decays`` False)."""
    depths = student.backbone.depths
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0
        if ".block" in name:
            stage = int(name.split(".enc.enc")[1].split(".")[0])
            block = sum(depths[:stage]) + int(name.split(".block")[1].split(".")[0])
            scale = layer_decay ** (sum(depths) - 1 - block)
        decayed = decays(name, parameter)
        group = groups.setdefault((scale, decayed), {"params": [], "peak": learning_rate * scale, "decays": decayed})
        group["params"].append(parameter)
    return list(groups.values())
