"""The speed benchmarks: their arithmetic against hand counts, their measuring against known costs, and each of them
run in small.
"""

# ruff: noqa: E402

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nufm.data.event import Event
from nufm.models.heads import PrototypeHead
from nufm.models.ptv3 import PointTransformerV3
from nufm.ops.attention import Windows, window_layout
from nufm.ops.kernel_map import strided_map, submanifold_map

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as when one of them is run as a script

import backends
import flops
import measure
import op_cases
import op_report
import ops
import pretrain_step
import samples
import sparse_resnet

CPU = torch.device("cpu")


# ---------------------------------------------------------------------- measuring


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_of_a_power(power):
    sizes = [1e3, 1e4, 1e5, 1e6]
    assert measure.exponent(sizes, [7 * n**power for n in sizes]) == pytest.approx(power)


def test_exponent_needs_something_to_fit():
    with pytest.raises(ValueError, match="two sizes"):
        measure.exponent([10, 10], [1, 2])
    with pytest.raises(ValueError, match="positive"):
        measure.exponent([1, 10], [0, 2])


def test_timing_is_the_median_and_the_quartiles():
    timing = measure.Timing.of([0.005, 0.001, 0.002, 0.003, 0.004])
    assert (timing.ms, timing.low, timing.high, timing.repeats) == pytest.approx((3, 2, 4, 5))


def test_calls_take_turns():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = measure.interleaved(calls, CPU, repeats=3, warmup=1)
    assert "".join(order[-9:]) == "abcbcacab" and len(order) == 12
    assert all(t.repeats == 3 for t in times.values())


def test_affordable_repeats():
    assert measure.affordable([0.01, 0.01], 1.0, 30) == 30
    assert measure.affordable([9.0], float("inf"), 30) == 30
    assert measure.affordable([0.1, 0.1], 1.0, 30) == 5
    assert measure.affordable([2.0, 1.0], 1.0, 30) == 3
    assert measure.affordable([11.0], 1.0, 30) == 1


def test_peak_counts_what_is_alive_at_once():
    x = torch.ones(250_000)  # 1 MB, allocated before: not counted

    def call():
        y = x + 1
        z = y + 1  # two at once
        del y
        return z * 2  # z and the result

    assert measure.peak_bytes(call, CPU) == pytest.approx(2e6, rel=0.01)
    assert measure.peak_bytes(lambda: x.add_(1), CPU) < 1e5


def test_short_numbers_and_tables():
    assert [measure.short(v) for v in (0, 0.01234, 1.5, 12.345, 1234.5)] == ["0", "0.0123", "1.50", "12.3", "1,234"]
    assert measure.table(("a", "b", "c"), [("1x", "2", "–"), ("y", "–", "z")])[1] == "|---|---:|---|"
    assert [measure.state(v, 1.0) for v in (None, 0.9, 1.1)] == ["not measured", "met", "not met"]
    assert measure.state(1.1, 1.0, at_most=False) == "met"


# ---------------------------------------------------------------------- arithmetic


def test_convolution_flops_of_a_full_lattice():
    """In a full n³ lattice (3n - 2)³ pairs of cells touch; each costs 2 Ci Co."""
    n = 5
    grid = torch.cartesian_prod(*[torch.arange(n)] * 3)
    pairs = submanifold_map(grid, torch.tensor([0, n**3]))
    assert flops.conv_flops(pairs, 4, 6) == 2 * (3 * n - 2) ** 3 * 4 * 6
    patches = strided_map(grid, torch.tensor([0, n**3]), (2, 2, 2)).map
    assert flops.conv_flops(patches, 4, 6) == 2 * n**3 * 4 * 6


def test_attention_flops():
    """Events of 6 and 3 points in windows of 4: 4 x 4, then 2 queries with 4 keys, then 3 x 3."""
    windows = Windows.of_layout(window_layout(torch.tensor([0, 6, 9]), 4))
    assert flops.attention_flops(windows, heads=2, width=8) == 4 * (16 + 8 + 9) * 2 * 8


def test_counting_agrees_with_the_counter_of_torch():
    head = PrototypeHead(24, hidden=32, bottleneck=8, prototypes=40)
    x = torch.randn(50, 24, requires_grad=True)
    with FlopCounterMode(display=False) as theirs, flops.counting(head) as ours:
        head(x).sum().backward()
        with torch.no_grad():
            head(x)
    assert ours.flops == theirs.get_total_flops() == 4 * 2 * 50 * (24 * 32 + 32 * 8 + 8 * 40)
    head(x)
    assert ours.flops == theirs.get_total_flops(), "hooks are left behind"


# ---------------------------------------------------------------------- events


def track(n: int, seed: int) -> Event:
    """``n`` distinct voxels along a wandering line."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(-1, 2, (4 * n, 3)).cumsum(0) + 384
    voxel = np.unique(steps, axis=0)[:n].astype(np.int32)
    return Event(voxel=voxel, energy=rng.gamma(2, 0.5, len(voxel)).astype(np.float32) + 0.2)


@pytest.fixture
def tracks(monkeypatch):
    """Small tracks in place of simulated events, and no measuring of the machine."""
    events = tuple(track(60 + 7 * i, i) for i in range(24))

    def chosen(n=24, energy_cut=-1.0):
        return events[:n]

    for module in (samples, ops):
        monkeypatch.setattr(module, "simulated", chosen)
    monkeypatch.setattr(samples, "LEAST", 60)
    machine = measure.Machine("CPU", "float32", 1e11, 1e10, {"OMP_NUM_THREADS": "1"})
    monkeypatch.setattr(measure.Machine, "measure", classmethod(lambda *_: machine))
    return events


def test_whole_events_of_about_a_size(tracks):
    for n in (60, 200, 900):
        points = samples.about(n)
        assert abs(len(points) - n) <= 60 and int(points.offsets[-1]) == len(points)
        assert set(points.offsets.diff().tolist()) <= {len(e) for e in tracks}, "an event was cut"
    with pytest.raises(ValueError, match="raise EVENTS"):
        samples.about(10**6)


def test_nested_batches_of_published_sizes(tracks):
    published = [100, 220, 500, 900]
    chosen = samples.events_of_sizes(published)
    totals = np.cumsum([len(e) for e in chosen])[[0, 1, 3, 7]]
    np.testing.assert_allclose(totals, published, rtol=0.05)
    assert len({e.voxel.tobytes() for e in chosen}) == 8, "an event is there twice"


# ---------------------------------------------------------------------- each of them in small


def started(monkeypatch, script, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *arguments])
    script.main()


def test_ops_in_small(tracks, monkeypatch, tmp_path, capsys):
    wanted = ["segment_max", "sparse_conv", "curve_code", "encoder"]
    small = functools.partial(PointTransformerV3, depths=(1, 1), channels=(8, 16), heads=(1, 2))
    monkeypatch.setattr(ops, "PointTransformerV3", small)
    monkeypatch.setattr(ops, "genuine", lambda: tracks[3])
    monkeypatch.setattr(op_cases, "PANDA_CHANNELS", (4, 4, 4, 4, 4))
    monkeypatch.setattr(op_cases, "URESNET_CHANNELS", (4, 4))
    arguments = ("--quick", "--device", "cpu", "--sizes", "100", "1000", "--out", str(tmp_path), "--ops", *wanted)
    started(monkeypatch, ops, *arguments)
    report = json.loads((tmp_path / "ops_cpu.json").read_text())
    assert {"commit", "hardware", "seed", "data"} <= set(report)
    done = [r for r in report["rows"] if "ms" in r]
    assert {r["op"] for r in done} == set(wanted) and {r["backend"] for r in done} == {"torch", "auto"}
    assert all(r["ms"] > 0 and r["peak_bytes"] > 0 and r["repeats"] >= 3 for r in done)
    assert {r["backend"] for r in report["rows"] if "not_measured" in r} >= {"triton"}
    both = [r for r in done if r["pass"] == "forward + backward"]
    assert {r["op"] for r in both} == {"segment_max", "sparse_conv", "encoder"}
    text = (tmp_path / "ops_cpu.md").read_text()
    assert text in capsys.readouterr().out
    assert text.count("not measured |") == 5, "growth and GPU are not decided by a run this small"
    assert report["errors"] == []
    assert (tmp_path / "ops_cpu.png").stat().st_size > 10_000


def test_a_backend_that_fails_stops_nothing():
    def broken():
        raise RuntimeError("misaligned address\nand more")

    expected, failed = backends.runnable({"spconv": broken, "torch": lambda: None}, CPU)
    assert set(expected) == {"torch"} and failed == {"spconv": "RuntimeError: misaligned address"}


def test_an_unattended_run_goes_on():
    errors: list[str] = []
    with backends.listed(errors):
        raise RuntimeError("device lost")
    assert errors == ["RuntimeError: device lost"]


def row(backend: str, ms: float, **more: object) -> dict:
    return {"pass": "forward + backward", "backend": backend, "ms": ms, "peak_bytes": 10, "faster_than": {}} | more


def test_targets_of_the_ops_are_judged():
    """A made-up GPU run that meets one target and misses two."""
    stage = {"section": "Panda stages", "op": "sparse_conv", "case": "stage 0", "points": 9}
    whole = {"section": "encoder", "op": "encoder", "case": "encoder", "points": 9}
    rows = [
        row("triton", 1.0, **stage, **{"faster_than": {"spconv": 1.4}}),
        row("triton", 1.0, **stage, **{"faster_than": {"spconv": 3.0}}),
        row("auto", 1.0, **whole, **{"faster_than": {"classic": 1.35}}),
        row("classic", 1.35, **whole, **{"peak_bytes": 8}),
    ]
    machine = {"device": "GPU", "dtype": "bfloat16", "flop_per_s": 1e12, "bytes_per_s": 1e12}
    states = [(line[0], line[3], line[4]) for line in op_report.targets({"rows": rows, "machine": machine})]
    assert [s[2] for s in states if s[0] == "CPU"] == ["not measured"] * 4
    assert [s[1:] for s in states if s[0] == "GPU"] == [("1.40 ×", "not met"), ("1.35 ×", "met"), ("1.25", "not met")]


def test_growth_is_judged_by_its_worst_op():
    """Two ops from 1 k to 1 M voxels: time ~ N^0.9 and N, memory ~ N and N^1.2."""
    rows = []
    for case, time, memory in (("first", 0.9, 1.0), ("second", 1.0, 1.2)):
        for n in (1_000, 10_000, 100_000, 1_000_000):
            cost = {"ms": n**time, "peak_bytes": n**memory}
            rows.append(row("torch", 1.0, section="growth", op="op", case=case, points=n, size=n) | cost)
    machine = {"device": "CPU", "dtype": "float32", "flop_per_s": 1e12, "bytes_per_s": 1e12}
    lines = op_report.targets({"rows": rows, "machine": machine})
    judged = {line[1].split(" of ")[1].split(",")[0]: (line[1].split("largest: ")[1], *line[3:]) for line in lines[2:4]}
    late = "(over the last factor of ten: {}, second, forward + backward)"
    assert judged["time"] == ("second, forward + backward", f"1.00 {late.format('1.00')}", "met")
    assert judged["memory"] == ("second, forward + backward", f"1.20 {late.format('1.20')}", "not met")
    part = op_report.targets({"rows": rows[:3], "machine": machine})
    assert [line[4] for line in part[2:4]] == ["not measured"] * 2, "the series is not complete"


def test_sparse_resnet_in_small(tracks, monkeypatch, tmp_path):
    monkeypatch.setitem(sparse_resnet.SPECS, "small", ((4, 4, 4, 4), 1))
    started(monkeypatch, sparse_resnet, "--quick", "--device", "cpu", "--out", str(tmp_path))
    report = json.loads((tmp_path / "sparse_resnet_cpu.json").read_text())
    done = [r for r in report["rows"] if "ms" in r]
    assert len({(r["pass"], r["state"]) for r in done}) == 4
    text = (tmp_path / "sparse_resnet_cpu.md").read_text()
    assert "| large | 16 | 56,700 | 87.3 |" in text, "published columns"
    large = next(line for line in text.splitlines() if line.startswith("| large | 16 |"))
    assert large.rstrip(" |").endswith("not measured")
    targets = [line for line in text.splitlines() if line.startswith("| GPU |")]
    assert len(targets) == 3 and all(line.endswith("| – | not measured |") for line in targets)


@pytest.mark.slow
def test_pretraining_step_in_small(monkeypatch, tmp_path):
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrain_step, "EVENTS", 4)
    machine = measure.Machine("CPU", "float32", 1e11, 1e10, {"OMP_NUM_THREADS": "1"})
    monkeypatch.setattr(measure.Machine, "measure", classmethod(lambda *_: machine))
    arguments = ("--quick", "--device", "cpu", "--events", "1", "--steps", "1", "--workers", "0")
    started(monkeypatch, pretrain_step, *arguments, "--out", str(tmp_path))
    (found,) = json.loads((tmp_path / "pretrain_step_cpu.json").read_text())["rows"]
    assert found["size"] == "tiny" and found["events_per_s"] > 0 and found["model_flops_per_step"] > 1e8
    # Student and teacher, two moments of the student, gradients: five times its weights at the very least.
    assert found["peak_gigabytes"] * 1e9 > 5 * 4 * found["parameters"]
    assert 0 < found["waiting_share"] < 1 and found["data_events_per_s_per_worker"] > 0
    text = (tmp_path / "pretrain_step_cpu.md").read_text()
    assert text.count("| – | not measured |") == 2
