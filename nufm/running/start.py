"""Where a run goes, what it continues from, and on what it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from nufm.machine import available_cores, keep_freed_memory
from nufm.running.checkpointing import newest_checkpoint, newest_run, verify
from nufm.running.folder import RUN_DIR_VARIABLE, new_run_folder, slurm_job


def choose_run(runs: Path, run: str | None, ckpt_path: str | None) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint to continue from.

    Args:
        runs: ``runs/<config name>``.
        run: name or path of the run, or None.
        ckpt_path: ``last``, a checkpoint file, or None.

    Raises:
        ValueError: nothing to continue from, a checkpoint that is incomplete, or a folder that holds a run
            already.
        FileNotFoundError: no such checkpoint file.
    """
    inherited = os.environ.get(RUN_DIR_VARIABLE)
    if ckpt_path == "last":
        folder = Path(inherited) if inherited else new_run_folder(runs, run) if run else newest_run(runs)
        found = newest_checkpoint(folder) if folder else None
        if found is None:
            raise ValueError(
                f"--ckpt_path last: no complete checkpoint below {folder or runs}; "
                "leave it out to begin a new run"
            )
        return folder, found[0]
    if ckpt_path is not None:
        checkpoint = Path(ckpt_path)
        verify(checkpoint)
        if run is None and checkpoint.parent.name == "checkpoints":
            return checkpoint.parent.parent, checkpoint
        return new_run_folder(runs, run), checkpoint
    folder = new_run_folder(runs, run)
    found = newest_checkpoint(folder)
    if found is None or inherited:
        return folder, None
    if slurm_job() is not None and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0:
        return folder, found[0]  # a requeued job goes on where it stopped, with the command it began with
    raise ValueError(
        f"{folder} holds a run already; continue it with --ckpt_path last, or give another --run"
    )


def set_threads(threads: int | None, trainer: Any) -> None:
    """torch's CPU threads: as asked, else as OMP_NUM_THREADS says, else this job's cores shared by its
    processes. Where the CPU computes, its memory is kept for the next step.
    """
    if trainer.accelerator == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    if threads is None:
        local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE")
        if local is None and trainer.accelerator == "cpu" and isinstance(trainer.devices, int):
            local = trainer.devices
        threads = max(1, available_cores() // int(local or 1))
    torch.set_num_threads(threads)


def default_precision(accelerator: str) -> str:
    """bfloat16 where a GPU computes in it; float32 elsewhere, where it would be slower."""
    bf16 = _on_cuda(accelerator) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if bf16 else "32-true"


def set_matmul_precision(accelerator: str) -> None:
    """On CUDA, float32 products may use TensorFloat-32; on a CPU the setting is left alone."""
    if _on_cuda(accelerator):
        # "high" is the published setting of Panda's pretraining; what autocast leaves in float32 gains by it.
        torch.set_float32_matmul_precision("high")


def _on_cuda(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
