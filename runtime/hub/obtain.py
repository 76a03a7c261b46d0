"""From a name to a file that runs here: found in the cache, or fetched and converted into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tritgguf.converter.core.progress import Progress
from tritgguf.converter.errors import UnsupportedError
from tritgguf.runtime.hub.cache import Cache, Entry
from tritgguf.runtime.hub.conversion import Conversion
from tritgguf.runtime.hub.record import Form, Record, StoredFile, TensorFact, new_record
from tritgguf.runtime.hub.source import Located, Source, local_origin, locate, not_found


def _quiet(_: str) -> None:
    pass


@dataclass(frozen=True)
class Obtainer:
    """Finds, fetches and converts models.

    `say` gets lines for the user, `progress` is called with a stage, the bytes done and the total bytes. `threads` is
    one per core by default.
    """

    cache: Cache
    say: Callable[[str], None] = _quiet
    progress: Progress | None = None
    threads: int | None = None

    def obtain(self, source: Source, form: Form) -> tuple[Entry, bool]:
        """Return a model that is ready to run, and whether it was made for that.

        What is in the cache is taken without asking the hub. A local model that changed since is converted again, and
        so is a damaged file. Raises TritggufError.
        """
        entry = self.cache.entry(source.name, form)
        if entry is None:
            self._require_found(source)
        elif (problem := self._problem(entry, source)) is not None:
            self.say(problem)
        else:
            if source.is_gone:
                self.say(f"note: {source.name} is gone; this was made of it on {entry.record.made[:10]}")
            self._note_if_slow(entry.record)
            return self.cache.settled(entry), False
        entry = self._locked(source, form, lambda made: self._problem(made, source) is None)
        self._note_if_slow(entry.record)
        return entry, True

    def update(self, source: Source, form: Form, *, force: bool = False) -> tuple[Entry, bool]:
        """Return the model as it is now on the hub or on the disk, and whether anything had to be done for that.

        With `force` it is converted again in any case.
        """
        before = self.cache.entry(source.name, form)
        if before is None:
            self._require_found(source)
        elif not force and before.damage() is None and self._is_newest(before, source):
            self._note_if_slow(before.record)
            return self.cache.settled(before), False
        stale = None if before is None else before.record.made
        # Unless another process has done it while this one waited.
        entry = self._locked(source, form, lambda e: e.record.made != stale and e.damage() is None)
        self._note_if_slow(entry.record)
        return entry, True

    def _require_found(self, source: Source) -> None:
        if source.is_gone:
            raise not_found(source.text, (entry.record.name for entry in self.cache.entries()))

    def _problem(self, entry: Entry, source: Source) -> str | None:
        """Return why an entry has to be made again, None if it can be run; raise CacheError if it can't be either."""
        name, record = entry.record.name, entry.record
        if source.is_gone and not record.converted:
            self._require_found(source)
        if source.path is not None and not source.is_gone and local_origin(source.path) != record.origin:
            return f"{name} changed since {record.made[:10]}: making it again"
        if (damage := entry.damage()) is not None:
            return f"{name} is damaged in the cache ({damage}): making it again"
        return None

    @staticmethod
    def _is_newest(entry: Entry, source: Source) -> bool:
        """Whether a model was made of what its name stands for now."""
        if source.path is not None:
            return source.is_gone or local_origin(source.path) == entry.record.origin
        from tritgguf.runtime.hub.download import commit_of  # not at the top: local models need no client of the hub

        assert source.hub is not None
        return commit_of(source.hub) == entry.record.origin.commit

    def _locked(self, source: Source, form: Form, done: Callable[[Entry], bool]) -> Entry:
        """Make the model, unless another process has done so meanwhile."""
        folder = self.cache.folder_of(source.name, form)

        def waiting() -> None:
            self.say(f"waiting for another tritgguf that is getting {source.name}")

        with self.cache.locked(folder, waiting):
            entry = self.cache.entry(source.name, form)
            if entry is not None and done(entry):
                return entry
            located = locate(source, self.progress)
            return self._make(folder, source, form, located)

    def _make(self, folder: Path, source: Source, form: Form, located: Located) -> Entry:
        if (paths := self._as_it_is(located.path, form)) is not None:
            return self.cache.put(folder, self._reference(source.name, form, located, paths))
        conversion = Conversion(self.cache, folder, source.name, form, located, self.say, self.progress, self.threads)
        return self.cache.put(folder, conversion.record())

    @staticmethod
    def _as_it_is(path: Path, form: Form) -> tuple[Path, ...] | None:
        """Return the files of a GGUF model that runs here as it is; None if it has to be converted, or shall be."""
        from tritgguf.converter.gguf_io.reader import is_gguf, read_gguf

        if not is_gguf(path) or not form.by_default:
            return None
        file = read_gguf(path)
        try:
            file.stock_tensors()
        except UnsupportedError:
            return None
        return file.paths

    def _note_if_slow(self, record: Record) -> None:
        """Tell the user of a file whose type has no fast code here: one in another form, or from another machine."""
        from tritgguf.converter.planning.targets import slow_here
        from tritgguf.runtime.engine.kernels.install import fast_types

        if record.form.type in (None, "auto") and record.form.target == "cpu" and slow_here(record.type, fast_types()):
            again = f"`tritgguf pull {record.name} --force`" if record.converted else "--type auto"
            self.say(
                f"note: {record.type} has no fast code on this CPU: {again} makes a larger file of the same values"
            )

    @staticmethod
    def _reference(name: str, form: Form, located: Located, paths: tuple[Path, ...]) -> Record:
        from tritgguf.converter.gguf_io.reader import read_gguf

        tensors = read_gguf(paths[0]).tensors.values()
        files = tuple(StoredFile.of(path, str(path), _hub_digest(path)) for path in paths)
        facts = [TensorFact(tensor.name, tensor.dtype.lower(), tensor.n_bytes) for tensor in tensors]
        return new_record(name, form, located.origin, files, facts)


def _hub_digest(path: Path) -> str | None:
    """Return the SHA-256 by which huggingface_hub's cache calls a large file, None elsewhere.

    https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    blob = path.resolve()
    is_digest = len(blob.name) == 64 and set(blob.name) <= set("0123456789abcdef")
    return blob.name if path.is_symlink() and blob.parent.name == "blobs" and is_digest else None
