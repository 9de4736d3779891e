"""What keeps a run repeatable and honest: random numbers per step, what the ops ran on, a stop at the first NaN, a
save on a signal.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor

from nufm.ops.dispatch import forget_used, preference, used, used_line
from nufm.running.checkpointing import RunCheckpoints, plain
from nufm.running.folder import slurm_job


class StepSeed(Callback):
    """Seeds torch, NumPy and Python anew for every batch, from (seed, epoch, batch, rank).

    The random numbers of a step are then a function of its place in the run alone. A run resumed in mid-epoch
    draws the same numbers as one that never stopped, although no generator state is saved; neither the order
    in which callbacks draw, nor a validation in between, nor the number of loader workers shifts the stream.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed_everything_for(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)


def seed_everything_for(*place: int) -> None:
    """Seed torch (all devices), NumPy and Python from integers >= 0; different integers give unrelated
    streams.
    """
    words = np.random.SeedSequence(place).generate_state(4)
    torch.manual_seed((int(words[0]) << 32) | int(words[1]))
    np.random.seed(int(words[2]))  # noqa: NPY002  (libraries that still use the global generator)
    random.seed(int(words[3]))


class SayBackends(Callback):
    """States after the first step which backend ran which op: one line, and ``backends.json`` in the run folder."""

    def __init__(self) -> None:
        self._said = False

    def on_train_start(self, *_: Any) -> None:
        forget_used()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._said or not trainer.is_global_zero:
            return
        self._said = True
        (trainer.progress_bar_callback or trainer).print(used_line())
        text = json.dumps({"asked": ",".join(preference()), "used": used()}, indent=1)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "backends.json").write_text(text + "\n")


class NonFiniteStep(RuntimeError):
    """The loss or a gradient became NaN or infinite."""


class StopAtNaN(Callback):
    """Stops before a loss or gradient that is not finite reaches the weights, and saves the batch that gave
    it.

    The file ``nan_step<step>_rank<rank>.pt`` in the run folder holds plain tensors, numbers and names:
    ``torch.load(file, weights_only=True)``.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._batch_idx = -1

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch, self._batch_idx = batch, batch_idx

    def on_train_batch_end(self, *_: Any) -> None:
        self._batch = None  # do not keep the batch alive while the next is loaded

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        value = loss.detach().float()
        if not torch.isfinite(value).all():
            self._stop(trainer, f"the loss is {value.sum().item()}", module)

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # float16 with loss scaling: an infinite gradient is how the scaler finds its scale
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients:
            return
        norms = torch.stack([norm.to(gradients[0].device) for norm in torch._foreach_norm(gradients)])
        if not torch.isfinite(norms).all():
            names = [
                n for n, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
            ]
            self._stop(
                trainer, f"the loss is finite, but the gradient of {', '.join(names[:4])} is not", module
            )

    def _stop(self, trainer: Trainer, what: str, module: LightningModule) -> None:
        step = trainer.global_step
        path = Path(trainer.default_root_dir) / f"nan_step{step}_rank{trainer.global_rank}.pt"
        names = list(dict.fromkeys(event_names(self._batch)))
        content = {
            "what": what,
            "step": step,
            "epoch": trainer.current_epoch,
            "batch_idx": self._batch_idx,
            "rank": trainer.global_rank,
            "events": names,
            "batch": as_plain(self._batch),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise NonFiniteStep(
            f"step {step} (epoch {trainer.current_epoch}, batch {self._batch_idx}): {what}. "
            f"Events of the batch: {shown or 'unnamed'}. Batch saved in {path}. "
            "The last checkpoint is from before this step: resume with a lower learning rate or with "
            "--trainer.precision 32-true, or look into the batch for an event that should not be there."
        )


def event_names(batch: Any) -> list[str]:
    """Names of the events in a batch, or in the batches that it is made of."""
    names = getattr(batch, "names", None)
    if names is not None:
        return [str(n) for n in names]
    if dataclasses.is_dataclass(batch):
        return [n for f in dataclasses.fields(batch) for n in event_names(getattr(batch, f.name))]
    return []


def as_plain(value: Any) -> Any:
    """A batch as dictionaries, lists and CPU tensors."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {k: as_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(v) for v in value]
    return plain(value, "batch")


class Interrupted(Exception):
    """A signal asked the run to end; its checkpoint is saved.

    Attributes:
        signum: which signal.
        checkpoint: what to resume from.
        requeued: whether Slurm will start the job again.
    """

    def __init__(self, signum: int, checkpoint: Path, requeued: bool) -> None:
        super().__init__(f"{signal.Signals(signum).name}: checkpoint saved in {checkpoint}")
        self.signum, self.checkpoint, self.requeued = signum, checkpoint, requeued


class SaveOnSignal(Checkpoint):
    """On SIGUSR1 or SIGTERM: finish the step, save last.ckpt, have Slurm requeue the job, and end.

    Lightning's own handler saves from inside the signal, which may be in the middle of an optimiser step:
    weights of one step with moments of the next. Here the signal only leaves a note, which all ranks read
    together after the step. SIGUSR1 is what ``sbatch --signal=SIGUSR1@120`` sends before the time is up;
    SIGTERM comes with preemption, and with ``scancel``, after which the job is not requeued.

    Args:
        checkpoints: what saves.
    """

    def __init__(self, checkpoints: RunCheckpoints) -> None:
        self.checkpoints = checkpoints
        self._signum = 0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Lightning has set its handlers by now and puts back the original ones at the end.
        self._signum = 0
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGUSR1", "SIGTERM"):
                if hasattr(signal, name):  # Windows has no SIGUSR1
                    signal.signal(getattr(signal, name), self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.strategy.reduce_boolean_decision(bool(self._signum), all=False):
            return
        # A rank that did not get the signal itself ends like the others.
        signum = self._signum or signal.SIGTERM
        checkpoint = self.checkpoints.save_last(trainer)
        requeued = trainer.is_global_zero and slurm_job() is not None and requeue(signum)
        for logger in trainer.loggers:
            logger.finalize("interrupted")
        trainer.strategy.barrier("saved on a signal")
        raise Interrupted(signum, checkpoint, requeued)


def requeue(signum: int) -> bool:
    """Ask Slurm to run this job again; a job that was cancelled by its user is left alone."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        if signum == signal.SIGTERM:
            shown = subprocess.run(
                ["scontrol", "show", "job", job], capture_output=True, text=True, timeout=30
            )
            if "JobState=CANCELLED" in shown.stdout:
                print(f"Slurm job {job} was cancelled: not requeued.")
                return False
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"Slurm job {job} could not be requeued: {error}")
        return False
    if done.returncode:
        print(f"Slurm job {job} could not be requeued: {done.stderr.strip()}")
    return done.returncode == 0
