# Each target makes its own surroundings; a second call installs nothing again. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench clean help
.DELETE_ON_ERROR:

help:
	@echo "make demo   explain two photos with a trained network, no download; pictures in demo-out/"
	@echo "make test   the tests     make lint   ruff and mypy     make bench   timings, as ratios"

demo: $(VENV)/.demo
	$(BIN)/python -m graphattr demo

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

bench: $(VENV)/.test
	$(BIN)/python -m tests.bench $(BENCH)

# One stamp per extra; a changed pyproject.toml installs again.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e ".[$*]"
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
