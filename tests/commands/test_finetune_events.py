"""Events of several sub-detectors from an encoder to scores: finetune, evaluate, export, predict; hand-made files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from data.stream_records import make_record, without, write
from matplotlib.image import imread
from sklearn.metrics import confusion_matrix, roc_auc_score

from nufm.checkpoint import from_pretrained, save_pretrained
from nufm.commands.evaluate import evaluate
from nufm.commands.export import export, load
from nufm.commands.finetune import finetune
from nufm.commands.probe import probe
from nufm.data.stream_files import StreamReader
from nufm.data.stream_transforms import StandardizeStreams, fit_standardize
from nufm.data.streams import FLAVOUR_NAMES
from nufm.models.event_network import EventNetwork

PATCHES = {"channels": 24, "depth": 1, "heads": 2}
ENCODER = {
    "class_path": "nufm.models.stream_encoder.StreamEncoder",
    "init_args": {
        "calorimeter": {
            "class_path": "nufm.models.patches.PatchStack",
            "init_args": {
                "stream": "cal3d", "lattice": [48, 48, 20], "patch": [12, 12, 10], "modules": 10, **PATCHES
            },
        },
        "tail": {
            "class_path": "nufm.models.patches.PatchStack",
            "init_args": {
                "stream": "ahcal", "lattice": [18, 18, 40], "patch": [6, 6, 5], "group_code": "source", **PATCHES
            },
        },
        "matrix": {
            "class_path": "nufm.models.stream_encoder.MatrixToken", "init_args": {"stream": "ecal", "channels": 24}
        },
        "tracks": {
            "class_path": "nufm.models.stream_encoder.TrackToken",
            "init_args": {"stream": "muon", "channels": 24, "heads": 2},
        },
        "latent_depth": 1,
        "heads": 2,
    },
}  # fmt: skip


def write_data(folder: Path) -> Path:
    """Hand-made events in three splits; of the test events one has no muon spectrometer and one no calorimeter hit."""
    for split, n, first in (("train", 16, 0), ("val", 6, 100), ("test", 18, 200)):
        records = [make_record(first + i) for i in range(n)]
        if split == "test":
            records[3], records[4] = without(records[3], "muon"), without(without(records[4], "cal3d"), "ahcal")
        write(folder / split / "events.h5", records)
    return folder


def config(path: Path, data: Path, **network: object) -> Path:
    content = {
        "seed_everything": 1,
        "model": {
            "class_path": "nufm.methods.multitask.Multitask",
            "init_args": {
                "network": {
                    "class_path": "nufm.models.event_network.EventNetwork",
                    "init_args": {"encoder": ENCODER, **network},
                },
                "learning_rate": 1e-3,
                "schedule": "warmup_cosine",
                "layer_decay": 0.75,
            },
        },
        "data": {
            "class_path": "nufm.data.stream_datamodule.StreamDataModule",
            "init_args": {"root": str(data), "batch_size": 4},
        },
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": 4, "log_every_n_steps": 1, "gradient_clip_val": 1.0,
            "val_check_interval": 2, "check_val_every_n_epoch": None,
        },
        "checkpoint": {"every_n_steps": 1, "monitor": "val/loss", "mode": "min"},
        "threads": 1,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Events, the export of an encoder whose transforms are not those of the events, and a cache of its own."""
    folder = tmp_path_factory.mktemp("events")
    write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUFM_CACHE", str(folder / "cache"))
        torch.manual_seed(5)
        made = config(folder / "first.yaml", folder / "data")
        finetune(["--config", str(made), "--run", str(folder / "scratch"), "--model.regime", "scratch"])
        encoder = from_pretrained(folder / "scratch").encoder
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        fitted = fit_standardize(StreamReader(folder / "data" / "val"))
        save_pretrained(folder / "encoder", encoder, transforms=[fitted])
        flags = ["--config", str(made), "--run", str(folder / "tuned"), "--pretrained", str(folder / "encoder")]
        finetune([*flags, "--evaluation.enabled", "false"])
        yield folder


# ---------------------------------------------------------------------------------------- training


def test_a_run_from_random_weights_is_scored(folder):
    """Its scores are those of scikit-learn on its own predictions."""
    found = json.loads((folder / "scratch" / "evaluation" / "test" / "scores.json").read_text())
    predictions = from_pretrained(folder / "scratch").predict(folder / "data" / "test", progress=False)
    events = list(StreamReader(folder / "data" / "test"))
    assert found["events"] == len(predictions) == 18 and found["kind"] == "event" and not found["simulated"]
    p, truth = np.stack([q.probability["flavour"] for q in predictions]), np.array([e.truth["flavour"] for e in events])
    scores = found["labels"]["flavour"]
    assert scores["classes"] == list(FLAVOUR_NAMES) and scores["support"] == np.bincount(truth).tolist()
    expected = [roc_auc_score(truth == c, p[:, c]) for c in range(6)]
    assert scores["auc"] == pytest.approx(expected) and scores["macro_auc"] == pytest.approx(np.mean(expected))
    np.testing.assert_array_equal(scores["confusion"], confusion_matrix(truth, p.argmax(1), labels=range(6)))
    distance = [np.linalg.norm(q.value["vertex"] - e.truth["vertex"]) for q, e in zip(predictions, events, strict=True)]
    assert found["vertex"]["all"]["median"] == pytest.approx(np.median(distance), rel=1e-5)
    jet, true = (np.array([np.linalg.norm(v) for v in side]) for side in (
        [q.value["jet"] for q in predictions], [e.truth["jet"] for e in events]
    ))  # fmt: skip
    ratio = jet / true - 1
    sigma = 1.4826 * np.median(np.abs(ratio - np.median(ratio)))
    assert found["quantities"]["jet"]["all"]["sigma_mad"] == pytest.approx(sigma, rel=1e-4)
    # Neutral currents have no lepton.
    assert found["quantities"]["lepton"]["all"]["count"] == 15 and found["quantities"]["lepton"]["NC"]["count"] == 0
    assert found["quantities"]["visible"]["NC"]["count"] == found["vertex"]["NC"]["count"] == 3


def test_the_folder_of_an_evaluation(folder):
    out = folder / "scratch" / "evaluation" / "test"
    report = (out / "report.md").read_text()
    for words in ("# fasercal: 18 events", "## Flavour", "## Charm", "σ_MAD", "ντ CC → had", "## Vertex", "Missing p"):
        assert words in report, words
    assert "simulated by nufm" not in report, "these were not"
    for name in ("confusion_flavour", "confusion_charm", "roc_flavour", "roc_charm", "momenta", "vertex"):
        assert imread(out / f"{name}.png").std() > 0.05 and f"({name}.png)" in report
    with open(out / "events.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18 and rows[1]["flavour"] == FLAVOUR_NAMES[201 % 6] and float(rows[0]["vertex_mm"]) > 0


def test_a_pretrained_encoder_brings_its_transforms(folder):
    """Events are standardised by the numbers of the pretraining, in training, in the export and in the run's record."""
    fitted = from_pretrained(folder / "encoder").transforms
    tuned, scratch = (from_pretrained(folder / name) for name in ("tuned", "scratch"))
    assert tuned.transforms == fitted != scratch.transforms
    record = yaml.safe_load((folder / "tuned" / "config.yaml").read_text())["data"]["init_args"]["transforms"]
    assert StandardizeStreams(**record[0]["init_args"]) == fitted[0]
    assert tuned.extra["regime"] == "full" and tuned.extra["pretrained"].endswith("encoder")


def test_scales_are_those_of_the_training_events(folder):
    """And the same for an export, whatever events it is used on."""
    vertex = np.stack([e.truth["vertex"] for e in StreamReader(folder / "data" / "train")])
    for name in ("scratch", "tuned"):
        model = from_pretrained(folder / name).model
        np.testing.assert_allclose(model.vertex_scaling[0], vertex.mean(0), rtol=1e-4)
        np.testing.assert_allclose(model.vertex_scaling[1], vertex.std(0), rtol=1e-4)
        visible = np.stack([e.truth["visible"] for e in StreamReader(folder / "data" / "train")])
        p_t = np.hypot(visible[:, 0], visible[:, 1])
        k = 1.4826 * np.median(np.abs(p_t - np.median(p_t)))
        assert float(model.momentum_scaling[0, 0, 0]) == pytest.approx(k, rel=1e-4)


def test_a_stopped_run_goes_on_as_it_was(folder, monkeypatch):
    """Without the encoder's export, and with its transforms; bit for bit as an uninterrupted one."""
    made = config(folder / "stop.yaml", folder / "data")
    flags = ["--config", str(made), "--evaluation.enabled", "false"]
    started = ["--pretrained", str(folder / "encoder"), "--run", str(folder / "stopped"), "--trainer.max_steps", "2"]
    schedule = ["--model.schedule", "constant"]
    finetune([*flags, *started, *schedule])
    again = ["--ckpt_path", "last", "--pretrained", "gone", "--run", str(folder / "stopped")]
    finetune([*flags, *again, "--trainer.max_steps", "4", *schedule])
    whole = ["--pretrained", str(folder / "encoder"), "--run", str(folder / "whole"), "--trainer.max_steps", "4"]
    finetune([*flags, *whole, *schedule])
    a, b = (torch.load(folder / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("stopped", "whole"))
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    assert from_pretrained(folder / "stopped").transforms == from_pretrained(folder / "encoder").transforms


def test_what_a_regime_trains(folder):
    """``lin`` leaves the encoder as it was, ``full`` does not; a network of some tasks predicts those."""
    made = config(folder / "lin.yaml", folder / "data", heads="query", tasks=["flavour", "vertex"])
    flags = ["--pretrained", str(folder / "encoder"), "--evaluation.enabled", "false", "--model.regime", "lin"]
    finetune(["--config", str(made), "--run", str(folder / "lin"), *flags])
    before, after = from_pretrained(folder / "encoder").model.state_dict(), from_pretrained(folder / "lin")
    for encoder, frozen in ((after.encoder, True), (from_pretrained(folder / "tuned").encoder, False)):
        assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in before.items()) == frozen
    assert after.model.tasks == ("flavour", "vertex") and after.classes == {"flavour": list(FLAVOUR_NAMES)}
    found = after.predict(folder / "data" / "test", progress=False)[0]
    assert set(found.value) == {"vertex"} and set(found.probability) == {"flavour"}


def test_labels_of_few_events(folder):
    run = folder / "few"
    made = config(folder / "few.yaml", folder / "data")
    flags = ["--data.max_events", "4", "--model.regime", "scratch", "--evaluation.enabled", "false"]
    finetune(["--config", str(made), "--run", str(run), *flags])
    vertex = np.stack([e.truth["vertex"] for e in StreamReader(folder / "data" / "train", max_events=4)])
    np.testing.assert_allclose(from_pretrained(run).model.vertex_scaling[0], vertex.mean(0), rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "regime 'full' starts from a pretrained encoder"),
        (["--pretrained", "ENCODER", "--model.regime", "scratch"], "regime 'scratch' starts from random weights"),
        (
            ["--pretrained", "ENCODER", "--model.network.encoder.latent_depth", "2"],
            "encoder latent_depth: found 1 in the checkpoint, expected 2",
        ),
        (["--model.regime", "scratch", "--model.task", "motif"], "'motif' is semantic, Multitask learns event ones"),
        (["--model.regime", "scratch", "--data.root", "UNLABELLED"], "needs the truth 'flavour', found []"),
        (["--model.regime", "scratch", "--data", "POINTS"], "cannot learn from the events of a PointDataModule"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(folder, capsys, flags, words):
    unlabelled = folder / "unlabelled"
    if not unlabelled.exists():
        for split in ("train", "test"):
            record = {k: v for k, v in make_record(0).items() if not k.startswith("truth/")}
            write(unlabelled / split / "events.h5", [record] * 4)
    names = {"ENCODER": folder / "encoder", "UNLABELLED": unlabelled, "POINTS": "nufm.data.datamodule.PointDataModule"}
    flags = [str(names.get(f, f)) for f in flags]
    made = config(folder / "refused.yaml", folder / "data")
    with pytest.raises(SystemExit) as stop:
        finetune(["--config", str(made), "--run", str(folder / "refused"), *flags])
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2 and words in said, said
    assert not (folder / "refused").exists()


# ---------------------------------------------------------------------------------------- exports


def test_predictions_of_a_file_and_of_events(folder):
    """One by one or together, from a file or a list; an event without a hit in any calorimeter has a prediction."""
    model, events = from_pretrained(folder / "tuned"), list(StreamReader(folder / "data" / "test"))
    together = model.predict(folder / "data" / "test" / "events.h5", batch_size=5, progress=False)
    assert [p.name for p in together] == [e.name for e in events]
    for i in (0, 3, 4):
        alone = model.predict([events[i]], progress=False)[0]
        for name, value in alone.value.items():
            np.testing.assert_allclose(value, together[i].value[name], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(alone.probability["charm"], together[i].probability["charm"], atol=1e-5)
    nothing = together[4]
    assert events[4].n_hits == 0 and np.isfinite(nothing.value["visible"]).all()
    assert nothing.probability["flavour"].sum() == pytest.approx(1, abs=1e-5)
    assert nothing.label("flavour") == FLAVOUR_NAMES[int(nothing.probability["flavour"].argmax())]
    features = model.features(events[0])
    assert features.shape == (24,) and features.std() > 0
    assert (model.features(events[4]) == 0).all()


def test_an_encoder_predicts_nothing_and_points_are_no_events(folder, genuine_event):
    encoder = from_pretrained(folder / "encoder")
    with pytest.raises(ValueError, match="holds an encoder"):
        encoder.predict(folder / "data" / "test")
    for call in (encoder.features, lambda event: from_pretrained(folder / "tuned").predict([event], progress=False)):
        with pytest.raises(ValueError, match="the model takes events with several streams, found a Event"):
            call(genuine_event)


@pytest.fixture
def genuine_event():
    from nufm.data.pilarnet import PILArNetReader

    return PILArNetReader(Path(__file__).parents[1] / "data" / "pilarnet_m_event.h5", min_points=0)[0]


def test_export_command_writes_a_card(folder, tmp_path, capsys):
    export(["--checkpoint", str(folder / "tuned"), "--out", str(tmp_path / "out"), "--licence", "MIT"])
    assert "EventNetwork" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("flavour (predicted)", "0 νµ CC", "StandardizeStreams", "predict(", "- calorimeter"):
        assert words in card, words
    assert "lartpc" not in card and "lattice of" not in card
    assert from_pretrained(tmp_path / "out").model.arguments["vertex_scaling"] == pytest.approx(
        from_pretrained(folder / "tuned").model.arguments["vertex_scaling"]
    )
    export(["--checkpoint", str(folder / "encoder"), "--out", str(tmp_path / "encoder")])
    assert "StreamReader" in (tmp_path / "encoder" / "README.md").read_text()


@pytest.mark.parametrize("name", ["tuned", "scratch"])
def test_a_checkpoint_of_a_run_is_its_export(folder, name):
    """Weights, scales and transforms: those of the encoder's export, or fitted again to the same events."""
    given, made = from_pretrained(folder / name), load(folder / name / "checkpoints" / "best.ckpt")
    assert made.transforms == given.transforms and made.classes == given.classes and made.task == "fasercal"
    for key, value in given.model.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[key]), key


def test_misfits_of_an_export_are_refused(folder, tmp_path):
    tuned = from_pretrained(folder / "tuned")
    with pytest.raises(ValueError, match=r"'grid_size' is 0\.001 for EventNetwork"):
        save_pretrained(tmp_path / "a", tuned.model, transforms=[], grid_size=0.001)
    with pytest.raises(ValueError, match="the task 'motif' is semantic, EventNetwork is event; expected one of fas"):
        save_pretrained(tmp_path / "b", tuned.model, transforms=[], task="motif", classes={"motif": ["a"] * 6})
    with pytest.raises(ValueError, match="has 6 classes, the task 'fasercal' 2 "):
        save_pretrained(tmp_path / "c", tuned.model, transforms=[], task="fasercal", classes={"flavour": ["a", "b"]})
    with pytest.raises(ValueError, match="predicts no classes"):
        save_pretrained(tmp_path / "d", tuned.encoder, transforms=[], task="fasercal")
    config = json.loads((folder / "tuned" / "export" / "config.json").read_text())
    assert config["grid_size"] is None and config["selection"] == {} and config["task"] == "fasercal"
    assert isinstance(tuned.model, EventNetwork) and tuned.inputs == "streams"


# ---------------------------------------------------------------------------------------- evaluate


def test_evaluate_a_run_on_its_own_events(folder, capsys):
    """The test events of the run, as the run found them; every score as at the end of the training."""
    evaluate(["--checkpoint", str(folder / "tuned"), "--threads", "1", "--interpret", "false"])
    out = folder / "tuned" / "evaluation" / "test"
    found = json.loads((out / "scores.json").read_text())
    assert found["data"]["root"] == str(folder / "data") and found["events"] == 18
    assert "Flavour" in capsys.readouterr().out
    evaluate(["--checkpoint", str(folder / "scratch"), "--out", str(folder / "again"), "--interpret", "false"])
    first = json.loads((folder / "scratch" / "evaluation" / "test" / "scores.json").read_text())
    again = json.loads((folder / "again" / "scores.json").read_text())
    assert again["labels"]["flavour"]["auc"] == pytest.approx(first["labels"]["flavour"]["auc"])
    assert again["vertex"]["all"]["mean"] == pytest.approx(first["vertex"]["all"]["mean"], rel=1e-4)


def test_evaluate_a_file(folder, tmp_path):
    path = folder / "data" / "val" / "events.h5"
    flags = ["--events", str(path), "--max_events", "5", "--out", str(tmp_path / "out"), "--interpret", "false"]
    evaluate(["--checkpoint", str(folder / "tuned" / "export"), *flags, "--data.batch_size", "2"])
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert found["events"] == 5 and found["data"]["files"] == {"events": [str(path)]}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--checkpoint", "ENCODER"], "fine-tune it first"),
        (["--checkpoint", "TUNED", "--events", "UNLABELLED"], "needs the truth 'flavour', found []"),
        (["--checkpoint", "TUNED", "--data.min_points", "3"], "min_points"),
        (["--checkpoint", "TUNED", "--data.transforms", "[]"], "the events would be prepared otherwise than in train"),
        (["--checkpoint", "TUNED", "--events", "nowhere.h5"], "nowhere.h5"),
    ],
)  # fmt: skip
def test_evaluate_refuses(folder, tmp_path, capsys, flags, words):
    record = {k: v for k, v in make_record(0).items() if not k.startswith("truth/")}
    unlabelled = write(tmp_path / "unlabelled.h5", [record] * 2)
    names = {"ENCODER": folder / "encoder", "TUNED": folder / "tuned", "UNLABELLED": unlabelled}
    with pytest.raises(SystemExit) as stop:
        evaluate([str(names.get(f, f)) for f in flags])
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2 and words in said, said


def test_probe_of_points_refuses_events(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        probe(["--checkpoint", str(folder / "encoder"), "--data.root", str(folder / "data")])
    assert stop.value.code == 2 and "this command is for points" in " ".join(capsys.readouterr().err.split())
