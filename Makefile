# make demo    set up, train float and 4 bits on generated data, report
# make test    set up and run the tests
# make test-slow   more trainings: odd data, wrappers, other detectors
# make test-onedl  the same on the maintained fork of mmdet, in an environment of
#              its own; not part of the other targets
# make check   set up and run flake8, isort and mypy
# make docs    set up and build the documentation in docs/_build/html
# make linkcheck   check the links of the documentation; needs a network
# make tables  write the tables of the documentation from benchmarks/*.json
# make clean   remove the environment, the runs and the generated data
# Every step leaves a mark in $(VENV) and is not done again; stop and repeat at will.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-onedl run-onedl check docs linkcheck tables clean

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SAY = say() { printf '\n[%s] %s\n' "$$(date +%H:%M:%S)" "$$*"; }; say
REQUIREMENTS := requirements/constraints.txt
# Without symbols for debuggers, which cost more than half of mmcv's compilation.
WITH_OPS := MMCV_WITH_OPS=1 CFLAGS='-O3 -DNDEBUG -g0'

help:
	@sed -n 's/^# make/make/p' Makefile

$(VENV)/.created:
	@for python in $${PYTHON:-python3 python3.12 python3.11 python3.10}; do
	  if "$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
	    $(SAY) "Creating the virtual environment $(VENV) with $$python (seconds)"
	    "$$python" -m venv $(VENV)
	    touch $@
	    exit 0
	  fi
	done
	echo "No Python 3.10 to 3.12 found: install one, or name it with 'make PYTHON=/path/to/python3.11 ...'." >&2
	exit 1

$(VENV)/.built: $(VENV)/.created requirements/build.txt requirements/mminstall.txt $(REQUIREMENTS)
	@$(SAY) "Installing torch and the build tools (1 to 5 minutes)"
	$(PIP) install --quiet -r requirements/build.txt
	say "Installing mmcv with its operators (5 to 20 minutes on two cores the first time, while the compiler runs silently; seconds from pip's cache afterwards)"
	export $(WITH_OPS)
	$(PIP) install --quiet --no-build-isolation -r requirements/mminstall.txt
	if ! $(BIN)/python -c 'import mmcv.ops' 2>/dev/null; then
	  say "The cached mmcv does not fit this torch: compiling it again (5 to 20 minutes on two cores)"
	  $(PIP) install --quiet --no-build-isolation --no-cache-dir --force-reinstall --no-deps -r requirements/mminstall.txt
	  $(BIN)/python -c 'import mmcv.ops'
	fi
	touch $@

$(VENV)/.ready: $(VENV)/.built requirements/runtime.txt requirements/tests.txt setup.cfg pyproject.toml
	@$(SAY) "Installing mmengine, mmdet, the tools and lcq_mmdet (about 1 minute)"
	$(PIP) install --quiet -r requirements/runtime.txt -r requirements/tests.txt
	$(PIP) install --quiet --no-build-isolation --no-deps -e .
	touch $@
	say "The environment $(VENV) is ready"


setup: $(VENV)/.ready

DATA := data/toy_coco
FLOAT := work_dirs/retinanet_r18_toy
LCQ := work_dirs/retinanet_r18_lcq_4bit_toy
DEMO := work_dirs/demo

$(DATA): | $(VENV)/.ready
	@$(SAY) "Generating a data set in COCO's format (seconds)"
	$(BIN)/python tools/make_toy_coco.py $@

$(FLOAT)/.trained: | $(VENV)/.ready $(DATA)
	@$(SAY) "Training the float detector (about 8 minutes on two cores)"
	$(BIN)/python tools/train.py configs/toy/retinanet_r18_toy.py --work-dir $(@D) --resume
	touch $@

$(LCQ)/.trained: $(FLOAT)/.trained
	@$(SAY) "Quantizing to 4 bits and fine-tuning (about 2 minutes on two cores)"
	$(BIN)/python tools/train.py configs/toy/retinanet_r18_lcq_4bit_toy.py --work-dir $(@D) --resume
	touch $@

demo: $(LCQ)/.trained
	@$(SAY) "Evaluating both side by side (seconds)"
	$(BIN)/python tools/report.py $(FLOAT) $(LCQ) --out-dir $(DEMO)

test: $(VENV)/.ready
	@$(SAY) "Running the tests (about 15 minutes on two cores)"
	$(BIN)/python -m pytest

test-slow: $(VENV)/.ready
	@$(SAY) "Running the slow tests (about 10 minutes on two cores)"
	$(BIN)/python -m pytest -m slow

$(VENV)/.onedl: $(VENV)/.created requirements/build.txt requirements/onedl.txt requirements/tests.txt $(REQUIREMENTS)
	@$(SAY) "Installing torch, the fork and its mmcv, which is compiled (15 to 25 minutes on two cores)"
	$(PIP) install --quiet -r requirements/build.txt
	$(WITH_OPS) $(PIP) install --quiet --no-build-isolation onedl-mmcv==2.3.6
	$(BIN)/python -c 'import mmcv.ops'
	$(PIP) install --quiet -r requirements/onedl.txt -r requirements/tests.txt
	$(PIP) install --quiet --no-build-isolation --no-deps -e .
	touch $@

run-onedl: $(VENV)/.onedl
	@$(SAY) "Running the tests on the fork"
	$(BIN)/python -m pytest

test-onedl:
	@$(MAKE) --no-print-directory VENV=.venv-onedl run-onedl

check: $(VENV)/.ready
	@$(SAY) "Running flake8, isort and mypy (about 1 minute)"
	$(BIN)/python -m flake8 lcq_mmdet lcq_cli tools tests configs
	$(BIN)/python -m isort --check-only lcq_mmdet lcq_cli tools tests
	$(BIN)/python -m mypy

$(VENV)/.docs: $(VENV)/.ready requirements/docs.txt
	@$(SAY) "Installing Sphinx (seconds)"
	$(PIP) install --quiet -r requirements/docs.txt
	touch $@

docs: $(VENV)/.docs
	@$(SAY) "Building the documentation (about 1 minute)"
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	say "Open docs/_build/html/index.html"

linkcheck: $(VENV)/.docs
	@$(BIN)/python -m sphinx -b linkcheck -q docs docs/_build/linkcheck

tables: $(VENV)/.ready
	@$(BIN)/python tools/write_tables.py README.md benchmarks/README.md docs/*.md

clean:
	rm -rf $(VENV) .venv-onedl docs/_build work_dirs $(DATA)
