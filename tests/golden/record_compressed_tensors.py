"""Record what compressed-tensors and transformers make of quantized weights: golden/compressed_tensors (see README.md).

python -m tests.golden.record_compressed_tensors             record
python -m tests.golden.record_compressed_tensors --check     compare a fresh recording with the files, change nothing

compressed-tensors quantizes, packs and unpacks single layers; of the checkpoints of ../scaled_checkpoints.py it says
which module is stored how, and unpacks it. FP8 with block scales is unpacked by transformers. Logits are transformers'.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compressed_tensors
import numpy as np
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from tests import checkpoints, scaled_checkpoints
from tests.golden.record_packing import Arrays, differs

FOLDER = Path(__file__).resolve().parent / "compressed_tensors"
N_ROWS, N_COLUMNS = 12, 64  # 12 rows fill no word of zero points
UNEVEN = 40  # columns that fill no word of 2 bits
CUT_BLOCK = (40, 48)  # of which the last ones aren't whole in 96 rows and 64 columns
COLUMNS = range(5, 256, 60)  # of each linear layer of the models, so that the files stay small
N_TOKENS = 48
SINGLE = "model.safetensors"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def layer_cases() -> Iterator[tuple[str, str, str, dict[str, Any], int]]:
    """Yield name, format, dtype of scales, QuantizationArgs and number of columns of each single layer."""
    for bits in (2, 4, 8):
        for dtype in DTYPES:
            for symmetric in (True,) if dtype == "F16" else (True, False):
                kind = "symmetric" if symmetric else "asymmetric"
                args = {"num_bits": bits, "symmetric": symmetric}
                group = {**args, "strategy": "group", "group_size": 32}
                yield f"words/{bits}/{dtype}/group/{kind}", "pack-quantized", dtype, group, N_COLUMNS
                channel = {**args, "strategy": "channel"}
                yield f"words/{bits}/{dtype}/channel/{kind}", "pack-quantized", dtype, channel, UNEVEN
    for dtype in DTYPES:
        for strategy in ("tensor", "channel"):
            for symmetric in (True, False):
                kind = "symmetric" if symmetric else "asymmetric"
                args = {"num_bits": 8, "strategy": strategy, "symmetric": symmetric}
                yield f"int/{dtype}/{strategy}/{kind}", "int-quantized", dtype, args, N_COLUMNS
            args = {"num_bits": 8, "type": "float", "strategy": strategy}
            yield f"float/{dtype}/{strategy}/symmetric", "float-quantized", dtype, args, N_COLUMNS
        block = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [8, 24]}
        yield f"float/{dtype}/block/symmetric", "float-quantized", dtype, block, N_COLUMNS
        group = {"num_bits": 4, "strategy": "group", "group_size": 8}
        yield f"naive/{dtype}/group/symmetric", "naive-quantized", dtype, group, UNEVEN


def layer(name: str, form: str, dtype: str, given: dict[str, Any], n_columns: int) -> Arrays:
    """Return what the package stores for one layer's weights, and what it makes of that again."""
    args = QuantizationArgs(**given)
    state = unquantized(name, DTYPES[dtype], args, (N_ROWS, n_columns))
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    compressor = BaseCompressor.get_value_from_registry(form)
    packed = compressor.compress(state, scheme)
    dequantized = compressor.decompress(dict(packed), scheme)["weight"]
    shapes = {key: [dtype_name(value), list(value.shape)] for key, value in packed.items()}
    return {
        **{f"packed/{key}": as_bytes(value) for key, value in packed.items()},
        "shapes": np.array(json.dumps(shapes)),
        "config": np.array(json.dumps({"format": form, "weights": json.loads(args.model_dump_json())})),
        "weights": dequantized.float().numpy(),
    }


def unquantized(
    name: str, dtype: torch.dtype, args: QuantizationArgs, shape: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """Return seeded weights, scales and zero points."""
    weight = torch.from_numpy(checkpoints._bell(f"quantized/{name}", shape)).to(dtype)
    rows, columns = {
        "tensor": shape,
        "channel": (1, shape[1]),
        "group": (1, args.group_size),
        "block": args.block_structure,
    }[args.strategy]
    grid = (-(-shape[0] // rows), -(-shape[1] // columns))
    words = torch.from_numpy(checkpoints._raw_words(f"quantized/{name}/scales", grid[0] * grid[1]).astype(np.int64))
    highest = 448 / 3 if args.type == "float" else 2 ** (args.num_bits - 1)
    scale = ((0.5 + (words % 64) / 128).reshape(grid) * 2.5 / highest).to(dtype)
    state = {"weight": weight, "weight_scale": scale.reshape(1) if args.strategy == "tensor" else scale}
    if not args.symmetric:
        zeros = (words // 64 % 2 ** min(args.num_bits, 7)).reshape(state["weight_scale"].shape)
        state["weight_zero_point"] = (zeros - 2 ** (args.num_bits - 1)).to(torch.int8)
    return state


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.flatten())
    return flat.view(torch.uint8).numpy().copy()


def dtype_name(tensor: torch.Tensor) -> str:
    """Return a dtype as safetensors spells it."""
    names = {torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3"}
    return {**names, **{value: key for key, value in DTYPES.items()}}[tensor.dtype]


def eight_bits() -> Arrays:
    """Return torch's value of each byte of its 8-bit floats, and transformers' of a matrix with scales per block."""
    every = torch.arange(256).to(torch.uint8)
    codes = torch.from_numpy(scaled_checkpoints.nearest_e4m3(checkpoints._bell("quantized/fp8", (96, 64)) * 64))
    weight = codes.to(torch.uint8).view(torch.float8_e4m3fn)
    scales = torch.from_numpy(checkpoints._bell("quantized/fp8/scales", (3, 2))).abs() + 0.01
    cut = FP8BlockDequantizer(weight_block_size=CUT_BLOCK, dtype=torch.float32)
    return {
        "F8_E4M3": every.view(torch.float8_e4m3fn).float().numpy(),
        "F8_E5M2": every.view(torch.float8_e5m2).float().numpy(),
        "blocks/codes": weight.view(torch.uint8).numpy(),
        "blocks/scales": scales.numpy(),
        "blocks/weights": Fp8Dequantize(None)._dequantize_one(weight, scales, torch.float32).numpy(),
        "cut/weights": cut._create_dequantized_weight(weight, scales).numpy(),
    }


def plain_model(config: Any) -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


def unpack(said: dict[str, Any], skeleton: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> set[str]:
    """Replace what is stored for packed modules by the reference's weights, and return their names."""
    if said["quant_method"] == "compressed-tensors":
        apply_quantization_config(skeleton, QuantizationConfig(**said), run_compressed=True, show_progress=False)
    done = set()
    for key, module in skeleton.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        state = {part.removeprefix(f"{key}."): tensors[part] for part in tensors if part.startswith(f"{key}.weight")}
        if scheme is not None:
            compressor = BaseCompressor.get_value_from_registry(str(scheme.format or said["format"]))
            weight = compressor.decompress(state, scheme)["weight"]
        elif "weight_scale_inv" in state:
            weight = Fp8Dequantize(None)._dequantize_one(state["weight"], state["weight_scale_inv"], torch.float32)
        else:
            continue
        for part in state:
            del tensors[f"{key}.{part}"]
        tensors[f"{key}.weight"] = weight
        done.add(f"{key}.weight")
    return done


def unpacked(name: str, folder: Path) -> tuple[torch.nn.Module, set[str]]:
    """Return the model with the weights that the reference unpacks from the folder, and the names of these."""
    config = AutoConfig.from_pretrained(folder)
    said = config.quantization_config
    del config.quantization_config
    tensors = load_file(folder / "model.safetensors")
    done = unpack(said, plain_model(config), tensors)
    loaded = plain_model(config)
    missing, unexpected = loaded.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=False)
    if missing or unexpected:
        raise SystemExit(f"{name}: missing {missing}, unexpected {unexpected}")
    return loaded, done


def model(name: str) -> Arrays:
    """Return some columns of every linear layer's weights, and logits."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = scaled_checkpoints.build(name, Path(temporary) / name)
        loaded, done = unpacked(name, folder)
        arrays = {"checkpoint_sha256": np.array(checkpoints.digest(folder))}
    for key in sorted(done):
        arrays[key] = loaded.get_parameter(key).detach()[:, list(COLUMNS)].numpy().copy()
    vocab = loaded.config.vocab_size
    token_ids = (checkpoints._raw_words(f"{name}/token_ids", N_TOKENS) % np.uint64(vocab)).astype(np.int32)
    with torch.no_grad():
        logits = loaded(torch.from_numpy(token_ids.astype(np.int64))[None]).logits[0].numpy()
    step = np.float32(np.abs(logits).max() / 32767)
    return {
        **arrays,
        "token_ids": token_ids,
        "logits_int16": np.rint(logits / step).astype(np.int16),
        "logits_step": step,
    }


def written() -> Arrays:
    """Return a small model's folder as the package itself writes it, and the weights that it makes of that again."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = checkpoints.build("written", Path(temporary) / "floats", scaled_checkpoints.SMALL)
        small = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        args = QuantizationArgs(num_bits=2, strategy="group", group_size=32)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        said = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head", "re:.*k_proj$"])
        apply_quantization_config(small, said, show_progress=False)
        for module in small.modules():
            if hasattr(module, "quantization_scheme"):
                largest = module.weight.data.reshape(len(module.weight), -1, args.group_size).abs().amax(-1)
                module.weight_scale.data.copy_(largest / 2)
                module.quantization_status = QuantizationStatus.FROZEN
        compressor = ModelCompressor.from_pretrained_model(small)
        compressor.compress_model(small)
        out = Path(temporary) / "packed"
        small.save_pretrained(out)
        compressor.update_config(out)
        compressor.decompress_model(small)
        files = {name: np.frombuffer((out / name).read_bytes(), np.uint8) for name in ("config.json", SINGLE)}
    linear = {key: weight for key, weight in small.state_dict().items() if checkpoints.is_linear(key)}
    return {**files, **{key: weight.float().numpy() for key, weight in linear.items()}}


def recordings() -> dict[str, Arrays]:
    """Return the arrays of each file."""
    layers = {f"{case[0]}/{key}": value for case in layer_cases() for key, value in layer(*case).items()}
    models = [name for name in scaled_checkpoints.QUANTIZED if not name.startswith("humming")]
    return {"layers": layers, "float8": eight_bits(), "written": written(), **{name: model(name) for name in models}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    torch.set_num_threads(1)  # sums in one fixed order
    FOLDER.mkdir(exist_ok=True)
    failed = False
    packages = (compressed_tensors, transformers, torch)
    versions: Any = np.array(", ".join(f"{package.__name__} {package.__version__}" for package in packages))
    for name, arrays in recordings().items():
        path = FOLDER / f"{name}.npz"
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
