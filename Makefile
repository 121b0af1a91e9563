# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format methods bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv with everything in it (again only when pyproject.toml or constraints.txt change)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mtlbench needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 install" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,tensorboard]'
	@touch $@

demo: $(INSTALLED)  ## train 5 methods x 3 seeds on the embedded benchmark and write runs/demo/report.html
	@$(BIN)/mtlbench train -m experiment=demo hydra.sweep.dir=runs/demo; status=$$?; \
		$(BIN)/mtlbench report runs/demo && exit $$status

test: $(INSTALLED)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

lint: $(INSTALLED)  ## check style (ruff), types (mypy) and who imports whom (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

methods: $(INSTALLED)  ## write mtlbench/balancing/README.md from the balancers' docstrings
	$(BIN)/python -m tests.balancing.page

bench: $(INSTALLED)  ## measure what a training step and the balancers' solvers cost beside TorchJD's, and the engine's approximations; writes the tables shown
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench

clean:  ## remove caches and build outputs (.venv and runs/ stay)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
