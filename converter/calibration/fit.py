"""Fit a model's linear layers block by block; what torch is needed for is imported with this module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tritgguf.converter.calibration import affine, gptq
from tritgguf.converter.calibration.blocks import Block, Decoder, fast_products, quiet
from tritgguf.converter.calibration.kept import Kept
from tritgguf.converter.calibration.layers import BLOCKS, WEIGHT, BlockError, Layer, unsupported
from tritgguf.converter.calibration.moments import Group, Moments, Sums, groups
from tritgguf.converter.calibration.text import Chunks
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.progress import Step
from tritgguf.converter.core.tensors import ByteArray, CodedRows
from tritgguf.converter.errors import TensorError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.calibration import Calibration
from tritgguf.converter.quant.codecs.q2_k import Q2K

DAMPING, DAMPING_AT_DOWN = 0.1, 0.3  # of H's mean diagonal
CORRECTION_DAMPING = 0.1
HELD_OUT = 8  # chunks, at most one in eight
CANNOT_SOLVE = ("mps",)  # kinds of devices where torch lacks some of what chooses codes
ADDING = (".attn_output.weight", ".ffn_down.weight")  # GGUF names of the layers that add to the residual stream


class Fit:
    """Both models' residual streams, on the CPU, and how the quantized one's codes are chosen."""

    def __init__(self, decoder: Decoder, specs: Sequence[TensorSpec], chunks: Chunks, calibration: Calibration) -> None:
        self.decoder, self.specs, self.calibration = decoder, specs, calibration
        self.device = decoder.device
        self.solving = torch.device("cpu") if self.device.type in CANNOT_SOLVE else self.device
        self.float_streams = decoder.embedded(chunks)
        self.streams = self.float_streams.clone()
        self.n_held_out = max(1, min(HELD_OUT, len(chunks) // 8))

    def block(
        self, number: int, layers: Mapping[str, Layer], kept: Kept, step: Step
    ) -> tuple[dict[str, StoredTensor], BlockError]:
        """Fit a block's layers, given by name, or take what is kept of them, and go behind the block.

        `step` is called with 1 for each chunk that went through, n_groups + 1 times all in all.
        """
        float_block, block = self.decoder.block(number), self.decoder.block(number)
        stored, behind = kept.read(number), dict[int, Tensor]()
        if stored is None:
            packed, behind = self._fitted(number, layers, float_block, block, step)
            stored = kept.write(number, packed)
        for name, layer in layers.items():  # as they are stored, after a resumption too
            _set_weights(block, name, layer, stored[name].data)
        return stored, self._advance(float_block, block, behind, step)

    def _fitted(
        self, number: int, layers: Mapping[str, Layer], float_block: Block, block: Block, step: Step
    ) -> tuple[dict[str, ByteArray], dict[int, Tensor]]:
        """Return the layers' packed rows, and the float streams behind the block by chunk, as far as they are known."""
        packed: dict[str, ByteArray] = {}
        behind: dict[int, Tensor] = {}
        *_, last = found = self._groups(number, float_block)
        for group in found:
            wanted = [name for name in group.names if name in layers]
            if not wanted:
                continue
            moments, streams = self._moments(group, float_block, block, step)
            behind = streams if group is last else {}
            for name in wanted:
                packed[name] = self._packed(layers[name], float_block.linear(name).weight.data, moments)
                _set_weights(block, name, layers[name], packed[name])
        return packed, behind

    def _groups(self, number: int, block: Block) -> list[Group]:
        prefix = f"{BLOCKS}{number}."
        linear = [spec for spec in self.specs if spec.role == "linear" and spec.source.startswith(prefix)]
        names = {spec.name: spec.source.removeprefix(prefix).removesuffix(WEIGHT) for spec in linear}
        adding = [name for gguf_name, name in names.items() if gguf_name.endswith(ADDING)]
        with quiet(self.decoder.folder):
            found = groups(block, self.float_streams[:1].to(self.device), list(names.values()), adding)
        if found is None:
            raise unsupported(self.decoder.class_name)
        return found

    def _moments(self, group: Group, float_block: Block, block: Block, step: Step) -> tuple[Moments, dict[int, Tensor]]:
        """Return the moments, and the float streams behind the layer by chunk where they were needed."""
        does = self.calibration.does
        sums = Sums(group, correction=does("correction"), token_weights=does("token-weights"))
        behind = {}
        for chunk in range(len(self.streams) - self.n_held_out):
            with fast_products():
                stream = sums.add(float_block, block, *self._at(chunk))
            if stream is not None:
                behind[chunk] = stream.cpu()
            step(1)
        return sums.moments().to(self.solving), behind

    def _packed(self, layer: Layer, weights: Tensor, moments: Moments) -> ByteArray:
        try:
            return self._quantized(layer, weights, moments)
        except torch.linalg.LinAlgError as error:
            raise TensorError(
                f"{layer.spec.source}: no codes can be fitted to what this layer gets, which isn't finite or too much "
                "alike; give other text (--calibration)"
            ) from error
        except TensorError as error:
            raise TensorError(f"{layer.spec.source}: {error}") from error

    def _quantized(self, layer: Layer, weights: Tensor, moments: Moments) -> ByteArray:
        does, weights = self.calibration.does, weights.to(self.solving)
        if (pull := moments.pull(weights)) is not None:
            weights = gptq.corrected(weights, gptq.damped(moments.hessian, CORRECTION_DAMPING), pull)
        at_down = layer.spec.name.endswith(ADDING[1])
        hessian = gptq.damped(moments.hessian, DAMPING_AT_DOWN if at_down else DAMPING)
        steps = {"feedback": does("feedback"), "refitted": does("refit"), "descent": does("descent")}
        codec = layer.codec
        if isinstance(codec, Q2K):
            return codec.pack_affine(affine.quantized(weights, hessian, **steps))
        codes, scales = gptq.quantized(weights, hessian, codec.block, layer.highest, **steps)
        return codec.pack(CodedRows(codes.cpu().numpy(), scales.cpu().numpy(), codec.block))

    def _at(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Return a chunk's residual streams, the float model's first, (1, n_tokens, hidden_size); on the device."""
        float_stream, stream = self.float_streams[chunk], self.streams[chunk]
        return float_stream[None].to(self.device), stream[None].to(self.device)

    def _advance(self, float_block: Block, block: Block, behind: dict[int, Tensor], step: Step) -> BlockError:
        errors = []
        for chunk in range(len(self.streams)):
            their_stream, stream = self._at(chunk)
            theirs = behind.pop(chunk).to(self.device) if chunk in behind else None
            with fast_products():
                ours = block(stream)[0]
                theirs = float_block(their_stream)[0] if theirs is None else theirs
            norms = theirs.square().mean(-1).clamp_min(1e-6)
            errors.append(float(((ours - theirs).square().mean(-1) / norms).clamp_max(1).mean()))
            self.float_streams[chunk], self.streams[chunk] = theirs, ours
            step(1)
        fitted, held_out = errors[: -self.n_held_out], errors[-self.n_held_out :]
        return BlockError(sum(fitted) / len(fitted), sum(held_out) / len(held_out))


def fitted(
    decoder: Decoder,
    specs: Sequence[TensorSpec],
    layers: Sequence[Layer],
    chunks: Chunks,
    calibration: Calibration,
    kept: Kept,
    step: Step,
    ended: Callable[[BlockError], None],
    threads: int,
) -> tuple[dict[str, StoredTensor], list[BlockError]]:
    """Return the packed rows of all layers by their tensors' names in the checkpoint, and each block's errors.

    `step` is called with 1 for each chunk that went through a block, `ended` at the end of each block.
    """
    torch.set_num_threads(threads)
    found: dict[str, StoredTensor] = {}
    errors = []
    with torch.no_grad():
        fit = Fit(decoder, specs, chunks, calibration)
        for number in range(len(decoder)):
            own = {layer.name: layer for layer in layers if layer.block == number}
            stored, error = fit.block(number, own, kept, step)
            found |= {own[name].spec.source: tensor for name, tensor in stored.items()}
            errors.append(error)
            ended(error)
    return found, errors


def _set_weights(block: Block, name: str, layer: Layer, packed: ByteArray) -> None:
    rows = layer.codec.decode(packed.reshape(layer.spec.shape[0], -1))
    block.linear(name).weight.copy_(torch.from_numpy(rows))
