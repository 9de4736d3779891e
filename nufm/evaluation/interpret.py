"""What a model of events with several streams looks at: without which sub-detector it does worse, which hits move its
answer, and how events lie in its latent space.

Studies of the FASERCal model (arXiv 2604.07037; talk of F. Cufino, NPML 2026), whose exact form is not public:

    ablation    a stream is left out as if it had not been read out, and all events are scored again. The model was not
                trained on such events, so this says what it leans on, not what another model could do without.
    saliency    gradient × input of the charge of each hit, for the logit of one class. A patch is embedded as a sum of
                weight · charge over its hits, so charge · ∂logit/∂charge (both standardised) is, to first order, by how
                much the logit would fall without the hit.
    latents     events as the mean of their latents, in two dimensions.

Shape legend: n events, N hits of a stream, K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from nufm.checkpoint import Pretrained
from nufm.data.detector import load_stream_detector
from nufm.data.streams import StreamEvent
from nufm.display.stream_geometry import along_beam
from nufm.metrics.one_vs_rest import roc_auc
from nufm.ops.pool import segment_reduce

EVERYTHING = "everything"
RESAMPLES = 200  # bootstrap
NEAR_MM = (50.0, 100.0, 200.0)
NEIGHBOURS = 10


@dataclass(frozen=True)
class Saliency:
    """Which hits of an event move the logit of a class.

    Attributes:
        target: name of the class.
        voxels: stream -> float32 (N,) charge × gradient, rows as in the event; above 0 it speaks for the class.
    """

    target: str
    voxels: dict[str, np.ndarray]


def main_label(pretrained: Pretrained) -> str:
    """The first label that the model predicts, such as flavour.

    Raises:
        ValueError: it predicts no classes of events.
    """
    labels = getattr(pretrained.model, "n_classes", None)
    if not pretrained.of_streams or not isinstance(labels, Mapping) or not labels:
        raise ValueError(
            f"{pretrained.source or 'this export'} ({type(pretrained.model).__name__}) predicts no classes of events "
            "with several streams, so there is nothing to interpret; fine-tune it first (python scripts/finetune.py)"
        )
    return next(iter(labels))


# ---------------------------------------------------------------------- ablation


@torch.no_grad()
def ablation(pretrained: Pretrained, events: Sequence[StreamEvent], batch_size: int = 32) -> dict[str, Any]:
    """Scores with everything, and without each stream, if there are several.

    Returns:
        ``label``, ``classes`` (K,), ``support`` (K,), ``events``, ``filled`` (stream -> share of the events in which it
        has anything), and ``rows``: "everything" or a stream -> ``auc`` (K,), ``macro`` and, where the vertex is
        predicted, ``vertex_median`` mm; with ``macro_change`` and ``vertex_change`` against everything and their
        standard errors ``…_error`` (paired bootstrap). None is a score that is not defined.

    Raises:
        ValueError: no events, no truth of the label, or a model without classes.
    """
    label = main_label(pretrained)
    if len(events) == 0:
        raise ValueError("there are no events to score")
    streams = along_beam(load_stream_detector(events[0].detector))
    streams = streams if len(streams) > 1 else []  # without its only stream there is nothing
    found: dict[str, dict[str, list]] = {row: {"score": [], "distance": []} for row in (EVERYTHING, *streams)}
    truth, filled = [], dict.fromkeys(streams, 0)
    for start in range(0, len(events), batch_size):
        some = [events[i] for i in range(start, min(start + batch_size, len(events)))]
        for event in some:
            if label not in event.truth:
                raise ValueError(
                    f"{event.name}: no truth '{label}', found {', '.join(event.truth) or 'none'}; an ablation needs "
                    "events with truth, such as simulated ones"
                )
            for stream in streams:
                filled[stream] += _has_anything(event, stream)
        batch = pretrained.batch(some).to(next(pretrained.model.parameters()).device)
        truth.append(batch.truth[label].cpu().numpy())
        for row, lists in found.items():
            said = pretrained.model.predict(batch if row == EVERYTHING else batch.without(row))
            lists["score"].append(said.probability[label].float().cpu().numpy())
            if "vertex" in said.value and "vertex" in batch.truth:
                lists["distance"].append((said.value["vertex"] - batch.truth["vertex"]).norm(dim=1).cpu().numpy())
    classes, target = list(pretrained.classes[label]), np.concatenate(truth)
    arrays = {row: {k: np.concatenate(v) for k, v in lists.items() if v} for row, lists in found.items()}
    return {
        "label": label,
        "classes": classes,
        "support": np.bincount(target[target >= 0], minlength=len(classes)).tolist(),
        "events": len(target),
        "filled": {stream: count / len(target) for stream, count in filled.items()},
        "rows": _compared(arrays, target),
    }


def _has_anything(event: StreamEvent, stream: str) -> bool:
    rows = event.voxels.get(stream, event.tracks.get(stream))
    return len(rows) > 0 if rows is not None else bool(np.any(event.matrices.get(stream, 0)))


def _compared(arrays: Mapping[str, Mapping[str, np.ndarray]], target: np.ndarray) -> dict[str, dict[str, Any]]:
    """Scores of each row, and how they differ from those of everything."""
    n, rng = len(target), np.random.default_rng(0)
    samples = [rng.integers(0, n, n) for _ in range(RESAMPLES)]
    scores, drawn = {}, {}
    for row, found in arrays.items():
        auc = aucs(found["score"], target)
        scores[row] = {"auc": [_or_none(a) for a in auc], "macro": _or_none(_mean(auc))}
        draws = [[_mean(aucs(found["score"][s], target[s])) for s in samples]]
        if "distance" in found:
            known = found["distance"][np.isfinite(found["distance"])]
            scores[row]["vertex_median"] = _or_none(np.median(known) if len(known) else np.nan)
            draws.append([np.nanmedian(found["distance"][s]) if len(known) else np.nan for s in samples])
        drawn[row] = np.array(draws)
    for row, score in scores.items():
        for name, key, index in (("macro", "macro", 0), ("vertex_median", "vertex", 1)):
            before, after = scores[EVERYTHING].get(name), score.get(name)
            if before is not None and after is not None:
                change = drawn[row][index] - drawn[EVERYTHING][index]
                score[f"{key}_change"] = after - before
                score[f"{key}_change_error"] = _or_none(np.nanstd(change))
    return scores


def aucs(score: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float64 (K,) area under the ROC curve of each class against the rest; NaN where it is not defined.

    Args:
        score: (n, K).
        target: (n,), -1 does not count.
    """
    known = torch.from_numpy(target[target >= 0])
    rows = torch.from_numpy(score[target >= 0])
    return np.array([float(roc_auc(rows[:, c], known == c)) for c in range(score.shape[1])])


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# ---------------------------------------------------------------------- saliency


def saliency(
    pretrained: Pretrained, events: Sequence[StreamEvent], target: Sequence[int] | int | None = None
) -> list[Saliency]:
    """Charge × gradient of the logit of a class, hit by hit.

    Args:
        pretrained: a model with classes of events.
        events: one batch; nothing that is said of an event depends on the others.
        target: class whose logit it is, of each event or of all; None: the one that is predicted.

    Raises:
        ValueError: a class that is not there, or transforms that drop or reorder hits.
    """
    label, model = main_label(pretrained), pretrained.model
    if len(events) == 0:
        return []
    batch = pretrained.batch(events).to(next(model.parameters()).device)
    charges = {s: h.charge.detach().requires_grad_() for s, h in batch.voxels.items() if len(h)}
    watched = {s: h.replace(charge=charges.get(s, h.charge)) for s, h in batch.voxels.items()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            logits = model(batch.replace(voxels=watched))[label]
            chosen = _targets(target, logits)
            total = logits[torch.arange(len(chosen)), chosen].sum()
            gradients = torch.autograd.grad(total, list(charges.values()), allow_unused=True) if charges else ()
    finally:
        for module, training in modes.items():
            module.training = training
    names, found = list(pretrained.classes[label]), [Saliency(n, {}) for n in _names(pretrained, label, chosen)]
    assert len(names) == logits.shape[1]
    for (stream, charge), gradient in zip(charges.items(), gradients, strict=True):
        values = torch.zeros_like(charge) if gradient is None else charge.detach() * gradient
        parts = values.float().cpu().numpy()
        offsets = batch.voxels[stream].offsets.tolist()
        for i, event in enumerate(events):
            own = parts[offsets[i] : offsets[i + 1]]
            if len(own) != len(event.voxels.get(stream, ())):
                raise ValueError(
                    f"{event.name}: the transforms leave {len(own)} of {len(event.voxels[stream])} hits of '{stream}', "
                    "expected all of them in their order; give what drops hits as 'augment'"
                )
            found[i].voxels[stream] = own
    return found


def _targets(target: Sequence[int] | int | None, logits: Tensor) -> Tensor:
    n, k = logits.shape
    if target is None:
        return logits.argmax(1)
    chosen = torch.as_tensor(target, device=logits.device).expand(n)
    if bool(((chosen < 0) | (chosen >= k)).any()):
        raise ValueError(f"target is {target}, expected classes 0..{k - 1}")
    return chosen


def _names(pretrained: Pretrained, label: str, chosen: Tensor) -> list[str]:
    return [pretrained.classes[label][int(c)] for c in chosen]


def near_vertex(events: Sequence[StreamEvent], found: Sequence[Saliency], stream: str) -> dict[str, Any]:
    """How much of |saliency|, of charge and of the hits lies within some distance of the true vertex: the mean share of
    the events that have one, and hits.

    Returns:
        ``events`` that count, ``within_mm``, and ``saliency``, ``charge`` and ``hits``: a share for each distance.
    """
    geometry = load_stream_detector(events[0].detector).voxels[stream] if len(events) else None
    shares: list[np.ndarray] = []
    for event, values in zip(events, found, strict=True):
        hits, vertex = event.voxels.get(stream), event.truth.get("vertex")
        if hits is None or len(hits) == 0 or vertex is None or not np.isfinite(vertex).all():
            continue
        distance = np.linalg.norm(geometry.position(hits.index, hits.module) - vertex, axis=1)
        weights = (np.abs(values.voxels[stream]), np.clip(hits.charge, 0, None), np.ones(len(hits)))
        if all(w.sum() > 0 for w in weights):
            shares.append(np.array([[w[distance <= d].sum() / w.sum() for d in NEAR_MM] for w in weights]))
    mean = np.mean(shares, axis=0) if shares else np.full((3, len(NEAR_MM)), np.nan)
    names = ("saliency", "charge", "hits")
    return {
        "events": len(shares),
        "within_mm": list(NEAR_MM),
        **{name: [_or_none(v) for v in row] for name, row in zip(names, mean, strict=True)},
    }


# ---------------------------------------------------------------------- latents


@torch.no_grad()
def event_features(pretrained: Pretrained, events: Sequence[StreamEvent], batch_size: int = 32) -> np.ndarray:
    """float32 (n, C): the mean latent of each event."""
    encoder, rows = pretrained.encoder, []
    for start in range(0, len(events), batch_size):
        some = [events[i] for i in range(start, min(start + batch_size, len(events)))]
        latents = encoder(pretrained.batch(some).to(next(encoder.parameters()).device))
        rows.append(segment_reduce(latents.feat, latents.event, len(some), "mean").float().cpu().numpy())
    return np.concatenate(rows)


def latent_maps(features: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Features (n, C) in two dimensions: name of the map -> (n, 2).

    Principal components always; UMAP where the package umap-learn is installed, else t-SNE of scikit-learn, which also
    keeps neighbours together (in neither do distances between groups mean anything). Columns are standardised before.
    """
    ready = StandardScaler().fit_transform(np.asarray(features, dtype=np.float64))
    if len(ready) < 4 or ready.std() == 0:  # t-SNE divides by the spread of what it starts from
        return {"PCA": np.pad(ready, ((0, 0), (0, 2)))[:, :2]}
    pca = PCA(2, random_state=seed).fit(ready)
    share = 100 * pca.explained_variance_ratio_.sum()
    maps = {f"PCA ({share:.0f} % of the variance)": pca.transform(ready)}
    try:
        umap = import_module("umap")
    except ImportError:
        perplexity = min(30.0, (len(ready) - 1) / 3)
        maps["t-SNE"] = TSNE(2, perplexity=perplexity, random_state=seed, init="pca").fit_transform(ready)
    else:
        neighbours = min(15, len(ready) - 1)
        maps["UMAP"] = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(ready)
    return maps


def neighbour_accuracy(features: np.ndarray, target: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """Share of events whose class is that of most of their nearest neighbours among the others, in all C dimensions,
    standardised; NaN for fewer than two classes or too few events."""
    known = target >= 0
    rows, labels = np.asarray(features, dtype=np.float64)[known], target[known]
    if len(rows) <= neighbours or len(np.unique(labels)) < 2:
        return float("nan")
    ready = StandardScaler().fit_transform(rows)
    near = NearestNeighbors(n_neighbors=neighbours).fit(ready).kneighbors(return_distance=False)  # without themselves
    votes = np.stack([np.bincount(labels[row], minlength=labels.max() + 1) for row in near])
    return float((votes.argmax(1) == labels).mean())
