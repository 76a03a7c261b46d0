"""The blocks of a decoder, computed by transformers' own modules: one block's weights in memory at a time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call
from transformers.modeling_outputs import BaseModelOutputWithPast

from tritgguf.converter.calibration.layers import BLOCKS, WEIGHT, unsupported
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.architecture import TensorSpec

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Seen(NamedTuple):
    """What a linear layer got and what it made of it, (1, n_tokens, n_features)."""

    inputs: Tensor
    outputs: Tensor


class _ReachedError(Exception):
    """What was to be seen has been seen."""


class Block:
    """One block with its weights; `keywords` are what the model calls it with beside the residual stream."""

    def __init__(self, module: nn.Module, keywords: Mapping[str, Any]) -> None:
        self.module = module
        self.keywords = keywords

    def __call__(self, stream: Tensor) -> Tensor:
        """Return the residual stream behind the block, (1, n_tokens, hidden_size)."""
        result = self.module(stream, **self.keywords)
        return result[0] if isinstance(result, tuple) else result

    def linear(self, name: str) -> nn.Linear:
        """Return the linear layer of that name in the block."""
        return self.module.get_submodule(name)

    def inputs(self, stream: Tensor, name: str) -> Tensor:
        """Run the block up to a linear layer and return what that would get, (1, n_tokens, n_features)."""
        found: list[Tensor] = []

        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found.append(arguments[0])
            raise _ReachedError

        handle = self.linear(name).register_forward_pre_hook(hook)
        with suppress(_ReachedError):
            self(stream)
        handle.remove()
        return found[0]

    def watch(self, stream: Tensor, names: Sequence[str], *, to_the_end: bool = False) -> dict[str, Seen]:
        """Run the block until all of these layers have run, and return what each saw, in the order in which they ran.

        With `to_the_end` the result is under "" too.
        """
        seen: dict[str, Seen] = {}

        def hook(name: str, _module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = Seen(arguments[0], output)
            if len(seen) == len(names) and not to_the_end:
                raise _ReachedError

        handles = [self.linear(name).register_forward_hook(partial(hook, name)) for name in names]
        try:
            seen[""] = Seen(stream, self(stream))
        except _ReachedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen


class Decoder:
    """A model's class without weights: blocks get theirs when they are asked for.

    `tensors` are the checkpoint's by name. Blocks are on the device, by default a GPU if torch has one. Raises
    UnsupportedError where the class isn't one of blocks of linear layers, or transformers can't make it.
    """

    def __init__(
        self,
        folder: Path,
        specs: Sequence[TensorSpec],
        tensors: Mapping[str, SourceTensor],
        device: torch.device | None = None,
    ) -> None:
        self.folder, self._tensors = folder, tensors
        self.device = best_device() if device is None else device
        self._shapes = {spec.source: spec.shape for spec in specs if spec.data is None}
        with quiet(folder):
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            with torch.device("meta"):
                network = transformers.AutoModelForCausalLM.from_config(
                    config, dtype=torch.float32, trust_remote_code=False
                )
            self.class_name = type(network).__name__
            self._network = network.eval()
            self._inner = network.model
            self._inner.rotary_emb = type(self._inner.rotary_emb)(config)
            self._norm, self._inner.norm = self._inner.norm, nn.Identity()
        self._blocks = self._inner.layers
        self._empty = [copy.deepcopy(block) for block in self._blocks]
        self._keywords: list[dict[str, Any]] = [{} for _ in self._blocks]
        self._require_known(specs)

    def __len__(self) -> int:
        return len(self._blocks)

    def embedded(self, ids: npt.NDArray[np.int64]) -> Tensor:
        """Return what the first block gets, (n_chunks, n_tokens, hidden_size), of chunks of token ids; on the CPU."""
        rows = self._tensors[EMBEDDINGS].read(ids.reshape(-1))
        embeddings = torch.from_numpy(rows).reshape(*ids.shape, -1)
        streams: list[Tensor] = []
        for number, block in enumerate(self._blocks):
            block.forward = self._recorder(number, streams)
        with quiet(self.folder):
            for chunk in embeddings:
                self._inner(inputs_embeds=chunk[None], use_cache=False)
        return torch.cat(streams)

    def block(self, number: int) -> Block:
        """Return a block with the checkpoint's weights, in float32; after `embedded`."""
        module = copy.deepcopy(self._empty[number])
        state = {name: self.tensor(f"{BLOCKS}{number}.{name}") for name, _ in module.named_parameters()}
        module.load_state_dict(state, assign=True)
        return Block(module.to(self.device), self._keywords[number])

    def logits(self, stream: Tensor, norm: Tensor, head: Tensor) -> Tensor:
        """Return the logits, (n_tokens, n_vocab), that the class makes of the stream behind the last block.

        `stream` is (n_tokens, hidden_size); `norm` and `head` are the weights of the last norm and the output layer.
        """
        hidden = functional_call(self._norm, {"weight": norm}, (stream[None],))
        self._inner.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden)
        try:
            with torch.autocast("cpu", enabled=False):
                result = functional_call(self._network, {"lm_head.weight": head}, (), {"inputs_embeds": hidden})
        finally:
            del self._inner.forward
        logits: Tensor = result.logits[0]
        return logits

    @property
    def head(self) -> str:
        """The name of the output layer's weights, which may be the embeddings."""
        return HEAD if HEAD in self._shapes else EMBEDDINGS

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the checkpoint, in float32, on the CPU."""
        tensor = self._tensors[name]
        values: npt.NDArray[np.float32] = np.empty((int(np.prod(tensor.shape[:-1])), tensor.shape[-1]), np.float32)
        for rows, some in tensor.chunks():
            values[rows] = some
        return torch.from_numpy(values).reshape(self._shapes[name])

    def empty_block(self, number: int) -> Block:
        """Return a block without weights, to be called with others; after `embedded`."""
        return Block(self._empty[number], self._keywords[number])

    def _recorder(self, number: int, streams: list[Tensor]) -> Any:  # noqa: ANN401
        def forward(stream: Tensor, **keywords: Any) -> Tensor:  # noqa: ANN401
            self._keywords[number] = _moved(keywords, self.device)
            if number == 0:
                streams.append(stream)
            return stream

        return forward

    def _require_known(self, specs: Sequence[TensorSpec]) -> None:
        """Raise UnsupportedError for a class whose blocks aren't made of the checkpoint's own matrices."""
        plain = {spec.source for spec in specs if not (spec.stored or spec.derive or spec.plus)}
        linear = {spec.source.removesuffix(WEIGHT) for spec in specs if spec.role == "linear"}
        for number, block in enumerate(self._empty):
            prefix = f"{BLOCKS}{number}."
            modules = {prefix + name for name, module in block.named_modules() if isinstance(module, nn.Linear)}
            own = {name for name in linear if name.startswith(prefix)}
            parameters = {prefix + name for name, _ in block.named_parameters()}
            if own != modules or not parameters <= plain or any(buffer.is_meta for buffer in block.buffers()):
                raise unsupported(self.class_name)
        if type(self._inner.embed_tokens) is not nn.Embedding:
            raise unsupported(self.class_name)


def best_device() -> torch.device:
    """Return the GPU that torch has, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _moved(value: Any, device: torch.device) -> Any:  # noqa: ANN401
    """Return a block's keywords with their tensors on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(one, device) for key, one in value.items()}
    return tuple(_moved(one, device) for one in value) if isinstance(value, tuple) else value


@contextmanager
def fast_products() -> Iterator[None]:
    """Let matrix products round what they multiply to bfloat16 where the processor has instructions for it.

    A GPU rounds to TF32, if it has that. Sums stay float32. It is twice as fast, and the rounding is far below what two
    bits do to a weight.
    """
    wanted: list[tuple[Any, str]] = []
    if _has_bfloat16():
        wanted.append((getattr(torch.backends.mkldnn, "matmul", None), "bf16"))
    if torch.cuda.is_available():
        wanted.append((torch.backends.cuda.matmul, "tf32"))
    with ExitStack() as stack:
        for matmul, precision in wanted:
            if hasattr(matmul, "fp32_precision"):  # torch 2.9 and newer
                stack.callback(setattr, matmul, "fp32_precision", matmul.fp32_precision)
                matmul.fp32_precision = precision
        yield


@contextmanager
def fast_gradients() -> Iterator[None]:
    """Compute as with `fast_products`, and let blocks keep activations in bfloat16 where a processor gains by it.

    Norms, the residual stream and logits stay float32, see https://docs.pytorch.org/docs/stable/amp.html. Gradients are
    as near to float32's as with `fast_products` alone, and take two thirds of the time.
    """
    with fast_products(), torch.autocast("cpu", torch.bfloat16, enabled=_has_bfloat16(), cache_enabled=False):
        yield


def _has_bfloat16() -> bool:
    """Tell whether the processor has instructions for products of bfloat16."""
    abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Keep transformers from printing; raise UnsupportedError, of one line, for whatever it raises."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # transformers raises errors of any class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnsupportedError(f"{folder.name}: transformers can't compute it: {reason:.300}") from error
