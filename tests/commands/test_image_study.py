"""scripts/study.py from its flags to its folder: an export of a minute network, files of pixel maps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from run_support import REPOSITORY, environment

from nufm.checkpoint import from_pretrained, save_pretrained
from nufm.commands.study import STUDIES, named_first, run, study
from nufm.data.image_hdf5 import write_maps
from nufm.data.image_transforms import Brightness, Rebin
from nufm.data.images import ImageBatch, ImageEvent, View
from nufm.data.transforms import compose
from nufm.models.se_resnet import SiameseSEResNet

ROBUST = ("resolution", "noise", "dead_pixels", "missing_view", "gain")


def toy_events(n: int, size: int = 32) -> list[ImageEvent]:
    """The classes in turns: a line of pixels from the middle, a cone of them, a blob; the same in both views."""
    made = []
    for i in range(n):
        draw, kind, image = np.random.default_rng(i), i % 3, np.zeros((size, size), dtype=np.float32)
        for step in np.repeat(np.arange(size // 2), 3):
            spread = (0.0, step / 3, 3.0)[kind]
            row = np.clip(round(size // 2 + draw.normal() * spread), 0, size - 1)
            column = size // 2 + (step if kind < 2 else round(draw.normal() * 3))
            image[row, np.clip(column, 0, size - 1)] += draw.uniform(1, 2)
        views = {view: View.of_image(image) for view in ("xz", "yz")}
        made.append(ImageEvent(views, (size, size), truth={"interaction": np.int64(kind)}, name=f"toy.h5#{i}"))
    return made


def network() -> SiameseSEResNet:
    """A little trained, so that it does not say the same of all events."""
    torch.manual_seed(0)
    model = SiameseSEResNet(channels=(8, 16), blocks=(1, 1))
    some = [compose([Rebin(2), Brightness()], e, np.random.default_rng(0)) for e in toy_events(48)]
    batch = ImageBatch.from_events(some)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(batch)["interaction"], batch.truth["interaction"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``data/`` with val and test, and ``run/``, which says where they are."""
    folder = tmp_path_factory.mktemp("study")
    events = toy_events(54)
    for split, some in (("train", events[:3]), ("val", events[:27]), ("test", events[27:])):
        write_maps(folder / "data" / split / "maps.h5", some, {"producer": "simulated by nufm"})
    save_pretrained(folder / "run" / "export", network(), transforms=[Rebin(2), Brightness()], task="pixelmaps")
    config = {"data": {"init_args": {"root": str(folder / "data"), "size": 32, "batch_size": 8}}}
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run" / "environment.json").write_text("{}")
    return folder


def flags(folder: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(folder / "run"), "--threads", "1", *more]


@pytest.mark.parametrize("name", ROBUST)
def test_robustness_from_flags_to_folder(folder, name, capsys):
    found = run([name, *flags(folder)])
    out = folder / "run" / "studies"
    assert json.loads((out / f"{name}.json").read_text()) == found
    assert found["study"] == name and found["simulated"] and found["events"] == 27 and found["seed"] == 0
    first, *others = found["levels"]
    assert first["accuracy"] > 0.5, "the network learnt nothing, so that the study shows nothing"
    assert len(others) >= 3 and min(row["accuracy"] for row in others if "accuracy" in row) <= first["accuracy"]
    assert len(found["commit"]) == 40 and found["data"]["files"]["test"][0].endswith("maps.h5")
    text = (out / f"{name}.md").read_text()
    assert "simulated by nufm" in text and f"![{name}]({name}.png)" in text
    assert imread(out / f"{name}.png").std() > 0.01
    assert yaml.safe_load((out / f"{name}.yaml").read_text())["study"] == name
    assert "macro AUC" in capsys.readouterr().out


def test_calibration_from_flags_to_folder(folder):
    found = run(["calibration", *flags(folder)])
    assert found["fit"]["events"] == 27 and found["events"] == 27
    assert found["after"]["accuracy"] == found["before"]["accuracy"]
    assert imread(folder / "run" / "studies" / "calibration.png").std() > 0.01
    assert "ECE" in (folder / "run" / "studies" / "calibration.md").read_text()


def test_other_levels_events_and_folders(folder, tmp_path):
    events = folder / "data" / "val" / "maps.h5"
    more = ("--levels", "[0.25]", "--events", str(events), "--max_events", "9", "--out", str(tmp_path / "here"))
    found = run(["--study", "dead_pixels", *flags(folder, *more)])
    assert [row["value"] for row in found["levels"]] == [0.0, 0.25, 0.25] and found["events"] == 9
    assert found["data"]["files"] == {"maps": [str(events)]}
    assert (tmp_path / "here" / "dead_pixels.png").is_file()


def test_the_first_word_is_the_study():
    assert named_first(["noise", "--seed", "1"]) == ["--study", "noise", "--seed", "1"]
    assert named_first(["--study", "noise"]) == ["--study", "noise"]
    with pytest.raises(ValueError, match="unknown study 'rain'"):
        named_first(["rain"])


def said(args: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        study(args)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_meant_is_said_in_a_line(folder, capsys):
    assert "unknown study 'rain', expected one of resolution" in said(["rain", *flags(folder)], capsys)
    assert "share is 3" in said(["dead_pixels", *flags(folder, "--levels", "[3]")], capsys)
    assert "leave them out" in said(["calibration", *flags(folder, "--levels", "[1]")], capsys)
    assert "suppression is [-1.0]" in said(["noise", *flags(folder, "--suppression", "[-1]")], capsys)
    assert "events that it was fitted on" in said(["calibration", *flags(folder, "--split", "val")], capsys)
    assert "nowhere" in said(["noise", "--checkpoint", str(folder / "nowhere")], capsys)
    assert "required: checkpoint" in said(["noise"], capsys)
    assert "no/such" in said(["noise", *flags(folder, "--events", "no/such.h5")], capsys)


def test_noise_of_grey_images_is_in_grey_values(folder, tmp_path):
    write_maps(tmp_path / "grey.h5", [e.replace(unit="grey") for e in toy_events(3)])
    found = run(["noise", *flags(folder, "--events", str(tmp_path / "grey.h5"), "--out", str(tmp_path))])
    assert found["levels"][1]["words"] == "3 grey values, above 3 σ" and not found["simulated"]
    assert "grey values" in found["axis"]


def test_the_script_helps(tmp_path):
    done = subprocess.run(
        [sys.executable, "scripts/study.py", "--help"],
        capture_output=True, text=True, cwd=REPOSITORY, env=environment(tmp_path), check=True,
    )  # fmt: skip
    assert all(name in done.stdout for name in STUDIES) and "--suppression" in done.stdout


def test_a_network_without_words_has_no_studies_of_them(folder, capsys):
    for name in ("few_shot", "prompt"):
        assert "a SiameseSEResNet is asked nothing" in said([name, *flags(folder)], capsys)
    assert "which has no adapters" in said(["lora_rank", *flags(folder)], capsys)


def test_faithfulness_of_a_network_that_does_not_talk(folder):
    found = run(["faithfulness", *flags(folder, "--max_events", "9", "--patches", "2")])
    assert set(found["rows"]) == {"brightest", "strongest"} and found["rows"]["brightest"]["all"]["events"] == 9
    assert imread(folder / "run" / "studies" / "faithfulness.png").std() > 0.01
    assert "with most charge" in (folder / "run" / "studies" / "faithfulness.md").read_text()


def test_a_temperature_that_is_kept_calibrates_predictions(folder, tmp_path):
    export = shutil.copytree(folder / "run" / "export", tmp_path / "export")
    some = toy_events(6)
    before = from_pretrained(export).predict(some, progress=False)
    more = ("--data.root", str(folder / "data"), "--data.size", "32", "--out", str(tmp_path), "--keep", "true")
    found = run(["calibration", "--checkpoint", str(export), "--threads", "1", *more])
    after = from_pretrained(export).predict(some, progress=False)
    t = found["fit"]["temperature"]
    for one, other in zip(before, after, strict=True):
        p, q = one.probability["interaction"].astype(float), other.probability["interaction"].astype(float)
        assert np.log(q[0] / q[1]) == pytest.approx(np.log(p[0] / p[1]) / t, abs=1e-3)
    assert "kept in the export" in (tmp_path / "calibration.md").read_text()
    assert run(["calibration", "--checkpoint", str(export), "--threads", "1", *more])["fit"] == found["fit"]
