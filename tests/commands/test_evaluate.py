"""scripts/evaluate.py from its flags to its folder: exports of minute models, real event files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from run_support import REPOSITORY, environment, write_data, write_events

from nufm.checkpoint import from_pretrained, save_pretrained
from nufm.commands.evaluate import evaluate, run
from nufm.data.event import MOTIF_NAMES
from nufm.data.pilarnet import PILArNetReader
from nufm.data.tasks import TASKS
from nufm.data.transforms import LogEnergy, NormalizeCoord
from nufm.models.detector import Detector
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.segmenter import Segmenter

GENUINE = REPOSITORY / "tests" / "data" / "pilarnet_m_event.h5"
TRANSFORMS = [NormalizeCoord(), LogEnergy()]


def encoder() -> PointTransformerV3:
    return PointTransformerV3(depths=(1, 1), channels=(16, 32), heads=(1, 2), window=32, layer_scale=1.0)


def export(folder: Path, task: str | None, **changes: object) -> Path:
    torch.manual_seed(0)
    if task is None:
        model = encoder()
    elif TASKS[task].kind == "panoptic":
        classes = len(TASKS[task].classes)
        model = Detector(encoder(), 4, classes, stuff_class=TASKS[task].stuff, width=32, heads=2, depth=2)
    else:
        model = Segmenter(encoder(), None, len(TASKS[task].classes))
    classes = {} if task is None else {TASKS[task].label: TASKS[task].classes}
    settings = {"transforms": TRANSFORMS, "grid_size": 0.002, "task": task, "classes": classes} | changes
    return save_pretrained(folder, model, **settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data) -> Path:
    """Run folders, one for each task, that say where their events are."""
    folder = tmp_path_factory.mktemp("runs")
    for task in ("motif", "particle"):
        export(folder / task / "export", task)
        settings = {"root": str(data), "min_points": 16, "batch_size": 2, "max_events": 3, "energy_threshold": 0.3}
        (folder / task / "config.yaml").write_text(
            yaml.safe_dump({"data": {"class_path": "nufm.data.datamodule.PointDataModule", "init_args": settings}})
        )
        (folder / task / "environment.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def found(runs) -> dict[str, dict]:
    return {task: run(["--checkpoint", str(runs / task), "--threads", "1"]) for task in ("motif", "particle")}


# ---------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("task", ["motif", "particle"])
def test_a_run_folder_is_enough(runs, data, found, task):
    """Its export, its test split, its selection."""
    scores, out = found[task], runs / task / "evaluation" / "test"
    assert json.loads((out / "scores.json").read_text()) == scores
    assert scores["task"] == task and scores["events"] == 4 and scores["simulated"] is False
    assert scores["data"]["files"]["test"] == [str(data / "test" / "events.h5")]
    assert scores["data"]["energy_threshold"] == 0.3 and scores["checkpoint"] == str(runs / task)
    reader = PILArNetReader(data / "test" / "events.h5", energy_threshold=0.3, min_points=16)
    assert scores["voxels"] == sum(len(e) for e in reader)
    truth = torch.cat([TASKS[task].targets({"motif": torch.from_numpy(e.motif), "pid": torch.from_numpy(e.pid),
                                            "particle": torch.from_numpy(e.particle)})[0] for e in reader])  # fmt: skip
    expected = torch.bincount(truth, minlength=len(TASKS[task].classes)).tolist()
    assert scores["points"]["support"] == expected


@pytest.mark.parametrize("task", ["motif", "particle"])
def test_folder_holds_tables_and_pictures(runs, found, task):
    out = runs / task / "evaluation" / "test"
    pictures = ["confusion", "reliability", "best_1", "best_2", "best_3", "worst_1", "best", "worst"]
    pictures.append("instances" if task == "particle" else "classes")
    assert not (out / ("classes.png" if task == "particle" else "instances.png")).exists()
    if task == "particle":
        if not found[task]["examples"]["best"]:
            pytest.fail("an event with true particles must have a score")
    for name in pictures:
        picture = imread(out / f"{name}.png")
        assert min(picture.shape[:2]) >= 200 and picture[..., :3].std() > 0.01, name
    text = (out / "report.md").read_text()
    for name in pictures:
        if not name[-1].isdigit():
            assert f"({name}.png)" in text
    assert "plotly" in (out / "events.html").read_text() and "events.html" in text
    with open(out / "events.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and sum(int(r["voxels"]) for r in rows) == found[task]["voxels"]
    score = [float(r["score"]) for r in rows]
    assert found[task]["event_score"]["mean"] == pytest.approx(np.mean(score))
    kept = found[task]["examples"]
    assert [e["score"] for e in kept["best"]] == sorted(score, reverse=True)[:3]
    assert [e["score"] for e in kept["worst"]] == [min(score)], "an event is not shown twice"


def test_report_is_the_numbers_of_the_json(runs, found):
    points = found["motif"]["points"]
    text = (runs / "motif" / "evaluation" / "test" / "report.md").read_text()
    for c, name in enumerate(MOTIF_NAMES):
        cells = [points[score][c] for score in ("precision", "recall", "f1", "iou")]
        shown = " | ".join("–" if v is None else f"{100 * v:.1f}" for v in cells)
        assert f"| {name} | {shown} | {points['support'][c]:,} |" in text
    assert "Not in these events: shower, Michel, delta." in text
    assert f"**{100 * points['macro_f1_present']:.1f}**" in text
    particle = (runs / "particle" / "evaluation" / "test" / "report.md").read_text()
    panoptic, clusters = found["particle"]["panoptic"], found["particle"]["clusters"]
    assert f"{panoptic['true_instances']:,} true and {panoptic['pred_instances']:,} predicted instances" in particle
    assert f"| ARI, voxels of true instances | {100 * clusters['ari']:.1f} |" in particle


def test_scores_are_those_of_predict(runs, data, found):
    """The same export, one event at a time through the public call."""
    model = from_pretrained(runs / "motif")
    reader = PILArNetReader(data / "test" / "events.h5", energy_threshold=0.3, min_points=16)
    matrix = np.zeros((5, 5), int)
    for event in reader:
        (prediction,) = model.predict([event], progress=False)
        np.add.at(matrix, (event.motif, prediction.label), 1)
    scores = np.array(found["motif"]["points"]["confusion"])
    # Sums of a batch's matrix products may round otherwise: a point on the edge may go to another class.
    assert np.abs(scores[:, :5] - matrix).sum() <= 4 and scores[:, 5].sum() == 0


def test_another_split_and_the_first_events(runs, tmp_path):
    args = ["--checkpoint", str(runs / "motif"), "--split", "train", "--max_events", "5", "--examples", "0"]
    scores = run([*args, "--out", str(tmp_path)])
    assert scores["events"] == 5 and list(scores["data"]["files"]) == ["train"]
    assert not list(tmp_path.glob("best*")) and not (tmp_path / "events.html").exists()
    text = (tmp_path / "report.md").read_text()
    assert "events.html" not in text and "confusion.png" in text


def test_the_genuine_event(runs, tmp_path):
    """A file in place of a split; a class that is not in it is left out of the macro over the classes present."""
    args = ["--checkpoint", str(runs / "motif"), "--events", str(GENUINE), "--data.min_points", "0"]
    scores = run([*args, "--data.energy_threshold", "0.13", "--out", str(tmp_path)])
    event = PILArNetReader(GENUINE, min_points=0)[0]
    assert scores["events"] == 1 and scores["voxels"] == len(event)
    assert scores["points"]["support"] == np.bincount(event.motif, minlength=5).tolist()
    present = [f for f, n in zip(scores["points"]["f1"], scores["points"]["support"], strict=True) if n]
    assert scores["points"]["macro_f1_present"] == pytest.approx(np.mean(present))
    assert scores["data"]["energy_threshold_of_the_weights"] == 0.13
    assert (tmp_path / "best_1.png").exists() and not (tmp_path / "worst_1.png").exists()


def test_results_in_the_folder_are_replaced(runs, tmp_path):
    args = ["--checkpoint", str(runs / "motif"), "--max_events", "2", "--out", str(tmp_path)]
    run([*args, "--examples", "1"])
    assert {"best_1.png", "worst_1.png", "events.html"} <= {p.name for p in tmp_path.iterdir()}
    run([*args, "--examples", "0"])
    assert not {"best_1.png", "worst_1.png", "events.html"} & {p.name for p in tmp_path.iterdir()}


def test_export_folder_with_data_named(runs, data, tmp_path):
    export(tmp_path / "other", "pid")
    args = ["--checkpoint", str(tmp_path / "other"), "--data.root", str(data), "--data.min_points", "16"]
    scores = run([*args, "--examples", "0", "--data.batch_size", "1", "--out", str(tmp_path / "out")])
    assert scores["task"] == "pid" and scores["events"] == 4 and scores["data"]["energy_threshold"] == 0.13


def test_the_script_itself(runs, tmp_path):
    command = [sys.executable, str(REPOSITORY / "scripts" / "evaluate.py"), "--checkpoint", str(runs / "motif")]
    command += ["--examples", "0", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "macro" in done.stdout and "shower" in done.stdout and "Warning" not in done.stderr
    assert (tmp_path / "out" / "scores.json").is_file()


# ---------------------------------------------------------------------------------------- what is refused


def refused(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        evaluate([*args])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_an_encoder_without_a_task(capsys, data, tmp_path):
    export(tmp_path / "encoder", None)
    said = refused(capsys, "--checkpoint", str(tmp_path / "encoder"), "--data.root", str(data))
    assert "finetune.py" in said and str(tmp_path / "encoder") in said


def test_other_classes(capsys, data, tmp_path):
    export(tmp_path / "other", "motif", classes={"motif": ["track", "shower", "Michel", "delta", "LED"]})
    said = refused(capsys, "--checkpoint", str(tmp_path / "other"), "--data.root", str(data))
    assert "track, shower" in said and "shower, track" in said


def test_a_file_without_the_labels(capsys, runs, tmp_path):
    path = write_events(tmp_path / "old.h5", 3)
    with h5py.File(path, "r+") as file:
        for i in range(3):
            file["cluster"][i] = file["cluster"][i].reshape(-1, 6)[:, :5].ravel()
    said = refused(capsys, "--checkpoint", str(runs / "particle"), "--events", str(path))
    assert "old.h5" in said and "'pid'" in said
    scores = run(["--checkpoint", str(runs / "motif"), "--events", str(path), "--examples", "0",
                  "--out", str(tmp_path / "out")])  # fmt: skip
    assert scores["events"] == 3, "motif labels are in files of every version"


@pytest.mark.parametrize("task", ["motif", "particle"])
def test_an_unlabelled_file(capsys, runs, tmp_path, task):
    path = write_events(tmp_path / "bare.h5", 3)
    with h5py.File(path, "r+") as file:
        del file["cluster"], file["cluster_extra"]
    said = refused(capsys, "--checkpoint", str(runs / task), "--events", str(path))
    assert "bare.h5: no labels, found no data set 'cluster'" in said and "v1" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--events", "/nowhere/*.h5"], "/nowhere"),
        (["--data.root", "/nowhere"], "/nowhere"),
        (["--data.min_points", "100000"], "min_points"),
        (["--split", "all"], "split"),
        (["--max_events", "0"], "max_events"),
        (["--examples", "-1"], "examples"),
        (["--data.grid_size", "0.5"], "grid_size: given 0.5, of the weights 0.002"),
        (["--spilt", "val"], "did you mean 'split'"),
    ],
)
def test_bad_setting(capsys, runs, flags, said):
    assert said in refused(capsys, "--checkpoint", str(runs / "motif"), *flags)
