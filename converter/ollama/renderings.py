"""What Go renders for each family's template on each sample: recorded, so that nobody needs Go to convert a model.

`python -m tests.golden.record_go_templates` writes renderings.json with Go's own text/template. The end token is still
`{eos}` in these texts.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from tritgguf.converter.ollama.families import Family
from tritgguf.converter.ollama.samples import EMPTY_SYSTEM, SAMPLES

FILE = "renderings.json"


def renderings(family: Family) -> list[str]:
    """Return a text per sample; raise RuntimeError if they were recorded for another template or other samples."""
    texts: list[str] = _recordings(family)["texts"]
    return texts


def empty_system_rendering(family: Family) -> str:
    """Return the text of EMPTY_SYSTEM; raises as `renderings` does."""
    text: str = _recordings(family)["empty_system"]
    return text


def _recordings(family: Family) -> dict[str, Any]:
    recorded = _recorded().get(family.name)
    if recorded is None or recorded["sha256"] != digest(family):
        raise RuntimeError(
            f"{FILE} has no texts of family {family.name} as it is now: "
            "run `python -m tests.golden.record_go_templates`, which needs Go"
        )
    return recorded


def digest(family: Family) -> str:
    """Return the SHA-256 of what a family's texts depend on: its template and the samples."""
    samples = [[sample.messages, sample.think] for sample in (*SAMPLES, EMPTY_SYSTEM)]
    return hashlib.sha256(json.dumps([family.template, samples]).encode()).hexdigest()


@cache
def _recorded() -> dict[str, dict[str, Any]]:
    text = files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    recorded: dict[str, dict[str, Any]] = json.loads(text)
    return recorded
