"""Everything that the doctor finds, as data."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata

from tritgguf.runtime.engine.memory import available_memory
from tritgguf.runtime.engine.product_verdicts import Findings
from tritgguf.runtime.measure.doctor import surroundings
from tritgguf.runtime.measure.doctor.processor import Instructions, instructions
from tritgguf.runtime.measure.doctor.surroundings import SECONDS, Answer, Asking
from tritgguf.runtime.measure.doctor.trial import OnTest, findings

PACKAGES = ("tritgguf", "llama-cpp-python", "gguf")
MISSING = "missing"


@dataclass(frozen=True)
class Report:
    """What there is on this computer, and what is broken."""

    versions: dict[str, str]
    findings: Findings
    instructions: Instructions
    memory_bytes: int | None
    free_memory_bytes: int | None
    ollama: Answer
    hub: Answer

    @property
    def problems(self) -> list[str]:
        """One line for each thing that is broken, with what helps."""
        loading = [self.findings.problem] if self.findings.problem else []
        return [*loading, *(fault.line for fault in self.findings.faults)]

    @property
    def notes(self) -> Sequence[str]:
        """What isn't broken, but could be better."""
        notes = []
        if self.findings.amx_is_broken:
            notes.append(
                "llama.cpp's AMX code isn't used: the compiler that built it, a GCC before 12.4 or 13.3, breaks it; a "
                "newer GCC and another installation of llama-cpp-python make prompts faster"
            )
        slow = [product.type for product in self.findings.products if product.state == "slow"]
        if slow:
            notes.append(f"slow here: {', '.join(slow)}; `tritgguf convert --for cpu` chooses types that are fast here")
        if self.instructions.unused:
            notes.append(
                f"this build of llama.cpp doesn't use {', '.join(self.instructions.unused)}, which the processor has"
            )
        return notes

    def as_json(self) -> dict[str, object]:
        """Return everything for machines."""
        return {**asdict(self), "problems": self.problems, "notes": self.notes, "good": not self.problems}


def examine(*, again: bool = False, on_test: OnTest | None = None) -> Report:
    """Look at everything; products are tested only where nothing is known of this build, or if `again`."""
    asked = [Asking(ask, f"no answer for {2 * SECONDS:g} seconds") for ask in (surroundings.ollama, surroundings.hub)]
    versions = {name: _version(name) for name in PACKAGES} | {"Python": platform.python_version()}
    found = findings(versions["llama-cpp-python"], again=again, on_test=on_test)
    totals = [device.total_bytes for device in found.devices if device.kind == "cpu"]
    ollama, hub = (asking.answer() for asking in asked)
    return Report(
        versions,
        found,
        instructions(found.system_info),
        surroundings.total_memory(totals[0] if totals else 0),
        available_memory(),
        ollama,
        hub,
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return MISSING
