# The three commands that one needs: make run, make test, make format. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
TEST_VENV := .venv-test
AUDIT_VENV := .venv-audit
NEWEST_VENV := .venv-newest
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# What pip says to an older Python is a riddle.
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "Python 3.11 or later is needed: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help run test test-newest check fuzz audit test-browser test-cuda-host test-docker format lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

$(VENV)/.ready: requirements/serve.lock pyproject.toml
	@$(NEW_ENOUGH)
	@echo "Making the serving environment in $(VENV) (no torch) …"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --require-hashes -r requirements/serve.lock
	@$(VENV)/bin/pip install --quiet --no-deps --editable .
	@touch $@

$(TEST_VENV)/.ready: requirements/test.lock pyproject.toml
	@$(NEW_ENOUGH)
	@echo "Making the test environment in $(TEST_VENV) (with torch) …"
	@$(PYTHON) -m venv $(TEST_VENV)
	@$(TEST_VENV)/bin/pip install --quiet -r requirements/test.lock
	@$(TEST_VENV)/bin/pip install --quiet --no-deps --editable .
	@touch $@

run: $(VENV)/.ready ## make the environment and start the server on port 8000 (HIERA_PORT= for another one)
	@$(VENV)/bin/hiera-serve run

test: check ## format, lint, types, layers, tests (.ci/run, for CI, adds a browser, CUDA's host side, Triton and Docker)
	@$(TEST_VENV)/bin/python -m pytest --quiet

test-newest: ## the unit tests with the newest release of every dependency, as pip takes them (PYTHON= for another one)
	@$(NEW_ENOUGH)
	@$(PYTHON) -m venv --clear $(NEWEST_VENV)
	@$(NEWEST_VENV)/bin/pip install --quiet --editable '.[cpu,test]' onnx
	@$(NEWEST_VENV)/bin/python -m pytest --quiet tests/unit --ignore tests/unit/training

check: $(TEST_VENV)/.ready
	@$(TEST_VENV)/bin/ruff format --check --quiet .
	@$(TEST_VENV)/bin/ruff check --quiet .
	@$(TEST_VENV)/bin/mypy
	@$(TEST_VENV)/bin/lint-imports

CASES ?= 20000
SEED ?= 1
fuzz: $(TEST_VENV)/.ready ## hostile input for a real server: CASES= of SEED=, or the one CASE= of it; REPORT= for a file
	@FUZZ_CASES=$(CASES) FUZZ_SEED=$(SEED) FUZZ_CASE=$(CASE) FUZZ_REPORT=$(REPORT) \
	  $(TEST_VENV)/bin/python -m pytest --quiet $(if $(CASE),tests/fuzz/test_campaign.py,tests/fuzz)

audit: $(TEST_VENV)/.ready ## known vulnerabilities of what is locked (asks PyPI's service), and of our own code
	@$(TEST_VENV)/bin/ruff check --quiet --select S app export training
	@$(PYTHON) -m venv $(AUDIT_VENV)
	@$(AUDIT_VENV)/bin/pip install --quiet --upgrade pip-audit
	@for lock in requirements/*.lock; do \
	  $(AUDIT_VENV)/bin/pip-audit --strict --disable-pip --no-deps --requirement $$lock || exit; \
	done

test-browser: $(TEST_VENV)/.ready ## /docs in a real Chromium (Debian's packages chromium and chromium-driver)
	@PYTHON=$(CURDIR)/$(TEST_VENV)/bin/python tests/browser/run.sh

test-cuda-host: $(TEST_VENV)/.ready ## ONNX Runtime's CUDA provider without a GPU: all of it but the kernels (gcc; 260 MB of wheels)
	@PYTHON=$(CURDIR)/$(TEST_VENV)/bin/python tests/cuda_host/run.sh

test-docker: $(TEST_VENV)/.ready ## build the images and run docker-compose.yml with a real Docker engine (root, minutes)
	@PYTHON=$(CURDIR)/$(TEST_VENV)/bin/python tests/docker/run.sh

format: $(TEST_VENV)/.ready ## write the code in the project's format
	@$(TEST_VENV)/bin/ruff format .
	@$(TEST_VENV)/bin/ruff check --fix .

lock: ## resolve the newest versions into requirements/*.lock (needs pip-tools on the PATH)
	pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-emit-index-url --no-emit-trusted-host \
	  --no-emit-find-links --no-header --extra cpu --output-file requirements/serve.lock pyproject.toml
	for extra in gpu grpc otel; do \
	  pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-emit-index-url --no-emit-trusted-host \
	    --no-emit-find-links --no-header --constraint requirements/serve.lock --extra $$extra \
	    --output-file requirements/$$extra.lock pyproject.toml || exit; \
	done
	pip-compile --quiet --upgrade --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	  --no-header --unsafe-package setuptools --constraint requirements/constraints.txt \
	  --extra cpu --extra export --extra test --output-file requirements/test.lock pyproject.toml
	@# pip-compile drops the markers of what an extra asks for.
	sed -i -E 's/^(openvino(-telemetry)?==[^ ]+)( \\)?$$/\1 ; platform_machine == "x86_64"\3/' requirements/*.lock

clean: ## remove the environments and the caches
	rm -rf $(VENV) $(TEST_VENV) $(AUDIT_VENV) $(NEWEST_VENV) .venv-export .venv-gpu .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
