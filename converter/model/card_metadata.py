"""Keys about a model that don't change what it computes: its name, its licence, the sampling its authors recommend."""

from __future__ import annotations

import codecs
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, Keys
from gguf import Metadata as GgufMetadata

from tritgguf.converter.core.json_files import read_object_if_present
from tritgguf.converter.core.settings import LARGEST, SMALLEST, Settings
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.metadata import Metadata, Value, float32, string
from tritgguf.converter.model.description import Parameters, description
from tritgguf.converter.model.hub_source import repository_of, source_metadata

_LICENSE = {
    "license": Keys.General.LICENSE,
    "license_name": Keys.General.LICENSE_NAME,
    "license_link": Keys.General.LICENSE_LINK,
}
# Keys of generation_config.json with their ranges, and the keys that llama.cpp's programs read them from.
_SAMPLING = {
    "temperature": (Keys.General.SAMPLING_TEMP, 0, LARGEST),
    "top_p": (Keys.General.SAMPLING_TOP_P, 0, 1),
    "min_p": (Keys.General.SAMPLING_MIN_P, 0, 1),
    "repetition_penalty": (Keys.General.SAMPLING_PENALTY_REPEAT, SMALLEST, LARGEST),
}

_PHI3 = re.compile("(phi)-?3", re.IGNORECASE)
_TOKENS_OF_PHI3 = {"<unk>", "<s>", "</s>", "<|endoftext|>"}


def card_metadata(folder: Path, config: Mapping[str, Any], parameters: Parameters) -> tuple[Metadata, list[str]]:
    """Return the keys of the description, the licence, the source and generation_config.json's sampling, and notes.

    `config` is config.json. A missing file gives no keys. Front matter that can't be read gives a note and no licence.
    A damaged generation_config.json, or a wrong number in it, raises SourceError.
    """
    card, notes = _card(folder)
    licence = {key: string(text) for name, key in _LICENSE.items() if (text := _text(card.get(name)))}
    described = description(card, config, model_name(folder), parameters)
    return described | licence | source_metadata(folder) | _sampling(folder), notes


def model_name(folder: Path) -> str:
    """Return the folder's name, or the repository's for a snapshot in Hugging Face's cache, whose name is a commit.

    A GGUF file's name is that of the file without its ending.
    """
    if folder.is_file():
        return folder.stem
    folder = folder.resolve()
    repository = repository_of(folder)
    return folder.name if repository is None else repository.split("/")[-1]


def loadable_name(name: str, tokens: Collection[str]) -> str:
    """Return `name`, with Phi-3's name in it spelt apart unless `tokens`, the vocabulary, has Phi-3's special tokens.

    llama.cpp gives these attributes in every model whose general.name has "phi-3" or "phi3", and can't load a file
    without them: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
    """
    return name if set(tokens) >= _TOKENS_OF_PHI3 else _PHI3.sub(r"\1 3", name)


def _card(folder: Path) -> tuple[Mapping[str, Any], list[str]]:
    try:
        return _model_card(folder), []
    except Exception as error:  # PyYAML raises YAMLError, and ValueError for a date that doesn't exist, among others
        reason = f"{' '.join(str(error).split()):.120}"
        return {}, [f"README.md: the front matter can't be read, so the file has no licence key ({reason})"]


def _model_card(folder: Path) -> Mapping[str, Any]:
    readme = folder / "README.md"
    if not readme.is_file() or not (data := readme.read_bytes()).startswith(codecs.BOM_UTF8):
        return GgufMetadata.load_model_card(folder)
    with tempfile.TemporaryDirectory(prefix="tritgguf-") as copy:  # gguf finds no front matter behind the mark
        (Path(copy) / readme.name).write_bytes(data.removeprefix(codecs.BOM_UTF8))
        return GgufMetadata.load_model_card(Path(copy))


def _text(value: object) -> str | None:
    """Return a value of the front matter as text: of a list, its values; None where there is nothing to write."""
    if isinstance(value, list):
        return ", ".join(text for item in value if (text := _text(item)))
    return None if value is None or isinstance(value, dict) else str(value)


def _sampling(folder: Path) -> Metadata:
    path = folder / "generation_config.json"
    generation = Settings(path.name, read_object_if_present(path, SourceError))
    keys: Metadata = {
        key: float32(generation.number(name, least=least, most=most))
        for name, (key, least, most) in _SAMPLING.items()
        if generation.has(name)
    }
    if generation.has("top_k"):
        # Some files say -1 for no limit, as llama.cpp does.
        keys[Keys.General.SAMPLING_TOP_K] = Value(generation.integer("top_k", least=-1), GGUFValueType.INT32)
    return keys
