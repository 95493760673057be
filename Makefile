# The same commands on a developer's machine and in CI. BIN is the folder of programs in the virtual environment, BASE
# the Python that makes it.
ifeq ($(OS),Windows_NT)
BIN ?= .venv/Scripts
BASE ?= python
else
BIN ?= .venv/bin
BASE ?= python3
endif
PYTHON = $(BIN)/python
FRESH = build/fresh/$(notdir $(BIN))

.DEFAULT_GOAL := help
.PHONY: help setup data check check-format check-lint check-types check-floors lint-workflows test test-lowest docs \
	pictures bench build check-dist format

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## the virtual environment, with all that the other targets need
	$(BASE) -m venv $(dir $(BIN))
	$(BIN)/pip install -q -e '.[dev]'

data: ## CIFAR-10, for the tests that need it
	$(BIN)/cifarnets download

check: check-format check-lint check-types check-floors lint-workflows ## everything that needs no test run: the next five

check-format: ## the format
	$(PYTHON) -m ruff format --check .

check-lint: ## lint
	$(PYTHON) -m ruff check .

check-types: ## strict types
	$(PYTHON) -m mypy

check-floors: ## imports run one way
	$(BIN)/lint-imports

lint-workflows: ## the files in .github and CITATION.cff
	$(BIN)/zizmor --offline --quiet --no-progress .
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms $(ISSUE_FORMS)
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format --default-filetype yaml CITATION.cff

ISSUE_FORMS = $(filter-out %/config.yml, $(wildcard .github/ISSUE_TEMPLATE/*.yml))

test: ## all tests, with coverage, a process for each core
	$(PYTHON) -m pytest -n auto --dist loadfile --cov --cov-report=term-missing:skip-covered

test-lowest: ## the tests with the oldest versions that pyproject.toml allows, on Python 3.10
	python3.10 -m venv .venv-lowest
	.venv-lowest/bin/pip install -q -c tests/lowest.txt -e '.[test]'
	.venv-lowest/bin/python -m pytest

docs: ## the documentation, strictly
	$(PYTHON) -m mkdocs build --strict

pictures: ## the pictures and the notebook of the documentation, made again from its pages
	$(PYTHON) docs/diagrams.py
	$(PYTHON) docs/pictures.py
	$(PYTHON) docs/notebook.py

bench: ## every benchmark, one table each
	$(PYTHON) -m benchmarks

build: ## wheel and source distribution, in dist
	rm -rf dist
	$(PYTHON) -m build

check-dist: ## what is in dist: its metadata, and the wheel in a fresh environment (TAG=v1.2.3: of that version)
	$(PYTHON) -m twine check --strict dist/*
	$(BASE) -m venv --clear build/fresh
	$(FRESH)/pip install -q dist/*.whl
	$(FRESH)/cifarnets --version
	test -z "$$TAG" || test "cifarnets $${TAG#v}" = "$$($(FRESH)/cifarnets --version)"

format: ## put the format right
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
