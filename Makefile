# OpenLDM. Each target sets up what it needs in .venv and changes nothing outside this folder.
# Needs python3 (3.11 or newer), python3-venv and make. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
# CPU=1 installs PyTorch without CUDA: about 2 GB in all instead of 6.6 GB
CPU ?=
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
# a file of tests stays in one process, because its fixtures are shared
WORKERS := -n 2 --dist loadfile

# Compiled tests and modules are kept, even if the caller has turned that off: compiling all of them again costs each
# worker of the tests ten seconds, and each program that a test starts some of that.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test test-all format reference clean

help:
	@echo "make demo      set up, draw a red apple with the embedded models and make it blue"
	@echo "               (make demo CPU=1 installs PyTorch without CUDA: 2 GB in all instead of 6.6 GB)"
	@echo "make test      set up, check style and types, run the tests"
	@echo "make test-all  the same with the slow tests"
	@echo "make format    format the code"
	@echo "make reference write docs/reference/ and docs/museum.md from the code"
	@echo "make clean     remove .venv, builds and caches"

DRAWN := outputs/demo/0001-a-red-apple-s7.png
EDITED := outputs/demo/edited/0001-make-the-apple-blue-s7.png

demo: $(VENV)/installed
	$(BIN)/ldm generate "a red apple" --seed 7 --output outputs/demo --overwrite
	$(BIN)/ldm generate "make the apple blue" --model emoji-edit --image $(DRAWN) --seed 7 \
		--output outputs/demo/edited --overwrite
	@$(BIN)/python scripts/contact_sheet.py outputs/demo/sheet.png $(DRAWN) $(EDITED)
	@echo "The images are in $(CURDIR)/outputs/demo, side by side in sheet.png"
	@echo "For a page in the browser: $(BIN)/pip install -c constraints.txt '.[ui]' and $(BIN)/ldm serve"

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(WORKERS) --durations=10
	$(BIN)/python -m pytest -m "openvino and not slow"

test-all: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(WORKERS) -m "not gpu and not openvino" --durations=10
	$(BIN)/python -m pytest -m openvino

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(VENV)/installed-dev
	$(BIN)/python scripts/reference.py
	$(BIN)/python scripts/museum.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find ldm train tests scripts -name __pycache__ -prune -exec rm -rf {} +

TORCH_FIRST = $(if $(CPU),$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	--extra-index-url $(TORCH_CPU_INDEX) torch torchvision)

# The stamps: dependencies are installed again only when the requirements change. The install is editable, so
# changed code needs no new one.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(TORCH_FIRST)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(TORCH_FIRST)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/installed

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "OpenLDM needs Python 3.11 or newer, this is $$($(PYTHON) -V): try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is incomplete: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
