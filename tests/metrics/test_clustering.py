"""Cluster scores against scikit-learn, brute force and events worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from metric_states import add_states
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from nufm.metrics.clustering import SCORES, ClusterScores, _Sizes, cluster_scores, expected_information

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def events(counts: list[int], seed: int, right: float = 0.7) -> Arrays:
    """pred, true, offsets of random events; ids leave gaps, and -1 occurs on both sides."""
    rng = np.random.default_rng(seed)
    true = np.concatenate([rng.integers(-1, 8, n) for n in counts] + [np.zeros(0, np.int64)])
    pred = np.where(rng.random(len(true)) < right, true, rng.integers(-1, 11, len(true)))
    pred = np.where(pred >= 0, 7 * pred + 3, -1)
    return pred, true, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def scores(pred, true, offsets=None) -> dict[str, torch.Tensor]:
    pred, true = torch.as_tensor(pred), torch.as_tensor(true)
    offsets = torch.tensor([0, len(true)]) if offsets is None else torch.as_tensor(offsets)
    return cluster_scores(pred, true, offsets)


def by_hand(pred: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The definitions, with loops over clusters of one event and scikit-learn for the rest."""
    nan = math.nan
    result = dict.fromkeys(SCORES, nan)
    counted = true >= 0
    if not counted.any():
        return result
    assigned = pred >= 0
    if assigned.any():
        result["ari_published"] = adjusted_rand_score(true[assigned], pred[assigned])
    t, p = true[counted], pred[counted].copy()
    ids, found = np.unique(t), np.unique(p[p >= 0])
    n = {(i, j): int(((t == i) & (p == j)).sum()) for i in ids for j in found}
    a, b = {i: int((t == i).sum()) for i in ids}, {j: int((p == j).sum()) for j in found}
    best_a = {i: max((n[i, j] for j in found), default=0) for i in ids}
    result["efficiency"] = np.mean([best_a[i] / a[i] for i in ids])
    result["efficiency_points"] = sum(best_a.values()) / len(t)
    dice_true = np.mean([max((2 * n[i, j] / (a[i] + b[j]) for j in found), default=0) for i in ids])
    result["sbd"] = 0.0
    if len(found):
        best_b = {j: max(n[i, j] for i in ids) for j in found}
        result["purity"] = np.mean([best_b[j] / b[j] for j in found])
        result["purity_points"] = sum(best_b.values()) / sum(b.values())
        dice_pred = np.mean([max(2 * n[i, j] / (a[i] + b[j]) for i in ids) for j in found])
        result["sbd"] = min(dice_true, dice_pred)
    p[p < 0] = -1 - np.arange((p < 0).sum())  # each its own cluster
    result["ari"], result["ami"] = adjusted_rand_score(t, p), adjusted_mutual_info_score(t, p)
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("right", [0.0, 0.5, 0.9, 1.0])
def test_equal_to_scikit_learn_and_the_definitions(seed: int, right: float) -> None:
    counts = [200, 0, 1, 2, 3, 5, 40, 900, 17]
    pred, true, offsets = events(counts, seed, right)
    found = scores(pred, true, offsets)
    for b in range(len(counts)):
        here = slice(offsets[b], offsets[b + 1])
        expected = by_hand(pred[here], true[here])
        t, p = true[here], pred[here]
        for name, value in expected.items():
            # scikit-learn divides two rounding errors where both partitions are all single points
            alone = len(np.unique(t[t >= 0])) == (t >= 0).sum()
            if name == "ami" and alone:
                continue
            assert float(found[name][b]) == pytest.approx(value, rel=1e-9, abs=1e-10, nan_ok=True), (b, name)
        assert int(found["voxels"][b]) == (t >= 0).sum()
        assert int(found["unassigned"][b]) == ((t >= 0) & (p < 0)).sum()


@pytest.mark.parametrize(("n", "seed"), [(10, 0), (300, 1), (6000, 2)])
def test_expected_information(n: int, seed: int) -> None:
    """The truncated sum over the hypergeometric distribution, with shared terms, against scikit-learn's full one."""
    rng = np.random.default_rng(seed)
    t, p = rng.choice(6, n, p=[0.6, 0.2, 0.1, 0.05, 0.04, 0.01]), rng.integers(0, 9, n)
    p[: n // 3] = 100 + np.arange(n // 3)
    sizes = [torch.from_numpy(np.unique(x, return_counts=True)[1]) for x in (t, p)]
    total = torch.tensor([n])
    true, found = (_Sizes.of(s, torch.zeros_like(s), None) for s in sizes)
    expected = expected_mutual_information(contingency_matrix(t, p, sparse=True), n)
    assert float(expected_information(total, true, found)) == pytest.approx(expected, rel=1e-10)


def test_unassigned_points_by_hand() -> None:
    """Two true particles of 3 and 2 points; the first point of each is unassigned, the rest one cluster.

    Clusters of the prediction in ARI: {1, 2, 4}, {0}, {3}: pairs joined in both 1, in truth 4, in prediction 3, of 10:
    ARI = (1 - 1.2) / (3.5 - 1.2).
    """
    found = scores([-1, 0, 0, -1, 0, 0], [4, 4, 4, 9, 9, -1])
    expected = {
        "ari": (1 - 1.2) / (3.5 - 1.2),
        # points 1, 2, 4, 5; truth {1, 2}, {4}, {5}; prediction one cluster: pairs 1, 1, 6 of 6
        "ari_published": 0.0,
        "purity": 2 / 3,
        "purity_points": 2 / 3,
        "efficiency": (2 / 3 + 1 / 2) / 2,
        "efficiency_points": 3 / 5,
        "sbd": min((4 / 6 + 2 / 5) / 2, 4 / 6),
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-12), name
    assert int(found["voxels"]) == 5 and int(found["unassigned"]) == 2


def test_leaving_a_particle_out_is_not_rewarded() -> None:
    """One common cluster of the unassigned points would score an overlooked particle as found."""
    true = np.repeat([0, 1], [30, 10])
    pred = np.where(true == 0, 0, -1)
    found = scores(pred, true)
    assert found["ari"] == pytest.approx(adjusted_rand_score(true, np.r_[np.zeros(30), 1 + np.arange(10)]))
    assert found["ari"] < 0.95 and found["ari_published"] == 1
    assert found["purity"] == 1 and found["efficiency"] == 0.5


@pytest.mark.parametrize(
    ("pred", "true", "ari", "ami", "purity", "efficiency", "sbd", "published"),
    [
        ([0], [0], 1, 1, 1, 1, 1, 1),  # one voxel
        ([2, 2, 2], [5, 5, 5], 1, 1, 1, 1, 1, 1),  # one cluster
        ([-1, -1, -1], [5, 5, 5], 0, 0, math.nan, 0, 0, math.nan),  # nothing found
        ([0, 1, 2], [5, 5, 5], 0, 0, 1, 1 / 3, 0.5, 0),  # all split
        ([0, 0, 0], [4, 5, 6], 0, 0, 1 / 3, 1, 0.5, 0),  # all merged
        ([2, 1, 0], [4, 5, 6], 1, 1, 1, 1, 1, 1),  # all single points
        ([0, 0], [-1, -1], *[math.nan] * 6),  # no true instance
    ],
)  # fmt: skip
def test_extremes(pred, true, ari, ami, purity, efficiency, sbd, published) -> None:
    found = scores(pred, true)
    expected = {
        "ari": ari, "ami": ami, "purity": purity, "efficiency": efficiency, "sbd": sbd, "ari_published": published
    }  # fmt: skip
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_large_clusters_do_not_overflow() -> None:
    """Products of pair counts leave int64 at clusters of 78,000 points: two of 200,000 are in exact arithmetic."""
    n = 200_000
    true = np.repeat([0, 1], n)
    pred = np.where(np.arange(2 * n) < n + 1000, 0, 1)
    both, a, every = math.comb(n, 2) + math.comb(1000, 2) + math.comb(n - 1000, 2), 2 * math.comb(n, 2), 0
    b, every = math.comb(n + 1000, 2) + math.comb(n - 1000, 2), math.comb(2 * n, 2)
    assert a * b > 2**63
    expected = (both * every - a * b) / ((a + b) * every / 2 - a * b)
    found = scores(pred, true)
    assert float(found["ari"]) == pytest.approx(expected, rel=1e-12)
    assert float(found["ari_published"]) == pytest.approx(expected, rel=1e-12)
    assert 0.9 < float(found["ami"]) < 1


def test_far_ids_and_order_of_points() -> None:
    pred, true, _ = events([300], 0)
    expected = scores(pred, true)
    far = np.where(pred >= 0, pred + 2**62, -1)  # event x largest id would not fit in int64
    two = scores(np.r_[far, pred], np.r_[true, true], [0, 300, 600])
    mixed = np.random.default_rng(1).permutation(300)
    shuffled = scores(pred[mixed], true[mixed])
    for name in SCORES:
        assert float(two[name][0]) == float(two[name][1]) == pytest.approx(float(expected[name]), rel=1e-12)
        assert float(shuffled[name]) == pytest.approx(float(expected[name]), rel=1e-12)


def filled(pred, true, offsets, cuts: list[int]) -> ClusterScores:
    metric = ClusterScores()
    for low, high in itertools.pairwise(cuts):
        rows = slice(offsets[low], offsets[high])
        part = offsets[low : high + 1] - offsets[low]
        metric.update(*(torch.from_numpy(x) for x in (pred[rows], true[rows], part)))
    return metric


def test_means_do_not_depend_on_batches_or_ranks() -> None:
    counts = [100, 0, 1, 50, 400, 3, 80, 9]
    pred, true, offsets = events(counts, 5)
    pred[offsets[3] : offsets[4]] = -1  # an event without any prediction
    whole = filled(pred, true, offsets, [0, 8]).compute()
    single = filled(pred, true, offsets, list(range(9)))
    merged = filled(pred, true, offsets, [0, 3])
    add_states(merged, filled(pred, true, offsets, [3, 5, 8]))
    table = scores(pred, true, offsets)
    for result in (single.compute(), merged.compute()):
        for name, value in whole.items():
            assert torch.equal(result[name], value), name
    for name in SCORES:
        assert float(whole[name]) == pytest.approx(float(table[name].nanmean()), abs=1e-10)
    assert whole["events"] == 8 and whole["events_scored"] == 7
    fraction = int(whole["unassigned"]) / int(whole["voxels"])
    assert float(whole["unassigned_fraction"]) == pytest.approx(fraction, rel=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for offsets in ([0], [0, 0, 0]):
        metric = ClusterScores()
        metric.update(nothing, nothing, torch.tensor(offsets))
        result = metric.compute()
        assert all(result[name].isnan() for name in SCORES)
        assert result["events"] == len(offsets) - 1 and result["events_scored"] == 0
    assert ClusterScores().compute()["ari"].isnan()


@pytest.mark.parametrize(
    ("pred", "true", "offsets", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), torch.tensor([0, 3]), "pred_instance has dtype torch.float32"),
        (torch.zeros(3).bool(), torch.zeros(3).long(), torch.tensor([0, 3]), "torch.bool"),
        (torch.zeros(3).long(), torch.zeros(4).long(), torch.tensor([0, 4]), r"pred_instance has shape \(3,\)"),
        (torch.zeros(3).long(), torch.zeros(3).long() - 2, torch.tensor([0, 3]), "true_instance holds -2"),
        (torch.zeros(3).long(), torch.zeros(3).long(), torch.tensor([0, 2, 1, 3]), "must rise"),
        (torch.zeros(3).long(), torch.zeros(3).long(), torch.tensor([1, 3]), "must rise"),
        (torch.zeros(3).long(), torch.zeros(3).long(), torch.tensor([0, 3]).int(), "int64"),
    ],
)
def test_bad_input_leaves_no_trace(pred, true, offsets, message) -> None:
    metric = ClusterScores()
    with pytest.raises(ValueError, match=message):
        metric.update(pred, true, offsets)
    assert int(metric.events) == 0 and int(metric.counted.sum()) == 0
