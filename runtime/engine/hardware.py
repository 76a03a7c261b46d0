"""The machine's CPU cores, for the default number of threads.

Matrix products are cut into equal pieces, one per thread: a second thread on a core speeds nothing up, and a slow core
makes all others wait. llama.cpp's programs count the same cores (cpu_get_num_math in common/common.cpp).
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_SYSTEM = Path("/sys")
_CPU_QUOTA = "fs/cgroup/cpu.max"
_INTEL_PERFORMANCE_CPUS = "devices/cpu_core/cpus"  # the kernel has this folder on hybrid processors only
_CPU = "devices/system/cpu/cpu{}"

_RELATION_PROCESSOR_CORE = 0
# Windows' record of one core: relationship, record's size, flags, efficiency class (higher is faster); more follows.
_CORE_RECORD = struct.Struct("<IIBB")


def default_threads() -> int:
    """Return the number of physical performance cores that this process may use; at least 1.

    Respects, on Linux, the CPU affinity and a container's CPU quota (further threads would wait for each other).
    """
    if sys.platform == "darwin":
        n_cores = macos_cores(ctypes.CDLL(None))
    elif sys.platform == "win32":
        n_cores = windows_cores(ctypes.WinDLL("kernel32"))
    else:
        cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        n_cores = linux_cores(cpus, _SYSTEM)
    return n_cores or os.cpu_count() or 1


def busy_seconds(path: Path = Path("/proc/stat")) -> float | None:
    """Return the processor time that all programs have used since the system started; None where no file tells it.

    Source: https://man7.org/linux/man-pages/man5/proc_stat.5.html. Steal is what other virtual machines took.
    """
    try:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, path.read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def linux_cores(cpus: Iterable[int], system: Path) -> int:
    """Return how many cores the hardware threads `cpus` are on, by the /sys tree at `system`.

    Only performance cores count, unless `cpus` has none.
    """
    cpus = set(cpus)
    fast = cpus & _performance_cpus(cpus, system)
    n_cores = len({_core_of(cpu, system) for cpu in fast or cpus})
    return min(n_cores, _quota(system) or n_cores)


def macos_cores(library: ctypes.CDLL) -> int:
    """Return the number of performance cores by sysctlbyname of the C `library`, 0 if it doesn't tell.

    Level 0 is the fastest kind of core. Macs with Intel processors have one kind and no levels.
    """
    for name in (b"hw.perflevel0.physicalcpu", b"hw.physicalcpu"):
        number = ctypes.c_int32(0)
        size = ctypes.c_size_t(ctypes.sizeof(number))
        if library.sysctlbyname(name, ctypes.byref(number), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0:
            return number.value
    return 0


def windows_cores(library: ctypes.CDLL) -> int:
    """Return the number of cores of the fastest class by GetLogicalProcessorInformationEx; 0 if it doesn't tell.

    https://learn.microsoft.com/windows/win32/api/winnt/ns-winnt-system_logical_processor_information_ex
    """
    size = ctypes.c_uint32(0)
    library.GetLogicalProcessorInformationEx(_RELATION_PROCESSOR_CORE, None, ctypes.byref(size))
    records = ctypes.create_string_buffer(size.value)
    if not library.GetLogicalProcessorInformationEx(_RELATION_PROCESSOR_CORE, records, ctypes.byref(size)):
        return 0
    classes, position = [], 0
    while position + _CORE_RECORD.size <= size.value:
        _, record_bytes, _, efficiency_class = _CORE_RECORD.unpack_from(records, position)
        classes.append(efficiency_class)
        position += max(record_bytes, _CORE_RECORD.size)
    return classes.count(max(classes, default=0))


def _performance_cpus(cpus: set[int], system: Path) -> set[int]:
    """Return the hardware threads on performance cores: as the kernel lists them, or else by their capacity.

    Arm's processors have up to three kinds of cores: with less than half the capacity of the largest, they are slow.
    """
    if listed := _read(system / _INTEL_PERFORMANCE_CPUS):
        return _cpu_list(listed)
    capacities = {cpu: int(_read(system / _CPU.format(cpu) / "cpu_capacity") or 0) for cpu in cpus}
    return {cpu for cpu, capacity in capacities.items() if 2 * capacity >= max(capacities.values())}


def _cpu_list(text: str) -> set[int]:
    """Return the numbers in a list of the kernel's, such as 0-7,9."""
    ranges = [part.partition("-") for part in text.split(",")]
    return {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}


def _core_of(cpu: int, system: Path) -> str:
    """Return a name shared by the hardware threads of one core; where the system has none, the thread's own."""
    return _read(system / _CPU.format(cpu) / "topology/thread_siblings_list") or str(cpu)


def _quota(system: Path) -> int | None:
    try:
        quota, period = _read(system / _CPU_QUOTA).split()
        return None if quota == "max" else max(1, math.floor(int(quota) / int(period)))
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
