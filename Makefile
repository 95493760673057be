# The same commands on a developer's machine and in CI. BIN is that of the virtual environment.
BIN ?= .venv/bin
PYTHON = $(BIN)/python

.PHONY: check test test-lowest docs bench build format

check: ## format, lint, strict types, floors
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(BIN)/lint-imports

test: ## all tests, with coverage
	$(PYTHON) -m pytest --cov --cov-report=term-missing:skip-covered

test-lowest: ## the tests with the oldest versions that pyproject.toml allows, on Python 3.10
	python3.10 -m venv .venv-lowest
	.venv-lowest/bin/pip install -q -c tests/lowest.txt -e '.[test]'
	.venv-lowest/bin/python -m pytest

docs: ## the documentation, strictly
	$(PYTHON) -m mkdocs build --strict

bench: ## every benchmark, one table each
	$(PYTHON) -m benchmarks

build: ## wheel and sdist
	$(PYTHON) -m build

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
