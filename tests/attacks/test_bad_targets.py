"""Targets that can't be written, full disks, Ctrl-C: nothing half-written, nothing lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.attacks.damage import assert_one_error_line, edit_config, join_header, poison, split_header
from tests.checkpoints import build
from tests.command_line import run


def test_an_existing_target_is_kept_without_force_and_replaced_with_it(tmp_path, monkeypatch, capsys) -> None:
    model, out = build("llama-gqa", tmp_path / "model"), tmp_path / "out.gguf"
    out.write_text("precious")
    assert run(monkeypatch, "convert", model, out) == 1
    assert_one_error_line(capsys, "exists already; add --force")
    assert out.read_text() == "precious"
    assert run(monkeypatch, "convert", model, out, "--force") == 0
    assert out.read_bytes()[:4] == b"GGUF"


def test_a_failed_replacement_keeps_the_old_file(tmp_path, monkeypatch, capsys) -> None:
    model, out = build("llama-gqa", tmp_path / "model"), tmp_path / "out.gguf"
    out.write_text("precious")
    poison(model, "model.layers.1.mlp.down_proj.weight", float("nan"))
    assert run(monkeypatch, "convert", model, out, "--force") == 1
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.gguf"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [("missing/out.gguf", "is no folder"), (".", "is a folder; expected the name of the file")],
)
def test_targets_that_cannot_be(target, expected, tmp_path, monkeypatch, capsys) -> None:
    model = build("llama-gqa", tmp_path / "model")
    assert run(monkeypatch, "convert", model, tmp_path / target) == 1
    assert_one_error_line(capsys, expected)


def test_a_target_folder_without_write_permission(tmp_path, monkeypatch, capsys) -> None:
    model, target = build("llama-gqa", tmp_path / "model"), tmp_path / "target"
    target.mkdir()
    if os.geteuid() == 0:  # root may write anywhere but here
        out = Path("/proc/out.gguf")
    else:
        target.chmod(0o500)
        out = target / "out.gguf"
    assert run(monkeypatch, "convert", model, out) == 1
    assert_one_error_line(capsys, "isn't writable|can't be written|free, but")


def test_a_full_disk(tmp_path) -> None:
    """The size limit of a process stands in for a disk that fills up while writing."""
    model, out = build("llama-gqa", tmp_path / "model"), tmp_path / "target" / "out.gguf"
    out.parent.mkdir()
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
    code = limit + "import sys; from tritgguf.runtime.cli.main import main; main()"
    command = [sys.executable, "-c", code, "convert", str(model), str(out), "--no-check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1, done.stderr
    assert "can't be written: File too large" in errors[0]
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["Ctrl-C", "SIGTERM", "SIGHUP"])
@pytest.mark.usefixtures("unmeasured")
def test_stopping_in_the_middle_leaves_nothing(number: signal.Signals, tmp_path) -> None:
    """Stop a real conversion once its file is open; the weights are large enough to take a while."""
    model, out = build("llama-gqa", tmp_path / "model"), tmp_path / "target" / "out.gguf"
    out.parent.mkdir()
    enlarge_vocabulary(model, 400_000)
    options = ["--no-check", "--threads", "1"]
    # Started by nohup, the tests ignore SIGHUP, and so would the program: it begins as a terminal starts it.
    handler = "default_int_handler" if number == signal.SIGINT else "SIG_DFL"
    heeds = f"import signal; signal.signal({int(number)}, signal.{handler})"
    code = f"{heeds}; from tritgguf.runtime.cli.main import main; main()"
    command = [sys.executable, "-c", code, "convert", str(model), str(out), *options]
    while True:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not is_writing(process.pid, out.parent) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        if process.returncode != 0:
            break
        out.unlink()  # this process was away for too long, and the conversion over: once more
    assert process.returncode == 128 + number
    printed = [line for line in errors.splitlines() if not line.startswith("note: ")]
    assert printed == ([f"error: interrupted; {out} was not written"] if number == signal.SIGINT else [])
    assert list(out.parent.iterdir()) == []


def is_writing(process: int, folder: Path) -> bool:
    """Whether the process has a file of the folder open, with or without a name, or one is there."""
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            if str(descriptor.readlink()).startswith(f"{folder}/"):
                return True
    return bool(list(folder.iterdir()))


def enlarge_vocabulary(folder: Path, vocab_size: int) -> None:
    """Give a checkpoint large embeddings of zeros, as a sparse file."""
    header, body = split_header(folder / "model.safetensors")
    data, entries = b"", {}
    for name, entry in header.items():
        if name == "__metadata__" or name in ("model.embed_tokens.weight", "lm_head.weight"):
            continue
        start, stop = entry["data_offsets"]
        entries[name] = {**entry, "data_offsets": [len(data), len(data) + stop - start]}
        data += body[start:stop]
    end = len(data)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in header:
            size = vocab_size * 256 * 2
            entries[name] = {"dtype": "BF16", "shape": [vocab_size, 256], "data_offsets": [end, end + size]}
            end += size
    join_header(folder / "model.safetensors", entries, data)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + end - len(data))
    edit_config(folder, vocab_size=vocab_size)
