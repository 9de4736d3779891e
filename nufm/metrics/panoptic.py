"""Panoptic quality: instances found, their class, and how well they overlap.

Shape legend: N points, B events, C classes, I true and J predicted instances of all events together, K pairs
of instances that share points.

Which points count, and for what:

- The class of an instance is the **mode** over its points, of the smallest class where two are as frequent;
  points of unknown class (-1) have no vote.
- The overlap of a pair are the points of both. The size of an instance is all its points: a predicted instance
  that also covers points of no true instance (background, low-energy deposits) is the larger for it, and its
  IoU the smaller.
- A point of which the truth knows neither instance nor class (both -1) is *void*: it belongs to no size, since
  no prediction for it can be called wrong (``void="excluded"``). The published evaluator does not know void
  points and counts them in the size of predicted instances (``void="counted"``).
- With ``stuff``, instances of that class are not objects: on either side their points are points of no
  instance. The published detectors never predict such instances either.

Matching is one-to-one and greedy: of all pairs with IoU >= threshold the one with the largest IoU is taken, then
the largest of what is left, and so on, as published for Panda (arXiv 2512.01324). Above 1/2 the order is
without effect, since no instance can then have two such partners; at 1/2 and below, equal IoUs go to the
smaller true id, then to the smaller predicted id.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from nufm.metrics.contingency import (
    UNIT,
    check_points,
    contingency,
    event_index,
    from_units,
    number_instances,
    sizes,
)


class PanopticScores(Metric):
    """Detection, classification and panoptic quality of instances, pooled over events.

    With TP matched pairs, FP unmatched predicted and FN unmatched true instances: precision = TP / (TP + FP),
    recall = TP / (TP + FN), F1 = RQ = TP / (TP + FP/2 + FN/2), SQ = mean IoU of the matched pairs and
    PQ = RQ · SQ (Kirillov et al., CVPR 2019, arXiv 1801.00868, eq. 1 and 2). A ratio 0 / 0 is NaN.

    Two matchings are scored side by side:

    - ``agnostic_*``: any true with any predicted instance (detection). Classes are then compared pair by pair.
    - ``aware_*``, ``class_*`` and ``mean_pq``: only instances of the same class may match, so a wrong class
      costs an FP and an FN. A predicted instance without class is always an FP. A true instance of unknown
      class, with whatever the class-agnostic matching gave it, does not enter.

    Args:
        num_classes: C; classes are 0..C-1.
        iou_threshold: pairs need at least this intersection over union, in (0, 1].
        stuff: class whose points form no instances, if there is one.
        void: whether void points (see the module) count in the size of predicted instances.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> scores = PanopticScores(num_classes=6, stuff=5)
        >>> scores.update(found.instance, found.label, labels["particle"], labels["pid"], batch.offsets)
        >>> scores.compute()["aware_pq"]
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    agnostic: Tensor
    agnostic_iou: Tensor
    right_iou: Tensor
    aware: Tensor
    aware_iou: Tensor
    confusion: Tensor
    support: Tensor
    stuff_points: Tensor

    def __init__(
        self,
        num_classes: int,
        iou_threshold: float = 0.5,
        stuff: int | None = None,
        void: Literal["excluded", "counted"] = "excluded",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold is {iou_threshold}, expected above 0 and at most 1")
        if stuff is not None and not 0 <= stuff < num_classes:
            raise ValueError(f"stuff is {stuff}, expected one of the classes 0..{num_classes - 1} or None")
        if void not in ("excluded", "counted"):
            raise ValueError(f"void is '{void}', expected 'excluded' or 'counted'")
        self.num_classes, self.iou_threshold, self.stuff, self.void = num_classes, iou_threshold, stuff, void

        def state(name: str, *shape: int) -> None:
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

        # Counts, and sums of IoUs in units of 2^-36 (contingency.UNIT). The extra class is "no class".
        state("agnostic", 3)  # TP, FP, FN
        state("agnostic_iou")
        state("right_iou")  # of the class-agnostic pairs with equal classes
        state("aware", 3, num_classes + 1)
        state("aware_iou", num_classes + 1)
        state("confusion", num_classes, num_classes + 1)  # class-agnostic pairs, rows are the truth
        state("support", num_classes + 1)  # true instances
        state("stuff_points", 2)  # intersection, union

    def update(
        self,
        pred_instance: Tensor,
        pred_label: Tensor,
        true_instance: Tensor,
        true_label: Tensor,
        offsets: Tensor,
    ) -> None:
        """Add events.

        Args:
            pred_instance, true_instance: integer (N,) instance ids within their event, -1 = none.
            pred_label, true_label: integer (N,) classes, -1 = none or unknown.
            offsets: int64 (B+1,); event b holds the points offsets[b]:offsets[b+1].

        Raises:
            ValueError: a dtype, a shape or a value does not fit.
        """
        fields = {
            "pred_instance": pred_instance, "pred_label": pred_label,
            "true_instance": true_instance, "true_label": true_label,
        }  # fmt: skip
        fields = check_points("PanopticScores", fields, offsets)
        for name in ("pred_label", "true_label"):
            if bool((fields[name] >= self.num_classes).any()):
                raise ValueError(
                    f"PanopticScores: {name} holds class {int(fields[name].max())}, "
                    f"expected 0..{self.num_classes - 1}, or -1 for none"
                )
        event = event_index(offsets)
        known = (fields["true_instance"] >= 0) | (fields["true_label"] >= 0)
        if self.stuff is not None:
            pair = [(fields[name] == self.stuff) & known for name in ("pred_label", "true_label")]
            self.stuff_points += torch.stack([(pair[0] & pair[1]).sum(), (pair[0] | pair[1]).sum()])
        kept = known if self.void == "excluded" else torch.ones_like(known)
        (pred, pred_event, pred_class), (true, true_event, true_class) = (
            number_objects(
                fields[f"{side}_instance"], fields[f"{side}_label"], event, kept, self.num_classes, self.stuff
            )
            for side in ("pred", "true")
        )
        n_pred, n_true = len(pred_event), len(true_event)
        table = contingency(true, pred, n_pred, event)
        union = sizes(true, n_true)[table.true] + sizes(pred, n_pred)[table.pred] - table.count
        iou = _rounded_ratio(table.count, union)
        enough = iou >= round(self.iou_threshold * UNIT)

        # Class-agnostic: detection, and the classes of what was found.
        chosen = greedy_matching(table.true, table.pred, iou, enough, n_true, n_pred)
        i, j = table.true[chosen], table.pred[chosen]
        hit = chosen.sum()
        self.agnostic += torch.stack([hit, n_pred - hit, n_true - hit])
        self.agnostic_iou += iou[chosen].sum()
        self.right_iou += iou[chosen][true_class[i] == pred_class[j]].sum()
        classes, columns = self.num_classes, self.num_classes + 1
        # Class -1 becomes the last column; pairs whose true class is unknown are left out.
        told = true_class[i] >= 0
        cell = true_class[i][told] * columns + pred_class[j][told] % columns
        self.confusion += torch.bincount(cell, minlength=classes * columns).reshape(classes, columns)
        self.support += torch.bincount(true_class % columns, minlength=columns)

        # Class-aware.
        scored_true, scored_pred = true_class >= 0, torch.ones_like(pred_class, dtype=torch.bool)
        scored_pred[j[~told]] = False
        enough &= (true_class[table.true] == pred_class[table.pred]) & scored_true[table.true]
        enough &= scored_pred[table.pred]
        chosen = greedy_matching(table.true, table.pred, iou, enough, n_true, n_pred)
        found = true_class[table.true[chosen]]
        hit = torch.bincount(found, minlength=columns)
        n_true_c = torch.bincount(true_class[scored_true], minlength=columns)
        n_pred_c = torch.bincount(pred_class[scored_pred] % columns, minlength=columns)
        self.aware += torch.stack([hit, n_pred_c - hit, n_true_c - hit])
        self.aware_iou.index_add_(0, found, iou[chosen])

    def compute(self) -> dict[str, Tensor]:
        """Scores of all events so far.

        Returns:
            float64 scalars ``agnostic_`` and ``aware_`` + ``pq``, ``rq``, ``sq``, ``precision``, ``recall``,
            ``f1``, ``mean_iou`` (of matched pairs; the same as SQ);
            ``published_pq``: pairs are matched without regard to class, those of unequal class count neither as
            TP nor as FP nor FN (the published evaluator, as far as its description tells);
            float64 (C,) of the class-aware matching ``class_pq``, ``class_rq``, ``class_sq`` and ``mean_pq``,
            the mean of ``class_pq`` over the classes with support, stuff left out;
            float64 (C,) of the matched class-agnostic pairs ``class_precision``, ``class_recall``,
            ``class_f1`` and ``macro_precision``, ``macro_recall``, ``macro_f1`` (means over classes that occur
            in those pairs), ``class_accuracy`` (share of those pairs with the right class);
            ``confusion`` int64 (C, C+1) of those pairs, rows are the truth, the last column predictions
            without a class; ``support`` int64 (C,) true instances;
            int64 scalars ``true_instances``, ``pred_instances``, ``unclassified`` (true instances of unknown
            class); and, if there is a stuff class, ``stuff_iou`` over points.
        """
        result = {}
        tp, fp, fn = self.agnostic
        result.update(_quality("agnostic_", tp, fp, fn, self.agnostic_iou))
        result.update(_quality("aware_", *self.aware.sum(1), self.aware_iou.sum()))
        right = self.confusion[:, : self.num_classes].diagonal()
        result["published_pq"] = _quality("", right.sum(), fp, fn, self.right_iou)["pq"]
        by_class = _quality("class_", *self.aware, self.aware_iou)
        result.update({name: by_class[name][:-1] for name in ("class_pq", "class_rq", "class_sq")})
        support = self.support[:-1].clone()
        result["mean_pq"] = result["class_pq"][support > 0].mean()
        pairs = from_units(self.confusion, 1)
        hit, true, predicted = from_units(right, 1), pairs.sum(1), pairs.sum(0)[:-1]
        scores = {"precision": hit / predicted, "recall": hit / true, "f1": 2 * hit / (true + predicted)}
        result.update({f"class_{name}": value for name, value in scores.items()})
        result.update({f"macro_{name}": value[true > 0].nanmean() for name, value in scores.items()})
        result["class_accuracy"] = hit.sum() / pairs.sum()
        result.update(
            confusion=self.confusion.clone(),
            support=support,
            true_instances=tp + fn,
            pred_instances=tp + fp,
            unclassified=self.support[-1].clone(),
        )
        if self.stuff is not None:
            result["stuff_iou"] = from_units(self.stuff_points[0], 1) / self.stuff_points[1]
        return result


def _quality(prefix: str, tp: Tensor, fp: Tensor, fn: Tensor, iou: Tensor) -> dict[str, Tensor]:
    tp, fp, fn = (from_units(x, 1) for x in (tp, fp, fn))
    # 0 / 0 is NaN in IEEE arithmetic, which is the meaning wanted; without any TP, PQ is 0, not NaN.
    rq, sq = tp / (tp + fp / 2 + fn / 2), from_units(iou) / tp
    scores = {
        "pq": from_units(iou) / (tp + fp / 2 + fn / 2),
        "rq": rq,
        "sq": sq,
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "f1": rq,
        "mean_iou": sq,
    }
    return {prefix + name: value for name, value in scores.items()}


def _rounded_ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole in units of 2^-36, rounded to the nearest; up to 67 million points."""
    return (2 * part * UNIT + whole) // (2 * whole)


def number_objects(
    instance: Tensor, label: Tensor, event: Tensor, kept: Tensor, num_classes: int, stuff: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Number the instances of all events from 0, those of the stuff class left out.

    Args:
        instance: int64 (N,) ids within their event, -1 none.
        label: int64 (N,) class of each point, -1 unknown.
        event: int64 (N,) event of each point.
        kept: bool (N,) points to look at.
        num_classes: C.
        stuff: class whose instances are no objects, if there is one.

    Returns:
        int64 (N,) number of each point's object, -1 none; int64 (I,) event and int64 (I,) class of each object.
    """
    number, of = number_instances(instance, event, kept & (instance >= 0))
    kind = instance_classes(number, label, len(of), num_classes)
    if stuff is None:
        return number, of, kind
    thing = kind != stuff
    renumber = torch.cat([thing.cumsum(0) - 1, kind.new_full((1,), -1)])
    renumber[:-1][~thing] = -1
    return renumber[number], of[thing], kind[thing]  # number -1 takes the last entry


def instance_classes(number: Tensor, label: Tensor, n: int, num_classes: int) -> Tensor:
    """Class (n,) of each instance: the mode over its points, the smallest of several; -1 if no point has one.

    Args:
        number: int64 (N,) instance of each point, 0..n-1, -1 none.
        label: int64 (N,) class of each point, 0..num_classes-1, -1 unknown.
        n: number of instances.
        num_classes: C.
    """
    vote = (number >= 0) & (label >= 0)
    cell = number[vote] * num_classes + label[vote]
    votes = torch.bincount(cell, minlength=n * num_classes).reshape(n, num_classes)
    # argmax returns the first of several maxima; max does not say which.
    return torch.where(votes.amax(1) > 0, votes.argmax(1), -1)


def greedy_matching(
    true: Tensor, pred: Tensor, iou: Tensor, allowed: Tensor, n_true: int, n_pred: int
) -> Tensor:
    """One-to-one matching by descending IoU, all events at once.

    A pair that is the best of both its partners is what the greedy procedure takes, whatever the other pairs:
    so all such pairs are taken in one pass, and passes repeat among the partners left until none can. One or
    two suffice above an IoU of 1/2.

    Args:
        true, pred: int64 (K,) partners of each pair, sorted by ``true``, then ``pred``.
        iou: (K,) the larger, the better.
        allowed: bool (K,) pairs that may be matched.
        n_true, n_pred: numbers of instances.

    Returns:
        bool (K,) pairs taken.
    """
    n_pairs = len(true)
    # Position in the order of taking; a stable sort leaves equal IoUs to the smaller ids.
    order = torch.sort(iou, descending=True, stable=True).indices
    position = torch.empty_like(order)
    position[order] = torch.arange(n_pairs, device=order.device)
    taken, left = torch.zeros_like(allowed), allowed.clone()
    while bool(left.any()):
        first_true = position.new_full((n_true,), n_pairs)
        first_pred = position.new_full((n_pred,), n_pairs)
        first_true.scatter_reduce_(0, true[left], position[left], "amin")
        first_pred.scatter_reduce_(0, pred[left], position[left], "amin")
        best = left & (first_true[true] == position) & (first_pred[pred] == position)
        taken |= best
        busy_true = torch.zeros(n_true, dtype=torch.bool, device=true.device)
        busy_pred = torch.zeros(n_pred, dtype=torch.bool, device=pred.device)
        busy_true[true[best]], busy_pred[pred[best]] = True, True
        left &= ~(busy_true[true] | busy_pred[pred])
    return taken
