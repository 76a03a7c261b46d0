"""The types to choose from for each target, which follow from what each codec says of itself."""

from __future__ import annotations

import platform

import pytest

from tritgguf.converter.planning.targets import ANY, TARGETS, float_types, refuses, ternary_types
from tritgguf.converter.quant.codec import codecs

TERNARY = {
    "cpu": "tq1_0 tq2_0 q2_0 q2_k q4_0",
    "cuda": "q2_0 q2_k q4_0",
    "metal": "tq2_0 q2_0 q2_k q4_0",
    "vulkan": "tq1_0 tq2_0 q2_0 q2_k q4_0",
    "ollama": "q2_k q4_0",
    "any": "q2_k q4_0",
}


@pytest.mark.parametrize("target", TARGETS)
def test_the_types_for_each_target_smallest_first(target: str, monkeypatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert " ".join(ternary_types(target)) == TERNARY[target]
    with_nvfp4 = " nvfp4" if target in ("cpu", "cuda", "vulkan") else ""
    assert " ".join(float_types(target)) == f"q2_k q3_k q4_k{with_nvfp4} q6_k q8_0 bf16 f16 f32"
    refused = {name for name in codecs() if refuses(target, name.upper())}
    assert refused == ({"tq1_0", "tq2_0", "q2_0"} if target == "ollama" else set())


def test_q2_0_is_left_out_on_x86(monkeypatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert ternary_types("cpu") == ("tq1_0", "tq2_0", "q2_k", "q4_0")
    assert " ".join(ternary_types("vulkan")) == TERNARY["vulkan"]


def test_q2_0_is_chosen_on_x86_where_the_runtime_multiplies_it_fast(monkeypatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert ternary_types("cpu", {"q2_0"}) == ("tq1_0", "tq2_0", "q2_0", "q2_k", "q4_0")
    assert ternary_types("any", {"q2_0"}) == ternary_types("any")


def test_codecs_name_only_targets() -> None:
    for codec in codecs().values():
        assert {*codec.runs_on, *codec.refused_by} <= {*TARGETS} - {ANY}, codec.name
