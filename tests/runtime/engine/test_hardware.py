"""How many threads: cores of the fastest kind, told by each system in its own way (their documented layouts)."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys

import pytest

from tritgguf.runtime.engine.hardware import default_threads, linux_cores, macos_cores, windows_cores


def linux(folder, siblings, *, capacities=None, performance="", quota="max 100000"):
    """A /sys tree: `siblings` maps a list such as 0-1 to its threads, `capacities` a thread to its capacity."""
    files = {"fs/cgroup/cpu.max": quota}
    for text, cpus in siblings.items():
        files |= {f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text for cpu in cpus}
    for cpu, capacity in (capacities or {}).items():
        files[f"devices/system/cpu/cpu{cpu}/cpu_capacity"] = str(capacity)
    if performance:
        files["devices/cpu_core/cpus"] = performance
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


def test_threads_of_one_core_count_once(tmp_path):
    system = linux(tmp_path, {"0,4": [0, 4], "1,5": [1, 5], "2,6": [2, 6], "3,7": [3, 7]})
    assert linux_cores(range(8), system) == 4
    assert linux_cores([0, 1, 4], system) == 2  # by affinity


def test_a_quota_is_respected(tmp_path):
    system = linux(tmp_path, {str(cpu): [cpu] for cpu in range(8)}, quota="250000 100000")
    assert linux_cores(range(8), system) == 2


def test_a_system_that_tells_nothing_has_a_core_per_thread(tmp_path):
    assert linux_cores(range(3), tmp_path) == 3


def test_efficiency_cores_of_hybrid_intel_do_not_count(tmp_path):
    """A Core i7-1260P: 4 performance cores of two threads, 8 efficiency cores."""
    pairs = {f"{cpu}-{cpu + 1}": [cpu, cpu + 1] for cpu in range(0, 8, 2)}
    system = linux(tmp_path, pairs | {str(cpu): [cpu] for cpu in range(8, 16)}, performance="0-7")
    assert linux_cores(range(16), system) == 4
    assert linux_cores(range(8, 16), system) == 8  # all that an affinity leaves


def test_little_cores_of_arm_do_not_count(tmp_path):
    """A Snapdragon 8 Gen 2's kinds of cores: 1 prime, 4 big, 3 little."""
    capacities = dict(enumerate([325] * 3 + [828] * 4 + [1024]))
    system = linux(tmp_path, {str(cpu): [cpu] for cpu in range(8)}, capacities=capacities)
    assert linux_cores(range(8), system) == 5


class Sysctl:
    """sysctlbyname(3) of a Mac with these values."""

    def __init__(self, **values):
        self.values = values

    def sysctlbyname(self, name, number, size, new, new_size):
        assert (size._obj.value, new, new_size.value) == (4, None, 0)
        known = name.decode().replace(".", "_")
        if known not in self.values:
            return -1
        number._obj.value = self.values[known]
        return 0


def test_macs():
    assert macos_cores(Sysctl(hw_physicalcpu=10, hw_perflevel0_physicalcpu=8)) == 8  # M1 Pro
    assert macos_cores(Sysctl(hw_physicalcpu=6)) == 6  # Intel
    assert macos_cores(Sysctl()) == 0


class GroupAffinity(ctypes.Structure):
    _fields_ = (("Mask", ctypes.c_uint64), ("Group", ctypes.c_uint16), ("Reserved", ctypes.c_uint16 * 3))


class Processor(ctypes.Structure):
    """SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX with a PROCESSOR_RELATIONSHIP, as winnt.h declares them."""

    _fields_ = (
        ("Relationship", ctypes.c_uint32),
        ("Size", ctypes.c_uint32),
        ("Flags", ctypes.c_uint8),
        ("EfficiencyClass", ctypes.c_uint8),
        ("Reserved", ctypes.c_uint8 * 20),
        ("GroupCount", ctypes.c_uint16),
        ("GroupMask", GroupAffinity * 1),
    )


class Kernel32:
    """GetLogicalProcessorInformationEx of a machine whose cores have these efficiency classes."""

    def __init__(self, *classes):
        size = ctypes.sizeof(Processor)
        self.records = b"".join(bytes(Processor(0, size, 0, each, GroupCount=1)) for each in classes)

    def GetLogicalProcessorInformationEx(self, relationship, buffer, size):  # noqa: N802 (Windows' name)
        assert relationship == 0
        fits = buffer is not None and size._obj.value >= len(self.records) > 0
        size._obj.value = len(self.records)
        if fits:
            ctypes.memmove(buffer, self.records, len(self.records))
        return int(fits)


def test_windows():
    assert ctypes.sizeof(Processor) == 48
    assert windows_cores(Kernel32(*[0] * 6)) == 6
    assert windows_cores(Kernel32(*[1] * 8, *[0] * 4)) == 8  # a hybrid processor
    assert windows_cores(Kernel32()) == 0


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("lscpu"), reason="needs Linux and lscpu")
def test_this_machine_as_lscpu_sees_it():
    listed = subprocess.run(["lscpu", "--parse=CPU,CORE,SOCKET"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(",") for line in listed.splitlines() if line[:1].isdigit()]
    cores = {(core, socket) for cpu, core, socket in rows if int(cpu) in os.sched_getaffinity(0)}
    assert 1 <= default_threads() <= max(1, len(cores))
