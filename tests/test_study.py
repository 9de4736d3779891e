"""Runs of a study: in order, once, and with one command each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from study import SETTINGS, Job, finished, run_jobs

# A script that needs the file of another run, and writes its own.
SCRIPT = """
import sys, pathlib, time
flags = sys.argv[1:]
run = pathlib.Path(flags[flags.index("--run") + 1])
assert flags[flags.index("--threads") + 1] == "1"
if "--pretrained" in flags:
    assert (pathlib.Path(flags[flags.index("--pretrained") + 1]) / "done").is_file()
else:
    time.sleep(0.5)
if "--fail" in flags:
    raise SystemExit("no such thing")
(run / "done").write_text(str(int((run / "done").read_text()) + 1) if (run / "done").is_file() else "1")
"""


@pytest.fixture
def scripts(tmp_path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").write_text(SCRIPT)
    return tmp_path / "scripts"


def test_runs_wait_for_what_they_start_from_and_are_not_repeated(tmp_path, scripts):
    runs = tmp_path / "runs"
    jobs = {
        "first": Job(("train.py",), "done"),
        "second": Job(("train.py", "--pretrained", str(runs / "first")), "done", ("first",)),
    }
    run_jobs(jobs, runs, 2, scripts)
    run_jobs(jobs, runs, 2, scripts)
    assert all((runs / name / "done").read_text() == "1" and finished(runs / name, job) for name, job in jobs.items())
    assert json.loads((runs / "second" / SETTINGS).read_text())["commit"]


def test_another_command_is_refused(tmp_path, scripts):
    run_jobs({"a": Job(("train.py",), "done")}, tmp_path, 1, scripts)
    with pytest.raises(SystemExit, match="made with another command"):
        finished(tmp_path / "a", Job(("train.py", "--more"), "done"))


def test_a_failure_ends_the_study_with_its_log(tmp_path, scripts):
    with pytest.raises(SystemExit, match=r"bad failed, see [\s\S]*no such thing"):
        run_jobs({"bad": Job(("train.py", "--fail"), "done")}, tmp_path, 1, scripts)
