"""The folder of a run: where it is, and the record of what ran.

runs/<config name>/<date-time, or slurm-<job id>>/
    config.yaml        every setting, resolved
    git.json           commit and whether the tree was changed (git.diff holds the changes)
    environment.json   Python, packages, hardware, threads, command line
    backends.json      which backend ran which op
    metrics.csv        every logged number
    checkpoints/       last.ckpt, best.ckpt, each with its record of completeness
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nufm.machine import available_cores

RUN_DIR_VARIABLE = "NUFM_RUN_DIR"
"""Set for the processes that Lightning starts on this machine, so that all ranks use one folder."""


def config_name(config: str | Path) -> str:
    """Name of a run's parent folder: ``configs/tiny/panda.yaml`` is ``tiny-panda``, ``my.yaml`` is ``my``.

    The ``config.yaml`` of a run folder keeps the name of the run it was saved by.
    """
    path = Path(config).resolve().with_suffix("")
    if path.name == "config" and (path.parent / "environment.json").exists():
        return path.parents[1].name
    parts = path.parts
    if "configs" in parts[:-1]:
        start = len(parts) - 1 - parts[::-1].index("configs")
        return "-".join(parts[start + 1 :])
    return path.name


def new_run_folder(runs: Path, run: str | None) -> Path:
    """Path of a run that begins now; nothing is created.

    Args:
        runs: ``runs/<config name>``.
        run: name of the run below ``runs``, or a path (anything with a slash); None to name it by job or
            time.

    Raises:
        ValueError: several processes were started by torchrun, which would name the run differently.
    """
    inherited = os.environ.get(RUN_DIR_VARIABLE)
    if inherited:
        return Path(inherited)
    if run is not None:
        return Path(run) if os.sep in run or "/" in run else runs / run
    job = slurm_job()
    if job is not None:
        return runs / job
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "started by torchrun as several processes, which may not agree on the time that names the run "
            "folder; give all of them the same name: --run NAME"
        )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder, attempt = runs / stamp, 2
    while folder.exists():  # two runs begun within one second
        folder, attempt = runs / f"{stamp}-{attempt}", attempt + 1
    return folder


def slurm_job() -> str | None:
    """``slurm-<job id>``, the same on every rank and after a requeue; None outside of a Slurm batch job.

    The second ``srun`` of a job script gets a name of its own.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if (
        job is None
        or "SLURM_NTASKS" not in os.environ
        or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    ):
        return None
    step = os.environ.get("SLURM_STEP_ID", "0")
    # Slurm numbers its own steps (the batch script, an allocation shell) near 2³²; those of srun start at 0.
    is_further_srun = step.isdigit() and 0 < int(step) < 2**31
    return f"slurm-{job}-step{step}" if is_further_srun else f"slurm-{job}"


def git_state(folder: Path) -> tuple[dict[str, Any], str]:
    """Commit, branch and dirtiness of the repository that holds ``folder``, and its uncommitted changes as a
    diff.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=20,
                errors="replace",
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.rstrip("\n") if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "reason": "not a git checkout, or git is not installed"}, ""
    status = git("status", "--porcelain") or ""
    state = {
        "commit": commit,
        "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(status),
        "changed": status.splitlines()[:200],
    }
    return state, (git("diff", "HEAD") or "")[:1_000_000]


def environment() -> dict[str, Any]:
    """Python, packages, hardware, threads and command line of this process."""
    packages = {}
    for name in (
        "nufm",
        "torch",
        "lightning",
        "numpy",
        "numba",
        "h5py",
        "jsonargparse",
        "torchmetrics",
        "safetensors",
    ):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    gpus = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(i)
            gpus.append({"name": device.name, "memory_gib": round(device.total_memory / 2**30, 1)})
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "folder": os.getcwd(),
        "host": platform.node(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "packages": packages,
        "variables": {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(("NUFM_", "OMP_", "SLURM_JOB_ID"))
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def write_record(folder: Path, config: str, repository: Path) -> None:
    """Write config.yaml, git.json, git.diff (if the tree was changed) and environment.json; those of an earlier
    start are kept as ``*.1``, …
    """
    folder.mkdir(parents=True, exist_ok=True)
    git, diff = git_state(repository)
    files: dict[str, str | None] = {
        "config.yaml": config,
        "git.json": json.dumps(git, indent=1) + "\n",
        "environment.json": json.dumps(environment(), indent=1) + "\n",
        # None: an earlier start's diff must not stand beside a git.json that says the tree was clean.
        "git.diff": diff + "\n" if diff else None,
    }
    for name, text in files.items():
        path = folder / name
        if path.exists():
            if path.read_text() == text:
                continue
            k = 1
            while path.with_name(f"{name}.{k}").exists():
                k += 1
            path.rename(path.with_name(f"{name}.{k}"))
        if text is not None:
            write_atomic(path, text)


def write_atomic(path: Path, text: str) -> None:
    """Write a small file so that a reader finds the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class MetricsCSV(Logger):
    """Logs to ``metrics.csv``, one row per step, on disk as soon as it is logged, continued by a resumed run.

    Lightning's own CSV logger deletes the file of an earlier start, which loses the first half of a resumed
    run.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._rows: list[dict[str, str]] = []
        if self.path.exists():
            with open(self.path, newline="") as file:
                reader = csv.DictReader(file)
                self._rows = list(reader)
                self._columns = list(reader.fieldnames or [])

    @property
    def name(self) -> str:
        return self.path.parent.parent.name

    @property
    def version(self) -> str:
        return self.path.parent.name

    @property
    def log_dir(self) -> str:
        return str(self.path.parent)

    save_dir = log_dir

    def rewind(self, step: int) -> None:
        """Forget the rows from ``step`` on: they will be logged again."""
        self._rows = [row for row in self._rows if row["step"] and int(row["step"]) < step]
        if self.path.exists():
            self._write_all()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": "" if step is None else str(step)}
        row |= {k: repr(v.item() if hasattr(v, "item") else v) for k, v in metrics.items()}
        new = [column for column in row if column not in self._columns]
        if self._rows and self._rows[-1]["step"] == row["step"]:
            self._rows[-1] |= row  # several callbacks log at one step: one row
            self._columns += new
            self._write_all(last_only=not new)
            return
        self._rows.append(row)
        self._columns += new
        if new:
            self._write_all()
        else:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _write_all(self, last_only: bool = False) -> None:
        if last_only:
            # Replace the last line in place of writing the whole file again.
            with open(self.path, "rb+") as file:
                data = file.read()
                end = data.rstrip(b"\r\n").rfind(b"\n") + 1
                file.truncate(end)
                file.seek(end)
                text = io.StringIO(newline="")
                csv.DictWriter(text, self._columns, restval="").writerow(self._rows[-1])
                file.write(text.getvalue().encode())
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomic(self.path, text.getvalue())

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml holds every setting."""
