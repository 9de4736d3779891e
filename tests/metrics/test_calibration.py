"""Calibration against NumPy histograms, scikit-learn and a case worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metric_states import add_states
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from nufm.metrics.calibration import Calibration


def points(n: int, seed: int) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    probability = torch.from_numpy(rng.dirichlet([0.4] * 5, n).astype(np.float32))
    confidence, pred = probability.max(1)
    target = torch.where(torch.from_numpy(rng.random(n) < 0.7), pred, torch.from_numpy(rng.integers(0, 5, n)))
    return confidence.clamp(max=1.0), pred == target, probability, target


@pytest.mark.parametrize(("n", "bins"), [(1, 15), (50, 15), (4000, 15), (4000, 1), (300, 7)])
def test_equal_to_numpy_and_scikit_learn(n: int, bins: int) -> None:
    confidence, correct, probability, target = points(n, n + bins)
    metric = Calibration(bins)
    metric.update(confidence, correct, probability, target)
    result = metric.compute()
    x, y = confidence.double().numpy(), correct.numpy()
    count, edges = np.histogram(x, bins, (0, 1))
    sums = [np.histogram(x, bins, (0, 1), weights=w)[0] for w in (x, y.astype(float))]
    with np.errstate(invalid="ignore"):
        gap = np.abs(sums[0] - sums[1]) / count
    np.testing.assert_array_equal(result["bin_count"].numpy(), count)
    np.testing.assert_allclose(result["bin_edges"].numpy(), edges, atol=1e-15)
    assert float(result["expected_error"]) == pytest.approx(np.nansum(gap * count) / n, abs=1e-8)
    assert float(result["maximum_error"]) == pytest.approx(np.nanmax(gap), abs=1e-8)
    if bins > 1:
        accuracy, mean = calibration_curve(y, x, n_bins=bins)
        filled = result["bin_count"] > 0
        np.testing.assert_allclose(result["bin_accuracy"][filled], accuracy, atol=1e-8)
        np.testing.assert_allclose(result["bin_confidence"][filled], mean, atol=1e-8)
        assert result["bin_accuracy"][~filled].isnan().all()
    p = probability.double().numpy()
    assert float(result["brier"]) == pytest.approx(((p - np.eye(5)[target]) ** 2).sum(1).mean(), abs=1e-6)
    p = np.maximum(p, 2.0**-23)
    p /= p.sum(1, keepdims=True)
    assert float(result["nll"]) == pytest.approx(log_loss(target, p, labels=range(5)), abs=2e-5)


def test_by_hand() -> None:
    """Two bins. Below 1/2: 0.2 right, 0.4 wrong; above: 0.5 right, 1.0 right."""
    metric = Calibration(2)
    metric.update(torch.tensor([0.2, 0.4, 0.5, 1.0]), torch.tensor([True, False, True, True]))
    result = metric.compute()
    assert result["bin_count"].tolist() == [2, 2]
    assert result["bin_accuracy"].tolist() == [0.5, 1.0]
    assert result["bin_confidence"].tolist() == pytest.approx([0.3, 0.75], abs=1e-8)
    assert float(result["expected_error"]) == pytest.approx((0.2 + 0.25) / 2, abs=1e-8)
    assert float(result["maximum_error"]) == pytest.approx(0.25, abs=1e-8)
    assert float(result["accuracy"]) == 0.75
    assert float(result["mean_confidence"]) == pytest.approx(0.525, abs=1e-8)
    assert result["brier"].isnan() and result["nll"].isnan()


def test_certain_and_wrong() -> None:
    metric = Calibration()
    probability = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    metric.update(torch.ones(2), torch.tensor([True, False]), probability, torch.tensor([0, 0]))
    result = metric.compute()
    assert float(result["brier"]) == 1.0 and float(result["maximum_error"]) == 0.5
    assert float(result["nll"]) == pytest.approx(23 * np.log(2) / 2, rel=1e-6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_points() -> None:
    metric = Calibration(3)
    metric.update(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    result = metric.compute()
    for name in ("expected_error", "maximum_error", "accuracy", "mean_confidence", "brier", "nll"):
        assert result[name].isnan(), name
    assert result["bin_count"].tolist() == [0, 0, 0] and result["bin_accuracy"].isnan().all()


def test_does_not_depend_on_batches_or_ranks() -> None:
    whole, parts, other = Calibration(), Calibration(), Calibration()
    data = points(3000, 0)
    whole.update(*data)
    for i, part in enumerate(zip(*(x.split([1, 999, 1500, 500]) for x in data), strict=True)):
        (parts if i < 2 else other).update(*part)
    add_states(parts, other)
    for name, value in whole.compute().items():
        torch.testing.assert_close(parts.compute()[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_half_precision_is_widened() -> None:
    metric = Calibration(10)
    metric.update(torch.full((5000,), 0.95, dtype=torch.bfloat16), torch.ones(5000, dtype=torch.bool))
    assert float(metric.compute()["mean_confidence"]) == pytest.approx(float(torch.tensor(0.95).bfloat16()))


RIGHT = torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.tensor([0.1, float("nan"), 0.2]), RIGHT), "confidence holds nan"),
        ((torch.tensor([0.1, 1.5, 0.2]), RIGHT), "confidence holds 1.5"),
        ((torch.tensor([0, 1, 1]), RIGHT), "expected float"),
        ((torch.zeros(3), RIGHT.long()), "expected bool"),
        ((torch.zeros(4), RIGHT), r"expected bool \(4,\)"),
        ((torch.zeros(3), RIGHT, torch.zeros(3, 2)), "together or not at all"),
        ((torch.zeros(3), RIGHT, torch.zeros(2, 2), torch.zeros(3).long()), r"expected float \(3, C\)"),
        ((torch.zeros(3), RIGHT, torch.zeros(3, 2) - 1, torch.zeros(3).long()), "softmax"),
        ((torch.zeros(3), RIGHT, torch.zeros(3, 2), torch.tensor([0, -1, 1])), "holds class -1"),
        ((torch.zeros(3), RIGHT, torch.zeros(3, 2), torch.tensor([0, 2, 1])), "holds class 2"),
        ((torch.zeros(3), RIGHT, torch.zeros(3, 2), torch.zeros(3)), "expected int64"),
    ],
)
def test_bad_input_leaves_no_trace(args, message) -> None:
    metric = Calibration()
    with pytest.raises(ValueError, match=message):
        metric.update(*args)
    assert int(metric.count.sum()) == 0


def test_bad_construction_is_refused() -> None:
    with pytest.raises(ValueError, match="n_bins"):
        Calibration(0)
