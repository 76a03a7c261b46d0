"""Sources that another program writes to while they are read: an error, never other weights or a file left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import build
from tritgguf.converter import SourceError, convert, quantize
from tritgguf.converter.core.new_file import NewFile

COMMANDS = pytest.mark.parametrize("command", ["convert", "repack", "quantize"])


def spoil(command: str, folder: Path, change, *, before: bool = False) -> None:
    """Run the command, and change its source when the first weights have been written, or `before` any is read.

    Other threads read when weights have been written: a file that is cut off then may end the process by SIGBUS.
    """
    source = build("llama-gqa", folder / "model") / "model.safetensors"
    if command == "repack":
        source = convert(source.parent, folder / "source.gguf", "tq2_0", check=False).out

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "writing" and not before:
            change(source)

    def planned(_: object) -> None:
        if before:
            change(source)

    def run() -> None:
        if command == "quantize":
            quantize(source.parent, folder / "target" / "out", "bitnet", threads=1, progress=progress, planned=planned)
        else:
            model = source if command == "repack" else source.parent
            out = folder / "target" / "out.gguf"
            convert(model, out, "auto", check=False, threads=1, progress=progress, planned=planned)

    (folder / "target").mkdir()
    with pytest.raises(SourceError, match=f"{source.name} changed .*while it was read"):
        run()
    assert list((folder / "target").iterdir()) == []


@COMMANDS
def test_a_source_that_is_cut_off_meanwhile(command: str, tmp_path: Path) -> None:
    spoil(command, tmp_path, lambda source: os.truncate(source, 5000), before=True)


@COMMANDS
def test_a_source_that_is_written_again_meanwhile(command: str, tmp_path: Path) -> None:
    def change(source: Path) -> None:
        with source.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x01")
        os.utime(source, ns=(1, 1))

    spoil(command, tmp_path, change)


def test_a_source_that_is_replaced_or_removed_meanwhile_is_read_to_its_end(tmp_path: Path) -> None:
    model = build("llama-gqa", tmp_path / "model")
    expected = convert(model, tmp_path / "expected.gguf", check=False).out.read_bytes()

    def progress(stage: str, done: int, total: int) -> None:
        (model / "model.safetensors").unlink(missing_ok=True)

    out = convert(model, tmp_path / "out.gguf", check=False, progress=progress).out
    assert out.read_bytes() == expected


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="Windows doesn't let a mapped file be cut off")
def test_sigbus_leaves_nothing(tmp_path: Path) -> None:
    new = NewFile(tmp_path / "a")
    new.open()
    named = new.path.parent == tmp_path
    new.close()
    if named:
        pytest.skip("files here have names from the start; the next run removes them")
    source, out = tmp_path / "source", tmp_path / "target" / "out"
    source.write_bytes(bytes(1 << 20))
    out.parent.mkdir()
    code = (
        "import os, sys; from pathlib import Path; from collections import namedtuple\n"
        "from tritgguf.converter.core.system import mapped\n"
        "from tritgguf.converter.core.whole_files import whole_files\n"
        "content = namedtuple('Content', 'header file_bytes')(b'head', 1 << 20)\n"
        "data = mapped(Path(sys.argv[1]))\n"
        "with whole_files([Path(sys.argv[2])], [content]):\n"
        "    os.truncate(sys.argv[1], 0); data.sum()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    done = subprocess.run([sys.executable, "-c", code, source, out], capture_output=True, timeout=60, env=environment)
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert list(out.parent.iterdir()) == []
