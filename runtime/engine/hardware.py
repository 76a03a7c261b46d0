"""What the machine has: cores for the default number of threads, memory for the context."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MEMORY = Path("/proc/meminfo")
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def default_threads() -> int:
    """Physical cores that this process may use: two threads of one core gain nothing in matrix products.

    Respects the CPU affinity and, in a container, the CPU quota (more threads than that would wait for each other).
    """
    cpus = _available_cpus()
    cores = {_core_of(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota() or len(cores)))


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system doesn't say (other than Linux)."""
    try:
        lines = _MEMORY.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _available_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _core_of(cpu: int) -> str:
    """A name shared by the hardware threads of one core; each is its own core where the system doesn't say."""
    try:
        return Path(_TOPOLOGY.format(cpu)).read_text().strip() or str(cpu)
    except OSError:
        return str(cpu)


def _quota() -> int | None:
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return None if quota == "max" else max(1, math.floor(int(quota) / int(period)))
    except (OSError, ValueError):
        return None
