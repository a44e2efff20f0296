# Every target sets up what it needs; a set-up that is done takes a fraction of a second.

PYTHON ?= python3.11
PYTEST_ARGS ?=
ECHO_TEST_CLIENTS ?= all

VENV := .venv/bin/python
STOCK := .venv-stock/bin/python
SETUP := $(PYTHON) scripts/setup_env.py

export ECHO_TEST_MODEL ?= $(CURDIR)/.venv/model
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
# A dying SGLang otherwise waits up to a minute for dumps that need a GPU or a debugger.
export SGLANG_CUDA_COREDUMP_BEFORE_CRASH := 0
export SGLANG_PYSPY_DUMP_BEFORE_CRASH := 0

.DEFAULT_GOAL := help
.PHONY: help setup venvs patched model stock-python demo test test-clients check lint types layers \
	patch-check test-quick format bench bench-emulated bench-kv bench-kv-hits bench-sim \
	bench-decide bench-batches bench-cpu-attention clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## environment, patched SGLang and test model (first time: some minutes, 11 GB)
	@$(SETUP) all

venvs:  ## only .venv and .venv-stock over the shared environment
	@$(SETUP) venvs

patched:  ## only up to this clone's patched copy of SGLang
	@$(SETUP) patched

model:  ## only up to the test model, linked as .venv/model
	@$(SETUP) model

stock-python: venvs  ## print the Python with stock SGLang and this project
	@$(SETUP) path stock-python

demo: setup  ## a server, bursty chat and a pool of document questions, and what came of them
	$(VENV) scripts/demo.py

test: setup  ## all tests, those with real servers too; only those of PYTEST_ARGS=... if given
ifeq ($(PYTEST_ARGS),)
	status=0; \
	OMP_NUM_THREADS=1 $(VENV) -m pytest -n 2 --dist loadfile -m "not server and not gpu" || status=1; \
	$(VENV) -m pytest -n 2 --dist loadfile -m "server and not gpu" || status=1; \
	exit $$status
else
	$(VENV) -m pytest $(PYTEST_ARGS)
endif

test-clients: setup  ## client libraries on one server (ECHO_TEST_CLIENTS=openai,...)
	ECHO_TEST_CLIENTS=$(ECHO_TEST_CLIENTS) $(VENV) -m pytest tests/clients $(PYTEST_ARGS)

check: patched  ## everything quick: under a minute, no server
	+@$(MAKE) --no-print-directory --jobs 2 --output-sync=target \
		test-quick types lint layers patch-check

lint: patched
	$(VENV) -m ruff check
	$(VENV) -m ruff format --check

types: patched
	$(VENV) -m mypy

layers: patched
	$(VENV) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

patch-check: patched
	$(VENV) scripts/apply_patches.py check

test-quick: patched
	ECHO_QUICK_TESTS=1 OMP_NUM_THREADS=1 $(VENV) -m pytest -q -n 2 --dist loadfile \
		-m "not gpu and not server and not slow" \
		tests/unit tests/property tests/patches $(PYTEST_ARGS)

format: patched  ## let ruff format and fix what it can
	$(VENV) -m ruff check --fix
	$(VENV) -m ruff format

bench: setup  ## stock SGLang against Echo on one machine: table and plot in results/
	$(VENV) eval/run.py foundation --stock-python $(CURDIR)/$(STOCK) --echo-python $(CURDIR)/$(VENV)

bench-kv: patched  ## the KV cache's own cost beside SGLang's Rust and Python cores (12 minutes)
	$(VENV) eval/bench_kv.py

bench-emulated: patched  ## stock against Echo, part by part, on an emulated GPU: table and plots (hours)
	$(VENV) eval/run.py emulated --seeds 1,2 --jobs 2

bench-kv-hits: patched  ## what each eviction keeps, on an emulated GPU (20 minutes)
	$(VENV) eval/run.py kv-cache

bench-sim: patched  ## how fast the emulator runs, and what it spends its time on
	$(VENV) eval/run.py bench-sim

bench-decide: patched  ## what deciding costs an iteration by pool size, beside stock (20 minutes)
	OMP_NUM_THREADS=1 $(VENV) eval/bench_decide.py

bench-batches: setup  ## what the batch service costs: validation, throughput, restart (10 minutes)
	$(VENV) eval/run.py batches

bench-cpu-attention: setup  ## the CPU attention backend against SGLang's torch_native
	$(VENV) eval/bench_cpu_attention.py

clean:  ## remove what was built in this clone; results/ and the shared cache stay
	rm -rf .venv .venv-stock .setup.lock build *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
