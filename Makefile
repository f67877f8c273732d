# Two commands for a newcomer: `make echo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: echo test clean

echo: $(VENV)/core  ## train, turn round, come back: the main job; options in ARGS="--seed 1"
	$(BIN)/loschmidt echo $(ARGS)

test: $(VENV)/test  ## the default suite: under 10 minutes on 2 cores
	$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .
	$(BIN)/python -m pytest -n 2 $(ARGS)

$(VENV)/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one: make PYTHON=python3.11 ...")'
	@echo "Setting up $(VENV): torch and a few others, once; some minutes on a slow line."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/test: $(VENV)/core
	$(INSTALL) --editable '.[test]'
	@touch $@

clean:  ## remove the environment and what runs left
	rm -rf $(VENV) out
