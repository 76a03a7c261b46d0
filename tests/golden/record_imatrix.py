"""Record what llama-imatrix and llama-quantize write: `python -m tests.golden.record_imatrix FOLDER [--check]`.

FOLDER holds both programs, built from the sdist of the pinned llama-cpp-python (tests/golden/README.md says how). With
--check nothing is written: on this machine `tritgguf imatrix` must find the same sums, and llama-quantize must take its
files and make the same tensors of them.
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from tests import imatrix_models
from tritgguf.converter.gguf_io.imatrix import read_imatrix

QUANTIZED = imatrix_models.QUANTIZED_TYPE.name  # a type whose quantizer weighs errors, and which needs no tables
NEEDS_IMATRIX = "IQ2_XXS"


class Programs:
    """The programs, on the models of tests/imatrix_models.py."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.models = {name: imatrix_models.model(name, folder) for name in imatrix_models.CHUNKS}
        self.texts = {name: imatrix_models.text(name, folder) for name in imatrix_models.CHUNKS}

    def run(self, *command: object) -> str:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=self.folder)
        if done.returncode:
            sys.exit(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout + done.stderr

    def theirs(self, name: str, kind: str) -> Path:
        """Return llama-imatrix's file, `kind` gguf or dat."""
        n_ctx, n_chunks = imatrix_models.CHUNKS[name]
        out = self.folder / f"{name}-theirs.{kind}"
        options = ["-c", n_ctx, "--chunks", n_chunks, "-t", 1, "-tb", 1, "--no-ppl", "--output-format", kind]
        model = ["-m", self.models[name], "-f", self.texts[name].relative_to(self.texts[name].parent)]
        (self.folder / self.texts[name].name).write_bytes(self.texts[name].read_bytes())
        self.run(self.programs / "llama-imatrix", *model, "-o", out, *options)
        return out

    def ours(self, name: str) -> Path:
        n_ctx, n_chunks = imatrix_models.CHUNKS[name]
        out = self.folder / f"{name}-ours.gguf"
        command = [sys.executable, "-m", "tritgguf", "imatrix", self.models[name], "--text", self.texts[name]]
        self.run(*command, "-o", out, "--ctx", n_ctx, "--chunks", n_chunks, "--threads", 1)
        return out

    def quantized(self, name: str, imatrix: Path, kind: str = QUANTIZED) -> tuple[Path, str]:
        """Return the file that llama-quantize makes with an importance matrix, and what it prints of that."""
        out = self.folder / f"{name}-{imatrix.stem}-{imatrix.suffix[1:]}-{kind}.gguf"
        options = ["--pure", "--imatrix", imatrix.name]
        if kind == NEEDS_IMATRIX:  # which has no inputs of these tensors
            options += ["--token-embedding-type", "f16", "--output-tensor-type", "f16"]
        printed = self.run(self.programs / "llama-quantize", *options, self.models[name], out, kind, 1)
        return out, next(line for line in printed.splitlines() if "importance matrix entries from" in line)


def quantized_tensors(file: Path) -> dict[str, np.ndarray]:
    """Return the bytes of each quantized tensor, (n_matrices, n_rows, row bytes)."""
    tensors = [tensor for tensor in gguf.GGUFReader(file).tensors if tensor.tensor_type.name == QUANTIZED]
    return {tensor.name: tensor.data.reshape(-1, *tensor.data.shape[-2:]) for tensor in tensors}


def keys(file: Path) -> dict[str, str | int]:
    fields = gguf.GGUFReader(file).fields
    return {name: field.contents() for name, field in fields.items() if name.startswith("quantize.imatrix.")}


def record(programs: Programs) -> None:
    imatrix_models.RECORDED.mkdir(exist_ok=True)
    recorded, rows = {}, {}
    for name in imatrix_models.CHUNKS:
        for kind in ("gguf", "dat") if name == "experts" else ("gguf",):
            file = programs.theirs(name, kind)
            made, printed = programs.quantized(name, file)
            recorded[f"{name}.{kind}"] = {"printed": printed, "keys": keys(made)}
            tensor = imatrix_models.QUANTIZED[name]
            rows[f"{name}.{kind}"] = quantized_tensors(made)[tensor][:, : imatrix_models.N_ROWS]
            (imatrix_models.RECORDED / f"{name}.{kind}.xz").write_bytes(lzma.compress(file.read_bytes()))
    np.savez_compressed(imatrix_models.RECORDED / "quantized.npz", **rows)
    (imatrix_models.RECORDED / "quantized.json").write_text(json.dumps(recorded, indent=1) + "\n")
    print(*sorted((path.name, path.stat().st_size) for path in imatrix_models.RECORDED.iterdir()), sep="\n")


def check(programs: Programs) -> None:
    for name in imatrix_models.CHUNKS:
        files = programs.theirs(name, "gguf"), programs.ours(name)
        theirs, ours = map(read_imatrix, files)
        worst = 0.0
        for layer, entry in theirs.entries.items():
            found = ours.entries[layer]
            np.testing.assert_array_equal(found.counts, entry.counts, err_msg=layer)
            scale = entry.sums.max()
            worst = max(worst, float((np.abs(found.sums - entry.sums) / np.maximum(entry.sums, 1e-6 * scale)).max()))
        assert ours.entries.keys() == theirs.entries.keys()
        print(f"{name}: {len(ours.entries)} layers, sums differ by at most {worst:.1e}")
        (made, printed), (of_ours, of_ours_printed) = (programs.quantized(name, file) for file in files)
        of_both = quantized_tensors(made), quantized_tensors(of_ours)
        same = [float((stored == of_both[1][layer]).mean()) for layer, stored in of_both[0].items()]
        print(printed, of_ours_printed, keys(of_ours), sep="\n")
        print(f"of {len(same)} tensors' bytes {np.mean(same):.4%} are the same; at least {min(same):.4%} of one's")
        programs.quantized(name, files[1], NEEDS_IMATRIX)
        print(f"{NEEDS_IMATRIX} is made with ours, too")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(arguments.programs.resolve(), Path(folder))
        (check if arguments.check else record)(programs)


if __name__ == "__main__":
    main()
