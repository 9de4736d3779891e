"""The process that measures the memory of a model: it finds the base of an image-text model where this one did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from toy_language_models import folder, image_event

from nufm.checkpoint import from_pretrained, save_pretrained
from nufm.checkpoint.footprint import resident_growth
from nufm.commands.evaluate import run
from nufm.data.image_hdf5 import write_maps
from nufm.data.image_transforms import Brightness
from nufm.evaluation.cost import cost_per_event
from nufm.models.vlm import VisionLanguageClassifier

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="needs the memory counters of Linux"
)


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """Of a project that was moved: the base was at runs/mine of where it was trained, relative."""
    project = tmp_path_factory.mktemp("project")
    base = shutil.copytree(folder("mllama"), project / "runs" / "mine")
    model = VisionLanguageClassifier(str(base), quantization="none", prompt="brief", rank=2).eval()
    place = save_pretrained(project / "runs" / "one" / "export", model, transforms=[Brightness()], task="pixelmaps")
    config = json.loads((place / "config.json").read_text())
    config["model"]["init_args"]["base"] = "runs/mine"
    (place / "config.json").write_text(json.dumps(config))
    return place


def test_a_base_above_the_export(export):
    assert resident_growth(export, [image_event(0)]) > 0


def test_a_base_that_was_said(export, tmp_path, monkeypatch):
    monkeypatch.setattr("nufm.evaluation.cost.MOST", 5)
    copied = shutil.copytree(export, tmp_path / "export")
    loaded = from_pretrained(copied, base=export.parents[1] / "mine")
    assert loaded.base == str(export.parents[1] / "mine")
    found = cost_per_event(loaded, [image_event(0)])
    assert found["memory_gb"] > 0 and found["memory_is"] == "growth of the resident memory of a fresh process"


def test_the_command_takes_a_base_that_was_moved(export, tmp_path, capsys):
    copied, maps = shutil.copytree(export, tmp_path / "export"), tmp_path / "maps.h5"
    write_maps(maps, [image_event(i, interaction=i) for i in range(3)])
    flags = ["--checkpoint", str(copied), "--events", str(maps), "--cost", "false", "--examples", "0"]
    flags += ["--data.size", "32", "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    with pytest.raises((ValueError, FileNotFoundError), match="runs/mine: no such folder"):
        run(flags)
    found = run([*flags, "--base", str(export.parents[1] / "mine")])
    p = [q.probability["interaction"][i] for i, q in enumerate(from_pretrained(export).predict(maps, progress=False))]
    assert found["events"] == 3
    assert found["labels"]["interaction"]["calibration"]["nll"] == pytest.approx(-np.log(p).mean(), rel=1e-3)


def test_a_process_that_fails_says_why(export, tmp_path):
    copied = shutil.copytree(export, tmp_path / "export")
    with pytest.raises(RuntimeError, match=r"(?s)measures its memory failed.*runs/mine: no such folder"):
        resident_growth(copied, [image_event(0)])
