"""The study of pretraining on several sub-detectors: its commands can be run, its tables show what was scored."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import fasercal_pretraining as study
from study import SETTINGS

from nufm.commands.finetune import FinetuneCLI
from nufm.commands.pretrain import PretrainCLI
from nufm.data.streams import FLAVOUR_NAMES


def scores(macro: float, vertex: float | None) -> dict:
    spread = {"all": {"sigma_mad": 0.5}}
    return {
        "labels": {
            "flavour": {
                "classes": list(FLAVOUR_NAMES),
                "auc": [macro, None, macro, macro, macro, macro],
                "macro_auc": macro,
                "recall": [0.5] * 6,
                "confusion": [[1] * 6] * 6,
            },
            "charm": {"macro_auc": 0.6},
        },
        "vertex": {"all": {"median": vertex}},
        "quantities": dict.fromkeys(("visible", "jet", "lepton", "missing_pt"), spread),
    }


def test_tables_of_a_part_of_the_runs(tmp_path):
    """Means over the seeds that there are; a dash for what is not there."""
    names = {}
    for method, budget, seed, macro in (("Scratch", 100, 0, 0.6), ("Scratch", 100, 1, 0.7), ("MAE", 1000, 0, 0.9)):
        name = names[method, budget, seed] = study.run_name(method, budget, seed)
        (tmp_path / name / "evaluation" / "test").mkdir(parents=True)
        (tmp_path / name / SETTINGS).write_text(json.dumps({"commit": "abc"}))
        (tmp_path / name / study.SCORES).write_text(json.dumps(scores(macro, None if seed else 200.0)))
    study.write(names, tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "fasercal_pretraining.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    first = [row for row in rows if row[0] in ("Scratch", "MAE")]
    assert first[0][1] == "0.650 ± 0.071" and first[0][3] == "200"
    assert first[1][1] == "–" and len({len(row) for row in rows}) == 2
    assert "simulated by nufm" in text and "nan" not in text
    report = json.loads((tmp_path / "out" / "fasercal_pretraining.json").read_text())
    assert report["commits_of_the_runs"] == ["abc"] and report["data"] == "simulated by nufm"
    assert (tmp_path / "out" / "fasercal_pretraining.png").is_file()


def test_no_run_is_said(tmp_path):
    with pytest.raises(SystemExit, match="no run in"):
        study.write({}, tmp_path, tmp_path)


@pytest.mark.parametrize("method", list(study.METHODS))
def test_commands_are_ones_that_the_scripts_know(method, tmp_path, monkeypatch):
    monkeypatch.chdir(study.REPOSITORY)
    jobs = study.pretrainings(tmp_path)
    job = study.fine_tuning(tmp_path, method, 100, 1)
    assert all(needed in jobs for needed in job.after)
    config = FinetuneCLI(job.command[1:], build=False).config
    assert config.data.init_args.max_events == 100 and config.seed_everything == 1
    assert config.trainer.max_steps == study.FINE_STEPS
    for needed in job.after:
        config = PretrainCLI(jobs[needed].command[1:], build=False).config
        assert config.model.init_args.single_tokens == ("hidden" if needed.endswith("hidden") else "all")


def test_recipes_differ_in_the_start_only(tmp_path):
    """As the talk demands; the fairer baseline differs in the decay of rates too."""

    def rest(method: str) -> list[str]:
        flags = list(study.fine_tuning(tmp_path, method, 100, 0).command)
        for name in ("--pretrained", "--model.regime"):
            if name in flags:
                del flags[flags.index(name) : flags.index(name) + 2]
        return flags

    assert rest("Scratch") == rest("MAE") == rest("MAE+Rel") == rest("MAE, as published")
    assert rest("Scratch, own rates") != rest("Scratch")
