"""Files that get their names when they are complete: nothing is overwritten, left behind or taken from another run."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from tritgguf.converter import OutputError
from tritgguf.converter.core.new_file import NewFile, temporary_name
from tritgguf.converter.core.whole_files import write_whole

# Without os.O_TMPFILE, as on macOS or a file system that lacks it, a file has a temporary name from the start.
WAYS = pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])


@pytest.fixture
def way(named: bool, monkeypatch) -> bool:
    if named:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    return named


@WAYS
def test_a_target_that_appears_meanwhile_is_kept(way, tmp_path: Path) -> None:
    target = tmp_path / "a"
    new = NewFile(target)
    new.open()
    new.file.write(b"new")
    target.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        new.publish(replace=False)
    new.close()
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


@WAYS
def test_replacing_is_one_step_and_leaves_nothing(way, tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")
    write_whole(target, b"new", force=True)
    assert target.read_bytes() == b"new"
    with pytest.raises(OutputError, match="add --force"):
        write_whole(target, b"newer")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@WAYS
def test_what_is_written_can_be_opened_before_it_has_its_name(way, tmp_path: Path) -> None:
    new = NewFile(tmp_path / "a")
    new.open()
    new.file.write(b"half")
    code = "import sys; print(open(sys.argv[1]).read())"
    done = subprocess.run([sys.executable, "-c", code, new.path], capture_output=True, text=True, timeout=60)
    new.close()
    assert done.stdout == "half\n", done.stderr
    assert list(tmp_path.iterdir()) == []


@WAYS
def test_a_new_file_has_the_permissions_that_open_gives(way, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_only_what_dead_processes_left_of_the_same_target_is_removed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    target = tmp_path / "a"
    dead, other = temporary_name(target), temporary_name(tmp_path / "b")
    kept = {other, tmp_path / "a.part", tmp_path / "a.1234.part", tmp_path / f"{dead.name}.txt", tmp_path / "link.part"}
    for path in (dead, *kept):
        path.write_text("half")
    link = temporary_name(target)
    link.symlink_to(tmp_path / "link.part")
    code = (
        "import os, sys, pathlib; vars(os).pop('O_TMPFILE', None)\n"
        "from tritgguf.converter.core.new_file import NewFile\n"
        "new = NewFile(pathlib.Path(sys.argv[1])); new.open(); print(new.path, flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code, target], stdin=pipe, stdout=pipe, text=True)
    try:
        assert child.stdout is not None
        living = Path(child.stdout.readline().strip())
        write_whole(target, b"whole")
        assert set(tmp_path.iterdir()) == {*kept, link, living, target}
    finally:
        child.kill()
        child.communicate(timeout=60)
    write_whole(target, b"again", force=True)
    assert set(tmp_path.iterdir()) == {*kept, link, target}


def test_a_file_system_without_hard_links_keeps_what_appears_meanwhile(tmp_path: Path, monkeypatch) -> None:
    """As exFAT on macOS: neither unnamed files nor links."""

    def link(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", link)
    write_whole(tmp_path / "a", b"first")
    new = NewFile(tmp_path / "b")
    new.open()
    (tmp_path / "b").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        new.publish(replace=False)
    new.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b").read_bytes() == b"precious"


@WAYS
@pytest.mark.parametrize("force", [False, True], ids=["new", "replaced"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a file that was opened and has no object yet
def test_a_signal_at_any_moment_leaves_nothing_half_written(way, force: bool, tmp_path: Path, monkeypatch) -> None:
    """A signal's handler runs where a function begins and where a call of native code has returned."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # the moment may be in a destructor
    for number in itertools.count(1):
        target = tmp_path / str(number) / "out"
        target.parent.mkdir()
        if force:
            target.write_bytes(b"old")
        if not is_interrupted(number, functools.partial(write_whole, target, b"new", force=force)):
            break
        left = {path: path.read_bytes() for path in target.parent.iterdir()}
        assert left in ([{target: b"old"}, {target: b"new"}] if force else [{}, {target: b"new"}])
    gc.collect()  # while the warnings are ignored
    assert number > 30
    assert target.read_bytes() == b"new"


def is_interrupted(number: int, action: Callable[[], None]) -> bool:
    """Call `action`, interrupted as by Ctrl-C at the moment of that number; return whether it came to that moment."""
    moments = itertools.count(1)
    interrupted = False

    def interrupt(_: FrameType, event: str, __: object) -> None:
        nonlocal interrupted
        if event in ("call", "c_return") and next(moments) == number:
            sys.setprofile(None)
            interrupted = True
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        sys.setprofile(interrupt)
        action()
        sys.setprofile(None)
    return interrupted
