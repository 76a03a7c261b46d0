"""Record what transformers' BitNet code packs and computes as golden/packing/*.npz (see README.md).

python -m tests.golden.record_packing             record
python -m tests.golden.record_packing --check     compare a fresh recording with the files, change nothing

A linear layer's weights are read off the layer: fed with one-hot rows, which its 8-bit activations hold exactly, it
gives the columns it multiplies by. Everything runs in float32, so that the layer itself rounds nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the same code without a compiler

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, BitNetQuantConfig
from transformers.integrations import bitnet
from transformers.quantizers.quantizer_bitnet import BitNetHfQuantizer

from tests import checkpoints, packed_checkpoints

FOLDER = Path(__file__).resolve().parent / "packing"
CLASSES = {"autobitlinear": bitnet.AutoBitLinear, "bitlinear": bitnet.BitLinear}
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}
N_ROWS, N_COLUMNS = 32, 24
MODELS = ("2b4t", "2b4t-scalar", "2b4t-online", "falcon3", "llama-rows", "llama-online")
COLUMNS = range(5, 256, 50)  # of each linear layer of the models, so that the files stay small

Arrays = dict[str, np.ndarray]


def noise(label: str) -> torch.Tensor:
    """Return seeded values of mean 0 and deviation 1, (rows, columns)."""
    return torch.from_numpy(checkpoints._bell(f"packing/{label}", (N_ROWS, N_COLUMNS)))


def columns_of(module: torch.nn.Module, n_columns: int, wanted: range) -> np.ndarray:
    """Return some columns of the weights that a linear layer multiplies by, (rows, len(wanted))."""
    with torch.no_grad():
        return module(torch.eye(n_columns)[list(wanted)]).T.numpy().copy()


def layer(linear_class: str, dtype: str, scale_shape: tuple[int, ...]) -> Arrays:
    """Return packed bytes, scale and effective weights of one packed layer."""
    label = f"{linear_class}/{dtype}/{scale_shape}"
    trits = noise(label).sign() * (noise(label).abs() > 0.43)
    scale = (noise(f"{label}/scale").flatten()[: max(1, sum(scale_shape))].abs() + 0.5).reshape(scale_shape)
    # So far from 1 that multiplying and dividing by it are told apart.
    scale = (scale * (0.04 if linear_class == "autobitlinear" else 40)).to(DTYPES[dtype])
    packed = bitnet.pack_weights(trits.clone())
    module = CLASSES[linear_class](N_COLUMNS, N_ROWS, bias=False, dtype=torch.float32)
    if linear_class == "autobitlinear":  # its loader unpacks, as BitNetDeserialize does
        module.weight.data = bitnet.unpack_weights(packed, dtype=torch.float32)
    else:
        module.weight = packed
    module.weight_scale = scale.float()
    effective = columns_of(module, N_COLUMNS, range(N_COLUMNS))
    arrays = {"trits": trits.to(torch.int8), "packed": packed, "scale": scale.float()}
    return {"effective": effective, **{key: values.numpy() for key, values in arrays.items()}}


def latent(dtype: str) -> Arrays:
    """Return latent weights and the weights that a layer in mode online computes with."""
    values = (noise(f"master/{dtype}") * 0.08).to(DTYPES[dtype]).float()
    module = bitnet.AutoBitLinear(N_COLUMNS, N_ROWS, bias=False, online_quant=True)
    module.weight.data = values
    return {"latent": values.numpy(), "effective": columns_of(module, N_COLUMNS, range(N_COLUMNS))}


def load(folder: Path) -> torch.nn.Module:
    """Return the model with the layers that config.json's quantization_config calls for."""
    config = AutoConfig.from_pretrained(folder)
    quantization = BitNetQuantConfig.from_dict(config.quantization_config)
    del config.quantization_config  # its quantizer asks for a further package, accelerate, but needs nothing of it
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    kept = BitNetHfQuantizer.get_modules_to_not_convert(model, quantization.modules_to_not_convert)
    bitnet.replace_with_bitnet_linear(model, kept, quantization)
    tensors = load_file(folder / "model.safetensors")
    tensors = {key: value if value.dtype == torch.uint8 else value.float() for key, value in tensors.items()}
    for key in [key for key, value in tensors.items() if value.dtype == torch.uint8]:
        module = model.get_submodule(key.removesuffix(".weight"))
        module.weight_scale = tensors[f"{key}_scale"]  # of any shape; transformers makes room for one value
        if quantization.linear_class == "autobitlinear":
            unpack = bitnet.BitNetDeserialize(None)
            tensors |= unpack.convert({"weight": tensors[key]}, model=model, full_layer_name=key)
            tensors[key] = tensors.pop("weight")
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    if unexpected or missing != (["lm_head.weight"] if config.tie_word_embeddings else []):
        raise SystemExit(f"{folder.name}: missing {missing}, unexpected {unexpected}")
    return model


def model(name: str) -> Arrays:
    """Return some columns of every linear layer's weights, as the model of one packed checkpoint computes with them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = packed_checkpoints.build(name, Path(temporary) / name)
        loaded = load(folder)
        arrays = {"checkpoint_sha256": np.array(checkpoints.digest(folder))}
    for key, module in loaded.named_modules():
        if checkpoints.is_linear(f"{key}.weight"):
            assert isinstance(module, tuple(CLASSES.values())), f"{key} is {type(module).__name__}"
            arrays[f"{key}.weight"] = columns_of(module, module.in_features, COLUMNS)
    return arrays


def recordings() -> dict[str, Arrays]:
    """Return the arrays of each file."""
    layers: Arrays = {}
    for linear_class in CLASSES:
        for dtype in DTYPES:
            for scale_shape in ((1,), (), (N_ROWS,)):
                kind = "scalar" if not scale_shape else "one" if scale_shape == (1,) else "row"
                for key, values in layer(linear_class, dtype, scale_shape).items():
                    layers[f"{linear_class}/{dtype}/{kind}/{key}"] = values
    latent_weights = {f"{dtype}/{key}": values for dtype in DTYPES for key, values in latent(dtype).items()}
    return {"layers": layers, "latent": latent_weights, **{name: model(name) for name in MODELS}}


def differs(old: Arrays, new: Arrays) -> bool:
    """Say whether two recordings aren't of the same thing, or beyond float32 rounding."""
    if old.keys() != new.keys():
        return True
    return any(
        not (
            np.array_equal(old[key], new[key])
            if new[key].dtype.kind != "f"
            else np.allclose(old[key], new[key], 1e-6, equal_nan=True)
        )
        for key in new
        if key != "recorded_with"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    torch.set_num_threads(1)  # sums in one fixed order
    FOLDER.mkdir(exist_ok=True)
    failed = False
    for name, arrays in recordings().items():
        path = FOLDER / f"{name}.npz"
        versions: Any = np.array(f"transformers {transformers.__version__}, torch {torch.__version__}")
        if not check:
            np.savez_compressed(path, **arrays, recorded_with=versions)
            print(f"{name}: {path.stat().st_size} bytes")
            continue
        with np.load(path) as file:
            different = differs(dict(file), {**arrays, "recorded_with": versions})
        failed |= different
        print(f"{name}: {'differs' if different else 'the same'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
