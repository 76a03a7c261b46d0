"""bos, eos, end of turn, pad and unk ids, add_bos and add_eos, and chat templates, from every place that names them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizer_folders import (
    END,
    TOOL,
    TURN_END,
    as_tokenizer_json,
    byte_level_structure,
    scored_pieces,
    sentencepiece_model,
    write_json,
)
from tests.vocab_file import write_vocab_file
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer import read_tokenizer
from tritgguf.converter.tokenizer.special_ids import ALWAYS_ENDS_GENERATION
from tritgguf.converter.tokenizer.template_keys import end_of_turn

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
)
N_VOCAB = 3000
END_ID, TURN_END_ID = 0, 1


def metadata(folder: Path, config: dict[str, Any], structure: dict[str, Any] | None = None, **files: Any) -> dict:
    """Keys without their prefix, for a byte-level tokenizer with `files` beside it."""
    write_json(folder / "tokenizer.json", structure or byte_level_structure())
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)
    keys = read_tokenizer(folder, n_vocab=N_VOCAB, config=config).metadata
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value.data for key, value in keys.items()}


def ends_generation(gguf_file: Path) -> set[int]:
    """The ids that llama.cpp itself stops at."""
    code = (
        "import sys, llama_cpp as c; "
        "p = c.llama_model_default_params(); p.vocab_only = True; "
        "m = c.llama_model_load_from_file(sys.argv[1].encode(), p); v = c.llama_model_get_vocab(m); "
        "print([i for i in range(c.llama_vocab_n_tokens(v)) if c.llama_vocab_is_eog(v, i)])"
    )
    command = [sys.executable, "-c", code, str(gguf_file)]
    return set(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))


def test_ids_come_from_config_json_alone(tmp_path: Path) -> None:
    keys = metadata(tmp_path, {"bos_token_id": 7, "eos_token_id": [END_ID, TURN_END_ID], "pad_token_id": -1})
    assert (keys["bos_token_id"], keys["eos_token_id"]) == (7, END_ID)
    assert not {"padding_token_id", "unknown_token_id", "eom_token_id"} & keys.keys()
    assert (keys["add_bos_token"], keys["add_eos_token"]) == (False, False)


@pytest.mark.parametrize("spelt", [TURN_END, {"content": TURN_END, "lstrip": False, "special": True}])
@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map"])
def test_texts_win_over_ids(name: str, spelt: object, tmp_path: Path) -> None:
    texts = {"bos_token": None, "eos_token": spelt, "pad_token": END, "unk_token": END}
    keys = metadata(tmp_path, {"bos_token_id": 7, "eos_token_id": 9}, **{name: texts})
    ids = [keys[f"{name}_token_id"] for name in ("bos", "eos", "padding", "unknown")]
    assert ids == [7, TURN_END_ID, END_ID, END_ID]


def test_generation_config_wins_over_config(tmp_path: Path) -> None:
    keys = metadata(tmp_path, {"eos_token_id": 9}, generation_config={"eos_token_id": [TURN_END_ID, END_ID]})
    assert keys["eos_token_id"] == TURN_END_ID


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no end-of-text token is named .* add eos_token_id to config\.json"):
        metadata(tmp_path, {"eos_token_id": None})


@pytest.mark.parametrize("wrong", [N_VOCAB, "2", 1.5, True, [0, N_VOCAB]])
def test_an_id_that_is_none_is_refused(wrong: object, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"eos_token_id in the model's configs is .*below the vocab_size of 3000"):
        metadata(tmp_path, {"eos_token_id": wrong})


def test_every_id_that_the_checkpoint_stops_at_ends_generation_in_llama_cpp(tmp_path: Path) -> None:
    for config, generation, expected in (
        ({"eos_token_id": END_ID}, {}, {END_ID}),
        ({"eos_token_id": END_ID}, {"eos_token_id": [99, END_ID]}, {99, END_ID}),
        ({"eos_token_id": [END_ID, 99]}, {"eos_token_id": [END_ID, 98]}, {98, 99, END_ID}),
    ):
        write_json(tmp_path / "generation_config.json", generation)
        write_json(tmp_path / "tokenizer.json", byte_level_structure())
        tokenizer = read_tokenizer(tmp_path, n_vocab=N_VOCAB, config=config)
        written = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)
        # llama.cpp knows the texts of both special tokens as ends.
        assert ends_generation(written) == expected | {TURN_END_ID, END_ID}


def test_more_ends_than_gguf_can_name(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"ends text at ids \[0, 5, 6, 7\], more than GGUF's eos, eot and eom"):
        metadata(tmp_path, {"eos_token_id": END_ID}, generation_config={"eos_token_id": [END_ID, 5, 6, 7]})


def test_the_token_that_the_chat_template_ends_a_turn_with_is_eot(tmp_path: Path) -> None:
    keys = metadata(tmp_path, {}, tokenizer_config={"eos_token": END, "chat_template": CHATML})
    assert (keys["eos_token_id"], keys["eot_token_id"]) == (END_ID, TURN_END_ID)
    assert keys["chat_template"] == CHATML


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, TURN_END),
        ("{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", END),
        ("{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} </turn>{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }} {{ '<tool>' }}" + TURN_END + "{% endfor %}", TOOL),
        ("{{ raise_exception('only tools here') }}", None),
        ("{% for m in messages %}{{ m.content.nothing.here }}{% endfor %}", None),
        ("{% if %}", None),
        ("{{ messages[7].content }}" + TURN_END, None),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}" + TURN_END, None),
        ("{% for m in messages %}{{ m.content | tojson }}" + TURN_END + "{% break %}{% endfor %}", None),
        ("{{ strftime_now('%Y') }}{{ messages | tojson(indent=2) }}" + END, END),
        ("", None),
    ],
)
def test_end_of_turn(template: str, expected: str | None) -> None:
    assert end_of_turn(template, [END, TURN_END, TOOL], {"eos_token": END, "bos_token": None}) == expected


def test_named_templates_and_the_places_that_hold_them(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "A"},
        {"name": "tool_use", "template": "B"},
        {"name": "rag", "template": "C"},
    ]
    config = {"eos_token_id": END_ID}
    keys = metadata(tmp_path, config, tokenizer_config={"chat_template": named})
    assert keys["chat_template"] == "A"
    assert (keys["chat_template.tool_use"], keys["chat_template.rag"]) == ("B", "C")
    assert keys["chat_templates"] == ["rag", "tool_use"]
    keys = metadata(tmp_path, config, chat_template={"chat_template": "D"})
    assert (keys["chat_template"], keys["chat_template.rag"]) == ("D", "C")
    (tmp_path / "chat_template.jinja").write_text("É", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "think-hard.jinja").write_text("F")
    keys = metadata(tmp_path, config)
    assert (keys["chat_template"], keys["chat_template.think_hard"]) == ("É", "F")
    assert keys["chat_templates"] == ["rag", "think_hard", "tool_use"]


def test_no_template(tmp_path: Path) -> None:
    keys = metadata(tmp_path, {"eos_token_id": END_ID}, tokenizer_config={"chat_template": None})
    assert not any("chat_template" in key for key in keys)


@pytest.mark.parametrize("wrong", [7, [{"name": "x"}], ["x"], {"default": "x"}])
def test_a_template_that_is_none(wrong: object, tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"tokenizer_config\.json: chat_template is a \w+; expected a string or a list"
    ):
        metadata(tmp_path, {"eos_token_id": END_ID}, tokenizer_config={"chat_template": wrong})


def test_a_sentencepiece_json_names_its_unknown_token(tmp_path: Path) -> None:
    structure = as_tokenizer_json(scored_pieces(sentencepiece_model()))
    keys = metadata(tmp_path, {"bos_token_id": 1, "eos_token_id": 2}, structure)
    assert (keys["unknown_token_id"], keys["token_type"][0]) == (0, 2)


@pytest.mark.parametrize("apart", [{"<|end|>", "</s>"}, ALWAYS_ENDS_GENERATION - {"<|end|>", "</s>"}])
def test_the_texts_that_always_end_generation_do_in_llama_cpp(apart: set[str], tmp_path: Path) -> None:
    """In two lots, since with <|return|> and <|call|>, llama.cpp takes <|end|> for something else."""
    structure = byte_level_structure()
    first = len(structure["model"]["vocab"])
    del structure["added_tokens"][2]
    model = structure["added_tokens"][0]
    texts = sorted(apart - {END, TURN_END})
    structure["added_tokens"] += [model | {"id": first + i, "content": text} for i, text in enumerate(texts)]
    write_json(tmp_path / "tokenizer.json", structure)
    tokenizer = read_tokenizer(tmp_path, n_vocab=N_VOCAB, config={"eos_token_id": END_ID})
    written = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)
    assert ends_generation(written) == {END_ID, TURN_END_ID, *range(first, first + len(texts))}
