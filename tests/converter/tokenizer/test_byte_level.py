"""Byte-level BPE from small tokenizer.json files: tokens, merges, added tokens, padding, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from tests.tokenizer_folders import CONFIG, END, TOOL, TURN_END, byte_level_structure, splitting, write_json
from tests.vocab_file import check_in_this_process, write_vocab_file
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer import SourceTokenizer, battery, has_tokenizer, read_tokenizer
from tritgguf.converter.tokenizer.byte_level import NFC_NOTE
from tritgguf.converter.tokenizer.pretokenizers import LLAMA3, QWEN2

NFC = {"type": "NFC"}


def read(folder: Path, structure: dict[str, Any], n_vocab: int = 3000) -> SourceTokenizer:
    write_json(folder / "tokenizer.json", structure)
    return read_tokenizer(folder, n_vocab=n_vocab, config=CONFIG)


def check(folder: Path, tokenizer: SourceTokenizer) -> int:
    return check_in_this_process(tokenizer, write_vocab_file(folder / "vocab.gguf", tokenizer.metadata))


def data(tokenizer: SourceTokenizer, key: str) -> Any:
    return tokenizer.metadata[f"tokenizer.ggml.{key}"].data


def test_tokens_types_and_padding(tmp_path: Path) -> None:
    structure = byte_level_structure()
    n_tokens = len(structure["model"]["vocab"]) + 1
    tokenizer = read(tmp_path, structure)
    tokens, types = data(tokenizer, "tokens"), data(tokenizer, "token_type")
    assert len(tokens) == len(types) == len(set(tokens)) == 3000
    assert (tokens[0], types[0]) == (END, TokenType.CONTROL)
    assert (tokens[n_tokens - 1], types[n_tokens - 1]) == (TOOL, TokenType.USER_DEFINED)
    assert types[2 : n_tokens - 1] == [TokenType.NORMAL] * (n_tokens - 3)
    assert tokens[n_tokens:] == [f"[PAD{token_id}]" for token_id in range(n_tokens, 3000)]
    assert types[n_tokens:] == [TokenType.UNUSED] * (3000 - n_tokens)
    assert tokenizer.special_tokens == (END, TURN_END, TOOL)
    assert tokenizer.kind == "bpe"
    assert list(tokenizer.metadata)[:5] == [
        "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
    ]  # fmt: skip
    assert check(tmp_path, tokenizer) >= 180


def test_merges_as_pairs_and_as_strings_are_the_same(tmp_path: Path) -> None:
    pairs = byte_level_structure()
    strings = json.loads(json.dumps(pairs))
    strings["model"]["merges"] = [" ".join(pair) for pair in strings["model"]["merges"]]
    assert isinstance(pairs["model"]["merges"][0], list)
    first, second = read(tmp_path, pairs), read(tmp_path, strings)
    assert data(first, "merges") == data(second, "merges") == strings["model"]["merges"]


@pytest.mark.parametrize("merge", ["ab", "a b c", ["a b"], ["a", "b c"], ["a", "b", "c"], []])
def test_a_merge_is_of_two_pieces(merge: str | list[str], tmp_path: Path) -> None:
    """Also where the tokenizers library isn't asked at once."""
    structure = byte_level_structure()
    structure["model"]["merges"][0] = merge
    write_json(tmp_path / "tokenizer.json", structure)
    with pytest.raises(TokenizerError, match="isn't two pieces without spaces"):
        read_tokenizer(tmp_path, n_vocab=3000, config=CONFIG, load=False)


def test_a_token_that_looks_like_padding_keeps_its_name_to_itself(tmp_path: Path) -> None:
    structure = byte_level_structure()
    free = len(structure["model"]["vocab"]) + 1
    structure["added_tokens"][2]["content"] = f"[PAD{free}]"
    tokenizer = read(tmp_path, structure)
    assert data(tokenizer, "tokens")[free - 1 : free + 1] == [f"[PAD{free}]", f"[[PAD{free}]]"]
    assert check(tmp_path, tokenizer) >= 180


def test_a_gap_in_the_ids_is_padded(tmp_path: Path) -> None:
    structure = byte_level_structure()
    structure["added_tokens"].pop()
    vocab = structure["model"]["vocab"]
    last = max(vocab, key=vocab.__getitem__)
    vocab[last] = 2998
    tokenizer = read(tmp_path, structure)
    assert data(tokenizer, "tokens")[2998:] == [last, "[PAD2999]"]
    assert check(tmp_path, tokenizer) >= 180


def test_tokens_of_the_other_files_are_added_as_transformers_adds_them(tmp_path: Path) -> None:
    structure = byte_level_structure()
    n_tokens = len(structure["model"]["vocab"]) + 1
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    decoder = {str(n_tokens): {"content": "<think>", "special": False, **flags}}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder, "pad_token": {"content": "<pad>"}})
    write_json(tmp_path / "added_tokens.json", {"<think>": n_tokens, "<pad>": n_tokens + 1})
    tokenizer = read(tmp_path, structure)
    assert data(tokenizer, "tokens")[n_tokens : n_tokens + 2] == ["<think>", "<pad>"]
    assert data(tokenizer, "token_type")[n_tokens : n_tokens + 2] == [TokenType.USER_DEFINED, TokenType.CONTROL]
    assert data(tokenizer, "padding_token_id") == n_tokens + 1
    assert tokenizer.encode("a<think>b<pad>")[1::2] == [n_tokens, n_tokens + 1]
    assert check(tmp_path, tokenizer) >= 180


def test_files_that_disagree_about_an_id(tmp_path: Path) -> None:
    write_json(tmp_path / "added_tokens.json", {"<think>": 2500})
    with pytest.raises(
        TokenizerError, match=r"'<think>' has id 2500 in tokenizer_config\.json or .* save the tokenizer again"
    ):
        read(tmp_path, byte_level_structure())


def test_an_added_token_whose_id_the_library_does_not_keep(tmp_path: Path) -> None:
    structure = byte_level_structure()
    structure["added_tokens"][2]["id"] += 5
    with pytest.raises(TokenizerError, match=r"'<tool>' has id \d+ in tokenizer\.json, but \d+ once"):
        read(tmp_path, structure)


def test_a_composing_tokenizer_is_compared_on_composed_texts_and_says_so(tmp_path: Path) -> None:
    composing, plain = (
        read(tmp_path, byte_level_structure(normalizer=normalizer, pre_tokenizer=splitting(QWEN2)))
        for normalizer in (NFC, None)
    )
    assert composing.notes == (NFC_NOTE,)
    assert plain.notes == ()
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    assert (
        composing.encode(decomposed) == composing.encode(composed) == plain.encode(composed) != plain.encode(decomposed)
    )
    assert any("\u0301" in text for text in battery(plain))
    assert not any(decomposed in text for text in battery(composing))
    assert check(tmp_path, composing) >= 180


def with_a_word_that_no_merge_makes(expression: str) -> dict[str, Any]:
    """Only ignore_merges finds "Hello", in this one."""
    structure = byte_level_structure(pre_tokenizer=splitting(expression))
    structure["added_tokens"].pop()
    structure["model"]["vocab"]["Hello"] = len(structure["model"]["vocab"])
    return structure


@pytest.mark.parametrize("ignores", [False, True])
def test_ignore_merges_chooses_between_pre_tokenizers(ignores: bool, tmp_path: Path) -> None:
    structure = with_a_word_that_no_merge_makes(LLAMA3)
    structure["model"]["ignore_merges"] = ignores
    tokenizer = read(tmp_path, structure)
    assert (tokenizer.encode("Hello") == [structure["model"]["vocab"]["Hello"]]) is ignores
    assert data(tokenizer, "pre") == ("llama-bpe" if ignores else "dbrx")
    assert check(tmp_path, tokenizer) >= 180


def test_ignore_merges_where_llama_cpp_has_it_not(tmp_path: Path) -> None:
    structure = byte_level_structure(pre_tokenizer=splitting(QWEN2))
    structure["model"]["ignore_merges"] = True
    assert check(tmp_path, read(tmp_path, structure)) >= 180
    structure = with_a_word_that_no_merge_makes(QWEN2)
    structure["model"]["ignore_merges"] = True
    with pytest.raises(TokenizerError, match=r"ignore_merges is True, llama.cpp's qwen2 .* such as 'Hello'"):
        read(tmp_path, structure)


def test_more_tokens_than_the_model_has_rows(tmp_path: Path) -> None:
    structure = byte_level_structure()
    n_tokens = len(structure["model"]["vocab"]) + 1
    assert len(data(read(tmp_path, structure, n_tokens), "tokens")) == n_tokens
    with pytest.raises(
        TokenizerError, match=rf"tokenizer\.json has {n_tokens} tokens but config\.json's vocab_size is {n_tokens - 1};"
    ):
        read(tmp_path, structure, n_tokens - 1)


def test_two_tokens_with_one_id(tmp_path: Path) -> None:
    structure = byte_level_structure()
    structure["added_tokens"].pop()
    structure["model"]["vocab"]["zzz"] = structure["model"]["vocab"]["a"]
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: id \d+ belongs to two tokens"):
        read(tmp_path, structure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase changes the text"),
        ({"normalizer": {"type": "Sequence", "normalizers": [NFC, {"type": "Lowercase"}]}}, "normalizer Sequence"),
        (
            {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
            "'WordLevel'; expected BPE, Unigram",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "the BPE model lacks a vocab or merges"),
        ({"model": None}, "the model is None; expected an object"),
        ({"added_tokens": [{"id": 0, "content": END}]}, "refused by the tokenizers library: missing field"),
        ({"post_processor": {"type": "NoSuchProcessing"}}, "refused by the tokenizers library: "),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"^tokenizer\.json[: ][^\n]*$") as caught:
        read(tmp_path, byte_level_structure(**change))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"), [("end_of_word_suffix", "</w>"), ("continuing_subword_prefix", "##"), ("dropout", 0.1)]
)
def test_options_of_the_model_that_llama_cpp_lacks(option: str, value: object, tmp_path: Path) -> None:
    structure = byte_level_structure()
    structure["model"][option] = value
    with pytest.raises(TokenizerError, match=rf"the model sets {option} to .*; llama\.cpp has no such option"):
        read(tmp_path, structure)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "generation_config.json"]
)
def test_damaged_files_are_named_with_the_place(name: str, tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", byte_level_structure())
    (tmp_path / name).write_text('{\n "a": 1,\n "b": }')
    with pytest.raises(TokenizerError, match=rf"^{name} is damaged at line 3, column 7: .*; fetch the file again$"):
        read_tokenizer(tmp_path, n_vocab=3000, config=CONFIG)
    (tmp_path / name).write_text("[1]")
    with pytest.raises(TokenizerError, match=rf"^{name} holds a JSON list; expected an object$"):
        read_tokenizer(tmp_path, n_vocab=3000, config=CONFIG)
    (tmp_path / name).write_bytes(b'{"a": "\xff"}')
    with pytest.raises(TokenizerError, match=rf"^{name} isn't UTF-8 text: byte 7 is 0xff; fetch it again$"):
        read_tokenizer(tmp_path, n_vocab=3000, config=CONFIG)


def test_a_merge_of_an_unknown_piece(tmp_path: Path) -> None:
    structure = byte_level_structure()
    structure["model"]["merges"].append(["qqqq", "zzzz"])
    with pytest.raises(TokenizerError, match=r"refused by the tokenizers library: .*qqqq"):
        read(tmp_path, structure)


def test_a_folder_without_tokenizer_files(tmp_path: Path) -> None:
    write_json(tmp_path / "tekken.json", {})
    assert not has_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"looked for tokenizer\.json and tokenizer\.model; copy"):
        read_tokenizer(tmp_path, n_vocab=10, config=CONFIG)
    write_json(tmp_path / "tokenizer.json", {})
    assert has_tokenizer(tmp_path)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_an_added_token_that_takes_in_spaces_fails_the_check_and_is_named(flag: str, tmp_path: Path) -> None:
    structure = byte_level_structure()
    structure["added_tokens"][2][flag] = True
    with pytest.raises(TokenizerError, match=r"'<tool>' strips spaces beside it"):
        check(tmp_path, read(tmp_path, structure))
