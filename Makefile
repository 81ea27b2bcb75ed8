# Two commands do everything on a fresh machine with Python 3.11+: `make run` and `make test`.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PYTEST := $(PY) -m pytest
CONFIG ?= build/demo/config.yaml

.PHONY: help run test lint fmt proto bench matrix hooks faults lives chaos hostile upgrade pool conformance soak dist clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | sort

run: $(VENV)/.run ## Start the proxy on 127.0.0.1:8317 with a demo that needs no key
	$(BIN)/jackfield serve --demo --watch --config $(CONFIG)

test: $(VENV)/.dev ## Install what the tests need and run them all
	sh tests/install_tools.sh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -n 2 --dist loadscope

lint: $(VENV)/.dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(VENV)/.dev ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.dev ## Regenerate the gRPC code, the JSON Schemas and the method tables
	$(PY) proto/generate.py

bench: $(VENV)/.dev ## Measure against a bare aiohttp proxy and nginx (PEERS=1 adds LiteLLM and Portkey)
	$(PY) tests/bench/run.py

matrix: $(VENV)/.dev ## Statuses x boundaries x carriers: every field of the error object equal
	$(PYTEST) tests/matrix/test_status_matrix.py -q -n 0

hooks: $(VENV)/.dev ## Endpoints x outcomes x hooks, then once per binding with that binding off
	$(PYTEST) tests/matrix/test_hook_coverage.py -q -n 0

faults: $(VENV)/.dev ## Misbehaving plugins under load
	$(PY) tests/faults/run.py

chaos: $(VENV)/.dev ## One plugin misbehaves while 500 streams run through others, which must not notice
	$(PY) tests/chaos/run.py

pool: $(VENV)/.dev ## Real SDKs over sixty credentials that fail by chance, with thirty seeds
	JACKFIELD_POOL_SEEDS=30 $(PYTEST) tests/integration/pool -q -n 0

upgrade: $(VENV)/.dev ## Replace a plugin 100 times during 100,000 requests; none may be lost
	$(PY) tests/upgrade/run.py

lives: $(VENV)/.dev ## Thousands of random lives of the credential pool and of what is kept and shared of it
	LIVES=3000 $(PYTEST) tests/unit/pipeline/test_pool_machine.py tests/unit/pipeline/test_request_lives.py tests/unit/credentials/test_cooldown_lives.py -q -n 0 -o timeout=3600

conformance: $(VENV)/.dev ## The conformance kit on every example, and on plugins that each break one rule
	$(PYTEST) tests/conformance -q -n 2

hostile: $(VENV)/.dev ## Attacks of a hostile plugin: each refused, and seen where it should be
	$(PY) tests/hostile/run.py

dist: $(VENV)/.dev ## Build the wheel, and jackfield-pluginapi alone for plugin authors
	$(PY) -m build --wheel --no-isolation --outdir build/dist .
	$(PY) .ci/build_pluginapi.py build/dist

clean: ## Remove what was built
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The runtime dependencies only, so that `make run` is quick on a fresh machine.
$(VENV)/.run: pyproject.toml
	@echo 'Installing into $(VENV); the first time this takes about a minute.'
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found on PATH" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
