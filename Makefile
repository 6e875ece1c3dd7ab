# Every target sets up what it needs, and is quick when repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: help demo test lint types unit long bench format clean

help:  ## what there is
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: a later resolution can then only agree with the pinned build
$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) torch
	$(INSTALL) --editable '.[dev]'
	touch $@

$(VENV)/.digits: $(VENV)/.dev
	$(INSTALL) --editable '.[digits]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(INSTALL) --editable '.[bench]'
	touch $@

demo: $(VENV)/.dev  ## eight schools, three ways, 64 chains: table and plots (in out/)
	$(BIN)/python tutorials/eight_schools.py

test: lint types unit  ## lint, types and the default tests

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy
	$(BIN)/mypy

unit: $(VENV)/.dev  ## the default tests
	$(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal

long: $(VENV)/.digits  ## the longer checks
	$(BIN)/python -m pytest -q -m long --numprocesses 2 --dist worksteal

BENCHMARKS := langevin losses nuts_equality nuts discrete rbm rbm_likelihood rbm_order score

bench: $(VENV)/.bench $(VENV)/.digits  ## benchmarks next to their peers
	for script in $(BENCHMARKS); do $(BIN)/python -m tests.benchmarks.$$script || exit 1; done

format: $(VENV)/.dev  ## rewrite with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches
	rm -rf $(VENV) build out .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
