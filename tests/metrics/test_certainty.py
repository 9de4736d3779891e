"""Certainty AUC against scikit-learn, in batches, and at its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from nufm.metrics import CertaintyAUC


def predictions(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    p = torch.from_numpy(rng.dirichlet(np.full(5, 0.3), n)).float()
    return p, torch.from_numpy(rng.integers(5, size=n))


@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn(seed):
    p, target = predictions(400, seed)
    metric = CertaintyAUC()
    metric.update(p, target)
    expected = roc_auc_score((p.argmax(1) == target).numpy(), -entropy(p.double().numpy(), axis=1))
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-12)


def test_does_not_depend_on_batches_and_leaves_out_the_unknown():
    p, target = predictions(101, 7)
    target[::10] = -1
    whole, parts = CertaintyAUC(), CertaintyAUC()
    whole.update(p[target >= 0], target[target >= 0])
    for rows in torch.arange(101).split(13):
        parts.update(p[rows], target[rows])
    assert float(whole.compute()) == float(parts.compute())


def test_sure_when_right_and_torn_when_wrong_is_one():
    metric = CertaintyAUC()
    metric.update(torch.tensor([[0.9, 0.1], [0.45, 0.55], [0.05, 0.95]]), torch.tensor([0, 0, 1]))
    assert float(metric.compute()) == 1.0
    metric.reset()
    metric.update(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0, 0]))  # sure where wrong
    assert float(metric.compute()) == 0.0


def test_equal_entropies_are_a_half():
    metric = CertaintyAUC()
    metric.update(torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.2, 0.8]]), torch.tensor([0, 1, 1]))
    assert float(metric.compute()) == 0.5


def test_never_wrong_has_no_score():
    metric = CertaintyAUC()
    assert math.isnan(float(metric.compute()))
    metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert math.isnan(float(metric.compute()))


def test_logits_are_refused():
    with pytest.raises(ValueError, match="softmax"):
        CertaintyAUC().update(torch.tensor([[3.0, -1.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"\(N, K\) and \(N,\)"):
        CertaintyAUC().update(torch.full((2, 2), 0.5), torch.tensor([0]))
