"""Evaluation of a model against scikit-learn and hand-worked events; exact over batches; what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    adjusted_rand_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)

sys.path.insert(0, str(Path(__file__).resolve().parent))
from evaluated import Noise, Told, an_event, pretrained

from nufm.data.event import MOTIF_NAMES, PID_NAMES
from nufm.data.tasks import TASKS
from nufm.data.transforms import GridSample, LogEnergy, NormalizeCoord
from nufm.evaluation import Evaluation, evaluate
from nufm.models.ptv3 import PointTransformerV3

EVENTS = [an_event("noise", n, seed) for seed, n in enumerate((120, 60, 200, 1, 90))]


def points(model, events) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, prediction, probabilities of all labelled voxels, event by event."""
    found = [model.predict([e], progress=False)[0] for e in events]
    truth = np.concatenate([e.motif for e in events])
    label = np.concatenate([p.label for p in found])
    probability = np.concatenate([p.probability for p in found])
    known = truth >= 0
    return truth[known], label[known], probability[known]


# ---------------------------------------------------------------------------------------- semantic


def test_scores_of_voxels_are_scikit_learns():
    model = pretrained(Noise(5), "motif")
    found = evaluate(model, EVENTS, progress=False)
    truth, label, probability = points(model, EVENTS)
    expected = precision_recall_fscore_support(truth, label, labels=range(5), zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(found["points"][name], values, atol=1e-12)
    assert found["points"]["macro_f1"] == pytest.approx(expected[2].mean(), abs=1e-12)
    assert found["points"]["accuracy"] == pytest.approx(accuracy_score(truth, label))
    assert found["points"]["unclassified"] == 0 and np.array(found["points"]["confusion"]).shape == (5, 6)
    assert found["events"] == 5 and found["voxels"] == 471 and found["classes"] == list(MOTIF_NAMES)
    brier = sum(brier_score_loss(truth == c, probability[:, c]) for c in range(5))
    assert found["calibration"]["brier"] == pytest.approx(brier, abs=1e-6)
    assert found["calibration"]["nll"] == pytest.approx(log_loss(truth, probability, labels=range(5)), abs=1e-5)
    assert found["calibration"]["accuracy"] == found["points"]["accuracy"]


def test_scores_of_each_event():
    model, collected = pretrained(Noise(5), "motif"), Evaluation(TASKS["motif"])
    evaluate(model, EVENTS, progress=False, collected=collected)
    assert [e["name"] for e in collected.per_event] == [e.name for e in EVENTS]
    for row, event in zip(collected.per_event, EVENTS, strict=True):
        truth, label, _ = points(model, [event])
        if len(truth) == 0:
            assert row["score"] is None and row["accuracy"] is None
            continue
        expected = f1_score(truth, label, labels=np.unique(truth), average="macro")
        assert row["score"] == pytest.approx(expected) and row["accuracy"] == pytest.approx((truth == label).mean())
        assert row["voxels"] == len(event)


@pytest.mark.parametrize("task", ["motif", "particle"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_no_bit_depends_on_the_batches(task, batch_size):
    model = pretrained(Noise(len(TASKS[task].classes), task == "particle"), task)
    whole, cut = (Evaluation(TASKS[task]) for _ in range(2))
    expected = evaluate(model, EVENTS, batch_size=100, progress=False, collected=whole)
    assert evaluate(model, EVENTS, batch_size=batch_size, progress=False, collected=cut) == expected
    assert cut.per_event == whole.per_event


def test_classes_that_do_not_occur():
    """Truth: 4 of class 0, 2 of class 1. Predicted: 3 right of class 0, one 1; one 1, one 2. By hand: F1 of class 0 is
    6/7, of class 1 2/4; class 2 was predicted and never occurs."""
    truth, label = np.array([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 2])
    event = an_event("hand", 6, motif=truth)
    answer = {"label": label, "confidence": torch.full((6,), 0.5)}
    scores = evaluate(pretrained(Told({event.name: answer}), "motif"), [event], progress=False)["points"]
    assert scores["f1"] == [pytest.approx(6 / 7), pytest.approx(1 / 2), 0.0, None, None]
    assert scores["macro_f1"] == pytest.approx((6 / 7 + 1 / 2) / 3)
    assert scores["macro_f1_present"] == pytest.approx((6 / 7 + 1 / 2) / 2)
    assert scores["support"] == [4, 2, 0, 0, 0]


def test_dropped_voxels_count():
    """A lattice of five voxels keeps one voxel of each cell; all voxels are scored."""
    transforms = (NormalizeCoord(383.5), LogEnergy(), GridSample(0.0075))
    model = pretrained(Noise(5), "motif", transforms)
    event = an_event("dense", 400, seed=3)
    assert len(model.batch([event])) < 350
    found = evaluate(model, [event], progress=False)
    assert sum(found["points"]["support"]) == (event.motif >= 0).sum()


# ---------------------------------------------------------------------------------------- panoptic


def hand_made() -> tuple[object, dict]:
    """Ten voxels of a muon (2), four of a proton (4), three of a kaon (5, stuff), three low-energy ones.

    Predicted: instance 0 covers eight voxels of the muon and two low-energy ones, as muon (IoU 8/12); instance 1 covers
    three voxels of the proton, as pion (IoU 3/4); the other proton voxel and one of the muon's are left without class;
    the rest is stuff.
    """
    particle = np.repeat([0, 1, 2, -1], [10, 4, 3, 3])
    pid = np.repeat([2, 4, 5, 5], [10, 4, 3, 3])
    momentum = np.repeat([0.5, 1.0, 0.4, -1.0], [10, 4, 3, 3]).astype(np.float32)
    event = an_event("panoptic", 20, particle=particle, pid=pid, momentum=momentum)
    label = torch.tensor([2] * 8 + [-1, 5] + [3] * 3 + [-1] + [5] * 3 + [2, 2, 5])
    instance = torch.where(label == 2, 0, torch.where(label == 3, 1, -1))
    found = torch.where(instance == 0, 0.6, torch.where(instance == 1, 0.9, torch.nan))
    return event, {"label": label, "confidence": torch.full((20,), 0.8), "instance": instance, "momentum": found}


def test_a_panoptic_event_by_hand():
    event, answer = hand_made()
    found = evaluate(pretrained(Told({event.name: answer}), "particle"), [event], progress=False)
    p, c, points = found["panoptic"], found["clusters"], found["points"]
    assert (p["true_instances"], p["pred_instances"]) == (2, 2), "kaons are stuff, not objects"
    assert p["agnostic_rq"] == 1.0 and p["agnostic_sq"] == pytest.approx((8 / 12 + 3 / 4) / 2, abs=1e-9)
    # Class-aware: the muon alone matches; the proton is missed, and the pion false: PQ = (2/3) / (1 + 1/2 + 1/2).
    assert p["aware_pq"] == pytest.approx(8 / 12 / 2, abs=1e-9) and p["class_accuracy"] == 0.5
    assert p["class_pq"][2] == pytest.approx(8 / 12, abs=1e-9) and p["class_pq"][4] == 0.0
    assert p["mean_pq"] == pytest.approx(8 / 12 / 2, abs=1e-9)
    # Purity over the voxels of true objects: all 8 and all 3; efficiency 8/10 and 3/4.
    assert c["purity"] == 1.0 and c["efficiency"] == pytest.approx((0.8 + 0.75) / 2)
    assert c["unassigned"] == 3 and c["voxels"] == 14
    true = event.particle[:14]
    pred = np.array([0] * 8 + [100, 101] + [1] * 3 + [102])  # each unassigned voxel alone
    assert c["ari"] == pytest.approx(adjusted_rand_score(true, pred), abs=1e-9)
    # Voxels: of the 20, 8 of the muon and 4 of the stuff are right.
    assert points["accuracy"] == pytest.approx(12 / 20) and points["unclassified"] == 2
    assert points["recall"][2] == pytest.approx(0.8) and points["precision"][2] == pytest.approx(0.8)
    assert points["confusion"][2] == [0, 0, 8, 0, 0, 1, 1] and points["confusion"][4] == [0, 0, 0, 3, 0, 0, 1]
    # The 18 voxels with a class are sure at 0.8, and 12 of them are right.
    assert found["calibration"]["expected_error"] == pytest.approx(0.8 - 12 / 18, abs=1e-6)
    assert found["classes"] == list(PID_NAMES) and found["stuff"] == 5


def test_momentum_by_hand():
    """The muon: 0.6 found of 0.5 GeV/c; the proton: 0.9 of 1.0. The kaon is no object."""
    event, answer = hand_made()
    found = evaluate(pretrained(Told({event.name: answer}), "particle"), [event], progress=False)["momentum"]
    assert set(found) == {"all", "muon", "proton"} and found["all"]["particles"] == 2
    assert found["muon"]["bias"] == pytest.approx(0.2, abs=1e-6)
    assert found["proton"]["bias"] == pytest.approx(-0.1, abs=1e-6)
    assert found["all"]["resolution"] == pytest.approx(0.3 * (0.84 - 0.16) / 2, abs=1e-6)


def test_perfect_predictions_score_one():
    events = [an_event("perfect", n, seed) for seed, n in enumerate((80, 40, 1))]
    answers = {
        e.name: {"label": e.pid, "confidence": np.ones(len(e), np.float32), "instance": e.particle} for e in events
    }
    found = evaluate(pretrained(Told(answers), "particle"), events, progress=False)
    assert found["panoptic"]["aware_pq"] == found["panoptic"]["agnostic_pq"] == 1.0
    assert found["clusters"]["ari"] == found["clusters"]["sbd"] == 1.0
    assert found["points"]["accuracy"] == 1.0 and found["calibration"]["expected_error"] == 0.0


def test_interactions():
    """Points of no interaction are background; two interactions found as one."""
    interaction = np.repeat([0, 1, -1], [6, 4, 5])
    event = an_event("interaction", 15, interaction=interaction)
    label = torch.from_numpy((interaction >= 0).astype(np.int64))
    answer = {"label": label, "confidence": torch.ones(15), "instance": torch.where(label == 1, 0, -1)}
    found = evaluate(pretrained(Told({event.name: answer}), "interaction"), [event], progress=False)
    assert found["panoptic"]["aware_sq"] == pytest.approx(0.6, abs=1e-9)
    assert found["panoptic"]["aware_recall"] == 0.5 and found["clusters"]["purity"] == pytest.approx(0.6)
    assert found["points"]["accuracy"] == 1.0


# ---------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("task", ["motif", "particle"])
def test_empty_and_unlabelled_events(task):
    nothing = an_event("empty", 0)
    unknown = an_event("unknown", 5, motif=np.full(5, -1), particle=np.full(5, -1), pid=np.full(5, -1))
    model, collected = Noise(len(TASKS[task].classes), task == "particle"), Evaluation(TASKS[task], examples=2)
    if task == "motif":
        evaluate(pretrained(model, task), [nothing, unknown], progress=False, collected=collected)
        found = collected.result()
    else:
        answers = {
            e.name: {"label": e.pid, "confidence": np.ones(len(e), np.float32), "instance": e.particle}
            for e in (nothing, unknown)
        }
        found = evaluate(pretrained(Told(answers), task), [nothing, unknown], progress=False, collected=collected)
    assert found["events"] == 2 and found["points"]["macro_f1"] is None and found["points"]["accuracy"] is None
    assert [e["score"] for e in collected.per_event] == [None, None]
    assert collected.best == collected.worst == [] and found["event_score"]["mean"] is None
    json.dumps(found, allow_nan=False)


def test_examples_are_the_best_and_the_worst():
    rng = np.random.default_rng(0)
    right = [0.5, 0.9, 0.1, 0.9, 0.3, 0.7]
    events, answers = [], {}
    for seed, share in enumerate(right):
        event = an_event("ranked", 100, seed, motif=np.ones(100, np.int64))
        label = np.where(np.arange(100) < 100 * share, 1, 2)
        answers[event.name] = {"label": rng.permutation(label), "confidence": np.ones(100, np.float32)}
        events.append(event)
    collected = Evaluation(TASKS["motif"], examples=2)
    evaluate(pretrained(Told(answers), "motif"), events, batch_size=4, progress=False, collected=collected)
    assert [e.event.name for e in collected.best] == ["ranked.h5#1", "ranked.h5#3"]
    assert [e.event.name for e in collected.worst] == ["ranked.h5#2", "ranked.h5#4"]
    for example in collected.best:
        np.testing.assert_array_equal(example.prediction.label, answers[example.event.name]["label"])
        assert example.scores in collected.per_event


# ---------------------------------------------------------------------------------------- what is refused


def test_an_encoder_has_no_task():
    encoder = PointTransformerV3(depths=(1,), channels=(16,), heads=(1,), window=32)
    with pytest.raises(ValueError, match=r"a model.*encoder.*finetune"):
        evaluate(pretrained(encoder, None), EVENTS, progress=False)


def test_other_classes_are_refused():
    other = {"motif": ["track", "shower", "Michel", "delta", "LED"]}
    with pytest.raises(ValueError, match=r"a model.*track, shower.*shower, track"):
        evaluate(pretrained(Noise(5), "motif", classes=other), EVENTS, progress=False)


def test_events_without_the_labels_are_refused_before_anything_is_predicted():
    class Untouched(Noise):
        def predict(self, batch):
            raise AssertionError("predicted")

    events = [an_event("old", 20, pid=None)]
    with pytest.raises(ValueError, match=r"old\.h5#0.*'pid'"):
        evaluate(pretrained(Untouched(6, True), "particle"), events, progress=False)


def test_a_later_event_without_the_labels_is_refused():
    events = [EVENTS[0], an_event("old", 20, pid=None)]
    with pytest.raises(ValueError, match="'pid'"):
        evaluate(pretrained(Noise(6, True), "particle"), events, batch_size=1, progress=False)


def test_no_events_are_refused():
    with pytest.raises(ValueError, match="no events"):
        evaluate(pretrained(Noise(5), "motif"), [], progress=False)


def test_a_model_without_instances_cannot_do_particles():
    with pytest.raises(ValueError, match=r"noise\.h5#0.*'particle'.*instances"):
        evaluate(pretrained(Noise(6), "particle"), EVENTS, progress=False)


def test_a_class_beyond_the_list_is_refused():
    event = an_event("strange", 10, motif=np.full(10, 7))
    with pytest.raises(ValueError, match=r"strange\.h5#0.*class 7"):
        evaluate(pretrained(Noise(5), "motif"), [event], progress=False)
