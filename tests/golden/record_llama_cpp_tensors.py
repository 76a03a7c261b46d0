"""Record what llama.cpp's own converter writes of recipes' checkpoints, as llama_cpp_tensors.json (see README.md).

python -m tests.golden.record_llama_cpp_tensors LLAMA_CPP_FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests import checkpoints
from tests.checkpoint_recipes import RECIPES

FILE = Path(__file__).with_name("llama_cpp_tensors.json")
# Those whose tensors have another form in the file than in the checkpoint, or whose keys have.
NAMES = (
    "phi3",
    "phi3-longrope-long",
    "phi3-longrope-short",
    "qwen35",
    "qwen35-one-to-one",
    "qwen3moe",
    "qwen3next",
    "qwen3next-ternary",
)


def record(name: str, folder: Path) -> dict[str, Any]:
    """Return the names, types, shapes and hashes of a recipe's tensors in a file of --outtype f32, and its keys."""
    import gguf
    from conversion import get_model_class

    checkpoints.build(name, folder)
    out = folder.parent / "out.gguf"
    kind = get_model_class(RECIPES[name].architecture)
    kind.no_mtp = True  # or Qwen's demand layers that guess further tokens
    converter = kind(folder, gguf.LlamaFileType.ALL_F32, out)
    converter.set_vocab = lambda: None  # it knows real tokenizers by the ids that they give
    converter.write()
    reader = gguf.GGUFReader(out)
    prefix = f"{reader.fields['general.architecture'].contents()}."
    return {
        "checkpoint_sha256": checkpoints.digest(folder),
        "keys": {key: field.contents() for key, field in reader.fields.items() if key.startswith(prefix)},
        "tensors": {tensor.name: in_short(tensor) for tensor in reader.tensors},
    }


def in_short(tensor: Any) -> str:
    """Return type, shape and hash of a tensor that gguf read."""
    shape = "x".join(str(size) for size in reversed(tensor.shape))
    return f"{tensor.tensor_type.name} {shape} {hashlib.sha256(tensor.data.tobytes()).hexdigest()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path)
    sources = parser.parse_args().llama_cpp
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    found = {}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = record(name, Path(folder) / name)
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
