"""Run a command and say how long it took and how much memory of its own it had; describe the machine. Linux only."""

from __future__ import annotations

import contextlib
import importlib.metadata
import mmap
import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.004
JUST_USED_BYTES = 3 << 30


@dataclass(frozen=True)
class Run:
    """One run of a command: wall-clock and processor seconds, and the most anonymous memory it held, in MB.

    `first_byte_seconds` is when the file that it writes first held anything, where that file's name was given.
    """

    seconds: float
    cpu_seconds: float
    anonymous_mb: float
    first_byte_seconds: float | None = None

    def as_json(self) -> dict[str, float]:
        return {key: round(value, 3) for key, value in asdict(self).items() if value is not None}


def run(command: Sequence[object], out: Path | None = None) -> Run:
    """Run a command that writes `out` to its end; RuntimeError with what it printed if it fails."""
    before, started = os.times(), time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watched = _Watched()
    watcher = threading.Thread(target=_watch, args=(child, watched, out), daemon=True)
    watcher.start()
    printed, _ = child.communicate()
    seconds, after = time.perf_counter() - started, os.times()
    watcher.join()
    if child.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {child.returncode}: {printed[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    first_byte = watched.first_byte - started if watched.first_byte else None
    return Run(seconds, cpu, watched.anonymous_kb / 1000, first_byte)


@dataclass
class _Watched:
    anonymous_kb: int = 0
    first_byte: float = 0.0


def _watch(child: subprocess.Popen[str], watched: _Watched, out: Path | None) -> None:
    """Keep the largest RssAnon of the process and its children, in kB, and when its output began."""
    while child.poll() is None:
        watched.anonymous_kb = max(watched.anonymous_kb, sum(_anonymous_kb(pid) for pid in _family(child.pid)))
        if out is not None and not watched.first_byte and any(out.parent.glob(f"{out.name}*")):
            watched.first_byte = time.perf_counter()
        time.sleep(POLL_SECONDS)


def _family(pid: int) -> list[int]:
    """Return a process and the children that its threads have started."""
    found = [pid]
    with contextlib.suppress(OSError):  # it has ended
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, path.read_text().split())
    return found


def _anonymous_kb(pid: int) -> int:
    try:
        found = re.search(r"^RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:  # it has ended
        return 0
    return int(found[1]) if found else 0


def settle(n_bytes: int = JUST_USED_BYTES) -> None:
    """Let each run begin alike: earlier deletions are on the disk, and `n_bytes` of memory were just in use.

    A virtual machine's host takes back memory that is free for seconds; to be given it again takes 0.5 s per GB.
    """
    os.sync()
    with mmap.mmap(-1, n_bytes) as memory:
        for start in range(0, n_bytes, mmap.PAGESIZE):
            memory[start] = 1


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Let the system forget files that it has in its cache, as far as it does what it is told."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    flags = re.search(r"^flags\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    wanted = ("avx2", "avx512f", "avx512bw")
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "vector_extensions": [name for name in wanted if flags and name in flags[1].split()],
        "memory_gb": round(int(memory[1]) / 1e6, 1) if memory else None,
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: importlib.metadata.version(name) for name in ("llama-cpp-python", "numpy")},
    }
