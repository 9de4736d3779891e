"""What the tests of runs share: small event files, a small configuration, and ways to start a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
import yaml
from lightning import Callback, LightningModule, Trainer

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "scripts" / "pretrain.py"


def write_events(path: Path, n_events: int, seed: int = 0, n_points: int = 160) -> Path:
    """A PILArNet-M v2 file of straight tracks: point rows of 8, cluster rows of 6, low energy first."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = h5py.vlen_dtype(np.float32)
    with h5py.File(path, "w") as file:
        names = ("point", "cluster", "cluster_extra")
        data = {name: file.create_dataset(name, (n_events,), flat) for name in names}
        for i in range(n_events):
            n = n_points + int(rng.integers(20))
            start, direction = rng.uniform(200, 500, 3), rng.normal(size=3)
            line = start + np.arange(n)[:, None] * direction / np.abs(direction).max()
            point = np.zeros((n, 8), np.float32)
            point[:, :3] = np.clip(np.rint(line + rng.normal(scale=1.5, size=(n, 3))), 0, 767)
            point[:, 3] = point[:, 4] = rng.uniform(0.2, 3.0, n)
            low = n // 8
            cluster = [[low, -1, -1, -1, 4, -1], [n - low, 0, 0, 0, 1, 2]]
            data["point"][i] = point.ravel()
            data["cluster"][i] = np.array(cluster, np.float32).ravel()
            data["cluster_extra"][i] = np.array([[-1] * 5, [105.7, 0.4, 0, 0, 0]], np.float32).ravel()
    return path


def write_data(folder: Path) -> Path:
    """A data set with three splits."""
    for split, n in (("train", 24), ("val", 4), ("test", 4)):
        write_events(folder / split / "events.h5", n, seed=len(split) + n)
    return folder


def write_config(path: Path, data: Path, **changes: object) -> Path:
    """A self-distillation of a minute encoder; ``changes`` are dotted names, with ``__`` for the dots."""
    config = {
        "seed_everything": 3,
        "model": {
            "class_path": "nufm.methods.self_distillation.SelfDistillation",
            "init_args": {
                "encoder": {
                    "class_path": "nufm.models.ptv3.PointTransformerV3",
                    "init_args": {
                        "depths": [1, 1],
                        "channels": [16, 32],
                        "heads": [1, 2],
                        "window": 32,
                        "drop_path": 0.2,
                    },
                },
                "head_hidden": 32,
                "head_bottleneck": 16,
                "prototypes": 24,
                "upcast_levels": 1,
                "match_distance": 0.01,
            },
        },
        "data": {
            "class_path": "nufm.data.datamodule.PointDataModule",
            "init_args": {
                "root": str(data),
                "batch_size": 4,
                "min_points": 16,
                "grid_size": 0.002,
                "transforms": [
                    {"class_path": "nufm.data.transforms.NormalizeCoord"},
                    {"class_path": "nufm.data.transforms.LogEnergy"},
                ],
                "views": {
                    "class_path": "nufm.data.views.MultiView",
                    "init_args": {"n_local": 2, "max_points": 150},
                },
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 10,
            "log_every_n_steps": 1,
            "gradient_clip_val": 3.0,
        },
        "checkpoint": {"every_n_steps": 1},
        "report": {"enabled": False},
        "threads": 1,
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        inner = config
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    path.write_text(yaml.safe_dump(config))
    return path


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """This process's environment outside of any Slurm job, with one thread and a cache of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "NUFM_RUN"))}
    return env | {
        "OMP_NUM_THREADS": "1",
        "NUFM_CACHE": str(folder / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
        **variables,
    }


def start(args: list[str], folder: Path, **variables: str) -> subprocess.Popen:
    """``python scripts/pretrain.py`` in its own process, in ``folder``."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *args],
        cwd=folder,
        env=environment(folder, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    """Until ``condition`` holds; fails with the process's output if it ends first or time runs out."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"the run ended or hung first:\n{process.communicate()[0]}")
        time.sleep(0.005)


class SignalAt(Callback):
    """Sends this process a signal while it works on the step after ``step``."""

    def __init__(self, step: int, name: str) -> None:
        self.step, self.name = step, name

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: torch.Tensor) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(signal.Signals[self.name])


class PoisonAt(Callback):
    """Makes the loss, or only a gradient, NaN at a step."""

    def __init__(self, step: int, what: Literal["loss", "gradient"]) -> None:
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        first = next(module.student.parameters())
        if trainer.global_step == self.step and self.what == "loss":
            first.data.fill_(torch.nan)

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        first = next(p for p in module.student.parameters() if p.grad is not None)
        if trainer.global_step == self.step and self.what == "gradient":
            first.grad.view(-1)[0] = torch.nan


class LogScore(Callback):
    """Logs these scores as the online probe's, one a step."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        module.log("probe/macro_f1", self.scores[trainer.global_step - 1])


def callback(name: str, /, **arguments: object) -> list[dict]:
    """A ``trainer.callbacks`` entry of a configuration."""
    return [{"class_path": f"run_support.{name}", "init_args": arguments}]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint that training changes: weights, buffers, moments of the optimiser."""
    content = torch.load(checkpoint, weights_only=True)
    found = dict(content["state_dict"])
    for i, state in content["optimizer_states"][0]["state"].items():
        found |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
    return found
