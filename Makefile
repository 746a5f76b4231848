# Everything from a fresh clone: `make train`, `make test`. Needs Python >= 3.11, make, git and g++.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

RECIPE ?= launch/recipes/tiny.yaml
RUN ?= runs/tiny
ARGS ?=
LAUNCHER_ARGS ?=

# A benchmark of `make eval`: its name, prompts and judge, a bare model, and where that one's pictures lie.
BENCH ?=
MODEL ?=
PROMPTS ?=
JUDGE ?=
JUDGE_MODEL ?=
EVAL_OUT ?= runs/eval/$(BENCH)/$(subst /,-,$(MODEL:/%=%))
judge_options = $(if $(filter http://% https://%,$(JUDGE)),--judge http --judge-url $(JUDGE),$(if $(JUDGE),--judge $(JUDGE)))
eval_options = $(if $(MODEL),--out $(EVAL_OUT)) $(if $(PROMPTS),--prompts $(PROMPTS)) $(judge_options) $(if $(JUDGE_MODEL),--judge-model $(JUDGE_MODEL))

# Whose embedded model `make pretrain` makes.
DESIGN ?= bagel
PRETRAIN_bagel :=
PRETRAIN_janus := .janus

# Tests run in several processes, each of which takes whole files, those of tests/integration first: they take longest.
WORKERS ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

TORCH_PIN := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# What a machine with torch, transformers and triton lacks, as wheels for its Python; deepspeed is built beside them.
OUT ?= runs/gpu-check
GPU_PYTHON ?= 3.12
GPU_WHEELS := annotated-types braceexpand cyclopts diffusers docstring_parser hjson importlib_metadata lazy-importer \
    omegaconf pydantic pydantic_core rich-rst typing-inspection webdataset
GPU_PLATFORMS := $(addprefix --platform manylinux_2_,28_x86_64 27_x86_64 17_x86_64) --platform manylinux2014_x86_64
pin = $(shell sed -n 's/^$(1)==/&/p' constraints.txt)

# Where DeepSpeed's compiled ops live: in the environment, so that they are built once and go with it.
TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch_extensions
export TORCH_EXTENSIONS_DIR

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: setup train eval test test-fast fuzz chaos loss-compare lint docs bench pretrain gpu-check gpu-wheels lock audit clean help

setup: $(STAMP)  ## make .venv, install, build DeepSpeed's CPU op (PYTHON=python3.12 picks another Python)

# torch goes in first, by its pin: left to the resolver it may pull a newer one, with CUDA by the gigabyte.
$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "srum-ds needs Python >= 3.11, and '$(PYTHON)' is not. Install one and name it: make setup PYTHON=python3.12" >&2; \
	    exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	    exit 1; }
	$(PIP_INSTALL) $(TORCH_PIN)
	$(PIP_INSTALL) -e '.[test]'
	$(BIN)/python -m srum_ds.commands.launcher
	@touch $@

train: setup  ## train and evaluate (RECIPE=launch/recipes/tiny.yaml ARGS="key=value ..." LAUNCHER_ARGS="...")
	$(BIN)/srum-ds train $(RECIPE) $(ARGS) $(if $(LAUNCHER_ARGS),--launcher-args="$(LAUNCHER_ARGS)")
	$(BIN)/srum-ds eval --if-checkable --recipe $(RECIPE) $(ARGS)

# Without BENCH: held-out prompts of the run's own kind. With it: draws and scores, a run and its base, or MODEL alone.
eval: setup  ## base against trained (RUN=runs/tiny BENCH=compbench MODEL=... JUDGE=http://...|self|checker PROMPTS=... ARGS="...")
	@test -n '$(BENCH)' || test -z '$(MODEL)$(JUDGE)$(PROMPTS)' || { echo "make eval: MODEL, JUDGE and PROMPTS are those of a benchmark: name it, BENCH=compbench" >&2; exit 1; }
	$(BIN)/srum-ds eval $(or $(MODEL),$(RUN)) $(if $(BENCH),--benchmark $(BENCH) $(eval_options)) $(ARGS)

test: setup  ## run the tests (ARGS="-k config ...")
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-fast: setup  ## the tests that start no process, in 90 s on two cores (ARGS="-k config ...")
	$(BIN)/python -m pytest tests/unit $(WORKERS) $(ARGS)

fuzz: setup  ## hand a million inputs that are nearly right to everything that reads some (ARGS="--seed 2 --only score")
	$(BIN)/python -m tests.fuzz --inputs 1000000 $(ARGS)

loss-compare: setup  ## this tree against another commit, bit for bit (REV=138c5fc ARGS=--quick)
	$(BIN)/python -m tests.numerics.loss_compare $(or $(REV),$(error loss-compare needs a commit: make loss-compare REV=138c5fc)) $(ARGS)

chaos: setup  ## a seeded campaign of faults over the tiny model (ARGS="--faults 100 --seed 0 --only kill --resume")
	$(BIN)/python -m tests.chaos $(ARGS)

lint: setup  ## ruff (rules and format), mypy, and the floors of the house (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A second step of the setup: training needs none of it.
docs: $(VENV)/.docs-done  ## build the documentation as a site into site/; a broken link is an error
	DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict
	@echo "written: site/index.html"

# The package is installed: pip adds what the extra names.
$(VENV)/.docs-done: $(STAMP)
	$(PIP_INSTALL) -q 'srum-ds[docs]'
	@touch $@

bench: setup  ## run every benchmark in benchmarks/
	@ls benchmarks/*.py >/dev/null
	set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file $(ARGS); done

pretrain: setup  ## make an embedded tiny model again from a seed (DESIGN=bagel or janus)
	@test -n '$(filter bagel janus,$(DESIGN))' || { echo "make pretrain: DESIGN is '$(DESIGN)', expected bagel or janus" >&2; exit 1; }
	$(BIN)/python -m srum_ds.worlds.shapes.pretrain$(PRETRAIN_$(DESIGN)) $(ARGS)

# No setup: on a borrowed machine there is no network (tests/gpu/check.sh).
gpu-check:  ## check this machine's GPU in nine minutes (OUT=runs/gpu-check COMMIT=... ARGS="--rehearse")
	bash tests/gpu/check.sh --out $(OUT) $(if $(COMMIT),--commit $(COMMIT)) $(ARGS)

gpu-wheels: setup  ## fill .whl with what gpu-check needs where there is no network (GPU_PYTHON=3.12)
	rm -rf .whl
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
	    --python-version $(GPU_PYTHON) --implementation cp $(GPU_PLATFORMS) \
	    -d .whl $(foreach name,$(GPU_WHEELS),$(call pin,$(name)))
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps \
	    --no-build-isolation -w .whl $(call pin,deepspeed)
	@test "$$(ls .whl/*.whl | wc -l)" -eq $(words $(GPU_WHEELS) deepspeed) || { echo ".whl lacks some wheels" >&2; exit 1; }
	@test "$$(du -sm .whl | cut -f1)" -lt 64 || { echo ".whl is over 64 MiB" >&2; exit 1; }

# The exact files of constraints.txt by their SHA-256: torch with CUDA from PyPI, for any Python; its CPU build for this one.
LOCKER := $(VENV)/lock/bin
LOCK = $(LOCKER)/uv pip compile -q --generate-hashes --no-annotate --no-emit-find-links --python $(BIN)/python \
    --custom-compile-command 'make lock' --extra test --extra docs -c constraints.txt setup.py
lock: setup  ## write requirements.lock and requirements-cpu.lock anew, from constraints.txt
	test -x $(LOCKER)/uv || { $(BIN)/python -m venv $(VENV)/lock && $(LOCKER)/python -m pip install -q --disable-pip-version-check uv; }
	$(LOCK) --universal -o requirements.lock
	printf '%s+cpu\n' '$(TORCH_PIN)' > $(VENV)/lock/cpu.txt
	$(LOCK) -c $(VENV)/lock/cpu.txt $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu) -o requirements-cpu.lock

# Not in `make lint`: it asks an advisory service, and what that says changes without a change here.
audit: setup  ## look up the locked packages' known vulnerabilities (pip-audit; needs a network)
	test -x $(VENV)/audit/bin/pip-audit || { $(BIN)/python -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install -q --disable-pip-version-check pip-audit; }
	$(VENV)/audit/bin/pip-audit --strict --disable-pip -r requirements.lock $(ARGS)

clean:  ## remove .venv, builds and caches; runs/ stays
	rm -rf $(VENV) .whl build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find srum_ds tests launch benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) \
	    | while IFS="$$(printf '\t')" read -r target text; do printf '  make %-12s %s\n' "$$target" "$$text"; done
