# Every target sets up what it needs, in .venv; nothing else of the machine is touched.
# PYTHON=python3.12 picks the interpreter (3.11 to 3.13).

PYTHON ?= python3
PRESET ?= normal
PROMETHEUS ?=
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.run
DEV_STAMP := $(VENV)/.dev

.PHONY: profile demo test check bench golden dashboards manuals clean help

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "joulewatch needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "the venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(RUN_STAMP): pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --editable '.[onnxruntime]'
	@touch $@

$(DEV_STAMP): pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV) for development ..." >&2
	@$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	@touch $@ $(RUN_STAMP)

profile: $(RUN_STAMP)  ## the main job: RadioML VGG10, FP32 and INT8, energy per inference (PRESET=quick|normal|report, PROMETHEUS=URL)
	@$(BIN)/joulewatch profile --network radioml-vgg10 --precision fp32,int8 --preset $(PRESET) \
		$(if $(PROMETHEUS),--prometheus $(PROMETHEUS)) $(PROFILE_FLAGS)

demo: $(RUN_STAMP)  ## an emulated node, exporter, real Prometheus and a run, compared with the known truth
	@PYTHONPATH=tests $(BIN)/python -m demo $(DEMO_FLAGS)

# Two files at a time: what is read from real servers by the clock wants processors that are not all busy.
test: $(DEV_STAMP) check  ## all checks and all tests (PYTEST_FLAGS=-n0: one after the other)
	@$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(PYTEST_FLAGS)

check: $(DEV_STAMP)  ## style, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache 2>&1 | tail -n 12

bench: $(DEV_STAMP)  ## speed, memory and accuracy against known truth; results in tests/benchmarks/results
	@$(BIN)/python tests/benchmarks/run.py $(BENCH_FLAGS)

golden: $(DEV_STAMP)  ## rewrite the golden files; review them as text
	@$(BIN)/python -m pytest -q tests/exporter --update-golden

dashboards: $(DEV_STAMP)  ## rebuild the dashboards' JSON
	@$(BIN)/python dashboards/build.py

manuals: $(DEV_STAMP)  ## rebuild the manual pages and shell completions
	@$(BIN)/python deploy/build.py

clean:  ## remove what was set up
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/browser/node_modules
