"""Runs that are killed at any point, and runs at once: nothing lost, no half file, nothing made twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.paths import ROOT
from tritgguf.runtime.hub.cache import Cache, Entry

Say = Callable[..., tuple[int, str, str]]
SECONDS = 300  # ends what hangs

pytestmark = [pytest.mark.usefixtures("unmeasured"), pytest.mark.skipif(sys.platform == "win32", reason="signals")]


@contextmanager
def started(point: str, action: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start `tritgguf ARGUMENTS` in a child process that stops at a point; kill it at the end."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "tests.runtime.hub.cache.stopped", point, action, *map(str, arguments)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as child:
        try:
            yield child
        finally:
            child.kill()


def ended(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, errors = child.communicate(timeout=SECONDS)
    return child.returncode, said, errors


def only(cache: Cache) -> Entry:
    (entry,) = cache.entries()
    return entry


def files(cache: Cache) -> list[str]:
    """The names of the files in the cache but for locks and times of use."""
    return sorted(path.name for path in cache.folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize(
    ("point", "action", "converted"),
    [
        ("writing", "named-SIGKILL", False),
        ("writing", "SIGTERM", False),
        ("published", "SIGKILL", True),
        ("recorded", "SIGKILL", True),
    ],
)
def test_a_run_that_is_killed(say: Say, cache: Cache, demo: Path, point: str, action: str, converted: bool) -> None:
    number = signal.Signals[action.removeprefix("named-")]
    with started(point, action, "pull", demo) as child:
        code, said, errors = ended(child)
    assert (code, said, errors) == (143 if number == signal.SIGTERM else -number, "", "")
    made = {path.name: path.stat().st_ino for path in cache.folder.rglob("*.gguf")}
    assert len(made) == int(converted)
    if point != "recorded":
        assert cache.entries() == []
    if number == signal.SIGTERM:
        assert files(cache) == []
    code, said, errors = say("pull", demo)
    assert (code, errors) == (0, "")
    entry = only(cache)
    assert files(cache) == sorted([entry.paths[0].name, "record.json"])
    if converted:
        assert made == {entry.paths[0].name: entry.paths[0].stat().st_ino}
    assert say("show", demo, "--check")[0] == 0


def test_a_quiet_run_that_is_interrupted_says_so(demo: Path) -> None:
    with started("writing", "SIGINT", "pull", demo, "--quiet") as child:
        stopped = f"error: interrupted; {demo} isn't ready yet: the next run goes on with what was fetched\n"
        assert ended(child) == (130, "", stopped)


def test_a_file_that_is_replaced_stays_until_the_new_one_is_recorded(say: Say, cache: Cache, had: Path) -> None:
    before = only(cache)
    for point in ("planned", "recording"):
        with started(point, "SIGKILL", "pull", had, "--force") as child:
            assert ended(child)[0] == -signal.SIGKILL
        assert only(cache).record == before.record
        assert only(cache).damage() is None
    assert say("show", had, "--check")[0] == 0
    assert say("pull", had, "--force")[0] == 0
    assert files(cache) == sorted([only(cache).paths[0].name, "record.json"])


def test_two_runs_at_once_share_one_conversion(cache: Cache, demo: Path) -> None:
    with started("writing", "wait", "pull", demo) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "here\n"
        with started("writing", "SIGKILL", "pull", demo) as second:  # it would die if it converted
            assert second.stderr is not None
            assert second.stderr.readline() == f"waiting for another tritgguf that is getting {demo}\n"
            code, said, errors = ended(first)
            assert (code, errors) == (0, "")
            code, again, errors = ended(second)
            assert (code, errors) == (0, "")
            assert again.split(": ")[1:] == said.split(": ")[1:]
    assert len(files(cache)) == 2


def test_those_that_wait_can_be_stopped_and_go_on_when_the_other_is_killed(say: Say, cache: Cache, demo: Path) -> None:
    with started("writing", "wait", "pull", demo) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "here\n"
        assert say("list")[1].startswith("No models in")  # who only reads doesn't wait
        with started("nowhere", "", "pull", demo) as second, started("nowhere", "", "pull", demo) as third:
            for child in (second, third):
                assert child.stderr is not None
                assert child.stderr.readline() == f"waiting for another tritgguf that is getting {demo}\n"
            second.send_signal(signal.SIGINT)
            stopped = f"error: interrupted; {demo} isn't ready yet: the next run goes on with what was fetched\n"
            assert ended(second) == (130, "", stopped)
            first.kill()
            code, said, errors = ended(third)
            assert (code, errors) == (0, "")
            assert said.startswith(f"{demo}: tq1_0, ")
    assert files(cache) == sorted([only(cache).paths[0].name, "record.json"])
