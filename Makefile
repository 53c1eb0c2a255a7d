# make demo and make test need nothing but Python 3.11+ and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PIP_OPTIONS ?=
BIN := $(VENV)/bin
# OpenMMLab's own releases, which many have installed, laid over the maintained packages.
ORIGINALS := mmsegmentation==1.2.2 mmengine==0.10.7 mmcv-lite==2.1.0
NATIVE_SOURCES := CMakeLists.txt $(shell find extensions -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help install demo demo-gates test test-originals cuda wheel check-wheel lint typecheck clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## Make the virtual environment and install the package in it, editable

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE_SOURCES)
	@echo "[install] virtual environment $(VENV), about 2 minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	@echo "[install] torch (the version of constraints.txt)"
	$(BIN)/python -m pip install --progress-bar on $(PIP_OPTIONS) -c constraints.txt torch
	@echo "[install] cgspn, its dependencies and its native library"
	$(BIN)/python -m pip install --progress-bar on $(PIP_OPTIONS) -c constraints.txt -e ".[dev]"
	$(BIN)/python -m cgspn.env
	@touch $@

demo: install  ## Draw scenes, train a teacher, distil a student, write the report (about 8 minutes on 2 cores, install included)
	@$(BIN)/python tools/demo.py

demo-gates: install  ## Run the demo with three seeds and check its gates (about 20 minutes on 2 cores)
	@$(BIN)/python tools/demo.py --seeds 0 1 2 --check

test: install cuda  ## Compile the CUDA sources where nvcc is, then run all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-originals: build/originals/.installed  ## Run the tests of segmentation with OpenMMLab's original packages
	@PYTHONPATH=$(abspath build/originals) $(BIN)/python -c "import mmcv, mmengine, mmseg; \
	  print('[originals]', *('%s %s' % (m.__name__, m.__version__) for m in (mmseg, mmengine, mmcv)))"
	PYTHONPATH=$(abspath build/originals) $(BIN)/python -m pytest tests/segmentation tests/backbones/test_openmmlab.py -n $(JOBS)

build/originals/.installed: Makefile $(VENV)/.installed
	@rm -rf $(@D)
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) --no-deps --target $(@D) $(ORIGINALS)
	@touch $@

cuda: install  ## Compile the CUDA sources for every supported architecture, if nvcc is there
	@if command -v nvcc > /dev/null; then \
	  echo "[cuda] compiling the CUDA sources, up to 4 minutes the first time"; \
	  PATH="$(abspath $(BIN)):$$PATH" tools/build_native.sh build/cuda ON; \
	else echo "[cuda] nvcc not found: CUDA sources not compiled"; fi

wheel: install  ## Build dist/*.whl, with the CUDA kernels where nvcc is
	PATH="$(abspath $(BIN)):$$PATH" tools/build_wheel.sh dist

check-wheel: wheel  ## Run the operators' tests on the wheel under several releases of torch (gigabytes to download)
	tools/check_wheel.sh dist/*.whl

lint: install  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: install  ## Check types
	$(BIN)/mypy

clean:  ## Remove the virtual environment and build products; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
