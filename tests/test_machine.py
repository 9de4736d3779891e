"""The cores a process may use, for torch's threads and for the simulation's workers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nufm import machine
from nufm.simulation import workers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("nonsense\n", 8),
        (None, 8),
    ],
)
def test_cores_respect_affinity_and_quota(tmp_path, monkeypatch, text, expected):
    quota = tmp_path / "cpu.max"
    if text is not None:
        quota.write_text(text)
    monkeypatch.setattr(machine, "CPU_QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.available_cores() == expected


def test_simulation_starts_no_more_workers_than_the_quota(tmp_path, monkeypatch):
    """With a quota of one core, 'one worker per core' simulates in this process."""
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(workers, "_start", lambda: pytest.fail("a process was started"))
    monkeypatch.setattr("nufm.simulation.dataset.simulate_event", lambda spec, seed, stream, index: index)
    found = workers.in_order("nufm.simulation.dataset:simulate_event", (None, 0, 0), range(40), None)
    assert list(found) == list(range(40))


def page_faults(setting: str) -> float:
    """Faults per page of a process that takes and frees 64 MiB again and again."""
    code = f"""
import resource, torch
from nufm.machine import keep_freed_memory
{setting}
for _ in range(10):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(result.stdout) / (10 * 2**26 / os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="an allocator of Linux (glibc)")
def test_freed_memory_is_kept():
    if os.confstr_names.get("CS_GNU_LIBC_VERSION") is None:
        pytest.skip("another C library than glibc")
    kept = page_faults("assert keep_freed_memory()")
    assert kept < 0.001
    assert kept < page_faults("")  # huge pages may make these few, too
