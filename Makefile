# Two commands for a fresh machine: `make demo` and `make test`. The rest is development.
.PHONY: setup setup-quality demo demo-guarded demo-quality demo-models test test-quick chaos bench check docs lock clean

PYTHON ?= python3.11
# Where pip finds the CPU build of torch, if not in its ordinary sources: see docs/pages/install.md.
TORCH_PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/routelmt-batch
PIP := $(BIN)/pip --disable-pip-version-check install --quiet
READY := $(VENV)/ready

setup: $(READY)

# torch first and alone: only so does its CPU build stand. Then everything else without resolving,
# which keeps PyPI's CUDA builds of torchvision, torchaudio and torchcodec out.
$(READY): cluster/requirements-cpu.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_PIP_ARGS) torch==2.13.0
	$(PIP) --no-deps -r cluster/requirements-cpu.txt
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

# COMET's environment, beside the main one: docs/pages/install.md. The same steps.
QUALITY := .venv-quality
QUALITY_PIP := $(QUALITY)/bin/pip --disable-pip-version-check install --quiet
QUALITY_READY := $(QUALITY)/ready

setup-quality: $(QUALITY_READY)

$(QUALITY_READY): cluster/requirements-quality.txt pyproject.toml
	$(PYTHON) -m venv $(QUALITY)
	$(QUALITY_PIP) $(TORCH_PIP_ARGS) torch==2.13.0
	$(QUALITY_PIP) --no-deps -r cluster/requirements-quality.txt
	$(QUALITY_PIP) --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(RUN) run jobs/demo/job.yaml

# The same with guard, escalation and audit by the demo's COMET.
demo-guarded: setup setup-quality
	$(RUN) run jobs/demo/guarded.yaml

# What routing is worth on the demo's own rows: both models translate all of them.
demo-quality: setup
	$(RUN) label jobs/demo/label.yaml --set input.uri=input --output runs/demo-quality/labels \
	  --set models.small.source=models/small --set models.large.source=models/large
	$(RUN) evaluate runs/demo-quality/labels/data --budget 0.3 --out runs/demo-quality/evaluation \
	  --router routelmt=jobs/demo/models/router --router length=jobs/demo/models/small

# The demo's models from parallel text, by the project's own commands; jobs/demo/README.md says how long.
TEXT ?= ../shared/data/*.parquet
TRAINED := runs/demo-models
demo-models: setup setup-quality
	$(BIN)/python jobs/demo/split_text.py $(TEXT) --out $(TRAINED)/text
	$(BIN)/python jobs/demo/train_translators.py $(TRAINED)/text/train --out $(TRAINED)
	$(RUN) label jobs/demo/label.yaml
	$(RUN) label jobs/demo/label.yaml --set input.uri=../../$(TRAINED)/text/test --output $(TRAINED)/labels-test
	$(RUN) train jobs/demo/train.yaml
	$(RUN) train jobs/demo/train.yaml --set target=quality --set training.learning_rate=0.002 \
	  --output $(TRAINED)/router-q
	$(RUN) train jobs/demo/train.yaml --set method=head_only --set training.learning_rate=0.002 \
	  --output $(TRAINED)/router-head
	$(RUN) train jobs/demo/train.yaml --set method=full --set training.learning_rate=0.0005 \
	  --output $(TRAINED)/router-full
	$(BIN)/python jobs/demo/make_encoder.py --tokenizer $(TRAINED)/tokenizer --out $(TRAINED)/encoder-base
	$(RUN) train jobs/demo/encoder.yaml
	$(RUN) evaluate $(TRAINED)/labels-test/data --budget 0.3 --out $(TRAINED)/evaluation \
	  --router routelmt=$(TRAINED)/router --router routelmt-q=$(TRAINED)/router-q \
	  --router head-only=$(TRAINED)/router-head --router full=$(TRAINED)/router-full \
	  --router encoder=$(TRAINED)/encoder --router length=$(TRAINED)/small \
	  --router rarity=$(TRAINED)/text/train --router entropy=$(TRAINED)/small
	$(RUN) calibrate $(TRAINED)/router $(TRAINED)/labels-test/data
	$(QUALITY)/bin/python jobs/demo/make_comet.py $(TRAINED) --out $(TRAINED)/comet
	$(BIN)/python jobs/demo/publish_models.py $(TRAINED) --to jobs/demo/models

# What needs no engine, browser or training, in two minutes.
test-quick: setup
	$(BIN)/python -m pytest -n logical --dist worksteal -m "not engine and not slow and not chaos"

# The passes beside bare vLLM, and a job on a store beside one on a disk.
bench: setup
	$(BIN)/python tests/benchmarks/engines.py
	$(BIN)/python -m tests.benchmarks.store

# Each of pytest-xdist's processes has a core of its own: see tests/conftest.py.
test: setup setup-quality
	$(BIN)/python -m pytest -n logical --dist worksteal -m "not engine and not chaos"
	$(BIN)/python -m pytest -n logical --dist worksteal -m engine

# Every place at which a job is killed, stopped or damaged, and not only some of each kind.
chaos: setup setup-quality
	$(BIN)/python -m pytest -n logical --dist worksteal -m chaos

# The site, runs/site, and the pages that are written from the code.
docs: setup
	$(BIN)/python docs/references.py
	$(BIN)/mkdocs build --quiet --strict -f docs/mkdocs.yml

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Pins are resolved by uv from pyproject.toml; what the CPU set-up must not install is left out.
lock:
	cp pyproject.toml cluster/ && cd cluster && \
	uv pip compile pyproject.toml --extra cpu --extra dev -c constraints-cpu.txt --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --no-annotate --no-header \
	  --no-emit-package torch --no-emit-package torchvision --no-emit-package torchaudio \
	  --no-emit-package torchcodec -o requirements-cpu.txt && \
	uv pip compile pyproject.toml --extra gpu -c constraints-gpu.txt --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --no-annotate --no-header -o requirements-gpu.txt && \
	uv pip compile constraints-quality.txt --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --no-annotate --no-header \
	  --no-emit-package torch -o requirements-quality.txt; \
	rm pyproject.toml

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
