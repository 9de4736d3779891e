"""scripts/export.py: finished, unfinished and released models become folders that need nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from run_support import write_config, write_data

import nufm
from nufm.checkpoint import from_pretrained
from nufm.commands.export import export, load
from nufm.commands.finetune import finetune
from nufm.commands.pretrain import pretrain
from nufm.data.transforms import LogEnergy, NormalizeCoord
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.segmenter import Segmenter

SEGMENTATION = {
    "class_path": "nufm.methods.segmentation.Segmentation",
    "init_args": {
        "network": {
            "class_path": "nufm.models.segmenter.Segmenter",
            "init_args": {
                "encoder": {
                    "class_path": "nufm.models.ptv3.PointTransformerV3",
                    "init_args": {"depths": [1, 1], "channels": [16, 32], "heads": [1, 2], "window": 32},
                },
                "decoder": {
                    "class_path": "nufm.models.segmenter.Decoder",
                    "init_args": {"encoder_channels": [16, 32], "depths": [1], "channels": [16], "heads": [1]},
                },
                "n_classes": 5,
            },
        },
        "task": "motif",
        "regime": "scratch",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def pretraining(folder) -> Path:
    config = write_config(folder / "mini.yaml", folder / "data", trainer__max_steps=2)
    pretrain(["--config", str(config), "--run", str(folder / "pretraining")])
    return folder / "pretraining"


@pytest.fixture(scope="module")
def segmentation(folder) -> Path:
    config = write_config(
        folder / "segment.yaml", folder / "data", trainer__max_steps=2, model=SEGMENTATION,
        evaluation={"enabled": False}, data__init_args__energy_threshold=0.4,
    )  # fmt: skip
    content = yaml.safe_load(config.read_text())
    content["data"]["init_args"].pop("views")
    content.pop("report")
    config.write_text(yaml.safe_dump(content))
    finetune(["--config", str(config), "--run", str(folder / "segmentation")])
    return folder / "segmentation"


def unfinished(run: Path, place: Path) -> Path:
    """The run as it was before its end."""
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("export", "report*", "best.ckpt*"))
    return place


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_run(segmentation, folder, tmp_path, capsys) -> None:
    (segmentation / "report.md").write_text("# Scores of the run\n\nmacro F1 **97.1**\n\n![](pictures/a.png)\n")
    export(["--checkpoint", str(segmentation), "--out", str(tmp_path / "model"), "--licence", "MIT"])
    (segmentation / "report.md").unlink()
    assert "Segmenter" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")  # it needs nothing else
    loaded = nufm.from_pretrained(tmp_path / "elsewhere")
    assert same(loaded.model, from_pretrained(segmentation).model)
    events = folder / "data" / "test" / "events.h5"
    for a, b in zip(loaded.predict(events), from_pretrained(segmentation).predict(events), strict=True):
        np.testing.assert_array_equal(a.label, b.label)
        assert a.energy.min() > 0.4  # the run's own selection
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    for part in ("license: mit", "# model", "Task `motif`", "0 shower, 1 track, 2 Michel, 3 delta, 4 LED", "0.4 MeV",
                 "`LogEnergy(epsilon=0.01, e_max=20.0)`", "| energy | MeV |", "### Scores of the run", "**97.1**",
                 'predict("events.h5")', "Weights: MIT", str(folder / "data")):  # fmt: skip
        assert part in card, part
    parameters = sum(p.numel() for p in loaded.model.parameters())
    assert f"{parameters:,} parameters" in card and "a.png" not in card
    described = json.loads(re.search(r"```json\n(.*?)```", card, re.S)[1])
    assert described == json.loads((tmp_path / "elsewhere" / "config.json").read_text())["model"]


def test_the_cards_example_runs(segmentation, pretraining, folder, tmp_path, monkeypatch) -> None:
    shutil.copy(folder / "data" / "test" / "events.h5", tmp_path / "events.h5")
    monkeypatch.chdir(tmp_path)
    for run in (segmentation, pretraining):
        export(["--checkpoint", str(run), "--out", "FOLDER"])
        code = re.search(r"```python\n(.*?)```", Path("FOLDER/README.md").read_text(), re.S)[1]
        exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("name", ["run", "checkpoint"])
def test_a_run_that_has_not_ended(name, segmentation, tmp_path) -> None:
    run = unfinished(segmentation, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"neither an export.*scripts/export\.py"):
        from_pretrained(run)
    source = run if name == "run" else run / "checkpoints" / "last.ckpt"
    export(["--checkpoint", str(source), "--out", str(tmp_path / "out")])
    loaded = from_pretrained(tmp_path / "out")
    trained = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(v, trained[f"network.{k}"]) for k, v in loaded.model.state_dict().items())
    assert loaded.task == "motif" and loaded.energy_threshold == 0.4 and loaded.grid_size == 0.002
    assert loaded.transforms == (NormalizeCoord(), LogEnergy())
    assert loaded.extra["steps"] == 2 and loaded.extra["regime"] == "scratch"
    assert isinstance(loaded.model, Segmenter)


def test_a_linear_run_has_no_decoder_to_export(segmentation, pretraining, folder, tmp_path) -> None:
    """Its configuration names one, which the method leaves out."""
    config = yaml.safe_load((folder / "segment.yaml").read_text())
    config["model"]["init_args"]["regime"] = "lin"
    config["data"]["init_args"].pop("energy_threshold")
    (tmp_path / "lin.yaml").write_text(yaml.safe_dump(config))
    done = tmp_path / "lin"
    finetune(["--config", str(tmp_path / "lin.yaml"), "--pretrained", str(pretraining), "--run", str(done)])
    assert config["model"]["init_args"]["network"]["init_args"]["decoder"] is not None
    loaded = load(unfinished(done, tmp_path / "run"))
    assert loaded.model.decoder is None and loaded.extra["regime"] == "lin"
    trained = torch.load(done / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {f"network.{k}" for k in loaded.model.state_dict()} == {k for k in trained if k.startswith("network.")}
    assert all(torch.equal(v, trained[f"network.{k}"]) for k, v in loaded.model.state_dict().items())


def test_a_pretraining_says_how_its_events_were_read(folder, tmp_path, capsys) -> None:
    config = write_config(
        tmp_path / "c.yaml", folder / "data", trainer__max_steps=2, report__enabled=False,
        data__init_args__energy_threshold=0.4,
    )  # fmt: skip
    pretrain(["--config", str(config), "--run", str(tmp_path / "run")])
    assert from_pretrained(tmp_path / "run").selection == {"energy_threshold": 0.4}
    content = yaml.safe_load(config.read_text())
    content["data"]["init_args"].pop("views")
    content.pop("report")
    content["data"]["init_args"]["energy_threshold"] = 0.13
    content["model"] = json.loads(json.dumps(SEGMENTATION))
    content["model"]["init_args"]["regime"] = "full"
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit):
        finetune(["--config", str(tmp_path / "f.yaml"), "--pretrained", str(tmp_path / "run")])
    assert "energy_threshold in MeV: found 0.4 in the checkpoint, expected 0.13" in capsys.readouterr().err


def test_branches_of_a_pretraining(pretraining, tmp_path) -> None:
    run = unfinished(pretraining, tmp_path / "run")
    trained = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for branch in ("teacher", "student"):
        loaded = load(run, branch)
        assert isinstance(loaded.model, PointTransformerV3) and loaded.task is None
        assert all(torch.equal(v, trained[f"{branch}.backbone.{k}"]) for k, v in loaded.model.state_dict().items())
    assert same(load(run).model, from_pretrained(pretraining).model)  # what a run exports itself
    assert not same(load(pretraining, "student").model, load(pretraining).model)


def test_released_weights(tmp_path) -> None:
    torch.manual_seed(0)
    model = PointTransformerV3(depths=(1, 1), channels=(16, 32), heads=(1, 2))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "panda_base.pth")
    export(["--checkpoint", str(tmp_path / "panda_base.pth"), "--out", str(tmp_path / "out"), "--name", "Panda-Base"])
    assert same(from_pretrained(tmp_path / "out").model, model)
    card = (tmp_path / "out" / "README.md").read_text()
    # A file of this layout may be anyone's.
    assert "# Panda-Base" in card and "| Panda-format weights |" in card
    assert "license: unknown" in card and "Weights: not stated" in card and "MIT" not in card


def test_what_is_refused(segmentation, tmp_path, capsys) -> None:
    def refused(source: Path, message: str, out: Path | None = None) -> None:
        with pytest.raises(SystemExit) as stop:
            export(["--checkpoint", str(source), "--out", str(out or tmp_path / "out")])
        assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "out").exists()

    refused(tmp_path / "none", "no such file or folder")
    refused(tmp_path / "none.ckpt", "no such file or folder")
    (tmp_path / "a file").write_text("x")
    refused(segmentation, "is a file, expected a folder", tmp_path / "a file")
    run = unfinished(segmentation, tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    last.write_bytes(whole[:-10])
    refused(last, "incomplete or was changed")
    refused(run, "neither an export/ nor a complete checkpoint")
    last.write_bytes(whole)
    config = yaml.safe_load((run / "config.yaml").read_text())
    other = json.loads(json.dumps(config))
    other["model"]["init_args"]["network"]["init_args"]["n_classes"] = 6
    (run / "config.yaml").write_text(yaml.safe_dump(other))
    refused(run, r"wrong shape: head")
    other["model"]["init_args"]["network"]["class_path"] = "os.system"
    (run / "config.yaml").write_text(yaml.safe_dump(other))
    refused(run, "not allowed")
    (run / "config.yaml").write_text("model: 3")
    refused(run, r"config\.yaml: not the configuration of a run")
    shutil.copytree(run / "checkpoints", tmp_path / "alone" / "checkpoints")
    refused(tmp_path / "alone" / "checkpoints" / "last.ckpt", r"not released weights.*RUN/checkpoints")
