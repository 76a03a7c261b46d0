"""Files of weights that are damaged: safetensors, PyTorch's, adapters."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from pathlib import Path

from tests import checkpoints
from tests.attacks.fuzz_target import Target, write_sparse
from tests.attacks.mutations import damage_bytes, damage_json
from tests.lora_models import CASES, MODELS
from tritgguf.converter.checkpoint import pytorch_reader, safetensors_reader
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.make_plan import make_plan
from tritgguf.converter.planning.request import Request


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


class PytorchFile(Target):
    """pytorch_model.bin: its pickle, or its zip archive's directory and headers, are damaged."""

    name, share = "pytorch", 12

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        golden = Path(__file__).parents[1] / "golden" / "pytorch"
        self.files = [(golden / f"{name}.bin").read_bytes() for name in ("dtypes", "views", "parameters", "module")]
        self.pickles = [_members(file)["data.pkl"] for file in self.files]

    def damage(self, rng: random.Random) -> None:
        path = self.folder / "pytorch_model.bin"
        number = rng.randrange(len(self.files))
        if rng.random() < 0.3:
            path.write_bytes(damage_bytes(rng, self.files[number], self.files))
            return
        members = _members(self.files[number])
        members["data.pkl"] = damage_bytes(rng, self.pickles[number], self.pickles)
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(f"a/{name}", data)

    def read(self, rng: random.Random) -> None:
        for tensor in pytorch_reader.read_tensors(self.folder).values():
            if tensor.dtype in FLOAT_DTYPES:
                tensor.read(slice(0, 1))


def _members(file: bytes) -> dict[str, bytes]:
    """Return what an archive holds, by the names after its root."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


class LoraAdapter(Target):
    """An adapter's config and its safetensors header, merged into a sound model and planned."""

    name, share = "lora", 2

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.models = {name: checkpoints.build(name, folder / name, recipe) for name, recipe in MODELS.items()}
        self.adapter = folder / "adapter"
        self.adapter.mkdir()
        self.sound = []
        for case in ("plain", "patterns", "saved", "embeddings", "dora", "bias"):
            golden = Path(__file__).parents[1] / "golden" / "lora" / case
            config = json.loads((golden / "adapter_config.json").read_text())
            self.sound.append((CASES[case][0], config, (golden / "adapter_model.safetensors").read_bytes()))

    def damage(self, rng: random.Random) -> None:
        self.model, config, tensors = rng.choice(self.sound)
        if rng.random() < 0.5:
            text = damage_json(rng, config)
        else:
            text, n_bytes = json.dumps(config).encode(), 8 + int.from_bytes(tensors[:8], "little")
            header = damage_json(rng, json.loads(tensors[8:n_bytes]))
            tensors = len(header).to_bytes(8, "little") + header + tensors[n_bytes:]
        (self.adapter / "adapter_config.json").write_bytes(text)
        (self.adapter / "adapter_model.safetensors").write_bytes(tensors)

    def read(self, rng: random.Random) -> None:
        model = open_model(self.models[self.model], load_tokenizer=False, lora=self.adapter)
        make_plan(model, Request.named("auto", "mse"), 1, None)
