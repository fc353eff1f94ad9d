# Everything a developer, a visitor or CI runs. `make` alone lists the targets.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
BIN := .venv/bin
# Most tests wait for real processes: two at once take half the time, even where there are two cores only.
JOBS ?= 1
# Newer than what it depends on: nothing to install. Inside .venv, so that both go together.
INSTALLED := .venv/.installed

##@ Use

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(INSTALLED) ## Put Holdfast and its tools into .venv (fast when nothing changed)

.PHONY: demo
demo: install ## Start the server with the bundled rehearsal model and a page to try it (ARGS="--port 0")
	$(BIN)/holdfast demo $(ARGS)

##@ Check

.PHONY: check
check: format-check lint layers types bandit test ## All that CI runs: the six below

.PHONY: format-check
format-check: install ## Say which files `make format` would change
	$(BIN)/ruff format --check .

.PHONY: lint
lint: install ## ruff, with the rules in pyproject.toml
	$(BIN)/ruff check .

.PHONY: layers
layers: install ## import-linter: arrows between packages point down
	$(BIN)/lint-imports --no-logo

.PHONY: types
types: install ## mypy, strict in src
	$(BIN)/mypy

.PHONY: bandit
bandit: install ## bandit: calls that an attacker may use, each answered in its line
	$(BIN)/bandit -q -r -c pyproject.toml src

.PHONY: test
test: install system-packages ## pytest, without the chaos suite, in JOBS processes (1: bounds are promises of a machine to itself)
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

##@ Measure

.PHONY: chaos
chaos: install ## Kill, pause and starve real processes, at full size (long)
	HOLDFAST_FULL=1 $(BIN)/python -m pytest -o addopts="--strict-markers --strict-config --import-mode=importlib" -o timeout=600 -m chaos tests

.PHONY: telemetry-modes
telemetry-modes: install ## The whole suite with each kind of broken tracer (very long; ARGS="tests/engine" for a part)
	$(BIN)/python -m tests.telemetry.modes $(ARGS)

.PHONY: bench
bench: install ## Measure latency, throughput and what comes back to baseline
	$(BIN)/python -m bench

.PHONY: faults
faults: install ## Try every fault of a model against every limit, and rewrite the table of docs/faults.md
	$(BIN)/python -m tests.system.faults

.PHONY: audit
audit: install ## Ask PyPI for known vulnerabilities of what constraints.txt pins (needs its service)
	@$(BIN)/python scripts/audit.py

##@ Tend

.PHONY: format
format: install ## Rewrite the sources: layout, import order, safe fixes
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: system-packages
system-packages: ## Debian packages that tests use (chromium for the browser test, redis-server for its store, nginx for deploy/)
	@scripts/system-packages chromium redis-server nginx

.PHONY: upgrade
upgrade: ## Renew constraints.txt with the versions of today
	@$(MAKE) --no-print-directory clean-venv
	$(call create_venv)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable; } > .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt
	@touch $(INSTALLED)

.PHONY: clean
clean: clean-venv ## Remove .venv and what tools left behind
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis
	find src tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.PHONY: clean-venv
clean-venv:
	rm -rf .venv

# A .venv whose python no longer starts (the system's was replaced) is made anew.
define create_venv
	@if ! command -v $(PYTHON) >/dev/null 2>&1; then \
	  echo "install: no $(PYTHON) here; on Debian: apt-get install python3 python3-venv, else set PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "install: $$($(PYTHON) --version) is too old, Holdfast needs 3.11 or newer; on Debian 12 or newer: apt-get install python3 python3-venv, else make install PYTHON=python3.12" >&2; exit 1; \
	fi; \
	if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "install: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; \
	fi; \
	.venv/bin/python -c 'import pip' 2>/dev/null \
	  || { rm -rf .venv; $(PYTHON) -m venv .venv; }
endef

$(INSTALLED): pyproject.toml constraints.txt
	$(call create_venv)
	@echo "install: putting Holdfast and its tools into .venv (a minute at most, the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
