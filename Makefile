# The menu. `make train` and `make test` set everything up on a fresh machine; so do the others.
#   make train ARGS="--epochs 2"      make test ARGS="tests/engine -k deadline"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
export PYTHON VENV
# A build from here is a developer's: warnings are errors, and where torch is, its backend too.
export HIER_WERROR ?= 1
export HIER_TORCH ?= 1

BIN := $(VENV)/bin
RUN := $(BIN)/python
CPP := $(shell find csrc tests/simulation -name '*.h' -o -name '*.cuh' -o -name '*.cc' -o -name '*.cu')
# Absent folders are left out, so that a tool does not stop at a part that is not there yet.
PYTHON_CODE := $(wildcard setup.py allreduce trainer benchmarks tests examples .ci/site.py .ci/package_contents.py)

.DEFAULT_GOAL := help
.PHONY: help train test build dev conformance bench smoke fmt lint types docs docs-check site asan tsan simulate aarch64 newest-torch wheel cuda clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

train: $(VENV)/.trainer ## the main job: ResNet-50 on real data, 2 nodes x 2 ranks (ARGS=...)
	$(call compile)
	$(RUN) -m trainer.run --algo halving_doubling $(ARGS)

# Two processes share the files, since many tests wait more than they compute. One that dies ends
# the run: its test would only kill the next.
test: build ## the tests; `make test ARGS="-m full"` runs the full products, `ARGS="-n 0"` in one process
	$(RUN) -m pytest -n 2 --dist loadfile --max-worker-restart 0 $(ARGS)

build: $(VENV)/.dev ## the environment and the native code, as far as they have changed
	$(call compile)

conformance: build ## torch's own suite on hier, beside Gloo, at 3 and 4 ranks
	$(RUN) -m pytest tests/conformance -m full $(ARGS)

bench: build ## the benchmarks, against peers on this machine
	$(RUN) -m pytest benchmarks $(ARGS)

smoke: build ## each benchmark once, without timing
	$(RUN) -m pytest benchmarks --benchmark-disable $(ARGS)

fmt: $(VENV)/.dev ## format everything
	$(BIN)/ruff format $(PYTHON_CODE)
	$(BIN)/ruff check --fix $(PYTHON_CODE)
	$(BIN)/clang-format -i $(CPP)

lint: $(VENV)/.dev ## formatting and lint, nothing is changed
	$(BIN)/ruff format --check $(PYTHON_CODE)
	$(BIN)/ruff check $(PYTHON_CODE)
	$(BIN)/clang-format --dry-run -Werror $(CPP)

types: $(VENV)/.dev ## mypy --strict on allreduce and trainer; both checkers on a program of users
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(RUN)

docs: build ## generate docs/algorithms.md
	$(RUN) -m allreduce.show --docs docs/algorithms.md

docs-check: build ## fail if docs/algorithms.md is stale
	$(RUN) -m allreduce.show --docs docs/algorithms.md --check

site: build ## the documentation as a site in build/site; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

asan: build ## the core and its tests under AddressSanitizer and UBSan
	.ci/sanitize asan $(ARGS)

tsan: build ## the core and its tests under ThreadSanitizer
	.ci/sanitize tsan $(ARGS)

SECONDS ?= 60
simulate: build ## whole groups under virtual time, from new seeds, on every core (SECONDS=60)
	$(RUN) -m tests.simulation.run --seconds $(SECONDS) $(ARGS)

aarch64: ## compile the core for 64-bit ARM, and simulate groups on an emulated processor
	.ci/aarch64 $(ARGS)

newest-torch: build ## tests with the newest release of torch, in an environment of its own
	.ci/newest_torch $(ARGS)

wheel: build ## the source distribution and the wheel in build/wheel/dist, tried without a compiler and under torch
	.ci/wheel

cuda: build ## compile csrc/cuda or fail; needs nvcc, no GPU (HIER_CUDA_ARCHS="80 90")
	HIER_CUDA=1 $(RUN) setup.py --quiet build_ext --inplace

clean: ## remove what was built; the virtual environment stays
	rm -rf build dist *.egg-info
	find allreduce -name '*.so' -delete -o -name '_backend.json' -delete

# Compiles in place what has changed; under a second when nothing has.
define compile
@$(RUN) setup.py --quiet build_ext --inplace
endef

# The stamps say which extras are installed; a changed pyproject.toml installs again.
$(VENV)/.trainer: pyproject.toml .ci/setup
	.ci/setup trainer
	@touch $@

$(VENV)/.dev: pyproject.toml .ci/setup
	.ci/setup dev,trainer,clients
	@touch $@
	@touch $(VENV)/.trainer
