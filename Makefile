# GNU make and a python3 >= 3.10 are all that is needed; every target makes the environment that it uses.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PIP_ARGS ?=

TEST_VENV := .venv-test
# What `make parity` compares, and where the originals live that do not go with the newest transformers.
ONLY ?= roformer mamba rwkv vqgan
ROFORMER_VENV := .venv-parity-roformer
RWKV_VENV := .venv-parity-rwkv
VQGAN_VENV := .venv-parity-vqgan
PARITY_READY = $(if $(filter roformer,$(ONLY)),$(ROFORMER_VENV)/.ready) $(if $(filter rwkv,$(ONLY)),$(RWKV_VENV)/.ready) \
	$(if $(filter vqgan,$(ONLY)),$(VQGAN_VENV)/.ready)
CHECK = $(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "noria needs Python 3.10 or newer: make PYTHON=...")'
PIP := -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
QUESTIONS = $(shell grep -l __main__ benchmarks/*.py)

# One thread per process: OpenMP threads that spin on a busy core slow everything down several times.
PYTEST := -m pytest -q -n $(WORKERS) --dist loadfile
ONE_THREAD := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help quickstart quickstart-image test fresh suite slow lint style types conformance parity bench wheel clean

help:
	@echo "make quickstart   train a small model on the CPU, about two minutes; ARGS=... goes to noria quickstart"
	@echo "make quickstart-image  the same for pictures: a VQGAN of emoji and a prior, about five minutes"
	@echo "make test         the whole suite in a fresh environment ($(TEST_VENV))"
	@echo "make slow         the tests that are too slow for make test"
	@echo "make lint         ruff check, ruff format --check, pyright on modeling/"
	@echo "make conformance  transformers' own test mixins; TRANSFORMERS_TESTS=path/to/transformers/tests"
	@echo "make parity       RoFormer, Mamba, RWKV and VQGAN against their originals in PyTorch, both ways; ONLY=... of: $(ONLY)"
	@echo "make bench        the benchmarks, into benchmarks/RESULTS.md; ARGS=--quick for a trial"
	@echo "make wheel        wheel and sdist in dist/"
	@echo "make clean        remove environments, builds and caches"

$(VENV)/.viz: pyproject.toml constraints.txt
	@echo "Installing noria, PyTorch and transformers into $(VENV); this takes a minute or two."
	@$(CHECK)
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python $(PIP) -e '.[viz]'
	@touch $@

$(VENV)/.image: pyproject.toml constraints.txt $(VENV)/.viz
	@$(VENV)/bin/python $(PIP) -e '.[viz,image]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@$(CHECK)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) -e '.[dev]'
	touch $@

quickstart: $(VENV)/.viz
	@OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000 $(VENV)/bin/noria quickstart $(ARGS)

quickstart-image: $(VENV)/.image
	@OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000 $(VENV)/bin/noria quickstart-image $(ARGS)

test:
	$(MAKE) --no-print-directory fresh
	$(MAKE) --no-print-directory suite

fresh:
	@$(CHECK)
	rm -rf $(TEST_VENV)
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/python $(PIP) -e '.[dev]'

suite:
	$(ONE_THREAD) $(TEST_VENV)/bin/python $(PYTEST) $(ARGS)

slow: $(VENV)/.dev
	$(ONE_THREAD) $(VENV)/bin/python $(PYTEST) -m slow $(ARGS)

lint: style types

style: $(VENV)/.dev
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/python -m pyright --pythonpath $(VENV)/bin/python modeling

ifeq ($(strip $(TRANSFORMERS_TESTS)),)
conformance:
	@echo "conformance: nothing run, TRANSFORMERS_TESTS is not set (give the path of transformers' tests folder)"
else
conformance: $(VENV)/.dev
	$(ONE_THREAD) TRANSFORMERS_TESTS='$(TRANSFORMERS_TESTS)' $(VENV)/bin/python $(PYTEST) $(wildcard tests/conformance tests/test_conformance.py) -m 'slow or not slow' $(ARGS)
endif

# The package roformer works with transformers of 2023 alone, so it has an environment of its own.
$(ROFORMER_VENV)/.ready: tests/parity/requirements-roformer.txt
	@$(CHECK)
	$(PYTHON) -m venv $(ROFORMER_VENV)
	$(ROFORMER_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r $<
	$(ROFORMER_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps roformer==0.4.3
	touch $@

# Only the comparison wants the package rwkv; the development environment does without it.
$(RWKV_VENV)/.ready: tests/parity/requirements-rwkv.txt
	@$(CHECK)
	$(PYTHON) -m venv $(RWKV_VENV)
	$(RWKV_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r $<
	touch $@

$(VQGAN_VENV)/.ready: tests/parity/requirements-taming.txt
	@$(CHECK)
	$(PYTHON) -m venv $(VQGAN_VENV)
	$(VQGAN_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r $<
	$(VQGAN_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps taming-transformers-rom1504==0.0.6
	touch $@

parity: $(VENV)/.dev $(PARITY_READY)
	$(ONE_THREAD) $(VENV)/bin/python tests/parity/run.py --only $(ONLY) --old-python $(ROFORMER_VENV)/bin/python --rwkv-python $(RWKV_VENV)/bin/python --vqgan-python $(VQGAN_VENV)/bin/python

bench: $(VENV)/.dev
	@for question in $(QUESTIONS); do echo "$$question"; $(VENV)/bin/python $$question --write $(ARGS) || exit 1; done

wheel: $(VENV)/.dev
	$(VENV)/bin/python -m build --outdir dist .
	rm -rf build *.egg-info

clean:
	rm -rf $(VENV) $(TEST_VENV) $(ROFORMER_VENV) $(RWKV_VENV) $(VQGAN_VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
