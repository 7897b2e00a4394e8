# Everything that can be done with this repository, one verb a line; the logic is in scripts/ and in the `baton` command.
PYTHON ?= python3
PY := .venv/bin/python
ONCE_FLAG := $(if $(filter-out 0,$(ONCE)),--once)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check protos fault soak gpu bench docs up clean

help:       ## list these verbs
	@sed -nE 's/^([a-z-]+): [^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

setup:      ## create .venv and install everything into it; fast when up to date
	@$(PYTHON) scripts/setup.py

demo: setup ## serve the demo model with prefill and decode apart and answer a prompt; ONCE=1 stops after the answer
	@.venv/bin/baton up --model demo --prefill 1 --decode 1 --prompt "$(or $(PROMPT),What is the capital of France?)" $(ONCE_FLAG)

test: setup ## run the default test suite (CPU, minutes)
	@$(PY) -m pytest -q $(ARGS)

test-slow: setup ## run the slow tests: real processes, faults, parity
	@$(PY) -m pytest -q -m "slow and not gpu" $(ARGS)

check: setup ## format, lint, types, layers, protos, sizes, generated docs
	@$(PY) scripts/check.py

protos: setup ## regenerate the Python of the protos
	@$(PY) scripts/gen_protos.py

fault: setup ## run every fault test, the long ones on real processes too (over half an hour)
	@$(PY) -m pytest -q -m "not gpu" tests/fault tests/e2e/test_graceful_leave.py tests/e2e/test_recovery_time.py $(ARGS)

soak: setup ## run random faults on a steady load for MINUTES=30 minutes; ARGS goes to tests.fault.soak
	@$(PY) -m tests.fault.soak --minutes $(or $(MINUTES),30) $(ARGS)

gpu: setup  ## on a CUDA device: run its tests, then measure each tier with a random 8B model; ARGS goes to pytest
	@$(PY) -m pytest -q -m gpu tests/gpu $(ARGS)
	@$(PY) -m scripts.bench_gpu

bench: setup ## measure a cluster, a tier or the handoff, and plot it; ARGS goes to benchmarks
	@$(PY) scripts/setup.py --plots
	@$(PY) -m benchmarks $(ARGS)

docs: setup ## regenerate the generated pages of docs/
	@$(PY) scripts/gen_docs.py

up: setup   ## start a local cluster; ARGS goes to `baton up`
	@.venv/bin/baton up $(ARGS)

clean:      ## remove .venv, caches, logs and build products
	@$(PYTHON) scripts/clean.py
