# Every target works from a fresh clone: it builds .venv first where needed and calls it by path (no activation, and no
# other program named `lightning` can get in the way). uv is used where it is installed, else pip.
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
PY := .venv/bin/python
RUN := $(PY) -m m2h_lightning
TEST_WORKERS ?= 2
# An empty variable is as good as none, so that scripts can pass theirs on.
TRAINED = $(or $(strip $(EXPERIMENT)),experiments/rooms.yaml)
SWEPT = $(or $(strip $(EXPERIMENT)),experiments/nyud.yaml)
# DATA=folder: where the data sets lie (else the variable M2H_DATA, else ./data).
ifdef DATA
export M2H_DATA := $(DATA)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo train baselines test lint format bench bench-data bench-metrics bench-objectives bench-sweeps \
	doctor constraints clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-19s %s\n", $$1, $$2}'

# A stamp is younger than what it was made from, and written last: an interrupted set-up is done again.
.venv/.stamp: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=python3.11 ..."; exit 2; }
ifdef UV
	test -x $(PY) || uv venv --quiet --python $(PYTHON) .venv
	uv pip install --quiet --python $(PY) -c constraints.txt -e '.[balancing,data,dev,grpc,lora,postgres,report,tensorboard]'
else
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[balancing,data,dev,grpc,lora,postgres,report,tensorboard]'
endif
	@touch $@

setup: .venv/.stamp  ## Install the package and its tools into .venv
	@$(RUN) --version

demo: .venv/.stamp  ## Render rooms, train M2H on them, test on unseen rooms, print a table (2 cores: minutes)
	$(RUN) fit --config experiments/rooms.yaml --run.test true $(ARGS)

train: .venv/.stamp  ## Train one experiment: make train EXPERIMENT=experiments/rooms.yaml ARGS='--model.wmca.window_size 9'
	$(RUN) fit --config $(TRAINED) $(ARGS)

baselines: .venv/.stamp  ## Train a single-task network per task, print Δm: make baselines EXPERIMENT=experiments/rooms.yaml
	$(RUN) baselines --config $(TRAINED) $(ARGS)

# ── sweeps ────────────────────────────────────────────────────────────────────────────────────────────────────────────
# make sweep-NAME runs sweeps/NAME.yaml (with _ for -), then prints the report. What is done is not run again.
#   EXPERIMENT=FILE (default experiments/nyud.yaml)   DATA=FOLDER   SEEDS=3 or 0,1,7   WORKERS=4
#   SWEEP_NAME= and SWEEP_ROOT=: its folder            LAUNCHER=slurm SLURM='partition=gpu time=08:00:00'
#   ARGS='--retry-oom -- --trainer.max_epochs 2': options of m2h sweep run, then words for every run
SWEEPS := $(addprefix sweep-,$(subst _,-,$(basename $(notdir $(wildcard sweeps/*.yaml)))))
.PHONY: $(SWEEPS)

given = $(if $(strip $(2)),$(1) $(strip $(2)))
SWEEP_FILE = sweeps/$(subst -,_,$*).yaml
SWEEP_PLACE = --experiment $(SWEPT) $(call given,--name,$(SWEEP_NAME)) $(call given,--root,$(SWEEP_ROOT))
SWEEP_OPTIONS = $(call given,--data-root,$(DATA)) $(call given,--seeds,$(SEEDS)) $(call given,--workers,$(WORKERS)) \
	$(call given,--launcher,$(LAUNCHER)) $(foreach option,$(SLURM),--slurm $(option))

# A run that failed is in the report too; after Ctrl-C, bad input or a submission there is nothing to report.
define RUN_SWEEP
@code=0; set -x; $(RUN) sweep run $(SWEEP_FILE) $(strip $(SWEEP_PLACE) $(SWEEP_OPTIONS)) $(ARGS) || code=$$?; \
	$(if $(filter-out local,$(LAUNCHER)),,if [ $$code -le 1 ]; then \
	$(RUN) sweep report $(SWEEP_FILE) $(strip $(SWEEP_PLACE)) || code=$$?; fi; )exit $$code
endef

sweep-window-size:  ## How large windows: sweeps/window_size.yaml; EXPERIMENT= DATA= WORKERS= SEEDS= LAUNCHER= ARGS=
sweep-wmca-ggfm:  ## With and without WMCA and GGFM
sweep-backbone:  ## DINOv2 S, B, L; Swin; ConvNeXt
sweep-consistency:  ## Weights of the consistency losses
sweep-balancing:  ## How the task losses are balanced
$(SWEEPS): sweep-%: .venv/.stamp
	$(RUN_SWEEP)

# Another name: m2h says which files there are.
sweep-%: .venv/.stamp
	$(RUN_SWEEP)

# By file, as the tests of a file share what is costly to make.
test: .venv/.stamp  ## Run the test suite
	$(PY) -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile $(ARGS)

lint: .venv/.stamp  ## Lint, formatting, types
	.venv/bin/ruff check src tests benchmarks
	.venv/bin/ruff format --check src tests benchmarks
	.venv/bin/mypy

format: .venv/.stamp  ## Format the code
	.venv/bin/ruff check --fix src tests benchmarks
	.venv/bin/ruff format src tests benchmarks

bench: .venv/.stamp  ## Measure: multiply-adds, paired times, data throughput
	$(PY) -m benchmarks.run $(ARGS)

bench-data: .venv/.stamp  ## Measure: samples per second and core, published files against a prepared store
	$(PY) -m benchmarks.data $(ARGS)

bench-metrics: .venv/.stamp  ## Measure: milliseconds an image of every metric, fast against exact boundary score
	$(PY) -m benchmarks.metrics $(ARGS)

bench-objectives: .venv/.stamp  ## Train variants of balancing and consistency, 3 seeds each, on rooms: table with intervals
	$(PY) -m benchmarks.objectives --out docs/results/objectives $(ARGS)

bench-sweeps: .venv/.stamp  ## Measure: a sweep's overhead per cell, by kind of ledger and number of workers
	$(PY) -m benchmarks.sweeps $(ARGS)

doctor: .venv/.stamp  ## Check the installation
	$(RUN) doctor

constraints: .venv/.stamp  ## Compile constraints.txt from setup.cfg again
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 setup.cfg --extra data --extra dev \
		--extra tensorboard --extra balancing --extra lora --extra report --extra postgres --extra grpc \
		--no-header --no-annotate --no-emit-index-url -o constraints.txt

clean:  ## Remove .venv and caches; runs and data stay
	rm -rf .venv build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
