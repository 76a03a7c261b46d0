"""Methods of quantization_config that transformers knows and no packing here reads, each with what to do instead."""

from __future__ import annotations

_ORIGINAL = "convert the model of floats that it was made from"
_DEQUANTIZED = (
    "load it with transformers, call dequantize() and save_pretrained(), take quantization_config out of config.json, "
    "and convert that folder"
)

WAYS_OUT = {
    **dict.fromkeys(("aqlm", "awq", "eetq", "fbgemm_fp8", "fouroversix", "fp_quant", "gemma", "metal"), _ORIGINAL),
    **dict.fromkeys(("modelopt", "mxfp4", "mxfp8", "nvfp4", "quanto", "quark", "sinq", "spqr", "torchao"), _ORIGINAL),
    "vptq": _ORIGINAL,
    "hqq": f"its zero points are any numbers, which no tensor type here stores exactly: {_ORIGINAL}",
    "bitsandbytes": _DEQUANTIZED,
    "higgs": _DEQUANTIZED,
    "gguf": "give the GGUF file itself instead of the folder",
}
