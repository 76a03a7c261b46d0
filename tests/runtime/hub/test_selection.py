"""Which files of a repository are fetched."""

import json

import pytest

from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.names import ModelName, parse
from tritgguf.runtime.hub.selection import choose, shards

NAME = ModelName("org/name")
SAFETENSORS = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.json", "model.onnx"]
GGUFS = ["a-Q2_0.gguf", "a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "mmproj-a-f16.gguf"]
SPLIT = [f"big/m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]


def chosen(text: str, files: list[str], prefer: str = "checkpoint") -> set[str]:
    name = parse(text)
    assert name is not None
    return set(choose(name, files, prefer).files)


def test_a_checkpoint_is_its_config_tokenizer_and_safetensors() -> None:
    others = ["training_args.bin", "consolidated.safetensors", "optimizer.pt", ".gitattributes", "a/config.json"]
    files = [*SAFETENSORS, "README.md", "LICENSE", "modeling_x.py", "additional_chat_templates/t.jinja", *others]
    assert chosen("org/name", files) == {
        "config.json", "model.safetensors", "tokenizer.json", "README.md", "LICENSE", "modeling_x.py",
        "additional_chat_templates/t.jinja",
    }  # fmt: skip


def test_pytorch_files_where_there_is_nothing_else() -> None:
    assert chosen("org/name", ["config.json", "pytorch_model.bin", "vocab.json"]) == {
        "config.json", "pytorch_model.bin", "vocab.json"
    }  # fmt: skip
    index = choose(NAME, ["config.json", "pytorch_model.bin.index.json", "pytorch_model-1.bin"], "checkpoint")
    assert index.index == "pytorch_model.bin.index.json"


def test_an_index_names_the_weights() -> None:
    files = [
        "config.json",
        "model.safetensors.index.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "x.safetensors",
    ]
    choice = choose(NAME, files, "checkpoint")
    assert choice.index == "model.safetensors.index.json"
    text = json.dumps(
        {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"}}
    )
    assert shards(NAME, choice.index, text, files) == ("model-1.safetensors", "model-2.safetensors")
    with pytest.raises(HubError, match=r"names model-3\.safetensors, which the repository doesn't have"):
        shards(NAME, choice.index, json.dumps({"weight_map": {"a": "model-3.safetensors"}}), files)
    with pytest.raises(HubError, match="names 5, which the repository doesn't have"):
        shards(NAME, choice.index, '{"weight_map": {"a": 5}}', files)
    for damaged in ("", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": {}}}', "[" * 100_000):
        with pytest.raises(HubError, match=r"index\.json (has no weight_map|names no file)"):
            shards(NAME, choice.index, damaged, files)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name:a-Q2_0.gguf", {"a-Q2_0.gguf"}),
        ("org/name:Q2_0", {"a-Q2_0.gguf"}),
        ("org/name:q4_k_m", {"a-Q4_K_M.gguf"}),
        ("org/name:mmproj-a-f16.gguf", {"mmproj-a-f16.gguf"}),
        ("org/name:big/m-00001-of-00003.gguf", set(SPLIT)),
        ("org/name:big/m-00002-of-00003.gguf", set(SPLIT)),
        ("org/name:big/", set(SPLIT)),
    ],
)
def test_a_file_or_a_part_of_its_name(text: str, expected: set[str]) -> None:
    assert chosen(text, [*SAFETENSORS, *GGUFS, *SPLIT]) == expected


def test_the_only_gguf_file() -> None:
    assert chosen("org/name", ["README.md", *SPLIT]) == set(SPLIT)
    assert chosen("org/name", ["config.json", "m.gguf", "mmproj-m.gguf"]) == {"m.gguf"}
    assert chosen("org/name", [*SAFETENSORS, "m.gguf"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert chosen("org/name", [*SAFETENSORS, "m.gguf"], "gguf") == {"m.gguf"}


@pytest.mark.parametrize(
    ("text", "files", "prefer", "message"),
    [
        ("org/name", GGUFS, "checkpoint",
         r"^org/name holds 3 GGUF files: name one: org/name:a-Q2_0\.gguf, org/name:a-Q4_K_M\.gguf, .*gguf$"),
        ("org/name@v1:Q4_K", GGUFS, "checkpoint", r"2 GGUF files have Q4_K .*: name one: org/name@v1:a-Q4_K_M\.gguf, "),
        ("org/name:Q8_0", GGUFS, "gguf", r"^org/name has no GGUF file Q8_0; name one that it has: org/name:a-Q2_0"),
        ("org/name:Q8_0", SAFETENSORS, "gguf", r"^org/name holds no GGUF file, so there is no Q8_0 in it$"),
        ("org/name", SAFETENSORS, "gguf", r"holds no GGUF file; make one of its weights: tritgguf convert org/name"),
        ("org/name@v1", ["config.json", "a.h5"], "checkpoint", r"no model .* at v1: it has no weights .* a\.h5"),
        ("org/name", ["a.txt"], "checkpoint", r"it has no config\.json; it holds a\.txt$"),
        ("org/name", [], "checkpoint", r"it holds nothing$"),
        ("org/name", ["adapter_config.json"], "checkpoint", r"^org/name is an adapter, not a model: .* with --lora$"),
        ("org/name", [f"{number:02}.gguf" for number in range(20)], "gguf", r"holds 20 GGUF files: .* and 8 more$"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_name(text: str, files: list[str], prefer: str, message: str) -> None:
    with pytest.raises(HubError, match=message):
        chosen(text, files, prefer)
