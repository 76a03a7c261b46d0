"""`--tensor-type REGEX=TYPE`: types for single tensors, by their names in the GGUF file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tritgguf.converter.core.patterns import MAX_CHOICES, MAX_REPETITIONS, may_be_slow
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.quant.codec import AnyCodec, codecs

AUTO = "auto"


@dataclass(frozen=True)
class TensorType:
    """The type of the tensors that a pattern is found in; `codec` is None for the smallest exact type."""

    pattern: re.Pattern[str]
    codec: AnyCodec | None

    @property
    def before_type(self) -> str:
        """The option as the user wrote it, up to the type."""
        return f"--tensor-type {self.pattern.pattern}="

    @property
    def option(self) -> str:
        """The option as the user wrote it."""
        return f"{self.before_type}{AUTO if self.codec is None else self.codec.name}"

    def matches(self, spec: TensorSpec) -> bool:
        """Whether the pattern is found in the tensor's name."""
        return self.pattern.search(spec.name) is not None


def parse_tensor_type(text: str) -> TensorType:
    """Read REGEX=TYPE; raise UnsupportedError where it isn't that, or the pattern is invalid or may be slow."""
    pattern, _, name = text.rpartition("=")
    if not pattern:
        raise UnsupportedError(f"--tensor-type {text}: expected REGEX=TYPE, such as attn_v=q8_0")
    if name != AUTO and name not in codecs():
        raise UnsupportedError(
            f"--tensor-type {text}: unknown tensor type {name!r}; expected one of {AUTO}, {', '.join(codecs())}"
        )
    if may_be_slow(pattern):
        raise UnsupportedError(
            f"--tensor-type {text}: the pattern can take for ever to match; expected at most {MAX_REPETITIONS} "
            f"repetitions (none of a group) and {MAX_CHOICES} groups of alternatives; several patterns may be given"
        )
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UnsupportedError(
            f"--tensor-type {text}: the pattern is no regular expression: {error}; put a backslash before a character "
            "that stands for itself"
        ) from error
    return TensorType(compiled, None if name == AUTO else codecs()[name])


def require_used(tensor_types: Sequence[TensorType], specs: Sequence[TensorSpec]) -> None:
    """Raise UnsupportedError for a pattern that decides about no tensor."""
    used = {next((kind for kind in tensor_types if kind.matches(spec)), None) for spec in specs}
    for kind in tensor_types:
        if kind in used:
            continue
        if any(kind.matches(spec) for spec in specs):
            raise UnsupportedError(
                f"{kind.option} has no effect: earlier --tensor-type options match all of its tensors, and the first "
                "match wins; leave it out, or put it first"
            )
        shown = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", spec.name) for spec in specs))
        raise UnsupportedError(f"{kind.option} matches no tensor; the file's tensors are {shown:.600}")
