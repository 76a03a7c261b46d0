"""For every test, in every worker: threads that wait don't spin, and no time limit that a busy machine would exceed."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests import hub_endpoint
from tests.token_ids import token_ids_in_this_process

assert os.environ["HF_ENDPOINT"] == hub_endpoint.ENDPOINT

# Set before numpy and llama.cpp are loaded; child processes inherit it. The workers share the cores, and by default
# OpenMP's threads spin at every node of a graph until the last of them has had a core: most of the time goes there.
os.environ.update(OMP_WAIT_POLICY="passive", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
os.environ["TRITGGUF_VERDICT"] = (
    "0"  # which takes seconds after every conversion with loss; test_verdict.py asks for it
)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every child process compiles our modules again

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes without coverage, for tests that send them signals.

    Its tracer takes a lock at every call, and never gets it again once a handler's exception came while it held it.
    """
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def token_ids_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions and verifications in this process compare token ids in it too.

    Starting another one takes longer than all else that they do with a small model. Commands in child processes, and
    the tests that override this fixture, have one.
    """
    monkeypatch.setattr("tritgguf.runtime.engine.token_ids_process.token_ids_process", token_ids_in_this_process)
    monkeypatch.setattr("tritgguf.runtime.ollama.publish.token_ids_process", token_ids_in_this_process)
