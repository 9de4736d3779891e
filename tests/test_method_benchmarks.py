"""The benchmarks of masked point modelling: that what they compare is the same, and that each runs in small."""

# ruff: noqa: E402

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from run_support import write_data

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as when one of them is run as a script

import masked_step
import ssl_methods

from nufm.commands.pretrain import PretrainCLI
from nufm.methods.masked_points import MaskedPoints
from nufm.models.token_encoder import TokenEncoder
from nufm.models.tokens import Tokenizer


def test_the_full_length_form_computes_the_same() -> None:
    """Otherwise the two would not be comparable. Two events of different length, so that one is padded."""
    torch.manual_seed(0)
    batch = masked_step.make_batch(2)
    small = {"channels": 24, "depth": 2, "heads": 2, "feature_blocks": (1,), "attention_dropout": 0.0}
    model = MaskedPoints(TokenEncoder(Tokenizer.preset("25"), **small), decoder_depth=1).eval()
    for linear in (model.point_head, model.energy_head):
        torch.nn.init.normal_(linear.weight)  # at their initial size differences would not be seen
    with torch.no_grad():
        ours, theirs = model.reconstruct(batch), masked_step.full_length(model, batch)
    assert len(set(ours.tokens.offsets.diff().tolist())) > 1
    assert float(ours.points.abs().max()) > 1
    torch.testing.assert_close(ours.points, theirs.points, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.energy, theirs.energy, rtol=1e-3, atol=1e-3)


def test_masked_step_in_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    small = {"channels": 24, "depth": 1, "heads": 2, "feature_blocks": (0,), "attention_dropout": 0.0}
    monkeypatch.setattr(masked_step, "SIZES", {"paper": small, "small": small})
    monkeypatch.setattr(masked_step.Machine, "measure", classmethod(lambda cls, *_: cls("CPU", "float32", 1e9, 1e9)))
    monkeypatch.setattr(sys, "argv", ["masked_step.py", "--events", "1", "--budget", "0.1", "--out", str(tmp_path)])
    masked_step.main()
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    (paper,) = report["rows"]
    assert paper["events"] == 1 and paper["visible"] < paper["tokens"]
    assert all(x > 0 for x in (*paper["seconds"].values(), *paper["gigabytes"].values()))
    said = capsys.readouterr().out
    assert "tokenizing over a step" in said and ("| met |" in said or "| not met |" in said)


def test_methods_are_matched() -> None:
    """The same events and inputs, and encoders of the same size to 3 %."""
    sizes, inputs = {}, set()
    for name, method in ssl_methods.METHODS.items():
        cli = PretrainCLI([*method.flags, *ssl_methods.SHARED], build=False)
        with torch.device("meta"):
            built = cli.parser.instantiate_classes(cli.config)
        sizes[name] = sum(p.numel() for p in built.model.encoder.parameters())
        data = cli.config.data.init_args
        inputs.add((repr(built.data.transforms), data.grid_size, data.n_train, data.simulation_seed, data.max_events))
    assert len(inputs) == 1
    assert max(sizes.values()) < 1.03 * min(sizes.values()), sizes
    assert sizes["Point-MAE"] == sizes["PoLAr-MAE"]


def test_comparison_in_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A few steps of each method on small events, and the table of them."""
    data = write_data(tmp_path / "data")
    monkeypatch.setattr(ssl_methods, "EVENTS", {"root": str(data), "min_points": 100})
    own = ("--data.root", str(data), "--data.min_points", "100", "--data.batch_size", "2")
    after_events = ssl_methods.SHARED.index("--data.transforms")
    monkeypatch.setattr(ssl_methods, "SHARED", (*ssl_methods.SHARED[after_events:], *own))
    monkeypatch.setattr(ssl_methods, "FIT", 4)
    monkeypatch.setattr(ssl_methods, "SCORE", 4)
    folders = {name: tmp_path / name for name in ("PoLAr-MAE", "Panda")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "steps.json").write_text('{"steps": 5, "timed": 1.0}')
        ssl_methods.one_run(name, folder, 1.0, 0)
    found = ssl_methods.measure(folders, [0])
    report = {"seed": 0, "trainings": ssl_methods.trainings(folders), **found}
    names = ["raw inputs", "token encoder, untrained", "Point Transformer V3, untrained", "PoLAr-MAE", "Panda"]
    assert list(found["voxels"]["scores"]) == names == list(found["tokens"]["svm"]["scores"])
    monkeypatch.setattr(ssl_methods, "EVENTS", {"n_train": 24})
    text = ssl_methods.markdown(report)
    assert text.count("\n| ") >= len(names)
    assert report["trainings"]["Panda"]["events_seen"] == 10 and "| 10 |" in text
