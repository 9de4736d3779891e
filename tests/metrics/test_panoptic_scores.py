"""Panoptic scores against brute force, scikit-learn and events worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from metric_states import add_states
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from nufm.metrics.panoptic import PanopticScores, greedy_matching

C, STUFF = 5, 4
FIELDS = ("pred_instance", "pred_label", "true_instance", "true_label")


def events(counts: list[int], seed: int, wrong: float = 0.2) -> dict[str, np.ndarray]:
    """Random events: instances with a class and some points of another; stuff, void and unassigned points."""
    rng = np.random.default_rng(seed)
    parts = {name: [] for name in FIELDS}
    for n in counts:
        true = rng.choice(7, n, p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.1, 0.05]) - 1
        kind = rng.integers(0, C, 6)
        label = np.where(true >= 0, kind[true], STUFF)
        label = np.where(rng.random(n) < 0.1, rng.integers(-1, C, n), label)
        label = np.where((true < 0) & (rng.random(n) < 0.3), -1, label)
        pred = np.where(rng.random(n) < wrong, rng.integers(-1, 8, n), rng.permutation(6)[true])
        pred = np.where(true < 0, rng.choice([-1, 2], n, p=[0.8, 0.2]), pred)
        guess = np.where(rng.random(8) < 0.6, np.r_[kind, 0, 0], rng.integers(-1, C, 8))
        values = (11 * pred + (pred < 0) * 10, np.where(pred >= 0, guess[pred], STUFF), true, label)
        for name, value in zip(FIELDS, values, strict=True):
            parts[name].append(value)
    table = {name: np.concatenate([*value, np.zeros(0)]).astype(np.int64) for name, value in parts.items()}
    return table | {"offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)}


def filled(table: dict[str, np.ndarray], cuts: list[int] | None = None, **options) -> PanopticScores:
    metric = PanopticScores(C, **options)
    offsets = table["offsets"]
    for low, high in itertools.pairwise(cuts or [0, len(offsets) - 1]):
        part = {name: table[name][offsets[low] : offsets[high]] for name in FIELDS}
        part["offsets"] = offsets[low : high + 1] - offsets[low]
        metric.update(**{name: torch.from_numpy(value) for name, value in part.items()})
    return metric


def one(pred_instance, pred_label, true_instance, true_label, **options) -> dict[str, torch.Tensor]:
    values = (pred_instance, pred_label, true_instance, true_label)
    table = {name: np.array(value, dtype=np.int64) for name, value in zip(FIELDS, values, strict=True)}
    return filled(table | {"offsets": np.array([0, len(pred_instance)])}, **options).compute()


def modes(instance: np.ndarray, label: np.ndarray) -> dict[int, int]:
    kinds = {}
    for i in np.unique(instance[instance >= 0]):
        votes = label[(instance == i) & (label >= 0)]
        kinds[int(i)] = int(np.bincount(votes).argmax()) if len(votes) else -1
    return kinds


def by_hand(table: dict[str, np.ndarray], threshold: float, stuff: int | None, void: str) -> dict:
    """The definitions with loops over events, instances and pairs."""
    total = {"agnostic": [0, 0, 0, []], "aware": {c: [0, 0, 0, []] for c in range(-1, C)}, "pairs": []}
    for low, high in itertools.pairwise(table["offsets"]):
        pred, pred_label, true, true_label = (table[name][low:high].copy() for name in FIELDS)
        if void == "excluded":
            keep = (true >= 0) | (true_label >= 0)
            pred, pred_label, true, true_label = (x[keep] for x in (pred, pred_label, true, true_label))
        kinds = []
        for instance, label in ((pred, pred_label), (true, true_label)):
            kind = modes(instance, label)
            for i in [i for i, k in kind.items() if k == stuff]:
                instance[instance == i] = -1
                del kind[i]
            kinds.append(kind)
        kind_pred, kind_true = kinds
        iou = {
            (i, j): ((true == i) & (pred == j)).sum() / ((true == i) | (pred == j)).sum()
            for i in kind_true
            for j in kind_pred
        }

        def match(pairs, iou=iou):
            found = []
            for _, i, j in sorted((-iou[pair], *pair) for pair in pairs):
                if iou[i, j] >= threshold and all(i != k and j != m for k, m in found):
                    found.append((i, j))
            return found

        found = match(iou)
        counts = total["agnostic"]
        counts[0] += len(found)
        counts[1] += len(kind_pred) - len(found)
        counts[2] += len(kind_true) - len(found)
        counts[3] += [iou[p] for p in found]
        total["pairs"] += [(kind_true[i], kind_pred[j], iou[i, j]) for i, j in found]
        excused = {j for i, j in found if kind_true[i] == -1}
        aware_true = {i: k for i, k in kind_true.items() if k >= 0}
        aware_pred = {j: k for j, k in kind_pred.items() if j not in excused}
        found = match([(i, j) for i, k in aware_true.items() for j, m in aware_pred.items() if k == m])
        for c, counts in total["aware"].items():
            mine = [p for p in found if aware_true[p[0]] == c]
            counts[0] += len(mine)
            counts[1] += sum(k == c for k in aware_pred.values()) - len(mine)
            counts[2] += sum(k == c for k in aware_true.values()) - len(mine)
            counts[3] += [iou[p] for p in mine]
    return total


def quality(counts) -> tuple[float, float, float]:
    tp, fp, fn, iou = counts
    below = tp + fp / 2 + fn / 2
    nan = math.nan
    return sum(iou) / below if below else nan, tp / below if below else nan, sum(iou) / tp if tp else nan


def near(value: float):
    return pytest.approx(value, abs=1e-10, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.5, 0.1, 0.75])
@pytest.mark.parametrize(("stuff", "void"), [(STUFF, "excluded"), (None, "excluded"), (STUFF, "counted")])
def test_equal_to_the_definitions(seed: int, threshold: float, stuff: int | None, void: str) -> None:
    table = events([120, 0, 1, 60, 300, 4, 2], seed, wrong=0.3)
    total = by_hand(table, threshold, stuff, void)
    result = filled(table, iou_threshold=threshold, stuff=stuff, void=void).compute()
    pooled = [sum(x) for x in zip(*(c[:3] for c in total["aware"].values()), strict=True)]
    pooled.append([v for c in total["aware"].values() for v in c[3]])
    for prefix, counts in (("agnostic", total["agnostic"]), ("aware", pooled)):
        for name, value in zip(("pq", "rq", "sq"), quality(counts), strict=True):
            assert float(result[f"{prefix}_{name}"]) == near(value), (prefix, name)
        tp, fp, fn, _ = counts
        assert float(result[f"{prefix}_precision"]) == near(tp / (tp + fp))
        assert float(result[f"{prefix}_recall"]) == near(tp / (tp + fn))
        assert float(result[f"{prefix}_f1"]) == near(2 * tp / (2 * tp + fp + fn))
        assert float(result[f"{prefix}_mean_iou"]) == near(float(result[f"{prefix}_sq"]))
        product = float(result[f"{prefix}_rq"] * result[f"{prefix}_sq"])
        assert float(result[f"{prefix}_pq"]) == (near(product) if tp else 0)
    supported = []
    for c in range(C):
        expected = quality(total["aware"][c])
        for name, value in zip(("pq", "rq", "sq"), expected, strict=True):
            assert float(result[f"class_{name}"][c]) == near(value), (c, name)
        if total["aware"][c][0] + total["aware"][c][2]:
            supported.append(expected[0])
            assert c != stuff
    assert float(result["mean_pq"]) == near(np.mean(supported))
    right = [iou for t, p, iou in total["pairs"] if t == p >= 0]
    published = quality((len(right), *total["agnostic"][1:3], right))
    # Two instances of unknown class are not "right".
    assert float(result["published_pq"]) == near(published[0])

    t, p = np.array([pair[:2] for pair in total["pairs"] if pair[0] >= 0]).T
    confusion = confusion_matrix(t, p % (C + 1), labels=range(C + 1))
    np.testing.assert_array_equal(result["confusion"].numpy(), confusion[:C])
    with np.errstate(all="ignore"):
        scores = precision_recall_fscore_support(t, p, labels=range(C), average=None, zero_division=np.nan)
    for name, value in zip(("precision", "recall", "f1"), scores[:3], strict=True):
        np.testing.assert_allclose(result[f"class_{name}"].numpy(), value, atol=1e-12, err_msg=name)
        assert float(result[f"macro_{name}"]) == near(np.nanmean(value[scores[3] > 0]))
    assert float(result["class_accuracy"]) == near(np.mean(t == p))


def test_quality_by_hand() -> None:
    """Truth: a track of 6 points (class 2), a shower of 4 (class 0). Found: 5 points of the track and one of the
    shower as class 2, IoU 5/7; 2 points of the shower as class 1, IoU 2/4; 1 background point as class 0."""
    result = one(
        [0, 0, 0, 0, 0, -1, 0, 1, 1, -1, 2],
        [2, 2, 2, 2, 2, -1, 2, 1, 1, -1, 0],
        [3, 3, 3, 3, 3, 3, 5, 5, 5, 5, -1],
        [2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 4],
        stuff=STUFF,
    )
    assert float(result["agnostic_sq"]) == near((5 / 7 + 1 / 2) / 2)
    assert float(result["agnostic_rq"]) == near(2 / 2.5)
    assert float(result["agnostic_pq"]) == near((5 / 7 + 1 / 2) / 2.5)
    assert float(result["aware_pq"]) == near(5 / 7 / (1 + 2 / 2 + 1 / 2))
    assert float(result["published_pq"]) == near(5 / 7 / (1 + 1 / 2))
    np.testing.assert_allclose(result["class_pq"], [0, 0, 5 / 7, np.nan, np.nan], atol=1e-10)
    assert float(result["mean_pq"]) == near(5 / 14)  # class 1 has no support
    assert result["confusion"][2, 2] == 1 and result["confusion"][0, 1] == 1 and result["confusion"].sum() == 2
    assert result["true_instances"] == 2 and result["pred_instances"] == 3 and result["support"].sum() == 2
    assert result["stuff_iou"] == 0


def test_class_of_an_instance_is_the_mode_of_its_own_points() -> None:
    """The published evaluator looks up the class of instance i at *point* i (panda.md, section 6).

    Here that lookup gets both classes wrong, and differently for the prediction, which is the truth under other
    ids: no pair would have equal classes. The last point of each instance misleads too.
    """
    true = np.repeat([1, 0, 1, 0], [2, 6, 6, 2])
    label = np.where(true == 0, 3, 1)
    label[1], label[13], label[15] = 3, 3, 1
    pred = np.where(true == 0, 2, 0)
    assert (label[[0, 1]] != [3, 1]).all() and (label[[0, 1]] != label[[2, 0]]).all()
    result = one(pred, label, true, label)
    assert result["aware_pq"] == 1 and result["class_accuracy"] == 1 and result["macro_f1"] == 1
    assert result["support"].tolist() == [0, 1, 0, 1, 0]
    assert result["confusion"][3, 3] == 1 and result["confusion"][1, 1] == 1
    swapped = one(pred, np.where(label == 3, 1, 3), true, label)
    assert swapped["aware_pq"] == 0 and swapped["class_accuracy"] == 0 and swapped["agnostic_pq"] == 1


def test_ties_of_the_mode_go_to_the_lowest_class() -> None:
    result = one([0] * 4, [3, 1, 1, 3], [0] * 4, [2, -1, 2, 1])
    assert result["confusion"][2, 1] == 1 and result["confusion"].sum() == 1


def test_equal_overlaps_go_to_the_smaller_ids() -> None:
    """Two halves of one particle, IoU 1/2 each; and one prediction over two particles."""
    half = one([7, 7, 3, 3], [1, 1, 0, 0], [0] * 4, [1] * 4)
    assert half["agnostic_recall"] == 1 and half["agnostic_precision"] == 0.5
    assert half["confusion"][1, 0] == 1  # prediction 3
    assert half["aware_recall"] == 1 and half["aware_sq"] == 0.5  # prediction 7 has the right class
    both = one([0] * 4, [1] * 4, [5, 5, 2, 2], [0, 0, 1, 1])
    assert both["agnostic_recall"] == 0.5 and both["confusion"][1, 1] == 1
    assert one([0] * 4, [1] * 4, [5, 5, 2, 2], [0, 0, 1, 1], iou_threshold=0.500001)["agnostic_recall"] == 0


def test_void_points() -> None:
    """A prediction of 2 right points and 3 of which the truth knows nothing; background is not void."""
    pred, true = [0] * 5, [0, 0, -1, -1, -1]
    assert one(pred, [1] * 5, true, [1, 1, -1, -1, -1])["agnostic_mean_iou"] == 1
    assert one(pred, [1] * 5, true, [1, 1, -1, -1, -1], void="counted")["agnostic_recall"] == 0
    assert one(pred, [1] * 5, true, [1, 1, 4, 4, 4])["agnostic_recall"] == 0
    only_void = one([0, 0], [1, 1], [-1, -1], [-1, -1])
    assert only_void["pred_instances"] == 0 and only_void["agnostic_pq"].isnan()


def test_unknown_classes() -> None:
    """A true particle of unknown class is scored without regard to class only; so is what was found for it."""
    result = one([0, 0, 1, 1], [2, 2, -1, -1], [0, 0, 1, 1], [-1, -1, 3, 3])
    assert result["agnostic_pq"] == 1 and result["unclassified"] == 1
    assert result["aware_precision"] == 0 and result["aware_recall"] == 0  # the second: found, without a class
    assert result["pred_instances"] == 2 and result["confusion"][3, C] == 1 and result["confusion"].sum() == 1
    assert result["class_recall"][3] == 0
    alone = one([0, 0], [2, 2], [0, 0], [-1, -1])
    assert alone["agnostic_pq"] == 1 and alone["aware_pq"].isnan()


def test_stuff_forms_no_instances() -> None:
    args = ([0, 0, 1, 1, -1], [1, 1, 4, 4, 4], [0, 0, 1, 1, -1], [1, 1, 4, 4, 4])
    result = one(*args, stuff=STUFF)
    assert result["true_instances"] == 1 and result["pred_instances"] == 1 and result["stuff_iou"] == 1
    result = one(*args)
    assert result["true_instances"] == 2 and "stuff_iou" not in result


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize(
    ("args", "pq"),
    [
        (([], [], [], []), math.nan),
        (([0], [1], [0], [1]), 1),  # one voxel
        (([-1] * 3, [-1] * 3, [0, 0, 1], [1, 1, 2]), 0),  # nothing found
        (([0, 0, 1], [1, 1, 2], [-1] * 3, [4] * 3), 0),  # nothing there
        (([-1, -1], [4, 4], [-1, -1], [4, 4]), math.nan),  # neither
        (([0] * 3, [1] * 3, [0] * 3, [1] * 3), 1),  # one instance
    ],
)
def test_edges(args, pq) -> None:
    result = one(*args, stuff=STUFF)
    assert float(result["agnostic_pq"]) == near(pq) and float(result["aware_pq"]) == near(pq)
    assert PanopticScores(C).compute()["mean_pq"].isnan()


def test_does_not_depend_on_batches_or_ranks() -> None:
    table = events([100, 0, 1, 50, 400, 3, 80, 9], 3)
    whole = filled(table, stuff=STUFF).compute()
    merged = filled(table, [0, 3], stuff=STUFF)
    add_states(merged, filled(table, [3, 5, 8], stuff=STUFF))
    shifted = dict(table, pred_instance=np.where(table["pred_instance"] >= 0, table["pred_instance"] + 2**62, -1))
    mixed = {}
    for name in FIELDS:  # another order of the points within their event
        mixed[name] = np.concatenate([table[name][a:b][::-1] for a, b in itertools.pairwise(table["offsets"])])
    mixed["offsets"] = table["offsets"]
    others = [filled(table, list(range(9)), stuff=STUFF), merged]
    others += [filled(t, stuff=STUFF) for t in (shifted, mixed)]
    for metric in others:
        for name, value in metric.compute().items():
            torch.testing.assert_close(value, whole[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_matching_in_passes(seed: int) -> None:
    """Against taking one pair at a time, at thresholds where the order matters and chains occur."""
    rng = np.random.default_rng(seed)
    pairs = np.argwhere(rng.random((30, 25)) < 0.3)
    iou = np.round(rng.random(len(pairs)), 1)  # many ties
    taken, busy_true, busy_pred = set(), set(), set()
    for k in np.lexsort((pairs[:, 1], pairs[:, 0], -iou)):
        if iou[k] >= 0.2 and pairs[k, 0] not in busy_true and pairs[k, 1] not in busy_pred:
            taken.add(int(k))
            busy_true.add(pairs[k, 0])
            busy_pred.add(pairs[k, 1])
    true, pred, value = (torch.from_numpy(x.copy()) for x in (pairs[:, 0], pairs[:, 1], iou))
    found = greedy_matching(true, pred, value, value >= 0.2, 30, 25)
    assert set(found.nonzero()[:, 0].tolist()) == taken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_label": torch.tensor([0, 1, 5])}, r"pred_label holds class 5, expected 0\.\.4"),
        ({"true_label": torch.tensor([0, -2, 0])}, "true_label holds -2"),
        ({"true_instance": torch.zeros(3)}, "true_instance has dtype torch.float32"),
        ({"pred_instance": torch.zeros(2, dtype=torch.int64)}, r"pred_instance has shape \(2,\)"),
        ({"offsets": torch.tensor([0, 2])}, r"expected \(2,\)"),
        ({"offsets": torch.tensor([0.0, 3.0])}, "offsets must be int64"),
    ],
)
def test_bad_input_leaves_no_trace(change, message) -> None:
    metric = PanopticScores(C)
    good = {name: torch.zeros(3, dtype=torch.int64) for name in FIELDS} | {"offsets": torch.tensor([0, 3])}
    with pytest.raises(ValueError, match=message):
        metric.update(**(good | change))
    assert int(metric.agnostic.sum()) == 0 and int(metric.support.sum()) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 3, "iou_threshold": 0}, "iou_threshold"),
        ({"num_classes": 3, "iou_threshold": 1.1}, "iou_threshold"),
        ({"num_classes": 3, "stuff": 3}, "stuff is 3"),
        ({"num_classes": 3, "void": "ignored"}, "void"),
    ],
)
def test_bad_construction_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        PanopticScores(**options)
