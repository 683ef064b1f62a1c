# Every target sets up what it needs. `make demo` and `make test` work on a fresh machine with Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FRAMEWORKS := .venv-frameworks
# Tests that need packages which do not fit beside those of the others.
FRAMEWORK_TESTS := tests/integration/test_gateway_litellm.py $(addprefix tests/integration/frameworks/test_,autogen.py crewai.py)
# pip alone resolves the CPU build of torch pinned in constraints.txt.
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Much of the tests is waiting for processes: one worker more than processors is fastest on two.
WORKERS ?= 3
PYTEST = $(BIN)/python -m pytest -q
COVERED = -m 'not gpu and not campaign' --cov --cov-report=term
BESIDE = -n $(WORKERS) --dist loadgroup
# What fails beside other tests on a busy machine is tried once more, by itself; failing twice fails the run.
ALONE = || { [ $$? -eq 1 ] && echo "Once more by themselves: the tests that failed beside others" && $(PYTEST) --last-failed --last-failed-no-failures none

.DEFAULT_GOAL := help
.PHONY: help setup frameworks demo test test-all cover check format bench up clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Two stamps: the demo needs far less than the tests.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up (a few minutes the first time) ..."
	@$(PIP) install -q -c constraints.txt torch numpy 2>&1 | grep -v 'WARNING: Location' || true
	@$(BIN)/python -c 'import torch' || { echo "Installing torch failed; run: $(PIP) install -c constraints.txt torch"; exit 1; }
	@$(PIP) install -q -c constraints.txt -e '.[learn,openai]' 2>&1 | grep -v 'WARNING: Location' || true
	@$(BIN)/agl --version >/dev/null
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP) install -q -c constraints.txt -e '.[dev]' 2>&1 | grep -v 'WARNING: Location' || true
	@$(BIN)/python -c 'import pytest, trl'
	@touch $@

$(FRAMEWORKS)/.ready: requirements-frameworks.txt pyproject.toml
	@$(PYTHON) -m venv $(FRAMEWORKS)
	@$(FRAMEWORKS)/bin/python -m pip --disable-pip-version-check install -q -r requirements-frameworks.txt -e . 2>&1 | grep -v 'WARNING: Location' || true
	@$(FRAMEWORKS)/bin/python -c 'import autogen_agentchat, importlib.metadata as m; m.version("crewai"), m.version("litellm")'
	@touch $@

frameworks: $(FRAMEWORKS)/.ready ## Create .venv-frameworks (AutoGen, CrewAI, LiteLLM) and install the npm packages
	@if command -v npm >/dev/null; then cd examples/other_languages && npm ci --no-audit --no-fund --loglevel=error; else echo "npm is not there: the Node.js examples that need packages are skipped"; fi

setup: $(VENV)/.dev ## Create .venv with everything for development

demo: $(VENV)/.demo ## Train the text-to-SQL agent on this machine (arguments: ARGS="--fresh --seed 1")
	@$(BIN)/agl demo $(ARGS)

test: $(VENV)/.dev ## Run the tests (under 15 minutes on 2 cores)
	$(PYTEST) $(BESIDE) $(ARGS) $(ALONE) $(ARGS); }

test-all: $(VENV)/.dev frameworks ## Run all tests, the slow ones and all frameworks too
	$(PYTEST) $(BESIDE) -m 'not gpu' $(ARGS) $(ALONE) -m 'not gpu' $(ARGS); }
	$(FRAMEWORKS)/bin/python -m pytest --noconftest -q $(FRAMEWORK_TESTS)

cover: $(VENV)/.dev ## Run all tests but campaigns with branch coverage; fails under 90 % outside the torch rooms
	$(PYTEST) $(BESIDE) $(COVERED) $(ARGS) $(ALONE) --cov-append $(COVERED) $(ARGS); }

check: $(VENV)/.dev ## Lint, format check, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Run the benchmarks; results belong into benchmarks/RESULTS.md
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/tracing.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/gateway.py --setup-peers
	$(BIN)/python benchmarks/api.py
	$(BIN)/python benchmarks/footprint.py

up: $(VENV)/.demo ## Serve the embedded model, the gateway and the store on port 8000
	$(BIN)/agl serve --model nano --port 8000

clean: ## Remove the environment and all results
	rm -rf $(VENV) .agentlightning .pytest_cache .ruff_cache
