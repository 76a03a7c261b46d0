"""A report of a model as one HTML file: no script, no network, nothing but this file needed to read it.

Whatever comes from a model (names, notes, types) is text: the template escapes it and shows control characters, and a
content security policy in the page forbids scripts and requests besides.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup

import tritgguf
from tritgguf.converter.core.control_characters import printable
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.inspection.inspection import Inspection, Size
from tritgguf.converter.inspection.report import pictures
from tritgguf.converter.inspection.report.heat_maps import heat_maps
from tritgguf.converter.inspection.report.quality import Quality
from tritgguf.converter.inspection.report.tensors import Tensor, shown_error, shown_tensors
from tritgguf.converter.inspection.scale_counts import added
from tritgguf.converter.model.card_metadata import model_name
from tritgguf.converter.planning.file_plan import FilePlan

N_COLOURS = 8  # of types, in the template


@dataclass(frozen=True)
class TypeShare:
    """All tensors of one type on disk."""

    dtype: str
    colour: int
    n_tensors: int
    n_bytes: int
    n_values: int
    share: float


def report(
    found: Inspection,
    *,
    errors: Mapping[str, float] | None = None,
    source_name: str = "",
    plan: FilePlan | None = None,
    quality: Sequence[Quality] = (),
    verdict: str | None = None,
    completions: Sequence[tuple[str, str]] = (),
    fast_here: Collection[str] = (),
) -> bytes:
    """Return the page, UTF-8, of an inspection that has counted scales.

    `errors` are those of the tensors against the model `source_name`, by name, where it is known. `plan` is that of the
    conversion that has just written the file, `quality` eval's figures, `verdict` what they mean in words,
    `completions` prompts with what the file makes of them, `fast_here` the types that are fast on this computer's CPU,
    though llama.cpp's own code for them is slow.
    """
    reasons = {} if plan is None else {tensor.spec.name: tensor.reason for tensor in plan.tensors}
    tensors = shown_tensors(found.tensors, errors, reasons)
    shares = _type_shares(tensors)
    colours = {share.dtype: share.colour for share in shares}
    page = (
        _environment()
        .get_template("page.html")
        .render(
            found=found,
            title=found.path.name if found.kind == "gguf" else model_name(found.path),
            version=tritgguf.__version__,
            plan=plan,
            compared=errors is not None,
            source_name=source_name,
            tensors=tensors,
            shares=shares,
            n_bytes=sum(share.n_bytes for share in shares),
            linear=_linear(tensors),
            own_places=_own_places(found),
            sizes=[(size, _exact(size)) for size in found.sizes.values()],
            fast_here=fast_here,
            maps=heat_maps(tensors, compared=errors is not None),
            layers=pictures.layer_sizes(tensors, colours),
            histograms=_histograms(tensors),
            quality=quality,
            verdict=verdict,
            completions=completions,
            ppl=pictures.against_size(quality, [one.ppl for one in quality], "perplexity"),
            kld=pictures.against_size(quality, [one.kld_mean for one in quality], "KL divergence"),
            pictures=pictures,
        )
    )
    return str(page).encode("utf-8", "backslashreplace")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        finalize=_text,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=format_size, error=shown_error, shape=_shape)
    return environment


def _source(name: str) -> str:
    return resources.files("tritgguf.converter.inspection.report").joinpath(name).read_text("utf-8")


def _text(value: object) -> object:
    """Return what the template prints for a value: texts with control characters shown, unless it is HTML already."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(str(size) for size in shape)


def _type_shares(tensors: Sequence[Tensor]) -> list[TypeShare]:
    """Return the types, the one with the most bytes first."""
    alike: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        alike[tensor.dtype].append(tensor)
    sizes = {dtype: sum(tensor.n_bytes for tensor in some) for dtype, some in alike.items()}
    total = sum(sizes.values()) or 1
    return [
        TypeShare(
            dtype,
            min(place, N_COLOURS - 1),
            len(alike[dtype]),
            sizes[dtype],
            sum(tensor.n_values for tensor in alike[dtype]),
            sizes[dtype] / total,
        )
        for place, dtype in enumerate(sorted(sizes, key=lambda name: -sizes[name]))
    ]


@dataclass(frozen=True)
class Linear:
    """The linear layers together; `zeros` and `largest_error` are None where they aren't known of all."""

    n_tensors: int
    n_good: int
    bits_per_weight: float
    zeros: float | None
    largest_error: float | None


def _linear(tensors: Sequence[Tensor]) -> Linear | None:
    linear = [tensor for tensor in tensors if tensor.is_linear]
    n_values = sum(tensor.n_values for tensor in linear)
    if not n_values:
        return None
    zeros = [tensor.zeros * tensor.n_values for tensor in linear if tensor.zeros is not None]
    errors = [tensor.error for tensor in linear if tensor.error is not None]
    return Linear(
        n_tensors=len(linear),
        n_good=sum(tensor.exactness in ("exact", "ternary") for tensor in linear),
        bits_per_weight=8 * sum(tensor.n_bytes for tensor in linear) / n_values,
        zeros=math.fsum(zeros) / n_values if len(zeros) == len(linear) else None,
        largest_error=max(errors) if len(errors) == len(linear) else None,
    )


def _own_places(found: Inspection) -> list[str] | None:
    """Return where a GGUF file runs fast: where all types of its linear layers do; None where that isn't known."""
    if found.kind != "gguf":
        return None
    types = {tensor.dtype.lower() for tensor in found.tensors if tensor.role == "linear"}
    known = [found.sizes[name].runs_on for name in types if name in found.sizes]
    if not types or len(known) < len(types):
        return None
    return [place for place in known[0] if all(place in places for places in known)]


def _exact(size: Size) -> str:
    """Return how many linear layers the type stores exactly, in words."""
    if size.file_bytes is None:
        return "rows don't fit"
    unfit = f"; {size.n_unfit} as f16: rows don't fit" if size.n_unfit else ""
    if size.n_exact is None or size.n_near is None:
        return f"unknown without weights{unfit}"
    if size.exact:
        return f"all {size.n_linear}"
    near = f", {size.n_near} more but for rounded scales" if size.n_near else ""
    return f"{size.n_exact} of {size.n_linear}{near}{unfit}"


def _histograms(tensors: Sequence[Tensor]) -> list[pictures.Histogram]:
    """Return a histogram of the scales of each kind of tensors."""
    alike = defaultdict(list)
    for tensor in tensors:
        if tensor.scales is not None:
            alike[tensor.kind].append(tensor.scales)
    return [pictures.histogram(kind, added(counts)) for kind, counts in alike.items()]
