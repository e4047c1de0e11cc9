# Everything runs in .venv, which `make install` fills. Options:
#     PYTHON=python3.12   the interpreter that .venv is made from
#     ARGS="..."          handed on: key=value overrides for `make demo`, pytest options for `make test`
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
INSTALL := @PYTHON="$(PYTHON)" sh requirements/install.sh
# Where `make lock` finds the CPU build of torch.
LOCK_TORCH ?= --torch-backend=cpu
LOCK := $(BIN)/uv pip compile --override requirements/overrides.txt --python-version 3.11 --no-header --no-annotate --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test check install install-gpu lines lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 21

demo:  ## install if needed, then one real STaR-GATE iteration on the CPU
	$(INSTALL) cpu --demo
	@$(BIN)/stargate run cpu_demo $(ARGS)

test: install  ## install what is missing, then all tests: the fast ones first
	$(BIN)/python -m pytest tests/unit tests/hostile -n 2 --dist loadfile $(ARGS)
	$(BIN)/python -m pytest tests/integration -m "not engines" -n 2 --dist loadfile $(ARGS)
	$(BIN)/python -m pytest tests/integration tests/gpu -m "engines or gpu" $(ARGS)

check: install  ## lint, formatting, types and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p stargate
	$(BIN)/lint-imports --no-cache

install:  ## install for the CPU into .venv, from the lock file
	$(INSTALL) cpu

install-gpu:  ## install for an NVIDIA GPU into .venv
	$(INSTALL) gpu

lines:  ## lines of Python and templates by room
	@for room in stargate/*/ actors/*/ launch/ benchmarks/ tests/; do \
		test -L $${room%/} || printf '%6d  %s\n' "$$(git ls-files $$room | grep -E '\.(py|j2|js|css)$$' | xargs cat | wc -l)" $$room; \
	done
	@printf '%6d  stargate/*.py\n' "$$(cat stargate/*.py | wc -l)"
	@printf '%6d  the product, without tests\n' "$$(git ls-files stargate actors launch benchmarks | grep -E '\.(py|j2|js|css)$$' | xargs cat | wc -l)"

# The GPU's keeps the CPU's versions: what stands in an output file is what uv prefers.
lock: install  ## resolve requirements/cpu.in and gpu.in into cpu.lock and gpu.lock anew
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(LOCK) requirements/cpu.in --override requirements/cpu-overrides.txt $(LOCK_TORCH) -o .venv/cpu.lock
	sed -E 's/\+cpu$$//' .venv/cpu.lock > requirements/cpu.lock
	cp requirements/cpu.lock .venv/gpu.lock
	$(LOCK) requirements/gpu.in --python-platform x86_64-manylinux_2_28 -o .venv/gpu.lock
	cp .venv/gpu.lock requirements/gpu.lock

clean:  ## remove caches and build outputs; .venv, runs and the model cache stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -print | xargs -r rm -rf
