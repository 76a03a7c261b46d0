"""Convert a model into the cache: exactly, or as the user asked, and never half."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tritgguf.converter.core.json_files import read_object
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.core.whole_files import write_whole
from tritgguf.converter.errors import CacheError, UnsupportedError
from tritgguf.runtime.hub.cache import Cache, digest, record_bytes
from tritgguf.runtime.hub.record import Form, Record, StoredFile, TensorFact, new_record, readable_name
from tritgguf.runtime.hub.source import Located

if TYPE_CHECKING:
    from tritgguf.converter.planning.file_plan import FilePlan

PENDING = "pending.json"  # what the record will say, while the file is written


@dataclass(frozen=True)
class Conversion:
    """A conversion into an entry's folder, whose lock must be held."""

    cache: Cache
    folder: Path
    name: str
    form: Form
    located: Located
    say: Callable[[str], None]
    progress: Progress | None
    threads: int | None

    def record(self) -> Record:
        """Convert, and return the record to put; take what a killed process has converted already."""
        self.cache.make_folder(self.folder)
        try:
            return self._finished()
        except BaseException:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # if there is nothing in it
            raise

    def _finished(self) -> Record:
        pending = self._pending()
        entry = self.cache.entry(self.name, self.form)
        kept = () if pending is None else (PENDING, pending.files[0].path)
        self.cache.tidy(self.folder, entry.record if entry else None, keep=kept)
        if pending is None:
            pending = self._convert()
        file = self.folder / pending.files[0].path
        step = counted(self.progress, "checking", file.stat().st_size)
        return replace(pending, files=(StoredFile.of(file, file.name, digest(file, step)),))

    def _pending(self) -> Record | None:
        """Return what a process that was killed wanted to record, if it had finished the file."""
        try:
            record = Record.from_json(read_object(self.folder / PENDING, CacheError))
            (file,) = record.files
            n_bytes = (self.folder / file.path).stat().st_size
        except (CacheError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        wanted = (self.name, self.form, self.located.origin, file.n_bytes)
        return record if (record.name, record.form, record.origin, n_bytes) == wanted else None

    def _convert(self) -> Record:
        from tritgguf import converter  # not at the top, like the others: all take time
        from tritgguf.runtime.engine.decode_speed import seconds_if_known
        from tritgguf.runtime.engine.kernels.install import fast_types
        from tritgguf.runtime.engine.token_ids_process import token_ids_process

        file = self.folder / f"{readable_name(self.name)}-{secrets.token_hex(4)}.gguf"
        planned: list[Record] = []

        def note(plan: FilePlan) -> None:
            if self.form.type in (None, "auto") and self.form.max_bits is None:
                self._require_ternary(plan)
            for line in plan.notes:
                self.say(f"note: {line}")
            planned.append(self._planned(file, plan))
            write_whole(self.folder / PENDING, record_bytes(planned[0]), force=True)

        target = self._target()
        by_speed = target == "cpu" and self.form.type in (None, "auto") and not self.form.smallest
        try:
            converter.convert(
                self.located.path,
                file,
                self.form.type or "auto",
                check=token_ids_process,
                threads=self.threads,
                progress=self.progress,
                planned=note,
                target=target,
                fast_here=fast_types() if target == "cpu" else (),
                seconds_per_weight=seconds_if_known(lambda text: self.say(f"note: {text}")) if by_speed else {},
                fallback=self.form.fallback,
                allow_lossy=self.form.allow_lossy,
                max_bits=self.form.max_bits,
            )
        except BaseException:
            if not file.exists():
                (self.folder / PENDING).unlink(missing_ok=True)
            raise
        return planned[0]

    def _planned(self, file: Path, plan: FilePlan) -> Record:
        tensors = [TensorFact(t.spec.name, t.codec.name, t.n_bytes, t.exact is not False) for t in plan.tensors]
        written = (StoredFile(file.name, plan.file_bytes, 0),)
        return new_record(self.name, self.form, self.located.origin, written, tensors, plan.notes)

    def _target(self) -> str:
        """Return where the file will run: what was asked for, or the CPU where the graph runs nowhere else."""
        from tritgguf.converter.model.open import open_model

        if self.form.target == "cpu":
            return "cpu"
        only = open_model(self.located.path, load_tokenizer=False).targets
        if only is None or self.form.target in only:
            return self.form.target
        self.say(f"note: {self.name} runs on the {only[0].upper()} alone: its types are chosen for that")
        return only[0]

    def _require_ternary(self, plan: FilePlan) -> None:
        """Raise UnsupportedError if every layer is stored as floats: then the user has to choose a type."""
        linear = [tensor for tensor in plan.tensors if tensor.spec.role == "linear"]
        floats = [tensor for tensor in linear if tensor.codec.name in ("f16", "bf16", "f32")]
        if len(floats) < len(linear):
            return
        largest = max((tensor.codec for tensor in floats), key=lambda codec: codec.bits_per_weight)
        raise UnsupportedError(
            f"{self.name} isn't ternary: no type below 16 bits stores one of its {len(linear)} linear layers exactly; "
            f"--type {largest.name} keeps their values ({format_size(plan.file_bytes)}), --type q8_0 takes about half "
            "and loses almost nothing, --max-bits 5 takes less and loses more"
        )
