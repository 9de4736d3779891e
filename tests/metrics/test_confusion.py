"""ConfusionScores against scikit-learn, over batch splits, ranks and bad inputs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics import confusion_matrix, jaccard_score, precision_recall_fscore_support

from nufm.metrics.confusion import ConfusionScores

C = 5


def labels(n: int, seed: int, ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    target = rng.choice(C, n, p=[0.4, 0.35, 0.05, 0.1, 0.1])
    pred = np.where(rng.random(n) < 0.7, target, rng.integers(0, C, n))
    target = np.where(rng.random(n) < ignored, -1, target)
    return torch.from_numpy(pred), torch.from_numpy(target)


def sklearn_scores(pred: torch.Tensor, target: torch.Tensor) -> dict[str, np.ndarray]:
    keep = target != -1
    p, t = pred[keep].numpy(), target[keep].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, support = precision_recall_fscore_support(
            t, p, labels=range(C), average=None, zero_division=np.nan
        )
        iou = jaccard_score(t, p, labels=range(C), average=None, zero_division=0)
    # scikit-learn's Jaccard score cannot return NaN; a class absent on both sides has no IoU.
    iou = np.where([(t == c).any() or (p == c).any() for c in range(C)], iou, np.nan)
    return {"precision": precision, "recall": recall, "f1": f1, "iou": iou, "support": support}


def check(result: dict[str, torch.Tensor], pred: torch.Tensor, target: torch.Tensor) -> None:
    expected = sklearn_scores(pred, target)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name].numpy(), value, rtol=1e-12, err_msg=name)
    means = {"macro_precision": "precision", "macro_recall": "recall", "macro_f1": "f1", "miou": "iou"}
    for mean, name in means.items():
        np.testing.assert_allclose(float(result[mean]), np.nanmean(expected[name]), rtol=1e-12, err_msg=mean)
    right = (pred == target)[target != -1]
    assert float(result["accuracy"]) == pytest.approx(float(right.double().mean()), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 5000])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_scikit_learn(n: int, seed: int) -> None:
    pred, target = labels(n, seed, ignored=0.0 if n == 1 else 0.2)
    metric = ConfusionScores(C)
    metric.update(pred, target)
    check(metric.compute(), pred, target)
    keep = target != -1
    np.testing.assert_array_equal(
        metric.compute()["confusion"].numpy(), confusion_matrix(target[keep], pred[keep], labels=range(C))
    )


def test_does_not_depend_on_the_batches() -> None:
    pred, target = labels(4000, 3)
    whole = ConfusionScores(C)
    whole.update(pred, target)
    for sizes in ([1] * 10 + [3990], [1000] * 4, [3999, 1]):
        parts = ConfusionScores(C)
        for p, t in zip(pred.split(sizes), target.split(sizes), strict=True):
            parts.update(p, t)
        for name, value in whole.compute().items():
            assert torch.equal(parts.compute()[name], value), name


def test_absent_classes() -> None:
    """Class 3, neither true nor predicted, is left out; 4, only predicted, counts as 0."""
    target = torch.tensor([0, 0, 1, 1, 2, 2])
    pred = torch.tensor([0, 0, 1, 4, 0, 1])
    metric = ConfusionScores(C)
    metric.update(pred, target)
    result = metric.compute()
    check(result, pred, target)
    assert result["f1"][4] == 0 and result["f1"][2] == 0 and result["f1"][3].isnan()
    assert result["recall"][4].isnan() and result["precision"][2].isnan()
    # F1 by hand: class 0 = 2*2/(2+3), class 1 = 2*1/(2+2)
    assert float(result["macro_f1"]) == pytest.approx((0.8 + 0.5 + 0 + 0) / 4)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    for pred, target in ((empty, empty), (torch.tensor([1, 99, -5]), torch.tensor([-1, -1, -1]))):
        metric = ConfusionScores(C)
        metric.update(pred, target)
        result = metric.compute()
        for name in ("precision", "recall", "f1", "iou", "macro_f1", "miou", "accuracy"):
            assert result[name].isnan().all(), name
        assert result["support"].tolist() == [0] * C
    assert ConfusionScores(C).compute()["macro_f1"].isnan()


def test_single_class_and_narrow_dtypes() -> None:
    metric = ConfusionScores(1)
    metric.update(torch.zeros(3, dtype=torch.uint8), torch.tensor([0, 0, -1], dtype=torch.int8))
    assert metric.compute()["macro_f1"] == 1 and metric.compute()["support"].tolist() == 2
    # 100 * 20 + 19 is beyond int8
    metric = ConfusionScores(101)
    metric.update(torch.tensor([19], dtype=torch.int8), torch.tensor([100], dtype=torch.int8))
    assert metric.compute()["confusion"][100, 19] == 1


def test_counts_beyond_float32() -> None:
    metric = ConfusionScores(2)
    metric.confusion += 2**24
    metric.update(torch.tensor([0]), torch.tensor([0]))
    assert metric.compute()["confusion"][0, 0] == 2**24 + 1


def test_reset() -> None:
    metric = ConfusionScores(C)
    pred, target = labels(50, 0)
    metric.update(pred.flip(0), target)
    metric.reset()
    metric.update(pred, target)
    check(metric.compute(), pred, target)


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), r"\(3,\).*\(4,\)"),
        (torch.zeros(3, C), torch.zeros(3, dtype=torch.int64), "argmax"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "pred has dtype torch.float32"),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3), "target has dtype torch.float32"),
        (torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.int64), "torch.bool"),
        (torch.tensor([0, 5]), torch.tensor([0, 0]), "pred holds class 5"),
        (torch.tensor([0, -1]), torch.tensor([0, 0]), "pred holds class -1"),
        (torch.tensor([0, 0]), torch.tensor([0, 5]), r"target holds class 5 .*0\.\.4 or -1"),
        (torch.tensor([0, 0]), torch.tensor([0, -2]), "target holds class -2"),
    ],
)
def test_bad_input_leaves_no_trace(pred: torch.Tensor, target: torch.Tensor, message: str) -> None:
    metric = ConfusionScores(C)
    with pytest.raises(ValueError, match=message):
        metric.update(pred, target)
    assert int(metric.confusion.sum()) == 0


def test_bad_construction_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        ConfusionScores(0)
    with pytest.raises(ValueError, match="ignore_index"):
        ConfusionScores(5, ignore_index=2)


def _rank(rank: int, world: int, store: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    pred, target = labels(301, 7)
    share = slice(0, 250) if rank == 0 else slice(250, 301)  # unequal shares
    metric = ConfusionScores(C)
    metric.update(pred[share], target[share])
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path) -> None:
    # Spawned: a forked child of a process that has used OpenMP threads waits for them forever.
    mp.start_processes(_rank, args=(2, str(tmp_path / "store"), str(tmp_path)), nprocs=2, start_method="spawn")
    pred, target = labels(301, 7)
    alone = ConfusionScores(C)
    alone.update(pred, target)
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in alone.compute().items():
            assert torch.equal(result[name], value), (rank, name)
