"""``scripts/finetune.py`` from its flags to its scores: every regime, refusals before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from run_support import write_config, write_data

from nufm.checkpoint import from_pretrained
from nufm.commands.export import scores_of
from nufm.commands.finetune import finetune
from nufm.commands.pretrain import pretrain

ENCODER = {"depths": [1, 1], "channels": [16, 32], "heads": [1, 2], "window": 32, "mask_token": False}
SEGMENTER = {
    "class_path": "nufm.models.segmenter.Segmenter",
    "init_args": {
        "encoder": {"class_path": "nufm.models.ptv3.PointTransformerV3", "init_args": ENCODER},
        "decoder": {
            "class_path": "nufm.models.segmenter.Decoder",
            "init_args": {"encoder_channels": [16, 32], "depths": [1], "channels": [16], "heads": [2]},
        },
        "n_classes": 5,
    },
}
UNET = {
    "class_path": "nufm.models.uresnet.UResNet",
    "init_args": {"columns": ["log_energy"], "filters": 4, "depth": 3, "repetitions": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Events, and a pretrained encoder of a run."""
    folder = tmp_path_factory.mktemp("finetune")
    data = write_data(folder / "data")
    pretrain(["--config", str(write_config(folder / "pretrain.yaml", data, trainer__max_steps=2)),
              "--run", str(folder / "pretrained")])  # fmt: skip
    return folder


def config(folder: Path, name: str = "config.yaml", network: dict = SEGMENTER, **changes: object) -> Path:
    """A run of a few steps on the events of ``folder``; ``changes`` as in ``write_config``."""
    path = write_config(folder / name, folder / "data", **changes)
    content = yaml.safe_load(path.read_text())
    arguments = {"network": network, "task": "motif", "regime": "full", "learning_rate": 1e-3}
    content["model"] = {"class_path": "nufm.methods.segmentation.Segmentation", "init_args": arguments}
    del content["data"]["init_args"]["views"], content["report"]
    content["trainer"] |= {"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None}
    content["checkpoint"] = {"every_n_steps": 2, "monitor": "val/macro_f1"}
    path.write_text(yaml.safe_dump(content))
    return path


def run(folder: Path, name: str, *flags: str, network: dict = SEGMENTER) -> Path:
    finetune(["--config", str(config(folder, f"{name}.yaml", network)), "--run", str(folder / name), *flags])
    return folder / name


def encoder_of(path: Path) -> dict[str, torch.Tensor]:
    return {k: v for k, v in from_pretrained(path).encoder.state_dict().items() if "mask_token" not in k}


@pytest.mark.parametrize(("regime", "moves"), [("full", True), ("dec", False), ("lin", False)])
def test_a_regime_from_a_pretrained_encoder(folder, regime, moves):
    """The run leaves an export that predicts, and scores of the test events; frozen encoders are those of the
    pretraining, bit for bit."""
    done = run(folder, regime, "--pretrained", str(folder / "pretrained"), "--model.regime", regime)
    before, after = encoder_of(folder / "pretrained"), encoder_of(done)
    same = all(torch.equal(before[k], after[k]) for k in before)
    assert before.keys() == after.keys() and same != moves
    model = from_pretrained(done)
    assert model.task == "motif" and model.extra["regime"] == regime
    found = json.loads((done / "evaluation" / "test" / "scores.json").read_text())
    predictions = model.predict(folder / "data" / "test" / "events.h5")
    assert found["events"] == len(predictions) == 4
    assert sum(found["points"]["support"]) == sum(len(p) for p in predictions)
    assert (done / "evaluation" / "test" / "events.html").is_file()
    assert "macro" in scores_of(done), "its model card has the scores"


def test_scratch_and_uresnet_need_no_encoder(folder):
    for name, network in (("scratch", SEGMENTER), ("unet", UNET)):
        done = run(folder, name, "--model.regime", "scratch", "--evaluation.enabled", "false", network=network)
        assert from_pretrained(done).predict(folder / "data" / "test" / "events.h5")
        assert not (done / "evaluation").exists()


def test_the_best_checkpoint_is_exported(folder, monkeypatch):
    """By the validation score, which is made to fall: the first checkpoint counts, not the last."""
    from nufm.methods.segmentation import Segmentation

    def falling(self):
        self.log("val/macro_f1", 1.0 / (1 + self.global_step))

    monkeypatch.setattr(Segmentation, "on_validation_epoch_end", falling)
    flags = ("--model.regime", "scratch", "--evaluation.enabled", "false")
    done = run(folder, "best", *flags)
    best = torch.load(done / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 2
    exported = from_pretrained(done).model.state_dict()
    assert all(torch.equal(v, best["state_dict"][f"network.{k}"]) for k, v in exported.items())
    assert from_pretrained(done).extra["steps"] == 2


def test_labels_of_few_events(folder):
    """A budget smaller than an epoch's usual size is a run like any other."""
    flags = ("--data.max_events", "4", "--data.subset_seed", "1", "--evaluation.enabled", "false")
    assert run(folder, "few", "--model.regime", "scratch", *flags).is_dir()


def v1_file(path: Path) -> Path:
    """The training events of the fixture without their PID."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        flat = h5py.vlen_dtype(np.float32)
        point, cluster = (file.create_dataset(n, (1,), flat) for n in ("point", "cluster"))
        rows = np.zeros((40, 8), np.float32)
        rows[:, :3] = np.arange(40)[:, None] + 100
        rows[:, 3] = 1.0
        point[0], cluster[0] = rows.ravel(), np.array([40, 0, 0, 0, 1], np.float32)
    return path


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ["regime 'full' starts from a pretrained encoder", "--pretrained RUN"]),
        (("--pretrained", "nowhere"), ["nowhere"]),
        (("--pretrained", "PRE", "--model.regime", "scratch"), ["regime 'scratch' starts from random weights"]),
        (("--pretrained", "PRE", "--data.grid_size", "0.004"), ["does not fit", "grid_size", "0.002", "0.004"]),
        (("--pretrained", "PRE", "--model.network.encoder.window", "16"), ["does not fit", "window", "16"]),
        (("--model.regime", "scratch", "--model.network.n_classes", "4"), ["error: network.n_classes", "5 classes"]),
        (("--model.regime", "scratch", "--model.task", "particle"), ["panoptic"]),
        (
            ("--model.regime", "scratch", "--data.root", "V1", "--model.task", "pid", "--model.network.n_classes", "6"),
            ["no 'pid' labels", "v1", "--model.task"],
        ),
    ],
)
def test_refused_before_anything_is_written(folder, tmp_path, capsys, flags, words):
    places = {"PRE": str(folder / "pretrained"), "V1": str(tmp_path)}
    for split in ("train", "val", "test"):
        v1_file(tmp_path / split / "events.h5")
    given = [places.get(flag, flag) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        finetune(["--config", str(config(folder)), "--run", str(tmp_path / "run"), *given])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and all(word in said for word in words), said
    assert "Namespace" not in said and len(said.splitlines()) <= 6, said
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_goes_on_without_the_pretrained_encoder(folder):
    """All weights come from the checkpoint: the encoder's run may be gone."""
    flags = ("--pretrained", str(folder / "pretrained"), "--evaluation.enabled", "false")
    whole = run(folder, "whole", *flags)
    part = run(folder, "part", *flags, "--trainer.max_steps", "4")
    assert all(torch.equal(v, encoder_of(part)[k]) for k, v in encoder_of(whole).items())
    moved = (folder / "pretrained").rename(folder / "elsewhere")
    try:
        again = ["--config", str(folder / "part.yaml"), "--run", str(part), "--ckpt_path", "last"]
        finetune([*again, "--trainer.max_steps", "6"])
    finally:
        moved.rename(folder / "pretrained")
    assert torch.load(part / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
