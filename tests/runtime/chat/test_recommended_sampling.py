"""The sampling that a file recommends: what `tritgguf ollama` writes into a Modelfile."""

from __future__ import annotations

import pytest

from tests import gguf_edit
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.ollama.modelfile import sampling_parameters
from tritgguf.runtime.chat.recommended_sampling import complete_sampling
from tritgguf.runtime.engine.backend import Model

KEYS = {
    "general.sampling.temp": 0.6,
    "general.sampling.top_k": 20,
    "general.sampling.top_p": 0.95,
    "general.sampling.min_p": 0.0,
    "general.sampling.penalty_repeat": 1.05,
}
RECOMMENDED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "repeat_penalty": 1.05}


def test_the_file_completes_what_is_asked(random_model, tmp_path):
    path = gguf_edit.rewrite(random_model, tmp_path / "m.gguf", keys=KEYS)
    with Model(path, vocab_only=True) as model:
        assert complete_sampling(model, {}) == RECOMMENDED
        assert complete_sampling(model, {"seed": 1, "top_k": 5}) == RECOMMENDED | {"seed": 1, "top_k": 5}
    assert sampling_parameters(read_gguf(path)) == RECOMMENDED


def test_a_file_that_recommends_nothing(random_model):
    with Model(random_model, vocab_only=True) as model:
        assert complete_sampling(model, {"min_p": 0.1}) == {"min_p": 0.1}


@pytest.mark.parametrize(("stored", "meant"), [(-1, 0), (0, 0), (40, 40)])
def test_top_k_below_zero_is_off_as_in_llama_cpp(random_model, tmp_path, stored, meant):
    path = gguf_edit.rewrite(random_model, tmp_path / "m.gguf", keys={"general.sampling.top_k": stored})
    with Model(path, vocab_only=True) as model:
        assert complete_sampling(model, {}) == {"top_k": meant}
