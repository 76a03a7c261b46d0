"""What the Go template goldens are recorded on: conversations as Ollama hands them over, and single features."""

from __future__ import annotations

from typing import Any

from tritgguf.converter.ollama.families import EOS, Family
from tritgguf.converter.ollama.prompt import go_literal
from tritgguf.converter.ollama.translate import PADDED, SAMPLES

ODD_TEXT = 'BOS {{ and """three quotes""" and {{{ , \u00a0, \u200b, \U000e0041 and "'


def with_bos(family: Family) -> str:
    """Return the family's template behind a BOS and a default system text full of what must be escaped."""
    default = f"{{{{ if not .System }}}}{go_literal(ODD_TEXT)}{{{{ end }}}}"
    return go_literal("<s>") + default + family.template.replace(EOS, go_literal("</s>"))


def _data(messages: list[tuple[str, str, str]], think: bool | None) -> dict[str, Any]:
    return {
        "System": "\n\n".join(content for role, content, _ in messages if role == "system"),
        "Messages": [{"Role": role, "Content": content, "Thinking": t} for role, content, t in messages],
        "Tools": [],
        "Response": "",
        "Think": bool(think),
        "IsThinkSet": think is not None,
    }


_MORE = [
    # What no sample has: an answer to go on with, its thoughts, a second system message, no message at all.
    ([("user", "a", ""), ("assistant", "b", "thoughts")], True),
    ([("system", "s", ""), ("user", "a", ""), ("system", "t", ""), ("user", "b", ""), ("assistant", "", "")], None),
    ([], None),
]
DATA = [
    *(
        _data([(m["role"], m["content"], m.get("thinking", "")) for m in sample.messages], sample.think)
        for sample in (*SAMPLES, PADDED)
    ),
    *(_data(messages, think) for messages, think in _MORE),
]

_TALK = _data([("system", "S", ""), ("user", "Hä?", ""), ("assistant", "Ja.", "hm"), ("user", "So.", "")], True)
_PLAIN = {"List": [1, 2, 3], "Empty": [], "Map": {"b": "B", "a": "A"}, "Text": "añb", "Zero": 0, "One": 1, "Yes": True}
_ON_TALK = [
    "{{ .System }}|{{ .Nothing }}|{{ .Think }}|{{ $.IsThinkSet }}",
    "a \n {{- .System -}} \n b {{ .System }} \n",
    "a {{-.System}}",
    "{{/* a comment */}}x {{- /* another */ -}} y",
    "{{/* open */ }}",
    "{{/* not closed",
    "{{ range .Messages }}{{ .Role }}={{ .Content }};{{ else }}none{{ end }}",
    "{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }}{{ .Role }} {{ end }}",
    "{{ range $m := .Messages }}{{ $m.Thinking }}{{ end }}",
    "{{ range .Messages }}{{ .Missing }}{{ end }}",
    '{{ range .Messages }}{{ if eq .Role "system" }}{{ continue }}{{ end }}{{ .Role }}{{ break }}{{ end }}',
    "{{ $x := 1 }}{{ if .Think }}{{ $x = 2 }}{{ end }}{{ $x }}",
    "{{ $x := 1 }}{{ if .Think }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}",
    "{{ if .Think }}{{ $x := 2 }}{{ end }}{{ $x }}",
    '{{ $n := -1 }}{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}{{ $n = $i }}{{ end }}{{ end }}{{ $n }}',
    "{{ range $i, $_ := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}last{{ end }}{{ end }}{{ len .Messages }}",
    "{{ (index .Messages 1).Content }}{{ (index .Messages 1).Role | len }}",
    "{{ index .Messages 9 }}",
    "{{ with .System }}{{ . }}{{ else }}no{{ end }}{{ with .Nothing }}{{ . }}{{ else }}no{{ end }}",
    "{{ if .Nothing }}a{{ else if .System }}b{{ else }}c{{ end }}",
    "{{ with .Nothing }}a{{ else with .System }}{{ . }}{{ end }}",
    "{{ if $y := .System }}{{ $y }}{{ else }}{{ $y }}{{ end }}",
    "{{ if $y := .System }}{{ end }}{{ $y }}",
    "{{ and .System .Think }}{{ or .Nothing .System }}{{ and .Nothing .Nothing.More }}{{ or .System .System.More }}",
    "{{ .System.More }}",
    "{{ not .System }}{{ not .Nothing }}{{ not (and .System .Nothing) }}",
    "{{ .Messages | len }}{{ .System | print }}",
    "{{ json .System }}{{ .System | json }}",
    '{{ json "<b>&ü\u2028" }}',
    "{{ range .Messages }}{{ json . }}{{ end }}",
    "{{ .Tools }}",
    "{{ if .Tools }}a{{ else }}b{{ end }}{{ len .Tools }}",
    "{{ range .System }}x{{ end }}",
    "{{ end }}",
    "{{ if .System }}",
    "{{ else }}",
    "{{ }}",
    "{{ .System",
    "{{ unknown .System }}",
    "{{ $nope }}",
    "{{ $nope = 1 }}",
    "{{ break }}",
    "{{ .System .Think }}",
    '{{ "a" | .System }}',
    "{{ if }}x{{ end }}",
    "{{ $a, $b := .System }}",
    "{{ (.System }}",
    "{{ .System) }}",
    "{{ range .Messages }}{{ end }}{{ .Role }}",
    "text }} and { {",
    "",
]
_ON_PLAIN = [
    "{{ range .List }}{{ . }},{{ end }}{{ range $i, $e := .List }}{{ $i }}{{ $e }} {{ end }}",
    "{{ range .Empty }}x{{ else }}empty{{ end }}{{ range .Nothing }}x{{ else }}nothing{{ end }}",
    '{{ range $k, $v := .Map }}{{ $k }}{{ $v }}{{ end }}{{ .Map.a }}{{ .Map.none }}{{ index .Map "b" }}{{ len .Map }}',
    "{{ len .Text }}{{ slice .Text 0 1 }}{{ slice .Text 1 3 }}{{ index .Text 0 }}{{ slice .Text 9 }}",
    "{{ slice .Text 0 1 }}{{ slice .Text 1 3 }}{{ slice .Text 3 }}{{ index .Text 0 }}",
    "{{ len (slice .List 1) }}{{ index (slice .List 1 2) 0 }}{{ slice .List 2 1 }}",
    "{{ index (slice .List 1 2) 0 }}{{ index .List -1 }}",
    "{{ eq .One 1 }}{{ eq .Zero 1 }}{{ ne .One 2 }}{{ lt .Zero .One }}{{ le 1 .One }}{{ gt 2 .One }}{{ ge 0 .One }}",
    '{{ eq .One 0 1 2 }}{{ eq .Text "x" "añb" }}{{ eq .Yes true }}{{ eq .Nothing nil }}',
    '{{ eq .One "1" }}',
    "{{ lt .Yes false }}",
    '{{ lt "a" "b" }}{{ gt "ä" "z" }}{{ le "a" "a" }}',
    "{{ eq .Text }}",
    "{{ eq .List .List }}",
    "{{ eq .Map 1 }}",
    "{{ if .Zero }}a{{ else }}b{{ end }}{{ if .Empty }}a{{ else }}b{{ end }}{{ if .Map }}a{{ else }}b{{ end }}",
    '{{ true }}{{ false }}{{ 12 }}{{ -3 }}{{ "a\\n\\t\\"\\\\ \\u00e4 \\U0001F642" }}{{ `raw \\n` }}',
    '{{ "\\a\\b\\f\\v\\r" }}',
    '{{ "\\q" }}',
    '{{ "open }}',
    '{{ print .One .Zero .Text .Yes .One }}{{ println "a" 1 }}{{ print .Nothing }}',
    "{{ range $i, $e := .List }}{{ if eq $e 2 }}{{ break }}{{ end }}{{ $e }}{{ end }}",
    '{{ $s := "" }}{{ range .List }}{{ $s = print $s . }}{{ end }}{{ $s }}',
    "{{ $x := 1 }}{{ range $x = .List }}{{ end }}{{ $x }}",
    "{{ $i := 7 }}{{ $e := 8 }}{{ range $i, $e = .List }}{{ end }}{{ $i }}{{ $e }}",
    "{{ with $x := .Text }}{{ $x }}{{ . }}{{ end }}",
    "{{ range .List }}{{ $.Text }}{{ end }}",
    "{{ .Text.Field }}",
    "{{ (print .Text) }}{{ ((print .One)) }}{{ (len .List) | print }}",
    "{{ and }}",
    '{{ and 1 }}{{ or 0 }}{{ and 0 1 }}{{ or 0 "" }}{{ and 1 .Text }}',
    "{{- 3 -}}",
    "{{3}} {{- 3}} {{3 -}} x",
    "{{ .One -3 }}",
    "{{.List|len|print}}",
    "{{ if and .Yes (or .Zero .One) (not .Zero) }}ok{{ end }}",
]
FEATURES = [*((template, _TALK) for template in _ON_TALK), *((template, _PLAIN) for template in _ON_PLAIN)]
