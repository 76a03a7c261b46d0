"""Plans: sizes to the byte, types and reasons, with and without weights."""

import json
from pathlib import Path

import pytest
from gguf import GGUFReader

from tests.checkpoints import build
from tritgguf.converter import convert, plan
from tritgguf.runtime.cli import main as cli

QWEN_14B = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 13824,
    "max_position_embeddings": 32768, "max_window_layers": 70, "model_type": "qwen2", "num_attention_heads": 40,
    "num_hidden_layers": 48, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip


def config_only(folder: Path, config: dict) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_14b_model_is_planned_from_config_json_alone(tmp_path: Path, capsys, monkeypatch) -> None:
    folder = config_only(tmp_path / "Qwen2.5-Coder-14B-Instruct", QWEN_14B)
    monkeypatch.setattr("sys.argv", ["tritgguf", "convert", str(folder), "--type", "tq2_0", "--dry-run"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "6.52 GB" in capsys.readouterr().out


def test_the_plan_as_json(tmp_path: Path, capsys, monkeypatch) -> None:
    folder = config_only(tmp_path / "model", QWEN_14B)
    monkeypatch.setattr("sys.argv", ["tritgguf", "convert", str(folder), "--type", "tq2_0", "--dry-run", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    planned = json.loads(capsys.readouterr().out)
    tensors = {tensor["name"]: tensor for tensor in planned["tensors"]}
    assert len(tensors) == 2 + 1 + 48 * 12
    linear = 48 * (5120 * 5120 * 2 + 1024 * 5120 * 2 + 3 * 5120 * 13824) // 256 * 66
    floats = 2 * 152064 * 5120 * 2 + 4 * (48 * (2 * 5120 + 5120 + 2 * 1024) + 5120)
    assert sum(tensor["bytes"] for tensor in tensors.values()) == linear + floats
    assert 0 < planned["file_bytes"] - linear - floats < 100_000
    down = tensors["blk.47.ffn_down.weight"]
    assert down["type"] == "tq2_0"
    assert down["shape"] == [5120, 13824]
    assert down["exact"] is None
    assert tensors["token_embd.weight"]["type"] == tensors["output.weight"]["type"] == "f16"
    assert tensors["blk.0.attn_q.bias"]["type"] == "f32"
    assert all(tensor["reason"] for tensor in tensors.values())


@pytest.mark.parametrize("recipe", ["llama-gqa", "llama-tied", "qwen2", "qwen3", "llama-llama3", "llama1"])
@pytest.mark.parametrize("type_name", ["tq2_0", "tq1_0", "f16"])
def test_the_file_is_what_was_planned(recipe: str, type_name: str, tmp_path: Path) -> None:
    model = build(recipe, tmp_path / "model")
    planned = plan(model, type=type_name)
    assert list(tmp_path.iterdir()) == [model]
    out = convert(model, tmp_path / "out.gguf", type=type_name, check=False).out
    assert out.stat().st_size == planned.file_bytes
    read = GGUFReader(out)
    found = [(t.name, t.tensor_type.name.lower(), [int(n) for n in reversed(t.shape)], t.n_bytes) for t in read.tensors]
    assert found == [(t["name"], t["type"], t["shape"], t["bytes"]) for t in planned.as_json()["tensors"]]
    assert [t.data_offset for t in read.tensors] == list(planned.parts[0].offsets[:-1])


def test_exactness_is_read_from_the_weights(tmp_path: Path) -> None:
    ternary = plan(build("llama-tied", tmp_path / "ternary"), "tq2_0")
    linear = [tensor for tensor in ternary.tensors if tensor.spec.role == "linear"]
    assert all(tensor.exact and "on a ternary grid per row" in tensor.reason for tensor in linear)
    assert not any("weren't trained ternary" in note for note in ternary.notes)
    ordinary = plan(build("llama-gqa", tmp_path / "ordinary"), "tq2_0", "absmean")
    linear = [tensor for tensor in ordinary.tensors if tensor.spec.role == "linear"]
    assert all(tensor.exact is False and "absmean" in tensor.reason for tensor in linear)
    assert any("weren't trained ternary" in note for note in ordinary.notes)


def test_the_fallback_stores_what_does_not_fit(tmp_path: Path) -> None:
    model = build("llama-hidden-192", tmp_path / "model")
    planned = plan(model, "tq2_0", fallback="f16")
    kinds = {tensor.spec.shape[-1]: tensor.codec.name for tensor in planned.tensors if tensor.spec.role == "linear"}
    assert kinds[192] == "f16"
    assert set(kinds.values()) <= {"f16", "tq2_0"}
    assert any("stored as f16" in note for note in planned.notes)


def test_a_sliding_window_caps_the_context(tmp_path: Path) -> None:
    model = build("mistral-window", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "sliding_window": 512, "max_position_embeddings": 2048}))
    result = convert(model, tmp_path / "out.gguf", type="f16")
    fields = GGUFReader(result.out).fields
    assert fields["llama.context_length"].contents() == 512
    assert fields["llama.attention.sliding_window"].contents() == 512
    assert any("context length 512 instead of 2048" in note for note in result.plan.notes)
