"""What it costs to classify one event: milliseconds and memory.

Time is that of one call with one event, the median over repeats after warm-up: of the network alone on a packed batch,
and of the whole way from the event as it was read. Memory is that of the weights and of one call with one event: on a
GPU torch's own peak; on a CPU see ``nufm.checkpoint.footprint``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from nufm.checkpoint import Pretrained
from nufm.checkpoint.footprint import resident_growth
from nufm.checkpoint.sizes import parameter_count, weight_bytes

WARM_UP, LEAST, MOST = 2, 5, 30  # calls
BUDGET = 10.0  # seconds of timed calls: a slow model is repeated less often
GIGABYTE = 1e9


def cost_per_event(pretrained: Pretrained, events: Sequence[Any]) -> dict[str, Any]:
    """Time and memory of a model with one event at a time.

    Args:
        pretrained: on the device that is asked about.
        events: as they were read, at least one; they take turns.

    Returns:
        ``ms`` of the network, ``ms_whole`` from the event as it was read, ``ms_quartiles`` of ``ms``, ``repeats``;
        ``memory_gb`` (10⁹ bytes) of weights and one call, ``memory_is``: how that was measured; None where it
        cannot be, and why; ``weights_gb``; ``parameters``; ``device`` and ``threads``.

    Raises:
        ValueError: no events.
    """
    if not events:
        raise ValueError("no events to time a model with")
    model = pretrained.model
    device = next(model.parameters()).device
    batches = [pretrained.batch([event]).to(device) for event in events]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        seconds = _timed([lambda b=b: model.predict(b) for b in batches], device)
    model.train(was_training)
    whole = _timed([lambda e=e: pretrained.predict([e], progress=False) for e in events], device)
    memory, how = _memory(pretrained, events, batches[0], device)
    return {
        "ms": 1e3 * float(np.median(seconds)),
        "ms_whole": 1e3 * float(np.median(whole)),
        "ms_quartiles": [1e3 * float(q) for q in np.quantile(seconds, (0.25, 0.75))],
        "repeats": len(seconds),
        "memory_gb": None if memory is None else memory / GIGABYTE,
        "memory_is": how,
        "weights_gb": weight_bytes(model) / GIGABYTE,
        "parameters": parameter_count(model),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
    }


def _timed(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Seconds of each call, in turns, after warm-up; as many as fit into the budget."""

    def once(number: int) -> float:
        _wait(device)
        begin = time.perf_counter()
        calls[number % len(calls)]()
        _wait(device)
        return time.perf_counter() - begin

    warm = [once(i) for i in range(WARM_UP)]
    repeats = int(np.clip(BUDGET / max(warm[-1], 1e-9), LEAST, MOST))
    return [once(i) for i in range(repeats)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(
    pretrained: Pretrained, events: Sequence[Any], batch: Any, device: torch.device
) -> tuple[int | None, str]:
    """Bytes of the weights and one call, and how that was measured, or why it was not."""
    if device.type == "cuda":
        others = torch.cuda.memory_allocated(device) - weight_bytes(pretrained.model)
        torch.cuda.reset_peak_memory_stats(device)
        with torch.no_grad():
            pretrained.model.predict(batch)
        return torch.cuda.max_memory_allocated(device) - max(others, 0), "largest allocation by torch"
    try:
        grown = resident_growth(pretrained.source, events[:1], pretrained.base)
    except (OSError, RuntimeError, ValueError) as error:  # of one number among many, which must not cost the others
        said = str(error).strip() or type(error).__name__
        return None, f"not measured: {said.splitlines()[-1]}"
    if grown is None:
        return None, "not measured: needs files that another process can open, and the counters of Linux"
    return grown, "growth of the resident memory of a fresh process"
