"""``scripts/finetune.py`` on tokens: from a masked pretraining to four classes, without low-energy deposits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from run_support import write_config, write_data

from nufm.checkpoint import from_pretrained
from nufm.commands.finetune import finetune
from nufm.commands.pretrain import pretrain
from nufm.data.pilarnet import PILArNetReader
from nufm.models.token_segmenter import LinearTokenSegmenter, TokenSegmenter

ENCODER = {
    "class_path": "nufm.models.token_encoder.TokenEncoder",
    "init_args": {
        "tokenizer": {"class_path": "nufm.models.tokens.Tokenizer", "init_args": {"max_points": 8}},
        "channels": 16, "depth": 2, "heads": 2, "feature_blocks": [0, 1],
    },
}  # fmt: skip
NETWORK = {
    "class_path": "nufm.models.token_segmenter.TokenSegmenter",
    "init_args": {"encoder": ENCODER, "n_classes": 4, "hidden": 12},
}


def config(path: Path, data: Path, model: dict) -> Path:
    """A run of ``model`` on the events of ``data``, as published without low-energy deposits."""
    content = yaml.safe_load(write_config(path, data, trainer__max_steps=2).read_text())
    content["model"] = model
    del content["data"]["init_args"]["views"], content["report"]
    content["data"]["init_args"]["transforms"].append({"class_path": "nufm.data.transforms.WithoutLED"})
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Events, and the encoder of a masked pretraining."""
    folder = tmp_path_factory.mktemp("tokens")
    method = {
        "class_path": "nufm.methods.masked_points.MaskedPoints",
        "init_args": {"encoder": ENCODER, "decoder_depth": 1},
    }
    path = config(folder / "pretrain.yaml", write_data(folder / "data"), method)
    pretrain(["--config", str(path), "--run", str(folder / "pretrained"), "--report.enabled", "false"])
    return folder


def run(folder: Path, regime: str, *flags: str) -> Path:
    model = {
        "class_path": "nufm.methods.segmentation.Segmentation",
        "init_args": {
            "network": NETWORK, "task": "motif4", "regime": regime, "learning_rate": 1e-3, "decay": "all",
            "schedule": "warmup_cosine", "focal_gamma": 2.0, "class_weights": [2.0, 2.0, 100.0, 40.0],
            "lovasz_weight": 0.0,
        },
    }  # fmt: skip
    path = config(folder / f"{regime}.yaml", folder / "data", model)
    finetune(["--config", str(path), "--run", str(folder / regime), *flags])
    return folder / regime


@pytest.mark.parametrize(("regime", "moves"), [("dec", False), ("full", True), ("lin", False)])
def test_a_regime_from_a_masked_pretraining(folder, regime, moves):
    """Frozen encoders are those of the pretraining bit for bit, running means of their norms included."""
    flags = ("--pretrained", str(folder / "pretrained"), "--evaluation.enabled", "false")
    done = run(folder, regime, *flags)
    before, model = from_pretrained(folder / "pretrained").encoder.state_dict(), from_pretrained(done)
    after = model.encoder.state_dict()
    same = {k: torch.equal(before[k], after[k]) for k in before}
    assert before.keys() == after.keys() and all(same.values()) != moves
    assert same["embedding.first.1.running_mean"] != moves
    assert isinstance(model.model, LinearTokenSegmenter if regime == "lin" else TokenSegmenter)
    assert model.task == "motif4" and type(model.transforms[-1]).__name__ == "WithoutLED"


def test_scores_are_of_the_four_classes(folder):
    """From scratch; every voxel that is no low-energy deposit counts, and no other."""
    done = run(folder, "scratch")
    assert from_pretrained(done).extra["regime"] == "scratch"
    found = json.loads((done / "evaluation" / "test" / "scores.json").read_text())
    assert found["classes"] == ["shower", "track", "Michel", "delta"] and found["events"] == 4
    reader = PILArNetReader(folder / "data" / "test" / "events.h5", min_points=0)
    motif = np.concatenate([reader[i].motif for i in range(4)])
    assert (motif == 4).any() and sum(found["points"]["support"]) == (motif != 4).sum()


def test_what_does_not_fit_is_said_before_anything_is_written(folder, capsys):
    flags = ("--pretrained", str(folder / "pretrained"), "--model.network.encoder.tokenizer.max_points", "16")
    with pytest.raises(SystemExit) as stop:
        run(folder, "full", *flags, "--run", str(folder / "misfit"))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "encoder tokenizer max_points: found 8 in the checkpoint, expected 16" in said
    assert not (folder / "misfit").exists()
