"""Token probes: how much of the truth can be read off frozen features of whole tokens.

Protocol of PoLAr-MAE (Young et al., arXiv 2502.02558; DeepLearnPhysics/PoLAr-MAE, polarmae/models/ssl/base.py): linear
support vector machines say which of the classes shower, track, Michel and delta are among the points of a token. Their
penalty sees the scale of the features, which is an accident of an encoder's last block: untrained features of small
spread score far below what they hold. So the same machines are also fitted to whitened features. Beside it three
questions of physics, each answered by a linear model on whitened features:

    classes   which share of a token's points is of which class
    pairs     do two tokens of an event share their dominant particle
    vertex    was a particle created inside the ball of a token

All features are compared on the same tokens of the same events. What has features of points only (another encoder, the
raw inputs) is averaged over the points of a token. Linear models with a convex loss leave nothing to a seed, so a
spread is that of the encoders.

Shape legend: T tokens, S tokens to score, Q pairs of tokens, N points, C feature width, K classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from nufm.data.datamodule import PointDataModule
from nufm.data.event import MOTIF_NAMES, PointBatch
from nufm.methods.linear_probe import EventChoice, choose_events, encoder_features, raw_features
from nufm.methods.token_truth import NEAR, SVM_CLASSES, TokenFeatures, TokenTruth, collect_tokens, token_pairs
from nufm.models.tokens import Tokenizer, Tokens
from nufm.ops.pool import segment_reduce

MAX_TOKENS = 15000  # to fit to, and as many to score; as published
COMPONENTS, SVM_C = 128, 0.005  # as published

PROBES = {
    "svm": "classes among the points of a token, SVM",
    "classes": "shares of the classes in a token, linear layer",
    "pairs": "two tokens of one particle or of two, logistic regression",
    "vertex": "a particle created inside the ball, logistic regression",
}
METRICS = {
    "svm": {
        "macro_f1": "macro-F1",
        **{name: name for name in MOTIF_NAMES[:SVM_CLASSES]},
        "macro_f1_whitened": "macro-F1, whitened",
    },
    "classes": {"error": "mean abs. error", "macro_f1": "macro-F1", **{name: name for name in MOTIF_NAMES}},
    "pairs": {"auc": "ROC AUC", "auc_near": f"ROC AUC, closer than {NEAR:g} radii"},
    "vertex": {"average_precision": "average precision", "auc": "ROC AUC"},
}


# ---------------------------------------------------------------------------------------- features of tokens


def token_features(encoder: nn.Module, tokenizer: Tokenizer) -> TokenFeatures:
    """What an encoder says of each token of ``tokenizer``, (T, C), in evaluation mode.

    An encoder of these very tokens, however many it takes: what leaves its last block. Another one: the mean of its
    ``point_features`` over the points of the token.
    """
    points = encoder_features(encoder)

    def from_points(batch: PointBatch, tokens: Tokens) -> Tensor:
        return _mean(points(batch), tokens)

    def from_tokens(batch: PointBatch, tokens: Tokens) -> Tensor:
        was_training = encoder.training
        encoder.eval()
        try:
            return encoder.encode(tokens).feat.float()
        finally:
            encoder.train(was_training)

    own = getattr(encoder, "tokenizer", None)
    return from_tokens if own is not None and _same_tokens(own, tokenizer) else from_points


def _same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether they make the same tokens, whatever their largest number; within what files round and HAIR takes off."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, float) or isinstance(b, float):
            return a is not None and b is not None and math.isclose(a, b, rel_tol=2e-4)
        return a == b

    makes = one.arguments.keys() - {"max_tokens", "beyond"}
    return all(equal(one.arguments[name], other.arguments[name]) for name in makes)


def raw_token_features(batch: PointBatch, tokens: Tokens) -> Tensor:
    """What is known without a network, (T, 7): mean and spread of :func:`raw_features` over the points of a token, and
    the logarithm of their number."""
    raw = raw_features(batch).double()
    mean = _mean(raw, tokens)
    spread = (_mean(raw.square(), tokens) - mean.square()).clamp(min=0).sqrt()
    return torch.cat([mean, spread, tokens.counts.double().log()[:, None]], dim=1).float()


def _mean(points: Tensor, tokens: Tokens) -> Tensor:
    return segment_reduce(points[tokens.members], tokens.segments, len(tokens), "mean")


# ---------------------------------------------------------------------------------------- the probes


def svm_probe(fit: np.ndarray, present: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Classes (S, K) of the tokens ``score``, from linear support vector machines, one against the rest.

    As published: principal components (128, or as many as there are), C = 0.005, balanced classes, no standardisation.

    Args:
        fit: (T, C) features to fit to.
        present: bool (T, K) their classes.
        score: (S, C) features of other tokens.
    """
    pca = _components(fit)
    # The primal problem: the same solution as the dual one's, reached without random numbers.
    svm = OneVsRestClassifier(LinearSVC(C=SVM_C, class_weight="balanced", random_state=0, dual=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Label .* is present in all training examples")  # or in none: never said
        svm.fit(pca.transform(fit), present.astype(np.int64))
    return svm.predict(pca.transform(score)).astype(bool)


def whitened(fit: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Up to 128 principal components of standardised features, each of mean 0 and spread 1 over ``fit``: neither the
    scale of the features nor their width then decides what a linear model reads off them. Features that do not vary, as
    those of a collapsed encoder, become one column of zeros, which says nothing of a token."""
    scale = StandardScaler().fit(fit)
    scaled = scale.transform(fit)
    if not np.ptp(scaled, axis=0).any():
        return np.zeros((len(fit), 1)), np.zeros((len(score), 1))
    pca = _components(scaled)
    spread = np.sqrt(pca.explained_variance_)
    kept = spread > 1e-3 * spread[0]  # the others are rounding
    return tuple(pca.transform(x)[:, kept] / spread[kept] for x in (scaled, scale.transform(score)))


def _components(fit: np.ndarray) -> PCA:
    with np.errstate(invalid="ignore"):  # shares of no variance at all: of a collapsed encoder
        return PCA(min(COMPONENTS, *fit.shape), svd_solver="full").fit(fit)  # "full": the same in all versions


def logistic_probe(
    fit: np.ndarray, target: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Classes that occur (K,), and their probabilities (S, K), from softmax regression.

    Args:
        fit: (T, C) whitened features to fit to.
        target: int64 (T,) classes.
        score: (S, C) features of others.
        weight: (T,) of each row; None = 1.
    """
    occurring = np.unique(target)
    if len(occurring) < 2:
        return occurring, np.ones((len(score), len(occurring)))
    model = LogisticRegression(max_iter=1000).fit(fit, target, weight)
    return model.classes_, model.predict_proba(score)


def share_probe(fit: np.ndarray, share: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Shares (S, K) of the classes, from a linear layer fitted to the shares (T, K) with cross-entropy."""
    # Cross-entropy with soft targets is that of one row for each class with the share as its weight.
    rows, classes = np.nonzero(share)
    occurring, found = logistic_probe(fit[rows], classes, score, share[rows, classes])
    shares = np.zeros((len(score), share.shape[1]))
    shares[:, occurring] = found
    return shares


def pair_features(feat: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(Q, 2C): what does not depend on the order of two tokens, |a - b| and a·b."""
    a, b = feat[pairs[:, 0]], feat[pairs[:, 1]]
    return np.concatenate([np.abs(a - b), a * b], axis=1)


# ---------------------------------------------------------------------------------------- scores

Scores = dict[str, float | None]
Sets = tuple[np.ndarray, np.ndarray]  # features (T, C) of the tokens to fit to, and (S, C) of those to score


@dataclass(frozen=True)
class Question:
    """One probe of one set of tokens.

    Attributes:
        score: features as they are, and whitened -> metrics; None where there is nothing to ask.
        counts: what there is of each kind among the tokens to score.
        baseline: what needs no features, and its metrics.
        notes: what could not be asked, and why.
    """

    score: Callable[[Sets, Sets], Scores] | None
    counts: dict[str, int]
    baseline: dict[str, Any] | None = None
    notes: Sequence[str] = ()


def _svm(known: TokenTruth, truth: TokenTruth) -> Question:
    names = MOTIF_NAMES[:SVM_CLASSES]

    def f1(sets: Sets) -> Scores:
        predicted = svm_probe(sets[0], known.present, sets[1])
        return _f1(f1_score(truth.present, predicted, average=None, zero_division=np.nan), names)

    def score(features: Sets, white: Sets) -> Scores:
        return f1(features) | {"macro_f1_whitened": f1(white)["macro_f1"]}

    return Question(score, dict(zip(names, truth.present.sum(0).tolist(), strict=True)))


def _classes(known: TokenTruth, truth: TokenTruth) -> Question:
    rows = truth.share.any(1)  # tokens with labelled points
    expected, majority = truth.share[rows], truth.share[rows].argmax(1)

    def scores(shares: np.ndarray) -> Scores:
        kinds = range(len(MOTIF_NAMES))
        f1 = f1_score(majority, shares.argmax(1), labels=kinds, average=None, zero_division=np.nan)
        return {"error": _number(np.abs(shares - expected).mean())} | _f1(f1, MOTIF_NAMES)

    def score(_: Sets, white: Sets) -> Scores:
        return scores(share_probe(white[0], known.share, white[1][rows]))

    counts = dict(zip(MOTIF_NAMES, np.bincount(majority, minlength=len(MOTIF_NAMES)).tolist(), strict=True))
    if not rows.any() or not known.share.any():
        return Question(None, counts, notes=["no token has labelled points"])
    mean = known.share[known.share.any(1)].mean(0)
    baseline = {"label": "always the mean shares"} | scores(np.tile(mean, (len(expected), 1)))
    return Question(score, counts, baseline)


def _pairs(known: TokenTruth, truth: TokenTruth) -> Question:
    fit_pairs, fit_same, _ = token_pairs(known)
    pairs, same, apart = token_pairs(truth)
    near = apart < NEAR
    counts = {"pairs": len(pairs), "near": int(near.sum())}

    def scores(alike: np.ndarray) -> Scores:
        return {"auc": _auc(same, alike), "auc_near": _auc(same[near], alike[near])}

    def score(_: Sets, white: Sets) -> Scores:
        both = pair_features(white[0], fit_pairs), pair_features(white[1], pairs)
        scale = StandardScaler().fit(both[0])
        _, found = logistic_probe(scale.transform(both[0]), fit_same, scale.transform(both[1]))
        return scores(found[:, 1])

    if not len(pairs) or not len(fit_pairs):
        return Question(None, counts, notes=["no event has tokens of two particles"])
    return Question(score, counts, {"label": "distance of the centres alone"} | scores(-apart))


def _vertex(known: TokenTruth, truth: TokenTruth) -> Question:
    if known.vertex is None or truth.vertex is None:
        why = "the files do not say where particles were created, or the transforms move points"
        return Question(None, {}, notes=[f"left out: {why}"])
    counts = {"vertices": truth.n_vertices, "tokens with a vertex": int(truth.vertex.sum())}
    if not known.vertex.any() or not truth.vertex.any() or known.vertex.all():
        why = "no ball, or every one, holds one of the creation points"
        return Question(None, counts, notes=[f"left out: {why}; are the vertices in mm from the detector centre?"])

    def score(_: Sets, white: Sets) -> Scores:
        found = logistic_probe(white[0], known.vertex, white[1])[1][:, 1]
        precision = average_precision_score(truth.vertex, found)
        return {"average_precision": _number(precision), "auc": _auc(truth.vertex, found)}

    base = {"label": "share of tokens with a vertex", "average_precision": _number(truth.vertex.mean()), "auc": 0.5}
    return Question(score, counts, base)


QUESTIONS = {"svm": _svm, "classes": _classes, "pairs": _pairs, "vertex": _vertex}


def _f1(f1: np.ndarray, names: Sequence[str]) -> Scores:
    """Of every class, None for one that neither truth nor prediction has, and their mean."""
    macro = None if np.isnan(f1).all() else _number(np.nanmean(f1))
    return {"macro_f1": macro, **{name: _number(value) for name, value in zip(names, f1, strict=True)}}


def _auc(truth: np.ndarray, score: np.ndarray) -> float | None:
    return _number(roc_auc_score(truth, score)) if len(np.unique(truth)) == 2 else None


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)


def _over_seeds(per_seed: Sequence[Scores]) -> dict[str, Scores]:
    """Mean and sample deviation; no deviation for one seed."""
    mean: Scores = {}
    std: Scores = {}
    for name in per_seed[0] if per_seed else ():
        values = [scores[name] for scores in per_seed]
        known = None not in values
        mean[name] = float(np.mean(values)) if known else None
        std[name] = float(np.std(values, ddof=1)) if known and len(values) > 1 else None
    return {"mean": mean, "std": std}


# ---------------------------------------------------------------------------------------- tables


def token_tables(
    rows: Mapping[str, Sequence[TokenFeatures]],
    tokenizer: Tokenizer,
    data: PointDataModule,
    fit: EventChoice,
    score: EventChoice,
    *,
    probes: Sequence[str] = tuple(PROBES),
    shuffle: int | None = None,
    max_tokens: int = MAX_TOKENS,
    device: torch.device | str = "cpu",
) -> dict[str, dict]:
    """Scores of every row in every probe, all on the same tokens.

    Args:
        rows: name -> its features, one for each seed (of the pretraining, of an untrained encoder); see
            :func:`token_features` and :func:`raw_token_features`.
        tokenizer: makes the tokens of all rows.
        data: where the events are; their transforms must be those of all rows.
        fit, score, shuffle: which events, see :func:`nufm.methods.linear_probe.choose_events`.
        probes: some of ``PROBES``.
        max_tokens: of the events to fit to and to score the first so many tokens are taken.
        device: where tokens and features are computed.

    Returns:
        probe -> table: ``metrics`` (name -> heading), ``scores`` (row -> ``per_seed``, ``mean``, ``std``; values are
        shares of 1, None where there is nothing to score), ``baseline`` (the same of what needs no features; None),
        how many ``tokens`` and ``events``, ``counts`` of what is among those to score, and ``notes``: what could not
        be scored, and why.

    Raises:
        ValueError: no labels, no tokens, or an event in both sets.
    """
    chosen = choose_events(data, fit, score, shuffle)
    sets = [
        collect_tokens(rows, tokenizer, data, choice.split, events, max_tokens, device)
        for choice, events in zip((fit, score), chosen, strict=True)
    ]
    (fitted, known), (held_out, truth) = sets
    if len(known) < 2:
        raise ValueError(f"found {len(known)} token in the events to fit to, expected at least 2")
    shared = {
        "tokens": {"train": len(known), "test": len(truth)},
        "events": {"train": known.n_events, "test": truth.n_events},
        "splits": {"train": fit.split, "test": score.split, "shuffle": shuffle},
        "tokenizer": dict(tokenizer.arguments),
    }
    questions = {probe: QUESTIONS[probe](known, truth) for probe in probes}
    found: dict[str, dict[str, list[Scores]]] = {probe: {name: [] for name in rows} for probe in probes}
    for name in rows:
        for features in zip(fitted[name], held_out[name], strict=True):
            white = whitened(*features)
            for probe, question in questions.items():
                if question.score is not None:
                    found[probe][name].append(question.score(features, white))
    return {
        probe: {
            "task": PROBES[probe],
            "metrics": METRICS[probe],
            "counts": question.counts,
            "scores": {
                name: {"label": name, "per_seed": per_seed} | _over_seeds(per_seed)
                for name, per_seed in found[probe].items()
                if per_seed
            },
            "baseline": question.baseline,
            "notes": list(question.notes),
        }
        | shared
        for probe, question in questions.items()
    }
