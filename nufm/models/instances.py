"""From the queries of a detector to instances of points: matrix NMS and a greedy assignment, for all events at once.

Panda (Young & Terao, arXiv 2512.01324) with matrix NMS of SOLOv2 (Wang et al., arXiv 2003.10152, §3.3).

Shape legend: N points, N' things (points that are not stuff), B events, Q queries, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nufm.ops.pool import Segments, segment_reduce
from nufm.ops.serialize import event_index
from nufm.ops.tiles import Tiles


@dataclass(frozen=True, eq=False)
class InstanceRules:
    """What makes an instance. The defaults are those of the released detectors.

    Attributes:
        mask_threshold: a point is in a query's mask above this probability.
        score_threshold: a query is dropped below this score: the probability of its class; after the NMS, that times
            the mean probability of its mask times the decay.
        min_points: an instance has at least this many points.
        nms_sigma: σ of the Gaussian decay exp(-σ IoU²).
    """

    mask_threshold: float = 0.5
    score_threshold: float = 0.5
    min_points: int = 2
    nms_sigma: float = 2.0


@dataclass(frozen=True, eq=False)
class Instances:
    """Of every thing, row by row.

    Attributes:
        label: int64 (N',) class of the thing's instance, -1 none.
        confidence: float32 (N',) score of its instance, 0 without.
        instance: int64 (N',) 0..n-1 within the event in the order of the scores, -1 none.
        query: int64 (N',) the query that became the instance, -1 none.
    """

    label: Tensor
    confidence: Tensor
    instance: Tensor
    query: Tensor


@torch.no_grad()
def find_instances(
    class_logits: Tensor, mask_logits: Tensor, offsets: Tensor, stuff_class: int, rules: InstanceRules
) -> Instances:
    """Turn queries into instances that share no point.

    1. A query's class is the likeliest of the C classes and "no object", its score the probability. Queries of no
       object, of the stuff class, below ``score_threshold``, or with fewer than ``min_points`` points are dropped.
    2. Scores are multiplied with the mean probability of the mask, and decayed (:func:`nms_decay`).
    3. From the highest score down, a query gets the points of its mask that are still free, if these are at least
       ``min_points``. Equal scores go by the number of the query. Points that no mask covers belong to no instance.

    An instance has the one class of its query. The only loop is over ranks, at most Q, with all events at once.

    Args:
        class_logits: float (B, Q, C+1), the last column for "no object".
        mask_logits: float (N', Q), of each thing for the queries of its event.
        offsets: int64 (B+1,) from 0 to N'.
        stuff_class: class of the points that belong to no instance.
        rules: thresholds.

    Returns:
        :class:`Instances`.
    """
    n_events, n_queries, n_outcomes = class_logits.shape
    n_things = len(mask_logits)
    event = event_index(offsets, n_things)
    mask_probability = mask_logits.float().sigmoid()
    covers = mask_probability > rules.mask_threshold
    # Sums of 0 and 1 in float32 are exact up to 2^24 points of an event.
    binary = covers.float()
    overlap = Tiles.of_offsets(offsets).sums(binary, binary)
    n_covered = overlap.diagonal(dim1=1, dim2=2)
    rows = Segments.ordered(event, n_events, torch.arange(n_things, device=event.device))
    covered_sum = segment_reduce(mask_probability * binary, rows, n_events, "sum")

    score, query_class = class_logits.float().softmax(-1).max(-1)
    kept = (query_class < n_outcomes - 1) & (query_class != stuff_class)
    kept &= (score >= rules.score_threshold) & (n_covered >= rules.min_points)
    score = score * covered_sum / n_covered.clamp(min=1)
    score = score * nms_decay(score, query_class, kept, overlap, rules.nms_sigma)
    kept &= score >= rules.score_threshold

    order = torch.where(kept, score, -1.0).argsort(dim=1, descending=True, stable=True)
    n_kept = kept.sum(1)
    owner = torch.full((n_things,), -1, dtype=torch.int64, device=covers.device)
    instance = owner.clone()
    n_found = torch.zeros_like(n_kept)
    for rank in range(int(n_kept.max()) if n_events else 0):
        query = order[:, rank]
        free = (owner < 0) & (rank < n_kept)[event] & covers.gather(1, query[event][:, None]).squeeze(1)
        n_free = torch.zeros_like(n_kept).scatter_add_(0, event, free.long())
        accepted = n_free >= rules.min_points
        free &= accepted[event]
        owner = torch.where(free, query[event], owner)
        instance = torch.where(free, n_found[event], instance)
        n_found += accepted
    owned = owner >= 0
    row = event * n_queries + owner.clamp(min=0)
    return Instances(
        label=torch.where(owned, query_class.flatten()[row], -1),
        confidence=torch.where(owned, score.flatten()[row], 0.0),
        instance=instance,
        query=owner,
    )


def nms_decay(score: Tensor, query_class: Tensor, kept: Tensor, overlap: Tensor, sigma: float) -> Tensor:
    """Factor on the score of each query for the masks of higher score it repeats (matrix NMS, class by class).

    decay_j = min over i above j of exp(-σ IoU_ij²) / exp(-σ IoU_i²), where "above" means kept, of the same class and
    of higher score, and IoU_i is the largest IoU of i with a mask above i (arXiv 2003.10152, Eq. 5).

    Args:
        score: float (B, Q).
        query_class: int64 (B, Q).
        kept: bool (B, Q), queries that take part.
        overlap: float (B, Q, Q), points that two masks share; the diagonal holds the points of each.
        sigma: σ.

    Returns:
        float (B, Q), 1 where nothing is above.
    """
    rank = torch.where(kept, score, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    size = overlap.diagonal(dim1=1, dim2=2)
    iou = overlap / (size[:, :, None] + size[:, None] - overlap).clamp(min=1)
    above = (rank[:, :, None] < rank[:, None]) & (query_class[:, :, None] == query_class[:, None])
    above &= kept[:, :, None] & kept[:, None]
    iou = iou * above
    repeated = iou.amax(1)  # of each query, with those above it
    decay = torch.exp(-sigma * (iou.square() - repeated.square()[:, :, None]))
    return torch.where(above, decay, 1.0).amin(1)
