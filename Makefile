# make demo   merge two pipelines and a photograph; pictures go to out/
# make test   lint, types and tests
# make docs   write docs/options.md from the docstrings
#
# All set up what they need: python3 >= 3.10 with pip, a C++ compiler and make must be there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TYPED := build/typed/toma_fx

# Threads that wait give up their core. Where other programs run as well, waiting busily makes
# every parallel loop several times slower, and times of a step say little.
export OMP_WAIT_POLICY ?= passive

.DELETE_ON_ERROR:
.PHONY: demo test docs pytest lint typecheck format clean

demo: $(INSTALLED)
	$(BIN)/python -m toma_fx.demo --out out

# One after the other, the quickest first, also under make -j.
test: $(INSTALLED)
	$(MAKE) lint
	$(MAKE) typecheck
	$(MAKE) pytest

docs: $(INSTALLED)
	$(BIN)/python -m docs.options

# Files in the order of their names: by their numbers of tests, few long ones would come last, and
# one worker would wait for the other.
pytest: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# passes/ is imported as toma_fx.passes; mypy does not follow that mapping, so it is shown a tree
# of links in which the folder stands where its name says.
typecheck: $(INSTALLED)
	rm -rf $(TYPED)
	mkdir -p $(TYPED)
	ln -s $(addprefix ../../../,$(filter-out %__pycache__,$(wildcard toma_fx/*)) passes) $(TYPED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The constraints are not only for repeatability: they keep torch at the release that the passes
# are tested with.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=/path/to/python3")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@
