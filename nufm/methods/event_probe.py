"""Probes of whole events: how much of the truth can be read off frozen features of an event.

Two linear models on standardised features: which flavour a neutrino had (logistic regression; area under the ROC curve
of each class against the rest), and where it interacted (ridge regression; distance in mm). Their penalty is chosen on
a quarter of the events they are fitted to. Convex losses leave nothing to a seed: a seed draws the four fifths of the
events that a probe is fitted to, and the weights of an untrained encoder.

The yardstick is what anyone can sum up without a network: charges, places and extents per sub-detector.

Shape legend: B events of a batch, n events, C features, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from nufm.data.detector import StreamDetector, load_stream_detector
from nufm.data.streams import FLAVOUR_NAMES, StreamBatch, StreamEvent

FIT_SHARE = 0.8
PENALTIES = {"flavour": (1e-3, 1e-2, 1e-1, 1.0), "vertex": (1e4, 1e3, 1e2, 1e1, 1.0)}


def event_summary(event: StreamEvent) -> np.ndarray:
    """float64 (S,): what can be said of an event, as it was read, without a network: of each stream of voxels the
    number of hits, sum and maximum of the charge, centre, extent and ends of the hits, and the charge of each module;
    the cells of a matrix; number, means and sums of the tracks. 0 for what is missing or empty."""
    detector: StreamDetector = load_stream_detector(event.detector)
    parts: list[np.ndarray] = []
    for name, stream in detector.voxels.items():
        hits, found = event.voxels.get(name), np.zeros(16 + stream.modules)
        if hits is not None and len(hits):
            charge = np.clip(hits.charge.astype(np.float64), 0, None)
            place = stream.position(hits.index, hits.module)
            weight = charge / charge.sum() if charge.sum() > 0 else np.full(len(charge), 1 / len(charge))
            centre = weight @ place
            found[:4] = np.log1p([len(hits), charge.sum(), charge.max(), charge.mean()])
            found[4:7], found[7:10] = centre, np.sqrt(weight @ (place - centre) ** 2)
            found[10:13], found[13:16] = place.min(0), place.max(0)
            found[16:] = np.log1p(np.bincount(hits.module, charge, stream.modules))
        parts.append(found)
    for name, shape in ((name, m.shape) for name, m in detector.matrices.items()):
        values = event.matrices.get(name, np.zeros(shape)).ravel()
        parts.append(np.log1p(np.clip([values.sum(), *values], 0, None)))
    for name, stream in detector.tracks.items():
        rows = event.tracks.get(name, np.zeros((0, len(stream.features))))
        some = rows if len(rows) else np.zeros((1, len(stream.features)))
        parts.append(np.concatenate([[len(rows)], some.mean(0), some.sum(0)]))
    return np.concatenate(parts)


def truth_of(events: Iterable[StreamEvent]) -> dict[str, np.ndarray]:
    """``flavour`` int64 (n,) and ``vertex`` float64 (n, 3) mm.

    Raises:
        ValueError: an event without them.
    """
    found: dict[str, list] = {"flavour": [], "vertex": []}
    for event in events:
        for name, values in found.items():
            if name not in event.truth:
                raise ValueError(
                    f"{event.name}: no truth '{name}' to probe, found {', '.join(event.truth) or 'none'}; probe with "
                    "simulated events, or pretrain without a report: --report.enabled false"
                )
            values.append(event.truth[name])
    return {"flavour": np.array(found["flavour"], np.int64), "vertex": np.array(found["vertex"], np.float64)}


@torch.no_grad()
def encoded(
    features: Callable[[StreamBatch], Tensor], batches: Iterable[StreamBatch], device: torch.device | str
) -> np.ndarray:
    """float64 (n, C) features of the events.

    Raises:
        ValueError: a feature is not finite.
    """
    rows = []
    for batch in batches:
        feat = features(batch.to(device)).float().cpu()
        if not bool(torch.isfinite(feat).all()):
            raise ValueError(f"{batch.names[:1]} …: features are NaN or infinite; has the training diverged?")
        rows.append(feat.double().numpy())
    return np.concatenate(rows)


def probe(
    fit: np.ndarray, fit_truth: dict[str, np.ndarray], score: np.ndarray, truth: dict[str, np.ndarray], seed: int
) -> dict[str, object]:
    """Scores of probes fitted to features (n, C) and scored on others.

    Returns:
        ``macro_auc``, ``auc`` (one for each of the flavours, None where the scored events or the fitted ones lack it or
        have nothing else), ``vertex_mean`` and ``vertex_median`` in mm.
    """
    rows = np.random.default_rng(seed).permutation(len(fit))[: max(2, round(FIT_SHARE * len(fit)))]
    x, held = StandardScaler().fit(fit[rows]), score
    return {
        "seed": seed,
        **_flavour(x.transform(fit[rows]), fit_truth["flavour"][rows], x.transform(held), truth["flavour"]),
        **_vertex(x.transform(fit[rows]), fit_truth["vertex"][rows], x.transform(held), truth["vertex"]),
    }


def _flavour(fit: np.ndarray, label: np.ndarray, score: np.ndarray, truth: np.ndarray) -> dict[str, object]:
    fit, label, score, truth = fit[label >= 0], label[label >= 0], score[truth >= 0], truth[truth >= 0]
    auc: list[float | None] = [None] * len(FLAVOUR_NAMES)
    classes = np.unique(label)
    if len(classes) > 1 and len(truth):
        share = _fitted(classes, fit, label).predict_proba(score)
        for column, c in enumerate(classes):
            if 0 < (truth == c).sum() < len(truth):
                auc[c] = float(roc_auc_score(truth == c, share[:, column]))
    known = [a for a in auc if a is not None]
    return {"macro_auc": float(np.mean(known)) if known else None, "auc": auc}


def _fitted(classes: np.ndarray, fit: np.ndarray, label: np.ndarray) -> LogisticRegression:
    """A logistic regression with the penalty that does best on a quarter of the events."""
    cut = 3 * len(fit) // 4
    losses = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if len(np.unique(label[:cut])) == len(classes) and cut < len(fit):
            for c in PENALTIES["flavour"]:
                trial = LogisticRegression(C=c, max_iter=300).fit(fit[:cut], label[:cut])
                losses[c] = log_loss(label[cut:], trial.predict_proba(fit[cut:]), labels=classes)
        best = min(losses, key=losses.get, default=PENALTIES["flavour"][1])
        return LogisticRegression(C=best, max_iter=300).fit(fit, label)


def _vertex(fit: np.ndarray, vertex: np.ndarray, score: np.ndarray, truth: np.ndarray) -> dict[str, object]:
    known, scored = np.isfinite(vertex).all(1), np.isfinite(truth).all(1)
    if known.sum() < 2 or not scored.any():
        return {"vertex_mean": None, "vertex_median": None}
    fit, vertex = fit[known], vertex[known]
    cut = max(1, 3 * len(fit) // 4)

    def error(model: Ridge, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.norm(model.predict(x) - y, axis=1)

    losses = {
        a: error(Ridge(alpha=a).fit(fit[:cut], vertex[:cut]), fit[cut:], vertex[cut:]).mean()
        for a in PENALTIES["vertex"]
    }
    apart = error(Ridge(alpha=min(losses, key=losses.get)).fit(fit, vertex), score[scored], truth[scored])
    return {"vertex_mean": float(apart.mean()), "vertex_median": float(np.median(apart))}


def mean_vertex_error(fit: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance in mm of the vertices (n, 3) from the mean one of those fitted to: what no features at all give."""
    fit, truth = (v[np.isfinite(v).all(1)] for v in (fit, truth))
    return float(np.linalg.norm(truth - fit.mean(0), axis=1).mean()) if len(fit) and len(truth) else float("nan")


def events_of(reader: Sequence[StreamEvent], n: int) -> list[StreamEvent]:
    """The first n events, or all there are."""
    return [reader[i] for i in range(min(n, len(reader)))]
