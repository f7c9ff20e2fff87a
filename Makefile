# The commands of a developer. Each target sets up .venv if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two files of tests at a time, in the order of tests/conftest.py: the long ones first.
AT_ONCE := -n 2 --dist loadfile --no-loadscope-reorder
QUIETLY := --quiet --disable-pip-version-check

.PHONY: help venv demo test test-slow test-gpu check format bench clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST)

venv: $(VENV)/.ready ## make .venv and install the project into it

# torch is installed first and only by its pin: pip takes a small CPU build where one is configured
# (PIP_INDEX_URL, PIP_FIND_LINKS), else PyPI's build, which on Linux includes CUDA (several GB).
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(QUIETLY) $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install $(QUIETLY) -c constraints.txt -e '.[test,dev]'
	touch $@

demo: venv ## run the main job on the miniature, and print the path of its report
	$(BIN)/dbray demo

test: venv ## run the tests
	$(BIN)/pytest $(AT_ONCE)

test-slow: venv ## run the tests, with those marked slow
	$(BIN)/pytest $(AT_ONCE) --slow

test-gpu: venv ## run the tests that need a GPU
	$(BIN)/pytest -m gpu tests/gpu

check: venv ## format, lint, types and floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: venv ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: venv ## run the benchmark of the main job
	$(BIN)/python benchmarks/bulk.py

clean: ## remove what the targets made
	rm -rf $(VENV) demo
