"""Which linear layers gptq fits, for which types, and how well a block does then."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.calibration import GPTQ, TYPES, Calibration
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.quant.codec import TernaryCodec
from tritgguf.converter.quant.codecs.q2_k import Q2K

BLOCKS = "model.layers."
WEIGHT = ".weight"


@dataclass(frozen=True)
class Layer:
    """A linear layer to fit: its tensor, the type that its codes are for, and the highest code."""

    spec: TensorSpec
    codec: TernaryCodec
    highest: int

    @property
    def codes(self) -> str:
        """Its kind of codes in words."""
        if isinstance(self.codec, Q2K):
            return "four codes, scales and minima (2 bits, not ternary)"
        return "three codes" if self.highest == 1 else "four codes (2 bits, not ternary)"

    @property
    def block(self) -> int:
        """The number of its block."""
        return int(self.spec.source.removeprefix(BLOCKS).split(".")[0])

    @property
    def name(self) -> str:
        """Its name in its block."""
        return self.spec.source.removeprefix(f"{BLOCKS}{self.block}.").removesuffix(WEIGHT)


@dataclass(frozen=True)
class BlockError:
    """How far a block's outputs are from the float model's: mean over tokens of |difference|² / |output|², at most 1.

    The inputs are those of the quantized model, so earlier blocks' errors count too. `held_out` is the same on chunks
    that nothing was fitted to.
    """

    calibration: float
    held_out: float

    def __str__(self) -> str:
        return f"block error {self.calibration:.3g} on calibration text, {self.held_out:.3g} on held-out text"


def unsupported(name: str) -> UnsupportedError:
    """Return the error for a class, or one of its tensors, that isn't what gptq needs."""
    return UnsupportedError(
        f"{name}: --method {GPTQ} takes decoders whose blocks add an attention and a feed-forward part of plain linear "
        "layers to the residual stream, such as Llama, Mistral, Qwen2 and Qwen3; leave --method out"
    )


def layers_to_fit(plans: Iterable[TensorPlan], calibration: Calibration) -> list[Layer]:
    """Return the linear layers that a plan would round; raise UnsupportedError for what gptq doesn't do."""
    layers = []
    for plan in plans:
        if plan.spec.role != "linear" or not plan.encoder.rounds:
            continue
        if not plan.spec.source.startswith(BLOCKS):
            raise unsupported(plan.spec.source)
        codec = plan.codec
        if not isinstance(codec, TernaryCodec) or codec.name not in TYPES:
            raise UnsupportedError(
                f"{plan.spec.source}: --method {GPTQ} fits codes for {', '.join(TYPES)}, not for {codec.name}"
            )
        four = 4 in codec.exact_levels and calibration.does("fourth-code")
        layers.append(Layer(plan.spec, codec, 2 if four else 1))
    return layers
