"""scripts/display.py: writes what it says, and refuses bad input with a message and exit code 2."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from made_streams import made_event, write_events
from made_tokens import tokens_of

from nufm.display.command import display, holds_streams
from nufm.display.stream_panels import Explanation, StreamPanel, saliency_panel

SCRIPT = Path(__file__).parents[2] / "scripts" / "display.py"


class Features:
    """Stands for a loaded checkpoint of points."""

    inputs = "points"

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def features(self, event) -> np.ndarray:
        return np.concatenate([event.voxel * self.scale, event.energy[:, None]], axis=1)

    def untrained(self) -> Features:
        return Features(-1.0)


def never(*asked: object) -> Features:
    raise AssertionError("no checkpoint was asked for")


def test_without_a_checkpoint(genuine_file, tmp_path, capsys) -> None:
    assert display(never, never, never, [str(genuine_file), "--out", str(tmp_path / "new")]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [p.name for p in printed] == ["pilarnet_m_event_0.png", "pilarnet_m_event_0.html"]
    assert all(p.stat().st_size > 50_000 for p in printed)


def test_with_a_checkpoint(genuine_file, tmp_path, capsys) -> None:
    asked = []
    assert (
        display(
            lambda s: asked.append(s) or Features(),
            never,
            never,
            [str(genuine_file), "--checkpoint", "RUN", "--out", str(tmp_path)],
        )
        == 0
    )
    assert asked == ["RUN"]
    printed = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert printed == [f"pilarnet_m_event_0{end}" for end in (".png", "_features.png", ".html")]
    page = (tmp_path / "pilarnet_m_event_0.html").read_text(encoding="utf-8")
    assert "pretrained features" in page and "untrained features" in page


def test_tokens(genuine_file, tmp_path, capsys) -> None:
    asked = []

    def tokenize(event, size, encoder):
        asked.append((size, type(encoder).__name__))
        return tokens_of(event, event.voxel[::40], radius=5.0)

    assert display(never, tokenize, never, [str(genuine_file), "--tokens", "5", "--out", str(tmp_path)]) == 0
    printed = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert printed == [f"pilarnet_m_event_0{end}" for end in (".png", "_tokens.png", ".html")]
    page = (tmp_path / "pilarnet_m_event_0.html").read_text(encoding="utf-8")
    assert '"label":"tokens"' in page and re.search(r"token 3 of \d+ points", page)
    # without a size: those of the checkpoint
    empty = [str(genuine_file), "--energy-threshold", "1e9", "--tokens", "--checkpoint", "RUN", "--out", str(tmp_path)]
    assert display(lambda source: Features(), tokenize, never, empty) == 0
    assert asked == [("5", "NoneType"), (None, "Features")]


def no_tokens(*asked: object) -> None:
    raise ValueError("RUN: a PointTransformerV3 has no tokens of its own")


def test_tokens_that_cannot_be_had(genuine_file, tmp_path, capsys) -> None:
    """Nothing is drawn then."""
    for arguments, message in (
        (["--tokens"], "--tokens without a size draws those of a checkpoint: add --checkpoint"),
        (["--tokens", "own", "--checkpoint", "RUN"], "a PointTransformerV3 has no tokens of its own"),
    ):
        given = [str(genuine_file), *arguments, "--out", str(tmp_path)]
        assert display(lambda source: Features(), no_tokens, never, given) == 2
        assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_energy_threshold(genuine_file, tmp_path, capsys) -> None:
    assert display(never, never, never, [str(genuine_file), "--energy-threshold", "1e9", "--out", str(tmp_path)]) == 0
    assert "this event has no voxels" in (tmp_path / "pilarnet_m_event_0.html").read_text(encoding="utf-8")


def no_checkpoint(source: str) -> Features:
    raise ValueError(f"{source}: not an export")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.h5"], "missing.h5 is not there"),
        (["FILE", "--event", "1"], "no event 1; the file holds 1 events"),
        (["FILE", "--event", "-1"], "no event -1"),
        (["FILE", "--min-points", "5000"], "the file holds 0 events of 5000 points"),
        (["FILE", "--checkpoint", "x"], "x: not an export"),
        (["README", "--event", "0"], "not an HDF5 file"),
    ],
)
def test_bad_input(arguments, message, genuine_file, tmp_path, capsys) -> None:
    named = {"FILE": str(genuine_file), "README": str(SCRIPT)}
    assert display(no_checkpoint, never, never, [*(named.get(a, a) for a in arguments), "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""
    assert not list(tmp_path.iterdir())


def test_a_file_without_particle_types(genuine_file, tmp_path, capsys) -> None:
    """Version 1 of the layout: five cluster columns, no PID."""
    with h5py.File(genuine_file) as old, h5py.File(tmp_path / "v1.h5", "w") as new:
        kind = h5py.vlen_dtype(np.float32)
        new.create_dataset("point", (1,), kind)[0] = old["point"][0].astype(np.float32)
        cluster = old["cluster"][0].reshape(-1, 6)[:, :5]
        new.create_dataset("cluster", (1,), kind)[0] = cluster.ravel().astype(np.float32)
    assert display(never, never, never, [str(tmp_path / "v1.h5"), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "v1_0.html").read_text(encoding="utf-8")
    assert "motif (truth)" in page and "particle type (truth)" not in page


@pytest.fixture
def stream_file(tmp_path) -> Path:
    return write_events(tmp_path / "streams.h5", [made_event(0), made_event(1)])


def test_several_sub_detectors(stream_file, tmp_path, capsys) -> None:
    out = tmp_path / "pictures"
    assert holds_streams(stream_file) and holds_streams(tmp_path) and holds_streams("event.npz")
    assert display(never, never, never, [str(stream_file), "--event", "1", "--out", str(out)]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [p.name for p in printed] == ["streams_1.png", "streams_1.html"]
    page = printed[1].read_text(encoding="utf-8")
    assert "streams.h5, event 1" in page and "simulated by nufm" in page and "particle category (truth)" in page


def test_several_sub_detectors_with_a_checkpoint(stream_file, tmp_path, capsys) -> None:
    def explain(event, encoder) -> Explanation:
        assert isinstance(encoder, Features) and event.name.endswith("streams.h5#0")
        panel = StreamPanel("saliency", {s: saliency_panel(h.charge - 1, "NC") for s, h in event.voxels.items()})
        return Explanation(("predicted: NC (71 %)",), (panel,), np.array([0.0, 0.0, 100.0]))

    given = [str(stream_file), "--checkpoint", "RUN", "--out", str(tmp_path)]
    assert display(lambda source: Features(), never, explain, given) == 0
    page = (tmp_path / "streams_0.html").read_text(encoding="utf-8")
    assert "predicted: NC (71 %)" in page and '"label":"saliency"' in page and "predicted vertex" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--event", "2"], "there is no event 2; it holds 2 events, counted from 0"),
        (["--tokens", "5"], "--tokens is for those in the PILArNet-M layout; leave it out"),
        (["--energy-threshold", "0.1"], "--energy-threshold is for those in the PILArNet-M layout"),
        (["--min-points", "0"], "--min-points is for those"),
        (["--checkpoint", "x"], "x: not an export"),
    ],
)
def test_bad_input_of_several_sub_detectors(arguments, message, stream_file, tmp_path, capsys) -> None:
    out = tmp_path / "pictures"
    assert display(no_checkpoint, never, never, [str(stream_file), *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_the_script(genuine_file, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        sys, "argv", ["display.py", str(genuine_file), "--checkpoint", str(tmp_path), "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert stop.value.code == 2 and "neither an export" in capsys.readouterr().err
