# `make demo` and `make test` work on a fresh clone: they build .venv with the tested versions first.
# Another Python:        make test PYTHON=python3.12

PYTHON ?= python3
WORKERS ?= auto
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
INSTALLED := .venv/installed

.PHONY: venv test test-python test-js test-install test-floor test-quick faults mutants fuzz fuzz-http kill demo lint format bench workflows pictures twins clean

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is missing or older than 3.11, which the tested versions need."; \
		echo "Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

test: test-python test-js

# A process a core, each with one thread of torch: several threads on so small models wait for each other.
# The order of the test files must not matter: make test-python ORDER_SEED=1 shuffles them, WORKERS=1 takes one process.
test-python: $(INSTALLED)
	OMP_NUM_THREADS=1 ORDER_SEED=$(ORDER_SEED) $(BIN)/python -m pytest --quiet --durations=10 \
		--numprocesses=$(WORKERS) --maxprocesses=4 --dist=loadfile $(if $(ORDER_SEED),--no-loadscope-reorder)

# About a minute: without what is marked slow.
test-quick: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses=$(WORKERS) --maxprocesses=4 --dist=loadfile \
		-m "not slow and not comfy and not gpu and not install"

test-js:
	@if command -v node >/dev/null 2>&1; then node --test tests/js/*.test.js; \
	else echo "JavaScript tests skipped: node (18 or newer) is not installed."; fi

# Some minutes, and downloads: what a ComfyUI user installs can run every shipped workflow.
test-install: $(INSTALLED)
	$(BIN)/python -m pytest --quiet -m install tests/install

# The lowest versions that pyproject.toml allows, with everything that uses a library. They have wheels for these Pythons.
test-floor: .venv-floor/installed
	OMP_NUM_THREADS=1 .venv-floor/$(notdir $(BIN))/python -m pytest --quiet \
		--numprocesses=$(WORKERS) --maxprocesses=4 --dist=loadfile tests/training

.venv-floor/installed: pyproject.toml constraints-floor.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { \
		echo "The lowest versions need Python 3.11 or 3.12: make test-floor PYTHON=python3.12"; exit 1; }
	test -x .venv-floor/$(notdir $(BIN))/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/$(notdir $(BIN))/python -m pip install --quiet --disable-pip-version-check -c constraints-floor.txt -e ".[dev]"
	@touch $@

# Some minutes: shows for each of the known faults which tests notice it.
faults: $(INSTALLED)
	$(BIN)/python tests/faults/plant.py

# Hours; COUNT=20 takes a smaller sample, SEED=1 another one, ONLY=training/lora one of a part: docs/testing.md.
COUNT ?= 300
SEED ?= 0
mutants: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mutants]"
	$(BIN)/python tests/faults/mutants.py --count $(COUNT) --seed $(SEED) $(addprefix --only ,$(ONLY))

# Prompts of random faults against a real ComfyUI; another series: make fuzz-http FUZZ_SEED=2
fuzz-http: $(INSTALLED)
	FUZZ_PROMPTS=500 FUZZ_SEED=$(or $(FUZZ_SEED),1) $(BIN)/python -m pytest --quiet -s tests/comfy/test_comfy_fuzz.py

# More of what make test does a little of; the seed decides which inputs are spoilt how, and where runs are killed.
INPUTS ?= 5000
ROUNDS ?= 30

fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 FUZZ_INPUTS=$(INPUTS) FUZZ_SEED=$(SEED) $(BIN)/python -m pytest --quiet tests/fuzz

kill: $(INSTALLED)
	OMP_NUM_THREADS=1 KILL_ROUNDS=$(ROUNDS) KILL_SEED=$(SEED) $(BIN)/python -m pytest --quiet tests/kill

demo: $(INSTALLED)
	$(BIN)/longcat demo

# The trained twins, from nothing: training/tiny/twins/README.md tells how long. Only part of them: make twins STAGES="edit"
twins: $(INSTALLED)
	$(BIN)/python -m comfyui_longcat.tests.twins.learn $(STAGES)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	@for benchmark in tests/benchmarks/*.py; do $(BIN)/python $$benchmark || exit 1; done

# The files that are made from the code: shipped workflows, docs/configuration.md, inputs of the help pages.
workflows: $(INSTALLED)
	$(BIN)/python -m comfyui_longcat.nodes.terminal.generate

# The pictures of README and of the workflow templates, from the demo's own results.
pictures: demo
	$(BIN)/python -m comfyui_longcat.tests.twins.showcase demo_output

clean:
	rm -rf .venv .venv-floor build dist *.egg-info .pytest_cache .ruff_cache demo_output
