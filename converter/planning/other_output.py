"""Plan a GGUF file again with another type for its output layer alone, to measure what that type costs."""

from __future__ import annotations

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import joined
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.model import Model
from tritgguf.converter.planning.encoders import AsFloats, Encoder, Passthrough
from tritgguf.converter.planning.file_plan import FilePlan, TensorPlan
from tritgguf.converter.planning.layout import lay_out
from tritgguf.converter.planning.make_plan import type_metadata
from tritgguf.converter.quant.codec import AnyGgmlType, FloatCodec


def output_layer(model: Model) -> TensorSpec:
    """Return the output layer: the token embeddings where these are tied. UnsupportedError if there is none."""
    known = {spec.role: spec for spec in model.specs}
    found = known.get("output") or known.get("embedding")
    if found is None:
        raise UnsupportedError(f"{model.path} has neither output.weight nor token_embd.weight: it is no language model")
    return found


def with_output_type(model: Model, codec: FloatCodec) -> FilePlan:
    """Return the plan of a GGUF file with that type for the output layer; all other tensors keep their bytes.

    Raises UnsupportedError where a tensor is of another program's type, or the layer's rows don't fit.
    """
    changed = output_layer(model)
    if changed.shape[-1] % codec.block:
        raise UnsupportedError(
            f"{changed.name}: rows of {changed.shape[-1]} values aren't a multiple of {codec.block}, which "
            f"{codec.name} needs"
        )
    tensors = [
        TensorPlan(AsFloats(spec, codec) if spec is changed else _kept(model, spec), "to measure the output layer")
        for spec in model.specs
    ]
    metadata = joined(model.metadata, type_metadata(tuple(tensors), model.file_type))
    return FilePlan(lay_out(metadata, tensors, None))


def _kept(model: Model, spec: TensorSpec) -> Encoder:
    kind = None if model.tensors is None else model.tensors[spec.source].ggml_type
    if kind is None:
        raise UnsupportedError(
            f"{model.path}: {spec.name} is of a type that only another program knows: convert the file first"
        )
    return Passthrough(spec, AnyGgmlType(kind))
