# Three commands: `make demo`, `make serve` and `make test`. All set up first; the second time, set-up does nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test lint clean

help:
	@echo "make demo   set up and run the whole job on this machine: train, export, paint, report (15 minutes)"
	@echo "make serve  set up and serve the toy base and its adapters on http://127.0.0.1:8000, with commands to try"
	@echo "make test   set up and run the tests (25 minutes on 2 cores)"
	@echo "make lint   set up and run ruff and mypy"
	@echo "make setup  set up alone: makes $(VENV)"
	@echo "make clean  remove $(VENV)"

setup: $(STAMP)

# torch goes first and exactly: asked for as a range, it would bring several GB of CUDA packages to a machine that
# has none of them. DS_BUILD_OPS=0: DeepSpeed compiles nothing now (it needs no compiled op on CPUs, and compiles
# its GPU ops at first use). No build isolation: what DeepSpeed builds with is then pinned too, and it sees torch.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "inpaint needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Install a newer one and name it: make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian: sudo apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || { echo "[1/3] virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "[2/3] $(TORCH) (the largest part)"
	@$(PIP) install -c constraints.txt setuptools wheel $(TORCH)
	@echo "[3/3] everything else"
	@DS_BUILD_OPS=0 $(PIP) install -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@

demo: setup
	$(BIN)/python -m ray_jobs.demo

serve: setup
	$(BIN)/python -m ray_jobs.serve

# Two processes, each with a Ray of its own, for a training waits for much; one thread in each: they start several more.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
