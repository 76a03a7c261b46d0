"""What a checkpoint's card says that nothing here computes with: its licence, and how its authors sample from it."""

from __future__ import annotations

import re
from pathlib import Path

from gguf import GGUFValueType, Keys

from tritgguf.converter.gguf_io.metadata import Metadata, Value, float32, string
from tritgguf.converter.tokenizer.files import read_object_if_present

_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---$", re.S | re.M)
_LICENSE = {
    "license": Keys.General.LICENSE,
    "license_name": Keys.General.LICENSE_NAME,
    "license_link": Keys.General.LICENSE_LINK,
}
# Keys of generation_config.json, and what llama.cpp's programs read them as.
_SAMPLING = {
    "temperature": Keys.General.SAMPLING_TEMP,
    "top_p": Keys.General.SAMPLING_TOP_P,
    "min_p": Keys.General.SAMPLING_MIN_P,
    "repetition_penalty": Keys.General.SAMPLING_PENALTY_REPEAT,
}


def card_metadata(folder: Path) -> Metadata:
    """Return the licence of README.md's front matter and the sampling of generation_config.json, where they are."""
    keys: Metadata = {key: string(text) for name, key in _LICENSE.items() if (text := _license(folder, name))}
    generation = read_object_if_present(folder / "generation_config.json")
    for name, key in _SAMPLING.items():
        value = generation.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            keys[key] = float32(value)
    if type(top_k := generation.get("top_k")) is int:
        keys[Keys.General.SAMPLING_TOP_K] = Value(top_k, GGUFValueType.INT32)
    return keys


def _license(folder: Path, name: str) -> str | None:
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    matter = _FRONT_MATTER.match(readme.read_text(encoding="utf-8-sig", errors="replace"))
    entry = re.search(rf"^{name}:[ \t]*(\S.*?)[ \t]*$", matter[1], re.M) if matter else None
    return entry[1].strip("'\"") if entry else None
