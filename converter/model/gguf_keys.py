"""The keys of a GGUF file's architecture as this package writes them; llama.cpp's own script writes more."""

from __future__ import annotations

from dataclasses import dataclass

from tritgguf.converter.core.settings import Settings
from tritgguf.converter.gguf_io.reader import GgufFile
from tritgguf.converter.model.config import MOST_LAYERS

GUESSING = "nextn_predict_layers"
LINEAR_LAYERS = "attention.recurrent_layers"


@dataclass(frozen=True)
class ArchitectureKeys:
    """The keys without their prefix, and the last layers, which guess further tokens and which `keys` don't count."""

    keys: Settings
    guessing: range

    def guesses(self, tensor_name: str) -> bool:
        """Whether a tensor of that name is in one of the layers that guess further tokens."""
        return tensor_name.startswith(tuple(f"blk.{number}." for number in self.guessing))


def architecture_keys(file: GgufFile) -> ArchitectureKeys:
    """Return the keys; raise SourceError where every layer guesses further tokens."""
    prefix = f"{file.architecture}."
    found = {key.removeprefix(prefix): value.data for key, value in file.metadata.items() if key.startswith(prefix)}
    if found.get("attention.sliding_window") == 0:  # none
        del found["attention.sliding_window"]
    keys = Settings(file.path.name, found, prefix.removesuffix("."))
    n_guessing = keys.integer(GUESSING, 0, least=0)
    total = keys.integer("block_count", least=n_guessing + 1, most=MOST_LAYERS)
    n_layers = total - n_guessing
    trunk = {name: value for name, value in keys.items() if name != GUESSING} | {"block_count": n_layers}
    if isinstance(linear := keys.get(LINEAR_LAYERS), list):
        trunk[LINEAR_LAYERS] = linear[: len(linear) - n_guessing]
    return ArchitectureKeys(Settings(keys.file, trunk, keys.inside), range(n_layers, total))
