"""What this process may use of the machine it runs on."""

from __future__ import annotations

import ctypes
import os
import sys
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


def keep_freed_memory() -> bool:
    """Let this process reuse the memory it frees instead of giving it back to the system at once.

    A training step on a CPU frees and asks again for all its gradients. By default glibc returns blocks above 32 MB,
    and the system clears each page anew at every step.

    Returns:
        True where it could be set (Linux with glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    # Older versions of glibc take no threshold above 32 MB.
    kept = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)
    return bool(mallopt(trim_threshold, 2**31 - 1) and kept)
