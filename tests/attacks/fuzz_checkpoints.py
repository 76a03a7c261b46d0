"""Checkpoints that are damaged: config.json in many formats, and their packed weights."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests import checkpoints, packed_checkpoints, quantized_checkpoints, scaled_checkpoints
from tests.attacks.fuzz_target import Target, write_sparse
from tests.attacks.mutations import damage_json
from tritgguf.converter import convert
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.make_plan import make_plan
from tritgguf.converter.planning.request import Request

RECIPES = ("llama-gqa", "llama-yarn", "qwen2", "qwen3", "mistral-window", "qwen3moe")
SCALED = ("ct-2bit", "ct-mixed", "gsq-4bit", "ct-int8", "ct-fp8", "fp8-blocks", "humming")
PACKINGS = ("2b4t", "falcon3", "llama-rows", "14b-seed", "14b-newer", "14b-padded", "1bitllm", "bitcpm")
QUANTIZED = ("gptq", "gptq-v2", "gptq-zeros", "auto-round", "mlx-bonsai", "mlx-auto-round")


class ConfigJson(Target):
    """config.json and generation_config.json, of a folder without weights or with weights that are zeros."""

    name, share = "config", 8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.documents: list[tuple[Path, Mapping[str, object]]] = []
        names = [(checkpoints.build, name) for name in (*RECIPES, "llama-linear")]
        names += [(packed_checkpoints.build, name) for name in PACKINGS]
        names += [(quantized_checkpoints.build, name) for name in QUANTIZED]
        names += [(scaled_checkpoints.build, name) for name in SCALED]
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


class PackedBytes(Target):
    """Packed checkpoints whose weights' bytes, or whose header, are damaged; what passes is converted."""

    name, share = "packed", 1

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.models = []
        names = [(packed_checkpoints.build, name) for name in PACKINGS]
        names += [(quantized_checkpoints.build, name) for name in QUANTIZED]
        names += [(scaled_checkpoints.build, name) for name in SCALED]
        for build, name in names:
            model = build(name, folder / name)
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


def keep_header(path: Path) -> None:
    """Replace a safetensors file's weights by zeros that take no space."""
    data = path.read_bytes()
    n_bytes = 8 + int.from_bytes(data[:8], "little")
    write_sparse(path, data[:n_bytes], len(data) - n_bytes)
