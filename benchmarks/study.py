"""Many runs of one study, several at a time, each a process of its own with one thread and a log; what is finished is
not repeated, and runs that were made with other settings are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from record import provenance
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nufm.running.folder import write_atomic

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        command: script of ``scripts/`` with its flags, without ``--run``; configurations are named from the
            repository, runs by their whole path, so that the command is the same wherever it is given.
        result: file below its folder that says that it is finished.
        after: names of the runs that it starts from.
    """

    command: tuple[str, ...]
    result: str
    after: tuple[str, ...] = ()


def finished(folder: Path, job: Job) -> bool:
    """Whether a run has its result.

    Raises:
        SystemExit: it was made with another command than the one of now.
    """
    record = folder / SETTINGS
    if record.is_file() and json.loads(record.read_text())["command"] != list(job.command):
        raise SystemExit(f"{folder} was made with another command ({SETTINGS}); remove it, or give another --runs")
    return (folder / job.result).is_file()


def run_jobs(jobs: Mapping[str, Job], runs: Path, workers: int, scripts: Path) -> None:
    """Run what is not finished.

    Args:
        jobs: name -> run, in an order in which those that others start from come first; the name is its folder.
        runs: folder of all.
        workers: at a time.
        scripts: folder of the scripts.
    """
    runs = runs.resolve()
    todo = [name for name, job in jobs.items() if not finished(runs / name, job)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    futures: dict[str, Future] = {}

    def start(name: str) -> None:
        job, folder = jobs[name], runs / name
        for needed in job.after:
            if needed in futures:
                futures[needed].result()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / SETTINGS, json.dumps({"command": list(job.command), **provenance()}, indent=1) + "\n")
        script, *flags = job.command
        command: Sequence[str] = [sys.executable, str(scripts / script), *flags, "--run", str(folder), "--threads", "1"]
        if any((folder / "checkpoints").glob("*.ckpt")):
            command = [*command, "--ckpt_path", "last"]
        log = folder / "log.txt"
        with open(log, "a") as out:
            ran = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=scripts.parent)
            status = ran.returncode
        if status or not (folder / job.result).is_file():
            raise SystemExit(f"{name} failed, see {log}:\n{log.read_text()[-2000:]}")

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(workers) as pool:
        bar = progress.add_task("runs", total=len(todo))
        for name in todo:
            futures[name] = pool.submit(start, name)
        try:
            for name, future in futures.items():
                future.result()
                progress.advance(bar)
                if not console.is_terminal:
                    print(f"{name}: done", flush=True)
        except BaseException:
            for future in futures.values():
                future.cancel()
            raise
