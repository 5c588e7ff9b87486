# Two commands do everything: `make demo` and `make test`. Both make a virtual environment first.
#
#   make test PYTHON=python3.12      another interpreter for the new environment
#   make test VENV=path/to/env       an environment that exists already; an activated one is used by itself
#   make test ARGS="-k geodesy -x"   further options for pytest

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench clean

PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.geomae-installed

help: ## Say what there is to make
	@echo "make TARGET, where TARGET is"
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 10

setup: $(INSTALLED) ## Make a virtual environment and install GeoMAE into it, once per change of pyproject.toml

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "GeoMAE needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment with pip in it." >&2; \
	  echo "On Debian and Ubuntu: apt install python3-venv. Or name another: make setup PYTHON=..." >&2; exit 1; }

$(INSTALLED): pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null || { \
	  echo "There is no pip in $(VENV): run $(BIN)/python -m ensurepip, or choose another environment with VENV=..." >&2; \
	  exit 1; }
	$(BIN)/python -m pip install --editable ".[dev,report]"
	@touch $@

test: $(INSTALLED) ## Run the tests, two at a time
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(INSTALLED) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## Run every benchmark
	@shopt -s nullglob; files=(benchmarks/*.py); \
	if [ $${#files[@]} -eq 0 ]; then echo "There are no benchmarks in benchmarks/ yet."; fi; \
	for file in "$${files[@]}"; do echo "== $$file"; $(BIN)/python "$$file"; done

# The demo: every step leaves a file that the next one reads, so an interrupted `make demo` goes on where it stopped, in the
# middle of a training too. A step whose result exists but is older than its input starts afresh.
DEMO := outputs/demo
ACCELERATE := $(BIN)/accelerate launch --num_processes 1
RESUME = $(if $(wildcard $@),,--resume_from_checkpoint last)

demo: $(DEMO)/report/report.md ## Photos, pretraining, fine-tuning, evaluation and report in a few minutes, without a download
	@echo; $(BIN)/python -m geomae.evaluation show $(DEMO)/evaluate
	@echo; echo "The report: $(DEMO)/report/report.html; the fine-tuned model: $(DEMO)/finetune"

$(DEMO)/data/manifest.json: | $(INSTALLED)
	$(BIN)/python -m geomae.data earth --output_dir $(DEMO)/data --shared_data none

$(DEMO)/pretrain/model.safetensors: configs/pretrain/demo.yaml $(DEMO)/data/manifest.json
	$(ACCELERATE) run_pretrain_mae.py $< $(RESUME)

$(DEMO)/finetune/model.safetensors: configs/finetune/demo.yaml $(DEMO)/pretrain/model.safetensors
	$(ACCELERATE) run_finetune_geo.py $< $(RESUME)

$(DEMO)/evaluate/metrics.json: configs/evaluate/demo.yaml $(DEMO)/finetune/model.safetensors
	$(BIN)/python run_evaluate_geo.py $<

$(DEMO)/report/report.md: $(DEMO)/evaluate/metrics.json
	$(BIN)/python -m geomae.reporting report --output_dir $(DEMO)/report --pretrain_run $(DEMO)/pretrain \
	  --finetune_run $(DEMO)/finetune --evaluation $(DEMO)/evaluate --train_coordinates $(DEMO)/data

clean: ## Remove builds, caches and the demo; keep the environment and other outputs
	rm -rf build dist *.egg-info $(DEMO) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
