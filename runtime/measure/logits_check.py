"""The checks of `tritgguf verify` that need the runtime: rendered chat templates, and logits against transformers."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import Keys
from numpy.typing import NDArray

from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.errors import EngineError
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.model.model import Model
from tritgguf.converter.tokenizer.template_keys import special_text
from tritgguf.runtime.chat.chat_template import ChatTemplate, Message

if TYPE_CHECKING:
    from tritgguf.converter.verification.verification import Verification

TEMPLATE = Keys.Tokenizer.CHAT_TEMPLATE
CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hello!"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}),
    (
        {"role": "user", "content": "  two lines,\nand spaces  "},
        {"role": "assistant", "content": "Grüße & <b>café</b> 'quoted' \"twice\" {{ braces }}"},
        {"role": "user", "content": "你好 🙂"},
    ),
    (
        {"role": "system", "content": ""},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two\n\n"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ),
)
# Ordinary text and code: a trained model predicts many of these tokens with confidence.
TEXT = (
    "The capital of France is Paris. One, two, three, four, five, six, seven, eight, nine, ten.\n\n"
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, i))\n"
)
N_TOKENS = 64
# Relative errors. If the weights are this close but the logits differ by more, the graph is wrong.
EXACT_WEIGHTS = 1e-3
LOGITS_ERROR = 0.1  # 8-bit activations alone cause about 0.03


@dataclass(frozen=True)
class TemplateCheck:
    """How many conversations the file's and the model's templates render the same, and the first difference."""

    n_rendered: int
    problem: str | None


@dataclass(frozen=True)
class LogitsCheck:
    """The file's logits compared with transformers' over `n_tokens` positions.

    `relative_error` is |difference| / |logits|, `kl_divergence` the mean KL(transformers || file) in nats, `same_top1`
    the share of positions where both predict the same token.
    """

    n_tokens: int
    relative_error: float
    kl_divergence: float
    same_top1: float

    def as_json(self) -> dict[str, Any]:
        return {
            "tokens": self.n_tokens,
            "relative_error": self.relative_error,
            "kl_divergence": self.kl_divergence,
            "same_top1": self.same_top1,
        }


def compare_templates(expected: Metadata, found: Metadata) -> TemplateCheck:
    """Render the test conversations with each chat template of the model (`expected`) and of the file (`found`)."""
    keys = sorted(key for key in expected.keys() | found.keys() if key == TEMPLATE or key.startswith(f"{TEMPLATE}."))
    n_rendered = 0
    for key in keys:
        if key not in found:
            return TemplateCheck(n_rendered, f"{key} is missing, but the model has this chat template")
        if key not in expected:
            return TemplateCheck(n_rendered, f"{key} is a chat template that the model doesn't have")
        for wanted, rendered in zip(_rendered(key, expected), _rendered(key, found), strict=True):
            if wanted != rendered:
                return TemplateCheck(n_rendered, f"{key} renders {_difference(rendered, wanted)}")
            n_rendered += 1
    return TemplateCheck(n_rendered, None)


def _rendered(key: str, metadata: Metadata) -> Iterator[str]:
    """Yield each conversation as rendered, with and without a generation prompt; an error is rendered as its text."""
    bos, eos = (special_text(metadata, id_key) for id_key in (Keys.Tokenizer.BOS_ID, Keys.Tokenizer.EOS_ID))
    for conversation in CONVERSATIONS:
        for prompt in (True, False):
            try:
                template = ChatTemplate(str(metadata[key].data), bos=bos, eos=eos)
                yield template.render(conversation, add_generation_prompt=prompt, fold_system=False)
            except EngineError as error:
                yield f"({error})"


def _difference(rendered: str, wanted: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(rendered, wanted, strict=False)) if a != b), None)
    start = max(0, (min(len(rendered), len(wanted)) if same is None else same) - 10)
    return f"{rendered[start : start + 40]!r} where the model's renders {wanted[start : start + 40]!r}"


def compare_logits(found: Verification, threads: int | None) -> LogitsCheck:
    """Compute the logits of TEXT with the file here and with the model in transformers, in float32.

    Raises EngineError if the model is no folder with a tokenizer, or if either side can't compute it.
    """
    from tritgguf.runtime.chat import session

    model, out = found.model, found.file.path
    if not model.path.is_dir() or model.tokenizer is None:
        raise EngineError(f"{model.path.name} isn't a Hugging Face folder with a tokenizer, which --logits needs")
    torch, transformers = (_module(name) for name in ("torch", "transformers"))
    ids = model.tokenizer.encode(TEXT)[:N_TOKENS]
    with session.open(out, n_threads=threads) as opened:
        ids = ids[: opened.n_ctx]
        logits = opened.logits(ids)
    reference = _reference_logits(torch, transformers, model, ids)
    return _compared(reference, logits)


def _module(name: str) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(f'--logits needs {name}, which isn\'t installed: pip install "tritgguf[golden]"') from error


def _reference_logits(torch: Any, transformers: Any, model: Model, ids: list[int]) -> NDArray[np.float32]:  # noqa: ANN401
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if _stored_as_computed(model):
                network = transformers.AutoModelForCausalLM.from_pretrained(
                    model.path, dtype=torch.float32, trust_remote_code=False
                )
            else:
                network = _with_effective_weights(torch, transformers, model)
            logits: NDArray[np.float32] = network.eval()(torch.tensor([ids])).logits[0].float().numpy()
    except Exception as error:  # transformers raises errors of any class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EngineError(f"transformers can't compute {model.path.name}: {reason:.300}") from error
    return logits


def _stored_as_computed(model: Model) -> bool:
    """Whether the weights are floats in the folder's safetensors files: not packed, merged or in a pickle."""
    tensors = (model.tensors or {}).values()
    return all(
        isinstance(tensor, StoredTensor)
        and tensor.dtype in FLOAT_DTYPES
        and tensor.file.parent == model.path
        and tensor.file.suffix == ".safetensors"
        for tensor in tensors
    )


def _with_effective_weights(torch: Any, transformers: Any, model: Model) -> Any:  # noqa: ANN401
    """Return the model's class with the float weights that it computes with.

    Packed layers would also round activations, and transformers knows nothing of a merged adapter.
    """
    config = transformers.AutoConfig.from_pretrained(model.path, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    tensors = (model.tensors or {}).items()
    weights = {name: torch.from_numpy(tensor.read(slice(None)).reshape(tensor.shape)) for name, tensor in tensors}
    missing, unexpected = network.load_state_dict(weights, strict=False, assign=True)
    network.tie_weights()
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise EngineError(f"its class has other weights than the checkpoint: {[*unexpected, *missing][0]}")
    return network


def _compared(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> LogitsCheck:
    width = min(reference.shape[1], logits.shape[1])  # either side may pad the vocabulary
    want, have = reference[:, :width].astype(np.float64), logits[:, :width].astype(np.float64)
    want_log, have_log = _log_softmax(want), _log_softmax(have)
    return LogitsCheck(
        n_tokens=len(want),
        relative_error=float(np.linalg.norm(have - want) / np.linalg.norm(want)),
        kl_divergence=float((np.exp(want_log) * (want_log - have_log)).sum(axis=1).mean()),
        same_top1=float((want.argmax(axis=1) == have.argmax(axis=1)).mean()),
    )


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def logits_problem(found: Verification, logits: LogitsCheck) -> str | None:
    """Return a problem if the weights are nearly exact but the logits differ; lossy weights may change logits."""
    worst = max((check.relative_error or 0.0 for check in found.tensors), default=0.0)
    if worst > EXACT_WEIGHTS or logits.relative_error <= LOGITS_ERROR:
        return None
    return f"logits differ from transformers' by {logits.relative_error:.2g} (relative), though the weights are correct"
