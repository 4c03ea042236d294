# The everyday commands. `make` alone prints them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install quickstart curriculum-mini check browser test faults soak clean

help:
	@echo "make install          make $(VENV) from requirements.lock"
	@echo "make quickstart       train VAE, CLIP and UNet from nothing and draw pictures: minutes on a CPU"
	@echo "make curriculum-mini  all nine stages of the curriculum, small, and a page about them"
	@echo "make check            ruff, import-linter, mypy"
	@echo "make browser          Chromium for the tests of the page, by apt-get, where it is missing; they are skipped without"
	@echo "make test             the tests"
	@echo "make faults           the fault tests in their long form, with their counts: hundreds of kills and damaged files"
	@echo "make soak             the service under load in its long form: half an hour of callers, crowds, 5,000 made-up requests"
	@echo "make clean            remove caches; runs/ and data/ stay"

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $(READY)

install: $(READY)
	@echo "now: source $(BIN)/activate    which puts sdscratch on your PATH"

quickstart: $(READY)
	$(BIN)/sdscratch quickstart

curriculum-mini: $(READY)
	$(BIN)/python experiments/2026-11-26-curriculum-mini/run.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

browser:
	@command -v chromium > /dev/null \
		|| { test "$$(id -u)" = 0 && timeout 120 apt-get update -q && timeout 300 apt-get install -q -y --no-install-recommends chromium; } \
		|| echo "Chromium could not be installed: the tests of the page will be skipped"

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadgroup

faults: $(READY)
	SDS_FAULTS=long $(BIN)/python -m pytest tests/faults -v -s --timeout=3600

soak: $(READY)
	SDS_SOAK=long $(BIN)/python -m pytest tests/serving -v -s --timeout=7200

clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
