"""Every row of the pre-tokenizer table, run in llama.cpp beside the tokenizers library."""

import json
from pathlib import Path

import pytest

from tests.tokenizer_folders import CONFIG, byte_level_structure, splitting, write_json
from tests.vocab_file import check_in_this_process, write_vocab_file
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import string
from tritgguf.converter.tokenizer import SourceTokenizer, read_tokenizer
from tritgguf.converter.tokenizer.pretokenizers import (
    BYTES,
    GPT4O,
    LLAMA3,
    PRE_TOKENIZERS,
    QWEN2,
    SINGLE_DIGITS,
    WORDS_AND_BYTES,
    PreTokenizer,
    candidates,
    steps_of,
)

SAME = [row for row in PRE_TOKENIZERS if not row.difference]
NEAR = [row for row in PRE_TOKENIZERS if row.difference]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def structure_of(row: PreTokenizer) -> dict:
    """The tokenizer.json spelling of a row's steps."""
    spelt = {
        BYTES: {**BYTE_LEVEL, "use_regex": False},
        WORDS_AND_BYTES: {**BYTE_LEVEL, "use_regex": True},
        SINGLE_DIGITS: {"type": "Digits", "individual_digits": True},
    }
    parts = [
        spelt[step] if step in spelt else splitting(step.removeprefix("Split "))["pretokenizers"][0]
        for step in row.steps
    ]
    return {"type": "Sequence", "pretokenizers": parts}


def read(row: PreTokenizer, folder: Path) -> SourceTokenizer:
    structure = byte_level_structure(pre_tokenizer=structure_of(row))
    structure["model"]["ignore_merges"] = row.merges_ignored
    write_json(folder / "tokenizer.json", structure)
    tokenizer = read_tokenizer(folder, n_vocab=9000, config=CONFIG)
    assert tokenizer.metadata["tokenizer.ggml.pre"].data == row.name
    return tokenizer


@pytest.mark.parametrize("row", SAME, ids=lambda row: row.name)
def test_a_row_gives_the_same_ids_in_llama_cpp(row: PreTokenizer, tmp_path: Path) -> None:
    tokenizer = read(row, tmp_path)
    assert check_in_this_process(tokenizer, write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)) >= 180


@pytest.mark.parametrize("row", NEAR, ids=lambda row: row.name)
def test_a_row_that_is_only_near_fails_the_check_and_says_why(row: PreTokenizer, tmp_path: Path) -> None:
    tokenizer = read(row, tmp_path)
    with pytest.raises(TokenizerError) as caught:
        check_in_this_process(tokenizer, write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata))
    assert row.difference in str(caught.value)


@pytest.mark.parametrize("right", SAME, ids=lambda row: row.name)
def test_every_wrong_name_is_caught(right: PreTokenizer, tmp_path: Path) -> None:
    tokenizer = read(right, tmp_path)
    for wrong in PRE_TOKENIZERS:
        if wrong.steps == right.steps:
            continue
        mutant = tokenizer.metadata | {"tokenizer.ggml.pre": string(wrong.name)}
        with pytest.raises(TokenizerError, match=r"other token ids than in the source tokenizer.*--no-check"):
            check_in_this_process(tokenizer, write_vocab_file(tmp_path / "wrong.gguf", mutant))


def test_removing_what_does_not_match_is_isolating_what_does() -> None:
    removing = json.loads(json.dumps(splitting(GPT4O)))
    removing["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    assert [row.name for row in candidates(steps_of(removing))] == ["gpt-4o"]
    removing["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}{1,3}"
    assert "Removed" in steps_of(removing)[0]


@pytest.mark.parametrize(
    ("pre_tokenizer", "named"),
    [
        (splitting(LLAMA3 + r"|\d"), r"p{L}"),
        (splitting(QWEN2, "[a-z]+"), "[a-z]+"),
        ({**BYTE_LEVEL, "add_prefix_space": True}, "add_prefix_space"),
        ({"type": "Whitespace"}, "Whitespace"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False}, BYTE_LEVEL]}, "Digits"),
        (
            {"type": "Sequence", "pretokenizers": [{"type": "Punctuation", "behavior": "Contiguous"}, BYTE_LEVEL]},
            "Punct",
        ),
        (None, "missing"),
    ],
)
def test_an_unknown_pre_tokenizer_is_an_error_that_names_it(pre_tokenizer: object, named: str, tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", byte_level_structure(pre_tokenizer=pre_tokenizer))
    with pytest.raises(TokenizerError, match=r"pre-tokenizer .* isn't known") as caught:
        read_tokenizer(tmp_path, n_vocab=9000, config=CONFIG)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
