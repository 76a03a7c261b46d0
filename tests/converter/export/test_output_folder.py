"""What quantize leaves alone, copies, resumes and restores."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tritgguf
from tests import checkpoints
from tests.attacks.damage import edit_config
from tests.pytorch_files import TINY
from tritgguf.converter import OutputError, quantize
from tritgguf.converter.core.new_file import temporary_name
from tritgguf.converter.export import output_folder
from tritgguf.converter.export.output_folder import STATE, whole_folder


class CutShortError(Exception):
    """Stands for a power cut in the middle."""


def start(source: Path, out: Path) -> None:
    """Begin a run with --resume that stops at the first byte written."""

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            raise CutShortError

    with pytest.raises(CutShortError):
        quantize(source, out, "absmean-g64", resume=True, progress=progress, threads=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_config_is_not_resumed(tmp_path: Path) -> None:
    source, out = checkpoints.build("llama-gqa", tmp_path / "model"), tmp_path / "out"
    start(source, out)
    edit_config(source, rms_norm_eps=1e-3)
    with pytest.raises(OutputError, match="started from another model, with other options or by another version"):
        quantize(source, out, "absmean-g64", resume=True)
    assert not out.exists()


def test_other_weights_in_a_pytorch_file_are_not_resumed(tmp_path: Path) -> None:
    source, out = checkpoints.build("tiny", tmp_path / "model", TINY), tmp_path / "out"
    (source / "model.safetensors").unlink()
    shutil.copytree(Path(__file__).parents[2] / "golden" / "pytorch" / "model", source, dirs_exist_ok=True)
    start(source, out)
    os.utime(source / "pytorch_model-00001-of-00002.bin", ns=(1, 1))
    with pytest.raises(OutputError, match="started from another model, with other options or by another version"):
        quantize(source, out, "absmean-g64", resume=True)


def test_another_version_of_the_program_is_not_resumed(tmp_path: Path, monkeypatch) -> None:
    source, out = checkpoints.build("llama-gqa", tmp_path / "model"), tmp_path / "out"
    start(source, out)
    monkeypatch.setattr(tritgguf, "__version__", "999")
    with pytest.raises(OutputError, match="another version of tritgguf"):
        quantize(source, out, "absmean-g64", resume=True)


def test_a_folder_that_another_run_resumes_is_left_to_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    second = whole_folder(out, {}, resume=True)
    with whole_folder(out, {}, resume=True), pytest.raises(OutputError, match="another run is writing"):
        second.__enter__()
    assert out.is_dir()


def test_a_second_renaming_that_fails_restores_the_old_folder(model, tmp_path: Path, monkeypatch) -> None:
    """Where a system can't exchange two folders, and the disk fails after the old one is moved aside."""
    out = quantize(model("llama-gqa"), tmp_path / "out", "bitnet", threads=1).out
    before, rename = contents(out), os.rename

    def failing(source: object, target: object) -> None:
        if str(target) == str(out) and str(source).endswith(".part"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(output_folder, "exchange", lambda *_: False, raising=False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OutputError, match="can't be written: Input/output error"):
        quantize(model("llama-gqa"), out, "bitnet", force=True, threads=1)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_new_folder_that_vanishes_leaves_the_old_one(model, tmp_path: Path) -> None:
    out = quantize(model("llama-gqa"), tmp_path / "out", "bitnet", threads=1).out
    before = contents(out)
    with pytest.raises(OutputError, match="can't be written"), whole_folder(out, {}, resume=False, force=True) as new:
        shutil.rmtree(new)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = whole_folder(out, {}, resume=False)
    folder.__enter__()
    out.mkdir()
    (out / "a.txt").write_text("a")
    with pytest.raises(OutputError, match="exists already"):
        folder.__exit__(None, None, None)
    assert contents(out) == {"a.txt": b"a"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_appears_meanwhile_is_kept_with_force(model, tmp_path: Path) -> None:
    out = quantize(model("llama-gqa"), tmp_path / "out", "bitnet", threads=1).out
    before = contents(out)
    with pytest.raises(OutputError, match=r"also holds a\.txt"), whole_folder(out, {}, resume=False, force=True):
        (out / "a.txt").write_text("a")
    assert contents(out) == {**before, "a.txt": b"a"}


def test_a_link_to_a_folder_is_not_replaced(model, tmp_path: Path) -> None:
    out = quantize(model("llama-gqa"), tmp_path / "out", "bitnet", threads=1).out
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(OutputError, match="is a link"):
        quantize(model("llama-gqa"), tmp_path / "link", "bitnet", force=True)
    assert (out / "config.json").is_file()


def test_a_run_that_was_killed_as_it_began_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    """Where files need names, its state has a temporary one until it is written."""
    begun = temporary_name(tmp_path / "out")
    begun.mkdir()
    temporary_name(begun / STATE).write_text('{"half": ')
    with whole_folder(tmp_path / "out", {}, resume=False) as folder:
        (folder / "config.json").write_text("{}")
    assert not begun.exists()


def test_what_a_killed_run_left_is_removed_but_not_what_a_living_one_writes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    dead, foreign, user = temporary_name(out), temporary_name(out), tmp_path / "out.mine.part"
    for folder in (dead, foreign, user):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    (dead / STATE).write_text("{}")
    (foreign / "diary.txt").write_text("mine")
    code = (
        "import sys, tritgguf.converter.export.output_folder as f, pathlib\n"
        "with f.whole_folder(pathlib.Path(sys.argv[1]), {}, resume=False) as folder:\n"
        "    print(folder, flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code, str(out)], stdin=pipe, stdout=pipe, text=True)
    try:
        assert child.stdout is not None
        living = Path(child.stdout.readline().strip())
        with pytest.raises(CutShortError), whole_folder(out, {}, resume=False):
            raise CutShortError
        assert living.is_dir()
        assert not dead.exists()
        assert contents(foreign) == {"diary.txt": b"mine"}
        assert contents(user) == {"model.safetensors": b"half"}
    finally:
        child.communicate("", timeout=60)
    assert child.returncode == 0
    assert out.is_dir()


def test_the_code_that_auto_map_names_is_copied_with_what_it_imports(tmp_path: Path) -> None:
    source = checkpoints.build("llama-gqa", tmp_path / "model")
    edit_config(source, auto_map={"AutoConfig": "special.SpecialConfig", "AutoModel": "other/repo--far.Model"})
    tokenizer = json.loads((source / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["words.Words", None]}
    (source / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (source / "special.py").write_text("from .parts import a\nimport .more\nraise SystemExit('this must not run')\n")
    for name in ("parts", "more", "words", "tokenization_x", "far", "train"):
        (source / f"{name}.py").write_text(f"# {name}\n")
    out = quantize(source, tmp_path / "out", "bitnet", threads=1).out
    copied = {path.name: path.read_bytes() for path in out.glob("*.py")}
    names = ("special", "parts", "more", "words", "tokenization_x")
    assert copied == {f"{name}.py": (source / f"{name}.py").read_bytes() for name in names}
    quantize(source, out, "bitnet", force=True, threads=1)  # all of that counts as the model's
    (out / "train.py").write_text("mine")
    with pytest.raises(OutputError, match=r"also holds train\.py"):
        quantize(source, out, "bitnet", force=True)


def test_links_of_the_hub_cache_are_copied_as_files(tmp_path: Path) -> None:
    source = checkpoints.build("llama-gqa", tmp_path / "model")
    (tmp_path / "blob").write_text("# x\n")
    (source / "tokenization_x.py").symlink_to(tmp_path / "blob")
    copied = quantize(source, tmp_path / "out", "bitnet", threads=1).out / "tokenization_x.py"
    assert not copied.is_symlink()
    assert copied.read_text() == "# x\n"
