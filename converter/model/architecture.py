"""What an architecture is: the tensors that a checkpoint must hold, and what they and config.json become in GGUF.

Each file in arch/ defines an `ARCHITECTURE`. It lists its tensors with the helpers of decoder.py, or as `TensorSpec`s
of its own. A tensor or setting that llama.cpp's graph can't compute is refused, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, Keys

from tritgguf.converter.checkpoint.config_json import FILE, ConfigJson, named_classes
from tritgguf.converter.core.registry import offered
from tritgguf.converter.core.settings import Settings
from tritgguf.converter.core.tensors import Float32Array, RowIndices
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, string
from tritgguf.converter.model.config import Ability, DecoderConfig, read_decoder_config
from tritgguf.converter.model.derived import Derivation
from tritgguf.converter.model.hyperparameters import hyperparameters
from tritgguf.converter.model.rope import ROPE_FREQS, rotation
from tritgguf.converter.model.stored_forms import StoredForm, Whole


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that the graph needs: `source` and `name` in checkpoint and GGUF, `shape` as the graph wants it.

    `role` is "linear", "embedding", "output", "norm", "bias", "router", "rope", "scale" or "kept": only linear tensors
    become ternary. `rows` is the order that the graph wants the rows in, None for the checkpoint's. A tensor with
    `data` isn't in the checkpoint but follows from config.json; `plus` is added to the values of one that is. `derive`
    makes it of one that checkpoints store in another form, and that of it again; `stored_shape` is set where that is
    another shape. One that isn't simply stored as `source` has the ways in which checkpoints store it in `stored`, the
    usual one first; then `source` only names it in messages.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    role: str
    rows: RowIndices | None = None
    data: Float32Array | None = None
    plus: float = 0.0
    stored_shape: tuple[int, ...] | None = None
    derive: Derivation | None = None
    stored: tuple[StoredForm, ...] = ()

    @property
    def forms(self) -> tuple[StoredForm, ...]:
        """The ways in which checkpoints store the tensor."""
        return self.stored or (Whole(self.source),)

    @property
    def names(self) -> list[str]:
        """The names that checkpoints may store the tensor under."""
        return [name for form in self.forms for name in form.names]

    def matrices(self) -> list[TensorSpec]:
        """Return what checkpoints usually store: the tensor, or a matrix of its own for each of its matrices."""
        form = self.forms[0]
        shape = form.stored_shape(self.shape)
        return [replace(self, source=name, shape=shape, stored=()) for name in form.names]

    def as_stored(self) -> TensorSpec:
        """Return the tensor as checkpoints have it, for those who write checkpoints; of a part, the whole one."""
        form, shape = self.forms[0], self.stored_shape or self.shape
        plain = replace(self, shape=shape, plus=0.0, stored_shape=None, derive=None)
        if form.part_of is None:
            return plain
        return replace(plain, source=form.part_of, shape=form.stored_shape(shape), stored=())


@dataclass(frozen=True)
class Architecture:
    """One graph of llama.cpp and the transformers classes that it computes.

    `graph` is its number in the package gguf, or its name where that package doesn't know it yet. `classes` maps each
    class to the config.json values that it assumes where the file has none. `respell` returns all of these as
    `DecoderConfig` spells them, where the class has spellings of its own. `tensors` lists the file's tensors in the
    order in which they are written. `extra_keys` adds to, or replaces, the common hyperparameters; it gets the prefix
    of the keys. Each of `requires` raises UnsupportedError for a model that the graph can't compute; `activations` are
    those that it computes, the default first, and `abilities` what it computes beyond other graphs. `honours_scales`
    tells whether the graph multiplies every linear layer by its `.scale` tensor. `own_name` is set where the stock
    graph alone would compute another model: the file then has the keys under both names. On the way back from a GGUF
    file, `settings` turns the architecture's keys into what `extra_keys` made them of; `model_type` is config.json's
    for the first of `classes`, where it isn't that name in lower case.
    """

    graph: MODEL_ARCH | str
    classes: Mapping[str, ConfigJson]
    tensors: Callable[[DecoderConfig], list[TensorSpec]]
    extra_keys: Callable[[DecoderConfig, str], Metadata] = lambda _config, _arch: {}
    requires: tuple[Callable[[DecoderConfig], None], ...] = ()
    activations: tuple[str, ...] = ("silu", "swish")
    respell: Callable[[Settings], ConfigJson] = lambda keys: keys
    abilities: frozenset[Ability] = frozenset()
    honours_scales: bool = False
    own_name: str | None = None
    settings: Callable[[Settings], ConfigJson] = lambda _keys: {}
    model_type: str | None = None

    @property
    def graph_name(self) -> str:
        """What llama.cpp calls the graph."""
        return self.graph if isinstance(self.graph, str) else MODEL_ARCH_NAMES[self.graph]

    @property
    def name(self) -> str:
        """The value of `general.architecture`."""
        return self.own_name or self.graph_name

    @property
    def targets(self) -> tuple[str, ...] | None:
        """Where a file can run, None for anywhere. Only tritgguf's runtime knows `own_name`, and it uses the CPU."""
        return ("cpu",) if self.own_name else None

    def read_config(self, raw: ConfigJson) -> DecoderConfig:
        """Read config.json; raise SourceError or UnsupportedError where the graph can't compute it."""
        assumed = self.classes[raw["architectures"][0]]
        keys = Settings(FILE, self.respell(Settings(FILE, {**assumed, **raw})))
        config = read_decoder_config(keys, self.graph_name, self.activations, self.abilities)
        for require in self.requires:
            require(config)
        return config

    def metadata(self, config: DecoderConfig) -> Metadata:
        """Return general.architecture and the hyperparameter keys; raise UnsupportedError as `tensors` does."""
        # A graph reads rope divisors exactly where its architecture lists them, so that keys and tensors agree.
        reads_divisors = any(spec.name == ROPE_FREQS for spec in self.tensors(config))
        keys: Metadata = {Keys.General.ARCHITECTURE: string(self.name)}
        for arch in dict.fromkeys((self.name, self.graph_name)):
            keys |= hyperparameters(config, arch)
            keys |= rotation(config, arch, reads_divisors=reads_divisors).metadata
            keys |= self.extra_keys(config, arch)
        return keys


def stored_specs(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Return the tensors as checkpoints have them, once each: a checkpoint's tensor may be several of the graph's."""
    stored = (spec.as_stored() for spec in specs if spec.data is None)
    return list({spec.source: spec for spec in stored}.values())


def linear_names(specs: Iterable[TensorSpec]) -> frozenset[str]:
    """Return the checkpoint's names of the linear layers' matrices, for each expert that of its own."""
    linear = [spec for spec in specs if spec.role == "linear"]
    return frozenset(name for spec in linear for name in spec.forms[0].names)


def architectures() -> tuple[Architecture, ...]:
    """Return every architecture."""
    return offered("tritgguf.converter.model.arch", "ARCHITECTURE", Architecture)


def architecture_for(raw: dict[str, Any] | ConfigJson) -> Architecture:
    """Return the architecture that config.json names; raise UnsupportedError listing the known ones."""
    named = named_classes(raw)
    if not named:
        raise SourceError("config.json names no architectures; expected for example ['LlamaForCausalLM']")
    known = {hf_name: architecture for architecture in architectures() for hf_name in architecture.classes}
    if named[0] in known:
        return known[named[0]]
    if named[0].endswith("Model") and not named[0].endswith("LMHeadModel"):
        raise UnsupportedError(
            f"config.json: {named[0]:.80} is a model without an output layer, such as one for text embeddings; only "
            "models that generate text can be converted"
        )
    raise UnsupportedError(
        f"config.json: architecture {named[0]:.80} isn't known; known are {', '.join(sorted(known))}. Convert the "
        "model to an F16 GGUF file with llama.cpp's convert_hf_to_gguf.py, then give that file to tritgguf"
    )
