# Every habit of this project. `make` alone explains itself.
# Nothing here downloads from anywhere but the package index, and uv never fetches an interpreter.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python that is new enough; `make PYTHON=/path/to/python test` names another one.
is-new-enough = $(shell $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(1))
PYTHON ?= $(firstword $(foreach candidate,python3.13 python3.12 python3.11 python3,$(call is-new-enough,$(candidate))))

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 4
PROTO := jobrunner/backends/armada/jobservice/jobservice

export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON := $(CURDIR)/$(BIN)/python

.PHONY: help demo example test chaos check bench docs build clean proto

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## */|/' | awk -F'|' '{printf "make %-7s  %s\n", $$1, $$2}'

demo: $(READY)  ## start a few jobs, kill one, see what there is: ten seconds
	@$(BIN)/python -m jobrunner.demo

example: $(READY)  ## AWS Batch, Armada and Airbyte from end to end, without any of them: forty seconds
	@$(BIN)/python examples/aws_batch.py
	@$(BIN)/python examples/armada.py
	@$(BIN)/python examples/airbyte.py

test: $(READY)  ## all tests, in random order, in as many processes as WORKERS says
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal

chaos: $(READY)  ## kill, stop, cut and fill for ten minutes: nothing is lost or done twice; then a soak: nothing is kept
	@GRPC_VERBOSITY=NONE $(BIN)/python -m tests.chaos $(CHAOS)

check: $(READY)  ## lint, format, types, the layers, the migrations, the lock file
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && set -x && \
	export JOBRUNNER_DATABASE_URL="sqlite:///$$directory/check.db" && \
	$(BIN)/alembic upgrade head && $(BIN)/alembic check
	@set -x; directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && \
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=$$directory --pyi_out=$$directory $(PROTO).proto && \
	diff $$directory/$(PROTO)_pb2.py $(PROTO)_pb2.py && diff $$directory/$(PROTO)_pb2.pyi $(PROTO)_pb2.pyi
	$(BIN)/uv lock --check

bench: $(READY)  ## measure: beats, kills, questions, beside the raw driver
	@$(BIN)/python -m bench

docs: $(READY)  ## build the pages into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

proto: $(READY)  ## generate the messages of Armada's JobService anew
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. $(PROTO).proto

build: $(READY)  ## sdist and wheel into dist/
	$(BIN)/uv build

clean:  ## remove what was built, and the environment
	rm -rf $(VENV) build dist docs/_build .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml uv.lock | $(BIN)/uv
	$(BIN)/uv sync --locked --all-extras --compile-bytecode
	@$(BIN)/python -m compileall -q jobrunner
	@touch $@

# uv is in the lock file too: `uv sync` puts the locked version in the place of this first one.
$(BIN)/uv:
	@if [ -z "$(PYTHON)" ]; then \
		echo "jobrunner needs Python 3.11 or newer, and none was found on the PATH." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
		exit 1; \
	fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.8"
