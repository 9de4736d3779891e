"""The benchmarks of scores: their commands are runs that can be built, their tables say what the scores say."""

# ruff: noqa: E402

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from nufm.commands.finetune import FinetuneCLI

REPOSITORY = Path(__file__).resolve().parents[1]
BENCHMARKS = REPOSITORY / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as when one of them is run as a script

import inference
import label_efficiency
import sim_to_real


def test_commands_of_the_published_study_are_runs(monkeypatch):
    """5 methods × 5 fractions, 20 M event-samples each; the regimes start from the pretrained encoder."""
    monkeypatch.chdir(REPOSITORY)
    commands = label_efficiency.paper_commands("/data/pilarnet_m", "PRE", [0])
    assert len(commands) == 25
    for command in commands[:5]:  # the others differ in their numbers
        python, script, *flags = shlex.split(command)
        assert python == "python" and script == "scripts/finetune.py"
        config = FinetuneCLI(flags, build=False).config
        settings = config.data.init_args
        assert settings.max_events == 100 and settings.root == "/data/pilarnet_m"
        regime = config.model.init_args.regime
        assert (config.pretrained == "PRE") == (regime != "scratch")
        assert config.trainer.max_steps * settings.batch_size == pytest.approx(20e6, rel=1e-4)
        assert settings.max_events >= settings.batch_size, "a budget smaller than a batch cannot be trained on"


def test_a_run_made_with_other_settings_is_refused(tmp_path):
    job = ("Panda full", 10, 0)
    folder = tmp_path / label_efficiency.folder_name(*job)
    folder.mkdir()
    made = label_efficiency.settings(job, "PRE")
    assert not label_efficiency.finished(job, tmp_path, "PRE")
    (folder / "settings.json").write_text(json.dumps({"settings": made}))
    (folder / "scores.json").write_text("{}")
    assert label_efficiency.finished(job, tmp_path, "PRE")
    with pytest.raises(SystemExit, match="other settings"):
        label_efficiency.finished(job, tmp_path, "OTHER")


def test_tiny_methods_are_the_regimes_they_are_called():
    for name, method in label_efficiency.METHODS.items():
        config = FinetuneCLI(list(method.tiny), build=False).config.model.init_args
        assert config.regime == (name.split()[-1] if name.startswith("Panda") else "scratch")
        assert method.pretrained == (config.regime != "scratch")
        assert ("UResNet" in config.network.class_path) == (name == "UResNet")


def test_table_of_label_efficiency():
    def points(f1):
        return {"macro_f1": f1, "f1": [f1, f1, None, 0.0, 1.0]}

    found = {"Panda full": {10: [points(0.5), points(0.7)], 100: [points(0.8), points(0.8)]}}
    text = label_efficiency.markdown(found, {10: [0, 1], 100: [0, 1]}, "77 steps of it")
    published = yaml.safe_load((BENCHMARKS / "published.yaml").read_text())["panda"]["semantic"]["mean_f1"]
    assert f"| Panda full | 60.0 ± 14.1 | 80.0 ± 0.0 | {published['Panda full'][0]} |" in text
    assert "| Panda full | 60.0 ± 14.1 | 60.0 ± 14.1 | 0.0 ± 0.0 | 0.0 ± 0.0 | 100.0 ± 0.0 |" in text
    assert "77 steps" in text


@pytest.mark.parametrize(("f1", "state"), [(0.9, ": met"), (0.8, ": not met")])
def test_table_of_the_genuine_event_counts_the_classes_present(f1, state):
    scores = {"support": [10, 20, 0, 0, 5], "macro_f1_present": f1, "f1": [f1] * 5}
    scores |= {"precision": [f1] * 5, "recall": [f1] * 5}
    simulated = {"points": {"f1": [0.9, 0.6, 0.0, 0.0, 0.6]}, "events": 7}
    report = {"model": {"class": "UResNet", "regime": "scratch", "steps": 3}, "parameters": 12, "seed": 0}
    report["training"] = {"batch_size": 2}
    text = sim_to_real.markdown({"points": scores}, simulated, [0, 1, 4], report)
    assert state in text and f"**{100 * f1:.1f}** | 70.0 |" in text
    assert "| Michel | – | – | – | – | 0.0 |" in text


def test_only_runs_on_simulated_events_are_scored_on_the_genuine_one(tmp_path):
    def config(root="simulated", pretrained=None, splits=None):
        return {"data": {"init_args": {"root": root, "splits": splits}}, "pretrained": pretrained}

    sim_to_real.only_simulated(config(), tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config("/data/pilarnet_m")))
    for bad in (config("/data/x"), config(splits={"train": "x"}), config(pretrained=str(tmp_path))):
        with pytest.raises(SystemExit, match="expected a run on 'simulated' events"):
            sim_to_real.only_simulated(bad, tmp_path)
    with pytest.raises(SystemExit, match="cannot be told"):
        sim_to_real.only_simulated(config(pretrained=str(tmp_path / "none")), tmp_path)


def test_the_model_that_is_here_scores_what_is_written():
    """On the genuine event, which it was not trained on, as benchmarks/results/sim_to_real.json says."""
    from nufm.checkpoint import from_pretrained
    from nufm.evaluation import evaluate

    written = json.loads((BENCHMARKS / "results" / "sim_to_real.json").read_text())["genuine"]["points"]
    events = sim_to_real.PILArNetReader(sim_to_real.GENUINE, min_points=0)
    found = evaluate(from_pretrained(BENCHMARKS / "models" / "motif_tiny"), events, progress=False)["points"]
    assert found["macro_f1_present"] >= sim_to_real.TARGET
    assert found["macro_f1_present"] == pytest.approx(written["macro_f1_present"], abs=0.005)


def test_inference_in_small(monkeypatch, tmp_path, capsys):
    """Both models, from events to labels: every number is there and none is nothing."""
    from nufm.models.detector import Detector
    from nufm.models.ptv3 import PointTransformerV3
    from nufm.models.segmenter import Decoder, Segmenter

    def small(kind):
        encoder = PointTransformerV3(depths=(1, 1), channels=(8, 16), heads=(1, 2), mask_token=False)
        if kind == "semantic":
            return Segmenter(encoder, Decoder((8, 16), (1,), (8,), (1,))).eval()
        return inference.busy(Detector(encoder, n_queries=4, width=8, heads=1, depth=1)).eval()

    with torch.device("meta"):
        sizes = [sum(p.numel() for p in inference.model(kind).parameters()) for kind in inference.MODELS]
    assert sizes == [107_093_573, 95_164_040]

    monkeypatch.setattr(inference, "model", small)
    monkeypatch.setattr(inference.Machine, "measure", classmethod(lambda cls, *_: cls("CPU", "float32", 1e9, 1e9)))
    monkeypatch.setattr(sys, "argv", ["inference.py", "--batches", "2", "--seconds", "0.1", "--out", str(tmp_path)])
    inference.main()
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert [row["model"] for row in report["rows"]] == ["semantic", "panoptic"]
    for row in report["rows"]:
        assert row["events"] == 2 and row["ms_per_event"] > 0 and row["peak_bytes"] > 0
    assert "120 events/s" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert next(tmp_path.glob("*.json")).stem == "inference_cpu"
