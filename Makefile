# From a bare clone with nothing but Python: `make demo` shows the whole idea, `make test` runs the tests.
#
# PYTHON   the interpreter that a virtual environment is made with
# VENV     where that environment lies; what it holds is up to date when pyproject.toml and constraints.txt are older than its stamp
# JOBS     test processes; two pay on two cores, torch is kept to one thread in each
# PYTEST   further options, such as PYTEST="-k lora -x"

PYTHON ?= python3
VENV ?= .venv
OLD_VENV ?= .venv-oldest
JOBS ?= 2
PYTEST ?=

BIN := $(VENV)/bin
OLD_BIN := $(OLD_VENV)/bin
# The oldest transformers and peft that pyproject.toml admits, and what must give way for them.
OLDEST := transformers==5.17.0 peft==0.21.0
OLDEST_FREE := transformers|peft|huggingface-hub|tokenizers|sentence-transformers|trl

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint format types docs wheel-smoke bench matrix examples oldest clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-demo ## advise, fine-tune and report on real rows with real pretrained weights
	$(BIN)/tunekit demo --overwrite

test: $(VENV)/.stamp-test ## the covering tests: all but the slow ones
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST)

test-all: $(VENV)/.stamp-test ## every test this machine can run
	$(BIN)/python -m pytest -n $(JOBS) -m "not gpu" $(PYTEST)

lint: $(VENV)/.stamp-dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.stamp-dev ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Type checkers do not follow the folder mapping of pyproject.toml, so they get a tree in which it is spelt out.
types: $(VENV)/.stamp-dev ## mypy, on a throw-away tree laid out as it is imported
	rm -rf build/types && mkdir -p build/types/tunekit
	cp -R tunekit/. build/types/tunekit/
	cp -R advisor build/types/tunekit/advisor
	cp -R callbacks build/types/tunekit/callbacks
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p tunekit

docs: $(VENV)/.stamp-docs ## the documentation, into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The dependencies are those of the environment: what is tried is whether the wheel and the sdist hold what they need.
wheel-smoke: $(VENV)/.stamp-dev ## wheel and sdist, installed into a fresh environment and used away from the tree
	$(BIN)/python tests/wheel_smoke.py

bench: $(VENV)/.stamp-test ## the benchmarks, each printing what it measured
	@for file in $(filter-out benchmarks/matrix.py benchmarks/matrix_sharding.py benchmarks/gpu_%,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

matrix: $(VENV)/.stamp-test ## every method x architecture x task, and x sharding on two ranks; writes docs/matrix*.md (PEFT=1: plain PEFT's half too)
	$(BIN)/python benchmarks/matrix.py --jobs $(JOBS) $(if $(PEFT),--peft)
	$(BIN)/python benchmarks/matrix_sharding.py --again

examples: $(VENV)/.stamp-test ## every example, run
	$(BIN)/python -m pytest -n $(JOBS) -m "not gpu" tests/test_examples.py $(PYTEST)

oldest: $(OLD_VENV)/.stamp-oldest ## the covering tests with the oldest supported transformers and peft
	$(OLD_BIN)/python -m pytest -n $(JOBS) $(PYTEST)

clean: ## remove what the other targets made
	rm -rf $(VENV) $(OLD_VENV) build dist demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/.stamp-%: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@

$(OLD_VENV)/.stamp-oldest: pyproject.toml constraints.txt Makefile
	test -x $(OLD_BIN)/pip || $(PYTHON) -m venv $(OLD_VENV)
	grep -vE '^($(OLDEST_FREE))==' constraints.txt > $(OLD_VENV)/constraints.txt
	$(OLD_BIN)/python -m pip install --quiet --constraint $(OLD_VENV)/constraints.txt --editable ".[test]" $(OLDEST)
	touch $@
