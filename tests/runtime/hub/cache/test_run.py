"""`run`, and the commands of the cache, on models of this disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tritgguf.runtime
from tests import bitnet_model
from tests.checkpoints import build
from tests.runtime.hub.cache.refusal import assert_one_error_line
from tritgguf.converter import convert
from tritgguf.converter.planning.targets import slow_here
from tritgguf.converter.verification.verification import verify
from tritgguf.runtime.engine import backend
from tritgguf.runtime.hub.cache import Cache, Entry, cache_folder

Say = Callable[..., tuple[int, str, str]]
ASK = ("--prompt", "Who are you?", "--temperature", "0", "--threads", "1")


def only(cache: Cache) -> Entry:
    (entry,) = cache.entries()
    return entry


def test_the_first_run_converts_and_the_second_starts_at_once(say: Say, cache: Cache, demo: Path) -> None:
    code, first, errors = say("run", demo, *ASK, "--for", "cpu")
    entry = only(cache)
    (file,) = entry.paths
    assert (code, errors) == (0, f"{demo}: tq1_0, {file.stat().st_size / 1e6:.2f} MB, exact\n")
    assert file.is_relative_to(cache.folder)
    before = file.stat()
    with tritgguf.runtime.open(file, n_threads=1) as session:
        answer = "".join(session.chat([{"role": "user", "content": "Who are you?"}], temperature=0))
    assert first == answer + "\n"
    assert verify(demo, file).problems == []
    code, second, errors = say("run", demo, *ASK, "--for", "cpu")
    assert (code, second, errors) == (0, first, "")
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert only(cache).record == entry.record


def test_what_list_and_show_tell(say: Say, cache: Cache, made: tuple[Path, Cache]) -> None:
    assert say("list")[1].startswith("No models in")
    demo, filled = made
    shutil.copytree(filled.folder, cache.folder)
    entry = only(cache)
    code, said, errors = say("list")
    assert (code, errors) == (0, "")
    row = next(line for line in said.splitlines() if line.startswith(str(demo)))
    assert row.split()[1:] == ["tq1_0", *row.split()[2:4], "exact", "never", *row.split()[6:]]
    (told,) = json.loads(say("list", "--json")[1])
    assert told == json.loads(say("show", demo, "--json")[1])[0]
    file = entry.paths[0]
    expected = {
        "path": str(file),
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert told["files"] == [expected]
    assert (told["exact"], told["type"], told["for"], told["damage"], told["used"]) == (
        True,
        "tq1_0",
        "cpu",
        None,
        None,
    )
    assert told["source"]["place"] == str(demo)
    read = {file["name"]: (file["n_bytes"], file["mtime_ns"]) for file in told["source"]["files"]}
    assert read == {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in demo.iterdir()}
    code, said, errors = say("show", "demo", "--check")
    assert (code, errors) == (0, "")
    assert said.endswith("Every file has the digest that it had.\n")
    assert f"SHA-256 {expected['sha256']}" in said


def test_a_model_that_is_not_ternary_is_refused_with_what_would_work(say: Say, cache: Cache, tmp_path: Path) -> None:
    model = build("llama-gqa", tmp_path / "floats")
    code, said, errors = say("run", model, *ASK)
    assert_one_error_line(code, said, errors)
    assert "floats isn't ternary" in errors
    assert "--type q8_0" in errors
    assert cache.entries() == []
    assert [path.suffix for path in cache.folder.rglob("*")] == ["", ".lock"]
    exact = errors.split("--type ")[1].split()[0]
    for name, rounded in ((exact, 1), ("q8_0", 15)):  # embeddings become F16
        code, said, _ = say("pull", model, "--type", name)
        assert code == 0
        assert f": {name}, " in said
        assert f" {rounded} of 21 tensors rounded\n" in said
    assert {entry.record.type for entry in cache.entries()} == {exact, "q8_0"}
    code, said, errors = say("cp", model, tmp_path / "out.gguf")
    assert_one_error_line(code, said, errors)
    assert "is in the cache in 2 forms: add --type " in errors
    assert say("cp", model, tmp_path / "out.gguf", "--type", "q8_0")[0] == 0
    code, said, _ = say("rm", "floats", "--type", "q8_0")
    assert code == 0
    assert said.count("Removed") == 1
    assert {entry.record.type for entry in cache.entries()} == {exact}


def test_a_gguf_file_that_runs_is_used_where_it_is(say: Say, cache: Cache, demo: Path, tmp_path: Path) -> None:
    file = convert(demo, tmp_path / "mine.gguf", "tq2_0").out
    code, said, errors = say("run", file, *ASK)
    assert (code, errors) == (0, f"{file}: tq2_0, {file.stat().st_size / 1e6:.2f} MB, as it is\n")
    assert said
    entry = only(cache)
    assert entry.paths == (file,)
    assert (entry.record.type, entry.record.exactness) == ("tq2_0", "as it is")
    assert list(cache.folder.rglob("*.gguf")) == []
    code, said, _ = say("pull", file, "--type", "q8_0")
    assert code == 0
    assert len(cache.entries()) == 2
    code, said, _ = say("rm", file, "--type", "tq2_0")
    assert (code, said) == (0, f"Removed {file} (tq2_0): nothing freed, {file} stays where it is\n")
    assert file.exists()


@pytest.mark.skipif(not slow_here("q2_0"), reason="llama.cpp's own code for q2_0 is fast here")
def test_a_gguf_file_that_is_slow_here_is_told_apart(
    say: Say, cache: Cache, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITGGUF_CPU_KERNELS", "stock")
    file = convert(demo, tmp_path / "mine.gguf", "q2_0", check=False).out
    told = "note: q2_0 has no fast code on this CPU: --type auto makes a larger file of the same values\n"
    for command in ("pull", "pull", "run"):
        code, _, errors = say(command, file, "--for", "cpu", *(ASK if command == "run" else ()))
        assert (code, errors) == (0, told)
    code, said, errors = say("pull", file, "--type", "auto", "--for", "cpu")
    assert (code, said.split()[1]) == (0, "tq1_0,")


def test_bitnet_2b_4t_runs_on_the_cpu_whatever_it_is_wanted_for(say: Say, cache: Cache, tmp_path: Path) -> None:
    file = bitnet_model.write_gguf(tmp_path / "bitnet.gguf", "f16")
    code, said, errors = say("pull", file, "--type", "auto", "--for", "cuda")
    assert code == 0, errors
    assert f"note: {file} runs on the CPU alone: its types are chosen for that\n" in errors
    assert said.startswith(f"{file}: tq1_0, ")
    code, said, errors = say("run", file, "--type", "auto", "--for", "cuda", "--prompt", "a", "--max-tokens", "2")
    assert code == 0, errors


def test_a_file_in_parts(say: Say, cache: Cache, demo: Path, tmp_path: Path) -> None:
    first = convert(demo, tmp_path / "mine.gguf", "tq2_0", max_shard_size="2M", check=False).out
    parts = sorted(tmp_path.glob("mine-*.gguf"))
    assert first == parts[0]
    code, _, errors = say("pull", first)
    assert (code, errors) == (0, "")
    assert only(cache).paths == tuple(parts)
    assert [file["sha256"] for file in json.loads(say("show", first, "--json")[1])[0]["files"]] == [None] * len(parts)
    (told,) = json.loads(say("show", first, "--check", "--json")[1].splitlines()[0])
    assert [file["sha256"] for file in told["files"]] == [hashlib.sha256(p.read_bytes()).hexdigest() for p in parts]
    assert say("cp", first, tmp_path / "copy.gguf")[0] == 0
    copies = sorted(tmp_path.glob("copy-*.gguf"))
    assert [file.read_bytes() for file in copies] == [file.read_bytes() for file in parts]
    parts[1].unlink()
    code, _, errors = say("run", first, *ASK)
    assert code == 1
    assert parts[1].name in errors


def test_a_revision_is_for_models_on_a_hub(say: Say, cache: Cache, demo: Path) -> None:
    code, said, errors = say("run", demo, "--revision", "main", *ASK)
    assert_one_error_line(code, said, errors)
    assert "--revision is for models on the hub" in errors


def test_the_target_is_what_the_runtime_was_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (backend.accelerator() is None) != backend.supports_gpu()
    monkeypatch.setattr(backend, "supports_gpu", lambda: True)  # the devices are asked even so
    assert backend.accelerator() in ("any", "cuda", "metal", "vulkan")


def test_a_changed_source_is_converted_again(say: Say, cache: Cache, demo: Path) -> None:
    assert say("pull", demo)[0] == 0
    before = only(cache)
    assert say("pull", demo)[1].endswith(", exact; up to date\n")
    config = json.loads((demo / "generation_config.json").read_text())
    (demo / "generation_config.json").write_text(json.dumps({**config, "top_k": 7}))
    code, _, errors = say("run", demo, *ASK)
    assert code == 0
    assert errors.startswith(f"{demo} changed since {before.record.made[:10]}: making it again\n")
    after = only(cache)
    assert not before.paths[0].exists()
    assert after.record.origin != before.record.origin
    with tritgguf.runtime.open(after.paths[0], n_threads=1) as session:
        assert session.model.header.value("general.sampling.top_k") == 7


def test_what_was_made_of_a_source_outlives_it(say: Say, cache: Cache, demo: Path) -> None:
    code, first, _ = say("run", demo, *ASK)
    assert code == 0
    shutil.rmtree(demo)
    code, second, errors = say("run", demo, *ASK)
    assert (code, second) == (0, first)
    assert errors.startswith(f"note: {demo} is gone; this was made of it on ")
    code, said, errors = say("run", demo.with_name("dem"), *ASK)
    assert_one_error_line(code, said, errors)
    assert f"did you mean {demo}?" in errors


def damage(file: Path, *, keep_time: bool) -> None:
    stat, data = file.stat(), bytearray(file.read_bytes())
    data[-1000] ^= 0xFF
    file.write_bytes(data)
    if keep_time:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("how", ["missing", "cut off", "written to"])
def test_damage_is_noticed_at_the_start_and_made_good(say: Say, cache: Cache, had: Path, how: str) -> None:
    _, first, _ = say("run", had, *ASK)
    file = only(cache).paths[0]
    if how == "missing":
        file.unlink()
    elif how == "cut off":
        os.truncate(file, file.stat().st_size - 1)
    else:
        damage(file, keep_time=False)
    assert "damaged: " in say("list")[1]
    code, second, errors = say("run", had, *ASK)
    assert (code, second) == (0, first)
    assert errors.startswith(f"{had} is damaged in the cache ({file} ")
    assert say("show", had, "--check")[0] == 0


def test_damage_that_keeps_size_and_time_is_found_by_the_digest(
    say: Say, cache: Cache, had: Path, tmp_path: Path
) -> None:
    damage(only(cache).paths[0], keep_time=True)
    for command in (("show", had, "--check"), ("cp", had, tmp_path / "out.gguf")):
        code, said, errors = say(*command)
        assert_one_error_line(code, said, errors)
        assert "is damaged in the cache" in errors
        assert "`tritgguf pull" in errors
    assert not (tmp_path / "out.gguf").exists()
    assert say("pull", had, "--force")[0] == 0
    assert say("show", had, "--check")[0] == 0


def test_a_copied_file_has_the_same_bytes(say: Say, cache: Cache, had: Path, tmp_path: Path) -> None:
    code, said, errors = say("cp", "demo", tmp_path / "out.gguf")
    assert (code, errors) == (0, "")
    assert said.startswith(f"{tmp_path / 'out.gguf'}: ")
    assert (tmp_path / "out.gguf").read_bytes() == only(cache).paths[0].read_bytes()
    code, said, errors = say("cp", "demo", tmp_path / "out.gguf")
    assert_one_error_line(code, said, errors)
    assert say("cp", "demo", tmp_path / "out.gguf", "--force")[0] == 0


def test_rm_names_what_it_freed_and_removes_nothing_if_a_name_is_wrong(
    say: Say, cache: Cache, had: Path, tmp_path: Path
) -> None:
    for wrong in ("demmo", "bitnet-2c"):
        code, said, errors = say("rm", "demo", wrong)
        assert_one_error_line(code, said, errors)
        assert f"{wrong} is no model in the cache" in errors
    assert "did you mean bitnet-2b" in errors
    assert_one_error_line(*say("run", ""))
    n_bytes = only(cache).record.n_bytes
    shutil.copytree(had, tmp_path / "demo")
    assert say("pull", tmp_path / "demo", "--type", "f16")[0] == 0
    code, said, errors = say("rm", "demo")
    assert_one_error_line(code, said, errors)
    assert (
        f"demo is the last part of 2 names: give one of {', '.join(sorted([str(had), f'{tmp_path}/demo']))}" in errors
    )
    assert say("rm", tmp_path / "demo")[0] == 0
    code, said, errors = say("rm", "demo")
    assert (code, said, errors) == (0, f"Removed {had} (tq1_0): {n_bytes / 1e6:.2f} MB freed\n", "")
    assert cache.entries() == []
    assert list(cache.folder.rglob("*.gguf")) == []


def test_a_record_that_cannot_be_read_counts_as_none(say: Say, cache: Cache, had: Path) -> None:
    file = only(cache).folder / "record.json"
    for text in ("{", "[]", '{"format": 1}', '{"format": 99}', '{"format": 1, "origin": 1, "n_inexact": 1}'):
        file.write_text(text)
        assert cache.entries() == []
    assert say("pull", had)[0] == 0
    assert len(list(cache.folder.rglob("*.gguf"))) == 1


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="who may write everywhere")
def test_a_cache_that_cannot_be_written(say: Say, cache: Cache, demo: Path) -> None:
    cache.folder.parent.mkdir()
    cache.folder.parent.chmod(0o500)
    code, said, errors = say("pull", demo)
    assert_one_error_line(code, said, errors)
    assert "TRITGGUF_CACHE" in errors


def test_a_cache_in_a_place_that_is_a_file(say: Say, cache: Cache, demo: Path) -> None:
    cache.folder.parent.write_text("")
    code, said, errors = say("pull", demo)
    assert_one_error_line(code, said, errors)
    assert "set TRITGGUF_CACHE to a folder that can" in errors


def test_a_model_in_the_cache_needs_no_client_of_the_hub(cache: Cache, had: Path) -> None:
    code = "from tritgguf.runtime.cli.main import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", f"import sys; {code}", "run", str(had), *ASK, "--max-tokens", "1"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stderr.split()
    assert "tritgguf.runtime.hub.obtain" in loaded
    assert not {"huggingface_hub", "filelock", "tritgguf.converter.conversion.pipeline"} & set(loaded)
    command[3] = "list"
    loaded = subprocess.run(command[:4], capture_output=True, text=True, check=True).stderr.split()
    assert "tritgguf.runtime.hub.cache" in loaded
    assert not {"numpy", "gguf", "llama_cpp", "huggingface_hub"} & set(loaded)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where Linux has caches")
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITGGUF_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "tritgguf" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tritgguf" / "models"
    monkeypatch.setenv("TRITGGUF_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine" / "models"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITGGUF_CACHE", "here")
    assert cache_folder() == tmp_path / "here" / "models"
