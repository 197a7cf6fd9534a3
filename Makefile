# gpufleet: `make up` starts a GPU fleet on this machine, `make help` lists the rest. Nothing here needs root.
# Variables: NAME (of the fleet; without it `default`, whatever $KUBECONFIG names), FLEET (preset or file), PYTHON (3.11
# or newer), TESTS (what `make test` runs).

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
GPUFLEET := $(BIN)/gpufleet
TESTS ?= tests
not_found := 5
name := --name '$(or $(NAME),default)'
environment = @python=$$(PYTHON='$(PYTHON)' sh tools/find-python) && "$$python" tools/environment.py

.PHONY: help up down clean distclean check test test-node test-full bench gen lock format run-environment dev-environment

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

run-environment:
	$(environment) run

dev-environment:
	$(environment) dev

up: run-environment  ## start a fleet; on the preset small also a first scenario (FLEET=large NAME=two)
	@$(GPUFLEET) up --scenario examples/primer $(if $(FLEET),--fleet '$(FLEET)') $(name)

down:  ## stop the fleet; its state stays (NAME=two)
	@if [ -x $(GPUFLEET) ]; then $(GPUFLEET) down $(name); else echo "no environment here, so no fleet of this checkout runs"; fi

clean:  ## stop the fleet, forget its state, remove .venv and caches of this checkout (NAME=two)
	@if [ -x $(GPUFLEET) ]; then $(GPUFLEET) down --purge $(name) || [ $$? -eq $(not_found) ]; fi
	@for folder in .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist; do \
		if [ -e "$$folder" ]; then echo "removing $$folder"; rm -rf "./$$folder"; fi; done
	@find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "the built control plane is kept for the next fleet; make distclean removes it too"

distclean: run-environment  ## clean, and remove the built control plane of this user
	@cache=$$($(BIN)/python -c 'from gpufleet.local.controlplane import cache_folder; print(cache_folder())') && \
		$(MAKE) clean && echo "removing $$cache" && { chmod -R u+w "$$cache" 2>/dev/null; rm -rf "$$cache"; }

format: dev-environment  ## format the sources and mend what the linter can mend
	@$(BIN)/ruff format src tests tools benchmarks
	@$(BIN)/ruff check --fix src tests tools benchmarks

check: dev-environment  ## formatting, lint, strict types, import contracts, docs, locks
	@$(BIN)/python -m tools.check

test: dev-environment  ## unit, contract and end-to-end tests (TESTS=tests/unit for a part)
	@$(BIN)/python -m pytest -p tools.suites -m 'not full' $(TESTS)

test-node: dev-environment  ## the GPU node: fake NVML, and a real kubelet and containerd where the machine allows
	@$(BIN)/python -m pytest -p tools.suites tests/node

test-full: dev-environment  ## every test, also long properties, peers and large fleets
	@$(BIN)/python -m pytest -p tools.suites $(TESTS)

bench: dev-environment  ## pods per second beside kube-scheduler and the API server's own ceiling
	@$(BIN)/python -m benchmarks.decide
	@$(BIN)/python -m benchmarks.engine
	@$(BIN)/python -m benchmarks.scheduler --silent-nodes
	@$(BIN)/python -m benchmarks.scheduler

gen: dev-environment  ## write docs/reference and deploy/monitoring from the code, and modules from .proto files
	@$(BIN)/python -m tools.protocols
	@$(BIN)/python -m tools.monitoring
	@$(BIN)/python -m tools.reference

lock: dev-environment  ## resolve pyproject.toml into requirements/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tools.locks --write
