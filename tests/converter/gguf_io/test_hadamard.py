"""Weights in a Hadamard basis: undone so that the plain matrix gives what the program of such files computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import tritgguf.runtime
from tests import foreign_gguf as files
from tests import gguf_weights
from tritgguf.converter import UnsupportedError, convert, plan
from tritgguf.converter.errors import EngineError
from tritgguf.converter.gguf_io.hadamard import read_basis
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.open import open_model

BLOCK = 1024
BITS = np.arange(BLOCK)[:, None] & np.arange(BLOCK)
# By its definition, bit by bit.
H = (1 - 2 * (sum(BITS >> place & 1 for place in range(10)) % 2)) / 32
KV = BLOCK * files.KV_HEADS // files.HEADS
SHAPES = {
    "token_embd.weight": (files.VOCAB, BLOCK),
    "output.weight": (files.VOCAB, BLOCK),
    "blk.0.attn_q.weight": (BLOCK, BLOCK),
    "blk.0.attn_k.weight": (KV, BLOCK),
    "blk.0.attn_v.weight": (KV, BLOCK),
    "blk.0.attn_output.weight": (BLOCK, BLOCK),
    "blk.0.ffn_gate.weight": (BLOCK, BLOCK),
    "blk.0.ffn_up.weight": (BLOCK, BLOCK),
    "blk.0.ffn_down.weight": (BLOCK, BLOCK),
}
F32_NUMBER = 0


def signs(width: int) -> np.ndarray:
    return np.random.default_rng(width).choice([-1, 1], width)


def rotated(x: np.ndarray) -> np.ndarray:
    """Return what such a program makes of a layer's input, blockwise H · (x · s)."""
    return ((x * signs(x.shape[-1])).reshape(-1, BLOCK) @ H).reshape(x.shape)


def keys(names: list[str], widths: tuple[int, ...] = (BLOCK, 2 * BLOCK), **changes: Any) -> dict[str, Any]:
    """Return the keys of a file with those tensors in the basis; a change to None leaves a key out."""
    found = {
        "version": 1,
        "block_size": BLOCK,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit",
        "sign_widths": list(widths),
        "sign_values": [int(sign) for width in widths for sign in signs(width)],
        "weight_names": [name for name in names if name != "token_embd.weight"],
        "inverse_weight_names": [name for name in names if name == "token_embd.weight"],
        "gdn_v_grouped": True,
        **changes,
    }
    return {f"prism.hadamard.{name}": value for name, value in found.items() if value is not None}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a small llama in plain weights, and in the basis, all as float32."""
    folder = tmp_path_factory.mktemp("rotated")
    base = files.base_file(folder / "base.gguf", hidden=BLOCK, ffn=BLOCK)
    rng = np.random.default_rng(5)
    plain = {name: rng.standard_normal(shape, np.float32) / 32 for name, shape in SHAPES.items()}
    # W' · rotated(x) = W · x, and the embedding s · (H · row') = row.
    turned = {name: rotated(weights).astype(np.float32) for name, weights in plain.items()}
    stored = [
        {name: (values.shape, F32_NUMBER, values.tobytes()) for name, values in weights.items()}
        for weights in (plain, turned)
    ]
    return (
        files.add_tensors(base, folder / "plain.gguf", stored[0]),
        files.add_tensors(base, folder / "rotated.gguf", stored[1], keys=keys(list(SHAPES))),
    )


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a file with nothing but keys and norms, to add tensors and keys to."""
    return files.base_file(tmp_path / "base.gguf", "qwen35", hidden=BLOCK)


def logits(path: Path) -> np.ndarray:
    with tritgguf.runtime.open(path, n_ctx=16) as session:
        return session.logits([number * 7 % files.VOCAB for number in range(16)])


@pytest.mark.parametrize(("type_name", "tolerance"), [("f32", 1e-5), ("f16", 2e-3), ("q8_0", 3e-2)])
def test_the_logits_are_those_of_the_plain_weights(
    type_name: str, tolerance: float, model: tuple[Path, Path], tmp_path: Path
) -> None:
    plain, turned = model
    embedding = {"embedding_type": "f32", "output_type": "f32"} if type_name == "f32" else {}
    result = convert(turned, tmp_path / "out.gguf", type=type_name, check=False, **embedding)
    out = result.out
    assert {tensor.exact for tensor in result.plan.tensors if tensor.spec.name in SHAPES} == {type_name == "f32"}
    assert not any("hadamard" in key for key in gguf.GGUFReader(out).fields)
    expected = logits(plain)
    assert np.linalg.norm(logits(out) - expected) / np.linalg.norm(expected) < tolerance
    bare = files.add_tensors(turned, tmp_path / "bare.gguf", {}, without=list(keys([])))
    assert np.linalg.norm(logits(bare) - expected) / np.linalg.norm(expected) > 0.5


@pytest.mark.parametrize("name", ["PTQ1_0", "PQ2_0"])
def test_the_plain_matrix_gives_what_the_program_computes(name: str, small: Path, tmp_path: Path) -> None:
    """Codes of ±1 and scales of fp16: the sums are exact, so the result is the nearest float32."""
    kind, shape = files.KINDS[name], (12, 2 * BLOCK)
    codes, scales = files.coded(kind, shape, 0)
    tensors = {"blk.0.ffn_down.weight": kind.tensor(codes, scales)}
    source = files.add_tensors(small, tmp_path / "in.gguf", tensors, keys=keys(list(tensors)))
    out = convert(source, tmp_path / "out.gguf", type="f32", check=False).out
    (found,) = (gguf_weights.dequantized(t) for t in gguf.GGUFReader(out).tensors if t.name in tensors)
    stored = files.weights(codes, scales).astype(np.float64)
    expected = ((stored.reshape(12, 2, BLOCK) @ H).reshape(shape) * signs(shape[1])).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    x = np.random.default_rng(1).standard_normal(shape[1])
    np.testing.assert_allclose(found @ x, stored @ rotated(x), rtol=1e-5, atol=1e-5)


def test_the_columns_of_ssm_out_are_put_back(small: Path, tmp_path: Path) -> None:
    """The program moves element d + hd (k + nk r) to d + hd (r + rep k) before it rotates."""
    n_keys, rep, size = 4, 4, 128
    width = n_keys * rep * size
    weights = np.random.default_rng(2).standard_normal((8, width)).astype(np.float32)
    tensors = {
        "blk.0.ssm_out.weight": (weights.shape, F32_NUMBER, weights.tobytes()),
        "blk.0.ffn_down.weight": (weights.shape, F32_NUMBER, weights.tobytes()),
    }
    heads = {"qwen35.ssm.group_count": n_keys, "qwen35.ssm.time_step_rank": n_keys * rep}
    source = files.add_tensors(small, tmp_path / "in.gguf", tensors, keys=keys(list(tensors)) | heads)
    x = np.random.default_rng(1).standard_normal(width)
    moved = np.empty_like(x)
    for k in range(n_keys):
        for r in range(rep):
            for d in range(size):
                moved[d + size * (r + rep * k)] = x[d + size * (k + n_keys * r)]
    opened = open_model(source).tensors
    assert opened is not None
    for name, entered in (("ssm_out", moved), ("ffn_down", x)):
        found = opened[f"blk.0.{name}.weight"].read(slice(None))
        np.testing.assert_allclose(found @ x, weights @ rotated(entered), rtol=1e-5, atol=1e-4)
    plain = files.add_tensors(
        small, tmp_path / "in.gguf", tensors, keys=keys(list(tensors), gdn_v_grouped=False) | heads
    )
    found = read_basis("in.gguf", (file := read_gguf(plain)).metadata, file.tensors)
    assert found is not None
    np.testing.assert_allclose(
        found.undone(file.tensors)["blk.0.ssm_out.weight"].read(slice(None)) @ x,
        weights @ rotated(x),
        rtol=1e-5,
        atol=1e-4,
    )


def test_without_signs(small: Path, tmp_path: Path) -> None:
    weights = np.random.default_rng(2).standard_normal((8, BLOCK)).astype(np.float32)
    name = "blk.0.attn_q.weight"
    said = keys([name], sign_mode="identity", sign_widths=None, sign_values=None)
    source = files.add_tensors(
        small, tmp_path / "in.gguf", {name: (weights.shape, F32_NUMBER, weights.tobytes())}, keys=said
    )
    opened = open_model(source).tensors
    assert opened is not None
    np.testing.assert_allclose(opened[name].read(slice(2, 5)), weights[2:5] @ H, rtol=1e-4, atol=1e-5)


def test_a_tied_output_is_version_2(tmp_path: Path) -> None:
    names = [name for name in SHAPES if name != "output.weight"]
    plain_embedding = [name for name in names if name != "token_embd.weight"]
    tensors = {name: (shape, F32_NUMBER, bytes(4 * shape[0] * shape[1])) for name, shape in SHAPES.items()}
    del tensors["output.weight"]
    base = files.base_file(tmp_path / "base.gguf", hidden=BLOCK, ffn=BLOCK)
    for version, tied, rotated_names, sound in (
        (2, True, names, True),
        (1, True, names, False),
        (2, False, names, False),
        (1, None, names, False),  # a rotated embedding as the output of a graph that doesn't rotate its input
        (1, None, plain_embedding, True),
        (2, True, plain_embedding, False),
    ):
        said = keys(rotated_names, version=version, tied_output=tied)
        if rotated_names is plain_embedding:
            del said["prism.hadamard.inverse_weight_names"]
        source = files.add_tensors(base, tmp_path / "in.gguf", tensors, keys=said)
        if sound:
            open_model(source)
        else:
            with pytest.raises(UnsupportedError, match=r"prism\.hadamard\.version is"):
                open_model(source)


@pytest.mark.parametrize("type_name", ["auto", "tq2_0", "q2_0", "q4_0", "q4_k", "q6_k"])
def test_other_types_are_refused_by_name(type_name: str, model: tuple[Path, Path]) -> None:
    with pytest.raises(UnsupportedError) as refused:
        plan(model[1], type=type_name)
    message = str(refused.value)
    assert "Hadamard basis (prism.hadamard.* keys)" in message
    assert "--type f16, --type bf16, --type f32, --type q8_0" in message
    assert "\n" not in message


NAME = "blk.0.attn_q.weight"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another version": ({"version": 3}, "prism.hadamard.version is 3"),
    "no version": ({"version": None}, "prism.hadamard.version is missing"),
    "another block": ({"block_size": 512}, "prism.hadamard.block_size is 512"),
    "another transform": ({"transform": "sylvester"}, "prism.hadamard.transform is 'sylvester'"),
    "another axis": ({"axis": "output"}, "prism.hadamard.axis is 'output'"),
    "no axis": ({"axis": None}, "prism.hadamard.axis is missing"),
    "another sign mode": ({"sign_mode": "random"}, "prism.hadamard.sign_mode is 'random'"),
    "signs of no mode": ({"sign_mode": "identity"}, "sign_mode is identity"),
    "a missing width": ({"sign_widths": [2 * BLOCK], "sign_values": [1] * 2 * BLOCK}, "has no width 1024"),
    "an odd width": ({"sign_widths": [1000], "sign_values": [1] * 1000}, "prism.hadamard.sign_widths"),
    "a width twice": ({"sign_widths": [BLOCK, BLOCK], "sign_values": [1] * 2 * BLOCK}, "prism.hadamard.sign_widths"),
    "too few signs": ({"sign_values": [1, -1]}, "prism.hadamard.sign_values has 2 values"),
    "another sign": ({"sign_values": [2] * 3 * BLOCK}, "prism.hadamard.sign_values"),
    "no names": ({"weight_names": None}, "prism.hadamard.weight_names is missing"),
    "an unknown tensor": ({"weight_names": ["blk.7.attn_q.weight"]}, "has blk.7.attn_q.weight"),
    "a name twice": ({"weight_names": [NAME, NAME]}, "prism.hadamard.weight_names"),
    "numbers as names": ({"weight_names": [1, 2]}, "prism.hadamard.weight_names"),
    "another lookup": ({"inverse_weight_names": [NAME]}, "prism.hadamard.inverse_weight_names"),
    "a norm": ({"weight_names": ["output_norm.weight"]}, "output_norm.weight of shape"),
    "an unknown key": ({"rounds": 2}, "prism.hadamard.rounds is unknown"),
    "a text for a number": ({"version": "1"}, "prism.hadamard.version is '1'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_keys_may_not_say(what: str, small: Path, tmp_path: Path) -> None:
    changes, words = REFUSED[what]
    tensors = {NAME: ((8, BLOCK), F32_NUMBER, bytes(4 * 8 * BLOCK))}
    source = files.add_tensors(small, tmp_path / "in.gguf", tensors, keys=keys([NAME], **copy.deepcopy(changes)))
    with pytest.raises(UnsupportedError) as refused:
        plan(source, type="f16")
    assert words in str(refused.value), refused.value
    assert str(refused.value).startswith("in.gguf")
    assert "\n" not in str(refused.value)


def test_grouped_heads_must_be_told(small: Path, tmp_path: Path) -> None:
    name = "blk.0.ssm_out.weight"
    tensors = {
        name: ((8, BLOCK), F32_NUMBER, bytes(4 * 8 * BLOCK)),
        NAME: ((8, BLOCK), F32_NUMBER, bytes(4 * 8 * BLOCK)),
    }
    for said, heads, words in (
        ({"gdn_v_grouped": None}, {}, "gdn_v_grouped is missing"),
        ({}, {}, "qwen35.ssm.time_step_rank is 0"),
        ({}, {"qwen35.ssm.group_count": 3, "qwen35.ssm.time_step_rank": 8}, "expected heads that divide 1024"),
    ):
        source = files.add_tensors(small, tmp_path / "in.gguf", tensors, keys=keys([name], **said) | heads)
        with pytest.raises(UnsupportedError, match=words):
            plan(source, type="f16")


def test_another_program_s_key_is_refused(small: Path, tmp_path: Path) -> None:
    tensors = {NAME: ((8, BLOCK), F32_NUMBER, bytes(4 * 8 * BLOCK))}
    source = files.add_tensors(small, tmp_path / "in.gguf", tensors, keys={"onebit.hadamard_q4_0": True})
    with pytest.raises(UnsupportedError, match=r"in\.gguf has the key onebit\.hadamard_q4_0"):
        plan(source, type="f16")


def test_the_runtime_does_not_run_such_a_file(model: tuple[Path, Path]) -> None:
    with pytest.raises(EngineError, match=r"rotated\.gguf has prism\.hadamard\.version: .* --type f16"):
        tritgguf.runtime.open(model[1])


@pytest.mark.parametrize("key", ["prism.hadamard.weight_names", "onebit.hadamard_q4_0"])
def test_any_such_key_stops_the_runtime(key: str, model: tuple[Path, Path], tmp_path: Path) -> None:
    source = files.add_tensors(model[0], tmp_path / "in.gguf", {}, keys={key: [NAME]})
    with pytest.raises(EngineError, match="Hadamard basis"):
        tritgguf.runtime.open(source)
