"""What `inspect --html` and `convert --html` share: the figures that a report needs, and the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tritgguf.converter.core.progress import Progress
from tritgguf.converter.core.whole_files import write_whole
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.reader import is_gguf, read_gguf
from tritgguf.converter.inspection.inspection import Inspection
from tritgguf.converter.inspection.report.quality import Quality, read_quality
from tritgguf.converter.inspection.report.report import report
from tritgguf.converter.model.card_metadata import model_name
from tritgguf.converter.planning.file_plan import FilePlan
from tritgguf.converter.verification.relative_errors import relative_errors

if TYPE_CHECKING:
    from tritgguf.runtime.hub.headers import Readable


def require_values(model: Readable) -> None:
    """Raise SourceError for a model on the hub of which only the headers are here."""
    if not model.values:
        raise SourceError(f"{model.path.name} isn't on this disk: fetch it first, or leave --against and --eval out")


def quality_of(eval_json: Path, file: Path) -> list[Quality]:
    """Return eval's figures; raise SourceError unless those of the GGUF file are among them."""
    if not is_gguf(file):
        raise SourceError(f"{file} is no GGUF file, so {eval_json.name} has no figures of it: leave --eval out")
    return read_quality(eval_json, file, read_gguf(file).file_bytes)


def errors_of(
    model: Path, file: Path, threads: int | None, progress: Progress | None, *, lora: Path | None = None
) -> Mapping[str, float]:
    """Return how far the GGUF file's tensors are from the model's; raise SourceError where that can't be compared."""
    if not is_gguf(file):
        raise SourceError(f"{file} is no GGUF file: only files can be compared --against the model they were made from")
    return relative_errors(model, file, lora=lora, threads=threads, progress=progress)


def write(
    html: Path,
    found: Inspection,
    *,
    errors: Mapping[str, float] | None,
    source: Path | None,
    plan: FilePlan | None = None,
    quality: Sequence[Quality] = (),
    force: bool,
) -> None:
    """Write the report, whole or not at all."""
    from tritgguf.runtime.engine.kernels.install import fast_types

    name = "" if source is None else source.name if is_gguf(source) else model_name(source)
    page = report(found, errors=errors, source_name=name, plan=plan, quality=quality, fast_here=fast_types())
    write_whole(html, page, force=force)
