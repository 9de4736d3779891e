"""The benchmark of transfer: its runs differ in the start alone, its tables hold what was measured."""

# ruff: noqa: E402

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as when one of them is run as a script

import transfer
from study import SETTINGS

from nufm.checkpoint import save_pretrained
from nufm.commands.finetune import FinetuneCLI
from nufm.models.particle_network import ParticleNetwork
from nufm.models.patches import PatchStack
from nufm.models.stream_encoder import StreamEncoder


@pytest.mark.parametrize("task", transfer.TASKS)
def test_methods_differ_in_their_start_alone(task):
    """Every other setting of the runs is the same."""
    seen, pretrained = [], []
    for method in transfer.METHODS:
        script, *flags = transfer.training(Path("RUN"), task, method, 3).command
        config = FinetuneCLI(flags, build=False).config
        assert script == "finetune.py" and config.seed_everything == 3
        pretrained.append(config.pretrained)
        settings = json.loads(json.dumps(config.as_dict(), default=str))
        for name in ("regime", "reuse", "layer_decay"):
            settings["model"]["init_args"].pop(name)
        settings.pop("pretrained")
        seen.append(settings)
    assert seen[0] == seen[1] == seen[2] and pretrained == [None, "RUN", "RUN"]


def test_names_of_runs_are_their_own():
    methods = [m + add for m in transfer.METHODS for add in ("", transfer.NUMBERS)]
    names = [transfer.run_name(t, m, s) for t in transfer.TASKS for m in methods for s in (0, 1)]
    assert len(set(names)) == len(names) and not any(set(name) & set(" ,+/") for name in names)


def test_without_a_pretrained_run_the_message_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["transfer.py", "--pretrained", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"fasercal_mae\.yaml"):
        transfer.main()


def test_published_rows():
    """Mean of the diagonals as in the sheet, 0.772 and 0.706; the columns of single and of all particles."""
    rows = {row[0]: row for row in transfer.published_rows("superfgd", 4)}
    assert rows["published, MAE+Rel"][2] == "0.772" and rows["published, Scratch"][2] == "0.706"
    assert rows["published, MAE+Rel"][4:] == ["0.943", "0.609", "0.748", "0.787"]
    multi = {row[0]: row for row in transfer.published_rows("pilarnet_multi", 5)}
    assert multi["published, MAE+Rel"][1:4] == ["0.966", "–", "0.951"] and multi["published, MC dropout"][1] == "–"
    single = {row[0]: row for row in transfer.published_rows("pilarnet_single", 5)}
    assert single["published, Scratch"][1:4] == ["0.880", "–", "0.834"]


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """Runs as they would have been left behind: exports of untrained networks."""
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path / "cache"))
    sizes = {"events": {"n_train": 48, "n_val": 4, "n_test": 32}, "steps": 1, "batch": 8}
    monkeypatch.setitem(transfer.TASKS, "superfgd", sizes)
    for seed, method in enumerate(("Scratch", "MAE+Rel")):
        torch.manual_seed(seed)
        stack = PatchStack(
            "voxels", (120, 120, 120), (12, 12, 10), window=(2, 2, 2), channels=12, depth=1, heads=2,
            positions="sincos", group_code="sincos",
        )  # fmt: skip
        network = ParticleNetwork(StreamEncoder(stack, latent_depth=1, heads=2), 4)
        torch.nn.init.normal_(network.head[-1].weight)
        run = tmp_path / "runs" / transfer.run_name("superfgd", method, 0)
        data = transfer.test_events("superfgd")
        save_pretrained(run / "export", network, transforms=data.transforms, task="superfgd")
        command = list(transfer.training(tmp_path / "pretrained", "superfgd", method, 0).command)
        (run / SETTINGS).write_text(json.dumps({"command": command, "commit": "abc"}))
    return tmp_path


def test_tables_of_finished_runs(small, monkeypatch):
    argv = ["transfer.py", "--pretrained", str(small / "pretrained"), "--runs", str(small / "runs"), "--finished"]
    monkeypatch.setattr(sys, "argv", [*argv, "--seeds", "0", "--out", str(small / "out")])
    transfer.main()
    report = json.loads((small / "out" / "transfer.json").read_text())
    found = report["scores"]["superfgd"]
    assert set(found) == {"Scratch", "MAE+Rel", transfer.TREES}, "what is not there is left out"
    for runs in found.values():
        counts = np.array(runs[0]["confusion"])
        assert counts.sum() == 32 and (counts.sum(1) == 8).all(), "eight test particles of each class"
        assert runs[0]["accuracy"] == pytest.approx(counts.trace() / 32)
    assert found["Scratch"][0]["confusion"] != found["MAE+Rel"][0]["confusion"]
    table = (small / "out" / "transfer.md").read_text()
    assert f"{found['Scratch'][0]['accuracy']:.3f}" in table and "simulated by nufm" in table
    assert "published, GBDT-Transformer" in table and (small / "out" / "transfer_superfgd.png").stat().st_size > 1000
