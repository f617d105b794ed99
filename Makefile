# Every target sets up .venv automatically. PYTHON=... names an interpreter, CONSTRAINTS= installs without the pinned versions.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$python && break; done)
CONSTRAINTS ?= -c constraints.txt
BIN := .venv/bin
WITHOUT := -m 'not soak'
STAMP := .venv/stamp-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)

# Else each of the many processes that tests start would compile the modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo gpu test test-all scorecard unit lint format types clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

setup: $(STAMP) ## Create or update .venv

demo: setup ## Train a small model on six generated domains, on the CPU, in minutes
	$(BIN)/raymix demo

gpu: setup ## Check numbers, memory and speed on one GPU, within ten minutes; without one it says so
	$(BIN)/python benchmarks/gpu.py

test: runs ## Run the tests; files that start Ray or train run two at a time

test-all: runs ## Run all tests, the long ones as well
test-all: WITHOUT :=

.PHONY: runs
runs: unit
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(WITHOUT) tests/chaos tests/integration

scorecard: setup ## Run the tests of the reliability scorecard, and print which promises are held
	$(BIN)/python -m tests.scorecard

# Twice as many at a time as there are cores: many of them wait.
unit: setup ## Run the tests that need neither Ray nor DeepSpeed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$((2 * $$(getconf _NPROCESSORS_ONLN))) --dist worksteal $(WITHOUT) tests/unit tests/contract tests/security tests/golden

lint: setup ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## Fix style and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## Check the types
	$(BIN)/mypy

clean: ## Remove .venv and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build

# Keyed by the inputs of the environment: a changed pin installs again, a second call costs nothing.
$(STAMP):
ifeq ($(PYTHON),)
	$(error raymix needs Python 3.11, 3.12 or 3.13, and none of python3.11, python3.12, python3.13, python3 is one; install one or give PYTHON=/path/to/python)
endif
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] < (3, 14) else f"{sys.executable} is Python {v[0]}.{v[1]}; raymix needs 3.11, 3.12 or 3.13")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[dev]'
	rm -f .venv/stamp-*
	touch $@
