# Needs python3 (3.11 or newer) with pip and venv, and make; everything else comes from PyPI.
# Another build of PyTorch: make setup TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
TORCH_ARGS ?=
RUN ?=

BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format docs bench pretrain tiny-xl

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY)  ## make .venv with the pinned development install

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt $(TORCH_ARGS) torch
	$(PIP) -c constraints.txt -e ".[dev]"
	touch $@

demo: setup  ## the whole length once, on the embedded base: pictures, training, evidence, report
	$(BIN)/limner demo $(if $(RUN),--run $(RUN))

test: setup  ## all tests that need neither a GPU nor downloaded weights
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: setup  ## style, spelling, import contract, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/lint-imports --no-logo
	$(BIN)/basedpyright

format: setup  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup  ## side by side with the peers
	$(BIN)/python -m benchmarks

pretrain: setup  ## make the embedded base again, from nothing (many hours)
	$(PIP) -c constraints.txt -e ".[pretrain]"
	$(BIN)/python -m pretraining all

tiny-xl: setup  ## make the bases tiny-xl and tiny-xl-refiner from the embedded base (under 30 minutes)
	$(PIP) -c constraints.txt -e ".[pretrain]"
	$(BIN)/python -m pretraining tiny-xl
