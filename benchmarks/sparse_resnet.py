"""The public comparison of sparse-convolution libraries (youngsm/sparse-conv-benchmarks), repeated with every backend
that runs here.

    python benchmarks/sparse_resnet.py            # GPU: everything; CPU: small and medium network, batch 1
    python benchmarks/sparse_resnet.py --quick    # small network, batch 1, three repeats; written only with --out

Its protocol: the same three networks, batches of 1, 2, 4, 8 and 16 events of native voxels without an energy cut,
energy as the one feature, training mode, bfloat16 autocast with TF32 allowed; median of 30 timed calls after 20
warm-ups; forward without gradients, and forward + backward of the sum of the output. "maps kept" is its steady state:
what depends on coordinates only is there before the clock starts. "maps made" is a training step's view: each call
makes the maps of its new coordinates. Peak memory is all that torch has allocated, weights included (on a CPU without
maps that are kept).

What differs: our events are simulated by nufm, chosen whole so that the voxels of a batch come close to the published
ones (both are printed). A strided convolution writes to the coarse cells that hold a voxel, as in MinkowskiEngine and
WarpConvNet; spconv's column was measured with a convolution that also writes to their empty neighbours. On a CPU
everything is float32 with 2 warm-ups and as many of 10 repeats as fit into a few seconds: not the protocol.
"""

from __future__ import annotations

import os

# As scripts/pretrain.py: before torch loads OpenMP, whose threads else spin for those that another process holds up.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from backends import guarded, listed, runnable
from measure import (
    Call,
    Machine,
    about_machine,
    affordable,
    default_device,
    interleaved,
    peak_bytes,
    result_name,
    short,
    state,
    table,
)
from record import RESULTS, provenance, save
from samples import SEED, Points, events_of_sizes, pack

from nufm.machine import keep_freed_memory
from nufm.models.sparse_resnet import SPECS, Level, SparseResNet, make_levels
from nufm.ops import dispatch

PUBLISHED = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())["sparse_conv_benchmark"]
PASSES = ("forward", "forward + backward")
STATES = ("maps kept", "maps made")


def allocated(device: torch.device, model: torch.nn.Module) -> int:
    """Bytes held before a call: on a CPU, where torch does not keep count, weights and buffers."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return sum(x.nbytes for x in (*model.parameters(), *model.buffers()))


def calls_of(
    model: SparseResNet, energy: torch.Tensor, points: Points, kept: bool, half: torch.dtype
) -> dict[str, Call]:
    """The two passes of the protocol; autocast to ``half`` on a GPU."""
    device, stages = energy.device, len(model.channels)
    maps = make_levels(points.grid, points.offsets, stages) if kept else None

    def levels() -> list[Level]:
        return maps if kept else make_levels(points.grid, points.offsets, stages)

    def run() -> torch.Tensor:
        with torch.autocast(device.type, half, enabled=device.type == "cuda"):
            return model(energy, levels())[-1]

    def forward() -> None:
        with torch.no_grad():
            run()

    def both() -> None:
        model.zero_grad(set_to_none=True)
        run().float().sum().backward()

    return dict(zip(PASSES, (forward, both), strict=True))


def measure(name: str, batch: int, device: torch.device, pace: tuple[int, int, float]) -> Iterator[dict]:
    """Rows of one network at one batch size."""
    warmup, most, seconds = pace
    events = events_of_sizes(PUBLISHED["voxels"])[:batch]
    points = pack(events).to(device)
    energy = torch.from_numpy(np.concatenate([e.energy for e in events])[:, None]).to(device)
    torch.manual_seed(SEED)
    model = SparseResNet.named(name).to(device).train()
    for kept in (True, False):
        for label in PASSES:
            about = {"network": name, "batch": batch, "voxels": len(points), "pass": label}
            about["state"] = STATES[0 if kept else 1]

            def make(backend: str, kept: bool = kept, label: str = label) -> Call:
                # spconv has no bfloat16: under autocast its own layers compute in float16 too.
                half = torch.float16 if backend == "spconv" else torch.bfloat16
                return guarded(calls_of(model, energy, points, kept, half)[label], backend)

            calls = {backend: make(backend) for backend in (*dispatch.PREFERENCE["sparse_conv"], dispatch.REFERENCE)}
            expected, failed = runnable(calls, device)
            calls = {backend: calls[backend] for backend in expected}
            times = interleaved(calls, device, affordable(expected.values(), seconds, most), warmup) if calls else {}
            calls.clear()  # and with them the maps of the other backends
            for backend, timing in times.items():
                call = make(backend)
                call()
                model.zero_grad(set_to_none=True)
                held = allocated(device, model)
                peak = held + peak_bytes(call, device)
                del call
                yield about | {
                    "backend": backend,
                    "ms": timing.ms,
                    "ms_quartiles": [timing.low, timing.high],
                    "repeats": timing.repeats,
                    "peak_megabytes": peak / 1e6,
                }
            for backend, reason in failed.items():
                yield about | {"backend": backend, "not_measured": reason}


# ---------------------------------------------------------------------- tables


def found(rows: list[dict], cost: str, **wanted: object) -> dict[str, float]:
    """Backend -> cost of the rows that agree with ``wanted``."""
    return {r["backend"]: r[cost] for r in rows if cost in r and all(r[k] == v for k, v in wanted.items())}


def targets(report: dict) -> list[list[str]]:
    """The rows of the target table that this benchmark decides: best backend of nufm's own, maps kept."""
    on_h200 = "H200" in report["machine"]["device"]
    lines = []
    for network, batch, cost, limit, unit in (
        ("large", 16, "ms", 34.9, "ms"),
        ("large", 16, "peak_megabytes", 1105.0, "MB"),
        ("small", 1, "ms", 2.7, "ms"),
    ):
        ours = found(report["rows"], cost, network=network, batch=batch, state=STATES[0], **{"pass": PASSES[1]})
        ours.pop("spconv", None)
        best = min(ours.values(), default=None) if on_h200 else None
        what = f"{network} network, batch {batch}, forward + backward, bf16, one H200"
        value = "–" if best is None else f"{short(best)} {unit}"
        lines.append(["GPU", what, f"≤ {limit:g} {unit}", value, state(best, limit)])
    return lines


def markdown(report: dict) -> str:
    """Published columns beside ours."""
    rows = report["rows"]
    libraries, backends = PUBLISHED["libraries"], list(dict.fromkeys(r["backend"] for r in rows if "ms" in r))
    lines = [
        "# Sparse ResNet: the public benchmark",
        "",
        f"Ours: {about_machine(report)} {report['precision']}, {report['repeats']}, events simulated by nufm. "
        f"Published: {PUBLISHED['hardware']}, {PUBLISHED['precision']}, PILArNet-M-mini ({PUBLISHED['source']}). "
        "Made by `python benchmarks/sparse_resnet.py`.",
        "",
        "Times in ms, median. *maps kept*: kernel maps are there before the clock starts, as published; *maps made*: "
        "each call makes them. spconv's published column computes more cells: its strided convolution also writes to "
        "empty neighbours.",
        "",
        "## Targets",
        "",
        *table(("where", "what", "at least", "found", "state"), targets(report)),
    ]
    for label, published, cost, unit in (
        (PASSES[1], "forward_backward_ms", "ms", "ms"),
        (PASSES[0], "forward_ms", "ms", "ms"),
        (PASSES[1], "forward_backward_megabytes", "peak_megabytes", "peak MB"),
    ):
        ours = [f"ours: {b}, {s}" for b in backends for s in STATES]
        head = ("network", "batch", "voxels published", *libraries, "voxels ours", *ours)
        body = []
        for network in SPECS:
            for i, batch in enumerate(PUBLISHED["batches"]):
                key = {"network": network, "batch": batch, "pass": label}
                values = {s: found(rows, cost, state=s, **key) for s in STATES}
                voxels = found(rows, "voxels", **key)
                row = [network, str(batch), f"{PUBLISHED['voxels'][i]:,}"]
                row += [short(v) for v in PUBLISHED[published][network][i]]
                row += [f"{next(iter(voxels.values())):,}" if voxels else "–"]
                row += [short(values[s][b]) if b in values[s] else "not measured" for b in backends for s in STATES]
                body.append(row)
        lines += ["", f"## {label[0].upper()}{label[1:]}, {unit}", "", *table(head, body)]
    reasons = {(r["backend"], r["not_measured"]) for r in rows if "not_measured" in r}
    lines += ["", *(f"- not measured: {backend}: {why}" for backend, why in sorted(reasons))]
    lines += [f"- not measured: a case that ended with {error}" for error in report["errors"]]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small network, batch 1, three repeats")
    parser.add_argument("--networks", nargs="+", choices=tuple(SPECS))
    parser.add_argument("--batches", type=int, nargs="+", choices=PUBLISHED["batches"])
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results unless --quick")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device: torch.device = args.device
    if device.type == "cpu":
        keep_freed_memory()  # as runs do
    on_gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    networks = args.networks or (["small"] if args.quick else list(SPECS) if on_gpu else ["small", "medium"])
    batches = args.batches or (PUBLISHED["batches"] if on_gpu and not args.quick else [1])
    pace = (20, 30, float("inf")) if on_gpu else (2, 10, 8.0)
    pace = (1, 3, 1.0) if args.quick else pace
    machine = Machine.measure(device, torch.bfloat16 if on_gpu else torch.float32)
    rows, errors = [], []
    for network in networks:
        for batch in batches:
            print(f"{network}, batch {batch}", flush=True)
            with listed(errors):
                rows.extend(measure(network, batch, device, pace))
    report = {
        **provenance(),
        "data": "simulated by nufm",
        "seed": SEED,
        "precision": "bf16 autocast (spconv: float16), TF32" if on_gpu else "float32",
        "repeats": f"{pace[0]} warm-ups and at most {pace[1]} timed calls",
        "machine": machine.as_dict(),
        "errors": errors,
        "rows": rows,
    }
    text = markdown(report)
    print(text)
    out = args.out or (None if args.quick else RESULTS)
    if out is not None:
        save(out, result_name("sparse_resnet", device), report, text)


if __name__ == "__main__":
    main()
