"""What a model's predictions are worth, over all events and event by event.

Every voxel of an event as it was read counts, those that the transforms dropped included (they have the prediction of
the nearest voxel kept). The scores are those of ``nufm.metrics``: sums over all events first, division last, so that
the cut into batches changes none of them.

Points of a panoptic model that it leaves without a class ("no instance, not stuff") are wrong in the scores of points,
and have a column of their own in the confusion matrix. Instances of the stuff class (such as kaons, which share the
class "none") are stuff and no objects, in truth as in the predictions.

Shape legend: N voxels of all events of a batch, B events, C classes.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from nufm.checkpoint import Pretrained
from nufm.data.event import POINT_LABELS, Event, offsets_from_counts
from nufm.data.prediction import EventPrediction
from nufm.data.tasks import Task, task_named
from nufm.evaluation.event_scores import plain
from nufm.metrics import Calibration, ClusterScores, ConfusionScores, PanopticScores, cluster_scores
from nufm.metrics.contingency import event_index, number_instances
from nufm.metrics.panoptic import instance_classes, number_objects

LABELS = (*POINT_LABELS, "momentum")
FIELDS = ("label", "confidence", "probability", "instance", "momentum")


@dataclass(frozen=True)
class Example:
    """An event with what was said of it, to be looked at.

    Attributes:
        event: as it was read, with its truth.
        prediction: rows as in ``event``.
        scores: the event's row of ``Evaluation.per_event``.
    """

    event: Event
    prediction: EventPrediction
    scores: dict[str, Any]


class Evaluation:
    """Collects the scores of one model, batch by batch.

    Args:
        task: what the model predicts.
        examples: how many of the best and of the worst events to keep, by ``score``, for display.

    Attributes:
        per_event: one dict for each event: ``name``, ``voxels``, ``score`` and what it is made of. ``score`` is the
            macro-F1 over the classes of the event's truth (semantic), or its symmetric best Dice (panoptic): from 0
            to 1; None where the truth has nothing to compare with.
    """

    def __init__(self, task: Task, examples: int = 0) -> None:
        self.task, self.examples = task, examples
        self.per_event: list[dict[str, Any]] = []
        self._best: list[tuple[float, int, Example]] = []
        self._worst: list[tuple[float, int, Example]] = []
        # One class more than the task has: points without a predicted class.
        self.points = ConfusionScores(len(task.classes) + 1)
        self.calibration = Calibration()
        self.panoptic = self.clusters = None
        if task.kind == "panoptic":
            self.panoptic = PanopticScores(len(task.classes), stuff=task.stuff)
            self.clusters = ClusterScores()
        self._momenta: list[Tensor] = []

    @property
    def best(self) -> list[Example]:
        """The best events, the best first."""
        return [example for _, _, example in self._best]

    @property
    def worst(self) -> list[Example]:
        """The worst events, the worst first."""
        return [example for _, _, example in self._worst]

    def add(self, events: Sequence[Event], predictions: Sequence[EventPrediction]) -> None:
        """Add events and what was predicted for them, row by row.

        Raises:
            ValueError: rows, classes or labels do not fit.
        """
        for event, prediction in zip(events, predictions, strict=True):
            if len(event) != len(prediction):
                raise ValueError(f"{event.name}: {len(prediction)} predictions for {len(event)} voxels")
            if self.task.kind == "panoptic" and prediction.instance is None:
                raise ValueError(f"{event.name}: the task '{self.task.name}' needs predicted instances, found none")
        offsets = offsets_from_counts(torch.tensor([len(e) for e in events], dtype=torch.int64))
        names = tuple(e.name for e in events)
        truth, instances = self.task.targets(_truth(events), names)
        found = {name: _joined([getattr(p, name) for p in predictions]) for name in FIELDS}
        n = len(self.task.classes)
        label = torch.where(found["label"] < 0, n, found["label"])
        self.points.update(label, truth)
        known = (truth >= 0) & (found["label"] >= 0)
        # A softmax may end at 1 + 1e-7, which is no probability.
        confidence, probability = (
            None if found[name] is None else found[name][known].clamp(0, 1) for name in ("confidence", "probability")
        )
        with_truth = {} if probability is None else {"probability": probability, "target": truth[known]}
        self.calibration.update(confidence, (found["label"] == truth)[known], **with_truth)
        if self.panoptic is None:
            rows = self._semantic_rows(label, truth, offsets)
        else:
            self.panoptic.update(found["instance"], found["label"], instances, truth, offsets)
            event, counted = event_index(offsets), torch.ones_like(truth, dtype=torch.bool)
            objects = number_objects(instances, truth, event, counted, n, self.task.stuff)[0]
            self.clusters.update(found["instance"], objects, offsets)
            rows = self._panoptic_rows(found["instance"], objects, offsets)
            if found["momentum"] is not None and all(e.momentum is not None for e in events):
                self._add_momenta(found["momentum"], _truth(events)["momentum"], objects, truth, offsets)
        for i, (event, prediction) in enumerate(zip(events, predictions, strict=True)):
            row = {"name": event.name, "voxels": len(event)}
            row |= {name: plain(values[i]) for name, values in rows.items()}
            self.per_event.append(row)
            self._keep(Example(event, prediction, row))

    def _semantic_rows(self, label: Tensor, truth: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Accuracy and macro-F1 (B,) of each event, over the classes of its truth."""
        n, known = len(self.task.classes), truth >= 0
        cell = (event_index(offsets) * (n + 1) + truth) * (n + 1) + label
        counts = torch.bincount(cell[known], minlength=(len(offsets) - 1) * (n + 1) ** 2)
        counts = counts.reshape(-1, n + 1, n + 1).double()
        hit, true, predicted = counts.diagonal(dim1=1, dim2=2), counts.sum(2), counts.sum(1)
        f1 = torch.where(true > 0, 2 * hit / (true + predicted), torch.nan)
        return {"score": f1.nanmean(1), "accuracy": hit.sum(1) / true.sum(1)}

    def _panoptic_rows(self, instance: Tensor, objects: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Cluster scores (B,) of each event, and its numbers of instances."""
        scores = cluster_scores(instance, objects, offsets)
        event = event_index(offsets)
        counts = {}
        for name, ids in (("true_instances", objects), ("pred_instances", instance)):
            of = number_instances(ids, event, ids >= 0)[1]
            counts[name] = torch.bincount(of, minlength=len(offsets) - 1)
        shown = ("ari", "purity", "efficiency", "unassigned")
        return {"score": scores["sbd"]} | {name: scores[name] for name in shown} | counts

    def _add_momenta(self, found: Tensor, true: Tensor, objects: Tensor, truth: Tensor, offsets: Tensor) -> None:
        """Class, true momentum and mean predicted one of every true particle that has both."""
        told = (objects >= 0) & found.isfinite() & (true > 0)
        number, of = number_instances(objects, event_index(offsets), told)
        if len(of) == 0:
            return
        n = len(of)
        kind = instance_classes(number, truth, n, len(self.task.classes))
        count = torch.bincount(number[told], minlength=n)
        mean = [torch.zeros(n, dtype=torch.float64).index_add(0, number[told], v[told].double()) / count
                for v in (true, found)]  # fmt: skip
        self._momenta.append(torch.stack([kind.double(), *mean]))

    def _keep(self, example: Example) -> None:
        score = example.scores["score"]
        if not self.examples or score is None:
            return
        # Of equals, the first events are the best and the last ones the worst: no event is both without need.
        number = len(self.per_event)
        for kept, sign in ((self._best, -1), (self._worst, 1)):
            bisect.insort(kept, (sign * score, -sign * number, example))
            del kept[self.examples :]

    def result(self) -> dict[str, Any]:
        """Scores of all events so far, as JSON holds them: numbers, strings, lists; None in place of NaN.

        ``points`` holds the scores of voxels: ``macro_f1`` over the classes that occur in truth or prediction,
        ``macro_f1_present`` over those of the truth alone, and lists with one entry for each class. ``calibration``
        is as :class:`nufm.metrics.Calibration` says, over the voxels with a predicted class. Panoptic tasks have
        ``panoptic`` and ``clusters``, as :class:`nufm.metrics.PanopticScores` and
        :class:`nufm.metrics.ClusterScores` say, and ``momentum`` where the model predicts it.
        """
        n = len(self.task.classes)
        scores = self.points.compute()
        points: dict[str, Any] = {name: scores[name][:n] for name in ("precision", "recall", "f1", "iou", "support")}
        for name in ("precision", "recall", "f1", "iou"):
            points[f"macro_{name}"] = points[name].nanmean()
        present = points["support"] > 0
        points["macro_f1_present"] = points["f1"][present].mean()
        points["accuracy"] = scores["accuracy"]
        points["unclassified"] = scores["confusion"][:, n].sum()
        points["confusion"] = scores["confusion"][:n]
        found: dict[str, Any] = {
            "task": self.task.name,
            "kind": self.task.kind,
            "stuff": self.task.stuff,
            "classes": list(self.task.classes),
            "events": len(self.per_event),
            "voxels": sum(e["voxels"] for e in self.per_event),
            "points": points,
            "calibration": self.calibration.compute(),
        }
        if self.panoptic is not None:
            found["panoptic"], found["clusters"] = self.panoptic.compute(), self.clusters.compute()
        if self._momenta:
            found["momentum"] = _momentum_scores(torch.cat(self._momenta, 1), self.task.classes)
        ranked = [e["score"] for e in self.per_event if e["score"] is not None]
        found["event_score"] = {
            "what": "macro-F1 over the classes of the event" if self.panoptic is None else "symmetric best Dice",
            "mean": float(np.mean(ranked)) if ranked else None,
            "quartiles": np.quantile(ranked, (0.25, 0.5, 0.75)).tolist() if ranked else None,
        }
        return plain(found)


def evaluate(
    pretrained: Pretrained,
    events: Sequence[Event],
    *,
    batch_size: int = 8,
    progress: bool = True,
    collected: Evaluation | None = None,
) -> dict[str, Any]:
    """Score a model on labelled events.

    Args:
        pretrained: a model with a task.
        events: a reader, or a list of events as they were read, with labels.
        batch_size: events at a time; no score depends on it.
        progress: show a bar on the terminal.
        collected: gathers the scores of each event and examples; None if only the result matters.

    Returns:
        :meth:`Evaluation.result`.

    Raises:
        ValueError: no events, an export without a task, classes that are not the task's, or events without the
            task's labels. All of these before anything is predicted, the labels of the first event; those of the
            others batch by batch.
    """
    task = check(pretrained, events)
    collected = Evaluation(task) if collected is None else collected
    for batch in batches(events, batch_size, progress):
        collected.add(batch, pretrained.predict(batch, batch_size, progress=False))
    return collected.result()


def task_of(pretrained: Pretrained) -> Task:
    """What the model predicts.

    Raises:
        ValueError: it has no task, or other classes than the task.
    """
    names = pretrained.class_names  # refuses an encoder without a task
    task = task_named(pretrained.task)
    if names != task.classes:
        raise ValueError(
            f"{pretrained.source}: predicts the classes {', '.join(names)}; the task '{task.name}' is scored on "
            f"{', '.join(task.classes)}, in this order: the classes would be taken for one another"
        )
    return task


def check(pretrained: Pretrained, events: Sequence[Event]) -> Task:
    """The model's task, if it can be scored on these events.

    Raises:
        ValueError: it cannot; see :func:`evaluate`.
    """
    task = task_of(pretrained)
    if len(events) == 0:
        raise ValueError("no events to evaluate on")
    # One event tells what the files carry; every batch is checked again.
    task.targets(_truth([events[0]]), (events[0].name,))
    return task


def batches(events: Sequence[Event], size: int, shown: bool) -> Iterator[list[Event]]:
    """The events, ``size`` at a time, with a bar on the terminal if it is ``shown``."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("evaluating"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        bar = progress.add_task("", total=len(events))
        for start in range(0, len(events), size):
            batch = [events[i] for i in range(start, min(start + size, len(events)))]
            yield batch
            progress.advance(bar, len(batch))


def _truth(events: Sequence[Event]) -> dict[str, Tensor]:
    """Labels that all events carry, joined."""
    found = {}
    for name in LABELS:
        values = [getattr(e, name) for e in events]
        if all(v is not None for v in values):
            found[name] = torch.from_numpy(np.concatenate(values))
    return found


def _joined(values: list[np.ndarray | None]) -> Tensor | None:
    return None if any(v is None for v in values) else torch.from_numpy(np.concatenate(values))


def _momentum_scores(momenta: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Bias (median of p̂/p − 1) and resolution (half the distance of its 16 % and 84 % quantiles), by class."""
    ratio = momenta[2] / momenta[1] - 1
    levels = torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)
    scores: dict[str, Any] = {}
    for name, rows in [("all", ratio), *((c, ratio[momenta[0] == k]) for k, c in enumerate(classes))]:
        if len(rows):
            low, middle, high = torch.quantile(rows, levels)
            scores[name] = {"particles": len(rows), "bias": middle, "resolution": (high - low) / 2}
    return scores
