"""Of several exact types, the one that is known to be fastest on this computer's CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import build
from tests.converter.planning.test_choose_types import linear_types, regrid, rewritten
from tritgguf.converter import convert, plan
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.planning.file_plan import FilePlan
from tritgguf.converter.planning.targets import TARGETS
from tritgguf.converter.verification.verification import verify

SPEEDS = {"tq1_0": 4e-11, "tq2_0": 2e-11, "q2_0": 2.1e-11, "q2_k": 5e-11, "q4_0": 7e-11}


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return regrid(build("llama-biases", tmp_path_factory.mktemp("ternary") / "model"), 256)


def linear_bytes(planned: FilePlan) -> int:
    return sum(tensor.n_bytes for tensor in planned.tensors if tensor.spec.role == "linear")


def test_the_fastest_one_is_chosen_and_the_plan_says_so(ternary: Path) -> None:
    planned, smallest = plan(ternary, seconds_per_weight=SPEEDS), plan(ternary)
    assert (linear_types(planned), linear_types(smallest)) == ({"tq2_0"}, {"tq1_0"})
    words = "tq2_0 rather than tq1_0: decodes 2.0 times as fast on this machine"
    linear = [tensor for tensor in planned.tensors if tensor.spec.role == "linear"]
    assert all(tensor.exact and tensor.reason.endswith(f", {words}") for tensor in linear)
    saved = format_size(linear_bytes(planned) - linear_bytes(smallest))
    assert [note for note in planned.notes if "rather than" in note] == [
        f"{words}; --smallest stores tq1_0 and saves {saved}"
    ]
    assert not any("rather than" in text for text in (*smallest.notes, *(t.reason for t in smallest.tensors)))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"tq1_0": 1.04, "tq2_0": 1.0}, "tq1_0"),  # its bytes are worth a twentieth
        ({"tq1_0": 1.06, "tq2_0": 1.0}, "tq2_0"),
        ({"tq1_0": 2.0, "tq2_0": 1.04, "q4_0": 1.0}, "tq2_0"),
        ({"tq1_0": 2.0, "tq2_0": 1.06, "q4_0": 1.0}, "q4_0"),
        ({"tq2_0": 1.0, "q4_0": 2.0}, "tq1_0"),  # of which nothing is known
        ({"tq1_0": 2.0, "q2_0": 1.0}, "tq1_0"),  # Q2_0 isn't among the types for an x86 CPU
    ],
)
def test_a_larger_type_must_be_worth_its_bytes(seconds, expected: str, ternary: Path, monkeypatch) -> None:
    monkeypatch.setattr("tritgguf.converter.planning.targets.is_x86", lambda: True)
    assert linear_types(plan(ternary, seconds_per_weight=seconds)) == {expected}


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "cpu"])
def test_other_targets_and_types_that_are_asked_for_know_nothing_of_this_cpu(target: str, ternary: Path) -> None:
    told = plan(ternary, target=target, seconds_per_weight=SPEEDS).as_json()
    assert told == plan(ternary, target=target).as_json()
    assert linear_types(plan(ternary, "tq1_0", seconds_per_weight=SPEEDS)) == {"tq1_0"}


def test_a_slow_type_of_a_gguf_source_doesn_t_stay(ternary: Path, tmp_path: Path) -> None:
    for own, seconds, expected in (("tq1_0", SPEEDS, "tq2_0"), ("tq1_0", {}, "tq1_0"), ("tq2_0", SPEEDS, "tq2_0")):
        source = convert(ternary, tmp_path / "source.gguf", own, check=False, force=True).out
        written = convert(source, tmp_path / "out.gguf", check=False, force=True, seconds_per_weight=seconds)
        assert linear_types(written.plan) == {expected}
        assert verify(ternary, written.out).problems == []


def test_a_scale_beside_the_tensor_leaves_the_reason(tmp_path: Path) -> None:
    scale = np.float32(0.0123456789)
    model = rewritten(build("llama-gqa", tmp_path / "model"), lambda _name, values: np.sign(values) * scale)
    reasons = [t.reason for t in plan(model, seconds_per_weight=SPEEDS).tensors if t.spec.role == "linear"]
    assert all("tq2_0 rather than tq1_0" in reason and "stored as float32" in reason for reason in reasons)
