"""Tuning's divergence and gradients against the whole model in transformers, differentiated by torch at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests import checkpoints
from tests.oracles import libggml
from tritgguf.converter.calibration.kept import CalibratedTensor, Kept
from tritgguf.converter.calibration.tuned_model import originals
from tritgguf.converter.core.tensors import CodedRows, Floats, SourceTensor
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.make_plan import make_plan
from tritgguf.converter.planning.request import Request
from tritgguf.converter.quant.codec import ternary_codec
from tritgguf.converter.quant.method import method_named

torch = pytest.importorskip("torch", reason="needs the ptq extra")

import transformers  # noqa: E402

from tritgguf.converter.calibration import blocks, distill  # noqa: E402 (it imports torch)
from tritgguf.converter.calibration.blocks import Decoder  # noqa: E402
from tritgguf.converter.calibration.student import BIASES, NORMS, ROWS, SCALES, CodedPart, Student  # noqa: E402

IDS = np.arange(3 * 40, dtype=np.int64).reshape(3, 40) * 7 % 300
CODEC = ternary_codec("q2_0")


class Setting:
    """A model whose linear layers are rounded to nearest in Q2_0, and a student of it whose changes aren't 0."""

    def __init__(self, name: str, folder: Path) -> None:
        model = open_model(checkpoints.build(name, folder / "model"))
        assert model.tensors is not None
        self.path, self.tensors = model.path, dict[str, SourceTensor](model.tensors)
        kept = Kept(folder, "")
        for number, spec in enumerate(spec for spec in model.specs if spec.role == "linear"):
            self.tensors[spec.source] = rounded(model.tensors[spec.source], kept, number)
        self.decoder = Decoder(model.path, model.specs, originals(self.tensors), torch.device("cpu"))
        plan = make_plan(model, Request.named("q2_0", "four_levels", allow_lossy=True), 1, None)
        self.student = Student(plan.tensors, self.tensors, len(self.decoder), torch.device("cpu"))
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for _, change in self.student.changes():
                change.copy_(0.05 * torch.randn(change.shape, generator=random))
        self.distillation = distill.Distillation(self.decoder)

    def loss(self) -> torch.Tensor:
        """The mean KL divergence from the checkpoint's predictions, by transformers, of the changed model's."""
        whole = transformers.AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()
        ids = torch.from_numpy(IDS)
        base, found = (
            torch.func.functional_call(whole, values, (ids,)).logits.double().log_softmax(-1)[:, 1:]
            for values in ({}, self.changed(dict(whole.named_parameters())))
        )
        return (base.detach().exp() * (base.detach() - found)).sum(-1).mean()

    def changed(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        values = {name: weight.detach() for name, weight in weights.items()}
        for name in {"model.embed_tokens.weight", "lm_head.weight"} & {*values}:
            values[name] = values[name].half().float()
        for name, part in self.student.parts.items():
            if isinstance(part, CodedPart):
                values[name] = self.linear(name)
            elif NORMS in part.changes:
                values[name] = values[name] * (1 + part.changes[NORMS])
            else:
                values[name] = values[name] + part.changes[BIASES]
        return values

    def linear(self, name: str) -> torch.Tensor:
        """A layer's weights as ggml dequantizes them, changed."""
        tensor, changes = self.tensors[name], self.student.parts[name].changes
        assert isinstance(tensor, CalibratedTensor)
        packed = np.array(tensor.stored.data.reshape(tensor.shape[0], -1))
        stored = torch.from_numpy(libggml.dequantize(packed, CODEC.ggml_type))
        factors = (1 + changes[SCALES]) * (1 + changes[ROWS])
        return stored * factors.repeat_interleave(CODEC.block, dim=1)


def rounded(original: SourceTensor, kept: Kept, number: int) -> CalibratedTensor:
    rows = method_named("four_levels").quantize(Floats.of(original.read(slice(None))), CODEC.block)
    stored = kept.write(number, {"layer": CODEC.pack(rows)})["layer"]
    return CalibratedTensor(
        original.name, CODEC.name, original.shape, CODEC.block, stored, CODEC, 2, original, "rounded to nearest"
    )


@pytest.mark.parametrize(
    "name", ["llama-llama3-tied", "llama-biases", "mistral-window", "qwen2-tied", "qwen3", "smollm3", "phi3"]
)
def test_divergence_and_gradients_are_those_of_the_whole_model(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(distill, "AT_ONCE", 2)
    setting = Setting(name, tmp_path)
    wanted = setting.loss()
    loss = float(wanted.detach())
    assert setting.distillation.divergence(setting.student, IDS) == pytest.approx(loss, rel=1e-4)
    changes = [*setting.student.changes()]
    shares: list[float] = []
    found = setting.distillation.gradients(setting.student, IDS, shares.append)
    assert found == pytest.approx(loss, rel=1e-4)
    assert sum(shares) == pytest.approx(1)
    gradients = torch.autograd.grad(wanted, [change for _, change in changes])
    assert {kind for kind, _ in changes} >= {SCALES, ROWS, NORMS}
    for (_, change), gradient in zip(changes, gradients, strict=True):
        assert change.grad is not None
        torch.testing.assert_close(change.grad, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("name", ["llama-llama3-tied", "mistral-window", "qwen2-tied", "qwen3", "smollm3", "phi3"])
def test_gradients_with_bfloat16_point_where_float32_s_do(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "_has_bfloat16", lambda: True)  # torch computes with it on every processor
    setting = Setting(name, tmp_path)
    changes = [change for _, change in setting.student.changes()]
    loss = setting.loss()
    wanted = torch.autograd.grad(loss, changes)
    with blocks.fast_gradients():
        found = setting.distillation.gradients(setting.student, IDS)
    assert found == pytest.approx(float(loss.detach()), rel=0.02)
    exact, near = (torch.cat([one.flatten() for one in some]) for some in (wanted, [one.grad for one in changes]))
    assert not torch.equal(exact, near)
    assert torch.nn.functional.cosine_similarity(exact, near, dim=0) > 0.999
    assert near.norm() == pytest.approx(float(exact.norm()), rel=0.02)


def test_blocks_that_stay_compute_the_same(tmp_path: Path) -> None:
    setting = Setting("qwen3", tmp_path)
    staying = distill.Distillation(setting.decoder, resident=True)
    found = [one.gradients(setting.student, IDS[:, :20]) for one in (setting.distillation, staying, staying)]
    assert found[0] == found[1] == found[2]


def test_gradients_of_several_calls_add_up(tmp_path: Path) -> None:
    setting = Setting("llama-gqa", tmp_path)
    for chunk in IDS:
        setting.distillation.gradients(setting.student, chunk[None])
    sums = [change.grad for _, change in setting.student.changes()]
    for _, change in setting.student.changes():
        change.grad = None
    setting.distillation.gradients(setting.student, IDS)
    for total, (_, change) in zip(sums, setting.student.changes(), strict=True):
        assert total is not None
        torch.testing.assert_close(total / len(IDS), change.grad, rtol=1e-3, atol=1e-4 * float(total.abs().max()))


def test_what_is_stored_are_fp16_scales_with_the_same_codes(tmp_path: Path) -> None:
    setting = Setting("llama-gqa", tmp_path)
    name, part = next((name, part) for name, part in setting.student.parts.items() if isinstance(part, CodedPart))
    rows = setting.student.stored()[name]
    assert isinstance(rows, CodedRows)
    wanted = setting.linear(name).detach().numpy()
    found = libggml.dequantize(CODEC.pack(rows), CODEC.ggml_type)
    np.testing.assert_allclose(found, wanted, rtol=2**-10, atol=2**-24)
    np.testing.assert_array_equal(rows.codes, part.codes.numpy())
    with torch.no_grad():
        part.changes[SCALES][0, 0], part.changes[ROWS][1, 0] = -1, 1e9
    assert setting.student.stored()[name] is None  # a scale is larger than fp16's largest
    with torch.no_grad():
        part.changes[ROWS][1, 0] = 0
    rows = setting.student.stored()[name]
    assert isinstance(rows, CodedRows)
    assert not rows.codes[0, : CODEC.block].any()  # a scale of 0 hides no codes


def test_a_student_computes_with_what_other_types_store(tmp_path: Path) -> None:
    """Tensors that aren't tuned, in the checkpoint's order of rows, as ggml dequantizes them."""
    model = open_model(checkpoints.build("llama-gqa", tmp_path / "model"))
    assert model.tensors is not None
    plan = make_plan(model, Request.named("q4_0", "mse", embedding_type="q8_0"), 1, None)
    student = Student(plan.tensors, model.tensors, 2, torch.device("cpu"))
    name = "model.layers.1.self_attn.q_proj.weight"
    (query,) = (tensor for tensor in plan.tensors if tensor.spec.source == name)
    assert query.spec.rows is not None
    stored = libggml.dequantize(query.encoder.encode(model.tensors[name], slice(None)), query.codec.ggml_type)
    np.testing.assert_array_equal(student.parts[name].values().numpy()[query.spec.rows], stored)
    assert not student.parts[name].changes
    whole = model.tensors["model.embed_tokens.weight"].read(slice(None))
    assert 0 < np.abs(student.embeddings.numpy() - whole).max() < 0.02 * np.abs(whole).max()


def test_every_chunk_is_taken_before_one_is_taken_again() -> None:
    order = distill.batches(10, 4, 5, seed=3)
    assert order.shape == (5, 4)
    assert sorted(order.reshape(-1)[:10]) == sorted(order.reshape(-1)[10:]) == [*range(10)]
    assert (order.reshape(-1)[:10] != order.reshape(-1)[10:]).any()
    np.testing.assert_array_equal(order, distill.batches(10, 4, 5, seed=3))
    assert (order != distill.batches(10, 4, 5, seed=4)).any()
