# Two commands do everything on a fresh machine: `make run` and `make test`.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell $(p) -c '' 2>/dev/null && echo $(p))))
BIN := .venv/bin
READY := .venv/.ready
BENCH_PYTHON ?= python3
# Makes the base images of the containers where no registry can be reached; used where it exists.
export CAPS_BASE_IMAGES ?= $(abspath $(wildcard ../shared/tools/stand-in-images))

SCRIPTS := deploy/smoke_checks.py deploy/container/requirements.py \
	$(addprefix deploy/container/caps-,await healthy ray secrets)

# Tests that start whole stacks, one after the other; the others are shared by several processes.
WHOLE_MACHINE := e2e chaos compose

.PHONY: help setup run test test-fast test-all chaos smoke lint format bench bench-gpu bench-service bench-start bench-search bench-queue bench-scaling clean

help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## Make .venv with the pinned dependencies

$(READY): pyproject.toml constraints.txt deploy/setup-venv
	PYTHON=$(PYTHON) sh deploy/setup-venv .venv
	@touch $@

run: $(READY) ## Start the stack, train on real digits, show where to look (KEEP=1 leaves it up)
	@$(BIN)/capsctl demo $(if $(filter 1,$(KEEP)),--keep)

test: $(READY) lint ## Everything but what is marked long
	$(BIN)/pytest -m "not long" $(addprefix --ignore tests/,$(WHOLE_MACHINE))
	$(BIN)/pytest -m "not long" -n 0 $(addprefix tests/,$(WHOLE_MACHINE))

test-fast: $(READY) ## Only what needs neither Ray nor MLflow
	$(BIN)/pytest -m "not slow"

test-all: $(READY) lint ## Everything, also what takes long
	$(BIN)/pytest $(addprefix --ignore tests/,$(WHOLE_MACHINE))
	$(BIN)/pytest -n 0 $(addprefix tests/,$(WHOLE_MACHINE))

smoke: ## Build the images, bring docker-compose.yml up, train and search in it, take it down
	@deploy/smoke.sh

chaos: $(READY) ## Kill everything at random for about 20 minutes, and see that nothing is lost
	PYTHONPATH=tests:. $(BIN)/python -m chaos

lint: $(READY) ## Format, style, types, directions of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --scripts-are-modules $(SCRIPTS)
	$(BIN)/lint-imports

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Speed and memory on the CPU beside a textbook CapsNet, parts, sweeps (about 10 minutes)
	$(BIN)/python -m benchmarks.throughput

bench-gpu: ## The same on a GPU; BENCH_PYTHON needs torch, numpy, pydantic, triton, no .venv
	PYTHONPATH=. $(BENCH_PYTHON) -m benchmarks.throughput --device cuda

bench-service: $(READY) ## A job's images/s beside the library's own (about 4 minutes)
	$(BIN)/python -m benchmarks.service_speed

bench-start: $(READY) ## From submit to the first training step, beside a bare TorchTrainer job
	$(BIN)/python -m benchmarks.start_latency

bench-search: $(READY) ## What a trial of a search costs beyond its training, and trials a minute
	$(BIN)/python -m benchmarks.search_overhead

bench-queue: $(READY) ## 100,000 queued jobs: claims, lists, submissions, memory (about 6 minutes)
	$(BIN)/python -m benchmarks.queue

bench-scaling: $(READY) ## One worker beside two on two cores, and what the exchange costs (under 3 minutes)
	$(BIN)/python -m benchmarks.scaling

clean: ## Remove .venv and all that the embedded stack wrote
	-@[ -x $(BIN)/capsctl ] && $(BIN)/capsctl down
	rm -rf .venv .caps
