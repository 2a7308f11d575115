# Needs Python 3.11 or newer, a Rust toolchain and gcc; everything else goes into .venv.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach python,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(python) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(python))))

.PHONY: setup demo test test-targets check bench

setup: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer on PATH. Install one, or name it: make PYTHON=/path/of/python3" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "No cargo on PATH. Install Rust: https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "No C compiler (cc) on PATH, which Rust links with. Install gcc." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

demo: setup
	$(BIN)/python fixtures/demo.py

test: setup
	$(BIN)/python -m pytest

# Other processors and systems; the first run installs Debian packages and builds standard libraries.
test-targets: setup
	$(BIN)/python -m tests.targets.prepare
	$(BIN)/python -m pytest tests/targets

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m bench.run
