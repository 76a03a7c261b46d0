"""Record what GPTQModel, AutoRound and MLX write and compute for single layers, as golden/quantized (see README.md).

python -m tests.golden.record_quantized_layers gptq|auto_round|mlx             record with that package
python -m tests.golden.record_quantized_layers gptq|auto_round|mlx --check     compare with the file, change nothing

Each package packs the seeded integers, zero points and scales of tests/quantized_layers.py, and dequantizes what it
packed. Each has its own environment: README.md tells which.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests import quantized_layers
from tests.quantized_layers import N_COLUMNS, PACKAGES, Layer, shape_of

FOLDER = Path(__file__).resolve().parent / "quantized"
Tensors = dict[str, Any]


def gptq(name: str, layer: Layer) -> Tensors:
    """Return what GPTQModel's TorchLinear packs, in the named version of the format, and dequantizes."""
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    weights = torch.from_numpy(quantized_layers.weights(name, layer, shape_of(layer)))
    linear = torch.nn.Linear(N_COLUMNS, layer.n_rows, bias=False)
    linear.weight.data = weights
    group = N_COLUMNS if layer.group == -1 else layer.group
    sizes = {"in_features": N_COLUMNS, "out_features": layer.n_rows}
    module = TorchLinear(layer.bits, group, layer.symmetric, False, **sizes)
    scales = torch.from_numpy(quantized_layers.scales(name, layer, shape_of(layer)))
    zeros = torch.from_numpy(quantized_layers.zeros(name, layer, shape_of(layer)).astype(np.int32))
    module.pack_block(linear, scales, zeros, module.g_idx)
    module.post_init()
    expected = module.dequantize_weight().T.contiguous()
    if layer.minus_one:
        said = QuantizeConfig(bits=layer.bits, group_size=layer.group, sym=layer.symmetric, offload_to_disk=False)
        convert_gptq_v2_to_v1_format_module(module, said)
    stored = {key: getattr(module, key).clone() for key in ("qweight", "qzeros", "scales", "g_idx")}
    return {**stored, "expected": expected}


def auto_round(name: str, layer: Layer) -> Tensors:
    """Return what AutoRound's QuantLinear packs, and the columns that it multiplies by."""
    import torch
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    kind = qlinear_torch_zp if layer.minus_one else qlinear_torch
    weights = torch.from_numpy(quantized_layers.weights(name, layer, shape_of(layer)))
    linear = torch.nn.Linear(N_COLUMNS, layer.n_rows, bias=False)
    linear.weight.data = weights
    module = kind.QuantLinear(layer.bits, layer.group, N_COLUMNS, layer.n_rows, bias=False)
    module.device = "cpu"
    scales = torch.from_numpy(quantized_layers.scales(name, layer, shape_of(layer)))
    zeros = quantized_layers.zeros(name, layer, shape_of(layer))
    zero = int(zeros[0, 0]) if layer.symmetric else torch.from_numpy(zeros.astype(np.float32))
    module.pack(linear, scales, zero, None, device="cpu")
    module.post_init()
    expected = module(torch.eye(N_COLUMNS)).T.half().contiguous()
    stored = {key: getattr(module, key).clone() for key in ("qweight", "qzeros", "scales")}
    return {**stored, "expected": expected}


def mlx(name: str, layer: Layer) -> Tensors:
    """Return what mlx.core.quantize packs, or the seeded scales on its integers, and what dequantize makes of it."""
    import mlx.core as mx

    dtype = {"F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32}[layer.dtype]
    values = mx.array(quantized_layers.weights(name, Layer(8, 32), shape_of(layer))).astype(dtype)
    if not layer.symmetric:
        values = values + mx.max(values) * 0.6  # so that some zero points aren't 1 or 2
    weight, scales, biases = mx.quantize(values, layer.group, layer.bits)
    if layer.bias_per_scale is not None:
        scales = mx.array(quantized_layers.scales(name, layer, shape_of(layer))).astype(dtype)
        biases = scales * layer.bias_per_scale
    wide = (scales.astype(mx.float32), biases.astype(mx.float32))
    expected = mx.dequantize(weight, *wide, layer.group, layer.bits)
    mx.eval(weight, scales, biases, expected)
    return {"weight": weight, "scales": scales, "biases": biases, "expected": expected}


def recorded(package: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each tensor of the package's file."""
    make = {"gptq": gptq, "auto_round": auto_round, "mlx": mlx}[package]
    for name, layer in PACKAGES[package].items():
        for key, values in make(name, layer).items():
            yield f"{name}.{key}", values


def save(package: str, path: Path) -> None:
    """Record one package's file."""
    tensors = dict(recorded(package))
    if package == "mlx":
        import mlx.core as mx

        mx.save_safetensors(str(path), tensors)
        return
    from safetensors.torch import save_file

    save_file(tensors, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("--check", action="store_true")
    said = parser.parse_args()
    path = FOLDER / f"{said.package}.safetensors"
    if not said.check:
        save(said.package, path)
        return
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / path.name
        save(said.package, again)
        if again.read_bytes() != path.read_bytes():
            sys.exit(f"{path.name}: the recording differs")


if __name__ == "__main__":
    main()
