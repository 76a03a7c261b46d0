"""Record what Go's text/template renders: `python -m tests.golden.record_go_templates`.

Writes converter/ollama/renderings.json, which is part of the package, and go_prompts.json, which the tests need. `go`
(1.18 or newer) must be on the PATH. The program below gives a template what Ollama does: a map with structs for
messages, and the option `missingkey=zero`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import paths
from tests.golden.go_template_cases import cases
from tests.ollama_prompt import GOLDEN, data_key, template_data
from tritgguf.converter.ollama.families import FAMILIES
from tritgguf.converter.ollama.renderings import FILE, digest
from tritgguf.converter.ollama.samples import EMPTY_SYSTEM, SAMPLES, Sample

RENDERINGS = paths.ROOT / "converter" / "ollama" / FILE

PROGRAM = r"""
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct {
	Role, Content, Thinking string
}

type Case struct {
	Template string
	Data     struct {
		System            string
		Messages          []*Message
		Think, IsThinkSet bool
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func (c Case) render() string {
	parsed, err := template.New("").Option("missingkey=zero").Parse(c.Template)
	check(err)
	var text strings.Builder
	check(parsed.Execute(&text, map[string]any{
		"System":     c.Data.System,
		"Messages":   c.Data.Messages,
		"Think":      c.Data.Think,
		"IsThinkSet": c.Data.IsThinkSet,
		"Response":   "",
	}))
	return text.String()
}

func main() {
	var cases []Case
	check(json.NewDecoder(os.Stdin).Decode(&cases))
	texts := []string{}
	for _, one := range cases {
		texts = append(texts, one.render())
	}
	check(json.NewEncoder(os.Stdout).Encode(texts))
}
"""


def by_go(pairs: Sequence[tuple[str, Sample]]) -> list[str]:
    """Return what Go renders for each template and conversation; raise CalledProcessError if it refuses one."""
    given = [{"Template": template, "Data": template_data(one.messages, one.think)} for template, one in pairs]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "main.go"
        program.write_text(PROGRAM)
        command = ["go", "run", str(program)]
        done = subprocess.run(command, input=json.dumps(given), stdout=subprocess.PIPE, text=True, check=True)
    texts: list[str] = json.loads(done.stdout)
    return texts


def recorded() -> dict[Path, str]:
    """Return each file with what it should hold."""
    samples = (*SAMPLES, EMPTY_SYSTEM)
    of_families = [(family.template, sample) for family in FAMILIES for sample in samples]
    of_tests = list(cases())
    texts = by_go([*of_families, *of_tests])
    renderings = {}
    for number, family in enumerate(FAMILIES):
        *alike, empty_system = texts[number * len(samples) :][: len(samples)]
        renderings[family.name] = {"sha256": digest(family), "texts": alike, "empty_system": empty_system}
    prompts: dict[str, dict[str, str]] = {}
    for (template, sample), text in zip(of_tests, texts[len(of_families) :], strict=True):
        prompts.setdefault(template, {})[data_key(template_data(sample.messages, sample.think))] = text
    return {RENDERINGS: _json(renderings), GOLDEN: _json(prompts)}


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write both files."""
    for path, text in recorded().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
