# `make demo` and `make test` need git, make and Python 3.11+. They install everything else into .venv.
PYTHON ?= python3
JOBS ?= 2  # processes that run the tests
VENV := .venv
BIN := $(VENV)/bin
# Where `make table1-small`, `searches` and `figures` find CIFAR-10, as train/CLASS/*.png and test/CLASS/*.png, and keep their runs
CIFAR10 ?= cifar10
RUNS ?= runs
READY := $(VENV)/.ready
FILL = $(BIN)/python experiments/fill.py docs/results.md docs/searches.md --runs $(RUNS)

.PHONY: help demo test slurm check bench docs clean table1-tiny table1-digits table1-small searches figures results

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY) ## run the whole pipeline on the embedded digits; metrics and a picture go to demo/
	@PATH="$(CURDIR)/$(BIN):$$PATH" examples/quickstart.sh demo

test: check ## run the checks and all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

slurm: $(READY) ## run examples/slurm under SLURM itself, if it is installed here: two nodes on this machine
	$(BIN)/python -m pytest -m slurm -rs tests/faults

check: $(READY) ## check style, types, imports and scripts, as CI does before the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck examples/*.sh examples/slurm/*.sh .ci/run

bench: $(READY) ## run all benchmarks and write their tables to docs/performance.md
	PYTHONPATH=. $(BIN)/python benchmarks/search_step.py
	PYTHONPATH=. $(BIN)/python benchmarks/digits.py --pairs 20
	PYTHONPATH=. $(BIN)/python benchmarks/relaxations.py
	PYTHONPATH=. $(BIN)/python benchmarks/retrain_step.py
	PYTHONPATH=. $(BIN)/python benchmarks/bf16.py
	PYTHONPATH=. $(BIN)/python benchmarks/kernel_floor.py
	PYTHONPATH=. $(BIN)/python benchmarks/input.py
	PYTHONPATH=. $(BIN)/python benchmarks/recipe.py
	PYTHONPATH=. $(BIN)/python benchmarks/tracking.py
	PYTHONPATH=. $(BIN)/python benchmarks/predict.py
	PYTHONPATH=. $(BIN)/python benchmarks/scaling.py
	PYTHONPATH=. $(BIN)/python benchmarks/many_images.py
	PYTHONPATH=. $(BIN)/python benchmarks/large_data.py
	PYTHONPATH=. $(BIN)/python benchmarks/shared_machine.py
	PYTHONPATH=. $(BIN)/python benchmarks/two_searches.py
	PYTHONPATH=. $(BIN)/python benchmarks/ranks.py

table1-tiny: $(READY) ## the arms of the paper's Table I on the embedded digits, in minutes: a trial
	$(BIN)/ssfnas sweep experiments/table1/tiny.toml -o $(RUNS)/table1-tiny --run --jobs $(JOBS)
	$(BIN)/ssfnas compare $(RUNS)/table1-tiny --sweep experiments/table1/tiny.toml --baseline darts

table1-digits: $(READY) ## the table of the digits in docs/results.md, in less than an hour; it goes on where it was stopped
	$(BIN)/ssfnas sweep experiments/table1/digits.toml -o $(RUNS)/table1-digits --run --jobs $(JOBS)
	$(FILL)

table1-small: $(READY) $(CIFAR10)/train ## the table of CIFAR10-LT in docs/results.md, in hours; it goes on where it was stopped
	$(BIN)/ssfnas sweep experiments/table1/small.toml --set data.root=$(CIFAR10) -o $(RUNS)/table1-small --run --jobs $(JOBS)
	$(FILL)

searches: $(READY) $(CIFAR10)/train ## the table of docs/searches.md, in hours; it goes on where it was stopped
	$(BIN)/ssfnas sweep experiments/searches/searches.toml --set data.root=$(CIFAR10) -o $(RUNS)/searches --run --jobs $(JOBS)
	$(FILL)

figures: $(READY) $(CIFAR10)/train ## Figures 6 to 8 of the paper in docs/results.md, in hours; it goes on where it was stopped
	$(BIN)/ssfnas sweep experiments/figures/figures.toml --set data.root=$(CIFAR10) -o $(RUNS)/figures --run --jobs $(JOBS)
	$(FILL)

results: $(READY) ## fill docs/results.md and searches.md with what there is of all runs, kept ones included, whole or not
	$(BIN)/python experiments/keep.py --restore $(RUNS)
	$(FILL)

$(CIFAR10)/train: | $(READY)
	$(BIN)/python experiments/cifar10.py $(CIFAR10)

docs: $(READY) ## build the documentation as a site: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean

clean: ## remove the files of these targets, including the environment
	rm -rf $(VENV) demo site
