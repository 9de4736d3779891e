"""Scores of whole events: by hand, with unknown truth, and as tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stream_events import event

from nufm.data.prediction import StreamEventPrediction
from nufm.data.streams import CHARM_NAMES, FLAVOUR_NAMES, StreamEvent
from nufm.data.tasks import task_named
from nufm.evaluation.event_scores import EventEvaluation
from nufm.evaluation.tables import summary

CLASSES = {"flavour": FLAVOUR_NAMES, "charm": CHARM_NAMES}
UNKNOWN = np.full(3, np.nan, np.float32)


def labelled(number: int, **truth) -> StreamEvent:
    """A neutrino of flavour ``number``: visible (3, 4, 100 + 10 number), no lepton for neutral currents."""
    visible = np.array([3.0, 4.0, 100.0 + 10 * number], np.float32)
    lepton = visible * np.float32(0.0 if number == 5 else 0.25)
    facts = {
        "flavour": np.int64(number), "charm": np.int64(number % 4), "visible": visible, "lepton": lepton,
        "jet": visible - lepton, "vertex": np.array([10.0, 20.0, 30.0 * number], np.float32),
    }  # fmt: skip
    return event(number, 20).replace(truth=facts | truth)


def predicted(made: StreamEvent, flavour: int, scale: float = 1.0, shift: float = 0.0) -> StreamEventPrediction:
    """70 % for ``flavour``; momenta times ``scale``, the vertex ``shift`` mm off along z."""
    probability = {"flavour": np.full(6, 0.06, np.float32), "charm": np.full(4, 0.25, np.float32)}
    probability["flavour"][flavour] = 0.7
    value = {k: np.nan_to_num(made.truth[k]) * np.float32(scale) for k in ("visible", "jet", "lepton")}
    value["missing_pt"] = np.hypot(*value["visible"][:2])
    value["vertex"] = np.nan_to_num(made.truth["vertex"]) + np.array([0, 0, shift], np.float32)
    return StreamEventPrediction(made.name, CLASSES, probability, value)


def scored(events, predictions) -> tuple[dict, EventEvaluation]:
    collected = EventEvaluation(task_named("fasercal"), CLASSES)
    for one, said in zip(events, predictions, strict=True):
        collected.add([one], [said])
    found = collected.result()
    json.dumps(found, allow_nan=False)
    return found, collected


def test_by_hand():
    """Five of six flavours right, momenta 10 % too large, vertices 5 mm off (one 100 mm)."""
    events = [labelled(i) for i in range(6)]
    predictions = [predicted(e, i if i else 1, 1.1, 100.0 if i == 2 else 5.0) for i, e in enumerate(events)]
    found, collected = scored(events, predictions)
    flavour = found["labels"]["flavour"]
    assert flavour["accuracy"] == pytest.approx(5 / 6) and flavour["recall"] == [0, 1, 1, 1, 1, 1]
    # νµ CC: 0.06 as the other five; νe CC: 0.7 as one of five others.
    assert flavour["auc"] == pytest.approx([0.5, (4 + 0.5) / 5, 1, 1, 1, 1])
    assert flavour["macro_auc"] == pytest.approx((0.5 + 0.9 + 4) / 6)
    assert found["labels"]["charm"]["auc"] == [0.5] * 4
    assert found["vertex"]["all"]["median"] == pytest.approx(5)
    assert found["vertex"]["all"]["mean"] == pytest.approx(125 / 6)
    assert found["vertex"]["ντ CC → e"]["mean"] == pytest.approx(100)
    for name in ("visible", "jet", "lepton", "missing_pt"):
        rows = found["quantities"][name]["all"]
        assert rows["fractional_median"] == pytest.approx(0.1, abs=1e-5)
        assert rows["sigma_mad"] == pytest.approx(0, abs=1e-5)
    assert found["quantities"]["missing_pt"]["all"]["median"] == pytest.approx(0.5, abs=1e-5)
    assert found["quantities"]["lepton"]["all"]["count"] == 5 and found["quantities"]["jet"]["all"]["count"] == 6
    row = collected.per_event[2]
    assert row["vertex_mm"] == pytest.approx(100) and row["flavour_p"] == pytest.approx(0.7)
    assert row["flavour"] == row["flavour_found"] == "ντ CC → e" and row["missing_pt_true"] == pytest.approx(5)


def test_unknown_truth_does_not_count():
    nothing = dict.fromkeys(("visible", "jet", "lepton", "vertex"), UNKNOWN)
    events = [labelled(0), labelled(1), labelled(2, flavour=np.int64(-1), charm=np.int64(-1), **nothing)]
    found, collected = scored(events, [predicted(e, 0) for e in events])
    assert sum(found["labels"]["flavour"]["support"]) == 2 and found["events"] == 3
    assert found["vertex"]["all"]["count"] == found["quantities"]["jet"]["all"]["count"] == 2
    assert collected.per_event[2]["flavour"] is None and collected.per_event[2]["flavour_p"] is None


def test_events_without_momenta_or_vertex_are_scored_by_class():
    some = {k: v for k, v in labelled(1).truth.items() if k in ("flavour", "charm")}
    found, _ = scored([labelled(1).replace(truth=some)], [predicted(labelled(1), 1)])
    assert found["quantities"] == {} and "vertex" not in found
    assert found["labels"]["flavour"]["auc"] == [None] * 6 and found["labels"]["flavour"]["macro_auc"] is None
    text = summary({**found, "simulated": True})
    assert "simulated by nufm" in text and "–" in text and "Vertex" not in text


def test_tables_hold_the_numbers():
    events = [labelled(i % 6) for i in range(24)]
    found, _ = scored(events, [predicted(e, int(e.truth["flavour"]), 0.8, 7.0) for e in events])
    text = summary({**found, "simulated": False})
    assert "| νµ CC | 100.0 | 100.0 | 100.0 | 4 |" in text and "-0.200" in text and "simulated" not in text
    assert text.count("| all | 24 |") == 4, "visible, jet, missing p_T and vertex"
    assert "| all | 20 |" in text, "leptons of the charged currents"


def test_the_fermi_motion_of_a_nucleon_is_no_missing_momentum():
    """Missing p_T of 0.28 GeV/c, below the floor, found as 5: no fraction of it counts; a jet of 0.28 GeV/c does."""
    still = {"visible": np.array([0.28, 0.0, 100.0], np.float32), "jet": np.array([0.28, 0.0, 0.0], np.float32)}
    events = [labelled(1), labelled(1), labelled(0, **still)]
    predictions = [predicted(e, 1, 1.1) for e in events]
    predictions[2].value["missing_pt"] = np.float32(5.0)
    found, _ = scored(events, predictions)
    missing, jet = (found["quantities"][name]["all"] for name in ("missing_pt", "jet"))
    assert missing["count"] == jet["count"] == jet["fractional_count"] == 3 and missing["fractional_count"] == 2
    assert missing["fractional_median"] == pytest.approx(0.1, abs=1e-5) and missing["sigma_mad"] < 1e-5
    alone = found["quantities"]["missing_pt"]["νµ CC"]
    assert alone["count"] == 1 and alone["fractional_count"] == 0 and alone["sigma_mad"] is None
    text = summary({**found, "simulated": True})
    assert "of the 2 events with a true value above 0.3 GeV/c: below is the Fermi motion" in text


def test_an_event_without_labels_is_refused():
    collected = EventEvaluation(task_named("fasercal"), CLASSES)
    with pytest.raises(ValueError, match=r"event 3: the task 'fasercal' needs the truth 'flavour', found \[\]"):
        collected.add([event(3)], [predicted(labelled(3), 3)])
