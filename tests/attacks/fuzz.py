"""Damaged files at random: python -m tests.attacks.fuzz --inputs 1000000 --seed 1

Each input is a file that this project reads, damaged in a few places. It must be read, or refused by a TritggufError of
one line, within 10 s of processor time and 1 GB of memory. Number and seed give an input again: --target NAME
--only NUMBER runs it here, with its traceback.

Each batch is a process of its own: what kills it is found by the number that it left behind. Needs Linux.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.attacks import fuzz_targets, fuzz_traps
from tests.attacks.fuzz_target import Target
from tritgguf.converter.errors import MAX_MESSAGE, TritggufError

CPU_SECONDS = 10.0
MEMORY_BYTES = 1 << 30
BATCH = 20_000
ALL = {**fuzz_targets.TARGETS, **fuzz_traps.TRAPS}
_MEMORY_DISK = Path("/dev/shm")  # writing an input takes longer than reading it, so not to a disk


@dataclass
class Report:
    """What became of some inputs of one target; `failures` are by place, each with one input's number."""

    inputs: int = 0
    refused: int = 0
    peak_mb: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    messages: dict[str, int] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        self.inputs += other.inputs
        self.refused += other.refused
        self.peak_mb = max(self.peak_mb, other.peak_mb)
        self.failures = {**other.failures, **self.failures}
        for message, count in other.messages.items():
            self.messages[message] = self.messages.get(message, 0) + count


def try_input(target: Target, seed: int, number: int) -> str | None:
    """Read one input; return its refusal, or None where it was accepted. What else is raised is a failure."""
    rng = random.Random(f"{seed} {target.name} {number}")
    target.damage(rng)
    try:
        target.read(rng)
    except TritggufError as error:
        message = str(error)
        if len(message.splitlines()) != 1 or len(message) > MAX_MESSAGE:
            lines = len(message.splitlines())
            raise AssertionError(f"{len(message)} characters in {lines} lines: {message!r:.90}") from error
        return message
    return None


def run_batch(name: str, seed: int, numbers: range, progress: Path, cpu_seconds: float) -> Report:
    """Read inputs in this process, and leave the number of each in the file `progress` before it is read."""
    report, kinds = Report(), collections.Counter[str]()
    disk = _MEMORY_DISK if _MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="tritgguf-fuzz-", dir=disk) as folder, progress.open("wb", 0) as left:
        target = ALL[name](Path(folder))
        faulthandler.register(signal.SIGPROF, chain=True)  # a traceback, then the end
        data_bytes = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes + MEMORY_BYTES, resource.RLIM_INFINITY))
        for number in numbers:
            os.pwrite(left.fileno(), number.to_bytes(8, "little"), 0)
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            report.inputs += 1
            try:
                message = try_input(target, seed, number)
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                report.failures.setdefault(_place(error), number)
            else:
                report.refused += message is not None
                kinds[_kind(message)] += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
    report.messages = dict(kinds)
    report.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return report


def _place(error: BaseException) -> str:
    """Return the error's type and the last line of this project that it passed."""
    cause = error.__cause__ if isinstance(error, AssertionError) and error.__cause__ else error
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if "site-packages" not in frame.filename]
    frame = frames[-1]
    return f"{type(error).__name__} at {'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}: {error!s:.150}"


def _kind(message: str | None) -> str:
    """Return a message's words without what differs from input to input."""
    return "accepted" if message is None else " ".join(word for word in message.split() if word.isalpha())[:80]


def batch_in_a_child(name: str, seed: int, start: int, stop: int, cpu_seconds: float = CPU_SECONDS) -> Report:
    """Run a batch in a process, and go on behind an input that ends it."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="tritgguf-fuzz-") as folder:
        progress = Path(folder) / "number"
        while start < stop:
            command = [sys.executable, "-m", "tests.attacks.fuzz", "--target", name, "--seed", str(seed)]
            command += ["--batch", str(start), str(stop), str(progress), str(cpu_seconds)]
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
            with (Path(folder) / "stderr").open("w+b") as errors:
                child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=errors, check=False)
                if child.returncode == 0:
                    report.add(Report(**json.loads(child.stdout)))
                    break
                errors.seek(max(0, os.fstat(errors.fileno()).st_size - 3000))
                printed = errors.read().decode("utf-8", "replace")
            if not progress.is_file():
                raise RuntimeError(f"{name}: the batch didn't begin:\n{printed}")
            number = int.from_bytes(progress.read_bytes(), "little")
            with suppress(ValueError):
                ended = signal.Signals(-child.returncode).name
                report.add(Report(number - start + 1, failures={f"ended by {ended}: {_last_frame(printed)}": number}))
                start = number + 1
                continue
            raise RuntimeError(f"{name}: exit code {child.returncode} at input {number}:\n{printed}")
    return report


def _last_frame(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    frame = next((line for line in lines if line.startswith("File ") and "site-packages" not in line), None)
    return frame or (lines[-1] if lines else "nothing printed")


def fuzz(names: list[str], seed: int, n_inputs: int, workers: int) -> dict[str, Report]:
    """Share `n_inputs` among the targets by their weights, and return what became of them."""
    targets = {name: fuzz_targets.TARGETS[name] for name in names}
    whole = sum(target.share for target in targets.values())
    reports = {name: Report() for name in names}
    with ThreadPoolExecutor(workers) as pool:
        pending = []
        for name, target in targets.items():
            count = -(-n_inputs * target.share // whole)
            for start in range(0, count, BATCH):
                stop = min(start + BATCH, count)
                pending.append((name, pool.submit(batch_in_a_child, name, seed, start, stop)))
        for name, batch in pending:
            reports[name].add(batch.result())
            print(f"{name}: {reports[name].inputs}", file=sys.stderr, flush=True)
    return reports


def print_table(reports: dict[str, Report]) -> None:
    print(f"{'target':12} {'inputs':>9} {'refused':>9} {'kinds':>6} {'peak MB':>8} {'failures':>9}")
    for name, report in reports.items():
        kinds, failed = len(report.messages), len(report.failures)
        print(f"{name:12} {report.inputs:9} {report.refused:9} {kinds:6} {report.peak_mb:8} {failed:9}")
    for name, report in reports.items():
        for place, number in report.failures.items():
            print(f"{name} --only {number}: {place}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--target", choices=ALL, metavar="NAME", help="this one only")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this input only, here, with its traceback")
    parser.add_argument("--batch", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch:
        start, stop, progress, cpu_seconds = arguments.batch
        numbers = range(int(start), int(stop))
        report = run_batch(arguments.target, arguments.seed, numbers, Path(progress), float(cpu_seconds))
        print(json.dumps(asdict(report)))
        return 0
    if arguments.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(try_input(ALL[arguments.target](Path(folder)), arguments.seed, arguments.only))
        return 0
    names = [arguments.target] if arguments.target else list(fuzz_targets.TARGETS)
    started = time.monotonic()
    reports = fuzz(names, arguments.seed, arguments.inputs, arguments.workers)
    print_table(reports)
    print(f"seed {arguments.seed}, {time.monotonic() - started:.0f} s with {arguments.workers} processes")
    return 1 if any(report.failures for report in reports.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
