"""Keys and token ids: what matters and differs is told."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from gguf import GGUFValueType

from tests import checkpoints, packed_checkpoints, tokenizer_folders
from tests.checkpoint_recipes import RECIPES
from tests.converter.verification.checks import bad
from tests.gguf_edit import rewrite
from tritgguf.converter import convert
from tritgguf.converter.errors import TensorError
from tritgguf.converter.gguf_io.metadata import Value, boolean, float32, uint32
from tritgguf.converter.verification.metadata_check import compare_metadata
from tritgguf.converter.verification.verification import require_good, verify

Folder = Callable[[str], Path]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("llama.rope.freq_base", 500000.0, "llama.rope.freq_base is 500000.0; expected 10000.0"),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5, "epsilon is 9.99.*e-06; expected 0.05"),
        ("llama.attention.head_count_kv", None, "head_count_kv is missing; expected 2"),
        ("llama.rope.scaling.factor", 2.0, r"scaling\.factor is 2\.0; the model doesn't need this key"),
        ("tokenizer.ggml.eos_token_id", 7, "eos_token_id is 7; expected"),
        ("tokenizer.ggml.pre", "qwen2", "tokenizer.ggml.pre is 'qwen2'; expected 'llama-bpe'"),
        ("tokenizer.ggml.add_bos_token", None, "add_bos_token is missing; expected True"),
    ],
)
def test_a_key_that_matters(
    key: str, value: object, expected: str, model: Folder, ordinary: Path, tmp_path: Path
) -> None:
    found = verify(model("llama-gqa"), rewrite(ordinary, tmp_path / "out.gguf", keys={key: value}))
    assert not bad(found)
    assert len(found.wrong_keys) == 1
    with pytest.raises(TensorError, match=expected):
        require_good(found.problems, tmp_path / "out.gguf")


def test_numbers_are_equal_by_value_whatever_their_type() -> None:
    expected = {"x.a": uint32(3), "x.b": float32(0.1), "x.c": float32(2.0), "x.d": boolean(True)}
    same = {"x.a": Value(3, GGUFValueType.INT64), "x.b": Value(0.1, GGUFValueType.FLOAT64), "x.c": uint32(2)}
    assert compare_metadata(expected, {**same, "x.d": boolean(True)}) == ((), ())
    wrong, _ = compare_metadata(expected, {**same, "x.b": Value(1e300, GGUFValueType.FLOAT64), "x.d": uint32(1)})
    assert wrong == ("x.b is 1e+300; expected 0.1", "x.d is 1; expected True")


def test_a_wrong_pre_tokenizer_gives_other_ids(tmp_path: Path, monkeypatch) -> None:
    """The tiny tokenizers have too few merges to tell; this one's run across what pre-tokenizers keep apart."""
    structure = tokenizer_folders.byte_level_structure()
    n_vocab = len(structure["model"]["vocab"]) + len(structure["added_tokens"])
    monkeypatch.setitem(RECIPES, "many-tokens", replace(RECIPES["llama1"], vocab=n_vocab))
    source = checkpoints.build("many-tokens", tmp_path / "model")
    config = packed_checkpoints.read_config(source) | tokenizer_folders.CONFIG
    packed_checkpoints.write_config(source, config)
    tokenizer_folders.write_json(source / "tokenizer.json", structure)
    (source / "tokenizer_config.json").unlink()
    right = convert(source, tmp_path / "right.gguf", "tq2_0", check=False).out
    assert verify(source, right).problems == []
    found = verify(source, rewrite(right, tmp_path / "wrong.gguf", keys={"tokenizer.ggml.pre": "deepseek-llm"}))
    assert found.wrong_keys == ("tokenizer.ggml.pre is 'deepseek-llm'; expected 'gpt-2'",)
    assert found.token_ids is not None
    assert "becomes other token ids than in the source tokenizer" in found.token_ids
    assert "--no-check" not in found.token_ids
    assert found.strings_checked == 0


def test_one_token_changed(model: Folder, ordinary: Path, tmp_path: Path) -> None:
    tokens = gguf.GGUFReader(ordinary).fields["tokenizer.ggml.tokens"].contents()
    tokens[40], tokens[41] = tokens[41], tokens[40]
    found = verify(model("llama-gqa"), rewrite(ordinary, tmp_path / "out.gguf", keys={"tokenizer.ggml.tokens": tokens}))
    assert len(found.wrong_keys) == 1
    assert f"tokenizer.ggml.tokens is {tokens[40]!r} at index 40; expected {tokens[41]!r} at index 40" in found.problems
    assert found.token_ids is not None


def test_two_models_that_do_not_belong_together(model: Folder, ordinary: Path) -> None:
    found = verify(model("llama-linear"), ordinary)
    assert any("rope" in key for key in found.wrong_keys)
    assert len(bad(found)) > 10
