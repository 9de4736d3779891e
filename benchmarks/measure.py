"""Measuring: time, peak memory, what the machine can do, and how a cost grows.

Time: median of repeats after warm-up, with the quartiles; CUDA events on a GPU, a monotonic clock on a CPU. Things
that are compared take turns, one repeat each, so that a machine that slows down slows all of them.

Memory: the largest sum of torch's own allocations during one call, above what was allocated before it. On a GPU the
caching allocator counts; on a CPU the profiler records every allocation and release of torch's CPU allocator. What a
library takes behind torch's back (workspace of a BLAS) is in neither.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports every start and stop of its own

import numpy as np
import torch
from torch.autograd.profiler import DeviceType
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]
DECISIVE = ("OMP_", "GOMP_", "MKL_", "MALLOC_", "LD_PRELOAD", "NUFM_BACKEND", "PYTORCH_CUDA_ALLOC", "TRITON_", "CUDA_")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, quartiles, and the number of repeats behind them."""

    ms: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        low, middle, high = np.quantile(np.asarray(seconds) * 1e3, (0.25, 0.5, 0.75))
        return cls(float(middle), float(low), float(high), len(seconds))

    @property
    def seconds(self) -> float:
        return self.ms / 1e3


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def result_name(name: str, device: torch.device) -> str:
    """Results of a GPU and of a CPU lie side by side: neither run erases the other's."""
    return name if device.type == "cuda" else f"{name}_{device.type}"


def once(call: Call, device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def settled(call: Call, device: torch.device) -> float:
    """Seconds of a call after a first one has compiled and cached; of the first one itself if that is slow anyway."""
    first = once(call, device)
    return first if first > 2 and device.type == "cpu" else once(call, device)


def affordable(expected: Iterable[float], budget: float, most: int) -> int:
    """Repeats of calls that take ``expected`` seconds: ``most``, or as many as ``budget`` seconds allow, but three;
    one where a round takes longer than ten seconds."""
    round_ = max(sum(expected), 1e-9)
    return min(most, max(int(min(budget / round_, most)), 3 if round_ < 10 else 1))


def interleaved(calls: Mapping[str, Call], device: torch.device, repeats: int, warmup: int = 0) -> dict[str, Timing]:
    """Time calls that take turns.

    Args:
        calls: name -> what is timed.
        device: on which they run.
        repeats: rounds, each of which runs every call once.
        warmup: rounds before, not counted.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-warmup, repeats):
        # The order turns by one in each round: nobody always runs behind the same other one.
        for name in names[i % len(names) :] + names[: i % len(names)]:
            took = once(calls[name], device)
            if i >= 0:
                seconds[name].append(took)
    return {name: Timing.of(values) for name, values in seconds.items()}


class Peak:
    """``with Peak(device) as peak: ...``; then ``peak.bytes`` is the largest sum of torch's allocations inside, above
    what was allocated before."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._recorded.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._recorded.__exit__(*error)
        events = [
            (e.start_ns(), e.nbytes())
            for e in self._recorded.profiler.kineto_results.events()
            if e.name() == "[memory]" and e.device_type() == DeviceType.CPU
        ]
        held = 0
        for _, change in sorted(events, key=lambda event: event[0]):
            held += change
            self.bytes = max(self.bytes, held)


def peak_bytes(call: Call, device: torch.device) -> int:
    """Largest sum of torch's allocations during ``call``, above what was allocated before."""
    with Peak(device) as peak:
        call()
    return peak.bytes


# ---------------------------------------------------------------------- the machine


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of large square matrix products: the fastest of ten."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = [once(lambda: torch.mm(a, b, out=out), device) for _ in range(11)][1:]
    return 2 * n**3 / min(seconds)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by copies too large for any cache: the fastest of ten."""
    source = torch.zeros(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = [once(lambda: target.copy_(source), device) for _ in range(11)][1:]
    return 2 * source.numel() / min(seconds)


@dataclass(frozen=True)
class Machine:
    """What was measured at the beginning of a run: the ceilings its results are set against.

    ``environment``: what was set of the variables that decide speed. (At a million voxels the C library's allocator
    counts: it hands blocks above 32 MB back, and each call pays for fresh pages.)
    """

    device: str
    dtype: str
    flop_per_s: float
    bytes_per_s: float
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        variables = {key: value for key, value in os.environ.items() if key.startswith(DECISIVE)}
        rates = matrix_rate(device, dtype), copy_bandwidth(device)
        return cls(name, str(dtype).removeprefix("torch."), *rates, variables)

    def as_dict(self) -> dict:
        return asdict(self)


# ---------------------------------------------------------------------- growth


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log cost against log size by least squares: p of cost ~ size^p.

    Raises:
        ValueError: fewer than two different sizes, or a cost that is not positive.
    """
    if len(set(sizes)) < 2 or min(costs) <= 0:
        raise ValueError(f"a fit needs two sizes and positive costs, found sizes {list(sizes)}, costs {list(costs)}")
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


# ---------------------------------------------------------------------- text


def about_machine(report: dict) -> str:
    """One sentence: where a report was measured, and against which ceilings."""
    machine = report["machine"]
    settings = ", ".join(f"{key}={value}" for key, value in sorted(machine["environment"].items()))
    return (
        f"{report['hardware']}, {report['threads']} threads{', ' if settings else ''}{settings}: "
        f"{short(machine['flop_per_s'] / 1e9)} GFLOP/s in {machine['dtype']} matrix products, "
        f"{short(machine['bytes_per_s'] / 1e9)} GB/s read and written by a copy, both measured in this run. "
        f"Commit {report['commit'][:10]}, seed {report['seed']}."
    )


def short(value: float) -> str:
    """Three significant digits, without exponents."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; columns of numbers are aligned to the right."""
    numeric = [i > 0 and any(row[i][:1].isdigit() for row in rows) for i in range(len(head))]
    lines = ["| " + " | ".join(head) + " |", "|" + "".join("---:|" if right else "---|" for right in numeric)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def state(value: float | None, limit: float, at_most: bool = True) -> str:
    """``met``, ``not met``, or ``not measured`` where there is no value."""
    if value is None:
        return "not measured"
    return "met" if (value <= limit if at_most else value >= limit) else "not met"
