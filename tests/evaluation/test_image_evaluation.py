"""Evaluations of pixel maps: scores against scikit-learn, what an event costs, what the folder holds."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.metrics import accuracy_score, confusion_matrix, precision_score, recall_score, roc_auc_score
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toy_maps import toy_event, toy_events

from nufm.checkpoint import Pretrained, from_pretrained, save_pretrained
from nufm.data.image_transforms import Brightness
from nufm.data.images import INTERACTION_NAMES, ImageBatch, ImageEvent
from nufm.data.prediction import StreamPrediction
from nufm.evaluation.cost import cost_per_event
from nufm.evaluation.event_scores import check_events, shares
from nufm.evaluation.image_scores import example_rows, said_of
from nufm.evaluation.report import write_evaluation
from nufm.evaluation.tables import summary
from nufm.models.se_resnet import SiameseSEResNet

CLASSES = {"interaction": list(INTERACTION_NAMES)}


class Oracle(nn.Module):
    """Knows the class and says it with noise that the event's seed fixes."""

    kind, inputs, n_classes = "event", "images", {"interaction": 3}

    def __init__(self, strength: float = 1.0, seconds: float = 0.0) -> None:
        super().__init__()
        self.strength, self.seconds = nn.Parameter(torch.tensor(float(strength))), seconds

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        noise = np.stack([np.random.default_rng([int(s), 7]).normal(size=3) for s in batch.seeds])
        truth = torch.nn.functional.one_hot(batch.truth["interaction"].clamp(min=0), 3)
        return {"interaction": truth * self.strength + torch.from_numpy(noise).float()}

    def predict(self, batch: ImageBatch) -> StreamPrediction:
        return StreamPrediction({"interaction": self(batch)["interaction"].softmax(1)}, {})


class Talker(Oracle):
    def explain(self, batch: ImageBatch) -> list[str]:
        return [f"Because of {name}." for name in batch.names]


def oracle(model: nn.Module | None = None) -> Pretrained:
    return Pretrained(model or Oracle(), (Brightness(),), task="pixelmaps", classes=CLASSES, source="an oracle")


def drawn(n: int) -> list[ImageEvent]:
    """n events, of unequal classes, each with a seed of its own."""
    kinds = np.random.default_rng(1).choice(3, n, p=(0.5, 0.3, 0.2))
    return [toy_event(int(kind), i) for i, kind in enumerate(kinds)]


def test_scores_are_those_of_scikit_learn(tmp_path):
    events = drawn(90)
    found = write_evaluation(oracle(), events, tmp_path, batch_size=7, progress=False, examples=0)
    truth = np.array([int(e.truth["interaction"]) for e in events])
    p = np.stack([q.probability["interaction"] for q in oracle().predict(events)])
    label, scores = p.argmax(1), found["labels"]["interaction"]
    assert found["events"] == 90 and found["inputs"] == "images"
    assert 0.4 < scores["accuracy"] < 0.95, "a perfect oracle would hide mistakes"
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, label))
    for name, score in (("precision", precision_score), ("recall", recall_score)):
        assert scores[f"macro_{name}"] == pytest.approx(score(truth, label, average="macro"))
        np.testing.assert_allclose(scores[name], score(truth, label, average=None))
    for c in range(3):
        assert scores["auc"][c] == pytest.approx(roc_auc_score(truth == c, p[:, c]))
    assert scores["macro_auc"] == pytest.approx(roc_auc_score(truth, p, multi_class="ovr", average="macro"), abs=1e-6)
    for name, over in (("efficiency", "true"), ("purity", "pred")):
        np.testing.assert_allclose(scores[name], confusion_matrix(truth, label, normalize=over))
    assert json.loads((tmp_path / "scores.json").read_text()) == found
    with open(tmp_path / "events.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["interaction"] for row in rows] == [INTERACTION_NAMES[t] for t in truth]
    np.testing.assert_allclose([float(r["interaction_p"]) for r in rows], p[np.arange(90), truth], atol=1e-6)
    np.testing.assert_allclose([float(r["interaction_found_p"]) for r in rows], p.max(1), atol=1e-6)
    assert [int(row["pixels"]) for row in rows] == [e.n_pixels for e in events]
    text = summary(found)
    c = INTERACTION_NAMES.index("NC")
    cells = " | ".join(f"{100 * scores[n][c]:.1f}" for n in ("auc", "precision", "recall"))
    assert f"| NC | {cells} | {int((truth == c).sum())} |" in text
    assert f"{100 * scores['efficiency'][0][2]:.1f} / {100 * scores['purity'][0][2]:.1f}" in text


def test_shares_of_nothing_are_not_defined():
    """A class without events has no efficiency, one that is never predicted no purity."""
    found = shares(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 4, 0]]))
    np.testing.assert_allclose(found["efficiency"][0], [0.75, 0.25, 0])
    assert found["efficiency"][1].isnan().all() and found["purity"][:, 2].isnan().all()
    np.testing.assert_allclose(found["purity"][:, 1], [0.2, 0, 0.8])


def test_the_folder(tmp_path):
    """Pictures that show something, and a report that names them; events of unknown class do not count."""
    events = [*drawn(30), toy_event(0, 99).replace(truth={"interaction": np.int64(-1)})]
    (tmp_path / "events.html").write_text("of the time before")
    found = write_evaluation(oracle(Talker()), events, tmp_path, progress=False, examples=2)
    assert sum(found["labels"]["interaction"]["support"]) == 30 and found["events"] == 31
    report = (tmp_path / "report.md").read_text()
    for name in ("roc", "efficiency_purity", "rejection", "reliability"):
        picture = imread(tmp_path / f"{name}_interaction.png")
        assert picture[..., :3].std() > 0.01 and f"({name}_interaction.png)" in report
    assert imread(tmp_path / "examples.png").shape[0] > 1000 and "(examples.png)" in report
    assert not (tmp_path / "confusion_interaction.png").exists(), "efficiency and purity say the same"
    page = (tmp_path / "events.html").read_text()
    assert "Because of toy.h5#" in page and "plotly" in page and "cost" not in found


def test_without_examples_there_are_none(tmp_path):
    write_evaluation(oracle(), drawn(6), tmp_path, progress=False, examples=2)
    assert (tmp_path / "events.html").exists()
    write_evaluation(oracle(), drawn(6), tmp_path, progress=False, examples=0)
    assert not (tmp_path / "events.html").exists() and not (tmp_path / "examples.png").exists()


def test_one_event_and_one_class(tmp_path):
    """No AUC and no rejection, and no crash."""
    found = write_evaluation(oracle(), [toy_event(2)], tmp_path, progress=False, examples=1)
    scores = found["labels"]["interaction"]
    assert scores["auc"] == [None] * 3 and scores["macro_auc"] is None and scores["support"] == [0, 0, 1]
    assert scores["efficiency"][0] == [None] * 3 and "–" in (tmp_path / "report.md").read_text()


def test_which_events_are_shown():
    """Of each class the surest that is right, then the surest mistakes; unknown ones never."""
    rows = [
        {"c": true, "c_found": found, "c_found_p": p}
        for true, found, p in (
            ("a", "a", 0.6), ("a", "a", 0.9), ("b", "a", 0.7), ("b", "a", 0.8), (None, "b", 1.0), ("a", "b", 0.5),
        )
    ]  # fmt: skip
    chosen = example_rows(rows, "c", ["a", "b"], 2)
    assert [row for row, _ in chosen] == [1, 3, 2], "no b is right"
    assert [head.split(",")[0] for _, head in chosen] == ["right", "wrong", "wrong"]
    assert [row for row, _ in example_rows(rows, "c", ["a", "b"], 9)] == [1, 3, 2, 5]


def test_what_is_said():
    event = toy_event(1, 5)
    (said,) = said_of(oracle(Talker(9.0)), [event], "interaction")
    assert said.right is True and said.lines[1] == f"“Because of {event.name}.”"
    assert said.lines[0].startswith("prediction: νe CC ")
    (unknown,) = said_of(oracle(), [event.replace(truth={"interaction": np.int64(-1)})], "interaction")
    assert unknown.right is None and len(unknown.lines) == 1


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="no events to evaluate on"):
        check_events(oracle(), [])
    with pytest.raises(ValueError, match=r"the task 'pixelmaps' needs the truth 'interaction', found \[\]"):
        check_events(oracle(), [toy_event(0).replace(truth={})])
    turned = Pretrained(Oracle(), (), task="pixelmaps", classes={"interaction": ["NC", "νe CC", "νµ CC"]})
    with pytest.raises(ValueError, match="in this order: the classes would be taken for one another"):
        check_events(turned, toy_events(1))


# ---------------------------------------------------------------------------------------- cost


def test_time_is_that_of_a_call():
    """A network that sleeps 20 ms, preparation that takes next to nothing."""
    found = cost_per_event(oracle(Oracle(seconds=0.02)), toy_events(3))
    # Sleeping cannot be shorter; a busy machine makes it longer.
    assert 20 <= found["ms"] < 200 and found["ms"] <= 1.5 * found["ms_whole"]
    assert found["ms_quartiles"][0] <= found["ms"] <= found["ms_quartiles"][1] and 5 <= found["repeats"] <= 30
    assert found["parameters"] == 1 and found["weights_gb"] == pytest.approx(4e-9)
    assert found["memory_gb"] is None, "what has no files cannot be opened by another process"
    assert found["memory_is"].startswith("not measured: needs files")
    with pytest.raises(ValueError, match="no events"):
        cost_per_event(oracle(), [])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs the memory counters of Linux")
def test_memory_of_a_fresh_process(tmp_path):
    """At least the weights (5 M numbers of 4 bytes), and not the libraries around them."""
    network = SiameseSEResNet(channels=(32, 64, 128, 256))
    export = save_pretrained(tmp_path / "export", network, transforms=[Brightness()], task="pixelmaps")
    found = cost_per_event(from_pretrained(export), toy_events(1, 64))
    assert found["weights_gb"] == pytest.approx(4 * found["parameters"] / 1e9, rel=0.01)  # norms keep statistics, too
    assert found["weights_gb"] < found["memory_gb"] < found["weights_gb"] + 0.3
    assert found["memory_is"] == "growth of the resident memory of a fresh process"


def test_scores_outlive_a_memory_that_cannot_be_measured(tmp_path, monkeypatch):
    """The process that measures ends with an error: there is no number, but a reason, and all other numbers."""

    def failing(*asked: object) -> int:
        raise RuntimeError("run: the process that measures its memory failed: Traceback\n  line\nKilled: out of memory")

    monkeypatch.setattr("nufm.evaluation.cost.resident_growth", failing)
    found = write_evaluation(oracle(), drawn(12), tmp_path, progress=False, examples=0, cost=True)
    assert found["cost"]["memory_gb"] is None and found["cost"]["ms"] > 0
    assert json.loads((tmp_path / "scores.json").read_text())["cost"] == found["cost"]
    assert "; memory not measured: Killed: out of memory. 1 parameters" in (tmp_path / "report.md").read_text()


def test_scores_are_written_before_the_cost_is_asked(tmp_path, monkeypatch):
    def failing(*asked: object) -> dict:
        raise MemoryError

    monkeypatch.setattr("nufm.evaluation.image_scores.cost_per_event", failing)
    with pytest.raises(MemoryError):
        write_evaluation(oracle(), drawn(12), tmp_path, progress=False, cost=True)
    assert json.loads((tmp_path / "scores.json").read_text())["events"] == 12
    assert len((tmp_path / "events.csv").read_text().splitlines()) == 13


def test_the_report_says_that_probabilities_are_calibrated(tmp_path):
    plain = oracle()
    kept = dataclasses.replace(plain, extra={"temperature": {"interaction": 2.5}})
    write_evaluation(plain, drawn(6), tmp_path / "plain", progress=False, examples=0)
    write_evaluation(kept, drawn(6), tmp_path / "kept", progress=False, examples=0)
    words = "calibrated with the temperature that the export keeps (interaction: T = 2.500)"
    assert words in (tmp_path / "kept" / "report.md").read_text()
    assert "calibrated" not in (tmp_path / "plain" / "report.md").read_text()
