"""Write a folder under a temporary name and rename it when it is complete; an interrupted run can be resumed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tritgguf.converter.checkpoint.safetensors_reader import INDEX, SINGLE
from tritgguf.converter.core.new_file import create_locked, leftovers, locked, remove_leftovers, temporary_name
from tritgguf.converter.core.system import exchange
from tritgguf.converter.core.whole_files import write_whole
from tritgguf.converter.errors import OutputError, SourceError
from tritgguf.converter.export.code_files import code_files

STATE = "resume.json"
FACTS = ".facts.json"
COPIED = (
    "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
_WRITTEN = (
    SINGLE, "model-?????-of-?????.safetensors", INDEX, "config.json", "README.md", STATE, f"*{FACTS}",
)  # fmt: skip


def require_folder(out: Path, model: Path, force: bool) -> None:
    """Raise OutputError if the target can't be written; create nothing."""
    inside = model.resolve()
    if out.resolve() in (inside, *inside.parents):
        raise OutputError(f"{out} holds the model itself; choose another folder")
    _require_replaceable(out, force)
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} isn't a folder; create it, or choose another target")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"{out.parent} isn't writable; choose another target")


def _require_replaceable(out: Path, force: bool) -> None:
    if not os.path.lexists(out):
        return
    if not force:
        raise OutputError(f"{out} exists already; add --force to replace it")
    if out.is_symlink():
        raise OutputError(f"{out} is a link, so it isn't replaced; name the folder itself, or choose another")
    if not (out / "config.json").is_file():
        raise OutputError(f"{out} isn't a model folder (no config.json), so it isn't replaced; choose another")
    ours = _model_files(out)
    others = sorted(path.name for path in out.iterdir() if path.name not in ours)
    if others:
        listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise OutputError(
            f"{out} also holds {listed}, which --force would delete; move that elsewhere, or choose another folder"
        )


def _model_files(folder: Path) -> set[str]:
    """Return the names of the files that `quantize` may have written into a folder."""
    names = {path.name for path in folder.iterdir() if path.is_symlink() or path.is_file()}
    try:
        code = code_files(folder)
    except SourceError:  # a damaged config.json, which names no code
        code = set()
    return {name for name in names if name in code or any(fnmatch(name, pattern) for pattern in (*COPIED, *_WRITTEN))}


@contextlib.contextmanager
def whole_folder(out: Path, identity: dict[str, Any], resume: bool, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; rename it to `out` when the block ends without an error.

    After an error it is removed, or with `resume` kept: then it is OUT.part. `identity` describes the output: only an
    OUT.part with an equal identity is resumed. Removes what killed processes left. Raise OutputError if the folder
    can't be written, or, unless `force`, exists by then.
    """
    with contextlib.ExitStack() as lock:
        try:
            _remove_leftovers(out)
            partial = _resumed(out, identity, lock) if resume else _new_folder(out, identity, lock)
        except OSError as error:
            raise OutputError(f"{out}.part can't be written: {error.strerror or error}") from error
        try:
            yield partial
            _require_replaceable(out, force)
            if not resume:  # before the folder has its name, so that it is whole as soon as it appears
                _tidy(partial)
            replaced = _publish(partial, out)
            _tidy(out)
        except BaseException as error:
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)
            elif (out / STATE).is_file():  # a signal that came between renaming and tidying
                _tidy(out)
            if isinstance(error, OSError):
                raise OutputError(f"{out} can't be written: {error.strerror or error}") from error
            raise
        if replaced is not None:
            _delete(replaced)


def _new_folder(out: Path, identity: dict[str, Any], lock: contextlib.ExitStack) -> Path:
    """Create a folder with a random name, locked until `lock` closes."""
    resumable = out.with_name(f"{out.name}.part")
    if resumable.exists():
        raise OutputError(
            f"{resumable} exists: another run is writing it, or one was interrupted; "
            "continue it with --resume, or delete it"
        )

    def create(path: Path) -> int:
        path.mkdir()
        return os.open(path, os.O_RDONLY)

    if os.name == "nt":  # where folders can't be opened
        partial = temporary_name(out)
        partial.mkdir()
    else:
        partial, descriptor = create_locked(out, create)
        lock.callback(os.close, descriptor)
    write_whole(partial / STATE, json.dumps(identity).encode())
    return partial


def _resumed(out: Path, identity: dict[str, Any], lock: contextlib.ExitStack) -> Path:
    """Create OUT.part, or take that of an interrupted run, locked until `lock` closes."""
    partial = out.with_name(f"{out.name}.part")
    partial.mkdir(exist_ok=True)
    try:
        lock.enter_context(locked(partial))
    except BlockingIOError as error:
        raise OutputError(f"another run is writing {partial}; wait for it") from error
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise
    if not any(partial.iterdir()):
        write_whole(partial / STATE, json.dumps(identity).encode())
    elif _read_json(partial / STATE) != json.loads(json.dumps(identity)):
        raise OutputError(
            f"{partial} was started from another model, with other options or by another version of tritgguf: "
            "delete it to start again"
        )
    return partial


def _remove_leftovers(out: Path) -> None:
    for path in leftovers(out):
        with contextlib.suppress(OSError):  # in use, or on a file system without locks
            if path.is_dir():
                with locked(path):
                    if (path / STATE).is_file():  # never finished: all of it is ours
                        shutil.rmtree(path)
                    else:  # without its state yet, or with every file complete
                        remove_leftovers(path / STATE)
                        _delete(path)


def _delete(folder: Path) -> None:
    """Delete a folder that `quantize` wrote; what else came into it stays, with the folder."""
    for name in _model_files(folder):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _publish(partial: Path, out: Path) -> Path | None:
    """Rename `partial` to `out`; return the new name of the folder that was there."""
    if out.exists():
        return _replace(partial, out)
    partial.rename(out)
    return None


def _tidy(folder: Path) -> None:
    """Remove what only an unfinished folder needs."""
    for path in folder.iterdir():
        if path.name == STATE or path.name.endswith((FACTS, ".part")):
            with contextlib.suppress(OSError):
                path.unlink()


def _replace(partial: Path, out: Path) -> Path:
    """Rename `partial` to `out` and return the new name of the old folder; if that fails, `out` is what it was."""
    if exchange(partial, out):
        return partial
    replaced = temporary_name(out).with_suffix(".old")
    out.rename(replaced)
    try:
        partial.rename(out)
    except BaseException:
        replaced.rename(out)
        raise
    return replaced


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
