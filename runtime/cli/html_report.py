"""What `inspect --html` and `convert --html` share: the figures that a report needs, and the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tritgguf.converter.core.progress import Progress
from tritgguf.converter.core.whole_files import write_whole
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.reader import is_gguf, read_gguf
from tritgguf.converter.inspection.inspection import Inspection, inspect
from tritgguf.converter.inspection.report.quality import Quality, read_quality
from tritgguf.converter.inspection.report.report import report
from tritgguf.converter.model.card_metadata import model_name
from tritgguf.converter.verification.relative_errors import relative_errors
from tritgguf.runtime.engine.kernels.install import fast_types

if TYPE_CHECKING:
    from tritgguf.converter.conversion.pipeline import Conversion
    from tritgguf.runtime.hub.headers import Readable
    from tritgguf.runtime.measure.evaluation import Evaluated
    from tritgguf.runtime.measure.verdict import Verdict


def report_model(
    model: Readable,
    html: Path,
    *,
    against: Path | None,
    eval_json: Path | None,
    force: bool,
    threads: int | None,
    progress: Progress | None,
) -> Inspection:
    """Inspect a model and write the report; raise TritggufError where `against` or `eval_json` aren't about it."""
    file = model.path
    if (against or eval_json) and not model.values:
        raise SourceError(f"{file.name} isn't on this disk: fetch it first, or leave --against and --eval out")
    if against and not is_gguf(file):
        raise SourceError(f"{file} is no GGUF file: only files can be compared --against the model they were made from")
    quality = _quality(eval_json, file) if eval_json else ()
    fast_here = fast_types()
    found = inspect(file, values=model.values, scales=True, fast_here=fast_here, threads=threads, progress=progress)
    errors = relative_errors(against, file, threads=threads, progress=progress) if against else None
    name = _name(against) if against else ""
    page = report(found, errors=errors, source_name=name, quality=quality, fast_here=fast_here)
    write_whole(html, page, force=force)
    return found


def report_conversion(
    result: Conversion,
    model: Path,
    html: Path,
    *,
    verdict: Verdict | None,
    lora: Path | None,
    force: bool,
    threads: int | None,
    progress: Progress | None,
) -> None:
    """Read the written file again, compare each tensor with the model's, and write the report with the verdict."""
    fast_here = fast_types()
    found = inspect(result.out, scales=True, fast_here=fast_here, threads=threads, progress=progress)
    errors = relative_errors(model, result.out, lora=lora, threads=threads, progress=progress)
    quality = [] if verdict is None else [_row(verdict.file, "this"), _row(verdict.source, "base")]
    page = report(
        found,
        errors=errors,
        source_name=_name(model),
        plan=result.plan,
        quality=quality,
        verdict=None if verdict is None else verdict.line,
        completions=[] if verdict is None else [(one.prompt, one.text) for one in verdict.completions],
        fast_here=fast_here,
    )
    write_whole(html, page, force=force)


def _row(file: Evaluated, part: Literal["this", "base"]) -> Quality:
    other = file.figures.divergence
    return Quality(
        name=file.path.name,
        file_bytes=file.size.file_bytes,
        bits_per_weight=file.size.bits_per_weight,
        ppl=file.figures.ppl,
        ppl_error=file.figures.ppl_error,
        kld_mean=None if other is None else other.kld_mean,
        same_top1=None if other is None else other.same_top1,
        is_base=part == "base",
        is_this=part == "this",
    )


def _quality(eval_json: Path, file: Path) -> list[Quality]:
    if not is_gguf(file):
        raise SourceError(f"{file} is no GGUF file, so {eval_json.name} has no figures of it: leave --eval out")
    return read_quality(eval_json, file, read_gguf(file).file_bytes)


def _name(model: Path) -> str:
    return model.name if is_gguf(model) else model_name(model)
