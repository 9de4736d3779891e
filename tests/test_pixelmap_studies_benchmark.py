"""The benchmark of studies of pixel maps: which studies of which runs, when they are made again, tables and picture."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import pixelmap_studies as bench

CLASSES, SUPPORT = ["νµ CC", "νe CC", "NC"], [40, 30, 30]


def run(folder: Path, name: str) -> Path:
    (folder / name / "export").mkdir(parents=True)
    (folder / name / "export" / "config.json").write_text("{}")
    return folder / name


def scores(accuracy: float, **more) -> dict:
    return {"accuracy": accuracy, "macro_auc": (1 + accuracy) / 2, "expected_error": 0.1, **more}


def result(name: str, accuracy: float) -> dict:
    """What scripts/study.py writes, as far as the tables need it."""
    of_events = {"classes": CLASSES, "support": SUPPORT, "events": 100}
    if name in bench.LEVELS:
        series = {"missing_view": "without XZ", "noise": "above 3 σ"}.get(name, "energy shared")
        rows = [scores(accuracy, words="as they are", series="as they are", value=1)]
        rows.append(scores(accuracy - 0.2, words=f"{name} worse", series=series, value=2))
        return {**of_events, "levels": rows, "axis": "strength"}
    if name == "calibration":
        sides = {s: scores(accuracy, expected_error=e, nll=e * 5) for s, e in (("before", 0.2), ("after", 0.05))}
        return {**of_events, "fit": {"temperature": 1.75}, **sides}
    fall = {"events": 9, "share": 0.4, "fall": 0.3, "patch_fall": 0.1, "difference": 0.2, "p_value": 0.01}
    fall |= {f"{key}_error": 0.02 for key in ("fall", "patch_fall", "difference")}
    return {"classes": CLASSES, "events": 9, "rows": {"brightest": {"all": fall}}, "per_event": {"brightest": []}}


@pytest.fixture
def runs(tmp_path) -> dict:
    found = {("CNN", 0): run(tmp_path, "cnn-0"), ("CNN", 1): run(tmp_path, "cnn-1"), ("VLM", 0): run(tmp_path, "vlm-0")}
    for (_, seed), path in found.items():
        (path / "studies").mkdir()
        for name in (*bench.ALL, *bench.OF_WORDS):
            if name not in bench.OF_WORDS:
                (path / "studies" / f"{name}.json").write_text(json.dumps(result(name, 0.7 + 0.02 * seed)))
            else:
                own = {"runs_in": "/home/me", "rows": [{"examples": ["/home/me/maps.h5#3"]}]}
                (path / "studies" / f"{name}.json").write_text(json.dumps(own))
            words = f"# About {name}\n\ntable of {name}\n\n![{name}]({name}.png)\n"
            (path / "studies" / f"{name}.md").write_text(words)
            (path / "studies" / f"{name}.png").write_bytes(b"picture")
    return found


def test_every_run_has_the_studies_that_suit_it(runs):
    jobs = bench.jobs_of(runs, 300)
    by = {key: {name for k, name in jobs if k == key} for key in runs}
    assert by["CNN", 0] == set(bench.ALL) and by["CNN", 1] == set(bench.ALL) - {"faithfulness"}
    assert by["VLM", 0] == {*bench.ALL, *bench.OF_WORDS}
    assert next(iter(jobs))[0] == ("VLM", 0)  # the slow ones first
    flags = jobs[("CNN", 0), "noise"]
    assert json.loads(flags[flags.index("--levels") + 1]) == bench.LEVELS["noise"] and "300" in flags
    assert str(bench.COVERED) in jobs[("CNN", 0), "faithfulness"]


def test_the_studies_are_those_of_the_command(runs):
    from nufm.commands.study import STUDIES, parser

    assert {name for _, name in bench.jobs_of(runs, 10)} == set(STUDIES)
    for flags in bench.jobs_of(runs, 10).values():
        parser().parse_args(["--study", *flags])  # ends the process at a flag that is not there


def test_a_study_is_made_again_for_other_flags_or_weights(runs):
    flags = bench.jobs_of(runs, 300)[("CNN", 0), "noise"]
    assert not bench.done(flags)
    bench.record_of(flags).write_text(json.dumps(flags))
    assert bench.done(flags)
    assert not bench.done([*flags[:4], "200", *flags[5:]])
    weights = runs["CNN", 0] / "export" / "config.json"
    later = weights.stat().st_mtime + 1000
    os.utime(weights, (later, later))
    assert not bench.done(flags)


def test_tables_and_pictures(runs, tmp_path):
    jobs = bench.jobs_of(runs, 300)
    for flags in jobs.values():
        bench.record_of(flags).write_text(json.dumps(flags))
    bench.write(runs, jobs, 300, tmp_path / "out")
    text = (tmp_path / "out" / "pixelmap_studies.md").read_text()
    assert "simulated by nufm" in text and "40 νµ CC, 30 νe CC, 30 NC" in text
    # The mean of 70 and 72 and their standard deviation, √2; the order of the models is that of the benchmark of them.
    assert "| **as they are** | 70.0 | 71.0 ± 1.4 |" in text and "| Accuracy (%) | VLM | CNN |" in text
    assert "| noise: noise worse | 50.0 | 51.0 ± 1.4 |" in text
    assert text.count("**as they are**") == 2
    assert "| CNN | 1.75, 1.75 | 20.0 ± 0.0 | 5.0 ± 0.0 | 1.000 | 0.250 | 71.0 ± 1.4 |" in text
    assert "| CNN: the region with most charge | 9 | 40.0 | 30.0 ± 2.0 | 10.0 ± 2.0 | 20.0 ± 2.0 | 0.01 |" in text
    assert "## VLM: About few_shot" in text and "![" not in text
    report = json.loads((tmp_path / "out" / "pixelmap_studies.json").read_text())
    assert report["commit"] and report["hardware"] and report["seed"] == [0, 1]
    assert report["data"] == "simulated by nufm"
    assert "per_event" not in json.dumps(report) and "/home/me" not in json.dumps(report)
    assert report["studies"]["few_shot"]["VLM"][0]["rows"][0]["examples"] == ["maps.h5#3"]
    assert imread(tmp_path / "out" / "pixelmap_studies.png").std() > 0.01
    assert (tmp_path / "out" / "pixelmap_studies_lora_rank.png").read_bytes() == b"picture"


def test_no_run_and_no_study_is_said(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--runs", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="no run in"):
        bench.main()
    with pytest.raises(SystemExit, match="no study is finished"):
        bench.write(runs, bench.jobs_of(runs, 300), 300, tmp_path / "out")
