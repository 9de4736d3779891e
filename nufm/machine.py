"""What this process may use of the machine it runs on."""

from __future__ import annotations

import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # control groups v2: "<microseconds or max> <period>"


def available_cores() -> int:
    """CPU cores this process may use: its affinity (as Slurm sets it) and its control group's quota
    (containers).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no control groups: the affinity stands
    return cores
