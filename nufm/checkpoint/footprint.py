"""How much memory a model takes on a CPU, where torch keeps no count: a fresh process opens it and is watched.

What is measured is how much the resident memory of that process grows between before the weights are read and the peak
of a prediction: weights and what a call needs. Libraries are loaded before, as far as building the model without
weights brings them.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nufm.checkpoint.adapters import on_base
from nufm.checkpoint.describe import MODELS, build
from nufm.checkpoint.export import from_pretrained
from nufm.checkpoint.files import CONFIG, find_export

ROOT = Path(__file__).resolve().parents[2]
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_growth(
    source: str | Path, events: Sequence[Any], base: str | Path | None = None
) -> int | None:
    """Bytes that a fresh process grows by when it opens a checkpoint and predicts events.

    Args:
        source: as :func:`nufm.checkpoint.from_pretrained` takes it.
        events: as they were read, one batch.
        base: of an image-text model, as there.

    Returns:
        None where ``source`` is no path (the model cannot be opened again), or the system does not say (no /proc).

    Raises:
        RuntimeError: the process failed, with what it said.
    """
    if not str(source) or not Path(source).exists() or not STATUS.is_file():
        return None
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # what is asked is what it takes without a GPU
    environment["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), environment.get("PYTHONPATH")) if p)
    ran = subprocess.run(
        [sys.executable, "-m", "nufm.checkpoint.footprint"],
        # Pickled by this process for its own child.
        input=pickle.dumps((str(source), list(events), None if base is None else str(base), torch.get_num_threads())),
        capture_output=True,
        env=environment,
    )
    if ran.returncode:
        said = ran.stderr.decode(errors="replace")[-2000:]
        raise RuntimeError(f"{source}: the process that measures its memory failed: {said}")
    return int(ran.stdout.split()[-1])


def _resident(name: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no field '{name}'")


def _measure_here() -> int:
    """The growth of this process, which was started for nothing else."""
    source, events, base, threads = pickle.loads(sys.stdin.buffer.read())
    torch.set_num_threads(threads)
    place = find_export(source)
    if place.name == CONFIG:
        with torch.device("meta"):  # brings the libraries, and no memory for weights
            build(on_base(json.loads(place.read_text(encoding="utf-8")), base, place)["model"], MODELS, place)
    torch.nn.functional.conv2d(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3))  # threads and kernels are there
    gc.collect()
    before = _resident("VmRSS")
    pretrained = from_pretrained(source, base=base)
    gc.collect()
    FORGET.write_text("5")  # the peak of reading the weights is not that of a call: proc(5), /proc/pid/clear_refs
    pretrained.predict(events, batch_size=len(events), progress=False)
    return max(_resident("VmHWM") - before, 0)


if __name__ == "__main__":
    print(_measure_here())
