"""The user's request: types, target, method and keys, looked up by their names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tritgguf.converter.core.sizes import parse_size
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.imatrix import Imatrix, read_imatrix
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.calibration import GPTQ, TYPES, Calibration, calibration_for
from tritgguf.converter.planning.key_overrides import Override, named, parse_override, require_once
from tritgguf.converter.planning.targets import refuses, ternary_types
from tritgguf.converter.planning.tensor_types import AUTO, TensorType, parse_tensor_type
from tritgguf.converter.quant.codec import AnyCodec, Codec, codec_named, codecs, float_codec
from tritgguf.converter.quant.method import Method, method_named


@dataclass(frozen=True)
class Asked:
    """What was asked for one tensor: a type, or the smallest exact one if `codec` is None.

    `option` is how the user asks for a type, up to its name, such as "--type ". With `by_default` no option was given
    for the tensor: then a GGUF source's type may stay. With `alone` the type is asked for this tensor, and not for all
    linear layers.
    """

    codec: AnyCodec | None
    option: str
    by_default: bool = False
    alone: bool = False

    @property
    def words(self) -> str:
        """The option and the type as the user writes them."""
        return f"{self.option}{AUTO if self.codec is None else self.codec.name}"


@dataclass(frozen=True)
class Request:
    """The user's request.

    `type` is None for the smallest exact type on the target; `embedding` and `output` tell the same of these tensors.
    The first of `tensor_types` that matches a tensor comes before them. `max_bits` is per weight, `max_bytes` per file.
    `fast_here` are types that this computer's CPU multiplies fast though llama.cpp's own code for them is slow.
    `imatrix` weighs the errors of columns where a method quantizes.
    `seconds_per_weight` is what a weight of a type takes there when a token is generated, by the type's name.
    `calibration` is what was asked of gptq, None with another method.
    """

    type: AnyCodec | None
    target: str
    method: Method
    fallback: AnyCodec | None
    embedding: Asked
    output: Asked
    allow_lossy: bool
    max_bits: float | None = None
    max_bytes: int | None = None
    tensor_types: tuple[TensorType, ...] = ()
    overrides: tuple[Override, ...] = ()
    fast_here: frozenset[str] = frozenset()
    imatrix: Imatrix | None = None
    seconds_per_weight: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None

    @classmethod
    def named(
        cls,
        type: str,
        method: str,
        *,
        chosen_later: bool = False,
        target: str = "cpu",
        fallback: str | None = None,
        embedding_type: str | None = None,
        output_type: str | None = None,
        allow_lossy: bool = False,
        max_bits: float | None = None,
        max_shard_size: int | str | None = None,
        tensor_type: Iterable[str] = (),
        override_kv: Iterable[str] = (),
        name: str | None = None,
        fast_here: Iterable[str] = (),
        imatrix: str | os.PathLike[str] | None = None,
        seconds_per_weight: Mapping[str, float] | None = None,
        calibration: Iterable[str | os.PathLike[str]] = (),
        calibration_chunks: int | None = None,
        seed: int | None = None,
        gptq_without: Iterable[str] = (),
        untie: bool = False,
        tune: int | None = None,
    ) -> Request:
        """Look up the names, see `convert`; raise UnsupportedError, with the known names, for an unknown one.

        With `chosen_later` the types of linear layers follow, so gptq needs none of its types yet. Raises SourceError
        where `imatrix` isn't an importance matrix.
        """
        choices = [AUTO, *(name for name, codec in codecs().items() if codec.for_linear)]
        if type not in choices:
            raise UnsupportedError(f"unknown tensor type {type!r}; expected one of {', '.join(choices)}")
        if fallback not in (None, "f16"):
            raise UnsupportedError(f"unknown fallback {fallback!r}; expected f16")
        if max_bits is not None and type != AUTO:
            raise UnsupportedError(f"--max-bits needs --type {AUTO}: --type {type} fixes the bits per weight")
        ternary_types(target)
        tensor_types = tuple(map(parse_tensor_type, tensor_type))
        types = [type, *(AUTO if kind.codec is None else kind.codec.name for kind in tensor_types)]
        return cls(
            None if type == AUTO else codec_named(type),
            target,
            replace(method_named("mse"), name=GPTQ, weighted=None) if method == GPTQ else method_named(method),
            codec_named(fallback) if fallback else None,
            _end("--embedding-type ", embedding_type, type),
            _end("--output-type ", output_type, type),
            allow_lossy,
            max_bits,
            None if max_shard_size is None else parse_size(max_shard_size),
            tensor_types,
            key_overrides(override_kv, name),
            frozenset(fast_here),
            None if imatrix is None else read_imatrix(Path(imatrix)),
            seconds_per_weight or {},
            calibration_for(
                method,
                None if chosen_later else types,
                calibration,
                calibration_chunks,
                seed,
                gptq_without,
                untie=untie,
                tune=tune,
            ),
        )

    def method_for(self, spec: TensorSpec) -> Method:
        """Return the method for a tensor; gptq is for linear layers."""
        return self.method if self.calibration is None or spec.role == "linear" else method_named("mse")

    def calibrates(self, spec: TensorSpec, codec: Codec) -> bool:
        """Whether gptq would choose the tensor's codes in that type."""
        return self.calibration is not None and spec.role == "linear" and codec.name in TYPES

    def asked(self, spec: TensorSpec) -> Asked:
        """Return what was asked for a tensor: by --tensor-type, by the option of its role, or by default."""
        for kind in self.tensor_types:
            if kind.matches(spec):
                return Asked(kind.codec, kind.before_type, alone=True)
        if spec.role == "linear":
            return Asked(self.type, "--type ")
        ends = {"embedding": self.embedding, "output": self.output}
        return ends.get(spec.role) or Asked(float_codec("f32"), "", by_default=True)


def key_overrides(override_kv: Iterable[str], name: str | None) -> tuple[Override, ...]:
    """Return the keys to override, of texts like KEY=TYPE:VALUE and general.name; raise UnsupportedError."""
    overrides = (*map(parse_override, override_kv), *([] if name is None else [named(name)]))
    require_once(overrides)
    return overrides


def _end(option: str, type_name: str | None, linear_type: str) -> Asked:
    if type_name is None:
        codec = None if linear_type == AUTO else float_codec("f16")
        return Asked(codec, option, by_default=True, alone=True)
    if type_name == AUTO:
        return Asked(None, option, alone=True)
    known = codecs()
    if type_name not in known:
        raise UnsupportedError(f"unknown tensor type {type_name!r}; expected one of {AUTO}, {', '.join(known)}")
    return Asked(known[type_name], option, alone=True)


def require_taken(request: Request) -> None:
    """Raise UnsupportedError if the target refuses a requested type."""
    alone = (Asked(kind.codec, kind.before_type) for kind in request.tensor_types)
    for asked in (Asked(request.type, "--type "), request.embedding, request.output, *alone):
        codec = asked.codec
        if codec is not None and refuses(request.target, codec.name):
            instead = "q2_k holds the same values exactly" if codec.block == 256 else "q2_k or q4_0 hold them exactly"
            raise UnsupportedError(
                f"{asked.words} contradicts --for {request.target}: Ollama since 0.31.2 refuses files with "
                f"{codec.name.upper()} tensors; leave {asked.option.split()[0]} out, {instead}"
            )
