"""What the fuzzer reads: each target holds sound files, damages one, and reads it as the commands do."""

from __future__ import annotations

import json
import os
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests import checkpoints, packed_checkpoints, tokenizer_folders
from tests.attacks.mutations import damage_bytes, damage_json
from tritgguf.converter import convert
from tritgguf.converter.checkpoint import safetensors_reader
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.make_plan import make_plan
from tritgguf.converter.planning.request import Request
from tritgguf.converter.tokenizer import read_tokenizer
from tritgguf.runtime.engine import gguf_header

RECIPES = ("llama-gqa", "llama-yarn", "qwen2", "qwen3", "mistral-window", "qwen3moe")
PACKINGS = ("2b4t", "falcon3", "llama-rows", "14b-seed", "14b-newer", "14b-padded", "1bitllm", "bitcpm")


class Target(ABC):
    """Damages files in a folder, and reads them; `share` is its part of all inputs."""

    name: ClassVar[str]
    share: ClassVar[int]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def damage(self, rng: random.Random) -> None:
        """Write one damaged input into the folder."""

    @abstractmethod
    def read(self, rng: random.Random) -> None:
        """Read it; raise TritggufError where it is refused."""


class SafetensorsHeader(Target):
    """model.safetensors: its header is damaged, its weights are zeros that take no space."""

    name, share = "safetensors", 35

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.headers = []
        for recipe in ("llama-gqa", "llama1"):
            data = (checkpoints.build(recipe, folder / recipe) / "model.safetensors").read_bytes()
            n_bytes = 8 + int.from_bytes(data[:8], "little")
            self.headers.append((data[:n_bytes], len(data) - n_bytes))
            shutil.rmtree(folder / recipe)

    def damage(self, rng: random.Random) -> None:
        header, body_bytes = rng.choice(self.headers)
        if rng.random() < 0.5:
            text = damage_json(rng, json.loads(header[8:]))
            header = len(text).to_bytes(8, "little") + text
        else:
            header = damage_bytes(rng, header, [header])
        write_sparse(self.folder / "model.safetensors", header, body_bytes + rng.choice((0, 0, 0, 1, -1)))

    def read(self, rng: random.Random) -> None:
        for tensor in safetensors_reader.read_tensors(self.folder).values():
            tensor.read(slice(0, 1))


class SafetensorsIndex(Target):
    """model.safetensors.index.json beside sound shards."""

    name, share = "index", 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        checkpoints.build("qwen2", folder)
        self.index = json.loads((folder / safetensors_reader.INDEX).read_text())

    def damage(self, rng: random.Random) -> None:
        (self.folder / safetensors_reader.INDEX).write_bytes(damage_json(rng, self.index))

    def read(self, rng: random.Random) -> None:
        safetensors_reader.read_tensors(self.folder)


class GgufHeader(Target):
    """A GGUF file whose header is damaged, read as the converter does and as the runtime does."""

    name, share = "gguf", 35

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.headers = []
        for recipe, kind in (("llama-gqa", "tq2_0"), ("qwen2", "q4_0"), ("qwen3", "f16")):
            file = folder / "sound.gguf"
            made = convert(checkpoints.build(recipe, folder / recipe), file, kind, check=False, threads=1)
            data = file.read_bytes()
            n_bytes = len(made.plan.parts[0].header)
            self.headers.append((data[:n_bytes], len(data) - n_bytes))
            file.unlink()
            shutil.rmtree(folder / recipe)

    def damage(self, rng: random.Random) -> None:
        header, body_bytes = rng.choice(self.headers)
        damaged = b"GGUF" + damage_bytes(rng, header, [other for other, _ in self.headers])[4:]
        write_sparse(self.folder / "damaged.gguf", damaged, body_bytes + rng.choice((0, 0, 0, 64, -1)))

    def read(self, rng: random.Random) -> None:
        path = self.folder / "damaged.gguf"
        opened = open_model(path)
        if rng.random() < 0.02:
            make_plan(opened, Request.named("auto", "mse"), 1, None)
        gguf_header.check_loadable(path, gguf_header.read_header(path))


class ConfigJson(Target):
    """config.json and generation_config.json, of a folder without weights or with weights that are zeros."""

    name, share = "config", 8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.documents: list[tuple[Path, Mapping[str, object]]] = []
        names = [(checkpoints.build, name) for name in (*RECIPES, "llama-linear")]
        names += [(packed_checkpoints.build, name) for name in PACKINGS]
        for build, name in names:
            model = build(name, folder / name)
            for weights in sorted(model.glob("*.safetensors")):
                keep_header(weights)
            bare = folder / f"{name} without weights"
            shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors*"))
            for place in (model, bare, bare, bare):
                self.documents.append((place, json.loads((place / "config.json").read_text())))

    def damage(self, rng: random.Random) -> None:
        self.model, document = rng.choice(self.documents)
        (self.model / "config.json").write_bytes(damage_json(rng, document))

    def read(self, rng: random.Random) -> None:
        make_plan(open_model(self.model, load_tokenizer=False), Request.named("auto", "mse"), 1, None)


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
        pieces = folder / "sentencepiece"
        pieces.mkdir()
        self.pieces = (pieces / "tokenizer.model", tokenizer_folders.sentencepiece_model())

    def damage(self, rng: random.Random) -> None:
        if rng.random() < 0.2:
            self.damaged, sound = self.pieces
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


class PackedBytes(Target):
    """Packed checkpoints whose weights' bytes, or whose header, are damaged; what passes is converted."""

    name, share = "packed", 1

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.models = []
        for name in PACKINGS:
            model = packed_checkpoints.build(name, folder / name)
            file = model / "model.safetensors"
            self.models.append((file, file.read_bytes()))

    def damage(self, rng: random.Random) -> None:
        self.file, sound = rng.choice(self.models)
        start = 8 + int.from_bytes(sound[:8], "little")
        header = json.loads(sound[8:start])
        if rng.random() < 0.3:
            text = damage_json(rng, header)
            self.file.write_bytes(len(text).to_bytes(8, "little") + text + sound[start:])
            return
        # Packed weights and their scales: other floats are mostly refused as NaN.
        names = [name for name, entry in header.items() if "_proj" in name]
        body = bytearray(sound[start:])
        for _ in range(rng.choice((0, 1, 1, 1, 3, 20))):
            first, end = header[rng.choice(names)]["data_offsets"]
            at = rng.randrange(first, end)
            length = min(rng.choice((1, 2, 4, 256)), end - at)
            body[at : at + length] = rng.choice((rng.randbytes(length), bytes([rng.choice((0, 127, 255))]) * length))
        self.file.write_bytes(sound[:start] + body)

    def read(self, rng: random.Random) -> None:
        kind = rng.choice(("auto", "tq2_0", "tq1_0", "q2_0", "f16"))
        out = self.folder / "out.gguf"
        convert(self.file.parent, out, kind, force=True, check=False, threads=1, allow_lossy=rng.random() < 0.5)


TARGETS: Mapping[str, type[Target]] = {
    target.name: target
    for target in (SafetensorsHeader, SafetensorsIndex, GgufHeader, ConfigJson, Tokenizer, PackedBytes)
}


def write_sparse(path: Path, start: bytes, zeros: int) -> None:
    """Write a file that begins with `start`; the zero bytes after it take no space."""
    with path.open("wb") as file:
        file.write(start)
        os.ftruncate(file.fileno(), max(0, len(start) + zeros))


def keep_header(path: Path) -> None:
    """Replace a safetensors file's weights by zeros that take no space."""
    data = path.read_bytes()
    n_bytes = 8 + int.from_bytes(data[:8], "little")
    write_sparse(path, data[:n_bytes], len(data) - n_bytes)
