# Two commands: `make demo` and `make test`. Both install into .venv first, once.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
WORKERS ?= 2

.PHONY: setup demo test test-all test-browser check lint format types clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Homespun needs Python 3.10 or newer: make PYTHON=python3.12")'
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup  ## Makes a corpus, trains a small model for a minute, shows what it writes
	@$(RUN)/homespun demo

test: setup  ## The fast suite
	$(RUN)/python -m pytest -n $(WORKERS)

test-all: setup  ## Everything but the browser, also what is marked slow
	$(RUN)/python -m pytest -n $(WORKERS) -m "not browser"

test-browser: setup $(VENV)/.browser  ## Clicks through the pages of the server; needs chromium
	$(RUN)/python -m pytest -m browser tests/browser

$(VENV)/.browser: pyproject.toml constraints.txt
	@$(RUN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[browser]"
	@touch $@

check: lint types test  ## What CI runs

lint: setup
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .

types: setup
	$(RUN)/mypy

format: setup
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

clean:  ## Removes what was built and installed; runs/ stays
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
