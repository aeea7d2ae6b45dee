# Needs Python 3.10 to 3.13, git and make. Everything else is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
# Each worker has a run of neighboring tests, which share the models of their file.
PYTEST_FLAGS ?= -n auto --maxprocesses=4 --dist=worksteal

# TensorFlow 2.18 and 2.19 have no wheels for Python 3.13.
OLD_PYTHON ?= $(shell for python in $(PYTHON) python3.12 python3.11 python3.10; do \
  $$python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' 2>/dev/null && \
  echo $$python && break; done)

VECTOR_TESTS := $(addprefix tests/,flows/test_real_nvp_vector.py bijectors/test_empty_batches.py \
  training/test_vectors.py)

BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python $(INSTALL)

export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo presets check test test-all test-versions test-nightly lint docs dist bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | \
	  awk -F ':.*## ' '{ printf "make %-13s %s\n", $$1, $$2 }'

demo: $(VENV)/.examples  ## train on the handwritten digits, draw samples (needs no dataset)
	$(BIN)/python examples/train_image.py --output_dir=results/digits
	@echo "The results are in results/digits:"
	@ls results/digits
	@echo "Load the model: tfr.FlowModel.from_preset('results/digits')"

# `cp` comes last, so that a preset is replaced only by a model whose training ended.
PRESET_FILES := config.json metadata.json model.weights.h5 README.md

presets: $(VENV)/.examples  ## train the presets of the wheel again (half an hour)
	$(BIN)/python examples/train_image.py --epochs=16 --output_dir=results/presets/digits
	$(BIN)/python examples/train_image.py --epochs=16 --condition=label \
	  --output_dir=results/presets/digits_label
	$(BIN)/python examples/train_paper.py --dataset=photos --num_filters=32 --epochs=10 \
	  --num_couplings=4 --output_dir=results/presets/photos
	for name in digits digits_label photos; do \
	  cp $(addprefix results/presets/$$name/,$(PRESET_FILES)) tfp_realnvp/presets/$$name; done

check: lint  ## lint, then run the tests that take three minutes together
	$(BIN)/python -m pytest -m "quick and not full" $(PYTEST_FLAGS)

test: lint  ## lint, then run the tests of the package (about eight minutes on two cores)
	TF_ENABLE_ONEDNN_OPTS=1 $(BIN)/python -m pytest -m "not full" $(PYTEST_FLAGS)

# Kernels of oneDNN round in another way than TensorFlow's own, and abort the process where they have
# no rows: the tests of vectors run with both.
test-all: test $(VENV)/.beam  ## `make test`, then docstrings, pages, tutorials, examples, benchmarks, several processes, fuzz
	TF_ENABLE_ONEDNN_OPTS=1 $(BIN)/python -m pytest -m full $(PYTEST_FLAGS)
	TF_ENABLE_ONEDNN_OPTS=0 $(BIN)/python -m pytest $(VECTOR_TESTS) $(PYTEST_FLAGS)

test-versions: test-tf2.18 test-tf2.21  ## run the core tests with the oldest and newest releases

# test-tf2.19 and test-tf2.20 work as well.
test-tf%: .venv-tf%/.dev
	.venv-tf$*/bin/python -m pytest -m "core and not full" $(PYTEST_FLAGS)

test-nightly: .venv-tfp-nightly/.dev  ## run the core tests with TFP's nightly build
	.venv-tfp-nightly/bin/python -m pytest -m "core and not full" $(PYTEST_FLAGS)

lint: $(VENV)/.dev  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# --fail-on-warning also reports links to pages and names that do not exist.
docs: $(VENV)/.docs  ## build the site, and execute its tutorials
	@rm -rf docs/api
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "The site is docs/_build/html/index.html"

dist: $(BIN)/python  ## build wheel and source distribution, and check them
	$(PIP) build twine 'readme_renderer[md]'
	rm -rf build dist
	$(BIN)/python -m build --outdir dist . > dist.log || (cat dist.log; exit 1)
	@rm dist.log
	$(BIN)/python -m twine check --strict dist/*

bench: $(VENV)/.bench  ## measure speed and memory; with BENCH_DATA=images.npz also bits/dim
	$(BIN)/python -m benchmarks.run --output_dir=results/bench \
	  $(if $(BENCH_DATA),--quality_data=$(BENCH_DATA)) $(BENCH_FLAGS)
	@echo "The results are in results/bench:"
	@ls results/bench

clean:  ## remove the environments, caches, results and the site
	rm -rf $(VENV) .venv-tf* build dist results *.egg-info .pytest_cache .ruff_cache .mypy_cache \
	  .hypothesis docs/_build docs/api
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

# Apache Beam takes 50 seconds and 170 MB, and an older protobuf.
$(VENV)/.beam: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[examples,dev,beam]'
	@touch $@ $(VENV)/.dev $(VENV)/.examples

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[examples,docs]'
	@touch $@ $(VENV)/.examples

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[examples,bench]'
	@touch $@ $(VENV)/.examples

# Installs the lower bounds of pyproject.toml: "keras>=3.5,<4" becomes keras==3.5.*
.venv-tf2.18/.dev: pyproject.toml
	$(or $(OLD_PYTHON),$(error found no Python 3.10 to 3.12; give one as OLD_PYTHON)) \
	  -m venv --clear $(@D)
	sed -nE 's/^  "([a-z_-]+)>=([0-9.]+).*/\1==\2.*/p' pyproject.toml > $(@D)/lowest.txt
	$(@D)/bin/python $(INSTALL) -e '.[examples,dev]' -c $(@D)/lowest.txt
	@touch $@

# The nightly build has the same files as tensorflow-probability, but another name for pip.
.venv-tfp-nightly/.dev: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(INSTALL) -e '.[examples,dev]'
	$(@D)/bin/python -m pip uninstall --quiet --yes tensorflow-probability
	$(@D)/bin/python $(INSTALL) 'tfp-nightly>=0.26.dev0'
	@touch $@

# pip chooses the tf-keras of the same version, and the newest of everything else.
.PRECIOUS: .venv-tf%/.dev
.venv-tf%/.dev: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(INSTALL) -e '.[examples,dev]' 'tensorflow==$*.*'
	@touch $@
