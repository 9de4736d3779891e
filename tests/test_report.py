"""What a run ends with: one small run from the command line to its report, and the parts of the report alone."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from run_support import REPOSITORY, write_config, write_data

import nufm.commands.pretrain
from nufm.checkpoint import from_pretrained
from nufm.data.event import MOTIF_NAMES
from nufm.models.ptv3 import PointTransformerV3, upcast
from nufm.report import ROWS, _summary, markdown, untrained_twin

PROBE = {"epochs": 2, "batch_size": 512, "learning_rate": 0.02}


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, what it printed, and the objects it trained with."""

    folder: Path
    said: str
    cli: nufm.commands.pretrain.PretrainCLI

    @property
    def report(self) -> dict:
        return json.loads((self.folder / "report.json").read_text())


def with_all_motifs(data: Path) -> Path:
    """Label the points of each file with all five classes in place of two."""
    for path in data.glob("*/*.h5"):
        with h5py.File(path, "r+") as file:
            for i in range(len(file["point"])):
                n = len(file["point"][i]) // 8
                sizes = np.diff(np.linspace(0, n, 6).astype(int))
                rows = [[sizes[0], -1, -1, -1, 4, -1]] + [[sizes[m + 1], m, m, 0, m, m] for m in range(4)]
                file["cluster"][i] = np.array(rows, np.float32).ravel()
                file["cluster_extra"][i] = np.full(5 * 5, 0.5, np.float32)
    return data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("report")
    online = {
        "class_path": "nufm.methods.linear_probe.OnlineProbe",
        "init_args": {"every_n_steps": 1, "n_events": 2, "settings": PROBE},
    }
    config = write_config(
        folder / "mini.yaml",
        with_all_motifs(write_data(folder / "data")),
        trainer__max_steps=3,
        trainer__callbacks=[online],
        report={"enabled": True, "n_events": 4, "probe": PROBE},
        runs_dir=str(folder / "runs"),
    )
    seen, said, original = [], io.StringIO(), nufm.commands.pretrain.report

    def report(cli: nufm.commands.pretrain.PretrainCLI) -> None:
        seen.append(cli)
        original(cli)

    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "NUFM_RUN", "TORCHELASTIC")):
                patch.delenv(name)
        patch.setattr(nufm.commands.pretrain, "report", report)
        with contextlib.redirect_stdout(said):
            nufm.commands.pretrain.pretrain(["--config", str(config)])
    (found,) = (folder / "runs" / "mini").iterdir()
    return Finished(found, said.getvalue(), seen[0])


# ---------------------------------------------------------------------------------------- the run


def test_report_has_three_rows_of_three_seeds(run):
    report = run.report
    assert report["classes"] == list(MOTIF_NAMES)
    assert report["events"] == {"train": 4, "test": 4} and report["simulated"] is False
    assert {k: report["probe"][k] for k in PROBE} == PROBE and report["probe"]["seeds"] == [0, 1, 2]
    assert list(report["scores"]) == ["raw", "untrained", "pretrained"]
    for name, row in report["scores"].items():
        assert row["label"] == ROWS[name]
        assert len(row["per_seed"]) == 3
        assert len({json.dumps(seed) for seed in row["per_seed"]}) > 1, "the seeds are one and the same"
        per_class = np.array([seed["f1"] for seed in row["per_seed"]])
        assert per_class.shape == (3, len(MOTIF_NAMES))
        assert ((0 <= per_class) & (per_class <= 1)).all()
        macro = np.array([seed["macro_f1"] for seed in row["per_seed"]])
        np.testing.assert_allclose(macro, per_class.mean(1), atol=1e-6)
        assert row["macro_f1_mean"] == pytest.approx(macro.mean())
        assert row["macro_f1_std"] == pytest.approx(macro.std(ddof=1))
    assert report["scores"]["untrained"]["per_seed"] != report["scores"]["pretrained"]["per_seed"]


def test_report_table_is_the_numbers_of_the_json(run):
    lines = (run.folder / "report.md").read_text().split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["features", "macro-F1", *MOTIF_NAMES]
    assert len(lines) == 2 + 3
    for found, row in zip(cells[2:], run.report["scores"].values(), strict=True):
        assert found[0] == row["label"]
        mean, std = found[1].strip("*").split(" ± ")
        assert float(mean) == pytest.approx(100 * row["macro_f1_mean"], abs=0.051)
        assert float(std) == pytest.approx(100 * row["macro_f1_std"], abs=0.051)
        np.testing.assert_allclose([float(c) for c in found[2:]], 100 * np.array(row["f1_mean"]), atol=0.051)


@pytest.mark.parametrize("name", ["event", "features", "probe", "training"])
def test_pictures_show_something(run, name):
    picture = imread(run.folder / "pictures" / f"{name}.png")
    assert min(picture.shape[:2]) >= 200
    assert picture[..., :3].std() > 0.01, "the picture has one colour"


def test_export_gives_the_features_of_the_model(run):
    loaded = from_pretrained(run.folder / "export")
    data, encoder = run.cli.datamodule, run.cli.model.encoder.eval()
    event, batch = data.reader("test")[1], next(iter(data.probe_dataloader("test", 2))).select([1])
    with torch.no_grad():
        expected = upcast(encoder(batch)).numpy()
    found = loaded.features(event)
    assert found.shape == (len(event), sum(encoder.channels))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert loaded.classes["motif"] == list(MOTIF_NAMES) and loaded.grid_size == data.grid_size
    assert loaded.extra["steps"] == 3
    # A run folder works in place of its export.
    np.testing.assert_array_equal(from_pretrained(run.folder).features(event), found)


def test_export_holds_the_weights_of_the_last_checkpoint(run):
    state = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    exported = from_pretrained(run.folder / "export").encoder.state_dict()
    (branch,) = [
        name
        for name in ("student", "teacher")
        if all(torch.equal(state[f"{name}.backbone.{k}"], v) for k, v in exported.items())
    ]
    assert getattr(run.cli.model, branch).backbone is run.cli.model.encoder


def test_online_probe_is_logged_and_chooses_the_best_checkpoint(run):
    with open(run.folder / "metrics.csv", newline="") as file:
        scores = [float(row["probe/macro_f1"]) for row in csv.DictReader(file) if row["probe/macro_f1"]]
    assert len(scores) == 3
    best = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 1 + int(np.argmax(scores))


def test_next_commands_can_be_typed(run):
    commands = [shlex.split(line) for line in run.said.splitlines() if line.startswith("  python scripts/")]
    assert all((REPOSITORY / words[1]).is_file() for words in commands)
    (display,) = [words for words in commands if words[1] == "scripts/display.py"]
    file, checkpoint = Path(display[2]), Path(display[display.index("--checkpoint") + 1])
    assert file.is_file() and file.suffix == ".h5" and "test" in file.parts
    with h5py.File(file) as events:
        assert int(display[display.index("--event") + 1]) < len(events["point"])
    assert checkpoint == run.folder and (checkpoint / "export" / "model.safetensors").is_file()
    runs = [words for words in commands if words[1] == "scripts/pretrain.py"]
    assert len(runs) == 2
    for words in runs:
        flags = [str(REPOSITORY / w) if w.startswith("configs/") else w for w in words[2:]]
        nufm.commands.pretrain.PretrainCLI(flags, build=False)


def test_table_is_printed(run):
    assert all(name in run.said for name in MOTIF_NAMES) and "pretrained" in run.said
    for row in run.report["scores"].values():
        assert f"{100 * row['macro_f1_mean']:.1f} ±" in run.said


# ---------------------------------------------------------------------------------------- its parts


def test_untrained_twin_has_the_architecture_and_other_weights():
    torch.manual_seed(5)
    encoder = PointTransformerV3(depths=(1, 2), channels=(16, 32), heads=(1, 2), window=32, drop_path=0.1)
    state = torch.get_rng_state()
    twin, again, other = (untrained_twin(encoder, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state), "the global random state moved"
    assert not twin.training and encoder.training
    own, theirs = encoder.state_dict(), twin.state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}
    assert twin.arguments == encoder.arguments
    matrices = [k for k, v in own.items() if v.dim() > 1 and v.std() > 0]
    assert len(matrices) > 10
    assert not any(torch.equal(own[k], theirs[k]) for k in matrices)
    assert all(torch.equal(again.state_dict()[k], theirs[k]) for k in own), "the seed fixes the weights"
    assert not any(torch.equal(other.state_dict()[k], theirs[k]) for k in matrices)


def seeds(*macro: float) -> list[dict]:
    return [{"macro_f1": m, "f1": [m / 2, m, 1 - m]} for m in macro]


def test_summary_is_mean_and_sample_deviation():
    values = [0.5, 0.6, 0.85]
    found = _summary(seeds(*values))
    assert found["macro_f1_mean"] == pytest.approx(np.mean(values))
    assert found["macro_f1_std"] == pytest.approx(np.sqrt(np.square(np.array(values) - np.mean(values)).sum() / 2))
    mean = np.mean(values)
    np.testing.assert_allclose(found["f1_mean"], [mean / 2, mean, 1 - mean])
    assert _summary(seeds(0.4))["macro_f1_std"] == 0.0, "one seed has no spread, and no NaN"


@pytest.mark.parametrize("entries", [1, 3, 4])
def test_markdown_has_one_row_per_entry(entries):
    scores = {f"row{i}": {"label": f"features {i}"} | _summary(seeds(0.5, 0.6 + i / 10)) for i in range(entries)}
    lines = markdown({"classes": ["a", "b", "c"], "scores": scores}).splitlines()
    assert len(lines) == 2 + entries
    assert all(line.startswith("|") and line.endswith("|") and line.count("|") == 6 for line in lines)
    assert [line.split("|")[1].strip() for line in lines[2:]] == [f"features {i}" for i in range(entries)]
    assert "**55.0 ± 7.1**" in lines[2]
