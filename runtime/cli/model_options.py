"""What `run` and `pull` share: the options that decide about the file, and getting it into the cache."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tritgguf.converter.core.registry import names
from tritgguf.converter.planning.targets import TARGETS
from tritgguf.runtime.cli import options, verbosity

if TYPE_CHECKING:
    from tritgguf.runtime.hub.record import Form
    from tritgguf.runtime.hub.source import Source

_TYPES = names("tritgguf.converter.quant.codecs")
TYPES = ", ".join(_TYPES)

ModelName = Annotated[
    str,
    typer.Argument(
        show_default=False,
        help="Hugging Face folder, GGUF file, name on the hub such as microsoft/bitnet-b1.58-2B-4T, or a short name of "
        "`tritgguf list --known`.",
    ),
]
CachedName = Annotated[
    str, typer.Argument(show_default=False, help="Model in the cache, as `tritgguf list` names it, or its last part.")
]
TypeName = Annotated[
    str | None,
    typer.Option(
        help=f"Tensor type for linear layers: auto (an exact one, see --smallest) or {TYPES} (default: auto, and a "
        "GGUF file that runs here stays as it is).",
        autocompletion=options.completing(["auto", *_TYPES]),
    ),
]
CachedType = Annotated[str | None, typer.Option(help="Only the file whose layers are of this type.")]
Target = Annotated[
    str | None,
    typer.Option(
        "--for",
        help=f"Where the file will run: {', '.join(TARGETS)} (default: this machine's GPU, or cpu).",
        autocompletion=options.completing(TARGETS),
    ),
]
MaxBits = Annotated[
    float | None,
    typer.Option(help="If no ternary type is exact, use the most exact type up to this many bits per weight."),
]


def note(text: str) -> None:
    """Tell the user unless the command is quiet; standard output is for answers."""
    if not verbosity.is_quiet():
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def reports_interruption(name: str) -> Iterator[None]:
    """Say after Ctrl-C that a model isn't ready, and what the next run does; to quiet commands too, as any error."""
    try:
        yield
    except KeyboardInterrupt:
        stopped = f"error: interrupted; {name} isn't ready yet: the next run goes on with what was fetched"
        print(stopped, file=sys.stderr)
        raise


def wanted_source(model: str, revision: str | None) -> Source:
    """Return the model that the user means; raise HubError for a misplaced --revision."""
    from tritgguf.runtime.cli.model_argument import named_model
    from tritgguf.runtime.hub.source import Source, named_source

    source = named_source(model)
    if revision is None:
        return source
    hub = named_model(model if source.hub is None else str(source.hub), revision)
    return Source(model, str(hub), hub=hub)


def wanted_form(
    type: str | None,
    target: str | None,
    fallback: str | None,
    allow_lossy: bool,
    max_bits: float | None,
    smallest: bool = False,
) -> Form:
    """Return the form that options ask for; raise UnsupportedError for unknown names before anything is fetched."""
    from tritgguf.converter.planning.request import Request
    from tritgguf.runtime.hub.record import Form

    if target is None:
        from tritgguf.runtime.engine.backend import accelerator  # not at the top: the help needs no native library

        target = accelerator() or "cpu"
    form = Form(type, target, fallback, allow_lossy, max_bits, smallest)
    Request.named(type or "auto", "mse", target=target, fallback=fallback, allow_lossy=allow_lossy, max_bits=max_bits)
    return form
