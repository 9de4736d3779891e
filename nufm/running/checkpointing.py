"""Checkpoints that are whole or not there, and that run no code when loaded.

A checkpoint is written beside its place, flushed to the disk and moved there in one step. Its record
(``last.ckpt.json``) names step, size and SHA-256, and is written before the move, together with the record of
the file that is about to be replaced: whenever the process dies, the file that lies there matches a record.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from nufm.running.folder import write_atomic


class IncompleteCheckpoint(ValueError):
    """A checkpoint that was not written to its end, or was changed since."""


def record_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + ".json")


def read_records(checkpoint: Path) -> list[dict[str, Any]]:
    """Records of a checkpoint file, newest first; empty if there are none."""
    try:
        return json.loads(record_path(checkpoint).read_text())["records"]
    except (OSError, ValueError, KeyError):
        return []


def verify(checkpoint: str | Path) -> dict[str, Any]:
    """The record of a complete checkpoint: ``step``, ``epoch``, ``bytes``, ``sha256``, ``saved``.

    Raises:
        FileNotFoundError: there is no such file.
        IncompleteCheckpoint: no record fits the file.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint")
    records = read_records(checkpoint)
    size = checkpoint.stat().st_size
    if any(record["bytes"] == size for record in records):
        digest = _sha256(checkpoint)
        for record in records:
            if record["sha256"] == digest:
                return record
    found = f"{size} bytes" if records else f"no {record_path(checkpoint).name} beside it"
    expected = (
        f"{records[0]['bytes']} bytes with SHA-256 {records[0]['sha256'][:12]}…" if records else "a record"
    )
    others = [c.name for c in sorted(checkpoint.parent.glob("*.ckpt")) if c != checkpoint and read_records(c)]
    remedy = (
        f"use another of this folder: {', '.join(others)}"
        if others
        else "start the run again without --ckpt_path"
    )
    raise IncompleteCheckpoint(
        f"{checkpoint}: checkpoint is incomplete or was changed: found {found}, expected {expected}; {remedy}"
    )


def newest_checkpoint(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The complete checkpoint with the highest step in a run folder, and its record; incomplete ones are
    passed over.
    """
    complete = []
    for checkpoint in sorted((run / "checkpoints").glob("*.ckpt")):
        try:
            complete.append((checkpoint, verify(checkpoint)))
        except IncompleteCheckpoint:
            continue
    return max(complete, key=lambda c: (c[1]["step"], c[1]["saved"]), default=None)


def newest_run(runs: Path) -> Path | None:
    """The run below ``runs`` whose checkpoint was saved last, among those that have a complete one."""
    found = []
    for run in sorted(p for p in runs.glob("*") if (p / "checkpoints").is_dir()):
        saved = [r["saved"] for c in (run / "checkpoints").glob("*.ckpt") for r in read_records(c)]
        if saved:
            found.append((max(saved), run))
    for _, run in sorted(found, reverse=True):
        if newest_checkpoint(run) is not None:
            return run
    return None


class AtomicCheckpointIO(CheckpointIO):
    """Writes and reads checkpoints as the head of this file says; reading uses
    ``torch.load(weights_only=True)``.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Raises TypeError, before anything is written, for content that could not be loaded again without
        pickle.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = plain(checkpoint)
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)  # of a process that was killed while it wrote
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            record = {
                "step": int(checkpoint.get("global_step", 0)),
                "epoch": int(checkpoint.get("epoch", 0)),
                "bytes": temporary.stat().st_size,
                "sha256": _sha256(temporary),
                "saved": time.time(),
            }
            previous = read_records(path)[:1] if path.exists() else []
            write_atomic(record_path(path), json.dumps({"records": [record, *previous]}, indent=1) + "\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Raises IncompleteCheckpoint as ``verify`` does. ``weights_only`` is always on, whatever is
        passed.
        """
        verify(path)
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
        record_path(Path(path)).unlink(missing_ok=True)


def plain(value: Any, where: str = "checkpoint") -> Any:
    """The same content in types that load without running code: tensors, numbers, strings, and containers of
    them.

    Raises:
        TypeError: names the entry that holds anything else.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value, where)
    if isinstance(value, np.generic):  # before float: np.float64 is one, and pickles by name
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if value is None or isinstance(
        value, bool | int | float | complex | str | torch.Tensor | torch.dtype | torch.device
    ):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        new = {plain(k, where): plain(v, f"{where}.{k}") for k, v in value.items()}
        # A state dict carries versions of its modules as an attribute: keep the object if its content is
        # plain.
        if type(value) in (dict, OrderedDict) and all(new.get(k) is v for k, v in value.items()):
            return value
        return new
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return (
            tuple(items)
            if isinstance(value, tuple)
            else set(items)
            if isinstance(value, set | frozenset)
            else items
        )
    if hasattr(value, "__dict__") and type(value).__name__ == "Namespace":
        return plain(vars(value), where)
    raise TypeError(
        f"{where} holds a {type(value).__module__}.{type(value).__name__}, which could only be loaded by "
        "running code from the file; keep it out of the state (save_hyperparameters(ignore=…)), or store "
        "tensors, numbers and strings"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def save(trainer: Trainer, path: Path) -> None:
    """Save everything that a resumed run needs (all ranks must call)."""
    trainer.save_checkpoint(path, weights_only=False)


class RunCheckpoints(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` every n steps and at the end, and ``best.ckpt`` by a logged score.

    Args:
        every_n_steps: optimiser steps between two saves of last.ckpt.
        keep_every: also keep ``step-<step>.ckpt`` every so many steps; 0 for never.
        monitor: logged value that decides which checkpoint is the best; ignored while nothing of that name is
            logged.
        mode: whether the best value is the largest or the smallest.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        keep_every: int = 0,
        monitor: str = "probe/macro_f1",
        mode: Literal["max", "min"] = "max",
    ) -> None:
        if every_n_steps < 1 or keep_every < 0:
            raise ValueError(
                f"every_n_steps is {every_n_steps} and keep_every {keep_every}; expected >= 1 and >= 0"
            )
        self.every_n_steps = every_n_steps
        self.keep_every = keep_every
        self.monitor = monitor
        self.mode = mode
        self.best: float | None = None
        self.folder: Path | None = None
        self._saved = -1

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._saved or step == 0:
            return  # a batch whose gradient is only accumulated
        # The last step is saved here and not after the loops have been closed, where the epoch would count as
        # finished and a run that is resumed to be longer would skip the rest of it.
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            self.save_last(trainer)
        if self.keep_every and step % self.keep_every == 0:
            save(trainer, self.folder / f"step-{step:07d}.ckpt")
        self._save_best(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._save_best(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step != self._saved:
            self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> Path:
        """Save last.ckpt now (all ranks must call)."""
        self._saved = trainer.global_step
        save(trainer, self.folder / "last.ckpt")
        return self.folder / "last.ckpt"

    def _save_best(self, trainer: Trainer) -> None:
        score = float(trainer.callback_metrics.get(self.monitor, math.nan))
        sign = 1 if self.mode == "max" else -1
        better = math.isfinite(score) and (self.best is None or sign * score > sign * self.best)
        # All ranks must take the same branch, since saving waits for all of them.
        if trainer.strategy.reduce_boolean_decision(better, all=False):
            self.best = score if better else self.best
            save(trainer, self.folder / "best.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
