"""Runs on pixel maps: the published recipes, typed a second time (arXiv 2509.08461), and sizes as the headers say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from nufm.commands.finetune import FinetuneCLI

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "finetune"


def built(name: str):
    """Configuration, and the run built without memory."""
    cli = FinetuneCLI(["--config", str(FOLDER / name)], build=False)
    with torch.device("meta"):
        return cli.config, cli.parser.instantiate_classes(cli.config)


def parameters(run) -> int:
    return sum(p.numel() for p in run.model.network.parameters())


def test_published_cnn():
    """Adam 1e-6, weight decay 1e-4, batch 16, at most 300 epochs, patience 10; about 21.7 M parameters."""
    config, run = built("pixelmap_cnn.yaml")
    model = run.model
    assert (model.optimizer, model.peak, model.weight_decay, model.schedule) == ("adam", 1e-6, 1e-4, "constant")
    assert (config.trainer.max_epochs, run.data.batch_size, config.trainer.accumulate_grad_batches) == (300, 16, 1)
    stop = config.trainer.callbacks[0]
    assert stop.class_path.endswith("EarlyStopping") and stop.init_args.patience == 10
    assert (stop.init_args.monitor, stop.init_args.mode) == ("val/loss", "min")
    assert (config.checkpoint.monitor, config.checkpoint.mode) == ("val/loss", "min")
    assert abs(parameters(run) - 21.7e6) < 0.05e6


def test_published_vit():
    """Adam 1e-4, weight decay 0.05, 4 events per GPU, accumulation 4, 10 epochs, 8 GPUs; 632 M parameters."""
    config, run = built("pixelmap_vit_h14.yaml")
    model, trainer = run.model, config.trainer
    assert (model.optimizer, model.peak, model.weight_decay, model.schedule) == ("adam", 1e-4, 0.05, "constant")
    assert (run.data.batch_size / trainer.devices, trainer.accumulate_grad_batches) == (4, 4)
    assert (trainer.max_epochs, trainer.devices) == (10, 8)
    assert round(parameters(run) / 1e6) == 632


def test_published_vlm():
    """Adapters of rank 8, alpha 16, dropout 0.05 on seven projections of a base in 4 bit; AdamW 2e-4, constant after a
    warm-up of 3 %, norm of gradients 0.3; 4 events per GPU, accumulation 2, one epoch; a checkpoint every 500 steps, a
    line of the log every 10."""
    config, run = built("pixelmap_vlm.yaml")
    model, trainer = run.model, config.trainer
    asked = model.network.arguments
    assert (asked["rank"], asked["alpha"], asked["dropout"], asked["quantization"]) == (8, 16, 0.05, "nf4")
    assert set(asked["targets"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert asked["base"] == "meta-llama/Llama-3.2-11B-Vision-Instruct"
    assert (model.peak, model.schedule, model.warmup, model.optimizer) == (2e-4, "constant", 0.03, "adamw")
    assert (run.data.batch_size / trainer.devices, trainer.accumulate_grad_batches) == (4, 2)
    assert (trainer.max_epochs, trainer.max_steps, trainer.gradient_clip_val) == (1, -1, 0.3)
    assert (config.checkpoint.every_n_steps, trainer.log_every_n_steps) == (500, 10)
    assert trainer.precision == "bf16-mixed"
    assert parameters(run) > 10e9 and sum(p.numel() for p in run.model.parameters() if p.requires_grad) == 29_491_200


@pytest.mark.parametrize("name", ("cnn", "vit_h14", "vlm"))
def test_events_are_as_many_as_the_papers(name):
    """190,000 to train and validate, and a test sample of 10,000; 512 × 512 pixels, nothing done to them but
    brightness."""
    _, run = built(f"pixelmap_{name}.yaml")
    n = run.data.n_simulated
    assert n["train"] + n["val"] == 190_000 and n["test"] == 10_000 and run.data.size == 512
    assert [type(t).__name__ for t in run.data.transforms] == ["Brightness"] and not run.data.augment


@pytest.mark.parametrize("name", ("cnn", "vit_h14", "vit_b", "sparse", "distillation"))
def test_headers_count_parameters(name):
    text = " ".join(line[2:] for line in (FOLDER / f"pixelmap_{name}.yaml").read_text().splitlines()[:12])
    said = re.search(r"([\d,]+) parameters", text)
    assert said and int(said[1].replace(",", "")) == parameters(built(f"pixelmap_{name}.yaml")[1])
