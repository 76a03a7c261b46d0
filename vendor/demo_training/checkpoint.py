"""The ternary model as a Hugging Face folder in packed bitnet format, `linear_class` bitlinear."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from vendor.demo_training.model import CONFIG, Decoder, ternary_codes, weight_scale
from vendor.demo_training.tokenizer import END, TEXT_END

QUANTIZATION = {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"}
MASTERS = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


def exact_scale(absmean: float) -> np.float32:
    """The nearest float16 number whose reciprocal's reciprocal, in float32, is itself.

    A bitlinear checkpoint holds reciprocals, in float32; a GGUF block holds the scale, in float16. With such a scale,
    2^-11 from absmean or a little more, the one is exactly the other.
    """
    nearest = np.float16(absmean)
    for steps in range(64):
        for bits in (nearest.view(np.uint16) + steps, nearest.view(np.uint16) - steps):
            scale = np.float32(np.uint16(bits).view(np.float16))
            if np.float32(1) / (np.float32(1) / scale) == scale:
                return scale
    raise AssertionError("no such scale nearby")


def packed(codes: np.ndarray) -> np.ndarray:
    """Four trits in a byte: bits 2i and 2i+1 of row r hold trit + 1 of row r + i * rows / 4."""
    quarters = (codes + 1).astype(np.uint8).reshape(4, -1, codes.shape[1])
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def save_packed(model: Decoder, folder: Path, token_ids: dict[str, int]) -> None:
    """Write config.json, generation_config.json and model.safetensors: trits, float32 norms, a float16 embedding."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        if "_proj" in name:
            codes = ternary_codes(parameter).numpy().astype(np.int8)
            scale = np.float32(1) / exact_scale(weight_scale(parameter).item())
            tensors[f"model.{name}"] = torch.from_numpy(packed(codes))
            tensors[f"model.{name}_scale"] = torch.tensor([float(scale)], dtype=torch.float32)
        else:
            tensors[f"model.{name}"] = parameter.half() if "embed" in name else parameter
    _save(tensors, folder, QUANTIZATION, token_ids)


def save_latent_weights(model: Decoder, folder: Path, token_ids: dict[str, int]) -> None:
    """Write the same model as it is trained on: float32 weights that are rounded each time they are used."""
    _save({f"model.{name}": tensor for name, tensor in model.state_dict().items()}, folder, MASTERS, token_ids)


def _save(tensors: dict[str, Tensor], folder: Path, quantization: dict[str, str], token_ids: dict[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    ids = {"bos_token_id": None, "eos_token_id": token_ids[END], "pad_token_id": token_ids[TEXT_END]}
    config = {**CONFIG, **ids, "dtype": "float32", "quantization_config": quantization}
    for name, content in (("config.json", config), ("generation_config.json", ids)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def transformers_losses(folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """The folder as transformers loads and runs it: ids and wanted ids to losses, as Decoder.losses gives them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def losses(ids: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(model(ids).logits.transpose(1, 2), wanted, reduction="none")

    return losses
