"""What the fuzzer reads: each target holds sound files, damages one, and reads it as the commands do."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from tests import (
    checkpoints,
    foreign_gguf,
    packed_checkpoints,
    quantized_checkpoints,
    scaled_checkpoints,
    tokenizer_folders,
)
from tests.attacks.mutations import damage_bytes, damage_json
from tests.lora_models import CASES, MODELS
from tritgguf.converter import convert
from tritgguf.converter.checkpoint import pytorch_reader, safetensors_reader
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.make_plan import make_plan
from tritgguf.converter.planning.request import Request
from tritgguf.converter.tokenizer import read_tokenizer
from tritgguf.converter.tokenizer.sentencepiece_proto import parse_model
from tritgguf.runtime.engine import gguf_header

RECIPES = ("llama-gqa", "llama-yarn", "qwen2", "qwen3", "mistral-window", "qwen3moe")
SCALED = ("ct-2bit", "ct-mixed", "gsq-4bit", "ct-int8", "ct-fp8", "fp8-blocks", "humming")
PACKINGS = ("2b4t", "falcon3", "llama-rows", "14b-seed", "14b-newer", "14b-padded", "1bitllm", "bitcpm")
QUANTIZED = ("gptq", "gptq-v2", "gptq-zeros", "auto-round", "mlx-bonsai", "mlx-auto-round")


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


class ForeignGguf(Target):
    """GGUF files with other programs' tensor types: the descriptions of the tensors, keys or weights are damaged."""

    name, share = "foreign", 5

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        base = foreign_gguf.base_file(folder / "base.gguf", hidden=1024)
        self.files = []
        for number, kind in enumerate(foreign_gguf.KINDS.values()):
            names = ("blk.0.attn_q.weight", "token_embd.weight", "blk.0.ssm_out.weight")
            tensors = {name: kind.tensor(*foreign_gguf.coded(kind, (4, 1024), number)) for name in names}
            for keys in ({}, _basis_keys()):
                file = foreign_gguf.add_tensors(base, folder / "sound.gguf", tensors, keys=keys, without=VOCABULARY)
                data = file.read_bytes()
                entries = data.rindex(b"blk.0.attn_q.weight") - 8
                first_key = data.find(b"prism.hadamard") if keys else 24
                body = len(data) - sum(len(stored) for *_, stored in tensors.values()) - 4 * 3 * 1024
                self.files.append((data, ((first_key, entries), (entries, entries + 150), (body, len(data)))))
                file.unlink()

    def damage(self, rng: random.Random) -> None:
        sound, places = rng.choice(self.files)
        data, (first, end) = bytearray(sound), rng.choices(places, (1, 1, 2))[0]
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(first, end)
            length = min(rng.choice((1, 1, 2, 4)), end - at)
            data[at : at + length] = rng.choice((rng.randbytes(length), bytes([rng.choice((0, 1, 255))]) * length))
        if rng.random() < 0.1:
            data = data[: len(data) - rng.choice((1, 33, 4096))]
        (self.folder / "damaged.gguf").write_bytes(data)

    def read(self, rng: random.Random) -> None:
        path = self.folder / "damaged.gguf"
        opened = open_model(path)
        kind = rng.choice(("auto", "f16", "q2_0", "tq2_0"))
        if rng.random() < 0.3:
            convert(path, self.folder / "out.gguf", kind, force=True, check=False, threads=1)
        else:
            make_plan(opened, Request.named(kind, "mse"), 1, None)


VOCABULARY = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.ggml.model")


def _basis_keys() -> dict[str, object]:
    """Return the keys of weights in a Hadamard basis."""
    said = {
        "version": 2,
        "tied_output": True,
        "block_size": 1024,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit",
        "sign_widths": [1024],
        "sign_values": [1, -1] * 512,
        "weight_names": ["blk.0.attn_q.weight", "blk.0.ssm_out.weight"],
        "inverse_weight_names": ["token_embd.weight"],
        "gdn_v_grouped": True,
    }
    heads = {"llama.ssm.group_count": 4, "llama.ssm.time_step_rank": 8}
    return {f"prism.hadamard.{name}": value for name, value in said.items()} | heads


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


TARGETS: Mapping[str, type[Target]] = {
    target.name: target
    for target in (
        SafetensorsHeader,
        SafetensorsIndex,
        PytorchFile,
        GgufHeader,
        ForeignGguf,
        ConfigJson,
        Tokenizer,
        PackedBytes,
        LoraAdapter,
    )
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
