"""The tokenizer's files, damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tests import checkpoints, tokenizer_folders
from tests.attacks.fuzz_target import Target
from tests.attacks.mutations import damage_bytes, damage_json
from tritgguf.converter.checkpoint import safetensors_reader
from tritgguf.converter.tokenizer import read_tokenizer
from tritgguf.converter.tokenizer.sentencepiece_proto import parse_model


class Tokenizer(Target):
    """tokenizer.json, tokenizer.model and the files beside them."""

    name, share = "tokenizer", 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.config = json.loads((checkpoints.build("llama-gqa", folder / "model") / "config.json").read_text())
        self.files: list[tuple[Path, bytes]] = []
        for recipe in ("llama-gqa", "qwen2", "llama-tied"):
            model = checkpoints.build(recipe, folder / recipe)
            for file in sorted(model.glob("*.json")):
                if file.name not in ("config.json", safetensors_reader.INDEX):
                    self.files.append((file, file.read_bytes()))
            for weights in sorted(model.glob("*.safetensors")):
                weights.unlink()
        self.files += [self._file(folder, "tokenizer.json", content) for content in self._structures()]
        unigram = tokenizer_folders.unigram_model()
        self.pieces = [
            self._file(folder, "tokenizer.model", model) for model in (tokenizer_folders.sentencepiece_model(), unigram)
        ]

    def _structures(self) -> Iterator[bytes]:
        unigram = tokenizer_folders.unigram_model()
        normalizer = tokenizer_folders.normalizing(
            parse_model(unigram).charsmap, tokenizer_folders.STRIP, tokenizer_folders.MERGE_SPACES
        )
        pieces = tokenizer_folders.scored_pieces(unigram)[:80]  # few, so that the other parts are damaged too
        metaspace = tokenizer_folders.metaspace("always")
        yield json.dumps(tokenizer_folders.unigram_structure(pieces, normalizer, metaspace)).encode()
        yield json.dumps(tokenizer_folders.wordpiece_structure(lowercase=True)).encode()

    def _file(self, folder: Path, name: str, content: bytes) -> tuple[Path, bytes]:
        place = folder / f"other-{len(list(folder.iterdir()))}"
        place.mkdir()
        (place / name).write_bytes(content)
        return place / name, content

    def damage(self, rng: random.Random) -> None:
        if rng.random() < 0.2:
            self.damaged, sound = rng.choice(self.pieces)
            self.damaged.write_bytes(damage_bytes(rng, sound, [sound]))
            return
        self.damaged, sound = rng.choice(self.files)
        if rng.random() < 0.8:
            self.damaged.write_bytes(damage_json(rng, json.loads(sound)))
        else:
            self.damaged.write_bytes(damage_bytes(rng, sound, [sound]))

    def read(self, rng: random.Random) -> None:
        folder = self.damaged.parent
        try:
            read_tokenizer(folder, n_vocab=640, config=self.config, load=rng.random() < 0.3)
        finally:
            for file, sound in self.files:
                if file == self.damaged:
                    file.write_bytes(sound)
