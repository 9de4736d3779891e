"""The benchmark of classifiers of pixel maps: its runs, the numbers its trees see, the tables it writes."""

# ruff: noqa: E402

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as when one of them is run as a script

import pixelmap_classifiers as benchmark
from study import SETTINGS
from toy_maps import toy_event, toy_events

from nufm.checkpoint import save_pretrained
from nufm.checkpoint.temperature import keep_temperature
from nufm.data.image_transforms import Brightness, Rebin
from nufm.data.images import ImageEvent, View
from nufm.models.se_resnet import SiameseSEResNet


def test_runs_and_their_order(tmp_path):
    """Teachers come before students; a student brings its teacher along; every configuration is there."""
    jobs, names = benchmark.jobs_of(list(benchmark.MODELS), [0, 1, 2], tmp_path)
    order = list(jobs)
    for name, job in jobs.items():
        assert all(order.index(needed) < order.index(name) for needed in job.after)
        config = Path(job.command[job.command.index("--config") + 1])
        settings = yaml.safe_load(config.read_text())
        assert settings["model"]["init_args"]["network"]["class_path"].startswith("nufm.models.")
    assert names["CNN", 2] == "cnn-2" and ("VLM", 2) not in names, "slow ones have two seeds"
    assert len(set(names.values())) == len(names)
    alone, of = jobs["student-labels-alone-0"].command, jobs["student-of-the-vit-0"].command
    assert of[-2:] == ("--model.teacher", str(tmp_path / "vit-0")) and "--model.teacher" not in alone
    jobs, names = benchmark.jobs_of(["student of the CNN"], [1], tmp_path)
    assert list(jobs) == ["cnn-0", "student-of-the-cnn-1"] and list(names.values()) == ["student-of-the-cnn-1"]


def test_the_student_is_one_network():
    """Alone or with a teacher, it differs in nothing but the loss."""
    both = [
        yaml.safe_load((benchmark.CONFIGS / f"pixelmap_{name}.yaml").read_text()) for name in ("cnn", "distillation")
    ]
    networks = [config["model"]["init_args"].pop("network")["init_args"] for config in both]
    flags = benchmark.MODELS[benchmark.ALONE].flags
    networks[0]["channels"] = json.loads(flags[flags.index("--model.network.channels") + 1])
    assert networks[0] == networks[1]
    for config in both:
        config["model"].pop("class_path")
        for name in ("temperature", "soft_share"):
            config["model"]["init_args"].pop(name, None)
    assert both[0] == both[1]


def test_numbers_by_hand():
    """Two pixels of one view: 3 MeV two columns downstream of the middle, 1 MeV four rows above and two upstream."""
    view = View(np.array([[8, 10], [12, 6]], np.int32), np.array([3, 1], np.float32))
    found = benchmark.numbers_of(ImageEvent({"xz": view}, (16, 16)))
    assert found.shape == (20,) and (found[10:] == 0).all(), "the other view was not read out"
    np.testing.assert_allclose(found[:4], [4, 2, 3, 0.75 * 2 + 0.25 * -2])
    # Rows 0 and 4 with weights 3/4 and 1/4 have a variance of 3; columns 2 and -2 too, and they lie on one line.
    np.testing.assert_allclose(found[4:6], np.sqrt([3, 3]))
    np.testing.assert_allclose(found[6:8], [0, np.sqrt(6)], atol=1e-6)
    np.testing.assert_allclose(found[8:], [0.25, 0, *[0] * 10])
    assert (benchmark.numbers_of(ImageEvent({}, (16, 16))) == 0).all()


def test_published_numbers_are_whole():
    """Every model has every score at both resolutions, between chance and 1."""
    models = set(benchmark.PUBLISHED["models"])
    for level in ("nominal", "half_resolution"):
        assert set(benchmark.PUBLISHED[level]) == models
        for scores in benchmark.PUBLISHED[level].values():
            assert set(scores) == {"accuracy", "precision", "recall", "auc", "class_auc"}
            values = [v for s in scores.values() for v in (s if isinstance(s, list) else [s])]
            assert len(values) == 7 and all(0.3 < v < 1 for v in values)
            assert scores["auc"] == pytest.approx(np.mean(scores["class_auc"]), abs=0.011), "a mean, rounded"


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """Runs as they would have been left behind: exports of untrained networks; events made by hand."""
    test, train = toy_events(24, 128), toy_events(60, 128)
    monkeypatch.setattr(benchmark, "test_events", lambda split="test": train if split == "train" else test)
    models = {"CNN": (8, 8), "student of the CNN": (4, 4), benchmark.ALONE: (4, 4)}
    for seed, (model, channels) in enumerate(models.items()):
        torch.manual_seed(seed)
        network = SiameseSEResNet(channels=channels, blocks=(1, 1))
        run = tmp_path / "runs" / benchmark.run_name(model, 0)
        save_pretrained(run / "export", network, transforms=[Rebin(4), Brightness()], task="pixelmaps")
        command = list(benchmark.training(model, 0, tmp_path / "runs").command)
        (run / SETTINGS).write_text(json.dumps({"command": command, "commit": "abc"}))
    return tmp_path


def test_tables_of_finished_runs(small, monkeypatch):
    argv = ["pixelmap_classifiers.py", "--runs", str(small / "runs"), "--finished", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(small / "out")])
    monkeypatch.setattr(benchmark, "cost", lambda run, events: {"ms": 12.34, "memory_gb": None})
    benchmark.main()
    report = json.loads((small / "out" / "pixelmap_classifiers.json").read_text())
    assert list(report["scores"]) == ["CNN", benchmark.ALONE, "student of the CNN"], "what is not there is left out"
    for (run,) in report["scores"].values():
        for level in run["levels"].values():
            counts = np.array(level["confusion"])
            assert counts.sum(1).tolist() == [8, 8, 8]
            assert level["accuracy"] == pytest.approx(counts.trace() / 24)
    # Tracks, cones and blobs differ in length and width: trees on such numbers tell them apart.
    assert report["trees"]["levels"][benchmark.NOMINAL]["accuracy"] > 0.8
    text = (small / "out" / "pixelmap_classifiers.md").read_text()
    cnn = report["scores"]["CNN"][0]["levels"]
    half = [cnn[benchmark.HALF][key] for key in benchmark.KEYS]
    assert f"| CNN | {' | '.join(f'{v:.3f}' for v in half)} |" in text and "12.3 |" in text
    assert "| published, VLM | 0.87 | 0.87 | 0.87 | 0.96 | 29.5 M | 12,910 | 3,412 |" in text
    assert "| published, CNN | 0.43 | 0.40 | 0.41 | 0.70 | – | – |" in text
    assert "| published, CNN | 0.95 | 0.95 | 0.91 | 0.53 | 0.81 | 0.76 |" in text
    assert "| always the largest class | 0.333 |" in text and "simulated by nufm" in text
    ours, theirs = (report["scores"][m][0]["levels"]["nominal"]["accuracy"] for m in ("student of the CNN", "CNN"))
    assert f"| student of the CNN | {ours:.3f} / {theirs:.3f} | {100 * ours / theirs:.0f} % |" in text
    for name in ("roc", "rejection", "confusion", "events"):
        assert (small / "out" / f"pixelmap_classifiers_{name}.png").stat().st_size > 10_000


def test_scores_are_kept_until_the_run_changes(small, monkeypatch):
    run, events = small / "runs" / "cnn-0", [toy_event(i % 3, i, 128) for i in range(6)]
    first = benchmark.scored(run, events)
    assert benchmark.scored(run, []) == first, "nothing is predicted again"
    kept = np.load(run / benchmark.PROBABILITIES)
    assert kept[benchmark.NOMINAL].shape == (6, 3) and kept["target"].tolist() == [0, 1, 2, 0, 1, 2]
    assert not np.allclose(kept[benchmark.NOMINAL], kept[benchmark.HALF])
    later = (run / benchmark.SCORES).stat().st_mtime + 10
    os.utime(run / "export" / "config.json", (later, later))
    assert benchmark.scored(run, []) == first, "copied, it is the same export"
    keep_temperature(run, "interaction", 2.0)  # no weight changes, the probabilities do
    os.utime(run / "export" / "config.json", (0, 0))
    with pytest.raises(ValueError, match="no events"):
        benchmark.scored(run, [])
    again = benchmark.scored(run, events)
    assert again["levels"]["nominal"]["accuracy"] == first["levels"]["nominal"]["accuracy"]
    assert again["levels"]["nominal"]["nll"] != first["levels"]["nominal"]["nll"]
    with monkeypatch.context() as changed, pytest.raises(ValueError, match="no events"):
        changed.setitem(benchmark.EVENTS, "n_test", 7)
        benchmark.scored(run, [])
    monkeypatch.setattr(benchmark, "resolutions", lambda: [])
    with pytest.raises(ValueError, match="no events"):
        benchmark.scored(run, [])


def test_costs_are_kept_for_an_export_on_a_machine(small, monkeypatch):
    asked = []
    monkeypatch.setattr("nufm.evaluation.cost.cost_per_event", lambda *of: asked.append(of) or {"ms": len(asked)})
    run, events = small / "runs" / "cnn-0", toy_events(8, 128)
    assert [benchmark.cost(run, events) for _ in range(2)] == [{"ms": 1}] * 2
    before = benchmark.provenance()
    monkeypatch.setattr(benchmark, "provenance", lambda: before | {"hardware": "another"})
    assert benchmark.cost(run, events) == {"ms": 2}


def test_a_student_is_compared_with_the_run_that_taught_it(small, monkeypatch):
    """Tables of seed 1 alone: the teacher's seed 0 is no row, but the student's teacher all the same."""
    monkeypatch.setattr(benchmark, "cost", lambda run, events: {"ms": 12.34, "memory_gb": None})
    for model, seed in (("CNN", 1), ("student of the CNN", 1), (benchmark.ALONE, 1)):
        torch.manual_seed(20 + seed)
        network = SiameseSEResNet(channels=(6, 6), blocks=(1, 1))
        run = small / "runs" / benchmark.run_name(model, seed)
        save_pretrained(run / "export", network, transforms=[Rebin(4), Brightness()], task="pixelmaps")
        command = list(benchmark.training(model, seed, small / "runs").command)
        (run / SETTINGS).write_text(json.dumps({"command": command, "commit": "abc"}))
    argv = ["pixelmap_classifiers.py", "--runs", str(small / "runs"), "--finished", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(small / "out")])
    drawn = []
    monkeypatch.setattr(benchmark, "draw", lambda *of: drawn.append(of))
    kept = benchmark.scored

    def told(run: Path, events: object = None) -> dict:
        found = kept(run)
        found["levels"]["nominal"]["accuracy"] = {"cnn-1": 0.25, "cnn-0": 0.75}.get(run.name, 0.5)
        return found

    monkeypatch.setattr(benchmark, "scored", told)
    benchmark.main()
    text = (small / "out" / "pixelmap_classifiers.md").read_text()
    assert drawn and "| CNN | 0.250 |" in text
    assert "| student of the CNN | 0.500 / 0.750 | 67 % |" in text
