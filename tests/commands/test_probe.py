"""scripts/probe.py from its flags to its folder, with a minute encoder and real event files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from run_support import REPOSITORY, environment, write_data, write_events

import nufm.commands.display
import nufm.commands.evaluate
import nufm.commands.finetune
import nufm.commands.probe
import nufm.report
from nufm.checkpoint import save_pretrained
from nufm.commands.inputs import run_data
from nufm.commands.probe import run
from nufm.data.event import MOTIF_NAMES, PID_NAMES
from nufm.data.transforms import LogEnergy, NormalizeCoord
from nufm.models.ptv3 import PointTransformerV3
from nufm.report import probe_tables

QUICK = ["--probe.epochs", "3", "--probe.batch_size", "256", "--probe.learning_rate", "0.02", "--threads", "1"]
TRANSFORMS = [NormalizeCoord(), LogEnergy()]


def export(folder: Path, **changes: object) -> Path:
    torch.manual_seed(0)
    encoder = PointTransformerV3(depths=(1, 1), channels=(16, 32), heads=(1, 2), window=32, layer_scale=1.0)
    settings = {"transforms": TRANSFORMS, "grid_size": 0.002} | changes
    return save_pretrained(folder, encoder, **settings)


@pytest.fixture(scope="module")
def a_run(tmp_path_factory) -> Path:
    """A run folder: its export, and a config.yaml that says where its events are."""
    folder = tmp_path_factory.mktemp("run")
    data = write_data(folder / "data")
    run = folder / "runs" / "mini" / "one"
    export(run / "export")
    init = {"root": str(data), "min_points": 16, "batch_size": 2, "max_events": 3, "grid_size": 0.002}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"class_path": "x", "init_args": init}}))
    (run / "environment.json").write_text("{}")
    return run


@pytest.fixture(scope="module")
def found(a_run) -> dict:
    return run(["--checkpoint", str(a_run), "--fit.events", "8", "--seeds", "[0,1]", *QUICK])


# ---------------------------------------------------------------------------------------- what comes out


def test_both_tasks_with_all_rows_and_seeds(a_run, found):
    assert json.loads((a_run / "probe" / "report.json").read_text()) == found
    assert list(found["tasks"]) == ["motif", "pid"]
    for task, names in (("motif", MOTIF_NAMES), ("pid", PID_NAMES)):
        table = found["tasks"][task]
        assert table["classes"] == list(names) and table["events"] == {"train": 8, "test": 4}
        assert list(table["scores"]) == ["raw", "untrained", "pretrained"] and table["simulated"] is False
        for row in table["scores"].values():
            assert [s["seed"] for s in row["per_seed"]] == [0, 1]
            assert row["per_seed"][0]["macro_f1_by_epoch"] != row["per_seed"][1]["macro_f1_by_epoch"]
            assert all(len(s["macro_f1_by_epoch"]) == 3 for s in row["per_seed"])
            assert all(s["macro_f1_by_epoch"][-1] == s["macro_f1"] for s in row["per_seed"])


def test_scores_follow_from_the_confusion_matrix(found):
    """Precision, recall and F1 against scikit-learn, from points rebuilt of the matrix; its rows are the truth."""
    for table in found["tasks"].values():
        for row in table["scores"].values():
            for seed in row["per_seed"]:
                matrix = np.array(seed["confusion"])
                np.testing.assert_array_equal(matrix.sum(1), table["points"]["test"])
                true, predicted = (np.repeat(i.ravel(), matrix.ravel()) for i in np.indices(matrix.shape))
                np.testing.assert_array_equal(confusion_matrix(true, predicted, labels=range(len(matrix))), matrix)
                expected = precision_recall_fscore_support(
                    true, predicted, labels=range(len(matrix)), zero_division=np.nan
                )
                for name, values in zip(("precision", "recall", "f1"), expected[:3], strict=True):
                    nan = np.array([np.nan if v is None else v for v in seed[name]])
                    np.testing.assert_allclose(nan, values, atol=1e-9)
                    assert seed[f"macro_{name}"] == pytest.approx(np.nanmean(values))


def test_points_are_those_of_the_files(a_run, found):
    """Low-energy deposits (class 4) are an eighth of the points of each event, the rest a track (class 1)."""
    counts = np.zeros((2, 5), int)
    for use, split, n in ((0, "train", 8), (1, "test", 4)):
        with h5py.File(a_run.parents[2] / "data" / split / "events.h5") as file:
            for i in range(n):
                clusters = file["cluster"][i].reshape(-1, 6).astype(int)
                np.add.at(counts[use], clusters[:, 4], clusters[:, 0])
    points = found["tasks"]["motif"]["points"]
    np.testing.assert_array_equal([points["train"], points["test"]], counts)


def test_report_names_every_number(a_run, found):
    text = (a_run / "probe" / "report.md").read_text()
    for table in found["tasks"].values():
        for row in table["scores"].values():
            assert f"**{100 * row['macro_f1_mean']:.1f} ± {100 * row['macro_f1_std']:.1f}**" in text
            lines = text.split(f"| {row['label']} | precision")[1:]
            assert len(lines) == 2, "one table of classes for each task"
        pretrained = table["scores"]["pretrained"]
        for c, name in enumerate(table["classes"]):
            cells = [pretrained[f"{score}_mean"][c] for score in ("precision", "recall", "f1")]
            shown = " | ".join("–" if v is None else f"{100 * v:.1f}" for v in cells)
            assert f"| {name} | {shown} | {table['points']['test'][c]:,} |" in text
    assert "fitted on 8 and scored on 4 other events" in text


@pytest.mark.parametrize("name", ["confusion_motif", "confusion_pid", "scores_motif", "scores_pid"])
def test_pictures_show_something(a_run, found, name):
    picture = imread(a_run / "probe" / f"{name}.png")
    assert min(picture.shape[:2]) >= 200 and picture[..., :3].std() > 0.01


def test_where_it_comes_from(a_run, found):
    assert found["checkpoint"] == str(a_run) and "commit" in found
    assert found["data"]["root"] == str(a_run.parents[2] / "data")
    assert [Path(f).parts[-2:] for f in found["data"]["files"]["train"]] == [("train", "events.h5")]
    assert found["environment"]["packages"]["torch"]
    assert yaml.safe_load((a_run / "probe" / "config.yaml").read_text())["fit"]["events"] == 8


def test_no_score_depends_on_the_batches(a_run, found, tmp_path):
    args = ["--checkpoint", str(a_run), "--fit.events", "8", "--seeds", "[0,1]", *QUICK]
    again = run([*args, "--out", str(tmp_path), "--data.batch_size", "3", "--compare", "[]"])
    for task, table in again["tasks"].items():
        assert list(table["scores"]) == ["pretrained"]
        ours, theirs = (
            [seed["macro_f1_by_epoch"] for seed in t["tasks"][task]["scores"]["pretrained"]["per_seed"]]
            for t in (again, found)
        )
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_one_split_for_both(a_run, tmp_path):
    args = ["--checkpoint", str(a_run), "--tasks", "[pid]", "--seeds", "[5]", "--compare", "[untrained]", *QUICK]
    chosen = ["--fit", '{split: train, events: 3}', "--score", '{split: train, events: 1000}', "--shuffle", "2"]
    table = run([*args, *chosen, "--storage", "memory", "--out", str(tmp_path / "out")])["tasks"]["pid"]
    assert table["events"] == {"train": 3, "test": 21}
    assert table["splits"] == {"train": "train", "test": "train", "shuffle": 2}


TOKENS = ["--tasks", "[token_svm,token_classes,token_pairs,token_vertex]", "--tokens.balls", "5", "--threads", "1"]


def test_tokens(a_run, tmp_path, capsys):
    """Events of one track and no vertices: what can be asked is in the tables, what cannot is said."""
    args = ["--checkpoint", str(a_run), "--fit.events", "6", "--seeds", "[0,1]", "--out", str(tmp_path), *TOKENS]
    found = run(args)
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert found["tasks"] == {} and list(found["tokens"]) == ["svm", "classes", "pairs", "vertex"]
    text = (tmp_path / "report.md").read_text()
    for probe, table in found["tokens"].items():
        assert f"## Tokens: {table['task']}" in text and table["events"] == {"train": 6, "test": 4}
        assert f"Fitted on {table['tokens']['train']:,} tokens of 6 events" in text
        rows = {"raw": 1, "untrained": 2, "pretrained": 1} if probe in ("svm", "classes") else {}
        assert {row: len(of_row["per_seed"]) for row, of_row in table["scores"].items()} == rows
        for row, of_row in table["scores"].items():
            first = next(iter(table["metrics"]))
            mean, deviation = of_row["mean"][first], of_row["std"][first]
            shown = f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if deviation is not None else "")
            assert f"| {of_row['label']} | {shown} |" in text and (deviation is None) is (row != "untrained")
    svm = found["tokens"]["svm"]["scores"]["pretrained"]["mean"]
    assert svm["shower"] is None and svm["macro_f1"] == svm["track"], "there are only tracks"
    assert "No event has tokens of two particles" in text
    assert "the files do not say where particles were created" in text
    assert imread(tmp_path / "scores_token_svm.png")[..., :3].std() > 0.01
    assert "Pictures beside it: scores_token_svm.png." in capsys.readouterr().out
    run([*args, "--tasks", "[token_classes]", "--compare", "[]", "--out", str(tmp_path / "bare")])
    said = capsys.readouterr().out
    assert "report.md" in said and "Pictures" not in said and list((tmp_path / "bare").glob("*.png")) == []


def test_too_few_tokens(capsys, a_run):
    assert "tokens.max_tokens is 1" in refused(capsys, "--checkpoint", str(a_run), *TOKENS, "--tokens.max_tokens", "1")


def test_an_encoder_that_shows_the_class_wins(tmp_path, monkeypatch, a_run):
    """Features that hold the class give 100 %, features of noise do not: the table is of the features."""

    def told(encoder):
        return lambda batch: torch.nn.functional.one_hot(batch.labels["motif"], 5).float()

    monkeypatch.setattr(nufm.report, "encoder_features", told)
    args = ["--checkpoint", str(a_run), "--tasks", "[motif]", "--seeds", "[0]", "--compare", "[raw]", *QUICK]
    scores = run([*args, "--out", str(tmp_path)])["tasks"]["motif"]["scores"]
    assert scores["pretrained"]["macro_f1_mean"] == 1.0 > scores["raw"]["macro_f1_mean"]


def test_settings_of_the_run_are_the_defaults(a_run):
    data = str(a_run.parents[2] / "data")
    assert run_data(a_run) == {"root": data, "min_points": 16}
    assert run_data(a_run / "export") == run_data(a_run)
    assert run_data("hf://some/one") == {}


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        run(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for flag, words in (
        ("--fit.events", "how many"),
        ("--probe.standardise", "mean"),
        ("--storage", "float16"),
        ("--data.root", "simulated"),
        ("--data.grid_size", "comes with the weights"),
        ("--tasks", "PILArNet-M v1 have none"),
    ):
        assert flag in said and words in said
    assert "views" not in said and "--data.augment" not in said, "settings of trainings"


@pytest.mark.parametrize("command", ["probe", "evaluate", "finetune", "display"])
def test_every_command_says_which_weights_it_takes(capsys, command):
    main = {
        "probe": nufm.commands.probe.probe,
        "evaluate": nufm.commands.evaluate.evaluate,
        "finetune": nufm.commands.finetune.finetune,
        "display": nufm.commands.display.main,
    }[command]
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    phrase = "export folder, hf://owner/name, or released weights (Panda .pth, PoLAr-MAE or Point-MAE .ckpt)"
    # lines may break after a hyphen
    assert phrase.replace(" ", "").replace("-", "") in said.replace(" ", "").replace("-", "")
    if command == "probe":
        assert "but for probes of weights with a norm over the batch" in said


def test_print_config_shows_the_settings_of_the_run(capsys, a_run):
    with pytest.raises(SystemExit) as stop:
        run(["--checkpoint", str(a_run), "--print_config", "--fit.events", "7"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert stop.value.code == 0
    assert shown["data"]["root"] == str(a_run.parents[2] / "data") and shown["fit"]["events"] == 7


def test_flags_go_before_the_settings_of_the_run(a_run, tmp_path):
    """Run, then file, then flags."""
    from nufm.commands.inputs import parse
    from nufm.commands.probe import parser

    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"data": {"min_points": 20, "seed": 4}, "seeds": [7]}))
    args = ["--checkpoint", str(a_run), "--config", str(tmp_path / "mine.yaml"), "--data.seed", "5"]
    _, config = parse(parser, args, "")
    assert (config.data.min_points, config.data.seed, config.seeds) == (20, 5, [7])
    assert config.data.root == str(a_run.parents[2] / "data")


# ---------------------------------------------------------------------------------------- what is refused


def refused(capsys, *args: str) -> str:
    from nufm.commands.probe import probe

    with pytest.raises(SystemExit) as stop:
        probe([*args])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_checkpoint_is_required(capsys):
    assert "checkpoint" in refused(capsys)


def test_nothing_there(capsys, tmp_path):
    assert str(tmp_path / "no") in refused(capsys, "--checkpoint", str(tmp_path / "no"))


def test_misspelt_flag(capsys, a_run):
    assert "did you mean 'seeds'" in refused(capsys, "--checkpoint", str(a_run), "--seds", "[1]")


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--tasks", "[]", "tasks"),
        ("--tasks", "[motif,motif]", "none twice"),
        ("--seeds", "[]", "seeds"),
        ("--tasks", "[particle]", "particle"),
        ("--probe.epochs", "0", "epochs"),
        ("--fit.events", "0", "events"),
        ("--device", "cuda:77", "--device cpu"),
        ("--data.grid_size", "0.5", "grid_size: given 0.5, of the weights 0.002"),
        ("--data.root", "/nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_bad_setting(capsys, a_run, flag, value, said):
    assert said in refused(capsys, "--checkpoint", str(a_run), flag, value)


def test_other_transforms_are_refused_with_what_differs(capsys, a_run):
    given = "[{class_path: nufm.data.transforms.NormalizeCoord}, {class_path: nufm.data.transforms.LogEnergy, " \
            "init_args: {epsilon: 0.13}}]"  # fmt: skip
    said = refused(capsys, "--checkpoint", str(a_run), "--data.transforms", given)
    assert "epsilon=0.13" in said and "epsilon=0.01" in said


def test_same_transforms_may_be_given(a_run, tmp_path):
    given = "[{class_path: nufm.data.transforms.NormalizeCoord}, {class_path: nufm.data.transforms.LogEnergy}]"
    args = ["--checkpoint", str(a_run), "--tasks", "[motif]", "--seeds", "[0]", "--compare", "[]", *QUICK]
    run([*args, "--data.transforms", given, "--data.grid_size", "0.002", "--out", str(tmp_path)])


def without_pid(path: Path) -> Path:
    """The same events as a v1 file: clusters of 5 columns."""
    with h5py.File(path, "r+") as file:
        for i in range(len(file["cluster"])):
            file["cluster"][i] = file["cluster"][i].reshape(-1, 6)[:, :5].ravel()
    return path


def test_a_label_that_the_file_lacks(capsys, a_run, tmp_path):
    for split in ("train", "test"):
        without_pid(write_events(tmp_path / split / "old.h5", 4, seed=len(split)))
    args = ["--checkpoint", str(a_run), "--data.root", str(tmp_path), "--seeds", "[0]", *QUICK]
    said = refused(capsys, *args)
    assert "old.h5" in said and "'pid'" in said and "--tasks '[motif]'" in said
    found = run([*args, "--tasks", "[motif]", "--compare", "[]", "--out", str(tmp_path / "out")])
    assert list(found["tasks"]) == ["motif"]


def test_the_same_file_twice(capsys, a_run, tmp_path):
    path = write_events(tmp_path / "train" / "events.h5", 4)
    splits = f"{{test: {path}}}"
    said = refused(capsys, "--checkpoint", str(a_run), "--data.root", str(tmp_path), "--data.splits", splits)
    assert "both fitted on and scored" in said and "#0" in said


def test_no_split_to_score(capsys, a_run, tmp_path):
    write_events(tmp_path / "train" / "events.h5", 4)
    assert "no split 'test'" in refused(capsys, "--checkpoint", str(a_run), "--data.root", str(tmp_path))


def test_a_model_without_an_encoder(capsys, a_run, tmp_path):
    from nufm.models.uresnet import UResNet

    torch.manual_seed(0)
    model = UResNet(n_classes=5, filters=4, depth=2)
    save_pretrained(tmp_path / "u", model, task="motif", transforms=TRANSFORMS, grid_size=0.002)
    said = refused(capsys, "--checkpoint", str(tmp_path / "u"), "--data.root", str(a_run.parents[2] / "data"))
    assert "UResNet" in said and "evaluate.py" in said


def test_no_labelled_point_to_score(a_run, tmp_path):
    """Classes of -1 everywhere: neither a score of nothing nor NaN in the JSON."""
    shutil.copytree(a_run.parents[2] / "data", tmp_path / "data")
    with h5py.File(tmp_path / "data" / "test" / "events.h5", "r+") as file:
        for i in range(len(file["cluster"])):
            clusters = file["cluster"][i].reshape(-1, 6)
            clusters[:, 4] = -1
            file["cluster"][i] = clusters.ravel()
    with pytest.raises(ValueError, match=r"no point of the 4 events to score has a 'motif' label"):
        run(["--checkpoint", str(a_run), "--data.root", str(tmp_path / "data"), "--tasks", "[motif]", *QUICK])


def test_the_script_itself(a_run, tmp_path):
    args = ["--checkpoint", str(a_run), "--tasks", "[motif]", "--seeds", "[0]", "--compare", "[]", *QUICK]
    command = [sys.executable, str(REPOSITORY / "scripts" / "probe.py"), *args, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "macro-F1" in done.stdout and "Warning" not in done.stderr
    assert {"report.md", "report.json", "config.yaml", "confusion_motif.png"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }


def test_probe_leaves_the_encoder_as_it_was(a_run):
    """Frozen: no gradient, no other weights, no other mode."""
    from nufm.checkpoint import from_pretrained
    from nufm.commands.inputs import open_data
    from nufm.methods.linear_probe import EventChoice, ProbeSettings

    pretrained = from_pretrained(a_run)
    encoder = pretrained.encoder.train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    data = open_data(run_data(a_run), pretrained)
    choices = EventChoice("train", 2), EventChoice("test", 2)
    probe_tables(encoder, data, *choices, ["motif"], ProbeSettings(1, 256), [0], compare=[])
    assert encoder.training and all(p.grad is None for p in encoder.parameters())
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
