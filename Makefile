# Every target sets up what it needs by itself, in .venv (tools/setup_env.py). Settings, all optional:
#   make setup PYTHON=python3.12         the Python that .venv is made with
#   make setup TORCH_INDEX=URL           the index that torch and torchvision come from (README, "Download size")
#   make setup PIP_ARGS="..."            further options for pip
#   make demo ARGS="--minutes 2"         what is handed on to the command, also for lab, lessons, test, test-all

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 6))' >/dev/null 2>&1 && echo $$p && break; done)
ifneq ($(origin PYTHON),file)
EXPLICIT := --explicit
endif
ARGS ?=
PIP_ARGS ?=
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: help setup demo lab lessons play site test test-all lint

help:  ## This list.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 18

setup:  ## Create .venv and install everything into it; quick when nothing changed.
	@python='$(PYTHON)'; if ! command -v "$$python" >/dev/null; then \
		echo "setup: Python 3.11 or newer is needed and $${python:-python3} was not found: install it, or name yours as in 'make PYTHON=/path/to/python3.12 setup'." >&2; \
		exit 1; \
	fi; "$$python" tools/setup_env.py --make $(EXPLICIT) --torch-index='$(TORCH_INDEX)' --pip-args='$(PIP_ARGS)' --extra='$(EXTRA)'

demo: setup  ## Train a tiny CondInst on drawn shapes, measure it, save a picture: about four minutes.
	@$(BIN)/condinst-edu demo $(ARGS)

lab: setup  ## Open the lessons in JupyterLab.
	@JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyterlab --notebook-dir=lessons $(ARGS)

lessons: setup  ## Make the notebooks and plans for class from lessons/src; ARGS="02" makes one of them.
	@$(BIN)/python -m condinst_edu.teach.lessons $(ARGS)

play: EXTRA := play
play: setup  ## Click to segment, thresholds of panoptic fusion, four models side by side: pages without code.
	@JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python tools/play.py $(ARGS)

site: EXTRA := site
site: setup  ## The lessons, slides, reference and papers as pages that need no network, in build/site.
	@$(BIN)/python tools/site/build.py

test: setup  ## The fast tests and the solutions of all lessons: at most 15 minutes on two cores.
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: setup  ## All tests, the slow ones too.
	@$(BIN)/python -m pytest $(ARGS)

lint: setup  ## Style and types.
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/mypy || status=1; \
	exit $$status
