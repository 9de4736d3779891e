"""The command line: what it refuses, what it says, and what it leaves in the run folder."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from run_support import write_config, write_data, write_events

from nufm.checkpoint import from_pretrained
from nufm.cli import with_settings_of_the_run
from nufm.commands.pretrain import DEFAULT_CONFIG, PretrainCLI, pretrain
from nufm.machine import available_cores
from nufm.running import folder as run_folder
from nufm.running.checkpointing import AtomicCheckpointIO
from nufm.running.folder import MetricsCSV, config_name, git_state, new_run_folder, write_record
from nufm.running.progress import RunProgress, _clock, _short
from nufm.running.start import choose_run, default_precision, set_matmul_precision


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "NUFM_RUN", "TORCHELASTIC")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with data and a small configuration."""
    path = tmp_path_factory.mktemp("cli")
    write_config(path / "mini.yaml", write_data(path / "data"), trainer__max_steps=3)
    return path


# ---------------------------------------------------------------------- refused before anything is built


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.rot", "x"], ["data", "'rot'", "PointDataModule", "'root'"]),
        (["--model.learning_rat", "1"], ["model", "'learning_rat'", "'learning_rate'"]),
        (["--model.encoder.depth", "[1]"], ["model.encoder", "'depth'", "'depths'"]),
        (["--data.views.n_locl", "1"], ["data.views", "'n_locl'", "'n_local'"]),
        (["--trainer.max_step", "3"], ["--trainer.max_step", "'trainer.max_steps'"]),
        (["--max_steps", "3"], ["--max_steps"]),
        (["--trainer.max_steps", "many"], ["trainer.max_steps", "int", "many"]),
        (["--model.learning_rate", "fast"], ["model.learning_rate", "float", "fast"]),
        (["--model.targets", "sinkhorm"], ["model.targets", "sinkhorm", "sinkhorn"]),
        (["--checkpoint.every", "3"], ["--checkpoint.every", "every_n_steps"]),
        (["--ckpt_path", "last"], ["no complete checkpoint below"]),
        (["--ckpt_path", "absent.ckpt"], ["absent.ckpt: no such checkpoint"]),
    ],
)
def test_bad_flags_are_refused(folder, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(PretrainCLI, "instantiate_classes", lambda self: pytest.fail("something was built"))
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as stop:
        pretrain(["--config", "mini.yaml", *flags])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert all(word in said for word in words), said
    assert len(said.splitlines()) <= 4, f"an error is a few lines:\n{said}"
    assert sorted(folder.iterdir()) == before, "a refused run must leave nothing behind"


@pytest.mark.parametrize(
    ("backend", "words"),
    [("tritn", ["NUFM_BACKEND=tritn", "triton"]), ("spconv", ["sparse_conv", "spconv", "',torch'"])],
)
def test_a_backend_that_cannot_run_ends_with_its_reason(folder, monkeypatch, capsys, backend, words):
    monkeypatch.setenv("NUFM_BACKEND", backend)
    with pytest.raises(SystemExit) as stop:
        pretrain(["--config", str(folder / "mini.yaml"), "--run", str(folder / backend)])
    said = capsys.readouterr().err
    assert stop.value.code in (1, 2) and all(word in said for word in words), said


@pytest.mark.parametrize(
    ("place", "word"),
    [
        (("trainer",), "max_stepz"),
        (("model", "init_args"), "lerning_rate"),
        (("model", "init_args", "encoder", "init_args"), "chanels"),
        (("data", "init_args"), "btch_size"),
        (("data", "init_args", "transforms", 0, "init_args"), "centr"),
        ((), "modle"),
    ],
)
def test_misspelt_keys_in_a_file_are_refused(folder, tmp_path, place, word):
    config = yaml.safe_load((folder / "mini.yaml").read_text())
    inner = config
    for key in place:
        inner = inner[key] if isinstance(inner, list) else inner.setdefault(key, {})
    inner[word] = 1
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=word):
        PretrainCLI(["--config", str(path)], build=False)


def test_unlabelled_events_are_enough_to_pretrain(folder, tmp_path, capsys):
    """Without a report; with one, what is missing is said before anything is written."""
    for split in ("train", "test"):
        path = write_events(tmp_path / "data" / split / "events.h5", 8)
        with h5py.File(path, "a") as file:
            del file["cluster"], file["cluster_extra"]
    flags = ["--config", str(folder / "mini.yaml"), "--data.root", str(tmp_path / "data"), "--trainer.max_steps", "1"]
    pretrain([*flags, "--run", str(tmp_path / "run"), "--report.enabled", "false"])
    assert (tmp_path / "run" / "export" / "config.json").is_file()
    with pytest.raises(SystemExit) as stop:
        pretrain([*flags, "--run", str(tmp_path / "other"), "--report.enabled", "true"])
    assert stop.value.code == 2 and "no labels, found no data set 'cluster'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_help_explains_the_fields_of_the_chosen_configuration(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        pretrain(["--config", str(folder / "mini.yaml"), "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for flag in ("--model.learning_rate", "--model.encoder.window", "--data.root", "--data.batch_size"):
        assert f"\n  {flag} " in said
    for flag in (
        "--trainer.max_steps",
        "--ckpt_path",
        "--run",
        "--checkpoint.every_n_steps",
        "--report.n_events",
    ):
        assert f"\n  {flag} " in said
    section = " ".join(said[said.index("\n  --data.batch_size ") :][:300].split())
    assert "events per optimiser step" in section and "default: 4" in section, (
        "help text, and this file's value"
    )


def test_print_config_is_a_configuration(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        pretrain(["--config", str(folder / "mini.yaml"), "--data.batch_size", "6", "--print_config"])
    text = capsys.readouterr().out
    path = tmp_path / "printed.yaml"
    path.write_text(text)
    again = PretrainCLI(["--config", str(path)], build=False).config
    assert again.data.init_args.batch_size == 6 and again.trainer.max_steps == 3


# ---------------------------------------------------------------------- data that is not there, or damaged


def _one_file(path: Path) -> Path:
    return write_events(path / "all.h5", 8)


def _no_train(path: Path) -> Path:
    write_events(path / "test" / "a.h5", 4)
    return path


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


def _empty_split(path: Path) -> Path:
    write_data(path)
    (path / "test" / "events.h5").unlink()
    return path


def _not_hdf5(path: Path) -> Path:
    path.write_text("x y z")
    return path


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (lambda path: path, {}, ["train", "is not there"]),
        (_empty, {}, ["train", "without *.h5"]),
        (_no_train, {}, ["no split 'train'"]),
        (_not_hdf5, {}, ["not an HDF5 file"]),
        (_empty_split, {"report": {"enabled": True}}, ["test", "without *.h5", "--report.enabled false"]),
        (_one_file, {"report": {"enabled": True}}, ["'test'", "--report.enabled false", "--data.splits"]),
        (
            _one_file,
            {"trainer__callbacks": [{"class_path": "nufm.methods.linear_probe.OnlineProbe"}]},
            ["'val'", "OnlineProbe", "--data.splits"],
        ),
    ],
    ids=["missing", "empty", "no-train", "not-hdf5", "empty-split", "no-test", "no-val"],
)
def test_bad_data_is_refused_before_anything_is_written(tmp_path, capsys, make, changes, words):
    config = write_config(tmp_path / "mini.yaml", make(tmp_path / "data"), **changes)
    run = tmp_path / "out" / "run"
    with pytest.raises(SystemExit) as stop:
        pretrain(["--config", str(config), "--run", str(run)])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert all(word in said for word in words), said
    assert len(said.splitlines()) <= 4 and "Traceback" not in said
    assert not run.parent.exists(), "a refused run must leave nothing behind"


def test_one_file_is_enough_without_report_and_probe(tmp_path):
    config = write_config(tmp_path / "mini.yaml", _one_file(tmp_path / "data"), trainer__max_steps=1)
    pretrain(["--config", str(config), "--run", str(tmp_path / "run")])
    assert (tmp_path / "run" / "export").is_dir()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_event_ends_the_run_with_its_message(tmp_path, capsys, workers):
    path = write_events(tmp_path / "data" / "train" / "a.h5", 24)
    with h5py.File(path, "r+") as file:
        points = file["point"][17].copy()
        points[8 * 5 + 3] = np.nan
        file["point"][17] = points
    config = write_config(tmp_path / "mini.yaml", tmp_path / "data", data__init_args__num_workers=workers)
    with pytest.raises(SystemExit) as stop:
        pretrain(["--config", str(config), "--run", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert "a.h5#17" in said and "energy" in said and str(tmp_path / "run") in said.split("stopped: ")[1]
    assert "Traceback" not in said and (tmp_path / "run" / "config.yaml").exists()


def test_a_fault_of_the_program_keeps_its_traceback(folder, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("nufm.methods.self_distillation.SelfDistillation.training_step", broken)
    with pytest.raises(ValueError, match="a bug"):
        pretrain(["--config", str(folder / "mini.yaml"), "--run", str(folder / "broken")])


# ---------------------------------------------------------------------- the run folder


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    """A finished run, with TensorBoard beside metrics.csv."""
    run = folder / "out" / "first"
    pretrain(
        ["--config", str(folder / "mini.yaml"), "--run", str(run), "--trainer.logger", "TensorBoardLogger"]
    )
    return run


def test_run_folder_says_what_ran(folder, finished):
    saved = yaml.safe_load((finished / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 3 and saved["trainer"]["precision"] == "32-true"
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["torch_threads"] == 1 and environment["cpu_cores"] >= 1
    git = json.loads((finished / "git.json").read_text())
    assert "commit" in git
    backends = json.loads((finished / "backends.json").read_text())
    assert "torch" in backends["used"]["sparse_conv"] and "torch" in backends["used"]["windowed_attention"]
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["train/loss"]) > 0 and float(row["events_per_s"]) > 0 for row in rows)
    assert list(finished.rglob("events.out.tfevents.*")), "TensorBoard was asked for"
    assert not list(finished.rglob("*.tmp"))


def test_saved_configuration_is_the_same_run(folder, finished):
    saved = PretrainCLI(["--config", str(finished / "config.yaml")], build=False).config
    given = PretrainCLI(["--config", str(folder / "mini.yaml")], build=False).config
    assert saved.model == given.model and saved.data == given.data
    assert config_name(finished / "config.yaml") == finished.parent.name


def test_export_is_the_trained_encoder_with_its_preprocessing(folder, finished):
    pretrained = from_pretrained(finished)
    trained = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in pretrained.encoder.state_dict().items():
        assert torch.equal(value, trained[f"teacher.backbone.{name}"]), name
    data = PretrainCLI(["--config", str(folder / "mini.yaml"), "--run", "unused"]).datamodule
    assert list(pretrained.transforms) == list(data.transforms) and pretrained.grid_size == data.grid_size
    assert pretrained.extra["steps"] == 3


def test_a_run_is_not_written_over(folder, finished, capsys):
    with pytest.raises(SystemExit) as stop:
        pretrain(["--config", str(folder / "mini.yaml"), "--run", str(finished)])
    assert stop.value.code == 2 and "--ckpt_path last" in capsys.readouterr().err


def test_continuing_keeps_the_first_record(folder, finished):
    first = (finished / "config.yaml").read_text()
    flags = [
        "--run",
        str(finished),
        "--ckpt_path",
        "last",
        "--trainer.max_steps",
        "3",
        "--model.match_distance",
        "0.02",
    ]
    pretrain(["--config", str(folder / "mini.yaml"), *flags])
    assert (finished / "config.yaml.1").read_text() == first
    assert (
        yaml.safe_load((finished / "config.yaml").read_text())["model"]["init_args"]["match_distance"] == 0.02
    )


def test_names_of_runs(tmp_path):
    repository = tmp_path / "x" / "configs"
    assert config_name(repository / "tiny" / "panda.yaml") == "tiny-panda"
    assert config_name(repository / "panda.yaml") == "panda"
    assert config_name(tmp_path / "mine.yaml") == "mine"
    assert new_run_folder(tmp_path, "a") == tmp_path / "a"
    assert new_run_folder(tmp_path, "./a/b") == Path("a/b")
    stamped = new_run_folder(tmp_path, None)
    stamped.mkdir(parents=True)
    assert new_run_folder(tmp_path, None) != stamped, "two runs begun within a second"


def test_torchrun_needs_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--run NAME"):
        new_run_folder(tmp_path, None)


def test_last_is_the_run_that_saved_last(tmp_path):
    for step, name in ((9, "20250101-000000"), (4, "slurm-7"), (5, "20250102-000000")):
        AtomicCheckpointIO().save_checkpoint(
            {"global_step": step}, tmp_path / name / "checkpoints" / "last.ckpt"
        )
    assert choose_run(tmp_path, None, "last")[0].name == "20250102-000000"
    broken = tmp_path / "20250102-000000" / "checkpoints" / "last.ckpt"
    broken.write_bytes(broken.read_bytes()[:-1])
    run, checkpoint = choose_run(tmp_path, None, "last")
    assert run.name == "slurm-7", "a run without a complete checkpoint is passed over"
    assert choose_run(tmp_path, None, str(checkpoint)) == (run, checkpoint)
    assert choose_run(tmp_path, "other", str(checkpoint)) == (tmp_path / "other", checkpoint)


def test_metrics_csv_grows_columns_and_rewinds(tmp_path):
    logger = MetricsCSV(tmp_path)
    for step in range(4):
        logger.log_metrics({"loss": 1.0 / (step + 1)}, step)
        logger.log_metrics({"late": float(step)} if step >= 2 else {}, step)
    again = MetricsCSV(tmp_path)
    again.rewind(3)
    again.log_metrics({"loss": 9.0, "new": 1.0}, 3)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["late"] for row in rows] == ["", "", "2.0", ""]
    assert [row["loss"] for row in rows] == ["1.0", "0.5", repr(1 / 3), "9.0"]
    assert rows[3]["new"] == "1.0"


def test_git_state_outside_of_a_repository(tmp_path):
    state, diff = git_state(tmp_path)
    assert state["commit"] is None and state["reason"] and diff == ""


def test_no_stale_diff_beside_a_clean_state(tmp_path, monkeypatch):
    states = [({"commit": "a", "dirty": True}, "-x\n+y"), ({"commit": "b", "dirty": False}, "")]
    for state in states:
        monkeypatch.setattr(run_folder, "git_state", lambda _, state=state: state)
        write_record(tmp_path, "threads: 1\n", tmp_path)
    assert json.loads((tmp_path / "git.json").read_text())["commit"] == "b"
    assert not (tmp_path / "git.diff").exists(), "the diff belongs to the earlier start"
    assert (tmp_path / "git.diff.1").read_text() == "-x\n+y\n"
    assert json.loads((tmp_path / "git.json.1").read_text())["commit"] == "a"


@pytest.mark.parametrize("simulated", [True, False])
def test_report_says_what_it_was_fitted_and_scored_on(tmp_path, monkeypatch, simulated):
    """The events' files say whether nufm simulated them, wherever they are."""
    data = write_data(tmp_path / "data")
    for path in data.glob("*/*.h5") if simulated else ():
        with h5py.File(path, "r+") as file:
            file.attrs["producer"] = "simulated by nufm"
    titles = []
    monkeypatch.setattr("nufm.display.plots.training_curves", lambda *given: titles.append(given[2]))
    probe = {"epochs": 1, "batch_size": 512}
    config = write_config(
        tmp_path / "mini.yaml",
        data,
        trainer__max_steps=1,
        report={"enabled": True, "n_events": 6, "probe": probe},
    )
    pretrain(["--config", str(config), "--run", str(tmp_path / "mini" / "one")])
    report = json.loads((tmp_path / "mini" / "one" / "report.json").read_text())
    assert report["simulated"] is simulated
    assert report["events"] == {"train": 6, "test": 4}, "there are four test events only"
    table, caption = (tmp_path / "mini" / "one" / "report.md").read_text().split("\n\n")
    assert "fitted on 6 and scored on 4 other events" in caption and "3 probe seeds (0, 1, 2)" in caption
    assert ("simulated by nufm" in caption) is simulated and "simulated" not in table
    assert titles == ["mini/one" + ("   ·   simulated by nufm" if simulated else "")]


# ---------------------------------------------------------------------- progress and hardware


def test_progress_where_there_is_no_terminal(folder, finished, capfd):
    """Plain lines with loss, events per second and time to go: a log file gets no control characters."""
    pretrain(["--config", str(folder / "mini.yaml"), "--run", str(folder / "plain")])
    said = capfd.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith("step 3/3"))
    assert "loss" in line and "events/s" in line and "to go" in line
    assert len([line for line in said.splitlines() if line.startswith("ops (NUFM_BACKEND=auto): torch: ")]) == 1
    assert "\x1b" not in said and "\r" not in said


def test_progress_in_a_terminal(folder):
    screen = io.StringIO()
    cli = PretrainCLI(["--config", str(folder / "mini.yaml"), "--run", str(folder / "terminal")])
    bar = next(c for c in cli.trainer.callbacks if isinstance(c, RunProgress))
    bar.console = Console(file=screen, force_terminal=True, width=160)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    shown = screen.getvalue()
    assert "3/3" in shown and "loss" in shown and "events/s" in shown and "to go" in shown


def test_short_numbers_and_clock():
    assert [_short(x) for x in (0.0, 0.00123, 0.1234, 12.34, 1234.5)] == [
        "0.000",
        "1.23e-03",
        "0.123",
        "12.3",
        "1234",
    ]
    assert [_clock(s) for s in (5, 65, 3665)] == ["0:05", "1:05", "1:01:05"]


def test_precision_and_threads(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_precision("auto") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_bf16, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **_: has)
        assert default_precision("auto") == expected
    assert default_precision("cpu") == "32-true"
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_float32_products_on_cuda_only(monkeypatch):
    said = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    for available, accelerator in ((False, "auto"), (False, "gpu"), (True, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=available: there)
        set_matmul_precision(accelerator)
    assert said == []
    set_matmul_precision("auto")
    assert said == ["high"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_used_by_itself(folder):
    run = folder / "gpu"
    pretrain(["--config", str(folder / "mini.yaml"), "--run", str(run), "--trainer.accelerator", "auto"])
    saved = yaml.safe_load((run / "config.yaml").read_text())
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert saved["trainer"]["precision"] == ("bf16-mixed" if has_bf16 else "32-true")
    assert torch.cuda.max_memory_allocated() > 0, "nothing was computed on the GPU"
    with open(run / "metrics.csv", newline="") as file:
        assert all(0 < float(row["train/loss"]) < 100 for row in csv.DictReader(file))


def test_resuming_takes_the_settings_of_the_run(tmp_path):
    """Flags of the first start need not be typed again; new ones come on top."""
    folder = tmp_path / "tiny-panda" / "a"
    folder.mkdir(parents=True)
    first = PretrainCLI(["--model.prototypes", "64"], build=False)
    (folder / "config.yaml").write_text(first.parser.dump(first.config))
    args = [f"--runs_dir={tmp_path}", "--run=a", "--ckpt_path=last", "--model.learning_rate=0.5"]
    given = with_settings_of_the_run(["--config", str(DEFAULT_CONFIG), *args], [DEFAULT_CONFIG])
    assert given == ["--config", str(DEFAULT_CONFIG), "--config", str(folder / "config.yaml"), *args]
    found = PretrainCLI([*given[:4], args[0], "--run=b", args[3]], build=False).config.model.init_args
    assert found.prototypes == 64 and found.learning_rate == 0.5
