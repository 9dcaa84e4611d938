# Words to work on Archipelago. Each installs into .venv first what is missing; that is instant when nothing changed.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install serve stop status test test-all check bench load lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "variables: MODEL= SHAPE= CONFIG= (serve), ENGINE=cpu|cuda, PYTHON=python3.12"

# -I: a file of ours must not hide a module of the standard library
install: ## into .venv; the others do it first where something is missing
	@ENGINE='$(ENGINE)' $(PYTHON) -I deployments/install.py

serve: install ## serve a model: make serve [CONFIG=file.yaml] [MODEL=tiny-llama] [SHAPE=tp2pp2]
	@$(BIN)/archipelago serve $(if $(CONFIG),'$(CONFIG)') $(if $(MODEL),--model '$(MODEL)') $(if $(SHAPE),--shape '$(SHAPE)')

stop: install ## stop what `make serve` started
	@$(BIN)/archipelago stop

status: install ## what is running, and where
	@$(BIN)/archipelago status

test: install ## the tests that take seconds
	$(BIN)/pytest -m 'not slow'

test-all: install ## every test, real engines included, and new examples for properties
	$(BIN)/pytest --hypothesis-profile searching

check: install ## format, lint, types, import contracts, chart
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	helm=$$($(BIN)/python .ci/helm.py) && $$helm lint --strict helm

bench: install ## speed beside vLLM's own server: make bench [MODEL=bench-100m] [SHAPE=tp1] [PEER=ray.serve.llm] [OUT=file.json]
	@$(BIN)/python -m loadtests.overhead \
		$(if $(MODEL),--model '$(MODEL)') $(if $(SHAPE),--shape '$(SHAPE)') $(if $(PEER),--peer '$(PEER)') $(if $(OUT),--out '$(OUT)')

load: install ## a load test of what is served: make load [SCENARIO=smoke] [URL=http://host:port]
	@$(BIN)/archipelago load '$(or $(SCENARIO),smoke)' $(if $(URL),--url '$(URL)')

lock: ## resolve deployments/locks/*.txt anew from pyproject.toml
	@$(PYTHON) -I deployments/install.py lock

clean: ## remove caches and build output; .venv stays
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
