# Everything a contributor or a newcomer needs; `make help` lists it. Needs Python 3.10+, make and PyPI.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
STAMP  := $(VENV)/.installed
FLAGS  := $(if $(NNTRAIN_DATA),--flags "hub")
export HF_HUB_DISABLE_TELEMETRY = 1
ifdef NNTRAIN_DATA
export NNTRAIN_DATA := $(abspath $(NNTRAIN_DATA))
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-nbs test-py test-slow lint sync export clean docs bench dist torture

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(STAMP): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "nntrain needs Python 3.10 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || { echo "Making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing nntrain and its tools (PyTorch is large: a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## make .venv and install everything (the other targets do this by themselves)
	@echo "$(VENV) is ready"

demo: $(STAMP)  ## the main job: train on digits, see progress, find the results in runs/demo
	@$(BIN)/nntrain_train --data digits --epochs 10 --out runs/demo --overwrite

test: $(STAMP) test-nbs test-py lint sync  ## all checks: notebooks, pytest, ruff, notebooks in step with modules
	@echo "All checks passed: notebooks, pytest, ruff, and notebooks in step with the modules."

test-nbs: $(STAMP)
	@echo "== notebooks (nbdev_test)"
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 MPLBACKEND=agg $(BIN)/nbdev_test --n_workers 2 --do_print $(FLAGS)

test-py: $(STAMP)
	@echo "== pytest"
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 MPLBACKEND=agg $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-slow: $(STAMP)  ## the tests that take longer: torchrun, runs that are killed and resumed
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 MPLBACKEND=agg $(BIN)/python -m pytest -m slow

lint: $(STAMP)
	@echo "== ruff"
	@$(BIN)/ruff check nntrain tests bench tools setup.py
	@$(BIN)/ruff check --select F821,E9 nbs

sync: $(STAMP)
	@echo "== notebooks clean and in step with the modules"
	@$(BIN)/python tools/check_sync.py

export: $(STAMP)  ## clean the notebooks and write nntrain/*.py and README.md from them
	@$(BIN)/nbdev_clean && $(BIN)/nbdev_export && $(BIN)/python tools/front.py
	@$(BIN)/python tools/check_sync.py

clean: $(STAMP)  ## strip notebook metadata and remove what builds and runs leave behind
	@$(BIN)/nbdev_clean
	@rm -rf build dist *.egg-info _docs _proc runs .pytest_cache .ruff_cache
	@find nntrain tests bench tools -name __pycache__ -prune -exec rm -rf {} +

docs: $(STAMP)  ## build the documentation site in _docs (with Quarto if it is installed)
	@$(BIN)/python tools/docs.py

bench: $(STAMP)  ## measure speed: ratios to the bare loop, side by side in one run
	@OMP_NUM_THREADS=1 $(BIN)/python bench/loop.py
	@$(BIN)/python bench/imports.py
	@OMP_NUM_THREADS=1 $(BIN)/python bench/subscribers.py
	@$(BIN)/python bench/loader.py
	@$(BIN)/python bench/tables.py
	@$(BIN)/python bench/photos.py
	@$(BIN)/python bench/checkpoint.py

torture: $(STAMP)  ## kill 50 runs at random steps and 50 while they save, 100 random ones up to three times, compare every bit
	@OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py
	@OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --trials 100
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow tests/test_photos.py tests/test_tables.py

dist: $(STAMP)  ## build the sdist and the wheel in dist from what is committed, and try the wheel
	@rm -rf dist build && git clone --quiet . build/clone
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build
	@$(BIN)/python -m build --outdir dist build/clone > build/log 2>&1 || { cat build/log; exit 1; }
	@NNTRAIN_WHEEL=$$(ls dist/*.whl) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/test_install.py
	@rm -rf build; echo "Built and tried:"; ls dist/*
