"""What predictions of whole events are worth: classes, momenta, vertex.

Classes are scored by one-vs-rest AUC and by the confusion matrix of the most probable class: its rows divided by their
sums are efficiencies, its columns purities. Momenta are scored by their size |p| (median and IQR of the residual, σ_MAD
of the fractional one, of missing p_T above the Fermi momentum), the vertex by its distance from the truth, both also
for the events of each true flavour alone. Events of several sub-detectors and pixel maps go the same way.

Shape legend: B events, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nufm.checkpoint import Pretrained
from nufm.data.images import ImageEvent
from nufm.data.prediction import LEAST_TRANSVERSE, QUANTITIES, StreamEventPrediction
from nufm.data.streams import StreamEvent
from nufm.data.tasks import EventTask, task_named
from nufm.metrics import Calibration, CertaintyAUC, ConfusionScores, Distances, OneVsRest, Residuals

PLACES = ("vertex",)  # quantities that are points in space; the others are momenta, scored by their size
LEAST = 0.1  # GeV/c: a residual is no fraction of a momentum that is hardly there; of missing p_T, LEAST_TRANSVERSE
WholeEvent = StreamEvent | ImageEvent
MOMENTA = tuple(name for name in QUANTITIES if name not in PLACES)


class EventEvaluation:
    """Collects the scores of one model of whole events, batch by batch.

    Args:
        task: what the model predicts.
        classes: label -> names of the classes that it predicts.

    Attributes:
        per_event: one dict for each event: its name, the true and the most probable class of every label with the
            probability of the true one, true and predicted size of every momentum, distance of the vertex.
    """

    def __init__(self, task: EventTask, classes: Mapping[str, Sequence[str]]) -> None:
        self.task = task
        self.classes = {label: tuple(names) for label, names in classes.items()}
        self.per_event: list[dict[str, Any]] = []
        self.scores = {
            label: {
                "auc": OneVsRest(len(names)),
                "confusion": ConfusionScores(len(names)),
                "calibration": Calibration(),
                "certainty": CertaintyAUC(),
            }
            for label, names in self.classes.items()
        }
        # Quantity -> predicted and true value, and flavour, of every event that has a truth.
        self._pairs: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def add(self, events: Sequence[WholeEvent], predictions: Sequence[StreamEventPrediction]) -> None:
        """Add events and what was predicted for them.

        Raises:
            ValueError: an event without the truth of a label, or with a class that is not on the list.
        """
        for label, scores in self.scores.items():
            truth = torch.stack([self._truth(e, label) for e in events])
            found = torch.from_numpy(np.stack([p.probability[label] for p in predictions])).float()
            scores["auc"].update(found, truth)
            scores["confusion"].update(found.argmax(1), truth)
            scores["certainty"].update(found, truth)
            known = truth >= 0
            sure, label_found = found[known].max(1)
            # A softmax may end at 1 + 1e-7, which is no probability.
            scores["calibration"].update(
                sure.clamp(0, 1), label_found == truth[known], found[known].clamp(0, 1), truth[known]
            )
        for event, prediction in zip(events, predictions, strict=True):
            size = {"pixels": event.n_pixels} if isinstance(event, ImageEvent) else {"hits": event.n_hits}
            row: dict[str, Any] = {"name": event.name, **size}
            for label, names in self.classes.items():
                true, p = int(event.truth[label]), prediction.probability[label]
                row[label] = names[true] if true >= 0 else None
                row[f"{label}_found"], row[f"{label}_found_p"] = prediction.label(label), float(p.max())
                row[f"{label}_p"] = float(p[true]) if true >= 0 else None
            for name, found in prediction.value.items():
                true = true_value(event, name)
                if true is None:
                    continue
                flavour = torch.as_tensor(int(event.truth.get("flavour", -1)))
                self._pairs.setdefault(name, []).append((torch.as_tensor(found).double(), true, flavour))
                if name in PLACES:
                    row["vertex_mm"] = float((torch.as_tensor(found).double() - true).norm())
                else:
                    row[f"{name}_true"], row[name] = float(true.norm()), float(torch.as_tensor(found).norm())
            self.per_event.append(row)

    def _truth(self, event: WholeEvent, label: str) -> Tensor:
        return self.task.targets(
            {k: torch.as_tensor(np.asarray(v))[None] for k, v in event.truth.items()}, (event.name,), (label,)
        )[label][0]

    def result(self) -> dict[str, Any]:
        """Scores of all events so far, as JSON holds them: numbers, strings, lists; None in place of NaN.

        ``labels``: label -> ``classes``, ``auc`` and ``macro_auc``, ``confusion`` (rows are the truth), ``efficiency``
        and ``purity`` (K, K), of a row and of a column, ``precision``, ``recall`` and their means, ``accuracy``,
        ``calibration``, ``certainty_auc``. ``quantities``: momentum -> ``all`` and true flavours -> what
        :class:`nufm.metrics.Residuals` gives. ``vertex``: ``all`` and true flavours -> what
        :class:`nufm.metrics.Distances` gives, and residuals of each axis.
        """
        labels = {}
        for label, scores in self.scores.items():
            auc, confusion = scores["auc"].compute(), scores["confusion"].compute()
            labels[label] = {
                "classes": list(self.classes[label]),
                "auc": auc["auc"],
                "macro_auc": auc["macro"],
                "confusion": confusion["confusion"],
                **shares(confusion["confusion"]),
                "support": confusion["support"],
                "precision": confusion["precision"],
                "recall": confusion["recall"],
                "macro_precision": confusion["macro_precision"],
                "macro_recall": confusion["macro_recall"],
                "macro_f1": confusion["macro_f1"],
                "accuracy": confusion["accuracy"],
                "calibration": scores["calibration"].compute(),
                "certainty_auc": scores["certainty"].compute(),
            }
        found: dict[str, Any] = {
            "task": self.task.name,
            "kind": self.task.kind,
            "events": len(self.per_event),
            "labels": labels,
            "quantities": {n: self._by_flavour(n, _residuals) for n in MOMENTA if n in self._pairs},
        }
        if "vertex" in self._pairs:
            found["vertex"] = self._by_flavour("vertex", _distances)
        return plain(found)

    def _by_flavour(self, name: str, score: Callable[[str, Tensor, Tensor], dict]) -> dict[str, Any]:
        """The score of all events, and of those of each true flavour."""
        reco, true, flavour = self.values(name)
        rows = {"all": score(name, reco, true)}
        for number, words in enumerate(self.task.labels.get("flavour", ())):
            if bool((flavour == number).any()):
                rows[words] = score(name, reco[flavour == number], true[flavour == number])
        return rows

    def values(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted and true values float64 (B, ...) of a quantity, and int64 (B,) true flavours, -1 unknown."""
        return tuple(torch.stack(side) for side in zip(*self._pairs[name], strict=True))


def shares(confusion: Tensor) -> dict[str, Tensor]:
    """What a confusion matrix (K, K), rows the truth, says of efficiency and purity.

    Returns:
        ``efficiency`` float64 (K, K): of the true events of a row, the share that is taken for each class; rows add up
        to 1, the diagonal is the recall. ``purity``: of the events that are taken for a column, the share of each true
        class; columns add up to 1, the diagonal is the precision. NaN where there are no events.
    """
    counts = confusion.double()
    return {"efficiency": counts / counts.sum(1, keepdim=True), "purity": counts / counts.sum(0, keepdim=True)}


def _residuals(name: str, reco: Tensor, true: Tensor) -> dict[str, Tensor]:
    reco, true = (v.norm(dim=1) if v.dim() > 1 else v for v in (reco, true))
    metric = Residuals(LEAST_TRANSVERSE if name == "missing_pt" else LEAST)
    there = true > 0 if name == "lepton" else torch.ones_like(true, dtype=torch.bool)  # neutral currents have none
    metric.update(reco[there], true[there])
    return metric.compute()


def _distances(name: str, reco: Tensor, true: Tensor) -> dict[str, Any]:
    whole = Distances()
    whole.update(reco, true)
    axes = {}
    for axis, words in enumerate("xyz"):
        metric = Residuals()
        metric.update(reco[:, axis], true[:, axis])
        found = metric.compute()
        axes[words] = {"median": found["median"], "iqr": found["iqr"]}
    return {**whole.compute(), "axes": axes}


def true_value(event: WholeEvent, name: str) -> Tensor | None:
    """The truth of a predicted quantity, float64; None if the event does not say."""
    if name == "missing_pt":
        visible = event.truth.get("visible")
        return None if visible is None else torch.as_tensor(np.asarray(visible[:2], dtype=np.float64)).norm()
    value = event.truth.get(name)
    return None if value is None else torch.as_tensor(np.asarray(value, dtype=np.float64))


def check_model(pretrained: Pretrained) -> EventTask:
    """The model's task.

    Raises:
        ValueError: it has none, or other classes than the task.
    """
    if pretrained.task is None:
        raise ValueError(
            f"{pretrained.source}: holds an encoder ({type(pretrained.model).__name__}), which predicts nothing: "
            "fine-tune it first (python scripts/finetune.py)"
        )
    task = task_named(pretrained.task)
    for label in pretrained.model.n_classes:
        names = tuple(pretrained.classes[label])
        if names != task.labels[label]:
            raise ValueError(
                f"{pretrained.source}: predicts the classes {', '.join(names)} of '{label}'; the task '{task.name}' is "
                f"scored on {', '.join(task.labels[label])}, in this order: the classes would be taken for one another"
            )
    return task


def check_events(pretrained: Pretrained, events: Sequence[WholeEvent]) -> EventTask:
    """The model's task, if it can be scored on these events.

    Raises:
        ValueError: it cannot: no task, other classes, no events, or a first event without the labels.
    """
    task = check_model(pretrained)
    if len(events) == 0:
        raise ValueError("no events to evaluate on")
    first = events[0]
    truth = {k: torch.as_tensor(np.asarray(v))[None] for k, v in first.truth.items()}
    task.targets(truth, (first.name,), pretrained.model.n_classes)
    return task


def plain(value: Any) -> Any:
    """Numbers, strings and lists, NaN as None."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
