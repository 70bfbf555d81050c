# Two commands, each of which does its own set-up on a machine with Python >= 3.11:
#   make quickstart   a tour of the four methods, and one HTML report of it
#   make test         the test suite
# They install for the CPU. On a GPU or TPU host: make quickstart EXTRAS=cuda, or tpu.
# Besides: test-slow, lint, bench (all measurements of speed) and bench-gpu.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?=
# How many test processes run side by side. A test file is not split between them, so
# that its fixtures run once.
WORKERS ?= auto
BIN := $(VENV)/bin
comma := ,
# A file that says what is installed; other extras have another file.
STAMP := $(VENV)/.installed$(if $(EXTRAS),.$(subst $(comma),.,$(EXTRAS)))
ALL_EXTRAS := photos$(if $(EXTRAS),$(comma)$(EXTRAS))

# Compiled programs are kept between commands, so that the second start is quick.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 1

.PHONY: quickstart test test-slow bench bench-gpu lint clean

quickstart: $(STAMP)
	$(BIN)/jaxanom quickstart --run runs/quickstart

# Test processes share small programs too.
test test-slow: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0.1

test: $(STAMP)-test
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: $(STAMP)-test
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

bench: $(STAMP)-bench
	$(BIN)/python -m benchmarks.suite --device cpu

bench-gpu: $(STAMP)-bench
	$(BIN)/python -m benchmarks.suite --device gpu $(if $(ONLY),--only $(ONLY))

lint: $(STAMP)-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxanom needs Python >= 3.11, this is " + sys.version.split()[0] + "; set PYTHON=python3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(STAMP): setup.py $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(ALL_EXTRAS)]'
	@touch $@

$(STAMP)-test: setup.py $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[$(ALL_EXTRAS),test,hf]' ruff accelerate
	@touch $@ $(STAMP)

$(STAMP)-bench: $(STAMP)-test
	$(BIN)/python -m pip install --quiet --editable '.[$(ALL_EXTRAS),bench]'
	@touch $@

clean:
	rm -rf $(VENV) .jax_cache runs build *.egg-info
