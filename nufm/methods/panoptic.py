"""Panoptic segmentation: every particle (or interaction) as one set of points with one class, learnt as a set.

Panda Detector (arXiv 2512.01324; DeepLearnPhysics/pimm, configs/panda/panseg). The queries of an event are matched one
to one with its instances (Hungarian algorithm, as in DETR, arXiv 2005.12872), and each learns its mask and class:

    mask   2 × focal loss (arXiv 1708.02002, α 0.25, γ 2) + 5 × dice loss, of the matched pairs
    class  ½ (2 × cross-entropy of the matched + 0.5 × of the others, which are "no object")
    stuff  binary cross-entropy per point
    + mask and class after each of the earlier blocks, with a matching of their own (deep supervision)

Differs from the published code: the class of an instance is the most frequent one of its points, not that of its
first point; events without an instance teach "no object", and are not skipped; masks are compared on all points, not on
a sample of at most 100,000; instances of the stuff class are stuff, not objects; a point of an instance that the stuff
head left out adds nothing to the focal loss, instead of a constant 2500 without gradient (it counts in the mean).

Shape legend: N points, N' things (points the stuff head lets through), B events, Q queries, C classes, K true instances
of all events, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nufm.data.event import PointBatch
from nufm.methods.finetuning import FineTuning
from nufm.metrics.clustering import ClusterScores
from nufm.metrics.contingency import sizes
from nufm.metrics.panoptic import PanopticScores, instance_classes
from nufm.models.detector import Detections, Detector
from nufm.ops.pool import Segments, segment_reduce
from nufm.ops.serialize import event_index


class Panoptic(FineTuning):
    """Trains a :class:`nufm.models.detector.Detector`.

    Args:
        network: the detector; with ``momentum`` it also learns the momentum of each particle, by the smooth L1 loss of
            its natural logarithm.
        task: ``particle`` or ``interaction``.
        options: of :class:`nufm.methods.finetuning.FineTuning`; published: learning_rate 2e-4, weight_decay 0.01,
            layer_decay 0.97.

    Raises:
        ValueError: regime ``lin``, or a stuff class of the network that is not the task's.
    """

    kind = "panoptic"

    def __init__(self, network: Detector, task: str = "particle", **options: Any) -> None:
        if options.get("regime") == "lin":
            raise ValueError(
                "regime 'lin' has no queries to make instances with; to keep the encoder frozen, use 'dec'"
            )
        super().__init__(network, task, **options)
        if network.stuff_class != self.task.stuff:
            raise ValueError(
                f"network.stuff_class is {network.stuff_class}, the stuff of the task '{task}' is "
                f"{self.task.stuff} ({self.task.classes[self.task.stuff]})"
            )
        self.scores = PanopticScores(len(self.task.classes), stuff=self.task.stuff)
        self.clusters = ClusterScores()

    # ------------------------------------------------------------------ one step

    def truth(self, batch: PointBatch) -> tuple[TrueInstances, Tensor]:
        """The instances of a batch, and int64 (N,) the classes of its points.

        Raises:
            ValueError: labels that the task cannot use (see :meth:`nufm.data.tasks.Task.targets`), an instance without
                a class, or no momenta for a network that learns them.
        """
        classes, instances = self.task.targets(batch.labels, batch.names)
        momentum = None
        if self.network.arguments["momentum"]:
            momentum = batch.labels.get("momentum")
            if momentum is None:
                raise ValueError(
                    f"{batch.names[0] if batch.names else 'the batch'}: the events carry no momentum; use files with "
                    "'cluster_extra', or build the detector with momentum=False"
                )
        n_classes, stuff = len(self.task.classes), self.task.stuff
        return true_instances(classes, instances, batch.offsets, n_classes, stuff, batch.names, momentum), classes

    def check_labels(self, batch: PointBatch) -> None:
        """Raises ValueError if the events of a batch do not carry what is learnt: see :meth:`truth`."""
        self.truth(batch)

    def losses(self, found: Detections, batch: PointBatch) -> dict[str, Tensor]:
        """The terms of the loss, weighted: their sum is what is minimised. Raises as :meth:`truth`."""
        truth, classes = self.truth(batch)
        overlaps = Overlaps(found, truth, batch.n_events)

        focal, dice = zip(*(overlaps.losses(block.mask_logits) for block in found.blocks), strict=True)
        queries = match(
            [
                (f + d - block.class_logits[..., :-1].log_softmax(2)[truth.event, :, truth.label]).detach()
                for f, d, block in zip(focal, dice, found.blocks, strict=True)
            ],
            truth.event,
        )
        parts: dict[str, Tensor] = {}
        for i, (block, query) in enumerate(zip(found.blocks, queries, strict=True)):
            pair = (query >= 0).nonzero().flatten()
            event, query = truth.event[pair], query[pair]
            n_pairs = torch.zeros_like(batch.counts).scatter_add_(0, event, torch.ones_like(event))
            # Mean over the pairs of an event, then over events.
            share = 1 / (n_pairs[event] * batch.n_events)
            terms = {
                "focal": 2 * (share * focal[i][pair, query]).sum(),
                "dice": 5 * (share * dice[i][pair, query]).sum(),
                "class": class_loss(block.class_logits, event, query, truth.label[pair]),
            }
            if block.momentum is not None and i == len(found.blocks) - 1:
                known = ~truth.momentum[pair].isnan()
                error = F.smooth_l1_loss(
                    block.momentum[event, query][known], truth.momentum[pair][known].log(), reduction="none"
                )
                terms["momentum"] = error.sum() / known.sum().clamp(min=1)
            for name, value in terms.items():
                # The earlier blocks together: "deep_focal", …
                key = name if i == len(found.blocks) - 1 else f"deep_{name}"
                parts[key] = parts.get(key, 0) + value
        parts["stuff"] = stuff_loss(found.stuff_logits, classes, self.task.stuff)
        return parts

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        found = self.network(batch)
        parts = self.losses(found, batch)
        total = torch.stack(list(parts.values())).sum()
        with torch.no_grad():
            objects = found.blocks[-1].class_logits.argmax(2) < len(self.task.classes)
            shown = {name: value.detach() for name, value in parts.items()}
            # 0 or Q for every event means that all queries have become the same.
            shown["objects"] = objects.sum(1).float().mean()
            shown["things"] = found.things.new_tensor(len(found.things) / max(1, len(batch)), dtype=torch.float32)
        self.log_dict({f"train/{k}": v for k, v in shown.items()}, batch_size=batch.n_events, sync_dist=True)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=batch.n_events, sync_dist=True)
        return total

    def validation_step(self, batch: PointBatch, batch_idx: int) -> None:
        found = self.network(batch)
        parts = self.losses(found, batch)
        self.log("val/loss", torch.stack(list(parts.values())).sum(), batch_size=batch.n_events, sync_dist=True)
        guess = self.network.interpret(found)
        classes, instances = self.task.targets(batch.labels, batch.names)
        self.scores.update(guess.instance, guess.label, instances, classes, batch.offsets)
        self.clusters.update(guess.instance, instances, batch.offsets)

    def on_validation_epoch_end(self) -> None:
        """Class-aware panoptic quality, detection F1 and ARI (``nufm.metrics``)."""
        found, clusters = self.scores.compute(), self.clusters.compute()
        self.log("val/pq", found["aware_pq"].float(), prog_bar=True)
        self.log("val/f1", found["agnostic_f1"].float())
        self.log("val/ari", clusters["ari"].float(), prog_bar=True)
        self.scores.reset()
        self.clusters.reset()


# ---------------------------------------------------------------------- truth


@dataclass(frozen=True, eq=False)
class TrueInstances:
    """The K instances of a batch, event by event, by rising id.

    Attributes:
        member: int64 (N,) instance 0..K-1 of each point, -1 none.
        event: int64 (K,).
        label: int64 (K,) the most frequent class of the points.
        size: int64 (K,) points.
        momentum: float32 (K,) GeV/c, NaN unknown; None if not asked for.
    """

    member: Tensor
    event: Tensor
    label: Tensor
    size: Tensor
    momentum: Tensor | None


def true_instances(
    classes: Tensor,
    instances: Tensor,
    offsets: Tensor,
    n_classes: int,
    stuff_class: int,
    names: Sequence[str] = (),
    momentum: Tensor | None = None,
) -> TrueInstances:
    """Instances from the labels of the points. Those whose class is stuff are left out.

    Args:
        classes: int64 (N,) class of each point, -1 unknown: it has no say in the class of its instance.
        instances: int64 (N,) ids within the event, in any order and with gaps, -1 none.
        offsets: int64 (B+1,).
        n_classes: C.
        stuff_class: class of points without instance.
        names: of the events, for messages.
        momentum: float32 (N,) GeV/c, not positive where unknown; an instance has the mean of its points'.

    Raises:
        ValueError: an instance none of whose points has a class, or a class beyond C.
    """
    event = event_index(offsets, len(classes))
    held = (instances >= 0).nonzero().flatten()
    stride = instances.max().clamp(min=0) + 1 if len(instances) else 1
    key, member_of_held = torch.unique(event[held] * stride + instances[held], return_inverse=True)
    event_of, n = key // stride, len(key)
    if bool((classes >= n_classes).any()):
        raise ValueError(f"{names[:1]}: found class {int(classes.max())}, expected less than {n_classes}")
    nobody = torch.full_like(instances, -1)
    label = instance_classes(nobody.index_put((held,), member_of_held), classes, n, n_classes)
    if bool((label < 0).any()):
        k = int((label < 0).nonzero()[0])
        b = int(event_of[k])
        where = names[b] if b < len(names) else f"event {b} of the batch"
        raise ValueError(
            f"{where}: instance {int(key[k] % stride)} has no class: all its points have class -1; give them one, or "
            "set their instance to -1"
        )
    kept = label != stuff_class
    number = torch.where(kept, kept.cumsum(0) - 1, -1)
    member = nobody.index_put((held,), number[member_of_held])
    size = sizes(member_of_held, n)
    if momentum is not None:
        given = momentum[held].float()
        told = (given > 0).float()
        total, count = (
            segment_reduce((x * told)[:, None], member_of_held, n, "sum").squeeze(1)
            for x in (given, torch.ones_like(told))
        )
        momentum = torch.where(count > 0, total / count, torch.nan)[kept]
    return TrueInstances(member, event_of[kept], label[kept], size[kept], momentum)


# ---------------------------------------------------------------------- losses


class Overlaps:
    """Mask losses of every instance with every query of its event.

    The instances of an event share no point, so that all pairs need one sum over the points of each instance and one
    over those of each event, for every query: no mask of the truth is ever made. Points without an instance, whose
    truth is unknown, do not count.

    Args:
        found: the result of the detector.
        truth: its instances.
        n_events: B.
    """

    def __init__(self, found: Detections, truth: TrueInstances, n_events: int) -> None:
        member = truth.member[found.things]
        self.rows = (member >= 0).nonzero().flatten()
        event = event_index(found.thing_offsets, len(member))[self.rows]
        self.instances = Segments(member[self.rows], len(truth.event))
        self.events = Segments(event, n_events)
        self.event, self.size = truth.event, truth.size[:, None].float()
        # Of the event, points that the stuff head left out included.
        self.n_points = self.size.new_zeros(n_events, 1).index_add(0, truth.event, self.size)[truth.event]

    def losses(self, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Focal and dice loss, float32 (K, Q) each, of masks (N', Q).

        Focal: mean over the points of the event. Dice: 1 - (2 Σ p t + 1) / (Σ p + Σ t + 1).
        """
        z = mask_logits[self.rows]
        p = z.sigmoid()
        inside = 0.25 * (1 - p).square() * F.softplus(-z)
        outside = 0.75 * p.square() * F.softplus(z)
        n_queries = z.shape[1]
        own = segment_reduce(torch.cat([inside - outside, p], 1), self.instances, self.instances.n, "sum")
        whole = segment_reduce(torch.cat([outside, p], 1), self.events, self.events.n, "sum")[self.event]
        focal = (own[:, :n_queries] + whole[:, :n_queries]) / self.n_points
        dice = 1 - (2 * own[:, n_queries:] + 1) / (whole[:, n_queries:] + self.size + 1)
        return focal, dice


def match(costs: Sequence[Tensor], event: Tensor) -> list[Tensor]:
    """The one-to-one assignment of queries to instances of least total cost, event by event and block by block.

    Args:
        costs: L tensors float (K, Q).
        event: int64 (K,), rising.

    Returns:
        L tensors int64 (K,): query of each instance, -1 where an event has more instances than queries.
    """
    # One copy to the host for all blocks. Where the network gives NaN the loss shall say so, not the assignment.
    cost = torch.nan_to_num(torch.stack(list(costs)).double(), nan=1e9, posinf=1e9, neginf=-1e9).cpu().numpy()
    query = torch.full(cost.shape[:2], -1, dtype=torch.int64)
    ends = torch.unique_consecutive(event.cpu(), return_counts=True)[1].cumsum(0).tolist()
    for begin, end in zip([0, *ends], ends, strict=False):
        for block in range(len(cost)):
            rows, columns = linear_sum_assignment(cost[block, begin:end])
            query[block, begin + torch.from_numpy(rows)] = torch.from_numpy(columns)
    return list(query.to(event.device))


def class_loss(logits: Tensor, event: Tensor, query: Tensor, label: Tensor) -> Tensor:
    """½ (2 × mean cross-entropy of the matched queries + 0.5 × of the others), mean over events.

    Args:
        logits: float (B, Q, C+1), the last column for "no object", which is what unmatched queries should say.
        event, query, label: int64 (n,) of the matched pairs.
    """
    target = torch.full(logits.shape[:2], logits.shape[2] - 1, dtype=torch.int64, device=logits.device)
    target[event, query] = label
    matched = torch.zeros(target.shape, device=logits.device)
    matched[event, query] = 1.0
    entropy = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    of_matched = (entropy * matched).sum(1) / matched.sum(1).clamp(min=1)
    of_others = (entropy * (1 - matched)).sum(1) / (1 - matched).sum(1).clamp(min=1)
    return (of_matched + 0.25 * of_others).mean()


def stuff_loss(logits: Tensor, classes: Tensor, stuff_class: int) -> Tensor:
    """Binary cross-entropy of logits (N,), mean over the points of known class; 0 without any."""
    known = classes >= 0
    entropy = F.binary_cross_entropy_with_logits(logits, (classes == stuff_class).to(logits.dtype), reduction="none")
    return (entropy * known).sum() / known.sum().clamp(min=1)
