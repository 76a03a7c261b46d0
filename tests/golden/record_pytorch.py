"""Record files that real PyTorch writes: every case that pytorch_reader reads or refuses, and the values in them.

`python -m tests.golden.record_pytorch` writes pytorch/*.bin, pytorch/values.npz and, for a whole model, the shards in
pytorch/model; it needs the extra `golden`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from tests.checkpoints import build
from tests.pytorch_files import TINY

FOLDER = Path(__file__).parent / "pytorch"


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(17))


def _cases() -> dict[str, dict[str, torch.Tensor]]:
    whole = _floats(12, 16)
    linear = torch.nn.Linear(6, 4, dtype=torch.float32)
    with torch.no_grad():
        linear.weight.copy_(_floats(4, 6))
        linear.bias.copy_(_floats(4))
    return {
        "dtypes": {
            "f32": _floats(3, 5),
            "f16": _floats(3, 5).half(),
            "bf16": _floats(3, 5).bfloat16(),
            "f64": _floats(2, 2).double(),
            "u8": torch.arange(200, 212, dtype=torch.uint8).reshape(3, 4),
            "i8": torch.arange(-3, 3, dtype=torch.int8),
            "i16": torch.arange(-3, 3, dtype=torch.int16),
            "i32": torch.arange(-3, 3, dtype=torch.int32),
            "i64": torch.arange(-3, 3, dtype=torch.int64),
            "u16": torch.arange(0, 6).to(torch.uint16),  # saved as an untyped storage
            "bool": torch.tensor([True, False, True]),
            "number": torch.tensor(2.5),
            "empty": torch.zeros(0, 4),
        },
        "views": {
            "whole": whole,
            "tied": whole,
            "transposed": whole.t(),
            "rows": whole[4:7],
            "columns": whole[:, 3:9],
            "every_second": whole[::2],
            "column": whole[:, 5],
            "one_row": whole[2:3],
            "transposed_f16": _floats(7, 4).half().t(),
        },
        "parameters": {"weight": torch.nn.Parameter(_floats(4, 6)), "frozen": torch.nn.Parameter(_floats(3), False)},
        "module": linear.state_dict(),
    }


def _stored(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def _record_model(folder: Path) -> None:
    """Save the tiny model in two shards with an index, as transformers 4 does."""
    with tempfile.TemporaryDirectory() as temporary:
        tensors = load_file(build("tiny", Path(temporary) / "model", TINY) / "model.safetensors")
    folder.mkdir(exist_ok=True)
    names, weight_map = sorted(tensors), {}
    for number, some in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        shard = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in some}, folder / shard)
        weight_map |= dict.fromkeys(some, shard)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    cases = _cases()
    values = {f"{case}/{name}": _stored(tensor) for case, tensors in cases.items() for name, tensor in tensors.items()}
    for case, tensors in cases.items():
        torch.save(tensors, FOLDER / f"{case}.bin")
    dtypes = cases["dtypes"]
    torch.save({"f32": dtypes["f32"]}, FOLDER / "protocol4.bin", pickle_protocol=4)
    torch.save({"epoch": 3, "state_dict": {"f32": dtypes["f32"]}}, FOLDER / "nested.bin")
    torch.save({"epoch": 3, "f32": dtypes["f32"]}, FOLDER / "beside.bin")
    torch.save({"model": {"f32": dtypes["f32"]}, "module": {"f32": dtypes["f32"]}}, FOLDER / "two_nested.bin")
    torch.save({"conj": torch.tensor([1 + 2j])}, FOLDER / "complex.bin")
    torch.save({"expanded": torch.ones(1).expand(5)}, FOLDER / "expanded.bin")
    torch.save({"packed": dtypes["u8"].t()}, FOLDER / "transposed_u8.bin")
    torch.save({"sparse": torch.eye(3).to_sparse()}, FOLDER / "sparse.bin")
    torch.save(torch.nn.Linear(2, 2), FOLDER / "whole_module.bin")
    torch.save({"f32": dtypes["f32"]}, FOLDER / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), FOLDER / "script.bin")
    _record_model(FOLDER / "model")
    np.savez_compressed(FOLDER / "values.npz", **values)
    (FOLDER / "recorded_with.json").write_text(json.dumps({"torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main()
