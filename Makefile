# Everything runs in .venv; `make demo` and `make test` need only Python >= 3.10, make and a C++ compiler.
PYTHON ?= python3
BACKEND ?=
VENV := .venv
PY := $(VENV)/bin/python
MODELS ?= models
PYTEST_ARGS ?=

.PHONY: demo test test-real lint types wheel-test golden bench clean

$(VENV)/installed: pyproject.toml vendor/llama-cpp-python.json vendor/install_runtime.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) vendor/install_runtime.py $(if $(BACKEND),--backend $(BACKEND))
	$(PY) -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/installed  ## convert a ternary checkpoint exactly, then a small real model, and chat one turn
	$(PY) -m tests.checkpoints llama-tied $(MODELS)/ternary
	$(PY) -m tritgguf.runtime convert $(MODELS)/ternary $(MODELS)/ternary.gguf --type tq2_0 --force
	$(PY) -m tests.real_models smollm2-135m $(MODELS)/smollm2-135m
	$(PY) -m tritgguf.runtime convert $(MODELS)/smollm2-135m $(MODELS)/smollm2-135m.gguf --type f16 --force
	$(PY) -m tritgguf.runtime chat $(MODELS)/smollm2-135m.gguf --temperature 0 --max-tokens 60 --stats \
		--prompt "What is the capital of France?"

test: $(VENV)/installed  ## every test but those of real models
	$(PY) -m pytest -m "not real_model" $(PYTEST_ARGS)

test-real: $(VENV)/installed  ## real models end to end: fetches 1.2 GB, needs 12 GB of disk
	$(PY) -m pytest -m real_model $(PYTEST_ARGS)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/installed
	mkdir -p build/types/tritgguf
	ln -sfn ../../../converter build/types/tritgguf/converter
	ln -sfn ../../../runtime build/types/tritgguf/runtime
	$(VENV)/bin/mypy -p tritgguf.converter -p tritgguf.runtime

wheel-test: $(VENV)/installed  ## the tests against the built wheel, in an environment of its own
	rm -rf build/wheel-test dist
	$(PY) -m build --wheel --outdir dist
	$(PYTHON) -m venv build/wheel-test
	build/wheel-test/bin/python vendor/install_runtime.py $(if $(BACKEND),--backend $(BACKEND))
	build/wheel-test/bin/python -m pip install --quiet "$$(echo dist/*.whl)[dev]"
	build/wheel-test/bin/python -m pytest -m "not real_model" $(PYTEST_ARGS)

golden: $(VENV)/installed  ## record the goldens again; needs torch and transformers
	$(PY) -m pip install --quiet --editable ".[golden]"
	$(PY) -m tests.golden.record
	$(PY) -m tests.golden.record_bitnet
	$(PY) -m tests.golden.record_packing

bench: $(VENV)/installed  ## conversion times against llama.cpp's ways and cp; needs torch and 35 GB of disk
	$(PY) -m pip install --quiet --editable ".[bench,golden]"
	$(PY) -m tests.bench.conversion $(MODELS)/bench
	$(PY) -m tests.bench.sizes $(MODELS)/bench-sizes

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
