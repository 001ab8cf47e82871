# Every target does its own set-up: a virtual environment in .venv with this package in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is imported is compiled then: a fraction of what is installed.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --editable

# Where tests train: cpu, or cuda on a machine with a GPU.
export ACCELERATOR ?= cpu

.PHONY: demo study test test-slow lint typecheck check docs clean

demo: $(VENV)/.runtime ## train DQN on CartPole in under a minute
	$(BIN)/python -m lit_gfs fit --config demo

study: $(VENV)/.runtime ## a small study from plan to report, in under five minutes
	$(BIN)/python -m lit_gfs study --config studies/smoke

test: $(VENV)/.development ## the test suite, without the tests that train for minutes
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.development ## the tests that train for minutes
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A type checker does not follow an editable install into callbacks/ and datamodules/: check a copy that looks
# like an installed one.
typecheck: $(VENV)/.development
	rm -rf build/typed  # where modules that were since renamed would be found again
	mkdir -p build/typed
	cp -r lit_gfs build/typed
	cp -r callbacks datamodules configs build/typed/lit_gfs
	cd build && MYPYPATH=typed ../$(BIN)/mypy --config-file ../pyproject.toml -p lit_gfs

check: lint typecheck docs test

# Material announces the end of its own life at every start; a newer builder is a decision for another day.
docs: $(VENV)/.development ## the site of docs/, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "lit_gfs needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) .
	touch $@

$(VENV)/.development: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) '.[dev,docs,video]'
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
