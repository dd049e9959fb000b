# Everything a user or CI needs; `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
TESTED := .venv/installed-for-tests
# One thread per process: the tests run two processes on two cores.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1
.DEFAULT_GOAL := help
.PHONY: demo docs test test-slow test-kernels lint format notebooks pictures clean help

demo: $(STAMP)  ## train, evaluate, write text and a report, from nothing (6 minutes on two cores)
	$(BIN)/equilibria demo

test: lint  ## lint, formatting, types, and all tests but the slow ones
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -q -n 2 -m 'not slow'

test-slow: $(TESTED)  ## kills, power cuts, torchrun, compilers, long fuzzing
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -q -n 2 -m slow

test-kernels: $(TESTED)  ## the numerical tests with other kernels and oddly placed memory; LISTS="avx2 odd" for some
	$(BIN)/python tests/kernels.py $(LISTS)

docs: $(TESTED)  ## the documentation site, in .cache/site; `.venv/bin/mkdocs serve` shows it while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(TESTED)  ## ruff and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(STAMP)  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

notebooks: $(TESTED)  ## execute the notebooks of examples/ whose code has changed
	$(BIN)/python examples/notebooks.py

pictures: $(TESTED)  ## draw the pictures of the gallery; RUN=runs/demo-1 takes those of report, playground, terminal, too
	set -e; for name in classifier graph_network denoising implicit_representation language_model; do \
	  $(BIN)/python examples/gallery/$$name.py; done
	$(if $(RUN),$(BIN)/python docs/_screens.py $(RUN))

clean:  ## remove the environment, caches and build results (runs are kept)
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis dist

help:
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch is asked for by its exact version: the plain wheel suffices, extras of other builds are not wanted.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) -V 2>&1); try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 hatchling editables
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,tensorboard,data,serve]'
	@touch $@

# What only tests need, Hugging Face's libraries, so that `make demo` need not wait for it.
$(TESTED): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[hf,eval,docs]'
	@touch $@
