"""One-vs-rest AUC against scikit-learn, against all pairs by brute force, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from nufm.metrics.one_vs_rest import OneVsRest, roc_auc


def events(n: int, seed: int, digits: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of four classes that know something; few digits make ties."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 4, n)
    logits = rng.normal(size=(n, 4)) + 1.5 * np.eye(4)[target]
    score = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return torch.from_numpy(np.round(score, digits).astype(np.float32)), torch.from_numpy(target)


@pytest.mark.parametrize(("n", "digits"), [(12, 6), (2000, 6), (2000, 1), (500, 0)])
def test_equal_to_scikit_learn(n: int, digits: int) -> None:
    score, target = events(n, n + digits, digits)
    metric = OneVsRest(4)
    metric.update(score, target)
    found = metric.compute()
    expected = [roc_auc_score(target == c, score[:, c]) for c in range(4)]
    np.testing.assert_allclose(found["auc"].numpy(), expected, rtol=1e-12)
    assert float(found["macro"]) == pytest.approx(np.mean(expected), rel=1e-12)
    assert found["support"].tolist() == np.bincount(target, minlength=4).tolist()


def test_equal_to_all_pairs() -> None:
    """The definition: pairs of a positive and a negative in the right order, ties one half."""
    rng = np.random.default_rng(3)
    score, positive = rng.integers(0, 5, 60).astype(np.float32), rng.random(60) < 0.3
    pairs = [np.sign(a - b) / 2 + 0.5 for a in score[positive] for b in score[~positive]]
    found = roc_auc(torch.from_numpy(score), torch.from_numpy(positive))
    assert float(found) == pytest.approx(np.mean(pairs), rel=1e-12)


def test_perfect_inverted_constant() -> None:
    positive = torch.tensor([True, True, False, False])
    assert float(roc_auc(torch.tensor([4.0, 3.0, 2.0, 1.0]), positive)) == 1
    assert float(roc_auc(torch.tensor([1.0, 2.0, 3.0, 4.0]), positive)) == 0
    assert float(roc_auc(torch.zeros(4), positive)) == 0.5


def test_a_class_without_events_is_left_out_of_the_mean() -> None:
    score, target = events(300, 1)
    target[target == 3] = -1  # not known
    metric = OneVsRest(4)
    metric.update(score, target)
    found, known = metric.compute(), target >= 0
    assert found["auc"][3].isnan() and int(found["support"].sum()) == int(known.sum())
    expected = np.mean([roc_auc_score(target[known] == c, score[known, c]) for c in range(3)])
    assert float(found["macro"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_events_one_event_one_class() -> None:
    assert OneVsRest(4).compute()["macro"].isnan()
    for n in (1, 5):
        metric = OneVsRest(2)
        metric.update(torch.rand(n, 2), torch.zeros(n, dtype=torch.int64))
        assert metric.compute()["macro"].isnan() and metric.compute()["support"].tolist() == [n, 0]


def test_does_not_depend_on_batches_or_ranks() -> None:
    """Ranks join their samples, in whatever order."""
    score, target = events(900, 5, 2)
    whole, parts, other = OneVsRest(4), OneVsRest(4), OneVsRest(4)
    whole.update(score, target)
    for i, (s, t) in enumerate(zip(score.split([1, 99, 0, 500, 300]), target.split([1, 99, 0, 500, 300]), strict=True)):
        (parts if i < 3 else other).update(s, t)
    for name in ("score", "target"):
        assert parts._reductions[name].__name__ == "dim_zero_cat"
        setattr(parts, name, [*getattr(other, name), *getattr(parts, name)])
    for name, value in whole.compute().items():
        torch.testing.assert_close(parts.compute()[name], value, rtol=0, atol=1e-15, msg=name)
    whole.reset()
    assert whole.samples("score").shape == (0, 4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(3, 5), torch.zeros(3).long()), r"expected float \(N, 4\)"),
        ((torch.zeros(3), torch.zeros(3).long()), r"expected float \(N, 4\)"),
        ((torch.zeros(3, 4), torch.zeros(3)), r"expected integer classes \(3,\)"),
        ((torch.zeros(3, 4), torch.zeros(2).long()), r"expected integer classes \(3,\)"),
        ((torch.zeros(3, 4), torch.tensor([0, 1, 4])), "holds class 4"),
        ((torch.full((3, 4), torch.nan), torch.zeros(3).long()), "NaN"),
    ],
)
def test_bad_input_leaves_no_trace(args, message) -> None:
    metric = OneVsRest(4)
    with pytest.raises(ValueError, match=message):
        metric.update(*args)
    assert metric.score == [] and metric.target == []


def test_bad_construction_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        OneVsRest(1)
    with pytest.raises(ValueError, match="ignore_index 2"):
        OneVsRest(4, 2)
