# `make help` lists the targets. Everything happens in .venv; delete it to start afresh.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
.DEFAULT_GOAL := help

.PHONY: help train test test-all chaos fuzz gpu lint clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## */\t/' | expand -t 12

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

train: .venv/installed  ## install and train; ARGS="model=alexnet_lrn data=cifar10" passes overrides on
	$(BIN)/python train.py $(ARGS)

lint: .venv/installed-dev  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## install, lint, and run the tests but the slow ones
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-all: lint  ## every test, the slow ones too
	$(BIN)/python -m pytest -n 2 -m "not gpu" $(ARGS)

chaos: .venv/installed-dev  ## kill 20 trainings at random moments, resume and compare them; ARGS="--epochs 400" trains longer
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: .venv/installed-dev  ## random networks, settings, folders, images and checkpoints, many more than make test has
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=long $(ARGS)

gpu: .venv/installed-dev  ## everything that is to be known of a GPU, in nine minutes; ARGS="--parts rates" runs some of it
	$(BIN)/python benchmarks/gpu.py $(ARGS)

clean:  ## remove the environment and caches (runs stay)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
