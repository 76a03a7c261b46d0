"""Perplexity and KL divergence: the same as transformers' and llama-perplexity's."""

from __future__ import annotations

import importlib.util
import json
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests import evaluated_models, evaluation_oracle, gguf_weights
from tests.ctrl_c import ctrl_c_in_callback
from tests.gguf_edit import rewrite
from tests.llama_perplexity import FIGURES, tolerance
from tests.paths import ROOT
from tests.real_models import real_model
from tritgguf.converter import EngineError, OutputError, convert, form_named, quantize
from tritgguf.runtime.engine.context import Context
from tritgguf.runtime.measure import chunks
from tritgguf.runtime.measure.base_logits import decode, read_base
from tritgguf.runtime.measure.evaluation import evaluate

GOLDEN = ROOT / "tests" / "golden"
TEXT = evaluated_models.TEXT


@pytest.fixture(scope="module")
def evaluation(base: Path, noisy: Path, tmp_path_factory: pytest.TempPathFactory):
    """The noisy file against the base, whose log-probabilities are written to base.kld beside them."""
    golden = json.loads((GOLDEN / "evaluation.json").read_text())
    base_logits = tmp_path_factory.mktemp("written") / "base.kld"
    found = evaluate(
        [noisy, base], text=TEXT, against=base, base_logits=base_logits, n_ctx=golden["ctx"], n_chunks=golden["chunks"]
    )
    return found, base_logits


def test_the_figures_are_those_of_transformers(evaluation) -> None:
    found, _ = evaluation
    golden = json.loads((GOLDEN / "evaluation.json").read_text())
    assert found.base is not None
    for ours, theirs in ((found.base.as_json(), golden["base"]), (found.files[0].as_json(), golden["noisy"])):
        assert ours["scored_tokens"] == golden["chunks"] * (golden["ctx"] // 2 - 1)
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_the_figures_are_those_of_llama_perplexity(evaluation) -> None:
    """To the last printed digit, but for the rounding of other processors' kernels."""
    found, _ = evaluation
    golden = json.loads((GOLDEN / "llama_perplexity.json").read_text())
    assert found.base is not None
    for ours, printed in ((found.base.as_json(), golden["base"]), (found.files[0].as_json(), golden["noisy"])):
        assert len(printed) >= 2
        for name, digits in printed.items():
            value = ours[FIGURES[name].key] * FIGURES[name].factor
            assert value == pytest.approx(float(digits), rel=1e-4, abs=2 * tolerance(digits)), name


def test_a_file_is_the_same_as_itself(evaluation) -> None:
    found, _ = evaluation
    same = found.files[1].figures
    assert same.divergence is not None
    assert same.divergence.same_top1 == 1.0
    assert abs(same.divergence.kld_mean) < 1e-6  # the file format rounds log-probabilities
    assert same.ppl == pytest.approx(found.base.figures.ppl, rel=1e-6)  # summed in float32 against a base


def test_its_own_file_of_log_probabilities_gives_the_same(evaluation, noisy: Path) -> None:
    found, base_logits = evaluation
    for text in (None, TEXT):
        again = evaluate([noisy], base_logits=base_logits, text=text)
        assert again.as_json()["files"] == found.as_json()["files"][:1]
    one_chunk = evaluate([noisy], base_logits=base_logits, n_chunks=1)
    assert one_chunk.files[0].n_chunks == 1


def test_the_file_that_llama_perplexity_wrote(base: Path, tmp_path: Path) -> None:
    """Its header and tokens are ours, byte for byte; its log-probabilities but for kernels' rounding."""
    theirs, ours = tmp_path / "theirs.kld", tmp_path / "ours.kld"
    theirs.write_bytes(lzma.decompress((GOLDEN / "llama_perplexity.kld.xz").read_bytes()))
    read = read_base(theirs)
    n_chunks, n_ctx = read.chunks.ids.shape
    evaluate([], against=base, base_logits=ours, text=TEXT, n_ctx=n_ctx, n_chunks=n_chunks)
    head = 20 + 4 * n_chunks * n_ctx
    assert ours.stat().st_size == theirs.stat().st_size
    assert ours.read_bytes()[:head] == theirs.read_bytes()[:head]
    for chunk in range(n_chunks):
        codes = [one.rows(chunk) for one in (read, read_base(ours))]
        np.testing.assert_allclose(*(decode(rows, read.n_vocab) for rows in codes), atol=2e-3, rtol=0)
    same = evaluate([base], base_logits=theirs).files[0].figures.divergence
    assert same is not None
    assert same.kld_mean < 1e-4


def test_files_alone_have_a_perplexity_only(base: Path, noisy: Path) -> None:
    found = evaluate([base, noisy], text=TEXT, n_ctx=64, n_chunks=2).as_json()
    assert found["base"] is None
    for file, path in zip(found["files"], (base, noisy), strict=True):
        assert file["path"] == str(path)
        assert file["file_bytes"] == path.stat().st_size
        assert file["ppl"] > 1
        assert file["kld_mean"] is None
    assert found["files"][0]["linear_bits_per_weight"] == 32


def test_bits_per_weight(tmp_path: Path) -> None:
    file = convert(evaluated_models.MODEL, tmp_path / "demo.gguf", type="tq2_0", check=False).out
    found = evaluate([file], text=TEXT, n_ctx=16, n_chunks=1).as_json()["files"][0]
    tensors = gguf.GGUFReader(file).tensors
    assert found["linear_bits_per_weight"] == pytest.approx(8 * 66 / 256, rel=1e-3)  # and a scale per tensor
    n_values = sum(int(tensor.n_elements) for tensor in tensors)
    assert found["bits_per_weight"] == pytest.approx(8 * file.stat().st_size / n_values)


@pytest.mark.parametrize(("n_ctx", "max_rows"), [(64, 8), (64, 32), (37, 5)])
def test_blocks_of_logits_change_nothing(n_ctx: int, max_rows: int, base: Path, monkeypatch) -> None:
    whole = evaluate([base], text=TEXT, n_ctx=n_ctx, n_chunks=2)
    monkeypatch.setattr("tritgguf.runtime.measure.network.MAX_ROWS", max_rows)
    monkeypatch.setattr("tritgguf.runtime.measure.network.BATCH_TOKENS", 3 * max_rows)
    monkeypatch.setattr("tritgguf.runtime.measure.evaluation.BLOCK_VALUES", 4096 * 3)
    blocks = evaluate([base], text=TEXT, n_ctx=n_ctx, n_chunks=2)
    assert blocks.files[0].figures.n_scored == 2 * (n_ctx - 1 - n_ctx // 2)
    assert blocks.files[0].figures.ppl == pytest.approx(whole.files[0].figures.ppl, rel=1e-4)


def test_the_first_token_is_bos_where_the_model_wants_it(make_model: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hello world, what is that you say? " * 8)
    with_bos = make_model(tmp_path / "bos.gguf", add_bos=True)
    found = evaluate([with_bos], text=text, n_ctx=16, n_chunks=2).files[0].figures
    expected = []
    from tritgguf import runtime

    with runtime.open(with_bos) as session:
        ids = evaluation_oracle.chunks(session.tokenize(text.read_text()), 16, 2)
        assert ids[0, 0] == session.model.vocab.bos != ids[1, 0]
        expected = np.stack([session.logits([session.model.vocab.bos, *chunk[1:].tolist()]) for chunk in ids])
    assert found.ppl == pytest.approx(evaluation_oracle.figures(ids, expected)["ppl"], rel=1e-3)


def test_the_default_text_is_a_text_with_a_licence() -> None:
    text = chunks.read_text(None)
    assert 60_000 < len(text.encode()) < 100_000
    licence = chunks.DEFAULT_TEXT.with_name("default_text_licence.md").read_text()
    assert "public domain" in licence


# --- what can't be evaluated ------------------------------------------------------------------------------------------


def test_a_text_shorter_than_a_chunk(base: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Who are you?")
    with pytest.raises(
        EngineError, match=r"short.txt: has \d+ tokens in the vocabulary of .*, one chunk needs 512; give a"
    ):
        evaluate([base], text=short)


def test_texts_that_cannot_be_read(base: Path, tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(EngineError, match=r"latin1.txt: isn't UTF-8 text \(byte 0: "):
        evaluate([base], text=tmp_path / "latin1.txt")
    with pytest.raises(EngineError, match=r"nothing.txt: can't be read \(No such file"):
        evaluate([base], text=tmp_path / "nothing.txt")


def test_a_chunk_longer_than_the_context(base: Path) -> None:
    with pytest.raises(EngineError, match=r"was trained for a context of 512 tokens, chunks have 600; give --ctx 512"):
        evaluate([base], text=TEXT, n_ctx=600)


def test_another_vocabulary(base: Path, random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"base.gguf: has a vocabulary of 4096 tokens, .*random.gguf one of 288: only"
    ):
        evaluate([base], against=random_model, text=TEXT)
    tokens = gguf.GGUFReader(base).fields["tokenizer.ggml.tokens"].contents()
    other = rewrite(base, tmp_path / "other.gguf", keys={"tokenizer.ggml.tokens": [*tokens[:-1], "another"]})
    with pytest.raises(EngineError, match=r"other.gguf: has 'another' as token 4095, .*base.gguf has "):
        evaluate([other], against=base, text=TEXT)


def test_log_probabilities_of_other_tokens(evaluation, base: Path, random_model: Path, tmp_path: Path) -> None:
    _, base_logits = evaluation
    other = tmp_path / "other.txt"
    other.write_text("# Conversations about something else: " + TEXT.read_text())
    with pytest.raises(
        EngineError, match=r"is of other tokens than those of .*other.txt: token \d+ of chunk 1 is \d+, not "
    ):
        evaluate([base], base_logits=base_logits, text=other)
    short = tmp_path / "short.txt"
    short.write_text(TEXT.read_text()[:1500])
    with pytest.raises(EngineError, match=r"has 8 chunks, .*short.txt only \d: it is of another text"):
        evaluate([base], base_logits=base_logits, text=short)
    with pytest.raises(
        EngineError, match=r"random.gguf: has a vocabulary of 288 tokens, .*base.kld is of one with 4096"
    ):
        evaluate([random_model], base_logits=base_logits)
    with pytest.raises(EngineError, match=r"has chunks of 128 tokens, not of 64; leave --ctx out"):
        evaluate([base], base_logits=base_logits, n_ctx=64)


def test_damaged_files_of_log_probabilities(evaluation, base: Path, tmp_path: Path) -> None:
    good, bad = evaluation[1].read_bytes(), tmp_path / "bad.kld"
    for data, complaint in (
        (b"", "isn't a file of base log-probabilities"),
        (b"GGUF" + good[4:], "isn't a file of base log-probabilities"),
        (
            good[:-1],
            r"is damaged: 8 chunks of 128 tokens with 4096 log-probabilities each take \d+ bytes, the file has",
        ),
        (good[:8] + b"\xff\xff\xff\xff" + good[12:], "is damaged: 8 chunks of -1 tokens"),
        (good[:20] + b"\xff\xff\xff\xff" + good[24:], r"is damaged: it has token ids that aren't in 0\.\.4095"),
    ):
        bad.write_bytes(data)
        with pytest.raises(EngineError, match=f"bad.kld: {complaint}.*--against BASE.gguf"):
            evaluate([base], base_logits=bad)


def test_an_existing_file_of_log_probabilities_is_kept(base: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.kld"
    kept.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"kept.kld exists already; add --force to replace it"):
        evaluate([], against=base, base_logits=kept, text=TEXT, n_ctx=16, n_chunks=1)
    assert kept.read_bytes() == b"mine"
    evaluate([], against=base, base_logits=kept, text=TEXT, n_ctx=16, n_chunks=1, force=True)
    assert len(read_base(kept).chunks) == 1


def test_ctrl_c_leaves_no_half_written_file(base: Path, tmp_path: Path) -> None:
    """While llama.cpp evaluates the last chunk, when the others' log-probabilities are written."""
    request = {"against": base, "text": TEXT, "n_ctx": 64, "n_chunks": 3}
    with ctrl_c_in_callback(None) as counted:
        evaluate([], base_logits=tmp_path / "whole.kld", **request)
    (tmp_path / "whole.kld").unlink()
    done: list[int] = []
    with ctrl_c_in_callback(counted.n_calls - 2), pytest.raises(KeyboardInterrupt):
        evaluate(
            [],
            base_logits=tmp_path / "out.kld",
            progress=lambda _stage, n_tokens, _all: done.append(n_tokens),
            **request,
        )
    assert done == [64, 128]
    assert list(tmp_path.iterdir()) == []


# --- a real model -----------------------------------------------------------------------------------------------------


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the golden extra")
def test_smollm2_against_transformers(tmp_path: Path, monkeypatch) -> None:
    """The real model in float32, and the same on a coarse grid, on the default text."""
    folder = real_model("smollm2-135m")
    base = convert(folder, tmp_path / "base.gguf", type="f32", embedding_type="f32", check=False).out
    coarse_folder = quantize(folder, tmp_path / "coarse", form_named("uniform-d2", dequantized=True, dtype="f32")).out
    coarse = convert(coarse_folder, tmp_path / "coarse.gguf", type="f32", embedding_type="f32", check=False).out
    found = evaluate([coarse], against=base, n_chunks=2)
    monkeypatch.setattr("tritgguf.runtime.measure.network.Context", partial(Context, f32_attention=True))
    exactly = evaluate([coarse], against=base, n_chunks=2)
    ids = evaluation_oracle.chunks(default_text_ids(folder), 512, 2)
    config = json.loads((folder / "config.json").read_text())
    base_logits, logits = (
        evaluation_oracle.transformers_logits(config, gguf_weights.read(file), ids) for file in (base, coarse)
    )
    of_base = evaluation_oracle.figures(ids, base_logits)
    by_definition, by_protocol = (
        evaluation_oracle.figures(ids, logits, base_logits, whole=whole) for whole in (True, False)
    )
    # The protocol's attention is in half precision, which moves single tokens, and so the extremes, more than means.
    for what, of_coarse, means, extremes in ((found, by_definition, 1e-3, 5e-3), (exactly, by_protocol, 1e-4, 1e-4)):
        for ours, theirs in ((what.base.as_json(), of_base), (what.files[0].as_json(), of_coarse)):
            for name, value in theirs.items():
                print(f"{name}: {ours[name]:.7f} and {value:.7f}")
                allowed = extremes if name in ("kld_99", "kld_max") else means
                assert ours[name] == pytest.approx(value, rel=allowed, abs=allowed), name


def default_text_ids(folder: Path) -> list[int]:
    """The default text's token ids by the model's own tokenizer, without llama.cpp."""
    from tokenizers import Tokenizer

    text = chunks.DEFAULT_TEXT.read_bytes().decode()
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
