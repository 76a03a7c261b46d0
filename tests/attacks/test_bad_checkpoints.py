"""Damaged, wrong and hostile input: one clear line, exit code 1, no file left, nothing lost."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.damage import assert_one_error_line, edit_config, edit_entry, join_header, poison, split_header
from tests.checkpoints import build
from tests.command_line import run

Attack = Callable[[Path], None]
ATTACKS: dict[str, tuple[str, Attack, str]] = {}


def attack(expected: str, recipe: str = "llama-gqa") -> Callable[[Attack], Attack]:
    """Register a function that damages a checkpoint, and what the error must say."""

    def register(function: Attack) -> Attack:
        ATTACKS[function.__name__] = (recipe, function, expected)
        return function

    return register


@attack("has no config.json")
def missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@attack("config.json is damaged at line 1, column 20: .*; fetch the file again")
def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": [')


@attack("config.json holds a JSON list; expected an object")
def config_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


@attack("hidden_size must be a positive integer, found None")
def missing_hidden_size(folder: Path) -> None:
    edit_config(folder, hidden_size=...)


@attack("num_hidden_layers must be a positive integer, found -1")
def negative_layers(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=-1)


@attack("num_hidden_layers must be at most 512, found 1000000000")
def a_thousand_million_layers(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=10**9)


@attack("config.json: rms_norm_eps must be a positive number from 1e-30 to 1e.30, found nan")
def epsilon_is_no_number(folder: Path) -> None:
    edit_config(folder, rms_norm_eps=float("nan"))


@attack("config.json: tie_word_embeddings must be true or false, found 'false'")
def tied_by_a_text(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings="false")


@attack("config.json: hidden_size is nested more than 64 levels deep; fetch the file again")
def deep_value(folder: Path) -> None:
    edit_config(folder, hidden_size=json.loads("[" * 100 + "]" * 100))


@attack("config.json is nested too deeply; fetch the file again")
def bottomless_value(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": ' + "[" * 100_000 + "]" * 100_000 + "}")


@attack("generation_config.json: top_p must be a number from 0 to 1, found '0.9'")
def sampling_as_text(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"top_p": "0.9"}')


@attack("names no architectures")
def architectures_are_a_number(folder: Path) -> None:
    edit_config(folder, architectures=5)


@attack("names no architectures")
def no_architectures(folder: Path) -> None:
    edit_config(folder, architectures=...)


@attack("architecture GPT2LMHeadModel isn't known; known are .*LlamaForCausalLM.*Qwen3ForCausalLM")
def unknown_architecture(folder: Path) -> None:
    edit_config(folder, architectures=["GPT2LMHeadModel"])


@attack("the weights are neither packed nor ternary floats")
def bitnet_config_over_ordinary_floats(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "bitnet"})


@attack("use_rms_norm puts a norm inside every linear layer")
def norms_inside_linear_layers(folder: Path) -> None:
    quantization = {"quant_method": "bitnet", "linear_class": "bitlinear", "use_rms_norm": True}
    edit_config(folder, quantization_config={**quantization, "quantization_mode": "online"})


@attack("quantization_config.rotation.use_hadamard says that the weights are in a Hadamard basis")
def hadamard_basis(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "bitnet", "rotation": {"use_hadamard": True}})


@attack("BitNetModel is a model without an output layer, such as one for text embeddings")
def embedding_model(folder: Path) -> None:
    edit_config(folder, architectures=["BitNetModel"])


@attack("pre-tokenizer")
def unknown_pre_tokenizer(folder: Path) -> None:
    """As Falcon-E's, which llama.cpp doesn't have."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    punctuation = {"type": "Punctuation", "behavior": "Contiguous"}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [punctuation, tokenizer["pre_tokenizer"]]}
    path.write_text(json.dumps(tokenizer))


@attack("quantization_config.quant_method 'awq' isn't read")
def unknown_quantization(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "awq"})


@attack("config.json says GPTQ, but no tensor is packed: remove its quantization_config")
def floats_called_packed(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})


@attack("rope scaling 'dynamic' isn't known")
def unknown_rope(folder: Path) -> None:
    edit_config(folder, rope_scaling={"rope_type": "dynamic", "factor": 2.0})


@attack("rope_scaling.factor must be a positive number from 1e-30 to 1e.30, found None")
def rope_without_factor(folder: Path) -> None:
    edit_config(folder, rope_scaling={"rope_type": "linear"})


@attack("hidden_act is .gelu., but the graph computes silu")
def other_activation(folder: Path) -> None:
    edit_config(folder, hidden_act="gelu")


@attack("partial_rotary_factor is 0.5")
def partial_rotation(folder: Path) -> None:
    edit_config(folder, partial_rotary_factor=0.5)


@attack("model.safetensors is truncated: its header lists [0-9]+ bytes of tensors, the file has [0-9]+")
def truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)


@attack("model-00002-of-0000[0-9].safetensors is truncated", recipe="qwen2")
def truncated_shard(folder: Path) -> None:
    path = next(folder.glob("model-00002-of-*.safetensors"))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@attack("has 5 bytes, too few")
def nearly_empty_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"hello")


@attack("the header claims [0-9]+ bytes, but the file has")
def header_length_beyond_the_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])


@attack("the header isn't valid JSON")
def header_is_no_json(folder: Path) -> None:
    join_header(folder / "model.safetensors", b"\xff\xfe not json", b"")


@attack("the header isn't a JSON object")
def header_is_a_number(folder: Path) -> None:
    join_header(folder / "model.safetensors", b"12", b"")


@attack("'model.norm.weight' appears twice")
def tensor_twice_in_the_header(folder: Path) -> None:
    header, body = split_header(folder / "model.safetensors")
    entry = f'"model.norm.weight":{json.dumps(header["model.norm.weight"])}'
    join_header(folder / "model.safetensors", f"{{{entry},{entry}}}".encode(), body)


@attack(r"the data of .* overlaps")
def overlapping_offsets(folder: Path) -> None:
    header, body = split_header(folder / "model.safetensors")
    gate, up = (header[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "up"))
    up["data_offsets"] = gate["data_offsets"]
    join_header(folder / "model.safetensors", header, body)


@attack("leaves a hole after")
def hole_between_tensors(folder: Path) -> None:
    header, body = split_header(folder / "model.safetensors")
    header.pop("model.layers.0.mlp.up_proj.weight")
    join_header(folder / "model.safetensors", header, body)


@attack("has 64 bytes after its last tensor")
def bytes_after_the_end(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(bytes(64))


@attack("needs [0-9]+ bytes, but its data_offsets span")
def shape_that_does_not_fit_the_bytes(folder: Path) -> None:
    edit_entry(folder, "model.norm.weight", shape=[3])


@attack("isn't dtype, shape and data_offsets")
def negative_offsets(folder: Path) -> None:
    edit_entry(folder, "model.norm.weight", data_offsets=[-512, 0])


@attack("isn't dtype, shape and data_offsets")
def entry_is_text(folder: Path) -> None:
    header, body = split_header(folder / "model.safetensors")
    join_header(folder / "model.safetensors", {**header, "model.norm.weight": "gone"}, body)


@attack("unknown dtype F4")
def unknown_dtype(folder: Path) -> None:
    edit_entry(folder, "model.norm.weight", dtype="F4")


@attack("holds I16; expected BF16, F16 or F32")
def integer_weights(folder: Path) -> None:
    edit_entry(folder, "model.layers.0.mlp.up_proj.weight", dtype="I16")


@attack(r"model.layers.0.mlp.up_proj.weight has the shape \(256, 512\), but config.json calls for \(512, 256\)")
def transposed_weight(folder: Path) -> None:
    edit_entry(folder, "model.layers.0.mlp.up_proj.weight", shape=[256, 512])


@attack(r"has the shape \(320, 256\), but config.json calls for \(400, 256\)")
def vocab_size_larger_than_the_embeddings(folder: Path) -> None:
    edit_config(folder, vocab_size=400)


@attack("has no tensor model.layers.2.input_layernorm.weight, which config.json calls for")
def more_layers_than_weights(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=3)


@attack("holds model.layers.1.* which llama.cpp's llama graph doesn't use")
def fewer_layers_than_weights(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1)


@attack("NaN or Inf values among the rows read, the first at row [0-9]+, column [0-9]+")
def nan_in_a_linear_layer(folder: Path) -> None:
    poison(folder, "model.layers.1.mlp.down_proj.weight", float("nan"))


@attack("model.embed_tokens.weight has 1 NaN or Inf")
def inf_in_the_embeddings(folder: Path) -> None:
    poison(folder, "model.embed_tokens.weight", float("inf"))


@attack("model.norm.weight has 1 NaN or Inf")
def nan_in_a_norm(folder: Path) -> None:
    poison(folder, "model.norm.weight", float("nan"))


@attack("model.embed_tokens.weight: a value is 999424, but f16 ends at 65504")
def embedding_beyond_fp16(folder: Path) -> None:
    poison(folder, "model.embed_tokens.weight", 1e6)


@attack("names the shard .*, which isn't in the folder", recipe="qwen2")
def missing_shard(folder: Path) -> None:
    next(folder.glob("model-00002-of-*.safetensors")).unlink()


@attack("lies outside the folder", recipe="qwen2")
def shard_outside_the_folder(folder: Path) -> None:
    edit_index(folder, lambda shard: f"../{shard}")


@attack("lies outside the folder", recipe="qwen2")
def shard_at_an_absolute_path(folder: Path) -> None:
    edit_index(folder, lambda shard: f"/etc/{shard}")


@attack("weight_map must map names to file names", recipe="qwen2")
def shard_is_a_number(folder: Path) -> None:
    edit_index(folder, lambda shard: 7)


@attack("has no weight_map", recipe="qwen2")
def index_without_map(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


@attack("says that .* holds .*, but it doesn't", recipe="qwen2")
def index_naming_the_wrong_shard(folder: Path) -> None:
    edit_index(folder, lambda shard: "model-00001-of-" + shard.split("-of-")[1])


@attack("both hold", recipe="qwen2")
def tensor_in_two_shards(folder: Path) -> None:
    shards = sorted(folder.glob("model-*.safetensors"))
    first, _ = split_header(shards[0])
    shutil.copy(shards[0], folder / "copy.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = next(name for name in first if name != "__metadata__")
    index["weight_map"][name] = "copy.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@attack("pytorch_model.bin: the zip archive's directory is missing: the file is cut off; the file is damaged, fetch it")
def only_a_pickle_that_is_cut_off(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


@attack("holds consolidated.00.pth, but neither model.safetensors nor")
def weights_of_another_program(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.00.pth")


@attack("holds weights.safetensors, but neither model.safetensors nor")
def weights_under_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


@attack("holds no weights .*it can only be planned")
def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@attack("tokenizer")
def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@attack("vocab_size is 100")
def tokenizer_larger_than_the_vocabulary(folder: Path) -> None:
    edit_config(folder, vocab_size=100)


@attack("rows of 192 values aren't a multiple of 256, which tq2_0 needs; add --fallback f16", recipe="llama-hidden-192")
def rows_that_do_not_fit(folder: Path) -> None:
    del folder


def edit_index(folder: Path, rename: Callable[[str], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: rename(shard) for name, shard in index["weight_map"].items()}
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, damage, expected = ATTACKS[name]
    model, target = build(recipe, tmp_path / "model"), tmp_path / "target"
    target.mkdir()
    damage(model)
    assert run(monkeypatch, "convert", model, target / "out.gguf", "--type", "tq2_0") == 1
    assert_one_error_line(capsys, expected)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["architectures_are_a_number", "deep_value", "bottomless_value", "tied_by_a_text"])
@pytest.mark.parametrize("command", ["inspect", "quantize"])
def test_other_commands_read_the_same_config(name, command, tmp_path, monkeypatch, capsys) -> None:
    model, out = build("llama-gqa", tmp_path / "model"), tmp_path / "out"
    ATTACKS[name][1](model)
    arguments = [out, "--dequantize"] if command == "quantize" else []
    code = run(monkeypatch, command, model, *arguments)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert re.search(ATTACKS[name][2], " ".join((printed.err + printed.out).split()))
    assert code == 1 or command == "inspect"
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.gguf", b"GGUF\x03\0\0\0", "model.gguf: the header is damaged or cut off"),
        ("notes.txt", b"just some text", "is a file; expected a Hugging Face model folder"),
        ("pytorch_model.bin", b"PK\x03\x04rest", "expected the folder that contains it"),
        ("consolidated.00.pth", b"\x80\x02ctorch", "expected the folder that contains it"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0", "expected the folder that contains it"),
        ("empty", b"", "is a file; expected a Hugging Face model folder"),
    ],
)
def test_a_file_given_as_the_model(name, content, expected, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / name).write_bytes(content)
    assert run(monkeypatch, "convert", tmp_path / name, tmp_path / "out.gguf") == 1
    assert_one_error_line(capsys, expected)
    assert not (tmp_path / "out.gguf").exists()


def test_a_model_that_is_not_there(tmp_path, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "convert", tmp_path / "nowhere", tmp_path / "out.gguf") == 1
    assert_one_error_line(capsys, "nowhere doesn't exist")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_an_adapter_beside_a_full_model_is_not_ignored(name, command, tmp_path, monkeypatch, capsys) -> None:
    model = build("llama-gqa", tmp_path / "model")
    (model / name).write_text("{}")
    options = ["--scheme", "bitnet"] if command == "quantize" else []
    assert run(monkeypatch, command, model, tmp_path / "out", *options) == 1
    assert_one_error_line(capsys, rf"holds an adapter \({name}\), which isn't read here: merge it with --lora")
