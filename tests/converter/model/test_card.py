"""The licence in README.md's front matter, as Hugging Face's cards write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import build
from tritgguf.converter import plan
from tritgguf.converter.errors import SourceError
from tritgguf.converter.model.card_metadata import card_metadata

NAMES = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}


@pytest.mark.parametrize(
    ("front_matter", "expected"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: 'apache-2.0'", {"license": "apache-2.0"}),
        ('license: other\nlicense_name: "my licence"', {"license": "other", "license_name": "my licence"}),
        ("license_link: https://example.org/a#b", {"license_link": "https://example.org/a#b"}),
        ("license_link: LICENSE", {"license_link": "LICENSE"}),
        ("license_name: 1.5", {"license_name": "1.5"}),
        ("license: mit # as agreed", {"license": "mit"}),
        ("license: [mit, apache-2.0]", {"license": "mit, apache-2.0"}),
        ("license:\n- mit\n- apache-2.0", {"license": "mit, apache-2.0"}),
        ("license: >-\n  two\n  lines", {"license": "two lines"}),
        ("license:\nlicense_name: null", {}),
        ("license: {a: b}", {}),
        ("widget:\n- text: 'license: mit'", {}),
        ("language: en", {}),
    ],
)
def test_licences(front_matter: str, expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front_matter}\n---\n# A model\nlicense: not this\n", encoding="utf-8")
    keys, notes = card_metadata(tmp_path)
    assert {name: value.data for name, value in keys.items()} == {NAMES[name]: text for name, text in expected.items()}
    assert notes == []


@pytest.mark.parametrize(
    "readme",
    [
        b"---\nlicense: mit\ntags: [a\n---\n",
        b"---\nlicense: a: b\n---\n",
        b"---\nlicense: mit\n# no end\n\n*A* model: it's *good*\n",
        b"---\nlicense: 2024-99-99\n---\n",
        b"---\nlicense: \xff\n---\n",
        b"---\nlicense: " + b"[" * 5000 + b"\n---\n",
    ],
)
def test_front_matter_that_cannot_be_read_is_noted(readme: bytes, tmp_path: Path) -> None:
    model = build("llama-tied", tmp_path / "model")
    (model / "README.md").write_bytes(readme)
    planned = plan(model, "tq2_0")
    (note,) = [note for note in planned.notes if "README.md" in note]
    assert note.startswith("README.md: the front matter can't be read, so the file has no licence key (")
    assert "\n" not in note
    assert card_metadata(model)[0] == {}


def test_a_damaged_generation_config(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.7', encoding="utf-8")
    with pytest.raises(SourceError, match=r"generation_config\.json is damaged at line 1, column 20"):
        card_metadata(tmp_path)
