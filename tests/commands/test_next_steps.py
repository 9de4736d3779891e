"""What a pretraining says to try next can be typed as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from torch import nn

from nufm.commands.finetune import FinetuneCLI
from nufm.commands.pretrain import CONFIGS, PretrainCLI, next_steps

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_configurations_are_there_and_for_that_encoder(kind, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    encoder = object.__new__(kind)
    commands = [shlex.split(command) for command, _ in next_steps(encoder, Path("runs/x"), Path("test.h5"))]
    paper = ["pretrain"] * (REPOSITORY / CONFIGS[kind][1]).is_file()
    assert [c[1] for c in commands] == [f"scripts/{n}.py" for n in ("display", "finetune", "pretrain", *paper)]
    for script, cli in (("finetune", FinetuneCLI), ("pretrain", PretrainCLI)):
        flags = [c[2:] for c in commands if c[1] == f"scripts/{script}.py"][-1]
        if str(Path("runs/x/config.yaml")) in flags:
            continue  # the run's own
        config = cli(flags, build=False).config
        model = config.model.init_args
        found = (model.network.init_args if script == "finetune" else model).encoder
        assert found.class_path.rpartition(".")[2] == kind.__name__


def test_the_small_segmentation_takes_the_encoder_of_the_small_pretraining():
    """Encoder, transforms and lattice are those of the run it is to start from."""
    small = REPOSITORY / "configs" / "tiny"
    for pretraining, segmentation in (("polarmae.yaml", "polarmae_semantic.yaml"), ("panda.yaml", "semantic.yaml")):
        before, after = (yaml.safe_load((small / name).read_text()) for name in (pretraining, segmentation))
        encoders = [
            before["model"]["init_args"]["encoder"],
            after["model"]["init_args"]["network"]["init_args"]["encoder"],
        ]
        assert encoders[0]["class_path"] == encoders[1]["class_path"]
        settings = [e["init_args"] | {"mask_token": None} for e in encoders]
        assert settings[0] == settings[1]
        for name in ("transforms", "grid_size"):
            assert before["data"]["init_args"][name] == after["data"]["init_args"][name]


def test_an_unknown_encoder_gets_the_general_ones():
    commands = [command.split()[1] for command, _ in next_steps(nn.Identity(), Path("runs/x"), Path("test.h5"))]
    assert commands == ["scripts/display.py", "scripts/pretrain.py"]
