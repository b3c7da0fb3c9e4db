# The commands of this checkout; `make help` lists them. Each installs what it needs and says so.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
CACHE := .cache
STAMP := $(VENV)/.stamp
PYTHON ?= python3
NATIVE := $(wildcard native/*.[ch] native/tests/*.c benchmarks/*.c native/Makefile)

.PHONY: help setup run test check lint format types imports native-test test-rootless test-vm bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)-run ## Install what hutch needs: packages, .venv, the compiled hutch-init

$(STAMP)-run: pyproject.toml constraints.txt hatch_build.py scripts/packages $(NATIVE)
	@scripts/packages run
	[ -x $(BIN)/python ] || { echo "making the virtual environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	echo "installing hutch into $(VENV)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(STAMP)-dev: $(STAMP)-run
	@scripts/packages test
	echo "installing the development tools into $(VENV)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

run: $(STAMP)-run ## Run the example: a real program on real input, in a sandbox
	@$(BIN)/python examples/first_light.py

lint: $(STAMP)-dev ## Style of Python, C and shell, spelling
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror native/*.[ch] native/tests/*.c benchmarks/*.c
	$(BIN)/shellcheck scripts/* .ci/run
	$(BIN)/codespell

format: $(STAMP)-dev ## Put Python and C into shape
	@$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	$(BIN)/clang-format -i native/*.[ch] native/tests/*.c benchmarks/*.c

types: $(STAMP)-dev ## Types of everything, strictly
	@$(BIN)/mypy
	$(BIN)/mypy tests examples benchmarks

imports: $(STAMP)-dev ## Which part may import which
	@$(BIN)/lint-imports --no-logo

test: lint types imports ## Everything that is quick: style, types, imports and the tests
	@$(BIN)/pytest

native-test: $(STAMP)-dev ## hutch-init: static analysis, unit tests under sanitizers, fuzzing
	@$(MAKE) --no-print-directory -C native analyze test fuzz

test-rootless: $(STAMP)-dev ## The engine's tests as an ordinary user
	@scripts/test-rootless

test-vm: $(STAMP)-dev ## The core of the tests on Debian's kernel and cgroup v2, in an emulated machine
	@scripts/packages vm
	scripts/test-vm

bench: $(STAMP)-dev ## Measure against the floor, bubblewrap and runc, in one run
	@scripts/packages bench
	$(BIN)/python -m benchmarks

check: test native-test test-rootless test-vm ## Exactly what CI runs

clean: ## Remove what the targets above have made here
	@rm -rf $(VENV) $(CACHE) native/build src/hutch/_bin .mypy_cache .ruff_cache .pytest_cache \
		.import_linter_cache .hypothesis dist
