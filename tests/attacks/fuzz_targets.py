"""What the fuzzer reads: each target holds sound files, damages one, and reads it as the commands do."""

from __future__ import annotations

from collections.abc import Mapping

from tests.attacks.fuzz_checkpoints import ConfigJson, PackedBytes
from tests.attacks.fuzz_gguf import ForeignGguf, GgufHeader
from tests.attacks.fuzz_imatrix import ImportanceMatrix
from tests.attacks.fuzz_target import Target
from tests.attacks.fuzz_tokenizers import Tokenizer
from tests.attacks.fuzz_weights import LoraAdapter, PytorchFile, SafetensorsHeader, SafetensorsIndex

TARGETS: Mapping[str, type[Target]] = {
    target.name: target
    for target in (
        SafetensorsHeader,
        SafetensorsIndex,
        PytorchFile,
        GgufHeader,
        ForeignGguf,
        ConfigJson,
        Tokenizer,
        PackedBytes,
        LoraAdapter,
        ImportanceMatrix,
    )
}
