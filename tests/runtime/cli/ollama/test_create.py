"""`tritgguf ollama` creates models: against a server that plays Ollama's API, and without one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from tests.command_line import run_captured
from tests.gguf_edit import patch, rewrite
from tests.ollama_server import free_port, ollama_server
from tests.runtime.cli.ollama.commands import files_in, one_line, refused
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import OllamaError
from tritgguf.runtime.ollama.address import Address
from tritgguf.runtime.ollama.api import Ollama, digest_of
from tritgguf.runtime.ollama.disk_space import space_problem

SAYS_HI = [ord("H"), ord("i"), ord("!")]


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_a_model_is_created_and_answers(speaking_model, tmp_path: Path, monkeypatch, capsys) -> None:
    """The fake server runs the blob in the real runtime, on the prompt that the template in the request makes."""
    path = tmp_path / "hello.gguf"
    path.write_bytes(speaking_model(SAYS_HI).read_bytes())
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address)
        code, out, err = run_captured(monkeypatch, capsys, "ollama", path, "hello", "--system", "Be nice.")
    assert code == 0, err
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    quoted = digest.replace(":", "%3A")
    assert server.calls == [
        "GET /api/version",
        "POST /api/show",
        f"HEAD /api/blobs/{quoted}",
        f"POST /api/blobs/{quoted}",
        "POST /api/create",
        "POST /api/chat",
    ]
    assert server.blobs == {digest: path.read_bytes()}
    assert out.splitlines()[-3:] == [
        f"Created hello in Ollama 0.34.1 at http://{server.address}; start it with: ollama run hello",
        "> What is the capital of France?",
        "Hi!",
    ]
    assert server.prompts == [
        "<|im_start|>system\nBe nice.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    ]
    assert server.models["hello"]["parameters"]["stop"] == ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    assert (tmp_path / "hello.Modelfile").read_text().startswith("FROM ./hello.gguf\nTEMPLATE ")
    assert files_in(tmp_path) == {"hello.gguf", "hello.Modelfile"}


def test_a_ternary_file_is_repacked_first(file: Path, monkeypatch, capsys) -> None:
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", f"http://{server.address}/")
        code, out, err = run_captured(monkeypatch, capsys, "ollama", file, "tiny")
    assert (code, err) == (0, "")
    repacked = file.with_name("tiny-ollama.gguf")
    assert f"{repacked}: 0.76 MB; 1 f16, 7 f32, 21 q2_k; all values unchanged (Ollama refuses TQ2_0 tensors)\n" in out
    digest = hashlib.sha256(repacked.read_bytes()).hexdigest()
    assert server.models["tiny"]["files"] == {"tiny-ollama.gguf": f"sha256:{digest}"}
    assert {tensor.tensor_type.name for tensor in GGUFReader(repacked).tensors} == {"Q2_K", "F32", "F16"}
    assert GGUFReader(file).fields["general.file_type"].contents() == 37
    assert GGUFReader(repacked).fields["general.file_type"].contents() == 10


def test_a_blob_that_the_server_has_is_not_sent_again(file: Path, monkeypatch, capsys) -> None:
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address)
        for name in ("one", "two"):
            code, _, _ = run_captured(monkeypatch, capsys, "ollama", file, name, "--no-ask")
            assert code == 0
    assert set(server.models) == {"one", "two"}
    assert [call.split("/api/")[0] + call.split("/")[2].split("%")[0] for call in server.calls].count("POST blobs") == 1


def test_json_and_progress(file: Path, monkeypatch, capsys) -> None:
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address)
        code, out, err = run_captured(monkeypatch, capsys, "ollama", file, "tiny", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["created"], found["template"], found["repacked"]) == (
        "tiny",
        "chatml",
        "Ollama refuses TQ2_0 tensors",
    )
    assert found["question"] == "What is the capital of France?"
    assert isinstance(found["answer"], str)
    stages = [json.loads(line)["stage"] for line in err.splitlines()]
    assert stages[-1] == "success"
    assert {"hashing", "sending", "writing manifest"} <= set(stages)


# --- without a server ------------------------------------------------------------------------------------------------


def test_without_ollama_the_two_commands_are_printed(file: Path, monkeypatch, capsys) -> None:
    result = run_captured(monkeypatch, capsys, "ollama", file, "tiny")
    one_line(result, "tiny wasn't created: there is no Ollama here")
    out = result[1]
    commands = [f"  ollama create tiny -f {file.with_suffix('.Modelfile')}", "  ollama run tiny"]
    assert out.splitlines()[-3:] == ["Ollama wasn't found here. To create the model elsewhere, run:", *commands]
    assert files_in(file.parent) == {"tiny.gguf", "tiny-ollama.gguf", "tiny.Modelfile"}
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    code, out, err = run_captured(monkeypatch, capsys, "ollama", file, "tiny", "--json")
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before
    assert (code, json.loads(out)["commands"]) == (1, [command.strip() for command in commands])
    assert err.splitlines()[-1].startswith("error: tiny wasn't created")


def test_dry_run_shows_all_and_writes_nothing(file: Path, monkeypatch, capsys) -> None:
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address)
        code, out, _ = run_captured(monkeypatch, capsys, "ollama", file, "tiny", "--dry-run", "--ctx", "512")
    assert code == 0
    assert server.calls == []
    assert "would write " in out
    assert "tiny-ollama.gguf: 0.76 MB; 1 f16, 7 f32, 21 q2_k; all values unchanged" in out
    assert '\nPARAMETER stop "<|im_end|>"\n' in out
    assert "\nPARAMETER num_ctx 512\n" in out
    assert f"\n  ollama create tiny -f {file.with_suffix('.Modelfile')}\n  ollama run tiny\n" in out
    assert files_in(file.parent) == {"tiny.gguf"}


def test_a_server_that_should_be_there_but_is_down(file: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    one_line(
        run_captured(monkeypatch, capsys, "ollama", file, "tiny"), "no Ollama at http://127.0.0.1:", "ollama serve"
    )
    assert files_in(file.parent) == {"tiny.gguf"}
    monkeypatch.delenv("OLLAMA_HOST")
    program = file.with_name("ollama")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    one_line(
        run_captured(monkeypatch, capsys, "ollama", file, "tiny"), "no Ollama at http://127.0.0.1:", "ollama serve"
    )


# --- a server that says no -------------------------------------------------------------------------------------------


def test_a_model_of_that_name_is_kept_without_force(exact: Path, monkeypatch, capsys) -> None:
    models = {"tiny": {"model": "tiny"}}
    result, server = refused(exact, monkeypatch, capsys, models=dict(models))
    one_line(result, "Ollama has a model tiny already; add --force")
    assert (server.models, server.calls) == (models, ["GET /api/version", "POST /api/show"])
    assert files_in(exact.parent) == {"exact.gguf"}
    result, server = refused(exact, monkeypatch, capsys, "--force", models=dict(models))
    assert result[0] == 0
    assert "files" in server.models["tiny"]


@pytest.mark.parametrize("fails", ["disk full", "disk full, unread", "disk full while creating"])
def test_a_full_disk(fails: str, exact: Path, monkeypatch, capsys) -> None:
    result, server = refused(exact, monkeypatch, capsys, fails=fails)
    one_line(result, "Ollama's disk is full", "no space left on device", "$OLLAMA_MODELS")
    assert server.models == {}


@pytest.mark.parametrize(
    ("fails", "parts"),
    [
        ("damaged on the way", ("refuses exact.gguf: digest mismatch, expected",)),
        ("connection lost", ("the connection to Ollama at http://127.0.0.1:", "broke at /api/blobs/")),
        ("stops", ("Ollama stopped creating tiny after 'using existing layer",)),
        ("model dies", ("Ollama created tiny, but it doesn't answer", "runner process has terminated")),
        ("breaks off", ("Ollama created tiny, but it doesn't answer", "broke off")),
        ("another program", ("answers b'<html>hello</html>'", "is it another program?")),
    ],
)
def test_other_failures(fails: str, parts: tuple[str, ...], exact: Path, monkeypatch, capsys) -> None:
    result, server = refused(exact, monkeypatch, capsys, fails=fails)
    one_line(result, *parts)
    assert ("tiny" in server.models) == (fails in ("model dies", "breaks off"))


def test_numbers_of_another_type_in_the_progress_are_no_numbers(exact: Path, monkeypatch, capsys) -> None:
    (code, _, err), server = refused(exact, monkeypatch, capsys, "--no-ask", "--json", fails="odd numbers")
    assert (code, "tiny" in server.models) == (0, True), err
    assert '{"stage": "writing manifest", "done_bytes": 0, "total_bytes": 0' in err


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_name_that_ollama_refuses_needs_no_server(options: tuple[str, ...], exact: Path, monkeypatch, capsys) -> None:
    one_line(run_captured(monkeypatch, capsys, "ollama", exact, "a b", *options), "invalid model name 'a b'; expected")
    assert files_in(exact.parent) == {"exact.gguf"}


def test_a_password_is_used_and_not_printed(exact: Path, monkeypatch, capsys) -> None:
    with ollama_server(login="me:secret") as server:
        monkeypatch.setenv("OLLAMA_HOST", f"http://me:secret@{server.address}")
        results = [run_captured(monkeypatch, capsys, "ollama", exact, "tiny", *more) for more in ((), ("--json",), ())]
        monkeypatch.setenv("OLLAMA_HOST", f"http://me:wrong-secret@{server.address}")
        results.append(run_captured(monkeypatch, capsys, "ollama", exact, "new"))
    assert [code for code, _, _ in results] == [0, 1, 1, 1]
    assert "secret" not in str(results)


@pytest.mark.parametrize(
    ("version", "part"), [("0.5.4", "is too old to receive a file; update it to 0.5.5"), ("0.1.0", "0.5.5")]
)
def test_an_ollama_that_is_too_old(version: str, part: str, exact: Path, monkeypatch, capsys) -> None:
    result, server = refused(exact, monkeypatch, capsys, version=version)
    one_line(result, f"Ollama {version} at http://", part)
    assert server.calls == ["GET /api/version"]


def test_a_copy_that_ollama_could_not_make(exact: Path, monkeypatch, capsys) -> None:
    result, server = refused(exact, monkeypatch, capsys, fails="copy")
    one_line(result, "Ollama couldn't copy the file (failed to validate GGUF with llama-quantize", "three times the")
    assert server.models == {}


# --- the disk of an Ollama here --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "copies"), [("0.34.1", 3), ("0.30.0", 3), ("0.29.0", 1)])
@pytest.mark.parametrize("fits", [True, False])
def test_too_little_room_for_ollama_is_told_before(
    version: str, copies: int, fits: bool, exact: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    n_bytes = exact.stat().st_size
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)._replace(free=copies * n_bytes - (not fits))
    monkeypatch.setattr("tritgguf.runtime.ollama.disk_space.shutil.disk_usage", lambda _: usage)
    (code, _, err), server = refused(exact, monkeypatch, capsys, "--no-ask", version=version)
    assert (code, "tiny" in server.models) == (0, True)
    if fits:
        assert err == ""
    else:
        size, free = format_size(copies * n_bytes), format_size(usage.free)
        assert err.startswith(f"note: Ollama needs about {size} for a while to create the model, {copies} times the")
        assert f"{tmp_path} has {free} free" in err


def test_nothing_is_said_about_a_disk_that_is_elsewhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    huge = 1 << 60
    assert space_problem(Address("example.org"), "0.34.1", huge) is None
    assert space_problem(Address(""), "0.34.1", huge) is not None
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "none"))
    assert space_problem(Address(""), "0.34.1", huge) is None
    monkeypatch.delenv("OLLAMA_MODELS")
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("tritgguf.runtime.ollama.disk_space._FOLDERS", (Path("~/.ollama/models"),))
    assert space_problem(Address(""), "0.34.1", huge) is None
    (tmp_path / ".ollama" / "models").mkdir(parents=True)
    assert f"{tmp_path / '.ollama' / 'models'} has" in str(space_problem(Address(""), "0.34.1", huge))


# --- split files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def split(speaking_model, tmp_path: Path) -> list[Path]:
    """The parts of a model that answers "Hi!", in exact types that need no repacking; the first has no tensors."""
    rewrite(speaking_model(SAYS_HI), tmp_path / "hello.gguf", split_max_tensors=11, small_first_shard=True)
    return sorted(tmp_path.iterdir())


def test_all_parts_of_a_split_file_are_sent(split: list[Path], monkeypatch, capsys) -> None:
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address)
        code, out, err = run_captured(monkeypatch, capsys, "ollama", split[1], "hello")
    assert code == 0, err
    assert out.endswith("\nHi!\n")
    digests = {path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in split}
    assert server.models["hello"]["files"] == digests
    text = split[0].with_suffix(".Modelfile").read_text()
    assert text.startswith("".join(f"FROM ./{path.name}\n" for path in split))
    assert files_in(split[0].parent) == {*(path.name for path in split), "hello-00001-of-00003.Modelfile"}


def test_an_ollama_that_takes_no_split_files(split: list[Path], monkeypatch, capsys) -> None:
    result, server = refused(split[0], monkeypatch, capsys, version="0.29.1")
    one_line(
        result,
        "Ollama 0.29.1 at http://127.0.0.1:",
        "takes no split files; update it to 0.30.0 or newer, or make one file of it: "
        "tritgguf convert hello-00001-of-00003.gguf ONE.gguf --for ollama",
    )
    assert server.models == {}
    assert files_in(split[0].parent) == {path.name for path in split}


def test_the_server_here_refuses_one_part_alone(split: list[Path], monkeypatch) -> None:
    with ollama_server() as server:
        client = Ollama(Address(server.address))
        client.send_blob(split[1], digest := digest_of(split[1]))
        for name, error in ((split[1].name, "has 1 shards, expected 3"), ("one.gguf", "split filename pattern")):
            with pytest.raises(OllamaError, match=error):
                client.create({"model": "x", "files": {name: digest}, "parameters": {}})


# --- files that are there --------------------------------------------------------------------------------------------


def test_no_file_is_lost(file: Path, monkeypatch, capsys) -> None:
    modelfile, repacked = file.with_suffix(".Modelfile"), file.with_name("tiny-ollama.gguf")
    modelfile.write_text("FROM mine\n")
    one_line(run_captured(monkeypatch, capsys, "ollama", file, "tiny"), f"{modelfile} exists already; add --force")
    assert files_in(file.parent) == {"tiny.gguf", "tiny.Modelfile"}
    modelfile.unlink()
    repacked.write_bytes(b"mine")
    one_line(run_captured(monkeypatch, capsys, "ollama", file, "tiny"), f"{repacked} exists already; add --force")
    assert (repacked.read_bytes(), modelfile.exists()) == (b"mine", False)
    one_line(run_captured(monkeypatch, capsys, "ollama", file, "tiny", "--force"), "there is no Ollama here")
    assert repacked.stat().st_size > 1000


def test_a_damaged_or_older_copy_is_not_sent(file: Path, monkeypatch, capsys) -> None:
    """The copy has the right size, header and time, but weights of an older source, and damage at its end."""
    repacked, turned = file.with_name("tiny-ollama.gguf"), "blk.0.attn_q.weight"
    run_captured(monkeypatch, capsys, "ollama", file, "tiny")
    before = repacked.read_bytes()
    rows = rows_of(repacked, turned)
    repacked.write_bytes(before[:-1000] + bytes(1000))
    patch(file, turned, lambda rows: np.copyto(rows, rows[::-1].copy()))
    later = time.time() + 10
    os.utime(repacked, (later, later))
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address)
        code, out, _ = run_captured(monkeypatch, capsys, "ollama", file, "tiny", "--no-ask")
    assert (code, "all values unchanged" in out) == (0, True)
    assert list(server.blobs.values()) == [repacked.read_bytes()]
    assert repacked.read_bytes()[-1000:] == before[-1000:] != bytes(1000)
    np.testing.assert_array_equal(rows_of(repacked, turned), rows[::-1])


def rows_of(path: Path, name: str) -> np.ndarray:
    return next(tensor.data.copy() for tensor in GGUFReader(path).tensors if tensor.name == name)


def test_wrong_usage(file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    assert run_captured(monkeypatch, capsys, "ollama", file)[0] == 2
    one_line(run_captured(monkeypatch, capsys, "ollama", tmp_path / "nothing.gguf", "x"), "no such file")
    one_line(run_captured(monkeypatch, capsys, "ollama", file, "x", "--ctx", "99999"), "takes 2 to 2048")
    one_line(run_captured(monkeypatch, capsys, "ollama", file, "x", "--system", 'say """'), "the SYSTEM text has")
    assert files_in(tmp_path) == {"tiny.gguf"}
