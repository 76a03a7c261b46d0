"""bos and eos around a prompt: llama.cpp adds what the tokenizers library does, or the conversion tells why not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from llama_cpp import Llama

from tests.checkpoints import build
from tests.tokenizer_folders import (
    END,
    TURN_END,
    as_tokenizer_json,
    byte_level_structure,
    scored_pieces,
    sentencepiece_model,
    write_json,
)
from tests.vocab_file import check_in_this_process, write_vocab_file
from tritgguf.converter import convert, plan
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import boolean
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.tokenizer import SourceTokenizer, check_token_ids, read_tokenizer
from tritgguf.runtime.engine.token_ids_process import token_ids_process

N_VOCAB = 3000
TEXTS = ("", "Hello, world!", f"{END}twice", f"a{TURN_END}")
NAMES = {"bos_token": END, "eos_token": TURN_END}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
BYTE_LEVEL_IDS = {END: 0, TURN_END: 1}
PIECE_IDS = {"<s>": 1, "</s>": 2}


def template(before: Sequence[str], after: Sequence[str], ids: Mapping[str, int] = BYTE_LEVEL_IDS) -> dict[str, Any]:
    pieces: list[dict[str, Any]] = [{"SpecialToken": {"id": text, "type_id": 0}} for text in (*before, *after)]
    pieces.insert(len(before), {"Sequence": {"id": "A", "type_id": 0}})
    return {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in ids.items()},
    }


def in_sequence(*processors: object) -> dict[str, Any]:
    return {"type": "Sequence", "processors": list(processors)}


POST_PROCESSORS = {
    "none": None,
    "byte level": BYTE_LEVEL,
    "nothing": template([], []),
    "bos": template([END], []),
    "eos": template([], [TURN_END]),
    "both": template([END], [TURN_END]),
    "bos in a sequence": in_sequence(BYTE_LEVEL, template([END], [])),
    "one each in a sequence": in_sequence(template([], [TURN_END]), template([END], [])),
    "BERT": {"type": "BertProcessing", "sep": [TURN_END, 1], "cls": [END, 0]},
    "RoBERTa": {
        "type": "RobertaProcessing",
        "sep": [TURN_END, 1],
        "cls": [END, 0],
        "trim_offsets": True,
        "add_prefix_space": False,
    },
}
CONFIGS = [
    {name: value for name, value in (("tokenizer_class", cls), ("add_bos_token", adds)) if value is not None}
    for cls, adds in itertools.product((None, "LlamaTokenizer", "PreTrainedTokenizerFast"), (None, True, False))
]


def llama_cpp_prompts(file: Path, texts: Iterable[str]) -> list[list[int]]:
    """Token ids by llama-cpp-python."""
    llama = Llama(str(file), vocab_only=True, verbose=False)
    try:
        return [llama.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
    finally:
        llama.close()


def library_prompts(folder: Path, texts: Iterable[str]) -> list[list[int]]:
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [library.encode(text, add_special_tokens=True).ids for text in texts]


@pytest.fixture(scope="module")
def structure() -> dict[str, Any]:
    return byte_level_structure()


def read(folder: Path, structure: Mapping[str, Any], post_processor: object, **config: object) -> SourceTokenizer:
    write_json(folder / "tokenizer.json", {**structure, "post_processor": post_processor})
    write_json(folder / "tokenizer_config.json", config)
    return read_tokenizer(folder, n_vocab=N_VOCAB, config={"eos_token_id": 0}, load=False)


def added(tokenizer: SourceTokenizer) -> tuple[bool, bool]:
    bos, eos = (tokenizer.metadata[f"tokenizer.ggml.add_{name}_token"].data for name in ("bos", "eos"))
    return bos, eos


@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_llama_cpp_adds_what_the_library_adds_whatever_the_config_says(
    name: str, structure: dict[str, Any], tmp_path: Path
) -> None:
    """transformers 5.23.0 gave the library's ids too, in each of these nine configs and with six classes more."""
    prompts = []
    for config in CONFIGS:
        tokenizer = read(tmp_path, structure, POST_PROCESSORS[name], **NAMES, **config)
        prompts.append((added(tokenizer), tokenizer.metadata["tokenizer.ggml.bos_token_id"].data))
    assert prompts == [prompts[0]] * len(CONFIGS)
    file = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)
    assert llama_cpp_prompts(file, TEXTS) == library_prompts(tmp_path, TEXTS)
    assert [tokenizer.encode_prompt(text) for text in TEXTS] == library_prompts(tmp_path, TEXTS)


@pytest.mark.parametrize(("before", "after"), [([], []), (["<s>"], []), (["<s>"], ["</s>"])])
def test_sentencepiece_in_a_tokenizer_json(before: list[str], after: list[str], tmp_path: Path) -> None:
    pieces = as_tokenizer_json(scored_pieces(sentencepiece_model()))
    names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}
    tokenizer = read(tmp_path, pieces, template(before, after, PIECE_IDS), **names)
    file = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)
    texts = ("", "Hello", "<s>a</s>")
    assert llama_cpp_prompts(file, texts) == library_prompts(tmp_path, texts)


@pytest.mark.parametrize(
    ("post_processor", "config", "phrase"),
    [
        (
            BYTE_LEVEL,
            {"add_bos_token": True},
            "add_bos_token to true, but tokenizer.json's post-processor adds nothing",
        ),
        (template([END], []), {"add_bos_token": False}, "add_bos_token to false, but tokenizer.json's post-processor "),
        (
            None,
            {"add_eos_token": True},
            "add_eos_token to true, but tokenizer.json's post-processor adds nothing after",
        ),
    ],
)
def test_a_config_that_says_otherwise_is_noted(
    post_processor: object, config: dict[str, Any], phrase: str, structure: dict[str, Any], tmp_path: Path
) -> None:
    (note,) = read(tmp_path, structure, post_processor, **NAMES, **config).notes
    assert f"tokenizer_config.json sets {phrase}" in note
    agreeing = {name: not value for name, value in config.items()}
    assert read(tmp_path, structure, post_processor, **NAMES, **agreeing).notes == ()


def test_the_post_processor_names_a_bos_before_the_ids_in_config_json(
    structure: dict[str, Any], tmp_path: Path
) -> None:
    write_json(tmp_path / "generation_config.json", {"bos_token_id": 7})
    tokenizer = read(tmp_path, structure, template([TURN_END], []))
    assert tokenizer.metadata["tokenizer.ggml.bos_token_id"].data == 1
    file = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)
    assert llama_cpp_prompts(file, TEXTS) == library_prompts(tmp_path, TEXTS)
    unused = read(tmp_path, structure, BYTE_LEVEL)
    assert unused.metadata["tokenizer.ggml.bos_token_id"].data == 7


UNLIKE = [
    (template([TURN_END], []), {"bos_token": END}, "puts ids [1] before a text, llama.cpp none"),
    (template([END, TURN_END], []), {"bos_token": END}, "puts ids [0, 1] before a text, llama.cpp [0]"),
    (template([END, TURN_END], []), {}, "puts ids [0, 1] before a text, llama.cpp [0]"),
    (template([], [TURN_END]), {}, "puts ids [1] after a text, llama.cpp none"),
    (in_sequence(template([END], []), template([END], [])), NAMES, "puts ids [0, 0] before a text, llama.cpp [0]"),
]


@pytest.mark.parametrize(("post_processor", "config", "phrase"), UNLIKE)
def test_what_llama_cpp_cannot_add_fails_the_check(
    post_processor: object, config: dict[str, Any], phrase: str, structure: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = read(tmp_path, structure, post_processor, **config)
    assert tokenizer.notes == (f"the post-processor {phrase}",)
    with pytest.raises(TokenizerError) as caught:
        check_in_this_process(tokenizer, write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata))
    assert "text '' as a prompt becomes other token ids" in str(caught.value)
    assert str(caught.value).endswith(f"(the post-processor {phrase}); --no-check writes the file anyway")


@pytest.mark.parametrize(("post_processor", "key"), [("none", "bos"), ("both", "eos")])
def test_a_wrong_key_fails_the_check(post_processor: str, key: str, structure: dict[str, Any], tmp_path: Path) -> None:
    """Whoever loads the source's tokenizer: this process, or the child. Without bos and eos, all ids are equal."""
    tokenizer = read(tmp_path, structure, POST_PROCESSORS[post_processor], **NAMES)
    mutant = tokenizer.metadata | {f"tokenizer.ggml.add_{key}_token": boolean(post_processor == "none")}
    file = write_vocab_file(tmp_path / "wrong.gguf", mutant)
    for folder in (None, tmp_path):
        with (
            token_ids_process(folder) as read_ids,
            pytest.raises(TokenizerError, match=r"text '' as a prompt becomes other token ids than in the source"),
        ):
            check_token_ids(tokenizer, file, read_ids)


@pytest.mark.parametrize(
    ("post_processor", "message"),
    [
        (template([], []) | {"single": [{"SpecialToken": {"id": END, "type_id": 0}}]}, "holds the text 0 times"),
        (template([], []) | {"single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2}, "holds the text 2 times"),
        (template([TURN_END], [], {TURN_END: 2999}), "puts id 2999 before a text, which is no token's"),
        ({"type": "TemplateProcessing"}, "refused by the tokenizers library"),
        (template([END], []) | {"special_tokens": {}}, "refused by the tokenizers library"),
        (
            template([END], []) | {"single": [{"SpecialToken": {"id": "A", "type_id": 0}}]},
            "refused by the tokenizers library",
        ),
        ("RobertaProcessing", "refused by the tokenizers library"),
    ],
)
def test_a_post_processor_that_is_none(
    post_processor: object, message: str, structure: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        read(tmp_path, structure, post_processor)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "expected", "noted"),
    [
        ({}, (True, False), True),
        ({"tokenizer_class": "LlamaTokenizer"}, (True, False), True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, (False, False), False),
        ({"add_bos_token": True, "add_eos_token": True}, (True, True), False),
        ({"add_bos_token": False}, (False, False), False),
    ],
)
def test_a_tokenizer_model_alone_goes_by_the_config(
    config: dict[str, Any], expected: tuple[bool, bool], noted: bool, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    write_json(tmp_path / "tokenizer_config.json", config)
    tokenizer = read_tokenizer(tmp_path, n_vocab=N_VOCAB, config={})
    assert added(tokenizer) == expected
    assert ["doesn't set add_bos_token" in note for note in tokenizer.notes] == [True] * noted
    file = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)
    bos, eos = expected
    (empty,) = llama_cpp_prompts(file, [""])
    assert empty == [1] * bos + [2] * eos == tokenizer.encode_prompt("")
    wrong = tokenizer.metadata | {"tokenizer.ggml.add_bos_token": boolean(not bos)}
    with pytest.raises(TokenizerError, match=r"text '' as a prompt becomes other token ids"):
        check_in_this_process(tokenizer, write_vocab_file(tmp_path / "wrong.gguf", wrong))


def test_a_tokenizer_model_without_the_token_to_add(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(bos_id=-1))
    write_json(tmp_path / "tokenizer_config.json", {"add_bos_token": True})
    with pytest.raises(TokenizerError, match="add_bos_token is true but no bos token is named"):
        read_tokenizer(tmp_path, n_vocab=N_VOCAB, config={})


def test_no_check_writes_what_llama_cpp_cannot_add_and_notes_it(tmp_path: Path) -> None:
    model = build("llama-tied", tmp_path / "model")
    source = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    source.post_processor = tokenizers.processors.TemplateProcessing("a b $A", None, [("a", 3), ("b", 4)])
    source.save(str(model / "tokenizer.json"))
    out = tmp_path / "out.gguf"
    with pytest.raises(TokenizerError, match=r"the post-processor puts ids \[3, 4\] before a text"):
        convert(model, out, "f16", check=token_ids_process)
    assert not out.exists()
    assert any("puts ids [3, 4] before a text" in note for note in plan(model, "f16").notes)
    assert any("puts ids [3, 4] before a text" in note for note in convert(model, out, "f16", check=False).plan.notes)
    assert read_gguf(out).value("tokenizer.ggml.add_bos_token") in (True, False)
