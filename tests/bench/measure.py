"""Run a command and say how long it took and how much memory of its own it had; describe the machine. Linux only."""

from __future__ import annotations

import importlib.metadata
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


@dataclass(frozen=True)
class Run:
    """One run of a command: wall-clock seconds, processor seconds, and the most anonymous memory it held, in MB."""

    seconds: float
    cpu_seconds: float
    anonymous_mb: float

    def as_json(self) -> dict[str, float]:
        return {key: round(value, 3) for key, value in asdict(self).items()}


def run(command: Sequence[object], **variables: str) -> Run:
    """Run a command to its end; RuntimeError with what it printed if it fails."""
    before, started = os.times(), time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(child, peak), daemon=True)
    watcher.start()
    printed, _ = child.communicate()
    seconds, after = time.perf_counter() - started, os.times()
    watcher.join()
    if child.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {child.returncode}: {printed[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, cpu, peak[0] / 1000)


def _watch(child: subprocess.Popen[str], peak: list[int]) -> None:
    """Keep the largest RssAnon of the process, in kB; children of its own aren't counted."""
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        try:
            found = re.search(r"^RssAnon:\s+(\d+)", status.read_text(), re.M)
        except OSError:
            return
        if found:
            peak[0] = max(peak[0], int(found[1]))
        time.sleep(POLL_SECONDS)


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
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: importlib.metadata.version(name) for name in ("llama-cpp-python", "numpy")},
    }
