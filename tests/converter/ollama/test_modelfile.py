"""Modelfiles, read back by the rules of Ollama's parser, hold the values that were put in; so do API requests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFWriter

from tests import paths
from tests.modelfile_reader import read
from tests.ollama_prompt import ollama_prompt
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.ollama.go_literal import go_literal
from tritgguf.converter.ollama.modelfile import (
    Modelfile,
    context_parameter,
    license_text,
    ollama_parameters,
    sampling_parameters,
)

GOLDENS = sorted((paths.GOLDEN / "modelfiles").iterdir())
ODD = [
    *("a\nb", "  spaces ", 'a "quoted" word', "tab\tand 'quotes'", "", "Grüße 你好", "# no comment", "l\n\n  \nl"),
    *('ends with "', '"', '""', '" begins', '"" "" ""', "FROM x\nSYSTEM y"),
]


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_the_goldens_read_back(path: Path) -> None:
    commands = read(path.read_text(encoding="utf-8"))
    values = dict(commands)
    assert values["FROM"] == "./model.gguf"
    assert (values["num_ctx"], values["temperature"], values["top_k"]) == ("4096", "0.7", "20")
    assert (values["SYSTEM"], values["LICENSE"]) == ('Say "hi".', "apache-2.0")
    assert f'TEMPLATE """{values["TEMPLATE"]}"""\nPARAMETER stop' in path.read_text(encoding="utf-8")
    stops = [value for word, value in commands if word == "stop"]
    assert len(stops) > 0
    assert all(stop.strip() == stop != "" for stop in stops)


@pytest.mark.parametrize("text", ODD)
def test_any_text_reads_back(text: str) -> None:
    stops = ('say "x"', "a\nb", " ", '"')
    modelfile = Modelfile("a b.gguf", go_literal(text), {"stop": stops}, system=text, license=text)
    commands = read(modelfile.text())
    assert commands[0] == ("FROM", "./a b.gguf")
    assert commands[1] == ("TEMPLATE", text)
    assert [value for word, value in commands if word == "stop"] == list(stops)
    assert [value for word, value in commands if word in ("SYSTEM", "LICENSE")] == ([text, text] if text else [])


def test_a_template_renders_characters_that_the_parser_would_drop() -> None:
    text = "a\u00a0b\u200bc\ufeff"
    (_, template) = read(Modelfile("x.gguf", go_literal(text), {}).text())[1]
    assert ollama_prompt(template, ()) == text


@pytest.mark.parametrize("text", ['three """ quotes', '"""', '""""'])
def test_a_text_that_no_modelfile_can_hold_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match='the SYSTEM text has """ in it'):
        Modelfile("x.gguf", None, {}, system=text).text()


def test_the_request_holds_the_same_values() -> None:
    modelfile = Modelfile("x:y.gguf", "{{ .Prompt }}", {"stop": ("a", "b"), "top_p": 0.8}, system="S", license="L")
    assert modelfile.request("name", "sha256:1") == {
        "model": "name",
        "files": {"x_y.gguf": "sha256:1"},
        "template": "{{ .Prompt }}",
        "parameters": {"stop": ["a", "b"], "top_p": 0.8},
        "system": "S",
        "license": "L",
    }
    assert Modelfile("x.gguf", None, {}).request("n", "d") == {"model": "n", "files": {"x.gguf": "d"}, "parameters": {}}


@pytest.fixture
def file(tmp_path: Path) -> GgufFile:
    """A file with sampling settings, licence and context length, written by gguf's own writer."""
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_context_length(32768)
    writer.add_sampling_temp(0.7)
    writer.add_sampling_top_p(0.8)
    writer.add_sampling_top_k(20)
    writer.add_sampling_penalty_repeat(1.05)
    writer.add_license("other")
    writer.add_license_name("my-licence")
    writer.add_license_link("https://example.org/licence")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return read_gguf(tmp_path / "x.gguf")


def test_parameters_from_a_file(file: GgufFile) -> None:
    assert sampling_parameters(file) == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repeat_penalty": 1.05}
    assert license_text(file) == "my-licence\nother\nhttps://example.org/licence"
    assert [context_parameter(file, asked) for asked in (None, 2, 32768)] == [4096, 2, 32768]
    unset = {key: value for key, value in file.metadata.items() if not key.startswith("general.sampling")}
    assert sampling_parameters(replace(file, metadata=unset)) == {}
    assert ollama_parameters(replace(file, metadata=unset)) == {"repeat_penalty": 1}
    assert ollama_parameters(file) == sampling_parameters(file)
    for asked in (1, 32769):
        with pytest.raises(UnsupportedError, match=f"the context is {asked} tokens, but this model takes 2 to 32768"):
            context_parameter(file, asked)
