"""What to say of a model in the cache, for people and for machines."""

from __future__ import annotations

from typing import Any

from tritgguf.converter.core.sizes import format_size
from tritgguf.runtime.hub.cache import Entry
from tritgguf.runtime.hub.record import Record

COMMIT_DIGITS = 12


def described(entry: Entry) -> dict[str, Any]:
    """Return everything about a model as JSON values."""
    record = entry.record
    return {
        "name": record.name,
        "type": record.type,
        "types": dict(record.types),
        "bytes": record.n_bytes,
        "exact": None if record.n_inexact is None else record.n_inexact == 0,
        "exactness": record.exactness,
        "for": record.form.target,
        "asked": {
            "type": record.form.type,
            "fallback": record.form.fallback,
            "allow_lossy": record.form.allow_lossy,
            "max_bits": record.form.max_bits,
            "smallest": record.form.smallest,
        },
        "source": record.origin.as_json(),
        "converted": record.converted,
        "files": [
            {"path": str(path), "bytes": file.n_bytes, "sha256": file.sha256}
            for path, file in zip(entry.paths, record.files, strict=True)
        ],
        "made": record.made,
        "used": used.isoformat(timespec="seconds") if (used := entry.used) else None,
        "version": record.version,
        "notes": list(record.notes),
        "damage": entry.damage(),
    }


def download_hint(record: Record) -> str:
    """Return what frees the space of a model's download in huggingface_hub's cache; empty where there is none."""
    if record.origin.kind != "hub":
        return ""
    from tritgguf.runtime.hub.snapshot import storage  # not at the top: it loads the hub's client

    repo = record.origin.place
    n_bytes = sum(blob.stat().st_size for blob in storage(repo).glob("blobs/*"))
    return f"; `hf cache rm model/{repo}` frees the {format_size(n_bytes)} of its download" if n_bytes else ""


def short_origin(record: Record) -> str:
    """Return where a model came from in a few words: the commit, or the kind of local source."""
    origin = record.origin
    if origin.commit is not None:
        return f"hub, {origin.commit[:COMMIT_DIGITS]}"
    return "file" if len(origin.files) == 1 else f"{len(origin.files)} files"


def long_origin(record: Record) -> str:
    """Return where a model came from, with the whole commit or path."""
    origin = record.origin
    if origin.commit is not None:
        file = f", {origin.file}" if origin.file else ""
        return f"{origin.place} at {origin.commit}{file}"
    n_bytes = sum(file.n_bytes for file in origin.files)
    return f"{origin.place}, {len(origin.files)} file{'s' if len(origin.files) > 1 else ''} of {n_bytes:,} bytes"
