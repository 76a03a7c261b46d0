"""Describe a quantized folder: its config.json, and its README.md with a table of facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.export.plan import ExportPlan
from tritgguf.converter.model.card_metadata import model_name

QUANTIZATIONS = ("quantization_config", "quantization")  # transformers' key, and MLX's


@dataclass(frozen=True)
class TensorFacts:
    """What rounding changed in one tensor: the sums of the squared differences and of the squared values."""

    name: str
    coded: bool
    n_weights: int
    squared_error: float
    sum_of_squares: float

    @property
    def error(self) -> float:
        """The relative squared error: |stored - weights|² / |weights|²."""
        return self.squared_error / self.sum_of_squares if self.sum_of_squares else 0.0


def config_json(plan: ExportPlan) -> dict[str, Any]:
    """Return config.json: the model's, with quantization_config and dtype of the written weights."""
    config = {key: value for key, value in plan.config.items() if key not in QUANTIZATIONS}
    form = plan.form
    if not form.dequantized:
        assert form.scheme is not None
        config["quantization_config"] = dict(form.scheme.config)
    dtype = form.dtype if form.dequantized or form.scheme is None else form.scheme.plain_dtype
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = FLOAT_DTYPES[dtype].in_config
    return config


def model_card(plan: ExportPlan, facts: Sequence[TensorFacts]) -> str:
    """Return README.md."""
    name = model_name(plan.model)
    rows = "\n".join(f"| {key} | {value} |" for key, value in _table(plan, facts))
    return (
        f"# {name}, {plan.form.name}\n\nMade of {name} by tritgguf; the original's licence applies.\n\n"
        f"| fact | value |\n|---|---|\n{rows}\n\n{_reading(plan)}\n"
    )


def _table(plan: ExportPlan, facts: Sequence[TensorFacts]) -> list[tuple[str, str]]:
    form, scheme = plan.form, plan.form.scheme
    coded = [fact for fact in facts if fact.coded]
    plain = [fact for fact in facts if not fact.coded]
    source_bytes = sum(tensor.source.n_bytes for tensor in plan.tensors if tensor.source)
    n_weights = sum(fact.n_weights for fact in facts)
    rows = [
        ("scheme", form.name),
        ("stored as", f"plain {FLOAT_DTYPES[form.dtype].in_config}" if form.dequantized else "packed"),
    ]
    if scheme is not None:
        rows.append(("group", f"{scheme.group} columns share a scale" if scheme.group else "the tensor shares a scale"))
        if scheme.bits is not None:
            rows.append(("bits per weight that the scheme needs, linear layers", f"{scheme.bits:.2f}"))
        rows.append(("bits per weight as stored, quantized tensors", f"{plan.coded_bits:.3f}"))
    rows += [
        ("bits per weight as stored, whole model", f"{8 * plan.weight_bytes / n_weights:.3f}"),
        ("size", f"{plan.weight_bytes:,} bytes (the tensors of the source: {source_bytes:,})"),
    ]
    if coded:
        rows.append(("quantized tensors", f"{len(coded)} of {len(facts)}"))
        rows.append(("relative squared error, quantized tensors", _errors(coded)))
    if rounded := [fact for fact in plain if fact.squared_error]:
        rows.append(("plain tensors rounded to their type", f"{len(rounded)} of {len(plain)}: {_errors(rounded)}"))
    else:
        rows.append(("plain tensors", f"{len(plain)}, unchanged"))
    return rows


def _errors(facts: Sequence[TensorFacts]) -> str:
    total = math.fsum(fact.sum_of_squares for fact in facts)
    mean = math.fsum(fact.squared_error for fact in facts) / total if total else 0.0
    worst = max(facts, key=lambda fact: fact.error)
    return f"{mean:.3g} over all, at most {worst.error:.3g} ({worst.name})" if mean else "0: every weight is kept"


def _reading(plan: ExportPlan) -> str:
    if plan.form.dequantized:
        return "Plain floats: `transformers.AutoModelForCausalLM.from_pretrained` loads this folder."
    assert plan.form.scheme is not None
    if plan.packs_experts:
        return "`tritgguf convert` makes a GGUF file of this folder; transformers can't load packed experts."
    return plan.form.scheme.reading + " `tritgguf convert` makes a GGUF file of it."
