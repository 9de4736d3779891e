"""The pretrainings of FASERCal at paper size: numbers of the talk and the public code, typed here a second time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nufm.commands.pretrain import PretrainCLI
from nufm.data.stream_transforms import fasercal_augmentation

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def built(name: str):
    cli = PretrainCLI(["--config", str(CONFIGS / f"{name}.yaml")], build=False)
    with torch.device("meta"):
        return cli.parser.instantiate_classes(cli.config), cli.config.trainer


@pytest.mark.parametrize(("name", "epochs", "relational"), [("mae", 400, 0.0), ("relational", 100, 0.5)])
def test_paper_run_is_the_published_one(name: str, epochs: int, relational: float):
    made, trainer = built(f"pretrain/fasercal_{name}")
    model, data = made.model, made.data
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    # 31.92 M with frozen positions; learned ones (talk) add 32 + 72 vectors of 384.
    assert count(model.encoder) == 31_923_648 + (32 + 72) * 384
    assert count(model.decoder) == 2_332_935 and count(model.weights) == 9
    first, tail = model.encoder.stacks
    assert (first.grid, tail.grid, first.modules) == ((4, 4, 2), (3, 3, 8), 10)
    assert first.group_size * first.modules == 320 and tail.group_size == 72
    hp = model.hparams
    assert (hp.mask_ratio, hp.relational_ratio, hp.relational) == (0.75, 0.25, relational)
    assert (hp.ghosts, hp.supervised_share, hp.weight_rate) == ("not_reconstructed", 0.5, 0.1)
    batch = data.batch_size * trainer.accumulate_grad_batches
    assert batch == 4096 and hp.learning_rate == pytest.approx(1.5e-4 * batch / 256)
    assert (hp.warmup * 400, hp.rate_floor, hp.weight_decay) == (40, 0.01, 0.05)
    assert (trainer.max_epochs, trainer.precision, trainer.gradient_clip_val) == (epochs, "bf16-mixed", 1.0)
    assert data.augment == fasercal_augmentation()


@pytest.mark.parametrize("folder", ["pretrain", "tiny"])
def test_the_second_phase_fits_the_first(folder: str):
    first, second = (built(f"{folder}/fasercal_{name}")[0] for name in ("mae", "relational"))
    shapes = [{k: v.shape for k, v in made.model.state_dict().items()} for made in (first, second)]
    assert shapes[0] == shapes[1]
    assert first.data.augment == second.data.augment and first.model.hparams.ghosts == second.model.hparams.ghosts
