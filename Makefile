# Needs Python 3.11 or later with its venv module (on Debian and Ubuntu: apt install python3-venv), and nothing else.
#
#   make demo    run the demonstration on the shipped recording (its files land in linscan-demo/)
#   make test    run all tests                        ARGS="tests/ops/test_scan.py -x" runs some
#   make lint    ruff and mypy
#   make docs    the documentation, into docs/_build/html
#   make bench   measure every operation against its peers
#   make results put ended runs into docs/results.md  ARGS="linscan-train/copy-lru-small …"
#   make table   put the support table into the README
#   make clean   remove the environment and what was built
#
# PYTHON=python3.12 chooses the interpreter, VENV=path the virtual environment, ARGS="…" what a command is given.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python py; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
RUN := $(BIN)/python
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet --prefer-binary
ARGS ?=

.PHONY: demo test lint docs bench results table clean

demo: $(VENV)/.plot
	$(RUN) -m linscan demo $(ARGS)

test: $(VENV)/.test
	$(RUN) -m pytest -n 2 $(ARGS)

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/.docs
	$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: $(VENV)/.bench
	$(RUN) -m benchmarks $(ARGS)

results: $(VENV)/.bench
	$(RUN) -m benchmarks.results $(ARGS)

table: $(VENV)/.test
	$(RUN) .ci/update_support_table.py

clean:
	rm -rf build dist docs/_build linscan-demo
	@test ! -e $(VENV)/pyvenv.cfg || rm -rf $(VENV)

# One stamp per extra: an extra is installed anew only when pyproject.toml changes.
$(VENV)/.%: pyproject.toml | $(RUN)
	@echo "Installing linscan[$*] into $(VENV) (a minute the first time)"
	$(PIP) -e '.[$*]'
	@touch $@

$(RUN):
	@test -n "$(PYTHON)" || { echo "linscan needs Python 3.11 or later; set PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "linscan needs Python 3.11 or later; $(PYTHON) is older, or is not there" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) lacks venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
