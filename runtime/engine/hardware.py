"""The machine's CPU cores, for the default number of threads, and its free memory, for the context."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MEMORY = Path("/proc/meminfo")
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def default_threads() -> int:
    """Return the number of physical cores that this process may use: a second thread speeds up no matrix product.

    Respects the CPU affinity and, in a container, the CPU quota (further threads would wait for each other).
    """
    cpus = _available_cpus()
    cores = {_core_of(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota() or len(cores)))


def available_memory() -> int | None:
    """Return the bytes that can be allocated without swapping; None on systems other than Linux."""
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
    """Return a name shared by the hardware threads of one core; where the system has none, the thread's own."""
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
