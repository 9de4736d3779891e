"""Slurm, without Slurm: its variables, a real signal, and an ``scontrol`` that writes down what it is
asked.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from run_support import callback, weights, write_config, write_data

from nufm.commands.pretrain import pretrain
from nufm.running.checkpointing import verify
from nufm.running.folder import new_run_folder, slurm_job

JOB = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NAME": "pretrain",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Variables of a batch job and a fake scontrol; gives what was asked of it."""
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    asked = tmp_path / "asked"
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    state = '[ "$1" = show ] && echo "   JobState=$FAKE_STATE Reason=None"'
    tool.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n{state}\nexit 0\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_STATE", "RUNNING")
    monkeypatch.chdir(tmp_path)
    return lambda: asked.read_text().splitlines() if asked.exists() else []


def run(folder: Path, *args: str, **changes: object) -> int:
    """Exit status of a run of 8 steps."""
    config = write_config(folder / "mini.yaml", folder / "data", trainer__max_steps=8, **changes)
    try:
        pretrain(["--config", str(config), *args])
    except SystemExit as stop:
        return stop.code
    return 0


def test_sigusr1_saves_requeues_and_the_requeued_job_goes_on(slurm, tmp_path, monkeypatch, capsys):
    write_data(tmp_path / "data")
    never = {"checkpoint__every_n_steps": 1000}  # so that only the signal can have saved
    assert run(tmp_path, trainer__callbacks=callback("SignalAt", step=3, name="SIGUSR1"), **never) == 0
    assert slurm() == ["requeue 123456"]
    assert "the job is requeued" in capsys.readouterr().err
    folder = tmp_path / "runs" / "mini" / "slurm-123456"
    # The signal came in step 3 (counted from 0): the step is finished, then saved.
    assert verify(folder / "checkpoints/last.ckpt")["step"] == 4

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run(tmp_path, **never) == 0
    assert "step 4" in capsys.readouterr().err
    assert [p.name for p in folder.parent.iterdir()] == ["slurm-123456"]

    assert run(tmp_path, "--run", "whole", **never) == 0
    whole = weights(folder.parent / "whole/checkpoints/last.ckpt")
    resumed = weights(folder / "checkpoints/last.ckpt")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize(("state", "code", "asked"), [("RUNNING", 0, 2), ("CANCELLED", 143, 1)])
def test_sigterm_requeues_unless_cancelled(slurm, tmp_path, monkeypatch, state, code, asked):
    write_data(tmp_path / "data")
    monkeypatch.setenv("FAKE_STATE", state)
    assert run(tmp_path, trainer__callbacks=callback("SignalAt", step=2, name="SIGTERM")) == code
    assert slurm() == ["show job 123456", "requeue 123456"][:asked]
    assert verify(tmp_path / "runs/mini/slurm-123456/checkpoints/last.ckpt")["step"] == 3


def test_without_slurm_a_signal_saves_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    assert run(tmp_path, "--run", "a", trainer__callbacks=callback("SignalAt", step=2, name="SIGTERM")) == 143
    assert "continue with the same command and --run a --ckpt_path last" in capsys.readouterr().err
    assert run(tmp_path, "--run", "a", "--ckpt_path", "last") == 0
    assert verify(tmp_path / "runs/mini/a/checkpoints/last.ckpt")["step"] == 8


def test_names_of_job_folders(slurm, tmp_path, monkeypatch):
    assert new_run_folder(tmp_path, None) == tmp_path / "slurm-123456"
    assert new_run_folder(tmp_path, "mine") == tmp_path / "mine"
    for step, name in (("0", "slurm-123456"), ("2", "slurm-123456-step2"), ("4294967291", "slurm-123456")):
        monkeypatch.setenv("SLURM_STEP_ID", step)
        assert slurm_job() == name
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # an interactive allocation
    assert slurm_job() is None
