"""scripts/study.py on an image-text model: a tiny base of random weights, trained for two steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import toy_language_models
from run_support import REPOSITORY, environment

from nufm.commands.lora_ranks import own_training
from nufm.commands.study import run
from nufm.data.image_hdf5 import write_maps


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder."""
    folder = tmp_path_factory.mktemp("vlm")
    for number, split in enumerate(("train", "val", "test")):
        events = [toy_language_models.image_event(12 * number + i, interaction=i % 3) for i in range(12)]
        write_maps(folder / "data" / split / "maps.h5", events, {"producer": "simulated by nufm"})
    network = {"base": toy_language_models.folder("mllama"), "quantization": "none", "prompt": "brief", "rank": 2}
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "nufm.methods.vlm_finetuning.VLMFineTuning",
            "init_args": {
                "network": {"class_path": "nufm.models.vlm.VisionLanguageClassifier", "init_args": network},
                "learning_rate": 5e-3,
            },
        },
        "data": {
            "class_path": "nufm.data.image_datamodule.ImageDataModule",
            "init_args": {"root": str(folder / "data"), "size": toy_language_models.SIZE, "batch_size": 4},
        },
        "trainer": {"max_steps": 2, "accelerator": "cpu", "logger": False},
        "evaluation": {"enabled": False},
        "threads": 1,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(REPOSITORY / "scripts" / "finetune.py"), "--config", str(folder / "config.yaml")]
    command += ["--run", str(folder / "run")]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def studied(trained: Path, name: str, *more: str) -> dict:
    found = run([name, "--checkpoint", str(trained), "--device", "cpu", "--threads", "1", *more])
    out = trained / "studies"
    assert json.loads((out / f"{name}.json").read_text()) == found and found["study"] == name
    assert "simulated by nufm" in (out / f"{name}.md").read_text()
    assert imread(out / f"{name}.png").std() > 0.01
    return found


def test_examples_in_the_question(trained):
    found = studied(trained, "few_shot", "--draws", "1")
    words = [row["words"] for row in found["rows"]]
    assert words[0] == "trained" and words[1] == "frozen base" and len(words) == 3
    assert len(found["rows"][2]["examples"]) == 3 and all("train" in name for name in found["rows"][2]["examples"])


def test_other_words(trained):
    found = studied(trained, "prompt", "--prompts", "[bare, physics]")
    assert [row["prompt"] for row in found["rows"]] == ["brief", "bare", "physics"]
    assert found["rows"][0]["tokens"] != found["rows"][2]["tokens"]


def test_what_it_cites_is_covered(trained):
    found = studied(trained, "faithfulness", "--max_events", "3", "--patches", "1")
    assert len(found["per_event"]["cited"]) == 3 and found["per_event"]["cited"][0]["text"]


def test_worse_events_and_calibration(trained):
    found = studied(trained, "missing_view")
    assert found["events"] == 12 and len(found["levels"]) == 4
    assert studied(trained, "calibration")["fit"]["events"] == 12


def test_a_run_stands_for_its_rank_where_all_its_seeds_are_one():
    def settings(everything: object, **data: object) -> dict:
        network = {"init_args": {"rank": 8, "alpha": 16}}
        model = {"init_args": {"network": network}}
        return {"seed_everything": everything, "model": model, "data": {"init_args": data}}

    assert own_training(settings(0)) == own_training(settings(0, seed=0)) == (8, 0)
    assert own_training(settings(3, seed=3)) == (8, 3)
    assert own_training(settings(3)) is own_training(settings(0, seed=3)) is own_training(settings(True)) is None
    assert own_training({**settings(0), "data": {"init_args": None}}) == (8, 0)


@pytest.mark.slow
def test_ranks_of_the_adapters(trained):
    found = studied(trained, "lora_rank", "--ranks", "[4, 2, 1]")
    one, two, four = found["rows"]
    assert [r["rank"] for r in (one, two, four)] == [1, 2, 4]
    assert [r["alpha"] for r in (one, two, four)] == [8.0, 16.0, 32.0]  # alpha / rank as in the run, 16 / 2
    assert two["trainable"] == 2 * one["trainable"] and four["trainable"] == 4 * one["trainable"]
    assert "accuracy_change" not in one["runs"][0] and "accuracy_change" in two["runs"][0]
    folders = {p.name for p in (trained / "studies" / "lora_rank").iterdir()}
    assert folders == {"rank-1-seed-0", "rank-4-seed-0"}  # that of rank 2 is there
    config = yaml.safe_load((trained / "studies" / "lora_rank" / "rank-4-seed-0" / "config.yaml").read_text())
    assert config["model"]["init_args"]["network"]["init_args"]["rank"] == 4
    assert config["trainer"]["max_steps"] == 2
