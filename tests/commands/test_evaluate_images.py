"""scripts/evaluate.py on a run of pixel maps: its own test events, other files, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toy_maps import toy_event, toy_events

from nufm.checkpoint import from_pretrained, save_pretrained
from nufm.commands.evaluate import evaluate, run
from nufm.commands.inputs import data_module_of, run_data
from nufm.data.image_datamodule import ImageDataModule
from nufm.data.image_hdf5 import write_maps
from nufm.data.image_png import write_png_folder
from nufm.data.image_transforms import Brightness, Rebin
from nufm.models.se_resnet import SiameseSEResNet


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder that says where its events are: test has 9, of 32 × 32 pixels."""
    folder = tmp_path_factory.mktemp("run")
    for split, n in (("train", 3), ("val", 6), ("test", 9)):
        write_maps(folder / "data" / split / "maps.h5", toy_events(n), {"producer": "simulated by nufm"})
    torch.manual_seed(0)
    network = SiameseSEResNet(channels=(4, 8), blocks=(1, 1))
    save_pretrained(folder / "export", network, transforms=[Rebin(2), Brightness()], task="pixelmaps")
    settings = {
        "root": str(folder / "data"), "size": 32, "batch_size": 4, "num_workers": 2, "max_events": 3,
        "augment": [{"class_path": "nufm.data.image_transforms.FlipTransverse"}],
        "transforms": [{"class_path": "nufm.data.image_transforms.Brightness"}],
    }  # fmt: skip
    data = {"class_path": "nufm.data.image_datamodule.ImageDataModule", "init_args": settings}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    (folder / "environment.json").write_text("{}")
    return folder


def test_what_is_taken_from_a_run(trained):
    """Where its events are; not how it trained, and not what comes with the weights."""
    assert data_module_of(["--checkpoint", str(trained)]) is ImageDataModule
    assert run_data(trained) == {"root": str(trained / "data"), "size": 32}


def test_a_run_folder_is_enough(trained):
    found = run(["--checkpoint", str(trained), "--threads", "1", "--cost", "false"])
    out = trained / "evaluation" / "test"
    assert json.loads((out / "scores.json").read_text()) == found
    assert found["events"] == 9 and found["simulated"] is True and found["inputs"] == "images" and "cost" not in found
    assert found["data"]["files"]["test"] == [str(trained / "data" / "test" / "maps.h5")]
    said = from_pretrained(trained).predict(trained / "data" / "test" / "maps.h5")
    right = sum(int(p.probability["interaction"].argmax()) == i % 3 for i, p in enumerate(said))
    assert found["labels"]["interaction"]["accuracy"] == pytest.approx(right / 9)
    for name in ("report.md", "events.csv", "config.yaml", "examples.png", "events.html", "roc_interaction.png"):
        assert (out / name).stat().st_size > 100
    assert "simulated by nufm" in (out / "report.md").read_text()


def test_other_files(trained, tmp_path, capsys):
    write_png_folder(tmp_path / "png", toy_events(6))
    flags = ["--events", str(tmp_path / "png"), "--max_events", "4", "--examples", "0", "--cost", "false"]
    found = run(["--checkpoint", str(trained), *flags, "--out", str(tmp_path / "out")])
    assert found["events"] == 4 and found["simulated"] is False
    printed = capsys.readouterr().out
    assert "efficiency / purity" in printed and "Pictures beside them: efficiency_purity_interaction.png" in printed


def test_cost_is_told(trained, tmp_path):
    found = run(["--checkpoint", str(trained), "--split", "val", "--examples", "0", "--out", str(tmp_path / "out")])
    assert found["cost"]["ms"] > 0 and found["cost"]["repeats"] >= 5
    assert "ms in the network" in (tmp_path / "out" / "report.md").read_text()


def refused(capsys, *flags: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        evaluate(list(flags))
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_what_is_refused(trained, tmp_path, capsys):
    given = ("--checkpoint", str(trained), "--out", str(tmp_path / "out"))
    write_maps(tmp_path / "large.h5", [toy_event(0, size=64)])
    said = refused(capsys, *given, "--events", str(tmp_path / "large.h5"))
    assert "maps of 64 × 64 pixels, expected 32 × 32" in said
    write_maps(tmp_path / "unlabelled.h5", [toy_event(0).replace(truth={})])
    said = refused(capsys, *given, "--events", str(tmp_path / "unlabelled.h5"))
    assert "the task 'pixelmaps' needs the truth 'interaction'" in said
    assert "nothing.h5 is not there" in refused(capsys, *given, "--events", str(tmp_path / "nothing.h5"))
    said = refused(capsys, *given, "--data.transforms", "[]")
    assert "the events would be prepared otherwise than in training" in said and "Rebin(factor=2)" in said
    assert "min_points" in refused(capsys, *given, "--data.min_points", "3")
    assert not (tmp_path / "out").exists()
