"""`tritgguf ollama` against a server that plays Ollama's API, and without one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from tests import checkpoints, packed_checkpoints
from tests.chat_templates import CASES, FIXED_DATE
from tests.command_line import run_captured
from tests.gguf_edit import patch, rewrite
from tests.ollama_server import State, ollama_server
from tritgguf.converter import convert
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import OllamaError
from tritgguf.converter.ollama.repack import repack
from tritgguf.runtime.chat.chat_template import ChatTemplate
from tritgguf.runtime.ollama.address import Address
from tritgguf.runtime.ollama.api import Ollama, digest_of
from tritgguf.runtime.ollama.disk_space import space_problem
from tritgguf.runtime.ollama.jinja_there import UNSET

SAYS_HI = [ord("H"), ord("i"), ord("!")]


@pytest.fixture(autouse=True)
def _no_ollama_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever runs on this machine, the tests don't talk to it."""
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tritgguf.runtime.ollama.address.DEFAULT_PORT", free_port())


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TQ2_0 file with a ChatML template."""
    folder = tmp_path_factory.mktemp("ternary")
    return convert(checkpoints.build("llama-tied", folder / "model"), folder / "tiny.gguf", "tq2_0", check=False).out


@pytest.fixture
def file(ternary: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(ternary.read_bytes())
    return path


@pytest.fixture(scope="module")
def _exact(ternary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repack(ternary, tmp_path_factory.mktemp("exact") / "tiny.gguf").out


@pytest.fixture
def exact(_exact: Path, tmp_path: Path) -> Path:
    """The same model as exact Q2_K, which needs no repacking."""
    path = tmp_path / "exact.gguf"
    path.write_bytes(_exact.read_bytes())
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


def one_line(result: tuple[int, str, str], *parts: str) -> None:
    code, _, err = result
    errors = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, len(errors)) == (1, 1), err
    assert errors[0].startswith("error: ")
    for part in parts:
        assert part in errors[0]


def refused(file: Path, monkeypatch, capsys, *options: str, **settings: object) -> tuple[tuple[int, str, str], State]:
    with ollama_server(**settings) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address)
        return run_captured(monkeypatch, capsys, "ollama", file, "tiny", *options), server


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


# --- templates -------------------------------------------------------------------------------------------------------

UNKNOWN = "{% for m in messages %}@{{ m.role }}@ {{ m.content }}{{ eos_token }}{% endfor %}@assistant@"


def test_an_unknown_template_goes_in_as_guarded_jinja(exact: Path, monkeypatch, capsys) -> None:
    rewrite(exact, exact.with_name("odd.gguf"), keys={"tokenizer.chat_template": UNKNOWN})
    odd = exact.with_name("odd.gguf")
    _, out, err = run_captured(monkeypatch, capsys, "ollama", odd, "odd")
    assert "a comment that stops Ollama from replacing it" in err
    assert "note: no known Go template renders the same as the file's chat template (nearest is " in err
    text = odd.with_suffix(".Modelfile").read_text()
    assert "TEMPLATE" not in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    jinja = GGUFReader(odd.with_name("odd-ollama.gguf")).fields["tokenizer.chat_template"].contents()
    assert jinja.endswith(UNKNOWN)
    assert len(jinja) - len(UNKNOWN) > 200
    messages = [{"role": "user", "content": "Hi"}]
    assert ChatTemplate(jinja).render(messages) == ChatTemplate(UNKNOWN).render(messages) == "@user@ Hi@assistant@"
    again = odd.with_name("odd-ollama.gguf")
    code, out, _ = run_captured(monkeypatch, capsys, "ollama", again, "odd", "--dry-run")
    assert code == 0
    assert "would write" in out
    assert "odd-ollama-ollama" not in out, "what is guarded already needs no second guard"


@pytest.mark.parametrize(("length", "copied"), [(1941, True), (1942, False), (4600, True), (9000, False)])
def test_a_template_as_long_as_none_that_ollama_knows_needs_no_guard(
    length: int, copied: bool, exact: Path, monkeypatch, capsys
) -> None:
    jinja = UNKNOWN + "{# " + "x" * (length - len(UNKNOWN) - 6) + " #}"
    assert len(jinja) == length
    odd = rewrite(exact, exact.with_name("odd.gguf"), keys={"tokenizer.chat_template": jinja})
    code, out, err = run_captured(monkeypatch, capsys, "ollama", odd, "odd", "--dry-run")
    assert code == 0
    assert ("FROM ./odd-ollama.gguf" if copied else "FROM ./odd.gguf") in out
    assert ("a comment that stops Ollama" in err) == copied


@pytest.mark.parametrize("jinja", ["{% if %}", "{{ messages | no_such_filter }}", "{{ raise_exception('never') }}"])
def test_a_template_that_does_not_render_is_refused(jinja: str, exact: Path, monkeypatch, capsys) -> None:
    bad = rewrite(exact, exact.with_name("bad.gguf"), keys={"tokenizer.chat_template": jinja})
    one_line(run_captured(monkeypatch, capsys, "ollama", bad, "bad"), "the file's chat template")
    assert files_in(exact.parent) == {"exact.gguf", "bad.gguf"}


def test_a_template_that_writes_the_date(exact: Path, monkeypatch, capsys) -> None:
    dated = UNKNOWN + "{{ strftime_now('%d %b %Y') }}"
    bad = rewrite(exact, exact.with_name("dated.gguf"), keys={"tokenizer.chat_template": dated})
    _, _, err = run_captured(monkeypatch, capsys, "ollama", bad, "dated", "--dry-run")
    assert "(it writes the current date)" in err


def _with_jinja(exact: Path, name: str, jinja: str) -> Path:
    return rewrite(exact, exact.with_name(name), keys={"tokenizer.chat_template": jinja})


def test_a_jinja_that_offers_more_is_rendered_instead_of_the_template(exact: Path, monkeypatch, capsys) -> None:
    tools = _with_jinja(exact, "tools.gguf", CASES["chatml"].jinja + "{% if tools %}{{ tools }}{% endif %}")
    code, out, _ = run_captured(monkeypatch, capsys, "ollama", tools, "--check")
    assert code == 0
    assert "Go template equal to the file's chat template: chatml\n" in out
    told = (
        "Ollama 0.30 and newer render the file's own chat template instead of the TEMPLATE, because it offers tools; "
    )
    assert f"note: {told}OLLAMA_GO_TEMPLATE=1, set where Ollama runs, makes it take the TEMPLATE\n" in out
    code, out, err = run_captured(monkeypatch, capsys, "ollama", tools, "tools", "--dry-run")
    assert f"note: {told}" in err
    assert "tools-ollama.gguf" not in out, "it renders the same, so there is nothing to repack"
    assert 'TEMPLATE """' in out, "for 0.29 and older"


def test_a_jinja_that_would_get_today_s_date_is_replaced(exact: Path, monkeypatch, capsys) -> None:
    file = _with_jinja(exact, "dated.gguf", FIXED_DATE)
    _, out, err = run_captured(monkeypatch, capsys, "ollama", file, "dated")
    assert "would write today's date where the chat template has a fixed one" in err
    assert "(Ollama would put today's date into its chat template)" in out
    repacked = file.with_name("dated-ollama.gguf")
    own = GGUFReader(repacked).fields["tokenizer.chat_template"].contents()
    assert own == UNSET + FIXED_DATE
    assert "TEMPLATE" in file.with_suffix(".Modelfile").read_text()
    _, out, err = run_captured(monkeypatch, capsys, "ollama", repacked, "dated", "--dry-run")
    assert "today's date" not in out + err, "it is replaced already"


def test_an_empty_system_message_that_renders_otherwise_is_noted(exact: Path, monkeypatch, capsys) -> None:
    skips = CASES["chatml"].jinja.replace("in messages %}", "in messages if message.content %}")
    file = _with_jinja(exact, "skips.gguf", skips)
    _, out, _ = run_captured(monkeypatch, capsys, "ollama", file, "--check")
    assert "note: the TEMPLATE treats an empty system message differently from the chat template" in out


def test_a_repeat_penalty_that_no_one_asked_for_is_switched_off(exact: Path, monkeypatch, capsys) -> None:
    """Ollama's own default was 1.1 until 0.32.10."""
    _, out, _ = run_captured(monkeypatch, capsys, "ollama", exact, "x", "--dry-run")
    assert "\nPARAMETER repeat_penalty 1\n" in out
    given = rewrite(exact, exact.with_name("given.gguf"), keys={"general.sampling.penalty_repeat": 1.25})
    _, out, _ = run_captured(monkeypatch, capsys, "ollama", given, "x", "--dry-run")
    assert "\nPARAMETER repeat_penalty 1.25\n" in out


def test_a_base_model(exact: Path, monkeypatch, capsys) -> None:
    base = rewrite(exact, exact.with_name("base.gguf"), keys={"tokenizer.chat_template": None})
    code, out, err = run_captured(monkeypatch, capsys, "ollama", base, "base", "--dry-run")
    assert code == 0
    assert "it is a base model" in err
    assert 'TEMPLATE """{{ .Prompt }}"""\n' in out


def test_bos_that_the_template_does_not_write_is_noted(exact: Path, monkeypatch, capsys) -> None:
    keys = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0}
    other = rewrite(exact, exact.with_name("bos.gguf"), keys=keys)
    _, _, err = run_captured(monkeypatch, capsys, "ollama", other, "x", "--dry-run")
    assert "before every prompt, although the chat template doesn't write it" in err


def test_an_eos_that_is_not_the_end_of_a_turn_is_noted(exact: Path, monkeypatch, capsys) -> None:
    other = rewrite(exact, exact.with_name("eos.gguf"), keys={"tokenizer.ggml.eos_token_id": 0})
    _, out, err = run_captured(monkeypatch, capsys, "ollama", other, "x", "--dry-run")
    assert "answers end with <|im_end|>, but the file's eos token is '<|endoftext|>'" in err
    assert 'PARAMETER stop "<|im_end|>"\n' in out


# --- --check ---------------------------------------------------------------------------------------------------------


def test_check(file: Path, monkeypatch, capsys) -> None:
    code, out, err = run_captured(monkeypatch, capsys, "ollama", "--check", file)
    assert code == 1
    assert "Ollama 0.7.1 to 0.29: loads it\n" in out
    assert "Ollama 0.31.2 and newer: doesn't load it: refuses TQ2_0 tensors such as blk." in out
    assert "Go template equal to the file's chat template: chatml\n" in out
    assert err.startswith("error: tiny.gguf doesn't load in Ollama 0.31.2 and newer: it refuses TQ2_0 tensors")
    assert "`tritgguf ollama tiny.gguf NAME` repacks it if possible" in err
    assert files_in(file.parent) == {"tiny.gguf"}


def test_check_suggests_no_repacking_that_cannot_help(tmp_path: Path, monkeypatch, capsys) -> None:
    model = packed_checkpoints.build("2b4t", tmp_path / "model")
    own = convert(model, tmp_path / "own.gguf", "tq2_0", check=False).out
    one_line(
        run_captured(monkeypatch, capsys, "ollama", "--check", own),
        "it refuses architecture bitnet-b1.58; refuses TQ2_0 tensors such as blk.",
        "; no repacking changes that",
    )
    one_line(run_captured(monkeypatch, capsys, "ollama", own, "x"), "own.gguf can't become an Ollama model")
    assert files_in(tmp_path) == {"model", "own.gguf"}


@pytest.mark.parametrize("name", ["exact.gguf", "tiny.gguf"])
def test_scales_in_tensors_of_their_own(name: str, exact: Path, file: Path, monkeypatch, capsys) -> None:
    """Ollama before 0.30 would answer without them, or fail; so it gets neither such a file nor its repacked copy."""
    scale = {"blk.0.attn_q.scale": (np.array([0.3], np.float32).view(np.uint8), GGMLQuantizationType.F32)}
    scaled = rewrite(file.with_name(name), file.with_name("scaled.gguf"), tensors=scale)
    _, out, _ = run_captured(monkeypatch, capsys, "ollama", scaled, "--check")
    reason = "refuses or ignores the scales in tensors such as blk.0.attn_q.scale"
    assert f"Ollama 0.7.1 to 0.29: doesn't load it: {reason}\n" in out
    result, server = refused(scaled, monkeypatch, capsys, version="0.24.0")
    one_line(result, "Ollama 0.24.0 won't load scaled", reason, "update Ollama")
    assert server.calls == ["GET /api/version"]


def test_check_of_a_good_file(exact: Path, monkeypatch, capsys) -> None:
    code, out, err = run_captured(monkeypatch, capsys, "ollama", exact, "--check")
    assert (code, err) == (0, "")
    assert out.count(": loads it\n") == 4
    code, out, _ = run_captured(monkeypatch, capsys, "ollama", exact, "--check", "--json")
    found = json.loads(out)
    assert [row["loads"] for row in found["versions"]] == [True] * 4
    assert (found["template"], found["notes"]) == ("chatml", [])
