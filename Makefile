# make demo | test | lint | bench: each sets everything up first. Needs Python 3.11+ and make, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo test test-all lint types bench bench-quick clean

demo: $(READY)
	$(BIN)/mm-autofocus demo plate $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-all: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/mm-autofocus demo plate --wells 96 --out bench_output/plate
	$(BIN)/mm-autofocus bench overhead --events 400 --out bench_output
	$(BIN)/mm-autofocus bench curves --out bench_output
	$(BIN)/mm-autofocus bench all --out bench_output

bench-quick: $(READY)
	$(BIN)/mm-autofocus bench overhead --events 60 --repeats 2 --out bench_output
	$(BIN)/mm-autofocus bench light --quick --fresh --data none --out bench_output/light \
		--baseline mm_autofocus/benchmark/light_quick.json

clean:
	rm -rf $(VENV) demo_output bench_output dist

# The environment is made anew when what it must hold has changed.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mm-autofocus needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(READY)
