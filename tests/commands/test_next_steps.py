"""What a pretraining says to try next can be typed as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from nufm.checkpoint import Pretrained, check_compatible
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


@pytest.mark.parametrize(
    ("pretraining", "training"),
    [
        ("tiny/panda", "tiny/semantic"),
        ("tiny/polarmae", "tiny/polarmae_semantic"),
        ("pretrain/polarmae", "finetune/polarmae_peft"),
        ("pretrain/polarmae", "finetune/polarmae_full"),
        ("pretrain/pointmae", "finetune/polarmae_full"),
    ],
)
def test_a_training_on_labels_takes_the_encoder_of_its_pretraining(pretraining, training):
    """Encoder, transforms, lattice and energy cut fit: what scripts/finetune.py would refuse is found here."""
    built = []
    for name, cli in ((pretraining, PretrainCLI), (training, FinetuneCLI)):
        made = cli(["--config", str(REPOSITORY / "configs" / f"{name}.yaml")], build=False)
        with torch.device("meta"):
            built.append(made.parser.instantiate_classes(made.config))
    (before, after), data = built, built[0].data
    pretrained = Pretrained(
        before.model.encoder, tuple(data.transforms), data.grid_size,
        selection={"energy_threshold": data.energy_threshold},
    )  # fmt: skip
    to = after.data
    check_compatible(pretrained, after.model.network.encoder, to.transforms, to.grid_size, to.energy_threshold)
    after.model.load_encoder(before.model.encoder)


def test_an_unknown_encoder_gets_the_general_ones():
    commands = [command.split()[1] for command, _ in next_steps(nn.Identity(), Path("runs/x"), Path("test.h5"))]
    assert commands == ["scripts/display.py", "scripts/pretrain.py"]
