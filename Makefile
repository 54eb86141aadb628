# Two commands do everything: `make demo` and `make test`. Both set the environment up first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo demo-node demo-live test control-plane dynamo predictor lint format lock clean

help: ## List the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.core: requirements/sim.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/sim.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.agent: $(VENV)/.core requirements/agent.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/agent.lock
	@touch $@

$(READY): $(VENV)/.agent requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

demo: $(VENV)/.core ## Simulate the embedded default and write a report
	$(BIN)/wattline compare demo --out out/demo

demo-node: $(VENV)/.agent ## A virtual 8-GPU node, its agent, a budget cut and a brake, live
	$(BIN)/wattline demo-node

demo-live: $(READY) ## Dynamo's frontend and workers on virtual GPUs under a budget, live
	$(BIN)/wattline demo-live

test: $(READY) control-plane dynamo predictor ## Run all tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup -rs

control-plane: $(READY) # A real kube-apiserver and etcd for the contract tests, built once (needs Go)
	$(BIN)/python tests/contract/kube/build_control_plane.py

dynamo: $(READY) # Dynamo's frontend, mock workers and planner for the contract tests, built once
	$(BIN)/python -m wattline.live.environment --planner

predictor: $(READY) # AIConfigurator in an environment of its own for the contract tests, built once (0.8 GB)
	$(BIN)/python tests/contract/aic/build_predictor.py

lint: $(READY) ## Style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Rewrite the code in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## Lock the dependencies anew (needs uv)
	for name in sim agent dev; do \
	  uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url \
	    requirements/$$name.in -o requirements/$$name.lock || exit 1; \
	done

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache .hypothesis
