"""Whether gptq rotates a model first: what rounding costs depends on the basis, what the model computes doesn't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tritgguf.converter.core.progress import Progress
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.rotated import EMBEDDING, can_be_rotated, has_own_output, rotated
from tritgguf.converter.planning.calibration import Calibration
from tritgguf.converter.planning.file_plan import FilePlan, TensorPlan
from tritgguf.converter.planning.make_plan import make_plan
from tritgguf.converter.planning.request import Request


def planned_in_its_basis(model: Model, request: Request, threads: int | None, progress: Progress | None) -> FilePlan:
    """Return the plan of a model's file; of the rotated model where gptq would rotate it."""
    found = make_plan(model, request, threads, progress)
    if request.calibration is None:
        return found
    turned = in_its_basis(model, found.tensors, request.calibration)
    return found if turned is model else make_plan(turned, request, threads, progress)


def in_its_basis(model: Model, plans: Sequence[TensorPlan], calibration: Calibration) -> Model:
    """Return the model rotated, if its plan lets that be; raise UnsupportedError where --untie would do nothing.

    It isn't where nothing is fitted. A layer whose codes are stored exactly would lose them. A tied output layer can't
    have the last norm's factors, so it takes an output layer of its own, which makes the file larger.
    """
    linear = [plan for plan in plans if plan.spec.role == "linear"]
    fits = any(plan.encoder.rounds for plan in linear) and not any(plan.grid for plan in linear)
    possible = fits and can_be_rotated(model)
    if calibration.untie and (not possible or has_own_output(model)):
        why = "has an output layer of its own" if has_own_output(model) else "can't be rotated"
        raise UnsupportedError(f"{model.path.name}: --untie has no effect, since the model {why}: leave it out")
    if not possible or not calibration.does("rotation"):
        return model
    if has_own_output(model) or calibration.untie:
        return rotated(model)
    return replace(model, notes=[*model.notes, _tied(plans)])


def _tied(plans: Sequence[TensorPlan]) -> str:
    n_bytes = next(plan.n_bytes for plan in plans if plan.spec.name == EMBEDDING)
    return (
        "the output layer is the embeddings, so gptq doesn't rotate the model; --untie gives it one of its own, for a "
        f"file of {format_size(n_bytes)} more that loses less"
    )
