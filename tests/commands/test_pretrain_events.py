"""``scripts/pretrain.py`` on events of several sub-detectors: both phases, report, export, resume; hand-made files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from data.stream_records import make_record, write
from matplotlib.image import imread
from run_support import callback, weights

from nufm.checkpoint import from_pretrained
from nufm.commands.pretrain import pretrain
from nufm.data.stream_files import StreamReader
from nufm.data.stream_transforms import StandardizeStreams, fit_standardize

SIZE = {"channels": 24, "depth": 1, "heads": 2}
PATCHES = {
    "calorimeter": {"stream": "cal3d", "lattice": [48, 48, 20], "patch": [12, 12, 10], "modules": 10, **SIZE},
    "tail": {"stream": "ahcal", "lattice": [18, 18, 40], "patch": [6, 6, 5], "group_code": "source", **SIZE},
}
TOKENS = {"matrix": ("MatrixToken", {"stream": "ecal"}), "tracks": ("TrackToken", {"stream": "muon", "heads": 2})}
ENCODER = {
    "class_path": "nufm.models.stream_encoder.StreamEncoder",
    "init_args": {
        **{k: {"class_path": "nufm.models.patches.PatchStack", "init_args": v} for k, v in PATCHES.items()},
        **{
            k: {"class_path": f"nufm.models.stream_encoder.{name}", "init_args": v | {"channels": 24}}
            for k, (name, v) in TOKENS.items()
        },
        "latent_depth": 1,
        "heads": 2,
    },
}


def write_data(folder: Path, truth: bool = True) -> Path:
    for split, n, first in (("train", 12, 0), ("val", 4, 100), ("test", 12, 200)):
        records = [make_record(first + i) for i in range(n)]
        if not truth:
            kept = ("hits/cal3d/index", "hits/cal3d/module", "hits/cal3d/charge")
            records = [{k: v for k, v in r.items() if k in kept} for r in records]
        write(folder / split / "events.h5", records)
    return folder


def config(path: Path, data: Path, **model: object) -> Path:
    content = {
        "seed_everything": 1,
        "model": {
            "class_path": "nufm.methods.masked_calorimeter.MaskedCalorimeter",
            "init_args": {
                "encoder": ENCODER, "decoder": {"channels": 12, "heads": 2, "depth": 1, "hidden": 4}, **model,
            },
        },
        "data": {
            "class_path": "nufm.data.stream_datamodule.StreamDataModule",
            "init_args": {"root": str(data), "batch_size": 4},
        },
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": 4, "log_every_n_steps": 2, "gradient_clip_val": 1.0,
        },
        "checkpoint": {"every_n_steps": 1},
        "report": {"n_events": 12},
        "threads": 1,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Events and a run of each phase, the second from the first; a cache of its own."""
    folder = tmp_path_factory.mktemp("pretraining")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUFM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        data = write_data(folder / "data")
        pretrain(["--config", str(config(folder / "mae.yaml", data)), "--run", str(folder / "mae")])
        second = config(folder / "rel.yaml", data, relational=1.0)
        pretrain(["--config", str(second), "--run", str(folder / "rel"), "--pretrained", str(folder / "mae")])
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NUFM_CACHE", str(folder / "cache"))


def logged(run: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if text:
                    found.setdefault(name, []).append(float(text))
    return found


def test_a_run_ends_with_an_export_and_a_report(folder: Path):
    found = from_pretrained(folder / "mae")
    events = StreamReader(folder / "data" / "train")
    assert found.task is None and list(found.transforms) == [fit_standardize(events[i] for i in range(12))]
    state = weights(folder / "mae" / "checkpoints" / "last.ckpt")
    for name, tensor in found.encoder.state_dict().items():
        assert torch.equal(tensor, state[f"encoder.{name}"]), name
    report = json.loads((folder / "mae" / "report.json").read_text())
    assert list(report["scores"]) == ["raw", "untrained", "pretrained"] and report["events"] == {"fit": 12, "score": 12}
    assert not report["simulated"] and report["support"] == [2] * 6
    for row in report["scores"].values():
        assert 0 <= row["macro_auc"] <= 1 and row["vertex_mean"] > 0
    text = (folder / "mae" / "report.md").read_text()
    assert "encoder, untrained" in text and "simulated" not in text
    for name in ("probe", "training", "reconstruction"):
        assert np.ptp(imread(folder / "mae" / "pictures" / f"{name}.png")[..., 0]) > 0.5, name
    assert imread(folder / "rel" / "pictures" / "relations.png").size
    assert not (folder / "mae" / "pictures" / "relations.png").exists()


def test_what_is_logged(folder: Path):
    first, second = logged(folder / "mae"), logged(folder / "rel")
    wanted = {"occupancy_cal3d", "charge_cal3d", "occupancy_ahcal", "charge_ahcal", "matrix", "tracks"}
    relational = {"ghost", "hierarchy", "category"}
    for part in ("train", "val"):
        assert {f"{part}/{w}" for w in wanted} <= first.keys()
        assert not {f"{part}/{w}" for w in relational} & first.keys()
        assert {f"{part}/{w}" for w in wanted | relational} <= second.keys()
    diagnostics = ("gradient_norm", "feature_std", "occupancy_auc_cal3d", "loss_weight_ghost")
    assert {f"train/{w}" for w in diagnostics} <= first.keys()
    assert all(np.isfinite(v).all() for v in first.values())


def test_the_second_phase_starts_from_encoder_decoder_and_weights_of_the_first(folder: Path, tmp_path: Path):
    """With a rate of 0 nothing changes: what is exported is the first phase's, to the last bit."""
    args = ["--config", str(folder / "rel.yaml"), "--pretrained", str(folder / "mae"), "--report.enabled", "false"]
    pretrain([*args, "--run", str(tmp_path / "still"), "--model.learning_rate", "0", "--trainer.max_steps", "1"])
    before, after = (weights(p / "checkpoints" / "last.ckpt") for p in (folder / "mae", tmp_path / "still"))
    for name, tensor in before.items():
        if not name.startswith("optimizer"):
            assert torch.equal(tensor, after[name]), name


def test_from_an_export_the_encoder_alone_is_taken(folder: Path, tmp_path: Path, capsys):
    (tmp_path / "alone").symlink_to(folder / "mae" / "export")
    args = ["--config", str(folder / "rel.yaml"), "--pretrained", str(tmp_path / "alone"), "--report.enabled", "false"]
    pretrain([*args, "--run", str(tmp_path / "still"), "--model.learning_rate", "0", "--trainer.max_steps", "1"])
    assert "encoder alone" in capsys.readouterr().out
    before, after = (weights(p / "checkpoints" / "last.ckpt") for p in (folder / "mae", tmp_path / "still"))
    same = {k.partition(".")[0] for k in after if not k.startswith("optimizer") and torch.equal(before[k], after[k])}
    assert "encoder" in same
    assert not torch.equal(before["decoder.project.weight"], after["decoder.project.weight"])


def test_a_resumed_run_equals_an_uninterrupted_one(folder: Path, tmp_path: Path):
    """Bit for bit, with pass B in some steps: stopped by a signal after two of five steps, then continued."""
    args = ["--config", str(folder / "rel.yaml"), "--report.enabled", "false", "--model.relational", "0.5"]
    args += ["--trainer.max_steps", "5", "--run"]
    pretrain([*args, str(tmp_path / "whole")])
    stopped = yaml.safe_load((folder / "rel.yaml").read_text())
    stopped["trainer"]["callbacks"] = callback("SignalAt", step=2, name="SIGINT")
    (tmp_path / "rel.yaml").write_text(yaml.safe_dump(stopped))
    with pytest.raises(SystemExit):
        pretrain([args[0], str(tmp_path / "rel.yaml"), *args[2:], str(tmp_path / "parts")])
    pretrain([*args, str(tmp_path / "parts"), "--ckpt_path", "last", "--trainer.callbacks", "null"])
    whole, parts = (weights(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]) if isinstance(value, torch.Tensor) else value == parts[name], name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pretrained", "nothing"], "nothing"),
        (["--pretrained", "{mae}", "--model.decoder.hidden", "3"], "do not fit this run"),
        (["--pretrained", "{mae}", "--model.encoder.latent_depth", "2"], "encoder latent_depth: found 1"),
        (["--data.root", "{plain}", "--model.relational", "0"], "no truth 'flavour'"),
        (["--data.root", "{plain}", "--report.enabled", "false"], "has no field 'ghost', which relational pretraining"),
        (["--data.root", "{plain}", "--report.enabled", "false"], "pretrain without it: --model.relational 0"),
        (
            ["--data.root", "{plain}", "--model.relational", "0", "--model.ghosts", "not_reconstructed"],
            "has no field 'ghost', which model.ghosts 'not_reconstructed' needs; pretrain without truth: --model",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, capsys, flags: list[str], message: str
):
    places = {"mae": folder / "mae", "plain": write_data(tmp_path / "plain", truth=False)}
    flags = [flag.format(**places) for flag in flags]
    with pytest.raises(SystemExit) as stopped:
        pretrain(["--config", str(folder / "rel.yaml"), "--run", str(tmp_path / "no"), *flags])
    assert stopped.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "no").exists()


def test_events_without_truth_are_enough_for_the_first_phase(folder: Path, tmp_path: Path):
    data = write_data(tmp_path / "plain", truth=False)
    args = ["--config", str(folder / "mae.yaml"), "--data.root", str(data), "--run", str(tmp_path / "run")]
    pretrain([*args, "--report.enabled", "false"])
    assert isinstance(from_pretrained(tmp_path / "run").transforms[0], StandardizeStreams)
