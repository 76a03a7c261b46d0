"""Importance matrices that are damaged, in llama-imatrix's GGUF files and in its older format."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np

from tests.attacks.fuzz_target import Target
from tests.attacks.mutations import damage_bytes
from tritgguf.converter.gguf_io.imatrix import Entry, Imatrix, read_imatrix, write_imatrix

ROWS, COLUMNS = 5, 8


class ImportanceMatrix(Target):
    """A matrix of dense layers and of experts, read as `convert --imatrix` does."""

    name, share = "imatrix", 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sums = np.arange(1, 25, dtype=np.float32).reshape(3, COLUMNS)
        shapes = {"blk.0.attn_q.weight": 1, "blk.0.ffn_down_exps.weight": 3, "blk.10.ffn_gate.weight": 1}
        entries = {name: Entry(sums[:n], np.arange(n, dtype=np.float32)) for name, n in shapes.items()}
        sound = folder / "sound.gguf"
        write_imatrix(Imatrix(sound, entries, ("words.txt", "code.txt"), 3, 512))
        self.files = [sound.read_bytes(), _dat(entries)]

    def damage(self, rng: random.Random) -> None:
        (self.folder / "damaged").write_bytes(damage_bytes(rng, rng.choice(self.files), self.files))

    def read(self, rng: random.Random) -> None:
        found = read_imatrix(self.folder / "damaged")
        for name in found.entries:
            found.importance(name, (rng.choice((1, 3)), ROWS, COLUMNS))
            found.n_without(name)
        found.provenance()


def _dat(entries: dict[str, Entry]) -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, entry in entries.items():
        encoded, values = name.encode(), entry.sums.reshape(-1)
        parts.append(struct.pack("<i", len(encoded)) + encoded)
        parts.append(struct.pack("<ii", 2, len(values)) + values.astype("<f4").tobytes())
    return b"".join([*parts, struct.pack("<ii", 3, 9), b"words.txt"])
