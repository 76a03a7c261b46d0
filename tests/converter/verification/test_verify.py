"""verify(): what was converted passes."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf import GGMLQuantizationType

from tests.converter.verification.checks import GATE, UP, Q, verdicts
from tritgguf.converter import convert
from tritgguf.converter.errors import SourceError
from tritgguf.converter.verification.tensor_check import type_bound
from tritgguf.converter.verification.verification import require_good, verify

Folder = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        ("llama1", "tq2_0"),
        ("llama-tied", "tq1_0"),
        ("llama-llama3", "auto"),
        ("qwen3-tied", "q2_k"),
        ("qwen2-yarn", "q4_0"),
        ("llama-shards-of-rows", "q2_0"),
        ("2b4t", "auto"),
        ("2b4t-scalar", "tq2_0"),  # a float32 .scale tensor stands beside each
        ("1bitllm", "tq2_0"),
        ("bonsai", "q2_0"),
        ("bitcpm", "q4_0"),
    ],
)
def test_a_ternary_model_is_exact(name: str, type_name: str, model: Folder, tmp_path: Path) -> None:
    out = convert(
        model(name), tmp_path / "out.gguf", type_name, embedding_type="f32", output_type="f32", check=False
    ).out
    found = verify(model(name), out)
    assert found.problems == []
    assert found.other_keys == ()
    assert set(verdicts(found).values()) == {"exact"}
    assert found.strings_checked > 100
    assert all(check.relative_error == check.max_error == 0 for check in found.tensors)
    require_good(found.problems, out)


@pytest.mark.parametrize("name", ["falcon3", "llama-rows", "14b-seed"])
def test_a_scale_that_fp16_rounds_is_told(name: str, model: Folder, tmp_path: Path) -> None:
    out = convert(model(name), tmp_path / "out.gguf", "q2_0", check=False).out
    found = verify(model(name), out)
    assert found.problems == []
    rounded = [check for check in found.tensors if check.verdict == "rounded"]
    assert all("fp16" in check.reason or "F16" in check.reason for check in rounded)
    assert all(0 < (check.relative_error or 0) < 5e-4 for check in rounded)
    if name != "falcon3":  # whose scales are float32 tensors
        assert {check.name for check in rounded} > {Q, GATE, UP}


@pytest.mark.parametrize(
    ("type_name", "method", "reason"),
    [
        ("tq2_0", "mse", "quantized by mse"),
        ("tq1_0", "absmean", "quantized by absmean"),
        ("q2_k", "mse", "quantized by mse"),
        ("q8_0", "mse", "quantized by q8_0"),
        ("q6_k", "mse", "quantized by q6_k"),
        ("f16", "mse", "rounded to F16"),
    ],
)
def test_what_a_type_loses_is_explained(
    type_name: str, method: str, reason: str, model: Folder, tmp_path: Path
) -> None:
    name = "llama-biases" if type_name == "f16" else "llama-gqa"  # float32 values, so that F16 rounds
    found = verify(model(name), convert(model(name), tmp_path / "out.gguf", type_name, method, check=False).out)
    assert found.problems == []
    linear = [check for check in found.tensors if check.name in (Q, GATE, UP)]
    assert {check.reason for check in linear} == {reason}
    for check in linear:
        assert check.relative_error is not None
        bound = 2.0**-11 if type_name == "f16" else type_bound(GGMLQuantizationType[check.type])
        assert 0 < check.relative_error < bound


def test_a_gguf_source(ordinary: Path, tmp_path: Path) -> None:
    out = convert(ordinary, tmp_path / "out.gguf", "tq2_0", check=False).out
    found = verify(ordinary, out)
    assert found.problems == []
    assert verdicts(found)["token_embd.weight"] == "exact"
    assert {check.reason for check in found.tensors if check.name in (Q, GATE)} == {"quantized by mse"}


def test_a_folder_without_weights(model: Folder, ordinary: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model("llama-gqa") / "config.json").read_text())
    with pytest.raises(SourceError, match=r"holds no weights .* nothing to compare with"):
        verify(tmp_path, ordinary)


def test_a_truncated_file(model: Folder, ordinary: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(ordinary.read_bytes()[:-1000])
    with pytest.raises(SourceError, match=r"cut\.gguf: is truncated"):
        verify(model("llama-gqa"), cut)


def test_progress_and_json(model: Folder, ordinary: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    found = verify(model("llama-gqa"), ordinary, progress=lambda *step: steps.append(step))
    assert steps[-1][0] == "comparing"
    assert steps[-1][1] == steps[-1][2] == sum(t.n_bytes for t in gguf.GGUFReader(ordinary).tensors)
    assert json.loads(json.dumps(found.as_json()))["good"] is True
