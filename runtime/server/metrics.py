"""Numbers for Prometheus: https://prometheus.io/docs/instrumenting/exposition_formats/."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tritgguf.runtime.server.models import Models, ServedModel

_PREFIX = "tritgguf_"
# name, type, meaning
_METRICS = (
    ("slots", "gauge", "Conversations that are decoded together at most."),
    ("slots_busy", "gauge", "Slots that work on a request."),
    ("requests_waiting", "gauge", "Requests that wait for a slot, or behind another one for embeddings."),
    ("requests_total", "counter", "Requests that got a slot."),
    ("requests_failed_total", "counter", "Requests that ended in an error."),
    ("requests_cancelled_total", "counter", "Requests whose client hung up."),
    ("prompt_tokens_total", "counter", "Tokens of prompts."),
    ("prompt_tokens_cached_total", "counter", "Tokens of prompts that a slot's cache held already."),
    ("generated_tokens_total", "counter", "Tokens of finished answers."),
    ("context_shifts_total", "counter", "Times that the middle of a full context was dropped."),
    ("batches_total", "counter", "Batches evaluated."),
    ("batch_tokens_total", "counter", "Tokens evaluated in batches."),
    ("decode_seconds_total", "counter", "Time spent evaluating batches."),
)


def metrics(models: Models) -> str:
    """Return the metrics of each model as text."""
    values = {served.name: _values(served) for served in models.all}
    lines = []
    for name, kind, meaning in _METRICS:
        lines += [f"# HELP {_PREFIX}{name} {meaning}", f"# TYPE {_PREFIX}{name} {kind}"]
        lines += [f"{_PREFIX}{name}{{model={json.dumps(model)}}} {numbers[name]}" for model, numbers in values.items()]
    return "\n".join(lines) + "\n"


def _values(served: ServedModel) -> dict[str, float]:
    return dict(_numbers(served))


def _numbers(served: ServedModel) -> Iterator[tuple[str, float]]:
    totals = served.batcher.totals
    yield "slots", served.n_slots
    yield "slots_busy", served.batcher.n_busy
    yield "requests_waiting", len(served.batcher.waiting) + max(0, served.batcher.n_embedding - 1)
    yield "requests_total", totals.requests
    yield "requests_failed_total", totals.failed
    yield "requests_cancelled_total", totals.cancelled
    yield "prompt_tokens_total", totals.prompt_tokens
    yield "prompt_tokens_cached_total", totals.cached_tokens
    yield "generated_tokens_total", totals.generated_tokens
    yield "context_shifts_total", totals.shifts
    yield "batches_total", totals.batches
    yield "batch_tokens_total", totals.batch_tokens
    yield "decode_seconds_total", round(totals.decode_seconds, 6)
