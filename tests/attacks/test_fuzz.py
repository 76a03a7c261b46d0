"""A small run of the fuzzer, and proof that it notices what it looks for; docs/security.md records the large run."""

from __future__ import annotations

import sys

import pytest

from tests.attacks import fuzz, fuzz_targets
from tritgguf.converter.errors import MAX_MESSAGE, SourceError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and processor time by Linux's calls")
SEED = 20261124


@pytest.mark.parametrize("name", list(fuzz_targets.TARGETS))
def test_damaged_files_are_read_or_refused_in_one_line(name: str) -> None:
    report = fuzz.batch_in_a_child(name, SEED, 0, 60 if name in ("packed", "lora") else 250)
    assert report.failures == {}, f"seed {SEED}"
    assert 0 < report.refused < report.inputs


def test_an_error_is_one_line_whatever_a_file_holds() -> None:
    error = SourceError("first\nsecond\r\nthird\u2028" + 10_000 * "x" + " remedy")
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) <= MAX_MESSAGE
    assert str(error).startswith("first second third ")
    assert str(error).endswith("x remedy")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trap-traceback", "KeyError at "),
        ("trap-two-lines", "AssertionError at "),
        ("trap-memory", "MemoryError at "),
        ("trap-endless", "ended by SIGPROF: File "),
        ("trap-abort", "ended by SIGABRT: "),
    ],
)
def test_the_fuzzer_notices(name: str, expected: str) -> None:
    report = fuzz.batch_in_a_child(name, SEED, 0, 2, cpu_seconds=0.3)
    assert report.inputs == 2
    assert report.refused == 0
    assert report.failures
    assert all(place.startswith(expected) for place in report.failures)
