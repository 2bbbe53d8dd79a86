# `make demo` and `make test` need git, make and Python 3.11+; everything else they install into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test check bench docs clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY) ## the whole pipeline on the embedded digits: metrics and a picture in demo/
	@PATH="$(CURDIR)/$(BIN):$$PATH" examples/quickstart.sh demo

test: check ## every test
	$(BIN)/python -m pytest

check: $(READY) ## what CI runs before the tests: style, types, imports, scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck examples/*.sh examples/slurm/*.sh .ci/run

bench: $(READY) ## what is fast, measured against what, in one run
	PYTHONPATH=. $(BIN)/python benchmarks/search_step.py
	PYTHONPATH=. $(BIN)/python benchmarks/retrain_step.py
	PYTHONPATH=. $(BIN)/python benchmarks/input.py
	PYTHONPATH=. $(BIN)/python benchmarks/scaling.py
	PYTHONPATH=. $(BIN)/python benchmarks/shared_machine.py

docs: $(READY) ## the figures and tables of docs/ from the runs in first-run/ (see examples/first-run.sh)
	$(BIN)/python examples/first_run_table.py first-run

clean: ## remove what the targets made, the environment included
	rm -rf $(VENV) demo
