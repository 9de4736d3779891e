"""Pixel maps from files to scores: finetune, resume, export, predict, a student and its teacher; hand-made maps."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score
from toy_maps import toy_events

from nufm.checkpoint import from_pretrained, save_pretrained
from nufm.commands.finetune import finetune
from nufm.commands.teacher import Teacher
from nufm.data.image_datamodule import ImageDataModule
from nufm.data.image_files import ImageReader
from nufm.data.image_hdf5 import write_maps
from nufm.data.images import INTERACTION_NAMES, ImageBatch
from nufm.data.transforms import NormalizeCoord, RawEnergy
from nufm.methods.distillation import Distillation
from nufm.models.se_resnet import SiameseSEResNet
from nufm.models.uresnet import UResNet

CNN = {
    "class_path": "nufm.models.se_resnet.SiameseSEResNet",
    "init_args": {"channels": [4, 8], "blocks": [1, 1], "reduction": 2},
}
VIT = {
    "class_path": "nufm.models.image_vit.ImageViT",
    "init_args": {"size": [32, 32], "patch": 8, "channels": 16, "depth": 1, "heads": 2},
}
SPARSE = {
    "class_path": "nufm.models.sparse_image.SparseImageNetwork",
    "init_args": {
        "encoder": {
            "class_path": "nufm.models.ptv3.PointTransformerV3",
            "init_args": {
                "in_channels": 4, "depths": [1, 1], "channels": [8, 12], "heads": [2, 2], "window": 16,
                "mask_token": False,
            },
        }
    },
}  # fmt: skip


def write_data(folder: Path) -> Path:
    """Three splits; of the test events one has lost a view, one both."""
    events = toy_events(54)
    test = [e.without("yz") if i == 1 else e.replace(views={}) if i == 2 else e for i, e in enumerate(events[30:])]
    for split, part in (("train", events[:24]), ("val", events[24:30]), ("test", test)):
        write_maps(folder / split / "maps.h5", part)
    return folder


def config(path: Path, data: Path, network: dict, **model: object) -> Path:
    content = {
        "seed_everything": 1,
        "model": {
            "class_path": "nufm.methods.image_classification.ImageClassification",
            "init_args": {"network": network, "learning_rate": 5e-3, "schedule": "constant", **model},
        },
        "data": {
            "class_path": "nufm.data.image_datamodule.ImageDataModule",
            "init_args": {
                "root": str(data),
                "size": 32,
                "batch_size": 8,
                "augment": [{"class_path": "nufm.data.image_transforms.FlipTransverse"}],
            },
        },
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": 4, "log_every_n_steps": 1, "gradient_clip_val": 1.0,
            "val_check_interval": 1, "check_val_every_n_epoch": None,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
                    "init_args": {"monitor": "val/loss", "patience": 10},
                }
            ],
        },
        "checkpoint": {"every_n_steps": 1, "monitor": "val/loss", "mode": "min"},
        "threads": 1,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Maps, the run of a CNN with scores, and a cache of its own."""
    folder = tmp_path_factory.mktemp("maps")
    write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUFM_CACHE", str(folder / "cache"))
        made = config(folder / "cnn.yaml", folder / "data", CNN)
        finetune(["--config", str(made), "--run", str(folder / "cnn")])
        yield folder


def test_a_run_is_scored(folder):
    """By its own predictions on the file of test events, with scikit-learn."""
    found = json.loads((folder / "cnn" / "evaluation" / "test" / "scores.json").read_text())
    said = from_pretrained(folder / "cnn").predict(folder / "data" / "test", progress=False)
    truth = np.array([int(e.truth["interaction"]) for e in ImageReader(folder / "data" / "test")])
    p = np.stack([q.probability["interaction"] for q in said])
    scores = found["labels"]["interaction"]
    assert len(said) == 24 and scores["classes"] == list(INTERACTION_NAMES) and np.isfinite(p).all()
    assert scores["accuracy"] == pytest.approx((p.argmax(1) == truth).mean())
    assert scores["auc"] == pytest.approx([roc_auc_score(truth == k, p[:, k]) for k in range(3)])


def test_what_an_export_says(folder):
    loaded = from_pretrained(folder / "cnn")
    assert loaded.inputs == "images" and loaded.grid_size is None and loaded.task == "pixelmaps"
    assert [type(t).__name__ for t in loaded.transforms] == ["Brightness"], "augmentation does not travel"
    assert loaded.classes == {"interaction": list(INTERACTION_NAMES)} and loaded.extra["regime"] == "scratch"
    with torch.no_grad():
        features = loaded.features(ImageReader(folder / "data" / "test")[0])
    assert features.shape == (8,)
    assert loaded.extra["maps"] == {
        "size": 32, "centre": "vertex", "detector": None, "shape": [32, 32], "pitch": 5.0, "unit": "MeV"
    }  # fmt: skip


@pytest.mark.parametrize("network", (VIT, SPARSE), ids=("vit", "sparse"))
def test_other_networks_go_the_same_way(folder, network, monkeypatch):
    monkeypatch.chdir(folder)
    name = network["class_path"].rpartition(".")[2]
    made = config(folder / f"{name}.yaml", folder / "data", network)
    finetune(["--config", str(made), "--run", str(folder / name), "--evaluation.enabled", "false"])
    said = from_pretrained(folder / name).predict(folder / "data" / "test", progress=False)
    assert len(said) == 24 and all(np.isclose(q.probability["interaction"].sum(), 1, atol=1e-5) for q in said)


def test_a_stopped_run_goes_on_as_it_was(folder):
    """Bit for bit, batch norms, augmentation and the patience of the early stop included."""
    flags = ["--config", str(folder / "cnn.yaml"), "--evaluation.enabled", "false"]
    finetune([*flags, "--run", str(folder / "stopped"), "--trainer.max_steps", "2"])
    finetune([*flags, "--run", str(folder / "stopped"), "--ckpt_path", "last", "--trainer.max_steps", "4"])
    a, b = (torch.load(folder / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("stopped", "cnn"))
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    patience = [next(v["wait_count"] for k, v in c["callbacks"].items() if "EarlyStopping" in k) for c in (a, b)]
    assert patience[0] == patience[1]


# ---------------------------------------------------------------------------------------- teacher and student


def student_config(folder: Path) -> Path:
    made = config(folder / "student.yaml", folder / "data", CNN, teacher=str(folder / "cnn"))
    content = yaml.safe_load(made.read_text())
    content["model"]["class_path"] = "nufm.methods.distillation.Distillation"
    made.write_text(yaml.safe_dump(content))
    return made


def student(folder: Path, *flags: str) -> None:
    finetune(["--config", str(student_config(folder)), "--evaluation.enabled", "false", *flags])


def test_a_teacher_is_asked_once(folder, capsys):
    kept = folder / "cache" / "teachers"
    student(folder, "--run", str(folder / "student"))
    assert "asking the teacher" in capsys.readouterr().out and len(list(kept.iterdir())) == 1
    student(folder, "--run", str(folder / "again"))
    assert "asking the teacher" not in capsys.readouterr().out
    one, two = (from_pretrained(folder / n).model.state_dict() for n in ("student", "again"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert from_pretrained(folder / "student").extra["teacher"].endswith("/cnn")
    student(folder, "--run", str(folder / "fewer"), "--data.max_events", "16")
    assert len(list(kept.iterdir())) == 2, "other events are asked about anew"
    for file in kept.iterdir():
        file.write_bytes(file.read_bytes()[:300])
    student(folder, "--run", str(folder / "damaged"))
    three = from_pretrained(folder / "damaged").model.state_dict()
    assert all(torch.equal(one[k], three[k]) for k in one)


def test_answers_are_the_teachers_own(folder):
    """Of the events as they are, through its own transforms, in the order of the reader."""
    data = ImageDataModule(str(folder / "data"), size=32, batch_size=8)
    for _ in range(2):  # asked, and as kept
        targets = Teacher(folder / "cnn")(data)
        said = from_pretrained(folder / "cnn").predict(folder / "data" / "train", progress=False)
        np.testing.assert_array_equal(targets.probability, np.stack([q.probability["interaction"] for q in said]))
        assert list(targets.names) == [e.name for e in ImageReader(folder / "data" / "train")]


def test_answers_are_kept_for_files_and_not_for_how_a_path_is_written(folder, tmp_path, capsys, monkeypatch):
    """A path written otherwise names the events otherwise; the student that was not there when the teacher was asked
    knows them all the same."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path))
    one, two = (Teacher(folder / "cnn")(ImageDataModule(root, size=32)) for root in ("data", "./cnn/../data"))
    assert capsys.readouterr().out.count("asking the teacher") == 1
    np.testing.assert_array_equal(one.probability, two.probability)
    assert one.names[0] == "data/train/maps.h5#0" != two.names[0]
    learner = Distillation(SiameseSEResNet(3, [4, 8], [1, 1], 1))
    learner.set_targets(two)
    there = ImageDataModule("./cnn/../data", size=32).reader("train")
    answers = learner.answers(ImageBatch.from_events([there[3], there[0]]))
    np.testing.assert_array_equal(answers.numpy(), one.probability[[3, 0]])


def test_a_teacher_is_asked_again_about_values_that_are_read_otherwise(folder):
    """A file that does not say its unit: what the teacher says of it depends on the unit that the user says."""
    rng = np.random.default_rng(0)
    (folder / "bare" / "train").mkdir(parents=True)
    with h5py.File(folder / "bare" / "train" / "maps.h5", "w") as file:
        file["images"] = (200 * rng.random((6, 2, 32, 32)) * (rng.random((6, 2, 32, 32)) > 0.8)).astype(np.float32)
        file["labels"] = np.arange(6) % 3
    said = {}
    for unit in ("MeV", "grey"):
        data = ImageDataModule(str(folder / "bare"), size=32, unit=unit)
        own = from_pretrained(folder / "cnn").predict(data.reader("train"), progress=False)
        said[unit] = np.stack([p.probability["interaction"] for p in own])
        np.testing.assert_array_equal(Teacher(folder / "cnn")(data).probability, said[unit])
    assert np.abs(said["MeV"] - said["grey"]).max() > 1e-4
    teacher = Teacher(folder / "cnn")
    places = {
        teacher.place(ImageDataModule(str(folder / "bare"), size=32, unit="MeV", pitch=pitch)) for pitch in (None, 3.0)
    }
    assert len(places) == 2


def test_a_teacher_whose_question_changed_is_asked_again(folder, monkeypatch):
    """What a model was built with, such as the words of a question, may be more than its export says."""
    data, first = ImageDataModule(str(folder / "data"), size=32), Teacher(folder / "cnn")

    def otherwise(*given, **options):
        found = from_pretrained(*given, **options)
        found.model.arguments["reduction"] = 3
        return found

    assert Teacher(folder / "cnn").place(data) == first.place(data)
    monkeypatch.setattr("nufm.commands.teacher.from_pretrained", otherwise)
    assert Teacher(folder / "cnn").place(data) != first.place(data)


# ---------------------------------------------------------------------------------------- what is refused


def refused(capsys, *flags: str) -> str:
    with pytest.raises(SystemExit) as stop:
        finetune(list(flags))
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_student_without_a_teacher(folder, capsys):
    flags = ["--config", str(student_config(folder)), "--model.teacher"]
    assert "name it with --model.teacher RUN" in refused(capsys, *flags, "null")
    assert "gone" in refused(capsys, *flags, str(folder / "gone"))


def test_a_teacher_of_something_else(folder, capsys):
    transforms = [NormalizeCoord(0.0, 1.0), RawEnergy()]
    save_pretrained(folder / "points", UResNet(filters=2, depth=2), transforms=transforms, grid_size=1.0, task="motif")
    said = refused(capsys, "--config", str(student_config(folder)), "--model.teacher", str(folder / "points"))
    assert "a UResNet that takes points and predicts motif, expected one that takes pixel maps" in said


def test_events_of_another_kind(folder, capsys):
    content = yaml.safe_load((folder / "cnn.yaml").read_text())
    arguments = {"root": str(folder / "data")}
    content["data"] = {"class_path": "nufm.data.datamodule.PointDataModule", "init_args": arguments}
    path = folder / "points.yaml"
    path.write_text(yaml.safe_dump(content))
    said = refused(capsys, "--config", str(path))
    assert "ImageClassification cannot learn from the events of a PointDataModule" in said
    assert "expected data.class_path nufm.data.image_datamodule.ImageDataModule" in said


def test_events_without_labels(folder, capsys):
    for split in ("train", "val", "test"):
        events = [e.replace(truth={}) for e in toy_events(9)]
        write_maps(folder / "unlabelled" / split / "maps.h5", events)
    said = refused(capsys, "--config", str(folder / "cnn.yaml"), "--data.root", str(folder / "unlabelled"))
    assert "the task 'pixelmaps' needs the truth 'interaction', found []" in said


def test_maps_of_another_size(folder, capsys):
    said = refused(capsys, "--config", str(folder / "cnn.yaml"), "--data.size", "64")
    assert "32 × 32" in said and "64" in said


def test_a_start_from_pretrained_weights(folder, capsys):
    said = refused(capsys, "--config", str(folder / "cnn.yaml"), "--pretrained", str(folder / "cnn"))
    assert "leave --pretrained out" in said


