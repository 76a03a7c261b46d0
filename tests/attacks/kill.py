"""Stop convert, quantize and ollama at random points, and fill their disk; list what is left over.

    python -m tests.attacks.kill --points 50 --seed 1

Each run is a fork of this process, so that the points fall on the work and not on Python's imports. The signal comes
after a random part of the time that an undisturbed run takes. `named` runs work as on systems without O_TMPFILE. Each
run of SIGKILL is followed by an undisturbed one, which has to remove what was left. The exit code is 1 if anything is
left over that should not be.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import hashlib
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.attacks.test_bad_targets import enlarge_vocabulary
from tests.checkpoints import build
from tritgguf.runtime.cli.main import main as tritgguf

HANG = 240  # seconds
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL")
COMMANDS = ("convert", "quantize", "ollama")
NOTHING, SOME, WHOLE, PARTIAL = "nothing", "whole files of the result", "the whole result", "temporary files"
NO_DISK = "the disk can't be mounted"


@dataclass
class Scene:
    """A command, the folder that it writes to and what that holds before and after an undisturbed run."""

    command: str
    source: Path
    place: Path
    named: bool
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def clear(self) -> None:
        """Make the folder what it is before a run."""
        shutil.rmtree(self.place, ignore_errors=True)
        for folder in (self.target, self.temporary):
            folder.mkdir(parents=True)
        if self.command == "ollama":
            (self.target / "m.gguf").symlink_to(self.source)

    @property
    def target(self) -> Path:
        return self.place / "target"

    @property
    def temporary(self) -> Path:
        """Where the run's temporary files go."""
        return self.place / "tmp"

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.place.parent / "log"

    def arguments(self, force: bool) -> list[str]:
        """Return the command line."""
        again = ["--force"] if force else []
        if self.command == "ollama":
            return ["ollama", str(self.target / "m.gguf"), "m", "--no-ask", "--force"]
        if self.command == "quantize":
            scheme = ["--scheme", "absmean-g64", "--threads", "1"]
            return ["quantize", str(self.source), str(self.target / "out"), *scheme, *again]
        return ["convert", str(self.source), str(self.target / "out.gguf"), "--threads", "1", *again]

    def start(
        self, prepare: Callable[[], None] | None = None, after: Callable[[], None] | None = None, force: bool = False
    ) -> int:
        """Start a run and return its process number, which is also that of its process group."""
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
            os.environ["TMPDIR"] = tempfile.tempdir = str(self.temporary)
            if self.named:
                vars(os).pop("O_TMPFILE", None)
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            faulthandler.dump_traceback_later(HANG - 10)
            if prepare:
                prepare()
            sys.argv = ["tritgguf", *self.arguments(force)]
            try:
                tritgguf()
            except SystemExit as stopped:
                code = int(stopped.code or 0)
            if after:
                after()
        finally:
            os._exit(code)

    def contents(self) -> dict[str, str]:
        """Return the digests of the files under the folder by their names."""
        return {
            str(path.relative_to(self.place)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.place.rglob("*")
            if path.is_file()
        }

    def left_over(self) -> str:
        """Name what the run left: nothing, the whole result, temporary files, or what shouldn't be there."""
        found = self.contents()
        new = {name: digest for name, digest in found.items() if self.before.get(name) != digest}
        if any(found.get(name) != digest for name, digest in self.before.items()):
            return "LOST: " + ", ".join(sorted(name for name in self.before if name not in found))
        if not new:
            return NOTHING
        if all(self.after.get(name) == digest for name, digest in new.items()):
            return WHOLE if len(new) == len(self.after) - len(self.before) else SOME
        others = sorted(name for name, digest in new.items() if self.after.get(name) != digest)
        if all(".part" in name or name.startswith("tmp/") for name in others):
            return PARTIAL
        return "HALF: " + ", ".join(others)


def wait(process: int) -> int:
    """Return the exit code of a run, as the shell gives it, when all of its processes have ended."""
    deadline = time.monotonic() + HANG
    code: int | None = None
    while time.monotonic() < deadline:
        try:
            ended, status = os.waitpid(process if code is None else -process, os.WNOHANG)
        except ChildProcessError:
            assert code is not None
            return 128 - code if code < 0 else code
        if ended == process:
            code = os.waitstatus_to_exitcode(status)
        elif not ended:
            time.sleep(0.002)
    if code is not None:
        raise TimeoutError(f"a process that a run started didn't end within {HANG} s")
    os.kill(process, signal.SIGKILL)
    raise TimeoutError(f"a run took more than {HANG} s")


@contextlib.contextmanager
def scene(command: str, place: Path, vocabulary: int, named: bool) -> Iterator[Scene]:
    """Build the source, run the command undisturbed, and yield what to stop."""
    source = build("llama-gqa", place / "model")
    enlarge_vocabulary(source, vocabulary)
    with contextlib.ExitStack() as stack:
        if command == "ollama":
            words = ["convert", str(source), str(place / "m.gguf"), "--type", "tq2_0", "--no-check"]
            made = subprocess.run([sys.executable, "-m", "tritgguf", *words], capture_output=True, timeout=HANG)
            assert made.returncode == 0, made.stderr
            source = place / "m.gguf"
            os.environ["OLLAMA_HOST"] = stack.enter_context(server())
        stage = Scene(command, source, place / "run", named)
        stage.clear()
        stage.before = stage.contents()
        for _ in range(2):  # the first one loads what later ones find loaded
            stage.clear()
            begun = time.monotonic()
            assert wait(stage.start()) == 0, f"{command} fails undisturbed"
            stage.seconds = time.monotonic() - begun
        stage.after = stage.contents()
        yield stage


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Serve Ollama's API in another process, since a fork of this one should have one thread; yield the address."""
    code = (
        "import sys; from tests.ollama_server import ollama_server\n"
        "with ollama_server() as state: print(state.address, flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.communicate("", timeout=HANG)


def stop(stage: Scene, number: signal.Signals, delay: float) -> tuple[int, str]:
    """Run the command and send it a signal; return its exit code and what it left."""
    stage.clear()
    process = stage.start()
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
    return wait(process), stage.left_over()


def fill(stage: Scene, disk_bytes: int, delay: float | None) -> tuple[int, str]:
    """Run the command on a disk of that size, which something else fills after `delay` seconds; return as `stop` does.

    The result is NO_DISK where a process can't mount a disk of its own.
    """
    stage.clear()
    report = stage.place / "report"

    def prepare() -> None:
        os.environ["TMPDIR"] = str(stage.temporary)
        mount(stage.target, disk_bytes)
        if stage.command == "ollama":
            (stage.target / "m.gguf").symlink_to(stage.source)
        if delay is not None and os.fork() == 0:
            time.sleep(delay)
            with contextlib.suppress(OSError), (stage.target / "filler").open("wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
            os._exit(0)

    def look() -> None:
        (stage.target / "filler").unlink(missing_ok=True)
        report.write_text(stage.left_over())

    code = wait(stage.start(prepare, look))
    return code, report.read_text() if report.exists() else NO_DISK


def mount(folder: Path, disk_bytes: int) -> None:
    """Mount a disk in memory that only this process and its children see; raise OSError if that isn't allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, new_user, private, recursive = 0x20000, 0x10000000, 1 << 18, 1 << 14  # sched.h, sys/mount.h
    flags = new_namespace if os.geteuid() == 0 else new_namespace | new_user
    options = f"size={disk_bytes}".encode()
    if (
        libc.unshare(flags)
        or libc.mount(b"none", b"/", None, ctypes.c_ulong(private | recursive), None)
        or libc.mount(b"none", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(0), options)
    ):
        raise OSError(ctypes.get_errno(), "no disk can be mounted")


Row = tuple[str, str, str, int, Counter[str], Counter[int]]


def kill_rows(stage: Scene, points: int, chance: random.Random) -> Iterator[Row]:
    """Stop the command with each signal at random points."""
    way = "named" if stage.named else "unnamed"
    for name in SIGNALS:
        number = signal.Signals[name]
        left: Counter[str] = Counter()
        next_left: Counter[str] = Counter()
        codes: Counter[int] = Counter()
        for _ in range(points):
            code, what = stop(stage, number, chance.uniform(0, 1.05 * stage.seconds))
            left[what] += 1
            codes[code] += 1
            if number == signal.SIGKILL:
                again = wait(stage.start(force=True))
                next_left[stage.left_over() if again == 0 else f"FAILED: exit code {again}"] += 1
        yield stage.command, way, name, points, left, codes
        if next_left:
            yield stage.command, way, "the run after SIGKILL", points, next_left, Counter()


def disk_rows(stage: Scene, points: int, chance: random.Random) -> Iterator[Row]:
    """Run the command on disks of random sizes, and on large ones that fill up at a random point."""
    way = "named" if stage.named else "unnamed"
    needed = sum((stage.place / name).stat().st_size for name in stage.after if name not in stage.before)
    for filled in (False, True):
        left: Counter[str] = Counter()
        codes: Counter[int] = Counter()
        for _ in range(points):
            size = needed * 3 if filled else chance.randrange(1, needed)
            code, what = fill(stage, size, chance.uniform(0, stage.seconds) if filled else None)
            left[what] += 1
            codes[code] += 1
        yield stage.command, way, "disk fills up" if filled else "disk too small", points, left, codes


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| command | unfinished files | stopped by | points | left over | exit codes |",
        "|---|---|---|---|---|---|",
    ]
    for command, way, by, points, left, codes in rows:
        listed = ", ".join(f"{count} × {what}" for what, count in left.most_common())
        ended = ", ".join(f"{count} × {code}" for code, count in sorted(codes.items()))
        lines.append(f"| {command} | {way} | {by} | {points} | {listed} | {ended} |")
    return "\n".join(lines)


def faults(rows: list[Row]) -> list[str]:
    """Return what is left over in `rows` that should not be."""
    found = []
    for command, way, by, _, left, _ in rows:
        allowed = {NOTHING, WHOLE, SOME, NO_DISK} | ({PARTIAL} if by == "SIGKILL" else set())
        if by == "the run after SIGKILL":
            allowed = {WHOLE}
        found += [f"{command}, {way}, {by}: {what}" for what in left if what not in allowed]
    return found


def main() -> int:
    """Print the table; return 1 if anything is left over that should not be."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and the commands would inherit that
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50, help="points per command and signal")
    parser.add_argument("--disks", type=int, default=20, help="points per command of each kind of full disk")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=60_000, help="tokens of the model, of 1 kB each")
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS)
    parser.add_argument("--ways", nargs="+", default=("unnamed", "named"), choices=("unnamed", "named"))
    options = parser.parse_args()
    for module in ("tritgguf.converter.conversion.pipeline", "tritgguf.runtime.ollama.publish"):
        importlib.import_module(module)
    # Children of a killed run become this process's, which can then wait for them: prctl(2).
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    rows: list[Row] = []
    begun = time.monotonic()
    for command in options.commands:
        for way in options.ways:
            chance = random.Random(f"{options.seed}/{command}/{way}")
            with contextlib.ExitStack() as stack:
                place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritgguf-kill-")))
                stage = stack.enter_context(scene(command, place, options.vocabulary, way == "named"))
                print(f"{command}, {way}: {stage.seconds:.2f} s undisturbed", file=sys.stderr, flush=True)
                try:
                    rows += kill_rows(stage, options.points, chance) if options.points else []
                    rows += disk_rows(stage, options.disks, chance) if options.disks else []
                except TimeoutError:
                    print(stage.log.read_text(), file=sys.stderr)
                    raise
    print(table(rows))
    print(f"\nSeed {options.seed}, {time.monotonic() - begun:.0f} s.")
    wrong = faults(rows)
    print(*wrong, sep="\n", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
