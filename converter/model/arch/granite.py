"""Granite (dense): Llama with multipliers for embeddings, attention scores, residuals and logits."""

from __future__ import annotations

from gguf import MODEL_ARCH, Keys

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.gguf_io.metadata import Metadata, float32
from tritgguf.converter.model.arch import llama
from tritgguf.converter.model.architecture import Architecture
from tritgguf.converter.model.config import DecoderConfig

MULTIPLIERS = {
    "embedding_multiplier": Keys.LLM.EMBEDDING_SCALE,
    "attention_multiplier": Keys.Attention.SCALE,
    "residual_multiplier": Keys.LLM.RESIDUAL_SCALE,
    "logits_scaling": Keys.LLM.LOGIT_SCALE,  # the graph divides by it, as the model does
}


def multipliers(config: DecoderConfig, arch: str) -> Metadata:
    """Return the keys of the multipliers."""
    return {key.format(arch=arch): float32(config.raw.number(name)) for name, key in MULTIPLIERS.items()}


def settings(keys: Settings) -> ConfigJson:
    """Return config.json's multipliers from a GGUF file's keys: the way back of `multipliers`."""
    return {name: keys.number(key.removeprefix("{arch}."), 1.0) for name, key in MULTIPLIERS.items()}


ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.GRANITE,
    classes={"GraniteForCausalLM": dict.fromkeys(MULTIPLIERS, 1.0)},
    tensors=llama.tensors,
    extra_keys=multipliers,
    settings=settings,
)
