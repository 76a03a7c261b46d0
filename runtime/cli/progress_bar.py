"""Progress of long work on standard error: a bar on a terminal, JSON lines with --json, otherwise nothing.

-q shows none of them; -v prints a line for each stage instead of a bar.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tritgguf.converter.core.progress import Progress as ProgressCallback
from tritgguf.runtime.cli import verbosity


@contextmanager
def show_progress(json_output: bool, *, unit: str = "bytes") -> Iterator[ProgressCallback | None]:
    """Yield a callback that shows the stage, the bytes done and the total bytes; None if nothing is to be shown.

    `unit` is what is counted, if not bytes.
    """
    if verbosity.is_quiet():
        yield None
        return
    if json_output:
        yield _json_lines(unit)
        return
    if verbosity.is_verbose():
        with verbosity.stage_lines(unit) as lines:
            yield lines
        return
    if not sys.stderr.isatty():
        yield None
        return
    # imported here to keep --help fast
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from tritgguf.runtime.cli.tables import TableConsole

    console = TableConsole(stderr=True)
    counts: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
    if unit != "bytes":
        counts = (MofNCompleteColumn(), TextColumn(unit))
    columns = (BarColumn(), *counts, TimeRemainingColumn(), TextColumn("left"))
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(stage: str, done: int, total: int) -> None:
            if bar.tasks[task].description != stage:
                bar.reset(task, description=stage)
            bar.update(task, completed=done, total=total)

        yield show


def _json_lines(unit: str) -> ProgressCallback:
    started = last = time.monotonic()
    current, done_before = "", 0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal started, last, current, done_before
        now = time.monotonic()
        if stage != current:
            started, current, done_before = now, stage, done
        if now - last < 1 and done < total:
            return
        last = now
        rate = (done - done_before) / max(now - started, 1e-9)
        figures = {f"done_{unit}": done, f"total_{unit}": total, f"{unit}_per_second": round(rate)}
        left = round((total - done) / rate, 1) if rate else None  # a stage's first report tells no rate
        print(json.dumps({"stage": stage, **figures, "seconds_left": left}), file=sys.stderr, flush=True)

    return report
