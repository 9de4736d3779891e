"""Results of a function from several processes, in order.

The processes are plain subprocesses that run this module: they work wherever Python does, need no ``__main__`` guard in
the calling script, and import what the function needs only, not what the caller has imported. They read pickled jobs
from standard input and answer on standard output. Jobs are handed out as workers get free; the results come back in
order.
"""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from nufm.machine import available_cores

CHUNK = 8  # calls per job: small enough to keep workers busy to the end, large enough to hide the pipe
AHEAD = 4  # jobs per worker that may wait to be written: bounds the memory


def in_order(function: str, common: tuple, indices: Sequence[int], workers: int | None) -> Iterator[object]:
    """``function(*common, index)`` for all indices, in order, by ``workers`` processes (None: one per core).

    Args:
        function: "package.module:name"; everything passed and returned is pickled.

    Close the generator to end the processes early.

    Raises:
        ValueError: what the function raises.
        RuntimeError: a process died.
    """
    chunks = [list(indices[i : i + CHUNK]) for i in range(0, len(indices), CHUNK)]
    workers = min(available_cores() if workers is None else workers, len(chunks))
    if workers <= 1:
        call = _named(function)
        for index in indices:
            yield call(*common, index)
        return
    jobs: queue.SimpleQueue[tuple[int, list[int]] | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[int, object]] = queue.SimpleQueue()
    processes = [_start() for _ in range(workers)]
    threads = [
        threading.Thread(target=_serve, args=(process, (function, common), jobs, answers), daemon=True)
        for process in processes
    ]
    try:
        for thread in threads:
            thread.start()
        submitted = 0
        waiting: dict[int, object] = {}
        for wanted in range(len(chunks)):
            while submitted < min(len(chunks), wanted + AHEAD * workers):
                jobs.put((submitted, chunks[submitted]))
                submitted += 1
            while wanted not in waiting:
                number, answer = answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                waiting[number] = answer
            yield from waiting.pop(wanted)
    finally:
        for _ in threads:
            jobs.put(None)
        for process in processes:
            process.kill()
            process.wait()
        for thread in threads:
            thread.join()
        for process in processes:
            process.stdin.close()
            process.stdout.close()


def _named(function: str):
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _start() -> subprocess.Popen:
    environment = dict(os.environ)
    root = str(Path(__file__).parents[2])  # nufm need not be installed
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    # one thread each: the processes are the parallelism
    environment.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    command = [sys.executable, "-m", "nufm.simulation.workers"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _serve(process: subprocess.Popen, common: tuple, jobs: queue.SimpleQueue, answers: queue.SimpleQueue) -> None:
    """Feeds one process (runs in a thread of the parent)."""
    try:
        pickle.dump(common, process.stdin)
        while (job := jobs.get()) is not None:
            pickle.dump(job[1], process.stdin)
            process.stdin.flush()
            answers.put((job[0], pickle.load(process.stdout)))
    except (OSError, EOFError, pickle.UnpicklingError, ValueError):
        code = process.wait()
        message = (
            f"a simulation process ended unexpectedly (exit status {code}): see its message above; "
            "if the machine is short of memory, use fewer workers"
        )
        answers.put((-1, RuntimeError(message)))


def _work(requests: BinaryIO, replies: BinaryIO) -> None:
    """What a worker process does until its standard input ends."""
    try:
        function, common = pickle.load(requests)
        call = _named(function)
        while True:
            try:
                indices = pickle.load(requests)
            except EOFError:
                return
            try:
                answer: object = [call(*common, index) for index in indices]
            except (ValueError, RuntimeError) as error:
                answer = error
            pickle.dump(answer, replies, protocol=pickle.HIGHEST_PROTOCOL)
            replies.flush()
    except (KeyboardInterrupt, BrokenPipeError, EOFError):
        return  # the parent reports its own end


if __name__ == "__main__":
    # Replies get a descriptor of their own, so that a stray print cannot damage them.
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)
        _work(sys.stdin.buffer, channel)
