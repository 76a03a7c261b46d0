"""Read a LoRA adapter as PEFT saves it, and merge it into a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tritgguf.converter.checkpoint import pytorch_reader, safetensors_reader
from tritgguf.converter.checkpoint.adapter_config import AdapterConfig, read_adapter_config
from tritgguf.converter.checkpoint.merged_tensor import Factor, MergedTensor
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor, StoredTensors
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError

SAFETENSORS, PYTORCH = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
WEIGHT, BIAS = ".weight", ".bias"
# What follows a module's name in the names of its update's tensors.
A, B, B_BIAS, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_magnitude_vector"
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
PARTS = (A, B, B_BIAS, MAGNITUDE, EMBEDDING_A, EMBEDDING_B)
BASE_LAYER = ".base_layer."  # in the name of a replaced tensor whose module also has an update
OTHERS = (".lora_", ".modules_to_save.", ".token_adapter.", ".original_module.")
MERGE = "merge the adapter with peft's merge_and_unload() and convert what that saves"


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: each module's update, by PARTS, and tensors that replace the checkpoint's, by name."""

    folder: Path
    config: AdapterConfig
    updates: Mapping[str, StoredTensors]
    replaced: StoredTensors

    @property
    def note(self) -> str:
        """What is merged, for the user."""
        replaced = f", and {len(self.replaced)} tensors are replaced" if self.replaced else ""
        return f"the LoRA adapter {self.folder.name} is merged into {len(self.updates)} layers, in float32{replaced}"

    @property
    def changed(self) -> set[str]:
        """The names of the checkpoint's tensors that the adapter changes."""
        biases = {name + BIAS for name, parts in self.updates.items() if B_BIAS in parts}
        return {name + WEIGHT for name in self.updates} | biases | set(self.replaced)

    def merged(self, tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
        """Return the checkpoint's tensors with the adapter merged into them.

        Raises SourceError where the adapter lacks a tensor, has one for nothing, or one of another shape, and
        UnsupportedError where it has one that isn't known.
        """
        found = dict(tensors)
        for name, tensor in self.replaced.items():
            _require_shape(tensor, self._base(tensors, name, tensor).shape)
            found[name] = tensor
        self._require_targets(tensors)
        self._require_saved(tensors)
        for module, parts in self.updates.items():
            self._require_parts(module, parts)
            base = self._base(found, module + WEIGHT, next(iter(parts.values())))
            found[base.name] = self._updated(module, parts, base)
            if B_BIAS in parts:
                bias = self._base(found, module + BIAS, parts[B_BIAS])
                _require_shape(parts[B_BIAS], bias.shape)
                found[bias.name] = MergedTensor(bias, None, Factor(parts[B_BIAS]), self.config.scaling(module))
        return found

    def _base(self, tensors: Mapping[str, SourceTensor], name: str, update: StoredTensor) -> SourceTensor:
        if name not in tensors:
            raise SourceError(
                f"{self.folder}: the adapter holds {update.name}, but the model has no tensor {name}: they belong to "
                "different models, or the model ties its output layer to the embeddings"
            )
        return tensors[name]

    def _require_parts(self, module: str, parts: StoredTensors) -> None:
        embedding = EMBEDDING_A in parts or EMBEDDING_B in parts
        wanted = [EMBEDDING_A, EMBEDDING_B] if embedding else [A, B]
        wanted += [MAGNITUDE] if self.config.dora else []
        wanted += [B_BIAS] if self.config.lora_bias and not embedding else []
        missing = next((part for part in wanted if part not in parts), None)
        if missing:
            raise SourceError(f"{self.folder}: the adapter has no tensor {PREFIX}{module}{missing}: fetch it again")
        surplus = next((tensor.name for part, tensor in parts.items() if part not in wanted), None)
        if surplus:
            raise SourceError(
                f"{self.folder}: the adapter holds {surplus}, which its config doesn't call for: the files belong to "
                "different adapters"
            )
        if embedding and self.config.dora:
            raise UnsupportedError(f"{self.folder}: DoRA on embeddings ({module}) isn't known here: {MERGE}")

    def _updated(self, module: str, parts: StoredTensors, base: SourceTensor) -> MergedTensor:
        """Return the merged weight. An embedding's update is stored transposed: (rank, tokens), (columns, rank)."""
        if len(base.shape) != 2:
            raise SourceError(f"{self.folder}: the adapter has an update of {base.name}, which isn't a matrix")
        rank, (n_rows, n_columns) = self.config.rank_of(module), base.shape
        turned = EMBEDDING_A in parts
        left, right = (EMBEDDING_A, EMBEDDING_B) if turned else (B, A)
        _require_shape(parts[left], (rank, n_rows) if turned else (n_rows, rank))
        _require_shape(parts[right], (n_columns, rank) if turned else (rank, n_columns))
        if MAGNITUDE in parts:
            _require_shape(parts[MAGNITUDE], (n_rows,))
        factors = Factor(parts[left], turned), Factor(parts[right], turned)
        return MergedTensor(base, *factors, self.config.scaling(module), parts.get(MAGNITUDE))

    def _require_targets(self, tensors: Mapping[str, SourceTensor]) -> None:
        """Raise SourceError where the adapter has updates of more or fewer layers than its config names."""
        targets = self.config.targets
        if targets is None:
            return
        other = next((module for module in self.updates if not _named(module, targets)), None)
        if other:
            raise SourceError(
                f"{self.folder}: the adapter has an update of {other}, which target_modules in its config doesn't "
                "name: the files belong to different adapters"
            )
        matrices = [name.removesuffix(WEIGHT) for name, tensor in tensors.items() if len(tensor.shape) == 2]
        self._require_all("target_modules", (name for name in matrices if _named(name, targets)), self.updates)

    def _require_saved(self, tensors: Mapping[str, SourceTensor]) -> None:
        """Raise SourceError where a tensor that the config calls replaced isn't in the adapter."""
        saved = (name for name in tensors if any(_inside(name, module) for module in self.config.saved))
        self._require_all("modules_to_save", saved, self.replaced)

    def _require_all(self, key: str, names: Iterable[str], found: Mapping[str, object]) -> None:
        missing = next((name for name in names if name not in found and name + WEIGHT not in self.replaced), None)
        if missing:
            raise SourceError(
                f"{self.folder}: {key} in the adapter's config names {missing}, but the adapter has nothing for it: "
                "fetch it again, or it was made for another model"
            )


def open_adapter(folder: Path) -> Adapter:
    """Open a PEFT adapter's folder; raise SourceError or UnsupportedError where it isn't a LoRA that can be merged."""
    config = read_adapter_config(folder)
    updates: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    for name, tensor in _stored(folder).items():
        if not name.startswith(PREFIX):
            raise SourceError(f"{tensor.file.name} holds {name}; expected names that begin with {PREFIX}, as PEFT's do")
        if tensor.dtype not in FLOAT_DTYPES:
            raise SourceError(f"{tensor.file.name}: tensor {name} holds {tensor.dtype}; expected BF16, F16 or F32")
        own = name.removeprefix(PREFIX)
        part = next((part for part in PARTS if own.endswith(part)), None)
        if part is not None:
            updates.setdefault(own.removesuffix(part), {})[part] = tensor
        elif any(other in own for other in OTHERS):
            raise UnsupportedError(f"{tensor.file.name} holds {name}, whose use isn't known here: {MERGE}")
        else:
            replaced[own.replace(BASE_LAYER, ".")] = tensor
    if not updates and not replaced:
        raise SourceError(f"{folder} holds an adapter without tensors: fetch it again")
    return Adapter(folder, config, updates, replaced)


def _stored(folder: Path) -> dict[str, StoredTensor]:
    if (folder / SAFETENSORS).exists():
        return safetensors_reader.read_file(folder / SAFETENSORS)
    if (folder / PYTORCH).exists():
        return pytorch_reader.read_file(folder / PYTORCH)
    raise SourceError(f"{folder} has neither {SAFETENSORS} nor {PYTORCH}: fetch the adapter again")


def _named(module: str, targets: Iterable[str]) -> bool:
    """Whether a name is one of the targets, or ends in one after a dot, as PEFT compares target_modules."""
    return any(f".{module}".endswith(f".{target}") for target in targets)


def _inside(tensor: str, target: str) -> bool:
    """Whether a tensor is in a module whose name ends in the target, as PEFT compares modules_to_save."""
    parts = tensor.split(".")
    return any(".".join(parts[:length]).endswith(target) for length in range(1, len(parts)))


def _require_shape(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise SourceError(
            f"{tensor.file.name}: tensor {tensor.name} has the shape {tensor.shape}, where the model and the adapter's "
            f"config call for {shape}: they belong to different models, or the vocabulary was resized in training"
        )
