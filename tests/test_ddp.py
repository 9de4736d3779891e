"""Two processes on the halves of a batch do what one process does on the whole."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from run_support import start, weights, write_config, write_data

from nufm.commands.pretrain import pretrain

# Drop path and the shuffled order of the curves are drawn per process: off, since they cannot agree.
SAME_DRAWS = {
    "model__init_args__encoder__init_args__drop_path": 0.0,
    "model__init_args__encoder__init_args__shuffle_orders": "never",
    "trainer__max_steps": 4,
}


def logged(run: Path) -> list[dict[str, float]]:
    with open(run / "metrics.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    config = write_config(tmp_path / "mini.yaml", write_data(tmp_path / "data"), **SAME_DRAWS)
    arguments = ["--config", str(config), "--runs_dir", str(tmp_path / "runs")]
    process = start([*arguments, "--run", "two", "--trainer.devices", "2"], tmp_path)
    pretrain([*arguments, "--run", "one"])
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert "2 process(es)" in output

    runs = tmp_path / "runs" / "mini"
    assert sorted(p.name for p in runs.iterdir()) == ["one", "two"], "both ranks must write into one folder"
    one, two = logged(runs / "one"), logged(runs / "two")
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-5)

    one, two = (weights(runs / name / "checkpoints/last.ckpt") for name in ("one", "two"))
    for name, value in one.items():
        if value.is_floating_point() and not name.startswith("optimizer."):
            assert torch.allclose(two[name], value, rtol=1e-4, atol=1e-5), name
