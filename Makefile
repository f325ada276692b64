# OpenLDM. Each target sets up what it needs in .venv; nothing outside this folder is touched.
# Needs python3 (3.11 or newer), python3-venv and make. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-all format clean

help:
	@echo "make demo      set up and draw a red apple with the embedded model"
	@echo "make test      set up, check style and types, run the tests"
	@echo "make test-all  the same with the slow tests"
	@echo "make format    put the code into its format"
	@echo "make clean     remove .venv, builds and caches"

demo: $(VENV)/installed
	$(BIN)/ldm generate "a red apple" --seed 7 --output outputs/demo --overwrite
	@echo "The picture lies in $(CURDIR)/outputs/demo"

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest -m "openvino and not slow"

test-all: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not gpu and not openvino"
	$(BIN)/python -m pytest -m openvino

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find ldm train tests scripts -name __pycache__ -prune -exec rm -rf {} +

# The stamps: a second call installs again only when the requirements changed. The install is editable,
# so changed code needs none.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/installed

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "OpenLDM needs Python 3.11 or newer, this is $$($(PYTHON) -V): try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is incomplete: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
