"""compressed-tensors' config_groups: which modules of a checkpoint are stored how.

The rules are those of compressed_tensors/quantization in https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritgguf.converter.checkpoint.module_patterns import ModuleNames
from tritgguf.converter.checkpoint.scaled_codes import Block, block_sizes
from tritgguf.converter.core.settings import Settings, shown
from tritgguf.converter.errors import SourceError, UnsupportedError

WORD_FORMAT = "pack-quantized"
FORMATS = (WORD_FORMAT, "int-quantized", "float-quantized", "naive-quantized")
PACKED_BITS = (2, 4, 8)  # the package has packed other widths in two ways
STRATEGIES = ("tensor", "channel", "group", "block")
REORDERED = ("group", "dynamic", True)  # of actorder
MAX_GROUPS = 64  # each is asked for every packed module
DTYPES = {"int": "I8", "float": "F8_E4M3"}  # of codes that aren't packed into words


@dataclass(frozen=True)
class Storage:
    """How weights are stored: `kind` is int or float; `group` columns, or a `block`, share a scale by `strategy`.

    With `reordered`, a tensor beside the weights says which columns share a scale.
    """

    format: str
    kind: str
    bits: int
    symmetric: bool
    strategy: str
    group: int
    block: Block
    reordered: bool

    def block_of(self, shape: tuple[int, ...], name: str) -> Block:
        """Return the rows and columns that share a scale; raise SourceError where they don't fit the shape."""
        if self.strategy == "group" and shape[1] % self.group:
            raise SourceError(f"{name} has rows of {shape[1]} weights, no multiple of the group_size {self.group}")
        blocks = {"tensor": (shape[0], shape[1]), "channel": (1, shape[1]), "group": (1, self.group)}
        return blocks.get(self.strategy, self.block)


@dataclass(frozen=True)
class ConfigGroup:
    """A group's targets and how their weights are stored; `where` names the group for messages."""

    where: str
    targets: ModuleNames
    storage: Storage


def config_groups(said: Settings) -> list[ConfigGroup]:
    """Return the groups of quantization_config that have weights.

    Raises SourceError where a value is wrong, UnsupportedError where its meaning isn't read.
    """
    groups = said.object("config_groups")
    found = []
    for name in groups:
        group = groups.object(name)
        weights = group.object("weights")
        if weights:  # without any, only activations are quantized
            targets = ModuleNames(group.texts("targets") or [], group.name("targets"))
            found.append(ConfigGroup(group.name("weights"), targets, _storage(weights, _format(group, said))))
    if not 0 < len(found) <= MAX_GROUPS:
        raise SourceError(
            f"{said.name('config_groups')} has {len(found)} groups with weights; expected 1 to {MAX_GROUPS}"
        )
    return found


def storage_for(module: str, groups: Sequence[ConfigGroup]) -> tuple[str, Storage]:
    """Return how a module is stored, and where config.json says so.

    A target that is its name goes before a pattern, and that before its class. Raises SourceError where no target
    fits, UnsupportedError where targets of one rank disagree.
    """
    kind = "Embedding" if module.endswith("embed_tokens") else "Linear"
    matching = (
        [group for group in groups if module in group.targets.names]
        or [group for group in groups if group.targets.match(module)]
        or [group for group in groups if kind in group.targets.names]
    )
    if not matching:
        raise SourceError(f"{shown(module)} is packed, but isn't a target of config.json's config_groups")
    first = matching[0]
    for other in matching[1:]:
        if other.storage != first.storage:
            raise UnsupportedError(f"{shown(module)} is a target of {first.where} and {other.where}, which differ")
    return first.where, first.storage


def _format(group: Settings, said: Settings) -> str:
    at = group if group.has("format") else said
    found = at.text("format")
    if found not in FORMATS:
        raise UnsupportedError(f"{at.name('format')} {shown(found)} isn't read; expected one of {', '.join(FORMATS)}")
    return found


def _storage(weights: Settings, form: str) -> Storage:
    bits, kind = weights.integer("num_bits", 8), weights.text("type") or "int"
    if form == WORD_FORMAT:
        known = kind == "int" and bits in PACKED_BITS
    else:
        known = (kind == "int" and bits <= 8) or (kind == "float" and bits == 8)
    if not known:
        raise UnsupportedError(
            f"{weights.name('num_bits')} {bits} with type {shown(kind)} isn't read in the format {form}; expected int "
            "with 2, 4 or 8 bits, or 8-bit float that isn't packed"
        )
    per_row = weights.get("group_size") == -1
    group = None if per_row or not weights.has("group_size") else weights.integer("group_size")
    strategy = weights.text("strategy") or ("channel" if per_row else "tensor" if group is None else "group")
    if strategy not in STRATEGIES or (strategy == "group") != (group is not None):
        raise UnsupportedError(
            f"{weights.name('strategy')} {shown(strategy)} with group_size {shown(weights.get('group_size'))} isn't "
            f"read; expected one of {', '.join(STRATEGIES)}"
        )
    block = block_sizes(weights, "block_structure") if strategy == "block" else (1, 1)
    reordered = weights.get("actorder") in REORDERED
    return Storage(form, kind, bits, weights.flag("symmetric", True), strategy, group or 1, block, reordered)
