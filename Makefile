# Everything runs in .venv; `make demo` and `make test` need only Python >= 3.10, make and a C++ compiler.
PYTHON ?= python3
BACKEND ?=
VENV := .venv
PY := $(VENV)/bin/python
MODELS ?= models
PYTEST_ARGS ?=

# Tests in parallel, one process per core; `make test PYTEST_ARGS=-n0` runs them in one.
PYTEST := -m pytest -n auto --dist worksteal
# What a wheel could lack though the editable install has it: packages, package data, entry points, the kernels, what a
# command loads. `make test` proves the rest on the same sources.
WHEEL_TESTS := tests/test_*.py tests/runtime/cli tests/runtime/engine/test_token_ids.py tests/converter/core \
	tests/converter/export/test_quantize.py tests/converter/ollama/test_renderings.py

.PHONY: demo demo-model test test-real test-logits lint types wheel-test wheels from-wheels coverage docs golden golden-go bench bench-kernels clean

# One stamp per backend, of which only the last one made stands: another BACKEND than the installed one installs again.
INSTALLED := $(VENV)/installed$(if $(BACKEND),-$(BACKEND))

$(INSTALLED): pyproject.toml CMakeLists.txt vendor/llama-cpp-python.json vendor/install_runtime.py $(wildcard converter/core/native/* runtime/engine/kernels/native/*)
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/installed*
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) vendor/install_runtime.py $(if $(BACKEND),--backend $(BACKEND))
	$(PY) -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(INSTALLED)  ## convert the ternary model in vendor/demo-model exactly, check the file, chat two turns
	mkdir -p $(MODELS)
	$(PY) -m tritgguf convert vendor/demo-model $(MODELS)/demo.gguf --type tq2_0 --force
	$(PY) -m tritgguf verify vendor/demo-model $(MODELS)/demo.gguf
	$(PY) -m tritgguf chat $(MODELS)/demo.gguf --temperature 0 --stats \
		--prompt "Who are you?" --prompt "How are you today?"
	@echo "Go on talking with it: $(VENV)/bin/tritgguf chat"

demo-model: $(INSTALLED)  ## train the demo model again: about 90 minutes on 2 cores; needs torch
	$(PY) -m pip install --quiet --editable ".[demo-training]"
	$(PY) -m vendor.demo_training vendor/demo-model
	$(PY) -m tests.golden.record_demo_model

test: $(INSTALLED)  ## every test but those of real models and large vocabularies
	$(PY) $(PYTEST) -m "not real_model" $(PYTEST_ARGS)

test-real: $(INSTALLED)  ## real models end to end, and large vocabularies: fetches 1.2 GB, needs 12 GB of disk
	$(PY) -m pytest -m real_model $(PYTEST_ARGS)

test-logits: $(INSTALLED)  ## `verify --logits`, `eval` and gptq with transformers, in an environment with torch of its own
	$(PYTHON) -m venv build/test-logits
	build/test-logits/bin/python vendor/install_runtime.py $(if $(BACKEND),--backend $(BACKEND))
	build/test-logits/bin/python -m pip install --quiet --editable ".[dev,golden]"
	build/test-logits/bin/python -m pytest tests/runtime/cli/test_verify.py tests/runtime/measure tests/converter/calibration $(PYTEST_ARGS)

coverage: $(INSTALLED)  ## which lines the tests run, child processes included: build/coverage/index.html
	mkdir -p build/coverage
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run $(PYTEST) -m "not real_model" $(PYTEST_ARGS)
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage html --quiet
	$(VENV)/bin/coverage report

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf build/imports && mkdir -p build/imports/tritgguf
	cp -r converter runtime runtime/tritgguf/*.py build/imports/tritgguf && rm -r build/imports/tritgguf/runtime/tritgguf
	@# -S: without the finder of the editable install, which comes before this copy and knows other folders.
	PYTHONPATH=build/imports:$$($(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		$(PY) -S $(VENV)/bin/lint-imports --no-cache

types: $(INSTALLED)
	mkdir -p build/types/tritgguf
	ln -sf ../../../runtime/tritgguf/__init__.py ../../../runtime/tritgguf/__main__.py build/types/tritgguf/
	ln -sfn ../../../converter build/types/tritgguf/converter
	ln -sfn ../../../runtime build/types/tritgguf/runtime
	$(VENV)/bin/mypy -p tritgguf

wheel-test: $(INSTALLED)  ## what a wheel could lack, tested on the built one in an environment of its own
	rm -rf build/wheel-test
	$(PY) -m build --outdir build/wheel-test/dist
	$(PYTHON) -m venv build/wheel-test
	build/wheel-test/bin/python vendor/install_runtime.py $(if $(BACKEND),--backend $(BACKEND))
	build/wheel-test/bin/python -m pip install --quiet "$$(echo build/wheel-test/dist/*.whl)[dev]"
	build/wheel-test/bin/python $(PYTEST) -m "not real_model" $(WHEEL_TESTS) $(PYTEST_ARGS)

wheels: $(INSTALLED)  ## dist/: tritgguf, and a runtime for any CPU of this kind; 30 minutes on 2 cores the first time
	rm -rf build/wheels dist
	$(PY) vendor/install_runtime.py --wheel build/wheels
	$(PY) -m build --outdir build/wheels
	.ci/repair-wheels build/wheels dist

from-wheels:  ## from dist/ to an answer, in an environment of its own, without a compiler
	.ci/from-wheels dist build/from-wheels

$(VENV)/installed-docs: $(INSTALLED)
	$(PY) -m pip install --quiet --editable ".[docs]"
	touch $@

docs: $(VENV)/installed-docs  ## the docs as a site, build/site/index.html; stops at a broken link or a page that isn't in mkdocs.yml
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --clean
	! grep -rE '<(script|link|img|iframe)[^>]*(src|href)="?(https?:)?//' --include=*.html build/site  # what others would serve

golden: $(INSTALLED)  ## record the goldens again; needs torch and transformers
	$(PY) -m pip install --quiet --editable ".[golden]"
	$(PY) -m tests.golden.record
	$(PY) -m tests.golden.record_bitnet
	$(PY) -m tests.golden.record_packing
	$(PY) -m tests.golden.record_exports
	$(PY) -m tests.golden.record_compressed_tensors

golden-go: $(INSTALLED)  ## record what Go renders of the templates for Ollama; needs go (1.18 or newer) on the PATH
	$(PY) -m tests.golden.record_go_templates

bench: $(INSTALLED)  ## conversion times against llama.cpp's ways and cp; needs torch, 25 GB of disk, nothing else running
	$(PY) -m pip install --quiet --editable ".[bench,golden]"
	$(PY) -m tests.bench.conversion $(MODELS)/bench
	$(PY) -m tests.bench.stages $(MODELS)/bench/floats $(MODELS)/bench/out.gguf
	$(PY) -m tests.bench.sizes $(MODELS)/bench-sizes

bench-kernels: $(INSTALLED)  ## the CPU kernels against llama.cpp's: table, JSON and a plot in tests/bench/results; 10 minutes
	$(PY) -m pip install --quiet --editable ".[bench]"
	$(PY) -m tests.bench.kernels

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find converter runtime -name '_kernels.*' -delete
