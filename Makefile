# `make serve` and `make test` are all that a newcomer needs; each makes its own environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help install serve test check bench train-mini exam clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## the environment, in .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Rekontext needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[engine,dev,train]'
# Triton, which PyTorch for GPUs brings, lies apart: whatever imports diffusers would import it too, a second a process.
	@case "$$(uname -sm)" in "Linux x86_64") $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-deps --upgrade --target $(VENV)/triton triton ;; esac
# And so does PEFT, by which diffusers applies LoRAs: it is there to judge ours.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --upgrade --target $(VENV)/peft peft
# Black Forest Labs' client wants a Pillow of two years ago, and works with ours.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --upgrade --target $(VENV)/blackforest blackforest
	@touch $(STAMP)

serve: $(STAMP) ## run the API on http://127.0.0.1:8000 with the embedded model
	$(BIN)/rekontext serve

# Each worker computes on one core: OpenMP's helpers wait by spinning, and two programs' would hold each other up.
# Three, because each waits a third of its time. What is compiled is kept, also where that is turned off: each worker, and
# each process that a test starts, would compile all of it anew.
test: $(STAMP) ## all tests, on two cores
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

check: $(STAMP) ## lint, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## every figure that the README quotes
	$(BIN)/python -m bench

train-mini: $(STAMP) ## make the embedded model again, from nothing
	$(BIN)/python -m training.make_mini --out src/rekontext/models/mini --runs runs/mini

exam: $(STAMP) ## the embedded model's whole exam; takes long
	$(BIN)/python -m training.exam src/rekontext/models/mini

clean: ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
