"""Which ranges of Ollama versions load a file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests import paths
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.model.architecture import architectures
from tritgguf.converter.ollama.versions import (
    ARCHITECTURES,
    ERAS,
    SCALES,
    TYPES,
    parsed,
    refused_types,
    verdict_for,
    verdicts,
    verdicts_on,
)

DOCS = paths.DOCS / "ollama.md"
Q = GGMLQuantizationType


@pytest.fixture
def make(tmp_path: Path):
    def write(*types: GGMLQuantizationType, architecture: str = "llama") -> GgufFile:
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", architecture)
        for number, kind in enumerate(types):
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            writer.add_tensor(f"t{number}", np.zeros((8, block_bytes * (256 // block)), np.uint8), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return read_gguf(tmp_path / "x.gguf")

    return write


@pytest.mark.parametrize(
    ("types", "loads"),
    [
        ((Q.F32, Q.F16, Q.Q2_K), (True, True, True, True)),
        ((Q.Q4_0, Q.Q6_K, Q.Q8_0, Q.BF16, Q.IQ4_XS), (True, True, True, True)),
        ((Q.F32, Q.TQ2_0), (None, True, True, False)),
        ((Q.F32, Q.TQ1_0), (None, True, True, False)),
        ((Q(42),), (None, None, None, False)),
        ((Q.MXFP4,), (None, None, None, True)),
        ((Q.TQ2_0, Q(42)), (None, None, None, False)),
    ],
)
def test_types(types: tuple[Q, ...], loads: tuple[bool | None, ...], make) -> None:
    assert tuple(verdict.loads for verdict in verdicts(make(*types))) == loads


def test_a_verdict_names_what_is_refused(make) -> None:
    verdict = verdicts(make(Q.F32, Q.TQ2_0))[-1]
    assert verdict.reasons == ("refuses TQ2_0 tensors such as t1",)
    assert verdicts(make(Q.TQ1_0))[0].reasons == ("not tested with TQ1_0 tensors such as t0",)


@pytest.mark.parametrize(
    ("architecture", "loads"),
    [
        ("llama", (False, False, True, True)),
        ("qwen3", (False, False, True, True)),
        ("bitnet", (None, True, True, True)),
        ("gemma3", (False, False, None, None)),
    ],
)
def test_scales_in_tensors_of_their_own(architecture: str, loads: tuple[bool | None, ...]) -> None:
    """Older versions of llama.cpp refused such a file; Ollama's own engine computed without the scales."""
    types = {"blk.0.attn_q.weight": "Q2_K", "blk.0.attn_q.scale": "F32", "blk.0.attn_norm.weight": "F32"}
    found = verdicts_on(architecture, types)
    assert tuple(verdict.loads for verdict in found) == loads
    if architecture == "llama":
        (reason,) = found[0].reasons
        assert reason == "refuses or ignores the scales in tensors such as blk.0.attn_q.scale"
    without = {name: kind for name, kind in types.items() if not name.endswith(".scale")}
    assert verdicts_on("llama", without | {"blk.0.ffn_gate_inp.scale": "F32"})[0].loads is True


@pytest.mark.parametrize(
    ("architecture", "loads"),
    [
        ("llama", (True, True, True, True)),
        ("qwen3", (None, True, True, True)),
        ("gemma3", (None, None, None, True)),
        ("bitnet-b1.58", (False, False, False, False)),
        ("maple", (False, False, False, None)),
        ("nonsense", (False, False, False, False)),
    ],
)
def test_architectures(architecture: str, loads: tuple[bool | None, ...], make) -> None:
    assert tuple(verdict.loads for verdict in verdicts(make(Q.F32, architecture=architecture))) == loads


@pytest.mark.parametrize(
    ("version", "era"),
    [
        ("0.5.7", "before 0.7.1"),
        ("0.7.0", "before 0.7.1"),
        ("0.7.1", "0.7.1 to 0.29"),
        ("0.24.0", "0.7.1 to 0.29"),
        ("0.30.0-rc1", "0.30.0 to 0.31.1"),
        ("0.31.1", "0.30.0 to 0.31.1"),
        ("0.31.2", "0.31.2 and newer"),
        ("0.34", "0.31.2 and newer"),
        ("1.0.0", "0.31.2 and newer"),
        ("0.0.0", "0.31.2 and newer"),  # a build from source
    ],
)
def test_the_era_of_a_version(version: str, era: str, make) -> None:
    assert verdict_for(verdicts(make(Q.F32)), version).era.name == era


def test_versions_as_ollama_writes_them() -> None:
    assert parsed("0.12.3-rc1") == parsed("v0.12.3") == (0, 12, 3)
    assert parsed("something") > parsed("0.99.0")


def test_the_tables_fit_the_eras() -> None:
    assert all(len(row) == len(ERAS) for row in (*TYPES.values(), *ARCHITECTURES.values(), *SCALES.values()))
    assert set(SCALES) == {known.name for known in architectures() if known.honours_scales and not known.own_name}
    assert all(verdicts_on(known.name, {})[-1].loads is not False for known in architectures() if not known.own_name)
    assert [era.first for era in ERAS] == sorted(era.first for era in ERAS)
    assert refused_types(gguf.GGMLQuantizationType.__members__) == ["Q2_0", "TQ1_0", "TQ2_0"]


def test_the_table_in_the_docs_says_what_the_code_does() -> None:
    words = {True: "yes", False: "**no**", None: "not tested"}
    text = DOCS.read_text(encoding="utf-8")
    assert f"| | {' | '.join(era.name for era in ERAS)} |" in text
    for name, row in TYPES.items():
        assert f"| {name} | {' | '.join(words[taken] for taken in row)} |" in text
    for name, row in (
        ("scales in tensors of their own, `bitnet`", "bitnet"),
        ("the same, `llama` and `qwen3`", "llama"),
    ):
        assert f"| {name} | {' | '.join(words[taken] for taken in SCALES[row])} |" in text
    assert SCALES["llama"] == SCALES["qwen3"]
