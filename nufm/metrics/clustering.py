"""Scores of a clustering of points: how well predicted instances regroup the true ones, event by event.

Shape legend: N points, B events, I true and J predicted clusters of all events together.

n_ij points are shared by true cluster i and predicted cluster j; a_i = points of i, b_j = points of j, and n =
points of the event. **The points that count are those of a true instance**, assigned by the prediction or not.
A point without a predicted instance ("unassigned") is a cluster of its own in ARI and AMI, counts as lost in
the efficiencies and the Dice score of its true cluster, and is no predicted cluster in purity. So leaving
points out never helps: one common cluster of the unassigned would count a particle that was overlooked, alone,
as found. Points of no true instance do not count here, whatever was predicted for them; panoptic quality
(``nufm.metrics.panoptic``) is the score that charges for them.

None of these scores is enough alone: purity is 1 when every point is a cluster, efficiency is 1 when all are
one cluster.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from nufm.metrics.contingency import (
    UNIT,
    Contingency,
    check_points,
    contingency,
    event_index,
    from_units,
    largest,
    number_instances,
    sizes,
)

SCORES = ("ari", "ari_published", "ami", "purity", "efficiency", "purity_points", "efficiency_points", "sbd")
TERMS = 2**21  # of the expected mutual information, at a time: some 200 MB


class ClusterScores(Metric):
    """Means over events of the scores of :func:`cluster_scores`.

    An event where a score is not defined (NaN) is left out of that score's mean, and counted: an event without
    any true instance enters nothing; one without any assigned point enters neither purity nor
    ``ari_published``, but counts as 0 (or nearly) in the others. Without an event, a mean is NaN.

    Example:
        >>> scores = ClusterScores()
        >>> scores.update(prediction.instance, batch.labels["particle"], batch.offsets)
        >>> scores.compute()["ari"]
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    counted: Tensor
    events: Tensor
    voxels: Tensor
    unassigned: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Sums of scores in units of 2^-36: see contingency.UNIT.
        self.add_state("total", torch.zeros(len(SCORES), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counted", torch.zeros(len(SCORES), dtype=torch.int64), dist_reduce_fx="sum")
        for state in ("events", "voxels", "unassigned"):
            self.add_state(state, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred_instance: Tensor, true_instance: Tensor, offsets: Tensor) -> None:
        """Add events.

        Args:
            pred_instance, true_instance: integer (N,) instance ids within their event, -1 = none.
            offsets: int64 (B+1,); event b holds the points offsets[b]:offsets[b+1].

        Raises:
            ValueError: a dtype, a shape or a value does not fit.
        """
        scores = cluster_scores(pred_instance, true_instance, offsets)
        table = torch.stack([scores[name] for name in SCORES])
        defined = ~table.isnan()
        units = torch.where(defined, table, 0.0).mul(UNIT).round().long().sum(1)
        self.total += units.to(self.total.device)
        self.counted += defined.sum(1).to(self.counted.device)
        self.events += len(offsets) - 1
        self.voxels += scores["voxels"].sum().to(self.voxels.device)
        self.unassigned += scores["unassigned"].sum().to(self.unassigned.device)

    def compute(self) -> dict[str, Tensor]:
        """Means over the events so far.

        Returns:
            float64 scalars ``ari``, ``ari_published``, ``ami``, ``purity``, ``efficiency``,
            ``purity_points``, ``efficiency_points``, ``sbd``; int64 scalars ``events`` (all),
            ``events_scored`` (with a true instance), ``voxels`` (of true instances) and ``unassigned``
            (voxels of a true instance without a predicted one); ``unassigned_fraction`` of those voxels.
        """
        mean = from_units(self.total) / self.counted
        result = {name: mean[i] for i, name in enumerate(SCORES)}
        result.update(
            events=self.events.clone(),
            events_scored=self.counted[SCORES.index("ari")].clone(),
            voxels=self.voxels.clone(),
            unassigned=self.unassigned.clone(),
            unassigned_fraction=from_units(self.unassigned, 1) / self.voxels,
        )
        return result


def cluster_scores(pred_instance: Tensor, true_instance: Tensor, offsets: Tensor) -> dict[str, Tensor]:
    """Scores of each event.

    ========================  =================================================================================
    ``ari``                   adjusted Rand index over the points of true instances, unassigned points one
                              cluster each (Hubert and Arabie, J. Classification 2 (1985) 193); 1 where both
                              partitions are the same, so also for an event of one point
    ``ari_published``         the same over the points that have a predicted instance, all others left out,
                              and the points of no true instance as one true cluster: the ARI of Panda
                              (arXiv 2512.01324), which leaves out what the prediction leaves out; NaN if that
                              is everything
    ``ami``                   adjusted mutual information over the points of ``ari``: (MI − E[MI]) /
                              ((H_true + H_pred)/2 − E[MI]) with the exact expectation under random
                              permutation (Vinh, Epps and Bailey, JMLR 11 (2010) 2837)
    ``purity``                mean over predicted clusters of max_i n_ij / b_j; NaN without any
    ``efficiency``            mean over true clusters of max_j n_ij / a_i
    ``purity_points``         Σ_j max_i n_ij / Σ_j b_j: over points instead of clusters; NaN without any
    ``efficiency_points``     Σ_i max_j n_ij / Σ_i a_i
    ``sbd``                   symmetric best Dice: the smaller of the mean over true clusters of
                              max_j 2 n_ij / (a_i + b_j) and the same mean over predicted clusters; 0 without
                              any predicted cluster
    ========================  =================================================================================

    Purity, efficiency and SBD average over clusters unweighted, as SPINE does: a blip of 3 voxels counts as
    much as a track of 10,000.

    Args:
        pred_instance, true_instance: integer (N,) instance ids within their event, -1 = none.
        offsets: int64 (B+1,).

    Returns:
        name -> float64 (B,), NaN where not defined, always for an event without a true instance;
        ``voxels`` and ``unassigned``: int64 (B,) points of true instances, and those of them without a
        predicted instance.

    Raises:
        ValueError: a dtype, a shape or a value does not fit.
    """
    fields = {"pred_instance": pred_instance, "true_instance": true_instance}
    fields = check_points("ClusterScores", fields, offsets)
    if offsets.device.type == "mps":  # no float64 there
        fields, offsets = {name: value.cpu() for name, value in fields.items()}, offsets.cpu()
    pred_id, true_id = fields["pred_instance"], fields["true_instance"]
    n_events, event = len(offsets) - 1, event_index(offsets)

    def per_event(values: Tensor, of: Tensor) -> Tensor:
        return values.new_zeros(n_events).index_add(0, of, values)

    counts, assigned = true_id >= 0, pred_id >= 0
    true, true_event = number_instances(true_id, event, counts)
    pred, pred_event = number_instances(pred_id, event, counts & assigned)
    a, b = sizes(true, len(true_event)), sizes(pred, len(pred_event))
    table = contingency(true, pred, len(b), event)
    n = per_event(a, true_event)
    alone = n - per_event(b, pred_event)  # unassigned points, each a cluster

    rand = _adjusted_rand(
        n, *(per_event(_pairs(s), of) for s, of in ((table.count, table.event), (a, true_event), (b, pred_event)))
    )  # fmt: skip
    information = _adjusted_information(
        n,
        _mutual_information(n, table, a, b, true_event),
        _Sizes.of(a, true_event, None),
        _Sizes.of(b, pred_event, alone),
        same=rand == 1.0,
    )

    shared, weight = table.count.double(), a.double()
    best_true = largest(shared, table.true, len(a))  # of each true cluster: its largest share
    best_pred = largest(shared, table.pred, len(b))
    dice = 2 * shared / (weight[table.true] + b.double()[table.pred])
    n_true = per_event(torch.ones_like(weight), true_event)
    n_pred = per_event(torch.ones_like(b, dtype=torch.float64), pred_event)
    dice_true = per_event(largest(dice, table.true, len(a)), true_event) / n_true
    dice_pred = per_event(largest(dice, table.pred, len(b)), pred_event) / n_pred
    scores = {
        "ari": rand,
        "ari_published": _published_rand(pred_id, true_id, event, n_events),
        "ami": information,
        # 0 / 0 is NaN in IEEE arithmetic, which is the meaning wanted.
        "purity": per_event(best_pred / b, pred_event) / n_pred,
        "efficiency": per_event(best_true / a, true_event) / n_true,
        "purity_points": per_event(best_pred, pred_event) / (n - alone).double(),
        "efficiency_points": per_event(best_true, true_event) / n.double(),
        "sbd": torch.minimum(dice_true, torch.where(n_pred > 0, dice_pred, 0.0)),
    }
    nothing = n == 0
    return {name: value.double().masked_fill(nothing, torch.nan) for name, value in scores.items()} | {
        "voxels": n,
        "unassigned": alone,
    }


def _pairs(size: Tensor) -> Tensor:
    """Pairs of points within clusters."""
    return size * (size - 1) // 2


def _adjusted_rand(n: Tensor, both: Tensor, in_true: Tensor, in_pred: Tensor) -> Tensor:
    """ARI (B,) from the numbers of points and of pairs of points: joined in both, in truth, in prediction.

    The product of two numbers of pairs leaves int64 at 78,000 points in one cluster: float64 from here.
    """
    same = (both == in_true) & (both == in_pred)  # no pair is judged differently
    both, in_true, in_pred, every = (x.double() for x in (both, in_true, in_pred, _pairs(n)))
    expected = in_true * in_pred / every
    return torch.where(same, 1.0, (both - expected) / ((in_true + in_pred) / 2 - expected))


def _published_rand(pred_id: Tensor, true_id: Tensor, event: Tensor, n_events: int) -> Tensor:
    assigned = pred_id >= 0
    true, true_event = number_instances(true_id, event, assigned)  # -1 is an id like others
    pred, pred_event = number_instances(pred_id, event, assigned)
    a, b = sizes(true, len(true_event)), sizes(pred, len(pred_event))
    table = contingency(true, pred, len(b), event)
    zero = torch.zeros(n_events, dtype=torch.int64, device=event.device)
    n = zero.index_add(0, true_event, a)
    joined = ((table.count, table.event), (a, true_event), (b, pred_event))
    rand = _adjusted_rand(n, *(zero.index_add(0, of, _pairs(s)) for s, of in joined))
    return rand.masked_fill(n == 0, torch.nan)


class _Sizes:
    """Distinct cluster sizes of each event, sorted by event: ``size``, how often (``times``), and ``event``,
    each (S,). A thousand unassigned points are one row."""

    def __init__(self, size: Tensor, times: Tensor, event: Tensor, per_event: Tensor) -> None:
        self.size, self.times, self.event, self.per_event = size, times, event, per_event

    @classmethod
    def of(cls, size: Tensor, event: Tensor, alone: Tensor | None) -> _Sizes:
        """From clusters' ``size`` and ``event``, and clusters of one point, ``alone`` (B,) of them."""
        times = torch.ones_like(size)
        if alone is not None:
            some = alone.nonzero()[:, 0]
            size = torch.cat([size, torch.ones_like(some)])
            event, times = torch.cat([event, some]), torch.cat([times, alone[some]])
        width = int(size.max()) + 1 if len(size) else 1
        keys, row = torch.unique(event * width + size, return_inverse=True)
        times = torch.zeros_like(keys).index_add(0, row, times)
        return cls(keys % width, times, keys // width, torch.bincount(keys // width))

    def entropy(self, n: Tensor) -> Tensor:
        """float64 (B,) −Σ s/n log(s/n) in nat, n (B,) points of the events."""
        share = self.size.double() / n[self.event]
        return torch.zeros(len(n), dtype=torch.float64, device=n.device).index_add(
            0, self.event, -self.times * share * share.log()
        )

    def clusters(self, n_events: int) -> Tensor:
        """int64 (B,) clusters of each event."""
        return self.times.new_zeros(n_events).index_add(0, self.event, self.times)


def _mutual_information(n: Tensor, table: Contingency, a: Tensor, b: Tensor, true_event: Tensor) -> Tensor:
    """MI (B,) in nat between the true clusters and the predicted ones, unassigned points one cluster each."""
    zero = torch.zeros(len(n), dtype=torch.float64, device=n.device)
    total, shared = n[table.event].double(), table.count.double()
    term = shared / total * (total * shared / (a[table.true].double() * b[table.pred])).log()
    left = a - torch.zeros_like(a).index_add(0, table.true, table.count)  # unassigned points of each
    total = n[true_event].double()
    term_left = left / total * (total / a).log()
    return zero.index_add(0, table.event, term).index_add(0, true_event, term_left)


def _adjusted_information(n: Tensor, mutual: Tensor, true: _Sizes, pred: _Sizes, same: Tensor) -> Tensor:
    expected = expected_information(n, true, pred)
    middle = (true.entropy(n) + pred.entropy(n)) / 2
    adjusted = (mutual - expected) / (middle - expected)
    # One cluster tells nothing: 0 by definition, where the formula divides rounding errors.
    single = (true.clusters(len(n)) == 1) | (pred.clusters(len(n)) == 1)
    return torch.where(same, 1.0, torch.where(single, 0.0, adjusted))


def expected_information(n: Tensor, true: _Sizes, pred: _Sizes) -> Tensor:
    """Expected mutual information (B,) in nat of two random partitions with the given cluster sizes.

    E = Σ_ij Σ_k k/n log(n k / (a_i b_j)) P(k), P hypergeometric, k from max(1, a_i + b_j − n) to
    min(a_i, b_j) (Vinh, Epps and Bailey, JMLR 11 (2010) 2837, eq. 24a). Clusters of equal size share their
    terms, and k further than d = √(22 min(a_i, b_j)) from its mean are not visited: their total probability
    is below 2 exp(−2 d² / min(a_i, b_j)) = 2e-19 (Hoeffding, JASA 58 (1963) 13, theorem 1 and section 6), less
    than a float64 resolves beside 1.
    """
    device, n_events = n.device, len(n)
    result = torch.zeros(n_events, dtype=torch.float64, device=device)
    if len(true.size) == 0 or len(pred.size) == 0:
        return result
    per_event = torch.zeros(n_events, dtype=torch.int64, device=device)
    per_event[: len(pred.per_event)] = pred.per_event
    start = per_event.cumsum(0) - per_event
    # Each true size meets each predicted size of its event.
    meets = per_event[true.event]
    i = torch.arange(len(true.size), device=device).repeat_interleave(meets)
    j = torch.arange(len(i), device=device) - (meets.cumsum(0) - meets)[i] + start[true.event[i]]
    a, b, total = true.size[i], pred.size[j], n[true.event[i]]
    times = (true.times[i] * pred.times[j]).double()
    low, high = (a + b - total).clamp(min=1), torch.minimum(a, b)
    mean, far = a.double() * b / total, (22.0 * high).sqrt()
    low = torch.maximum(low, (mean - far).floor().long())
    high = torch.minimum(high, (mean + far).ceil().long())
    terms = high - low + 1
    log_factorial = torch.lgamma(torch.arange(int(n.max()) + 2, dtype=torch.float64, device=device) + 1)
    # (Everything but k) of the logarithm of P.
    fixed = (
        log_factorial[a] + log_factorial[b] + log_factorial[total - a] + log_factorial[total - b]
        - log_factorial[total]
    )  # fmt: skip
    per_pair = torch.zeros(len(i), dtype=torch.float64, device=device)
    ends = terms.cumsum(0)
    cuts = torch.searchsorted(ends, torch.arange(TERMS, int(ends[-1]) + TERMS, TERMS, device=device)).tolist()
    first = 0
    for last in sorted({min(cut + 1, len(i)) for cut in cuts}):
        here = slice(first, last)
        row = torch.arange(first, last, device=device).repeat_interleave(terms[here])
        begin = ends[first] - terms[first]
        k = low[row] + torch.arange(len(row), device=device) - (ends[row] - terms[row] - begin)
        ways = (
            log_factorial[k] + log_factorial[a[row] - k] + log_factorial[b[row] - k]
            + log_factorial[total[row] - a[row] - b[row] + k]
        )  # fmt: skip
        share, ab = k / total[row].double(), a[row].double() * b[row]
        term = share * (total[row] * k / ab).log() * (fixed[row] - ways).exp()
        per_pair.index_add_(0, row, term)
        first = last
    return result.index_add(0, true.event[i], per_pair * times)
