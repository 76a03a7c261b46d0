"""Compare a GGUF file, of this or another converter, with its source: every tensor, the metadata, the token ids.

The chat template's rendering and the logits need the runtime, whose logits check compares them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritgguf.converter.core.parallel import n_threads, parallel
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.tensors import Float32Array
from tritgguf.converter.errors import SourceError, TensorError, TokenizerError, TritggufError
from tritgguf.converter.gguf_io.gguf_tensor import GgufTensor
from tritgguf.converter.gguf_io.imatrix import IMATRIX_FILE, read_imatrix
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.open import open_model
from tritgguf.converter.model.rotated import can_be_rotated, is_rotated, rotated
from tritgguf.converter.planning.calibration import TUNED_STEPS
from tritgguf.converter.planning.key_overrides import changes_tokenizer, overridden
from tritgguf.converter.planning.request import key_overrides
from tritgguf.converter.quant.codec import codecs
from tritgguf.converter.quant.method import methods
from tritgguf.converter.tokenizer import TokenIdsProvider, check_token_ids, installed_provider
from tritgguf.converter.verification.diagnosis import diagnosis
from tritgguf.converter.verification.metadata_check import compare_metadata
from tritgguf.converter.verification.tensor_check import UNRELATED, Pair, TensorCheck, check_tensor

SCALE, WEIGHT = ".scale", ".weight"
OUTPUT, EMBEDDING = "output.weight", "token_embd.weight"
NO_CHECK = "; --no-check"  # starts the remedy in an error message, which applies to conversions only


@dataclass(frozen=True)
class Verification:
    """What `verify` found: a check per tensor, metadata that differs, and how many strings got the same token ids.

    `wrong_keys` are the differences that change what the model computes or says, `other_keys` the other ones.
    `token_ids` describes the first string with different ids, None if there is none.
    """

    model: Model
    file: GgufFile
    tensors: tuple[TensorCheck, ...]
    wrong_keys: tuple[str, ...]
    other_keys: tuple[str, ...]
    strings_checked: int
    token_ids: str | None

    @property
    def problems(self) -> list[str]:
        """One line per tensor, key or string that is wrong; empty for a good file."""
        bad = [check.line for check in self.tensors if not check.good]
        return [*bad, *self.wrong_keys, *([self.token_ids] if self.token_ids else [])]

    def as_json(self) -> dict[str, Any]:
        return {
            "good": not self.problems,
            "source": self.model.source,
            "tensors": [check.as_json() for check in self.tensors],
            "metadata": {"wrong": list(self.wrong_keys), "other": list(self.other_keys)},
            "strings_checked": self.strings_checked,
            "token_ids": self.token_ids,
        }


def verify(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    lora: str | os.PathLike[str] | None = None,
    token_ids: TokenIdsProvider | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    override_kv: Iterable[str] = (),
    name: str | None = None,
    imatrix: str | os.PathLike[str] | None = None,
) -> Verification:
    """Compare the GGUF file `out` with `model`, the folder or GGUF file that it was made from, and the adapter `lora`.

    `override_kv`, `name` and `imatrix` are those of `convert`, which then set what is expected.

    `threads` is one per core by default; `progress` is called with "comparing", the bytes done and the total bytes.
    `token_ids`, by default the installed provider, computes the file's token ids. Raises TritggufError if one of the
    two can't be opened; differences are in the result.
    """
    file = read_gguf(Path(out))
    stored = file.stock_tensors()
    overrides = key_overrides(override_kv, name)
    opened = open_model(Path(model), token_ids=token_ids, lora=None if lora is None else Path(lora))
    opened = replace(opened, metadata=overridden(opened.metadata, overrides))
    if opened.tensors is None:
        raise SourceError(
            f"{model} holds no weights (model.safetensors, pytorch_model.bin or an index): there is nothing to compare "
            "with"
        )
    if is_rotated(file.metadata) and can_be_rotated(opened):
        opened = rotated(opened)
    pairs, unpaired = paired(opened, stored)
    if imatrix is not None:
        weights = read_imatrix(Path(imatrix))
        pairs = [replace(pair, imatrix=weights) for pair in pairs]
    checks = _check_all(
        pairs, n_threads(threads), counted(progress, "comparing", sum(pair.stored.data.nbytes for pair in pairs))
    )
    steps = file.metadata.get(TUNED_STEPS)
    if steps is not None and steps.data:
        checks = [_allowing_tuned(check, pair) for check, pair in zip(checks, pairs, strict=True)]
    wrong_keys, other_keys = compare_metadata(opened.metadata, file.metadata)
    strings_checked, wrong_ids = (
        (0, None) if changes_tokenizer(overrides) else _check_token_ids(opened, file, token_ids)
    )
    if imatrix is not None or IMATRIX_FILE not in file.metadata:  # else what was weighted isn't known
        checks = _one_encoder(checks)
    return Verification(opened, file, (*checks, *unpaired), wrong_keys, other_keys, strings_checked, wrong_ids)


def require_good(problems: Sequence[str], out: Path) -> None:
    """Raise TensorError, in one line that tells the first problem, if there are problems."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise TensorError(f"{out.name} differs from the model: {problems[0]}{more}; convert the model again")


def paired(model: Model, stored: Mapping[str, GgufTensor]) -> tuple[list[Pair], list[TensorCheck]]:
    """Return the tensors that both sides have, and checks for those that only one side has."""
    specs = {spec.name: spec for spec in model.specs}
    if OUTPUT in stored and OUTPUT not in specs and EMBEDDING in specs:
        # Another converter wrote tied embeddings twice: the graph uses the second copy as its output layer.
        specs[OUTPUT] = replace(specs[EMBEDDING], name=OUTPUT, role="output")
    scales = _scale_tensors(specs, stored) if model.scale_tensors else {}
    pairs, unpaired = [], []
    for name, spec in specs.items():
        if name in stored:
            source = model.tensors[spec.source] if model.tensors and spec.data is None else None
            pairs.append(Pair(spec, source, stored[name], scales.get(name)))
        else:
            unpaired.append(TensorCheck(name, "", "missing", "the file doesn't have this tensor"))
    known = {*specs, *(name.removesuffix(WEIGHT) + SCALE for name in scales)}
    for name in (name for name in stored if name not in known):
        reason = "the graph doesn't use this scale" if name.endswith(SCALE) else "the model has no such tensor"
        unpaired.append(TensorCheck(name, stored[name].dtype, "extra", reason))
    return pairs, unpaired


def _scale_tensors(specs: Mapping[str, TensorSpec], stored: Mapping[str, GgufTensor]) -> dict[str, Float32Array]:
    """Return the factors of each linear layer that has a `.scale` tensor of one value, or of one for each matrix."""
    found = {}
    for name, spec in specs.items():
        scale = stored.get(name.removesuffix(WEIGHT) + SCALE)
        if spec.role != "linear" or scale is None or scale.name in specs:
            continue
        if scale.shape == (math.prod(spec.shape[:-2]),):
            found[name] = scale.read(slice(None))[0]
    return found


def _check_all(pairs: Sequence[Pair], threads: int, report: Callable[[int], None]) -> list[TensorCheck]:
    checks = []
    for pair, check in zip(pairs, parallel(check_tensor, pairs, threads), strict=True):
        report(pair.stored.data.nbytes)
        if check.verdict == "wrong" and check.relative_error is not None and not check.encoder:
            cause = diagnosis(pair, pairs)
            check = replace(check, reason=cause) if cause else check
        checks.append(check)
    return checks


def _allowing_tuned(check: TensorCheck, pair: Pair) -> TensorCheck:
    """Return the check in a file whose norms and biases were tuned, so that they only resemble the source's."""
    error = check.relative_error
    if check.verdict != "wrong" or pair.spec.role not in ("norm", "bias") or error is None or error > UNRELATED:
        return check
    return replace(check, verdict="rounded", reason="tuned with the scales, as the file says")


def _one_encoder(checks: Sequence[TensorCheck]) -> list[TensorCheck]:
    """If our methods made most tensors of a type, mark as wrong each tensor of the type that no encoder made."""
    ternary = {name.upper() for name, codec in codecs().items() if codec.ternary}
    judged = []
    for check in checks:
        made = [other.encoder for other in checks if other.type == check.type and other.verdict == "rounded"]
        ours = sum(name.partition(",")[0] in methods() for name in made)
        if check.type in ternary and check.verdict == "rounded" and not check.encoder and ours > len(made) / 2:
            method = next(name for name in made if name)
            reason = f"it isn't the source quantized by {method}, but the other tensors are"
            check = replace(check, verdict="wrong", reason=reason)
        judged.append(check)
    return judged


def _check_token_ids(model: Model, file: GgufFile, provider: TokenIdsProvider | None) -> tuple[int, str | None]:
    if model.tokenizer is None:
        return 0, None
    try:
        with (provider or installed_provider())(None) as read:
            return check_token_ids(model.tokenizer, file.path, read), None
    except TokenizerError as error:
        return 0, str(error).split(NO_CHECK)[0]
    except TritggufError as error:
        return 0, str(error)
