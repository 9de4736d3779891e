"""Every op on every backend that runs here: time, arithmetic and traffic against what the machine can do, memory, and
how both grow with the number of voxels.

    python benchmarks/ops.py               # on a GPU results/ops.*, on a CPU results/ops_cpu.*
    python benchmarks/ops.py --quick       # a minute: a look, written to results only with --out
    python benchmarks/ops.py --ops sparse_conv windowed_attention --sizes 10000 100000
    python benchmarks/ops.py --dtype float16 --ops sparse_conv --out half   # beside spconv, which has no bfloat16

All calls go through the dispatch table of nufm.ops, each backend forced in turn; backends of a case take turns within
one run. What depends on coordinates only (kernel maps, windows, segments) is made before the clock starts: making
maps has rows of its own. Events are simulated by nufm and packed whole. Bytes: the least that must move, each input
and list read once and each result written once, in a backward also each gradient.
"""

from __future__ import annotations

import os

# As scripts/pretrain.py: before torch loads OpenMP, whose threads else spin for those that another process holds up.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import op_cases
import torch
from backends import guarded, listed, present, runnable
from flops import counting
from measure import Call, Machine, Timing, affordable, default_device, interleaved, matrix_rate, peak_bytes, result_name
from op_cases import Build, Case, Setting
from op_report import BOTH, FORWARD, draw, markdown
from record import RESULTS, provenance, save
from samples import ENERGY_CUT, SEED, genuine, halved, pack, panda_batch, panda_points, simulated

from nufm.machine import keep_freed_memory
from nufm.models.ptv3 import PointTransformerV3
from nufm.ops import dispatch

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
BATCH = {"cuda": 48, "cpu": 4}  # simulated events of the model shapes; on a CPU the genuine event comes before them


class Pace(NamedTuple):
    """How long to measure: rounds at most, seconds at most for all backends of a case."""

    repeats: int
    seconds: float


def compared(
    calls: Mapping[str, Call], device: torch.device, pace: Pace, about: dict, flops: int, moved: Call
) -> Iterator[dict]:
    """One row for each backend; ``moved()`` is called after them and gives the bytes."""
    expected, failed = runnable(calls, device)
    calls = {name: calls[name] for name in expected}
    repeats = affordable(expected.values(), pace.seconds, pace.repeats) if calls else 0
    # A single repeat means calls so slow that the trial is as good a measurement.
    trials = {backend: Timing.of([seconds]) for backend, seconds in expected.items()}
    times = trials if repeats == 1 else interleaved(calls, device, repeats)
    for backend, timing in times.items():
        yield about | {
            "backend": backend,
            "ms": timing.ms,
            "ms_quartiles": [timing.low, timing.high],
            "repeats": timing.repeats,
            "flop_per_s": flops / timing.seconds,
            "bytes_per_s": moved() / timing.seconds,
            "peak_bytes": peak_bytes(calls[backend], device),
            "faster_than": {other: t.ms / timing.ms for other, t in times.items() if other != backend},
        }
    for backend, reason in failed.items():
        yield about | {"backend": backend, "not_measured": reason}


def measure(case: Case, about: dict, device: torch.device, pace: Pace) -> Iterator[dict]:
    """Rows of the forward and, if there are inputs to derive by, of forward and backward."""
    backends = (*dispatch.PREFERENCE.get(case.op, ()), dispatch.REFERENCE)
    about = about | {"op": case.op, "case": case.name, "points": case.points}
    read = sum(x.nbytes for x in case.inputs)
    written: list[torch.Size | int] = []

    def forward() -> None:
        with torch.no_grad():
            out = case.call()
        parts = (out,) if isinstance(out, torch.Tensor) else out
        written[:] = [parts[0].shape, sum(x.nbytes for x in parts)]

    calls = {backend: guarded(forward, backend) for backend in backends}
    yield from compared(
        calls, device, pace, about | {"pass": FORWARD}, case.flops, lambda: read + written[1] + case.reads
    )
    if not case.inputs:
        return
    gradient = torch.randn(written[0], device=device).to(case.inputs[0].dtype)
    calls = {b: guarded(lambda: torch.autograd.grad(case.call(), case.inputs, gradient), b) for b in backends}
    both = case.flops + case.flops_backward
    moved = 3 * read + 2 * written[1] + 2 * case.reads
    yield from compared(calls, device, pace, about | {"pass": BOTH}, both, lambda: moved)


def encoder(device: torch.device, dtype: torch.dtype, pace: Pace) -> Iterator[dict]:
    """Panda's encoder, 90.8 million parameters: all ops together, kernel maps and windows made anew each time."""
    on_gpu = device.type == "cuda"
    torch.manual_seed(SEED)
    # Branches of size 1: at their initial 1e-5 the gradients would be denormal numbers.
    model = PointTransformerV3(drop_path=0.0, layer_scale=1.0, mask_token=False).to(device)
    name, events = ("48 simulated events", simulated(48)) if on_gpu else ("the genuine event", [genuine()])
    batch = panda_batch(events).to(device)

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            return model(batch)[-1].feat

    def inference() -> None:
        with torch.no_grad():
            forward()

    def training() -> None:
        forward().float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    wanted = {"auto": "auto"}
    if on_gpu:
        wanted["torch"] = "torch"
    if all(present(backend) for backend in ("spconv", "flash_attn")):
        # The classic packages do not have every op; what they lack runs on the reference.
        wanted["classic"] = "spconv,flash_attn,torch_scatter,torch"
    about = {"section": "encoder", "op": "encoder", "case": f"Panda's encoder, {name}", "points": len(batch.feat)}
    for label, call in ((FORWARD, inference), (BOTH, training)):
        model.train(label == BOTH)
        with counting(model) as count:
            call()
        calls = {key: guarded(call, value) for key, value in wanted.items()}
        # Machines change their pace from minute to minute: the limit of the CPU scales with the rate beside it.
        rates = [matrix_rate(device, dtype)]
        rows = list(compared(calls, device, pace, about | {"pass": label}, count.flops, lambda: 0))
        rates.append(matrix_rate(device, dtype))
        yield from (row | {"matrix_flop_per_s": sum(rates) / 2} for row in rows)


def sections(setting: Setting, sizes: tuple[int, ...], events: int) -> Iterator[tuple[dict, Iterator[Build]]]:
    """What rows of a section have in common, and its cases."""
    device = setting.device
    chosen = [*([] if device.type == "cuda" else [genuine()]), *simulated(events)]
    stages = halved(panda_points(chosen).to(device), len(op_cases.PANDA_CHANNELS))
    yield {"section": "Panda stages"}, op_cases.panda(setting, stages)
    voxels = pack(chosen).to(device)
    yield {"section": "UResNet levels"}, op_cases.uresnet(setting, halved(voxels, len(op_cases.URESNET_CHANNELS)))
    yield {"section": "FASERCal patches"}, op_cases.fasercal(setting, voxels)
    for n in sizes:
        yield {"section": "growth", "size": n}, op_cases.growth(setting, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, up to 10,000 voxels")
    parser.add_argument("--sizes", type=int, nargs="+", help="voxels of the growth series")
    parser.add_argument("--ops", nargs="+", help="only these ops, named as in python -m nufm.ops; also: encoder")
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="GPU: bfloat16, CPU: float32")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--seconds", type=float, help="at most this long on one pass of one case")
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results unless --quick")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device: torch.device = args.device
    if device.type == "cpu":
        keep_freed_memory()  # as runs do
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as in nufm's runs; nothing on a CPU
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    setting = Setting(device, dtype)
    sizes = tuple(args.sizes or (SIZES[:3] if args.quick else SIZES))
    pace = Pace(3, 0.1) if args.quick else Pace(30, 1.0) if device.type == "cuda" else Pace(10, 0.6)
    if args.seconds:
        pace = pace._replace(seconds=args.seconds)
    events = 2 if args.quick else BATCH[device.type]

    machine = Machine.measure(device, dtype)
    rows: list[dict] = []
    errors: list[str] = []

    def one(about: dict, build: Build) -> None:
        case = build()
        if not args.ops or case.op in args.ops:
            print(f"{about['section']}: {case.name}, {case.points:,} points", flush=True)
            rows.extend(measure(case, about, device, pace))

    # An unattended run ends with what it could measure: a GPU that a kernel has upset fails all that follows.
    if not args.ops or "encoder" in args.ops:
        with listed(errors):
            rows += encoder(device, dtype, Pace(30, 15))
    for about, builds in sections(setting, sizes, events):
        for build in builds:
            with listed(errors):
                one(about, build)
    report = {
        **provenance(),
        "data": "simulated by nufm",
        "seed": SEED,
        "events": f"{events} simulated events" + ("" if device.type == "cuda" else " and the genuine one"),
        "energy_cut_MeV": {"Panda stages, encoder": ENERGY_CUT, "all else": None},
        "machine": machine.as_dict(),
        "errors": errors,
        "rows": rows,
    }
    text = markdown(report)
    print(text)
    out = args.out or (None if args.quick else RESULTS)
    if out is not None:
        save(out, result_name("ops", device), report, text)
        draw(report, out / f"{result_name('ops', device)}.png")


if __name__ == "__main__":
    main()
