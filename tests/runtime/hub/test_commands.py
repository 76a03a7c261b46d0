"""The demo model, named on the hub: converted, planned, inspected, verified, quantized and chatted with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.checkpoints import build
from tests.command_line import run_captured
from tests.runtime.hub.conftest import DEMO, demo_files
from tests.runtime.hub.hub_server import Hollow, HubServer, Repository
from tritgguf.converter import convert
from tritgguf.converter.checkpoint.safetensors_layout import Entry, index_file, shards
from tritgguf.runtime.hub.download import download
from tritgguf.runtime.hub.headers import FIRST_BYTES
from tritgguf.runtime.hub.names import ModelName
from tritgguf.runtime.hub.snapshot import storage

LAYER = [
    *((f"self_attn.{letter}_proj", (5120, 5120)) for letter in "qkvo"),
    ("mlp.gate_proj", (13824, 5120)),
    ("mlp.up_proj", (13824, 5120)),
    ("mlp.down_proj", (5120, 13824)),
    ("input_layernorm", (5120,)),
    ("post_attention_layernorm", (5120,)),
]
Command = Callable[..., tuple[int, str, str]]
WEIGHTS = r"model.*\.safetensors$"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return lambda *arguments: run_captured(monkeypatch, capsys, *arguments)


def fields(path: Path) -> dict[str, object]:
    return {
        name: field.contents() for name, field in gguf.GGUFReader(path).fields.items() if not name.startswith("GGUF.")
    }


def test_a_converted_name_is_the_converted_folder_and_records_its_commit(
    hub: HubServer, demo: Repository, command: Command, demo_gguf: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    code, printed, err = command("convert", demo.name, out, "--type", "tq2_0", "--no-check")
    assert (code, err) == (0, ""), err
    assert printed.startswith(f"{out}: ")
    ours, plain = fields(out), fields(demo_gguf)
    page = f"https://huggingface.co/{demo.name}"
    assert ours.pop("general.source.url") == f"{page}/tree/{demo.refs['main']}"
    assert ours.pop("general.source.repo_url") == page
    naming = [key for key in ours | plain if key.startswith("general.") and ours.get(key) != plain.get(key)]
    assert ours["general.name"] == demo.name.split("/")[1]
    assert {key: value for key, value in ours.items() if key not in naming} == {
        key: value for key, value in plain.items() if key not in naming
    }
    pairs = zip(gguf.GGUFReader(out).tensors, gguf.GGUFReader(demo_gguf).tensors, strict=True)
    assert all(np.array_equal(one.data, other.data) for one, other in pairs)

    demo.commit({**demo_files(), "config.json": b"{}"}, "main")  # the file is compared with its own commit all the same
    hub.clear()
    code, printed, err = command("verify", out)
    assert (code, err) == (0, f"note: out.gguf says that it was made from {demo.name}@{ours_commit(out)}\n")
    assert "Metadata: every key that the model needs is correct." in printed
    assert not hub.requests  # all of that commit is in the cache


def ours_commit(path: Path) -> str:
    return str(fields(path)["general.source.url"]).rpartition("/")[2]


def test_a_plan_reads_the_headers_alone(hub: HubServer, demo: Repository, command: Command, demo_gguf: Path) -> None:
    code, printed, err = command("convert", demo.name, "--dry-run", "--type", "tq2_0")
    assert code == 0, err
    assert "exactness unknown" in printed
    assert (
        "note: planned from the headers of the weights alone: which tensors the type holds exactly isn't known" in err
    )
    header = 8 + int.from_bytes((DEMO / "model.safetensors").read_bytes()[:8], "little")
    assert hub.sent(WEIGHTS) == max(header, FIRST_BYTES)
    assert {request.path.rpartition("/")[2] for request in hub.asked("cdn|resolve-cache|tests/")} >= {
        "model.safetensors"
    }
    assert not (storage(demo.name) / "snapshots" / demo.refs["main"] / "model.safetensors").exists()
    planned = json.loads(command("convert", demo.name, "--dry-run", "--type", "tq2_0", "--json")[1])
    assert hub.sent("tokenizer.json") == (DEMO / "tokenizer.json").stat().st_size  # it counts; it is fetched once
    download(ModelName(demo.name))
    hub.clear()
    found = json.loads(command("convert", demo.name, "--dry-run", "--type", "tq2_0", "--json")[1])
    assert [tensor["exact"] for tensor in found["tensors"]].count(None) == 0
    assert planned["file_bytes"] == found["file_bytes"]
    assert not hub.sent("/resolve-cache/|^/tests/")


def test_an_automatic_type_needs_the_weights(hub: HubServer, demo: Repository, command: Command) -> None:
    code, _, err = command("convert", demo.name, "--dry-run")
    assert code == 1
    assert err.startswith(
        "error: the weights aren't here, so no exact type can be chosen: add --type, such as --type tq2_0"
    )
    assert hub.sent(WEIGHTS) <= FIRST_BYTES


def test_inspect_reads_the_headers_alone(hub: HubServer, demo: Repository, command: Command) -> None:
    code, printed, err = command("inspect", demo.name)
    assert (code, err) == (0, ""), err
    assert printed.startswith(
        f"{demo.name.split('/')[1]}: bitnet packing, LlamaForCausalLM → llama, 7.9 M values in 3.82 MB"
    )
    assert "unknown without weights" in printed
    assert "note: planned from the headers of the weights alone" in printed
    assert hub.sent(WEIGHTS) <= FIRST_BYTES


def test_thirty_gigabytes_are_planned_after_their_headers(hub: HubServer, command: Command) -> None:
    """15 billion weights in seven shards, of which the server has nothing but the headers."""
    config = json.loads((DEMO / "config.json").read_text())
    del config["quantization_config"]
    config |= {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48}
    config |= {"num_attention_heads": 40, "num_key_value_heads": 40, "head_dim": 128}
    groups = [
        [Entry(f"model.layers.{layer}.{name}.weight", "BF16", shape)] for layer in range(48) for name, shape in LAYER
    ]
    ends = [
        Entry("model.embed_tokens.weight", "BF16", (config["vocab_size"], 5120)),
        Entry("model.norm.weight", "BF16", (5120,)),
    ]
    laid_out = shards([*groups, ends], 5_000_000_000)
    assert len(laid_out) == 7
    total = sum(shard.file_bytes for shard in laid_out)
    assert total > 30e9
    name, index = index_file(laid_out) or ("", "")
    files = {file: data for file, data in demo_files().items() if file != "model.safetensors"}
    files |= {"config.json": json.dumps(config).encode(), name: index.encode()}
    starts = {shard.file_name: shard.header.ljust(FIRST_BYTES, b"\0") for shard in laid_out}
    weights = {shard.file_name: Hollow(starts[shard.file_name], shard.file_bytes) for shard in laid_out}
    hub.add("tests/large", {**files, **weights})
    code, printed, err = command("convert", "tests/large", "--dry-run", "--type", "tq2_0", "--json")
    assert code == 0, err
    plan = json.loads(printed)
    assert len(plan["tensors"]) == sum(len(shard.entries) for shard in laid_out)
    assert 3.9e9 < plan["file_bytes"] < 4.1e9
    assert hub.sent(WEIGHTS) == 7 * FIRST_BYTES
    assert hub.sent("") < 300_000  # with the tokenizer (108 kB), the index and the answers about the repository


def test_headers_that_contradict_config_json(hub: HubServer, command: Command, tmp_path: Path) -> None:
    folder = build("llama-tied", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 2 * config["intermediate_size"]}))
    hub.add("tests/contradiction", {path.name: path.read_bytes() for path in folder.iterdir()})
    code, _, err = command("convert", "tests/contradiction", "--dry-run", "--type", "f16")
    assert code == 1
    assert "weights and config.json belong to different models" in err


def test_weights_of_the_same_name_in_two_folders(hub: HubServer, command: Command, tmp_path: Path) -> None:
    """They can't be read, and neither is taken for all of the model: a plan says what converting them says."""
    folder = build("llama-tied", tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    shards = ("a/model.safetensors", "b/model.safetensors")
    for shard in shards:
        (folder / shard).parent.mkdir()
        (folder / shard).write_bytes(weights)
    index = {"weight_map": {"model.embed_tokens.weight": shards[0], "model.norm.weight": shards[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    local = command("convert", folder, "--dry-run", "--type", "f16")
    hub.add("tests/twice", {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()})
    assert command("convert", "tests/twice", "--dry-run", "--type", "f16") == local
    assert (local[0], "names the shard 'a/model.safetensors'" in local[2]) == (1, True)


def test_weights_that_are_no_safetensors(hub: HubServer, command: Command) -> None:
    hub.add("tests/damaged", {**demo_files(), "model.safetensors": b"\xff" * 20_000})
    code, _, err = command("inspect", "tests/damaged")
    assert (code, err) == (
        1,
        "error: tests/damaged: model.safetensors isn't a safetensors file; the repository is damaged\n",
    )


def test_quantize_copies_what_the_repository_has(
    hub: HubServer, demo: Repository, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, planned, err = command("quantize", demo.name, "--scheme", "bitnet", "--dry-run", "--json")
    assert (code, json.loads(planned)["notes"][0]) == (
        0,
        "only the headers of the weights are here: the loss isn't known",
    )
    assert hub.sent(WEIGHTS) <= FIRST_BYTES
    code, _, err = command("quantize", demo.name, out, "--scheme", "bitnet")
    assert code == 0, err
    assert (out / "model.safetensors").stat().st_size == json.loads(planned)["weight_bytes"]
    expected = tmp_path / "expected"
    assert command("quantize", DEMO, expected, "--scheme", "bitnet")[0] == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in expected.iterdir()}
    assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def test_chat_with_a_gguf_file_on_the_hub(hub: HubServer, command: Command, demo_gguf: Path, tmp_path: Path) -> None:
    hub.add("tests/chat-gguf", {"demo-TQ2_0.gguf": demo_gguf.read_bytes(), "demo-F16.gguf": b"GGUF" * 5000})
    ask = ("--temperature", 0, "--prompt", "Who are you?")
    code, answer, err = command("chat", "tests/chat-gguf:TQ2_0", *ask)
    assert (code, err) == (0, ""), err
    assert answer == command("chat", demo_gguf, *ask)[1]
    assert not hub.sent("F16")
    code, _, err = command("chat", "tests/chat-gguf", *ask)
    assert (code, err.startswith("error: tests/chat-gguf holds 2 GGUF files: name one: ")) == (1, True)


def test_a_gguf_source_on_the_hub_is_recorded_and_found_again(
    hub: HubServer, command: Command, demo_gguf: Path, tmp_path: Path
) -> None:
    repository = hub.add("tests/source-gguf", {"demo.gguf": demo_gguf.read_bytes()})
    out = tmp_path / "out.gguf"
    code, _, err = command("convert", "hf.co/tests/source-gguf", out, "--type", "tq1_0", "--no-check")
    assert code == 0, err
    page = f"https://huggingface.co/tests/source-gguf/blob/{repository.refs['main']}/demo.gguf"
    assert fields(out)["general.source.url"] == page
    assert fields(out)["general.name"] == fields(demo_gguf)["general.name"]
    code, _, err = command("verify", out)
    assert code == 0, err
    assert command("inspect", "tests/source-gguf")[1].startswith("demo.gguf: GGUF (llama)")


def test_inspect_reads_a_gguf_files_header_alone(hub: HubServer, command: Command, demo_gguf: Path) -> None:
    hub.add("tests/header-gguf", {"demo.gguf": demo_gguf.read_bytes(), "mmproj-demo.gguf": b"GGUF"})
    code, printed, err = command("inspect", "tests/header-gguf")
    assert (code, err) == (0, "")
    assert printed.splitlines()[0] == command("inspect", demo_gguf)[1].splitlines()[0]
    assert "note: inspected from the file's header alone" in printed
    assert "unknown" not in printed
    header = min(tensor.data_offset for tensor in gguf.GGUFReader(demo_gguf).tensors)
    assert hub.sent("demo.gguf") < 4 * header < demo_gguf.stat().st_size
    assert not (storage("tests/header-gguf") / "snapshots").exists()


@pytest.mark.parametrize("parts", [None, "2M"])
def test_a_plan_of_a_gguf_file_reads_its_header_alone(
    hub: HubServer, command: Command, parts: str | None, tmp_path: Path
) -> None:
    convert(DEMO, tmp_path / "demo.gguf", "q8_0", check=False, max_shard_size=parts)
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")}
    name = f"tests/planned-{'gguf' if parts is None else 'parts'}"
    hub.add(name, files)
    asked = ("convert", name, "--dry-run", "--type", "f16", "--json")
    code, printed, err = command(*asked)
    assert code == 0, err
    planned = json.loads(printed)
    assert "planned from the file's header alone: which tensors the type holds exactly isn't known" in planned["notes"]
    headers = [min(tensor.data_offset for tensor in gguf.GGUFReader(path).tensors) for path in tmp_path.glob("*.gguf")]
    assert hub.sent(r"\.gguf$") < 4 * sum(headers) < sum(map(len, files.values()))
    assert not (storage(name) / "snapshots").exists()
    download(ModelName(name))
    found = json.loads(command(*asked)[1])
    assert planned["file_bytes"] == found["file_bytes"]
    for told, known in zip(planned["tensors"], found["tensors"], strict=True):
        assert told["exact"] is None if told["name"].startswith("blk.") and told["type"] == "f16" else told == known


@pytest.mark.parametrize("name", ["llama-llama3", "phi3-longrope-long", "gemma3", "qwen3next"])
def test_quantize_plans_from_a_gguf_files_header_alone(
    hub: HubServer, command: Command, name: str, tmp_path: Path
) -> None:
    """What config.json says of a rotation is in the divisors, which are read too."""
    made = convert(build(name, tmp_path / "model"), tmp_path / "made.gguf", "f16", check=False).out
    hub.add(f"tests/way-back-{name}", {"made.gguf": made.read_bytes()})
    asked = ("quantize", f"tests/way-back-{name}", "--dequantize", "--dry-run", "--json")
    code, printed, err = command(*asked)
    assert code == 0, err
    planned = json.loads(printed)
    assert planned.pop("notes")[0] == "only the headers of the weights are here: the loss isn't known"
    header = min(tensor.data_offset for tensor in gguf.GGUFReader(made).tensors)
    divisors = [tensor.n_bytes for tensor in gguf.GGUFReader(made).tensors if tensor.name.startswith("rope_f")]
    assert hub.sent("made.gguf$") < min(4 * header, made.stat().st_size / 2) + sum(divisors)
    assert not (storage(f"tests/way-back-{name}") / "snapshots").exists()
    found = json.loads(command("quantize", made, "--dequantize", "--dry-run", "--json")[1])
    assert planned == {key: value for key, value in found.items() if key != "notes"}


def test_quantize_plans_packed_from_a_header(hub: HubServer, command: Command, demo_gguf: Path) -> None:
    """The layers' scales, which are tensors of their own, aren't read."""
    hub.add("tests/packed-gguf", {"demo.gguf": demo_gguf.read_bytes()})
    code, printed, err = command("quantize", "tests/packed-gguf", "--scheme", "bitnet", "--dry-run")
    assert code == 0, err
    assert hub.sent(r"\.gguf$") < demo_gguf.stat().st_size / 2
    assert printed == command("quantize", demo_gguf, "--scheme", "bitnet", "--dry-run")[1]


def test_an_automatic_type_needs_a_gguf_files_weights(hub: HubServer, command: Command, demo_gguf: Path) -> None:
    hub.add("tests/auto-gguf", {"demo.gguf": demo_gguf.read_bytes()})
    code, printed, err = command("convert", "tests/auto-gguf", "--dry-run")
    assert (code, printed) == (1, "")
    assert err.startswith("error: the weights aren't here, so no exact type can be chosen: add --type, such as")
    assert hub.sent(r"\.gguf$") < demo_gguf.stat().st_size / 2


def test_gguf_files_without_a_header_arent_read_to_their_end(hub: HubServer, command: Command, monkeypatch) -> None:
    monkeypatch.setattr("tritgguf.runtime.hub.headers.MAX_GGUF_HEADER_BYTES", 1 << 16, raising=False)
    version = bytes([3, 0, 0, 0])
    starts = {"none": b"none" + version, "endless": b"GGUF" + version + b"\xff" * (1 << 18)}
    for name, start in starts.items():
        hub.add(f"tests/{name}", {"x.gguf": Hollow(start.ljust(FIRST_BYTES), 10**9)})
        code, printed, err = command("inspect", f"tests/{name}")
        refusal = f"tests/{name}: x.gguf isn't a GGUF file that can be read; the repository is damaged"
        assert (code, printed, err) == (1, "", f"error: {refusal}\n")


def test_names_of_files_that_cant_be_printed(hub: HubServer, demo_gguf: Path, command: Command) -> None:
    names = ("\x1b[2J.gguf", "a\0.gguf", "../up.gguf", "a.gguf", "b.gguf")
    hub.add("tests/control", dict.fromkeys(names, demo_gguf.read_bytes()))
    code, _, err = command("inspect", "tests/control")
    listed = "tests/control:a.gguf, tests/control:b.gguf"
    assert (code, err) == (1, f"error: tests/control holds 2 GGUF files: name one: {listed}\n")


@pytest.mark.parametrize("name", ["inspect", "convert", "quantize", "verify", "chat"])
def test_a_name_that_is_too_long(name: str, command: Command, tmp_path: Path) -> None:
    more = {"convert": [tmp_path / "out.gguf"], "quantize": [tmp_path, "--scheme", "bitnet"], "verify": [tmp_path]}
    code, printed, err = command(name, "x" * 300, *more.get(name, []))
    assert (code, printed, err.count("\n")) == (1, "", 1)
    assert "is too long for a path" in err


def test_verify_alone_needs_a_recorded_source(hub: HubServer, command: Command, demo_gguf: Path) -> None:
    refusal = "demo.gguf doesn't record a model on Hugging Face that it was made from: name the model, "
    assert command("verify", demo_gguf) == (1, "", f"error: {refusal}tritgguf verify MODEL demo.gguf\n")
    code, _, err = command("verify", DEMO)
    assert code == 2
    assert "name the GGUF file to check" in err


def test_a_folder_beats_a_name(hub: HubServer, demo: Repository, command: Command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO, tmp_path / demo.name)
    assert command("inspect", demo.name)[0] == 0
    assert not hub.requests
    assert ModelName(demo.name)
