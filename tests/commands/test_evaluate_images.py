"""scripts/evaluate.py on a run of pixel maps: its own test events, other files, what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from image_events import write_volume
from toy_maps import toy_event, toy_events

from nufm.checkpoint import from_pretrained, save_pretrained
from nufm.commands.evaluate import evaluate, run
from nufm.commands.inputs import data_module_of, run_data
from nufm.commands.study import run as study
from nufm.data.image_datamodule import ImageDataModule
from nufm.data.image_files import ImageReader
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
    maps = {"shape": [32, 32], "size": 32, "centre": "charge", "detector": None, "pitch": 5.0, "unit": "MeV"}
    extra = {"maps": maps}
    save_pretrained(folder / "export", network, transforms=[Rebin(2), Brightness()], task="pixelmaps", extra=extra)
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


def test_files_that_do_not_say_everything(trained, tmp_path, caplog):
    """Unit, pitch and names of classes come from flags, in evaluations and in studies; a pitch other than in training
    is told."""
    events = toy_events(6)
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file["images"] = np.stack([[e.image("xz"), e.image("yz")] for e in events])
        file["labels"] = np.array([b"mu", b"e", b"none"] * 2)
    names = "{mu: numu CC, e: nue CC, none: NC}"
    flags = ["--checkpoint", str(trained), "--events", str(tmp_path / "bare.h5"), "--out", str(tmp_path / "out")]
    flags += ["--threads", "1", "--data.unit", "MeV", "--data.pitch", "4.0", "--data.labels", names]
    found = run([*flags, "--examples", "0", "--cost", "false"])
    studied = study(["missing_view", *flags])
    said = [p.probability["interaction"].argmax() for p in from_pretrained(trained).predict(events, progress=False)]
    right = sum(int(p) == i % 3 for i, p in enumerate(said)) / 6
    assert found["labels"]["interaction"]["accuracy"] == pytest.approx(right)
    assert studied["levels"][0]["accuracy"] == pytest.approx(right)
    assert found["labels"]["interaction"]["support"] == studied["support"] == [2, 2, 2]
    told = [r.message for r in caplog.records if "trained on other maps" in r.message]
    assert len(told) == 2 and all("a pitch of 4 mm in place of 5 mm." in text for text in told)


def test_three_dimensional_events_are_cut_out_as_in_training(trained, tmp_path):
    """By a study and an evaluation, of a run and of its export alone, which says how."""
    rng = np.random.default_rng(0)
    low = np.array([100, 100, 100])  # all in a corner, where the middle of the detector is not
    volume = [(low + np.stack(np.unravel_index(rng.choice(8000, 60, replace=False), (20,) * 3), 1), rng.random(60))]
    truth = {"interaction": np.array([1]), "vertex": np.zeros((1, 3), np.float32)}  # far from the charge
    write_volume(tmp_path / "volume.h5", volume, truth, detector="pixel_lartpc")
    (here,) = ImageReader(tmp_path / "volume.h5", size=32, centre="charge")
    assert here.shape == (32, 32) and here.n_pixels > 50
    export = shutil.copytree(trained / "export", tmp_path / "alone")
    assert run_data(export) == {"size": 32, "centre": "charge", "detector": None}
    given = ["--events", str(tmp_path / "volume.h5"), "--threads", "1", "--out", str(tmp_path / "out")]
    for flags in ([str(trained), "--data.centre", "charge"], [str(export)]):
        studied = study(["missing_view", "--checkpoint", *flags, *given])
        assert studied["levels"][0]["pixels"] == here.n_pixels
        run(["--checkpoint", *flags, *given, "--examples", "0", "--cost", "false"])
    (by_name,) = from_pretrained(export).predict(tmp_path / "volume.h5")
    (by_hand,) = from_pretrained(export).predict([here])
    np.testing.assert_array_equal(by_name.probability["interaction"], by_hand.probability["interaction"])


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
