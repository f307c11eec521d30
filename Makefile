# `make demo` from a fresh clone: installs into .venv, animates the bundled portrait, leaves out/demo.mp4.
# `make test`: what a change must pass. `make quick`: the same without the slow tests, for while you work.
# `make docs`: the documentation as a site in site/, built offline.
# All need Python 3.11 or newer and nothing else.

PYTHON ?= python3
VENV ?= .venv
OUT ?= out
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
# Two processes of one thread each: the tests are too small for threads to help.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest -n 2 --dist worksteal

.PHONY: demo test quick lint types docs clean

demo: $(VENV)/.face
	$(VENV)/bin/export3d demo -o $(OUT)

test: lint types
	$(PYTEST)

quick: lint types
	$(PYTEST) -m 'not slow'

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# Installs again whenever the requirements change. The package itself is installed in place, so edits need no install.
$(VENV)/.face: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[face]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.face

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "export3d needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(OUT) site
