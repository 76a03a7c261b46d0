"""Real models' chat templates, and the texts that llama.cpp's tests expect of them."""

from __future__ import annotations

import json
import re

import pytest

from tests.chat_templates import Case
from tests.converter.ollama.test_translate import found, rendered
from tests.fetch import pypi_files
from tests.golden.go_template_cases import TALK, TRIMMED_TALK
from tests.ollama_prompt import ollama_prompt
from tritgguf.converter.ollama.families import EOS, FAMILIES
from tritgguf.converter.ollama.samples import EMPTY_SYSTEM
from tritgguf.converter.ollama.selection import more_in_jinja
from tritgguf.converter.ollama.translate import Filling, NearMiss, Translation
from tritgguf.runtime.ollama.jinja_there import UNSET, as_meant

pytestmark = pytest.mark.network

LLAMA_CPP = "llama-cpp-python==0.3.36"
# By name of the file in llama.cpp's models/templates: the family to be found (None: none of ours fits), and sha256.
TEMPLATES: dict[str, tuple[str | None, str]] = {
    "Qwen-Qwen2.5-7B-Instruct": ("chatml", "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f"),
    "Qwen-Qwen3-0.6B": ("qwen3", "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5"),
    "Qwen3-Coder": ("chatml", "d287fb2edf144207f868ae1b282755dc19db2a3f1c5b3a3d57e9e5abffa98392"),
    "Qwen3.5-4B": ("qwen3.5", "a4aee8afcf2e0711942cf848899be66016f8d14a889ff9ede07bca099c28f715"),
    "openbmb-MiniCPM5-1B": ("minicpm5", "7451a05cf1e28a79d97d7c0bc951028c0b1915119bf9046acd06a0e3d931f47c"),
    "google-gemma-2-2b-it": ("gemma", "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6"),
    "meta-llama-Llama-3.1-8B-Instruct": (
        "llama3.1",
        "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65",
    ),
    "mistralai-Mistral-Nemo-Instruct-2407": (
        "mistral-tekken",
        "e4676cb56dffea7782fd3e2b577cfaf1e123537e6ef49b3ec7caa6c095c62272",
    ),
    "meta-llama-Llama-3.2-3B-Instruct": (None, "5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4"),
    "HuggingFaceTB-SmolLM3-3B": (None, "19eacf64569032f07644ea92c8e2a87af06ee7008147557302c31e474912ca97"),
    "microsoft-Phi-3.5-mini-instruct": (None, "78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90"),
}
RECORDED = "7a790605222858ca5d5a2de94de27115d693e2c293638c392b7726a44ad3451f"
KNOWN = {  # how the name of llama.cpp's test case begins, and the family
    "teknium/OpenHermes-2.5-Mistral-7B": "chatml",
    "mistralai/Mistral-7B-Instruct-v0.2 (mistralai 'v1'": "mistral-v1",
    "Mistral-Large-Instruct-2407 (mistralai 'v3'": "mistral-v3",
    "Mistral-Nemo-Instruct-2407 (mistralai 'v3-tekken'": "mistral-tekken",
}


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    pins = {rf"models/templates/{re.escape(name)}\.jinja$": sha256 for name, (_, sha256) in TEMPLATES.items()}
    paths = pypi_files(LLAMA_CPP, {**pins, r"tests/test-chat-template\.cpp$": RECORDED}, sdist=True)
    return {name: path.read_text(encoding="utf-8") for name, path in zip([*TEMPLATES, ""], paths, strict=True)}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_family_of_a_real_template(name: str, files: dict[str, str]) -> None:
    family, _ = TEMPLATES[name]
    case = Case("", files[name], bos="<s>", eos="</s>", add_bos=True)
    choice = found(case)
    if family is None:
        assert isinstance(choice, NearMiss)
    else:
        assert isinstance(choice, Translation), choice
        assert choice.family == family
        assert choice.empty_system == rendered(case, EMPTY_SYSTEM.messages).removeprefix(case.bos)


@pytest.mark.real_model  # their vocabularies are large
def test_ollama_renders_the_jinja_of_those_that_it_was_seen_to(files: dict[str, str]) -> None:
    """On a server of 0.33.0-rc2, `ollama show --template` printed the jinja of these, and the TEMPLATE of Gemma 2."""
    instead = {}
    for name in TEMPLATES:
        choice = found(Case("", files[name], bos="<s>", eos="</s>", add_bos=True))
        if isinstance(choice, Translation):
            instead[name] = more_in_jinja(files[name], choice.template)
    assert instead == {
        "Qwen-Qwen2.5-7B-Instruct": ("tools",),
        "Qwen-Qwen3-0.6B": ("tools", "thinking"),
        "Qwen3-Coder": ("tools",),
        "Qwen3.5-4B": ("tools", "thinking"),
        "openbmb-MiniCPM5-1B": ("tools", "thinking"),
        "google-gemma-2-2b-it": (),
        "meta-llama-Llama-3.1-8B-Instruct": ("tools",),
        "mistralai-Mistral-Nemo-Instruct-2407": ("tools",),
    }


def test_llama_3_1_alone_needs_another_jinja_there(files: dict[str, str]) -> None:
    """Of these, it alone has a fixed date for where it is given none, and llama.cpp gives it today's."""
    for name in TEMPLATES:
        meant = as_meant(files[name], bos="<s>", eos="</s>")
        assert meant == (UNSET if "Llama-3.1" in name else "") + files[name], name


@pytest.fixture(scope="module")
def recorded(files: dict[str, str]) -> dict[str, dict[str, str]]:
    cases = {}
    for block in files[""].split("/* .name= */")[1:]:
        name, rest = block.split(",\n", 1)
        entries = re.findall(r"/\* \.(\w+)= \*/\s+\"((?:[^\"\\]|\\.)*)\"", rest)
        cases[json.loads(name)] = {key: json.loads(f'"{value}"', strict=False) for key, value in entries}
    return cases


@pytest.mark.parametrize("name", KNOWN)
def test_the_go_template_renders_what_llama_cpp_expects_of_the_jinja(name: str, recorded) -> None:
    (entry,) = [entry for title, entry in recorded.items() if title.startswith(name)]
    case = Case("", entry["template_str"], bos=entry.get("bos_token", ""), eos=entry.get("eos_token") or "</s>")
    choice = found(case)
    assert isinstance(choice, Translation), choice
    assert choice.family == KNOWN[name]
    expected = entry["expected_output_jinja"] or entry["expected_output"]
    talk = TALK if TALK[4]["content"] in expected else TRIMMED_TALK  # Ollama can't trim, so it must get no spaces
    (family,) = [family for family in FAMILIES if family.name == choice.family]
    assert choice.template == Filling(case.eos, case.bos).template(family)
    assert case.bos + ollama_prompt(family.template, talk).replace(EOS, case.eos) == expected
    assert rendered(case, talk) == expected
