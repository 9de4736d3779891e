"""The pretraining of PoLAr-MAE and Point-MAE at paper size is the published one, typed here a second time.

Source: configs/polarmae.yml and pointmae.yml of DeepLearnPhysics/PoLAr-MAE, and the sizes of its tokenizer.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from nufm.commands.pretrain import PretrainCLI
from nufm.data.transforms import LogEnergy, NormalizeCoord, RandomRotate, WithoutLED
from nufm.models.tokens import Tokenizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
VOXEL = 1 / (768 * math.sqrt(3) / 2)


@pytest.mark.parametrize(("name", "parameters"), [("polarmae", 29_570_080), ("pointmae", 28_985_856)])
def test_paper_run_is_the_published_one(name: str, parameters: int) -> None:
    cli = PretrainCLI(["--config", str(CONFIGS / "pretrain" / f"{name}.yaml")], build=False)
    with torch.device("meta"):
        built = cli.parser.instantiate_classes(cli.config)
    model, data, trainer = built.model, built.data, cli.config.trainer
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.encoder.parameters()) == 21_837_568

    made = model.encoder.arguments
    assert (made["channels"], made["depth"], made["heads"], made["mlp_ratio"]) == (384, 12, 6, 4)
    assert (made["drop_path"], made["attention_dropout"], made["final_norm"]) == (0.25, 0.05, False)
    assert (made["reach"], made["norm"], made["padding"]) == ("all", "token", "left_out")  # the last two are ours
    tokenizer = model.encoder.tokenizer
    assert 4.999 * VOXEL < tokenizer.radius < 5 * VOXEL  # a hair under: no lattice point is on the surface
    assert (tokenizer.max_points, tokenizer.overlap, tokenizer.seeds) == (32, 0.72, None)
    assert tokenizer.max_tokens is None  # published: 512, raised at the first event with more

    hp = model.hparams
    assert (hp.mask_ratio, hp.decoder_depth, hp.targets) == (0.6, 4, "all")
    assert (hp.learning_rate, hp.weight_decay, hp.decay) == (1e-4, 0.05, "all")
    assert hp.warmup * trainer.max_steps == pytest.approx(12_500)
    assert hp.rate_floor * hp.learning_rate == pytest.approx(8.6e-6)
    assert (trainer.max_steps, trainer.gradient_clip_val, trainer.precision) == (500_000, 3, "bf16-mixed")
    assert (data.batch_size, trainer.devices) == (128, 4)  # 32 events on each
    assert (data.energy_threshold, data.min_points) == (0.13, 1024)
    assert data.transforms == [NormalizeCoord(384.0, 665.10751), LogEnergy(0.13, 20.0), WithoutLED()]
    assert data.augment == [RandomRotate(axis, 1.0, math.pi) for axis in ("x", "y", "z")]


@pytest.mark.parametrize("voxels", ["2.5", "5", "25"])
def test_presets_are_the_published_tokenizers(voxels: str) -> None:
    sizes = {"2.5": (16, 0.73, None, "seed"), "5": (32, 0.72, None, "seed"), "25": (128, 0.72, 256, "mean")}
    made = Tokenizer.preset(voxels)
    assert made.radius == pytest.approx(float(voxels) * VOXEL, rel=2e-4)
    assert (made.max_points, made.overlap, made.seeds, made.centre) == sizes[voxels]
