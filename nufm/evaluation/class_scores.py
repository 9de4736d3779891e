"""Scores of a classifier of whole events from its probabilities, and how they change from one case to another.

Every change is one of the same events, and its error that of the pairs (bootstrap over events).

Shape legend: n events, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nufm.checkpoint import Pretrained
from nufm.checkpoint.temperature import KEY, kept_temperature
from nufm.data.images import ImageEvent
from nufm.evaluation.event_scores import plain
from nufm.metrics import Calibration, ConfusionScores, OneVsRest

RESAMPLES = 200  # bootstrap


def classified_label(pretrained: Pretrained) -> str:
    """The label that a classifier of pixel maps predicts.

    Raises:
        ValueError: the model is for other events.
    """
    if pretrained.inputs != "images":
        raise ValueError(
            f"{pretrained.source}: a {type(pretrained.model).__name__} takes {pretrained.inputs}, these studies are of "
            "pixel maps; give the run of a classifier of them (configs/tiny/pixelmap_cnn.yaml)"
        )
    return next(iter(pretrained.model.n_classes))


def true_classes(events: Sequence[ImageEvent], label: str) -> np.ndarray:
    """int64 (n,) of a label, -1 unknown."""
    return np.array([int(events[i].truth.get(label, -1)) for i in range(len(events))], dtype=np.int64)


def class_probabilities(
    pretrained: Pretrained, events: Sequence[ImageEvent], batch_size: int, progress: bool = False
) -> np.ndarray:
    """float64 (n, K) of the label that the model classifies, as it predicts them (with the temperature of its export).
    """
    label = classified_label(pretrained)
    said = pretrained.predict_each(events, batch_size, progress)
    return np.stack([p.probability[label] for p in said]).astype(np.float64)


def kept_temperature_of(pretrained: Pretrained) -> dict[str, float]:
    """Label -> T that the predictions of a model are calibrated with; empty if they are not."""
    return kept_temperature(pretrained.extra, pretrained.model.n_classes)


def without_temperature(pretrained: Pretrained) -> Pretrained:
    """The model as it was trained, T = 1, to compare it with others that no temperature was fitted for."""
    return dataclasses.replace(pretrained, extra={k: v for k, v in pretrained.extra.items() if k != KEY})


def scores_of(probability: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """Scores of events with known classes.

    Args:
        probability: float (n, K).
        target: int (n,) in 0 … K-1.

    Returns:
        ``accuracy``, ``accuracy_error`` (binomial), ``macro_precision``, ``macro_recall``, ``auc`` (K,) of each class
        against the rest, ``macro_auc``, ``expected_error`` (of calibration), ``nll``, ``predicted`` (K,) events given
        to each class.
    """
    # A softmax may end at 1 + 1e-7, which is no probability.
    score, truth = torch.from_numpy(probability).float().clamp(0, 1), torch.from_numpy(target)
    confusion, auc, calibration = ConfusionScores(score.shape[1]), OneVsRest(score.shape[1]), Calibration()
    sure, chosen = score.max(1)
    confusion.update(chosen, truth)
    auc.update(score, truth)
    calibration.update(sure, chosen == truth, score, truth)
    c, a, k = confusion.compute(), auc.compute(), calibration.compute()
    p = float(c["accuracy"])
    return plain(
        {
            "accuracy": p,
            "accuracy_error": float(np.sqrt(p * (1 - p) / len(target))),
            **{name: c[name] for name in ("macro_precision", "macro_recall")},
            "auc": a["auc"],
            "macro_auc": a["macro"],
            **{name: k[name] for name in ("expected_error", "nll")},
            "predicted": c["confusion"].sum(0),
        }
    )


def change(before: np.ndarray, after: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """How accuracy and macro AUC of the same events changed, with standard errors of the pairs (bootstrap).

    Args:
        before: float (n, K) probabilities.
        after: float (n, K).
        target: int (n,) in 0 … K-1.
    """
    n = len(target)
    once = np.ones((1, n))
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    moved = (after.argmax(1) == target).astype(float) - (before.argmax(1) == target)
    auc = macro_aucs(after, target, times) - macro_aucs(before, target, times)
    return plain(
        {
            "accuracy_change": float(moved.mean()),
            "accuracy_change_error": float((times @ moved / n).std()),
            "macro_auc_change": float((macro_aucs(after, target, once) - macro_aucs(before, target, once))[0]),
            "macro_auc_change_error": float(np.nanstd(auc)) if np.isfinite(auc).any() else float("nan"),
        }
    )


def macro_aucs(probability: np.ndarray, target: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Macro AUC of R resamples, float64 (R,): each class against the rest, NaN where no class has an AUC.

    The AUC is the share of pairs of an event of the class and another in which the first has the larger score, ties
    counting one half (see :class:`nufm.metrics.OneVsRest`); an event that is drawn twice stands twice.

    Args:
        probability: float (n, K).
        target: int (n,).
        times: (R, n) how often each event is in a resample.
    """
    found = []
    for c in range(probability.shape[1]):
        order = np.argsort(probability[:, c], kind="stable")
        score, positive = probability[order, c], target[order] == c
        first = np.flatnonzero(np.append(True, np.diff(score) != 0))  # of each group of equal scores
        own, other = (np.add.reduceat(times[:, order] * side, first, axis=1) for side in (positive, ~positive))
        below = np.cumsum(other, axis=1) - other
        with np.errstate(invalid="ignore"):
            found.append((own * (below + other / 2)).sum(1) / (own.sum(1) * other.sum(1)))
    values = np.stack(found)
    some = np.isfinite(values)
    return np.where(some.any(0), np.where(some, values, 0).sum(0) / np.maximum(some.sum(0), 1), np.nan)
