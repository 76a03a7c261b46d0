"""Blocks run one by one are the model that transformers loads whole; what isn't such a model is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import checkpoints
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.open import open_model

torch = pytest.importorskip("torch", reason="needs the ptq extra")

import transformers  # noqa: E402

from tritgguf.converter.calibration.blocks import Decoder  # noqa: E402 (it imports torch)
from tritgguf.converter.calibration.moments import groups  # noqa: E402

IDS = np.arange(3 * 512, dtype=np.int64).reshape(3, 512) * 7 % 300
PROJECTIONS = [*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]


def opened(name: str, folder: Path) -> Model:
    return open_model(checkpoints.build(name, folder))


def decoder_of(model: Model) -> Decoder:
    assert model.tensors is not None
    return Decoder(model.path, model.specs, model.tensors, torch.device("cpu"))


@pytest.mark.parametrize(
    "name", ["llama-llama3-tied", "llama-biases", "mistral-window", "qwen2-tied", "qwen3", "smollm3", "phi3"]
)
def test_the_blocks_compute_what_transformers_does(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path / "model")
    decoder = decoder_of(model)
    whole = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32).eval()
    with torch.no_grad():
        stream = decoder.embedded(IDS)
        wanted = whole(torch.from_numpy(IDS), output_hidden_states=True).hidden_states
        torch.testing.assert_close(stream, wanted[0])
        for number in range(len(decoder)):
            block = decoder.block(number)
            stream = torch.cat([block(chunk[None]) for chunk in stream])
            if number + 1 < len(decoder):  # behind the last one, transformers has applied the norm already
                torch.testing.assert_close(stream, wanted[number + 1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(whole.model.norm(stream), wanted[-1], rtol=1e-4, atol=1e-4)


def test_layers_with_the_same_inputs_go_together(tmp_path: Path) -> None:
    decoder = decoder_of(opened("qwen3", tmp_path / "model"))
    with torch.no_grad():
        stream = decoder.embedded(IDS[:1])
        found = groups(decoder.block(0), stream, PROJECTIONS, ["self_attn.o_proj", "mlp.down_proj"])
    assert found is not None
    assert [group.names for group in found] == [
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ]
    assert [group.adds for group in found] == [False, True, False, True]
    assert found[3].earlier == ("self_attn.o_proj",)


@pytest.mark.parametrize(
    ("name", "class_name"),
    [("mixtral", "MixtralForCausalLM"), ("qwen3moe", "Qwen3MoeForCausalLM"), ("gemma3", "Gemma3ForCausalLM")],
)
def test_other_blocks_are_refused_by_name(name: str, class_name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"^{class_name}: --method gptq takes decoders whose blocks"):
        decoder_of(opened(name, tmp_path / "model"))


@pytest.mark.parametrize("name", ["granite", "olmo2"])
def test_a_block_that_does_more_than_add_is_seen(name: str, tmp_path: Path) -> None:
    """Granite multiplies what it adds, Olmo2 normalizes it: then the residual stream's error isn't the layer's."""
    decoder = decoder_of(opened(name, tmp_path / "model"))
    with torch.no_grad():
        stream = decoder.embedded(IDS[:1])
        assert groups(decoder.block(0), stream, PROJECTIONS, ["self_attn.o_proj", "mlp.down_proj"]) is None
