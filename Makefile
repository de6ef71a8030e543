# Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo demo-full test matrix
# One model, several methods
demo: $(INSTALLED)
	$(RUN) scripts/demo.py $(ARGS)

# The tables of the three bundled models, with metrics and plots
demo-full: $(INSTALLED)
	$(RUN) -m qdiff reproduce emoji32 emoji64 emoji64-txt2img --out demo/full $(ARGS)

test: $(INSTALLED)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(RUN) -m pytest $(ARGS)

# Every supported version of PyTorch, in environments of their own; see docs/testing.md
matrix:
	@$(PYTHON) tests/matrix.py $(ARGS)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || \
		{ echo 'error: Python 3.10 to 3.12 is needed: give one, as in make PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@
