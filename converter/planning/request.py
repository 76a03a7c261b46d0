"""The user's request: types, target and method, looked up by their names."""

from __future__ import annotations

from dataclasses import dataclass

from tritgguf.converter.core.sizes import parse_size
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.planning.targets import refuses, ternary_types
from tritgguf.converter.quant.codec import AnyCodec, codec_named, codecs
from tritgguf.converter.quant.method import Method, method_named

AUTO = "auto"


@dataclass(frozen=True)
class Request:
    """The user's request.

    `type` is None for the smallest exact type on the target. `embedding` and `output` are None for the default types.
    `max_bits` is per weight, `max_bytes` per file.
    """

    type: AnyCodec | None
    target: str
    method: Method
    fallback: AnyCodec | None
    embedding: AnyCodec | None
    output: AnyCodec | None
    allow_lossy: bool
    max_bits: float | None = None
    max_bytes: int | None = None

    @classmethod
    def named(
        cls,
        type: str,
        method: str,
        *,
        target: str = "cpu",
        fallback: str | None = None,
        embedding_type: str | None = None,
        output_type: str | None = None,
        allow_lossy: bool = False,
        max_bits: float | None = None,
        max_shard_size: int | str | None = None,
    ) -> Request:
        """Look up the names, see `convert`; raise UnsupportedError, with the known names, for an unknown one."""
        choices = [AUTO, *(name for name, codec in codecs().items() if codec.for_linear)]
        if type not in choices:
            raise UnsupportedError(f"unknown tensor type {type!r}; expected one of {', '.join(choices)}")
        if fallback not in (None, "f16"):
            raise UnsupportedError(f"unknown fallback {fallback!r}; expected f16")
        if max_bits is not None and type != AUTO:
            raise UnsupportedError(f"--max-bits needs --type {AUTO}: --type {type} fixes the bits per weight")
        ternary_types(target)
        return cls(
            None if type == AUTO else codec_named(type),
            target,
            method_named(method),
            codec_named(fallback) if fallback else None,
            codec_named(embedding_type) if embedding_type else None,
            codec_named(output_type) if output_type else None,
            allow_lossy,
            max_bits,
            None if max_shard_size is None else parse_size(max_shard_size),
        )


def require_taken(request: Request) -> None:
    """Raise UnsupportedError if the target refuses a requested type."""
    for option, codec in (
        ("type", request.type),
        ("embedding-type", request.embedding),
        ("output-type", request.output),
    ):
        if codec is not None and refuses(request.target, codec.name):
            instead = "q2_k holds the same values exactly" if codec.block == 256 else "q2_k or q4_0 hold them exactly"
            raise UnsupportedError(
                f"--{option} {codec.name} contradicts --for {request.target}: Ollama since 0.31.2 refuses files with "
                f"{codec.name.upper()} tensors; leave --{option} out, {instead}"
            )
