# make demo     environment, then the position probe on the embedded model: 3,600 answers, a table, a heat map
# make study    the embedded model fine-tuned at lambda 0 and 0.5, five seeds, each probed at both: a quarter of an hour
# make ruler    a decoder bias of known size on the embedded model, and what AGCI does to it: minutes of two cores
# make ruler-calibration  how often the ruler and its verdict are wrong, over 100 item sets: ten minutes
# make test     environment, then the default tests (offline, CPU)
# make check    lint, types and import contracts
# make slow     the tests that start processes or take long (SHARE=4: a quarter of the parameters of the longest)
# make contract the method's contract on the other transformers versions of OVERLAYS
# make train-env  LLaMA-Factory in .venv-train (TRAIN_VENV=... elsewhere), laid over the environment: 0.2 GB, 20 s
# make train-test every recipe of configs/, from a tiny checkpoint to a trained, merged, probed one
# make lmms-env   lmms-eval in .venv-lmms (LMMS_VENV=... elsewhere), laid over the environment: 0.2 GB
# make lmms-eval  a POPE-form task under lmms-eval with AGCI on by config.json, beside our own run on the same rows
# make app-env    gradio, a browser's driver and Inspect AI in .venv-app (APP_VENV=... elsewhere), laid over the environment
# make app-test   the live page and the report in a real Chromium, the tasks under Inspect AI
# make docs-env   what builds the site, in .venv-docs (DOCS_VENV=... elsewhere), laid over the environment
# make docs       docs/ as a site in site/, strictly and without a network
# make notebook-env  a Jupyter kernel in .venv-notebook (NOTEBOOK_VENV=... elsewhere), laid over the environment
# make notebooks     the notebooks of examples/ executed anew, with their outputs: minutes
# make notebooks-test  the same, compared with what is committed
# make vllm-env   vLLM for a CPU in .venv-vllm (VLLM_VENV=... elsewhere), laid over the environment: 3.5 GB, 4 minutes
# make vllm-test  AGCI under the real vLLM: our hooks' answers, its server, every family's class, two processes: half an hour
# make vllm-smoke one start of it: two minutes
#
# The environment is .venv (VENV=... elsewhere). PyPI's torch for Linux brings CUDA: about 3 GB to download, 6.5 GB on
# disk. A CPU build, about 0.3 GB to download:  make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TRAIN_VENV ?= .venv-train
LMMS_VENV ?= .venv-lmms
APP_VENV ?= .venv-app
DOCS_VENV ?= .venv-docs
VLLM_VENV ?= .venv-vllm
NOTEBOOK_VENV ?= .venv-notebook
TORCH_INDEX ?=
SHARE ?= 1

# Name of the overlay folder, then what goes into it on top of the environment's torch.
OVERLAYS := 4.57.6 5.6.0 5.24.0
OVERLAY_4.57.6 := transformers==4.57.6 huggingface-hub==0.36.2 tokenizers==0.22.2
OVERLAY_5.6.0 := transformers==5.6.0 huggingface-hub==1.5.0 tokenizers==0.22.2 httpx==0.28.1 httpcore==1.0.9
OVERLAY_5.24.0 := transformers==5.24.0
CONTRACT := tests/test_injection.py tests/test_hooks.py tests/test_hooks_of_live_models.py \
            tests/test_reference_outputs.py tests/test_prefix_replay.py tests/test_vision_attention.py \
            tests/test_family_contract.py tests/test_separators.py \
            tests/test_transformers_versions.py tests/test_first_token.py tests/test_planted_bias.py

# One thread per process: two threads of torch are slower than one as soon as anything else runs.
export OMP_NUM_THREADS = 1
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

SITE := import sysconfig; print(*dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib"))), sep="\n")

# $(1): an environment laid over the first one, with the packages of the file $(2) and this one, without dependencies.
# Packages that are not installed in it come from the first environment, by main_environment.pth. Scripts and start-up
# hooks do not: torchrun would start the first environment's Python, and lambda in config.json would do nothing.
define LAYER
	$(BIN)/python -m venv --clear --without-pip $(1)
	$(BIN)/python -c '$(SITE)' > "$$($(1)/bin/python -c '$(SITE)' | head -n 1)/main_environment.pth"
	$(1)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --requirement $(2)
	$(1)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --editable .
endef

.PHONY: demo study ruler ruler-calibration test check slow contract train-env train-test lmms-env lmms-eval notebook-env notebooks notebooks-test app-env app-test docs-env docs vllm-env vllm-test vllm-smoke clean

demo: $(VENV)/.eval
	$(BIN)/agci demo --output_dir demo

study: $(VENV)/.eval
	$(BIN)/agci study --output_dir study

ruler: $(VENV)/.eval
	$(BIN)/agci ruler --output_dir ruler

ruler-calibration: $(VENV)/.eval
	$(BIN)/agci ruler --calibration --output_dir ruler

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

slow: $(VENV)/.dev $(OVERLAYS:%=$(VENV)/overlay-%/.done)
	AGCI_TRANSFORMERS_OVERLAYS="$(subst $(eval) ,:,$(OVERLAYS:%=$(abspath $(VENV))/overlay-%))" \
	  $(BIN)/python -m pytest -n 2 --dist worksteal -m slow --share $(SHARE) --durations 15

contract: $(VENV)/.dev $(OVERLAYS:%=$(VENV)/overlay-%/.done)
	for version in $(OVERLAYS); do \
	  PYTHONPATH="$(abspath $(VENV))/overlay-$$version" $(BIN)/python -m pytest -n 2 --dist worksteal -p no:cacheprovider $(CONTRACT) || exit 1; \
	done

train-env: $(TRAIN_VENV)/.done

train-test: $(VENV)/.dev $(TRAIN_VENV)/.done
	AGCI_TRAIN_PYTHON="$(abspath $(TRAIN_VENV))/bin/python" \
	  $(BIN)/python -m pytest -n 2 --dist loadgroup -m train --durations 10

lmms-env: $(LMMS_VENV)/.done

lmms-eval: $(VENV)/.dev $(LMMS_VENV)/.done
	AGCI_LMMS_PYTHON="$(abspath $(LMMS_VENV))/bin/python" $(BIN)/python -m pytest -m slow -rA tests/test_lmms_eval.py

notebook-env: $(NOTEBOOK_VENV)/.done

notebooks: $(NOTEBOOK_VENV)/.done
	$(NOTEBOOK_VENV)/bin/python examples/execute.py

notebooks-test: $(NOTEBOOK_VENV)/.done
	$(NOTEBOOK_VENV)/bin/python -m pytest -m slow -rA --durations 3 tests/test_examples.py

app-env: $(APP_VENV)/.done

app-test: $(VENV)/.dev $(APP_VENV)/.done
	$(APP_VENV)/bin/python -m pytest -n 2 -m app -rs --durations 5

docs-env: $(DOCS_VENV)/.done

docs: $(DOCS_VENV)/.done
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build

vllm-env: $(VLLM_VENV)/.done

# vLLM's own defaults are for a server: all cores, a thread for each, and half of the memory for keys and values.
vllm-test vllm-smoke: export VLLM_CPU_KVCACHE_SPACE = 1
vllm-test vllm-smoke: export VLLM_CPU_OMP_THREADS_BIND = nobind

vllm-test: $(VENV)/.dev $(VLLM_VENV)/.done
	$(VLLM_VENV)/bin/python -m pytest -m vllm -rs --durations 10 tests/test_vllm.py tests/test_vllm_server.py tests/test_vllm_classes.py tests/test_vllm_families.py tests/test_vllm_stand_ins.py

vllm-smoke: $(VENV)/.dev $(VLLM_VENV)/.done
	$(VLLM_VENV)/bin/python -m pytest -m vllm tests/test_vllm.py -k smoke

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "transformers-agci needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@echo "Installing torch into $(VENV) (the CUDA build of PyPI is about 3 GB; TORCH_INDEX= in the Makefile for a CPU build)"
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch torchvision
	touch $@

$(VENV)/.eval: pyproject.toml $(VENV)/.torch
	$(PIP) --editable '.[eval]'
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.eval

$(VENV)/overlay-%/.done: constraints.txt | $(VENV)/.dev
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --upgrade --target $(@D) $(OVERLAY_$*)
	touch $@

$(TRAIN_VENV)/.done: constraints-train.txt pyproject.toml | $(VENV)/.eval
	$(call LAYER,$(TRAIN_VENV),constraints-train.txt)
	printf '%s\n' '#!/bin/sh' 'exec "$$(dirname "$$0")/python" -m torch.distributed.run "$$@"' > $(TRAIN_VENV)/bin/torchrun
	chmod +x $(TRAIN_VENV)/bin/torchrun
	touch $@

$(LMMS_VENV)/.done: constraints-lmms.txt pyproject.toml | $(VENV)/.eval
	$(call LAYER,$(LMMS_VENV),constraints-lmms.txt)
	touch $@

$(NOTEBOOK_VENV)/.done: constraints-notebook.txt pyproject.toml | $(VENV)/.dev
	$(call LAYER,$(NOTEBOOK_VENV),constraints-notebook.txt)
	touch $@

$(APP_VENV)/.done: constraints-app.txt pyproject.toml | $(VENV)/.dev
	$(call LAYER,$(APP_VENV),constraints-app.txt)
	touch $@

$(DOCS_VENV)/.done: constraints-docs.txt pyproject.toml | $(VENV)/.eval
	$(call LAYER,$(DOCS_VENV),constraints-docs.txt)
	touch $@

$(VLLM_VENV)/.done: constraints-vllm.txt pyproject.toml $(wildcard tests/vllm_environment/*) | $(VENV)/.dev
	$(call LAYER,$(VLLM_VENV),constraints-vllm.txt)
	cp tests/vllm_environment/* "$$($(VLLM_VENV)/bin/python -c '$(SITE)' | head -n 1)"
	touch $@

clean:
	rm -rf $(VENV) $(TRAIN_VENV) $(LMMS_VENV) $(APP_VENV) $(DOCS_VENV) $(VLLM_VENV) $(NOTEBOOK_VENV) site .pytest_cache .ruff_cache .mypy_cache .hypothesis demo
