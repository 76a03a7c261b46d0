"""GGUF files that are damaged, with ordinary types and with other programs'."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests import checkpoints, foreign_gguf
from tests.attacks.fuzz_target import Target, write_sparse
from tests.attacks.mutations import damage_bytes
from tritgguf.converter import convert
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.make_plan import make_plan
from tritgguf.converter.planning.request import Request
from tritgguf.runtime.engine import gguf_header


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
