"""The whole step of Panda's pretraining: views, teacher, student, losses, backward, optimiser.

    python benchmarks/pretrain_step.py            # GPU: bf16, 12 events; CPU: float32, 1 event (tiny size: 8)
    python benchmarks/pretrain_step.py --quick    # tiny size, a few steps; written only with --out

It is the run that `python scripts/pretrain.py` would start: the same configuration, Lightning Trainer, data module,
loader workers, views and method, stopped after a few steps; without probe, checkpoints and progress line. Events are
simulated by nufm. Time is that of whole steps, data included, between two synchronisations; the share spent waiting
for data is what the Trainer spends in asking the loader for the next batch. Model FLOPs (benchmarks/flops.py) are
those of the batches that were timed. Memory is all that torch has allocated: one more step, profiled; on a CPU the
weights and the optimiser's moments plus the largest sum of allocations during the step. The data path is timed by
itself too, in one process, so that the number of workers a GPU needs can be told from it.
"""

from __future__ import annotations

import os

# As scripts/pretrain.py: before torch loads OpenMP, whose threads else spin for those that another process holds up.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import argparse
import itertools
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from flops import Count, counting
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.profilers import Profiler
from measure import Machine, Peak, Timing, about_machine, default_device, result_name, short, state, table
from record import RESULTS, provenance, save
from samples import EVENTS, SEED

from nufm.commands.pretrain import PretrainCLI
from nufm.machine import available_cores
from nufm.methods.linear_probe import OnlineProbe
from nufm.ops.dispatch import used
from nufm.running.guards import SaveOnSignal

CONFIGS = Path(__file__).parents[1] / "configs"
PUBLISHED = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())["panda"]["pretraining"]
FILES = {"paper": CONFIGS / "pretrain" / "panda.yaml", "tiny": CONFIGS / "tiny" / "panda.yaml"}
LEFT_OUT = (Checkpoint, ProgressBar, OnlineProbe, SaveOnSignal)


class Waits(Profiler):
    """Seconds that the Trainer has waited for its loader, batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._begin = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.seconds.append(time.perf_counter() - self._begin)


class Steps(Callback):
    """Times ``steps`` steps after ``warmup`` ones, then measures the memory of one more and ends the run."""

    def __init__(self, warmup: int, steps: int, device: torch.device) -> None:
        self.warmup, self.steps, self.device = warmup, steps, device
        self.ends: list[float] = []
        self.events: list[int] = []
        self.flops: list[int] = []
        self.count = Count()
        self.peak = Peak(device)
        self.held = 0

    def _now(self, synchronised: bool) -> float:
        if synchronised and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.count.clear()
        if len(self.ends) == self.warmup + self.steps:
            # The step would free the last gradients itself before it makes new ones; the profiler of a CPU does not
            # see what was allocated before it started being freed.
            module.zero_grad(set_to_none=True)
            self.held = held_bytes(module, trainer.optimizers, self.device)
            self.peak.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = len(self.ends)
        if done == self.warmup + self.steps:
            self.peak.__exit__(None, None, None)
            trainer.should_stop = True
            return
        # The last warm-up step and the last timed one end when the device is done; in between it may lag behind.
        self.ends.append(self._now(synchronised=done + 1 in (self.warmup, self.warmup + self.steps)))
        self.events.append(batch.n_events)
        self.flops.append(self.count.flops)


def held_bytes(module: torch.nn.Module, optimizers: list, device: torch.device) -> int:
    """Bytes held between two steps: weights, buffers, moments; on a GPU whatever else is allocated too."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    tensors = [*module.parameters(), *module.buffers()]
    for optimizer in optimizers:
        tensors += [x for s in optimizer.state.values() for x in s.values() if isinstance(x, torch.Tensor)]
    return sum(x.nbytes for x in tensors)


def data_rate(data: Any, seconds: float = 3.0) -> float:
    """Events per second that one process reads, transforms, cuts into views and packs."""
    dataset, collate = data.train_dataset(), data.collate(training=True)
    n = data.batch_size
    collate([dataset[(0, i)] for i in range(n)])  # opens the files
    begin, done = time.perf_counter(), 0
    while (took := time.perf_counter() - begin) < seconds:
        collate([dataset[(0, (done + i) % len(dataset))] for i in range(n)])
        done += n
    return done / took


def run(size: str, events: int, workers: int, device: torch.device, warmup: int, steps: int, out: Path) -> dict:
    """Row of one size."""
    on_gpu = device.type == "cuda"
    flags = {
        "config": FILES[size],
        "runs_dir": out,
        "data.root": "simulated",
        "data.n_train": max(EVENTS, (warmup + steps + 2) * events),  # one epoch: its end would empty the loader
        "data.n_val": 0,
        "data.n_test": 0,
        "data.batch_size": events,
        "data.num_workers": workers,
        "trainer.accelerator": "gpu" if on_gpu else "cpu",
        "trainer.devices": 1,
        "trainer.precision": "bf16-mixed" if on_gpu else "32-true",
        "report.enabled": "false",
    }
    cli = PretrainCLI([f"--{key}={value}" for key, value in flags.items()])
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    data.prepare_data()
    rate = data_rate(data)
    timed, waits = Steps(warmup, steps, device), Waits()
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, LEFT_OUT)] + [timed]
    trainer.profiler = waits
    with counting(model) as timed.count:
        trainer.fit(model, datamodule=data)
    begin, end = timed.ends[warmup - 1], timed.ends[-1]
    n_events, n_flops = sum(timed.events[warmup:]), sum(timed.flops[warmup:])
    spread = Timing.of([b - a for a, b in itertools.pairwise(timed.ends[warmup - 1 :])])
    return {
        "size": size,
        "parameters": sum(p.numel() for p in model.student.parameters()),
        "events_per_step": events,
        "precision": flags["trainer.precision"],
        "steps": steps,
        "warmup": warmup,
        "step_ms": (end - begin) / steps * 1e3,
        "step_ms_quartiles": [spread.low, spread.high],
        "events_per_s": n_events / (end - begin),
        "model_flops_per_step": n_flops / steps,
        "model_flop_per_s": n_flops / (end - begin),
        "peak_gigabytes": (timed.held + timed.peak.bytes) / 1e9,
        "waiting_share": sum(waits.seconds[warmup : warmup + steps]) / (end - begin),
        "workers": workers,
        "data_events_per_s_per_worker": rate,
        "workers_needed": math.ceil(n_events / (end - begin) / rate),
        "backends": {op: list(names) for op, names in used().items()},
    }


def targets(report: dict) -> list[list[str]]:
    """The rows of the target table that this benchmark decides."""
    paper = next((r for r in report["rows"] if r["size"] == "paper"), None)
    fits = paper and report["hopper"] and paper["events_per_step"] == PUBLISHED["batch_size_per_gpu"]
    seconds = paper["step_ms"] / 1e3 if fits else None
    waiting = 100 * paper["waiting_share"] if paper else None
    on = f" ({report['machine']['device']}, {paper['events_per_step']} events per step)" if paper else ""
    return [
        ["GPU", "step at paper size, 12 events, one Hopper GPU", "≤ 0.20 s", f"{short(seconds)} s" if fits else "–",
         state(seconds, 0.20)],
        ["any", f"share of a step spent waiting for data, paper size{on}", "≤ 1 %",
         f"{short(waiting)} %" if paper else "–", state(waiting, 1.0)],
    ]  # fmt: skip


def markdown(report: dict) -> str:
    """The report as tables."""
    machine = report["machine"]
    lines = [
        "# A step of Panda's pretraining",
        "",
        f"{about_machine(report)} Events simulated by nufm. Made by `python benchmarks/pretrain_step.py`.",
        "",
        *table(("where", "what", "at least", "found", "state"), targets(report)),
        "",
    ]
    rows = [("", "published", *(f"{r['size']} size" for r in report["rows"]))]

    def add(name: str, published: str, text: Any) -> None:
        rows.append((name, published, *(text(r) for r in report["rows"])))

    seconds = PUBLISHED["seconds_per_step"]
    events = PUBLISHED["batch_size_per_gpu"]
    add("student's parameters", "104 M", lambda r: f"{r['parameters'] / 1e6:.1f} M")
    add("events per step and device", str(events), lambda r: str(r["events_per_step"]))
    add("precision", "bf16", lambda r: r["precision"])
    add("s per step", f"{seconds}", lambda r: short(r["step_ms"] / 1e3))
    add("quartiles", "", lambda r: "–".join(short(ms / 1e3) for ms in r["step_ms_quartiles"]))
    add("events/s per device", short(events / seconds), lambda r: short(r["events_per_s"]))
    add("model TFLOP per step", "", lambda r: short(r["model_flops_per_step"] / 1e12))
    add("of the matrix rate", "", lambda r: f"{r['model_flop_per_s'] / machine['flop_per_s']:.1%}")
    add("peak GB", f"{PUBLISHED['gigabytes_per_gpu']}", lambda r: short(r["peak_gigabytes"]))
    waited = PUBLISHED["data_seconds_per_step"] / seconds
    add("waiting for data", f"{waited:.1%}", lambda r: f"{r['waiting_share']:.2%}")
    add("loader workers", "", lambda r: str(r["workers"]))
    add("events/s of one worker", "", lambda r: short(r["data_events_per_s_per_worker"]))
    add("workers needed", "", lambda r: str(r["workers_needed"]))
    lines += table(rows[0], rows[1:])
    lines += ["", f"Published: A100-40GB, {PUBLISHED['hardware'].split()[0]} of them; its memory as the talk gives it."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny size, a few steps")
    parser.add_argument("--sizes", nargs="+", choices=tuple(FILES))
    parser.add_argument("--events", type=int, help="per step, for all sizes; GPU 12, CPU 1; tiny 8")
    parser.add_argument("--workers", type=int, help="loader processes; GPU: at most 8, one core left; CPU: 1")
    parser.add_argument("--steps", type=int, help="timed steps")
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results unless --quick")
    args = parser.parse_args()
    device: torch.device = args.device
    on_gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    workers = args.workers if args.workers is not None else min(8, available_cores() - 1) if on_gpu else 1
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = Machine.measure(device, torch.bfloat16 if on_gpu else torch.float32)
    rows = []
    for size in args.sizes or (["tiny"] if args.quick else ["paper", "tiny"]):
        events = args.events or (8 if size == "tiny" else PUBLISHED["batch_size_per_gpu"] if on_gpu else 1)
        warmup, steps = (1, 2) if args.quick else (10, 40) if on_gpu else (1, 4) if size == "paper" else (3, 12)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(size, events, workers, device, warmup, args.steps or steps, Path(folder)))
    report = {
        **provenance(),
        "data": "simulated by nufm",
        "seed": SEED,
        "machine": machine.as_dict(),
        "hopper": on_gpu and torch.cuda.get_device_capability(device)[0] == 9,
        "rows": rows,
    }
    text = markdown(report)
    print(text)
    out = args.out or (None if args.quick else RESULTS)
    if out is not None:
        save(out, result_name("pretrain_step", device), report, text)


if __name__ == "__main__":
    main()
