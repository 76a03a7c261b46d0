"""Record what llama.cpp renders of jinja templates: `python -m tests.golden.record_llama_cpp_jinja LLAMA_CPP_FOLDER`.

The folder holds llama.cpp's sources, such as vendor/llama.cpp in the sdist of the pinned llama-cpp-python; a C++
compiler must be on the PATH. The program below gives llama.cpp's jinja what its server gives it, and tells whether a
template has a system role by llama.cpp's own check. The server puts the system text before the next message otherwise,
with one line end between them (system_message_not_supported in common/chat.cpp).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import paths
from tests.chat_templates import CASES, FIXED_DATE
from tritgguf.converter.ollama.samples import EMPTY_SYSTEM, SAMPLES, Message, Sample
from tritgguf.runtime.ollama.jinja_there import UNSET

GOLDEN = paths.GOLDEN / "llama_cpp_jinja.json"
BOS, EOS = "<s>", "</s>"
DATES = {"date_string": "02 Jan 2030", "datetime": "Jan 02 2030"}  # another date than any template's own
TEMPLATES = {name: case.jinja for name, case in CASES.items()} | {
    "llama3.1 with a fixed date": FIXED_DATE,
    "llama3.1 with a fixed date that is kept": UNSET + FIXED_DATE,
}
CONVERSATIONS = (*(s for s in SAMPLES if s.think is not None and len(s.messages) in (2, 6)), EMPTY_SYSTEM)

PROGRAM = r"""
#include "jinja/caps.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "json.h"

#include <cstdlib>
#include <iostream>
#include <iterator>

extern "C" void ggml_abort(const char *, int, const char *, ...) { std::abort(); }

static std::string render(jinja::program & program, const std::string & source, const common_json & given) {
    jinja::context context(source);
    jinja::global_from_json(context, given, true);
    jinja::runtime runtime(context);
    const jinja::value results = runtime.execute(program);
    return jinja::runtime::gather_string_parts(results)->as_string().str();
}

int main() {
    const std::string text{std::istreambuf_iterator<char>(std::cin), {}};
    auto cases = common_json::parse(text);
    for (size_t i = 0; i < cases.size(); i++) {
        auto & one = cases.at(i);
        jinja::lexer lexer;
        auto read = lexer.tokenize(one.at("template").get<std::string>());
        jinja::program program = jinja::parse_from_tokens(read);
        const bool has_role = jinja::caps_get(program).supports_system_role;
        const common_json line = render(program, read.source, one.at(has_role ? "given" : "joined"));
        std::cout << line.dump() << "\n";
    }
}
"""


def given(messages: Sequence[Mapping[str, str]], think: bool | None) -> dict[str, Any]:
    """Return what llama.cpp's server gives a template; unset, thinking is on."""
    named = [{("reasoning_content" if k == "thinking" else k): text for k, text in m.items()} for m in messages]
    context = {"bos_token": BOS, "eos_token": EOS, "enable_thinking": think is not False}
    return {"messages": named, "add_generation_prompt": True, **context, **DATES}


def case(template: str, sample: Sample) -> dict[str, Any]:
    """Return a case for the program: the messages as they are, and with the system text in the next message."""
    first, second, *more = (*sample.messages, {})
    joined: Sequence[Message] = sample.messages
    if first["role"] == "system":
        joined = [{**second, "content": f"{first['content']}\n{second['content']}"}, *filter(None, more)]
    return {
        "template": template,
        "given": given(sample.messages, sample.think),
        "joined": given(joined, sample.think),
    }


def by_llama_cpp(folder: Path) -> dict[str, list[str]]:
    """Return the texts of each template, in the order of CONVERSATIONS."""
    cases = [case(template, sample) for template in TEMPLATES.values() for sample in CONVERSATIONS]
    with tempfile.TemporaryDirectory() as build:
        main, program = Path(build) / "main.cpp", Path(build) / "render"
        main.write_text(PROGRAM)
        common = folder / "common"
        sources = [main, *sorted((common / "jinja").glob("*.cpp")), common / "json.cpp", common / "unicode.cpp"]
        include = [f"-I{folder / part}" for part in ("common", "include", "ggml/include", "vendor")]
        subprocess.run(["c++", "-std=c++17", *include, *map(str, sources), "-o", str(program)], check=True)
        done = subprocess.run([program], input=json.dumps(cases), stdout=subprocess.PIPE, text=True, check=True)
    texts = iter(json.loads(line) for line in done.stdout.splitlines())
    return {name: [next(texts) for _ in CONVERSATIONS] for name in TEMPLATES}


def main() -> None:
    """Write the file."""
    text = json.dumps(by_llama_cpp(Path(sys.argv[1])), indent=1, ensure_ascii=False)
    GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
