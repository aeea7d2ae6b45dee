# Needs Python >= 3.10, git and make; everything else is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?= -n auto --maxprocesses=4

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | \
	  awk -F ':.*## ' '{ printf "make %-6s %s\n", $$1, $$2 }'

demo: $(VENV)/.examples  ## train on the handwritten digits, draw samples (needs no data set)
	$(BIN)/python examples/train_image.py --output_dir=results/digits
	@echo "The results are in results/digits:"
	@ls results/digits

test: lint  ## lint, then run the tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/.dev  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.bench  ## measure speed and memory; with BENCH_DATA=images.npz also bits/dim
	$(BIN)/python -m benchmarks.run --output_dir=results/bench \
	  $(if $(BENCH_DATA),--quality_data=$(BENCH_DATA)) $(BENCH_FLAGS)
	@echo "The results are in results/bench:"
	@ls results/bench

clean:  ## remove the environment, caches and results
	rm -rf $(VENV) build dist results *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is older than pyproject.toml only when the dependencies may have changed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.examples: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[examples]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[examples,dev]'
	@touch $@ $(VENV)/.examples

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[examples,bench]'
	@touch $@ $(VENV)/.examples
