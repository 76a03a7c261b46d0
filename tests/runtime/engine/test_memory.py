"""The memory guard. Oracle: what llama.cpp logs of the cache that it sets up."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tritgguf.runtime
from tests import gguf_edit
from tests.runtime.conftest import random_tensors
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine import backend
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context
from tritgguf.runtime.engine.gguf_header import Header, read_header
from tritgguf.runtime.engine.memory import available_memory, cache_bytes
from tritgguf.runtime.engine.placement import Placement

HEAD, N_EMBD, N_CTX = 32, 288, 512


def write(make_model, folder, architecture, *, kv_heads=(2, 2)):
    """A model with heads smaller than embedding / heads: 4 of 32 in an embedding of 288."""
    tensors = random_tensors(seed=3)
    for layer, n_kv_heads in enumerate(kv_heads):
        for name, n_heads in {"q": 4, "k": n_kv_heads, "v": n_kv_heads}.items():
            tensors[f"blk.{layer}.attn_{name}.weight"] = np.ones((n_heads * HEAD, N_EMBD), np.float32)
        tensors[f"blk.{layer}.attn_output.weight"] = np.ones((N_EMBD, 4 * HEAD), np.float32)
    keys = {f"{architecture}__attention__{kind}_length": HEAD for kind in ("key", "value")}
    return make_model(folder / "heads.gguf", tensors, architecture=architecture, **keys)


@pytest.fixture(scope="module")
def small_heads(make_model, tmp_path_factory):
    return write(make_model, tmp_path_factory.mktemp("heads"), "llama")


@pytest.fixture(scope="module")
def heads_by_layer(make_model, tmp_path_factory):
    """Layers with 2 and 1 heads of keys and values, as a list in the file."""
    folder, key = tmp_path_factory.mktemp("layers"), "deci.attention.head_count_kv"
    whole = write(make_model, folder, "deci", kv_heads=(2, 1))
    without = gguf_edit.rewrite(whole, folder / "without.gguf", keys={key: None})
    return gguf_edit.rewrite(without, folder / "layers.gguf", keys={key: [2, 1]})


def logged_bytes(path, monkeypatch, capsys, **options):
    with Model(path, placement=Placement(0)) as model:
        monkeypatch.setattr(backend._log, "to_stderr", True)
        Context(model, n_ctx=N_CTX, n_threads=1, n_batch=64, **options).close()
        monkeypatch.setattr(backend._log, "to_stderr", False)
    found = re.search(r"llama_kv_cache: size = +([\d.]+) MiB", capsys.readouterr().err)
    return float(found[1]) * 2**20


@pytest.mark.parametrize("kind", ["random_model", "small_heads", "heads_by_layer"])
def test_the_cache_is_as_large_as_llama_cpp_makes_it(kind, request, monkeypatch, capsys):
    path = request.getfixturevalue(kind)
    # Without flash attention llama.cpp gives the values of every layer as much room as the largest needs.
    attentions = [(2, {})] if kind == "heads_by_layer" else [(2, {}), (4, {"f32_attention": True})]
    for value_bytes, options in attentions:
        expected = logged_bytes(path, monkeypatch, capsys, **options)
        found = cache_bytes(read_header(path), N_CTX, value_bytes=value_bytes)
        assert found == pytest.approx(expected, abs=2**20 / 100)  # the log has two decimals


def test_latent_attention_stores_no_values():
    """DeepSeek V3's: keys of 576 numbers in one head, from which the values are computed."""
    keys = {"block_count": 61, "embedding_length": 7168, "attention.head_count": 128, "attention.head_count_kv": 1}
    keys |= {"attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192}
    values = {"general.architecture": "deepseek2", **{f"deepseek2.{name}": number for name, number in keys.items()}}
    assert cache_bytes(Header(3, values, [], 0), 1000, value_bytes=2) == 1000 * 61 * 576 * 2


def test_weights_and_cache_must_fit_together(small_heads, monkeypatch):
    cache = cache_bytes(read_header(small_heads), N_CTX, value_bytes=2)
    with Model(small_heads, placement=Placement(0)) as model:
        weights = backend.native.llama_model_size(model.handle)
    for free, complaint in (
        (weights + cache, None),
        (weights + cache - 1, f"a context of {N_CTX} tokens needs .* ask for a smaller context"),
        (weights - 1, "the weights need .* convert the model to a smaller type"),
    ):
        monkeypatch.setattr(backend, "available_memory", lambda free=free: free)
        if complaint is None:
            tritgguf.runtime.open(small_heads, n_ctx=N_CTX, n_threads=1, n_gpu_layers=0).close()
        else:
            with pytest.raises(EngineError, match=complaint) as caught:
                tritgguf.runtime.open(small_heads, n_ctx=N_CTX, n_threads=1, n_gpu_layers=0)
            assert str(caught.value).startswith(f"{small_heads}: ")


def test_weights_that_were_copied_while_loading_count_once(small_heads, monkeypatch):
    with Model(small_heads, placement=Placement(0)) as model:
        weights = backend.native.llama_model_size(model.handle)
    free = iter([2 * weights, weights, weights])  # before loading; then they are gone
    monkeypatch.setattr(backend, "available_memory", lambda: next(free))
    tritgguf.runtime.open(small_heads, n_ctx=64, n_threads=1, n_gpu_layers=0).close()


def test_what_this_machine_has():
    available = available_memory()
    assert available is None or available > 2**20
