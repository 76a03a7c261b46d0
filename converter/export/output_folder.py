"""Write a folder under a temporary name and rename it when it is complete; an interrupted run can be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritgguf.converter.errors import OutputError

STATE = "resume.json"
FACTS = ".facts.json"


def require_folder(out: Path, model: Path, force: bool) -> None:
    """Raise OutputError if the target can't be written; create nothing."""
    inside = model.resolve()
    if out.resolve() in (inside, *inside.parents):
        raise OutputError(f"{out} holds the model itself; choose another folder")
    if out.exists() and not force:
        raise OutputError(f"{out} exists already; add --force to replace it")
    if out.exists() and not (out / "config.json").is_file():
        raise OutputError(f"{out} isn't a model folder (no config.json), so it isn't replaced; choose another")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} isn't a folder; create it, or choose another target")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"{out.parent} isn't writable; choose another target")


@contextlib.contextmanager
def whole_folder(out: Path, identity: dict[str, Any], resume: bool) -> Iterator[Path]:
    """Yield the folder OUT.part beside `out`; rename it to `out` when the block ends without an error.

    After an error OUT.part is removed, or with `resume` kept. `identity` describes the output: only an OUT.part with an
    equal identity is resumed. Raise OutputError if the folder can't be written.
    """
    partial = out.with_name(f"{out.name}.part")
    try:
        _begin(partial, identity, resume)
    except OSError as error:
        raise OutputError(f"{partial} can't be written: {error.strerror or error}") from error
    try:
        yield partial
        _publish(partial, out)
    except BaseException as error:
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(f"{out} can't be written: {error.strerror or error}") from error
        raise


def _begin(partial: Path, identity: dict[str, Any], resume: bool) -> None:
    if not partial.exists():
        partial.mkdir()
        (partial / STATE).write_text(json.dumps(identity))
        return
    if not resume:
        raise OutputError(
            f"{partial} exists: another run is writing it, or one was interrupted; "
            "continue it with --resume, or delete it"
        )
    if _read_json(partial / STATE) != json.loads(json.dumps(identity)):
        raise OutputError(f"{partial} was started from another model or with other options: delete it to start again")


def _publish(partial: Path, out: Path) -> None:
    for path in partial.iterdir():
        if path.name == STATE or path.name.endswith((FACTS, ".part")):
            path.unlink()
    replaced = out.with_name(f"{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def finished(partial: Path, file_name: str, file_bytes: int) -> list[dict[str, Any]] | None:
    """Return the facts that an earlier run recorded for a finished file, or None if it isn't finished."""
    path = partial / file_name
    facts = _read_json(partial / f"{file_name}{FACTS}")
    if not isinstance(facts, list) or not path.is_file() or path.stat().st_size != file_bytes:
        return None
    return facts


def note_finished(partial: Path, file_name: str, facts: list[dict[str, Any]]) -> None:
    """Record the facts of a file's tensors, before the file is renamed to its final name."""
    (partial / f"{file_name}{FACTS}").write_text(json.dumps(facts))


def _read_json(path: Path) -> object:
    try:
        content: object = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content
