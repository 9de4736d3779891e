"""Residuals against NumPy, a normal distribution, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nufm.metrics.residuals import Distances, Residuals, quantiles


@pytest.mark.parametrize("n", [1, 2, 7, 4001])
def test_equal_to_numpy(n: int) -> None:
    rng = np.random.default_rng(n)
    true = rng.gamma(2, 50, n).astype(np.float32)
    reco = (true * rng.normal(0.9, 0.3, n)).astype(np.float32)
    metric = Residuals()
    metric.update(torch.from_numpy(reco), torch.from_numpy(true))
    found = {k: float(v) for k, v in metric.compute().items()}
    d = reco.astype(np.float64) - true.astype(np.float64)
    r = d / true.astype(np.float64)
    low, middle, high = np.percentile(d, (25, 50, 75))
    assert [found["q25"], found["median"], found["q75"], found["iqr"]] == pytest.approx(
        [low, middle, high, high - low], rel=1e-12, abs=1e-12
    )
    assert found["fractional_median"] == pytest.approx(np.median(r), rel=1e-12)
    assert found["sigma_mad"] == pytest.approx(1.4826 * np.median(np.abs(r - np.median(r))), rel=1e-12)
    assert found["mean_absolute"] == pytest.approx(np.abs(d).mean(), rel=1e-12)
    assert found["count"] == found["fractional_count"] == n


def test_sigma_mad_of_a_normal_distribution_is_its_sigma() -> None:
    rng = np.random.default_rng(0)
    true = torch.from_numpy(rng.uniform(10, 1000, 200_000))
    metric = Residuals()
    metric.update(true * torch.from_numpy(rng.normal(1.05, 0.2, 200_000)), true)
    found = metric.compute()
    assert float(found["sigma_mad"]) == pytest.approx(0.2, rel=0.01)
    assert float(found["fractional_median"]) == pytest.approx(0.05, abs=0.002)


def test_outliers_do_not_move_it() -> None:
    true = torch.full((99,), 10.0)
    reco = true + torch.linspace(-1, 1, 99)
    clean, dirty = Residuals(), Residuals()
    clean.update(reco, true)
    dirty.update(torch.cat([reco[:-2], torch.tensor([1e9, -1e9])]), true)
    assert float(dirty.compute()["sigma_mad"]) == pytest.approx(float(clean.compute()["sigma_mad"]), rel=0.05)


def test_by_hand_with_a_true_zero_and_an_unknown_truth() -> None:
    """d = 1, -1, 3; r of the second and third alone: -1/2 and 3/4, both 5/8 from their median."""
    metric = Residuals()
    metric.update(torch.tensor([1.0, 1.0, 7.0, 5.0]), torch.tensor([0.0, 2.0, 4.0, torch.nan]))
    found = metric.compute()
    assert float(found["median"]) == 1 and float(found["iqr"]) == 2 and int(found["count"]) == 3
    assert int(found["fractional_count"]) == 2 and float(found["fractional_median"]) == 0.125
    assert float(found["sigma_mad"]) == pytest.approx(1.4826 * 0.625)


def test_fractions_of_nearly_nothing_do_not_count() -> None:
    """Of true 1e-16, 2 and -4 the last two, r = 1/2 and -1/2; d counts all."""
    metric = Residuals(least=0.1)
    metric.update(torch.tensor([5.0, 3.0, -2.0]), torch.tensor([1e-16, 2.0, -4.0]))
    found = metric.compute()
    assert int(found["count"]) == 3 and int(found["fractional_count"]) == 2
    assert float(found["median"]) == 2 and float(found["fractional_median"]) == 0
    assert float(found["sigma_mad"]) == pytest.approx(1.4826 * 0.5)


def test_distances() -> None:
    metric = Distances()
    reco = torch.tensor([[3.0, 4.0, 0.0], [1.0, 2.0, 2.0], [0.0, 0.0, 7.0], [9.0, 9.0, 9.0]])
    true = torch.zeros(4, 3)
    true[3, 1] = torch.nan
    metric.update(reco, true)
    found = metric.compute()
    assert float(found["mean"]) == 5 and float(found["median"]) == 5 and int(found["count"]) == 3
    assert float(found["q68"]) == pytest.approx(np.quantile([5, 3, 7], 0.68))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_events() -> None:
    for metric in (Residuals(), Distances()):
        found = metric.compute()
        assert found["median"].isnan() and int(found["count"]) == 0


@pytest.mark.parametrize("cls", [Residuals, Distances])
def test_does_not_depend_on_batches_or_ranks(cls) -> None:
    rng = np.random.default_rng(1)
    shape = (500,) if cls is Residuals else (500, 3)
    reco, true = (torch.from_numpy(rng.normal(size=shape)) for _ in range(2))
    whole, parts, other = cls(), cls(), cls()
    whole.update(reco, true)
    for i, (a, b) in enumerate(zip(reco.split([1, 0, 199, 300]), true.split([1, 0, 199, 300]), strict=True)):
        (parts if i % 2 else other).update(a, b)
    for name in parts.shapes:
        assert parts._reductions[name].__name__ == "dim_zero_cat"
        setattr(parts, name, [*getattr(parts, name), *getattr(other, name)])
    for name, value in whole.compute().items():
        torch.testing.assert_close(parts.compute()[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_quantiles_are_those_of_numpy() -> None:
    values, levels = np.random.default_rng(2).normal(size=37), (0.0, 0.1, 0.5, 0.68, 1.0)
    np.testing.assert_allclose(quantiles(torch.from_numpy(values), levels), np.quantile(values, levels), rtol=1e-14)


@pytest.mark.parametrize(
    ("metric", "reco", "true", "message"),
    [
        (Residuals(), torch.zeros(3), torch.zeros(4), r"expected \(N,\)"),
        (Residuals(), torch.zeros(3, 3), torch.zeros(3, 3), r"expected \(N,\)"),
        (Residuals(), torch.tensor([torch.nan]), torch.zeros(1), "reco holds nan"),
        (Distances(), torch.zeros(3), torch.zeros(3), r"expected \(N, 3\)"),
        (Distances(), torch.full((1, 3), torch.inf), torch.zeros(1, 3), "reco holds inf"),
    ],
)
def test_bad_input_leaves_no_trace(metric, reco, true, message) -> None:
    with pytest.raises(ValueError, match=message):
        metric.update(reco, true)
    assert all(getattr(metric, name) == [] for name in metric.shapes)
