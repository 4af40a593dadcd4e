# Two commands for a newcomer: `make demo` and `make test`. Both make the environment if need be.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# KServe wants older protobuf, psutil and python-dateutil than requirements.txt names.
SERVING := .venv-serving/.ready
# The site needs nothing of the library's environment.
DOCS := .venv-docs/.ready

.PHONY: demo test test-lean test-oldest test-backends lint docs notebooks serving clean

# Plain training against the paper's method on long-tailed digits, three seeds each.
demo: $(READY)
	for seed in 0 1 2; do for method in erm ldam_drw; do \
		$(BIN)/python bin/train --method $$method --seed $$seed --noprogress \
			--run_dir demo/$$method-$$seed > /dev/null || exit 1; done; done
	$(BIN)/python bin/evaluate --run_dir demo/erm-0
	$(BIN)/python bin/evaluate --run_dir demo/ldam_drw-0
	$(BIN)/python bin/export --run_dir demo/ldam_drw-0 --output demo/exports/digits
	$(BIN)/python bin/samples --output_dir demo/samples \
		| $(BIN)/python bin/predict --model demo/exports/digits --noprobabilities
	$(BIN)/python bin/report --results_dir demo --output_dir demo/report demo/*-?

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 3 --dist worksteal

# The built wheel with Keras, NumPy and JAX alone: the library needs no more.
test-lean:
	$(PYTHON) tests/environments.py lean .venv-lean

# The library and the experiments on the lower bounds of setup.cfg.
test-oldest:
	$(PYTHON) tests/environments.py oldest .venv-oldest

# The library on torch, JAX and TensorFlow, all three installed. TORCH=… names another torch than
# the newest, such as a build for CPUs only, which is much smaller.
test-backends:
	$(PYTHON) tests/environments.py backends .venv-backends

lint: $(READY)
	$(BIN)/pre-commit run --all-files
	$(BIN)/mypy

# The site, without a warning or a dead link; open site/index.html.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(<D)/bin/mkdocs build --quiet

# The examples as notebooks, in notebooks/.
notebooks:
	$(PYTHON) examples/notebooks.py notebooks

$(DOCS): requirements-docs.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@

# The environment of bin/serve.
serving: $(SERVING)

$(SERVING): requirements-serving.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet -r requirements-serving.txt
	touch $@

$(READY): requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# Not runs/ and exports/: they may have taken days.
clean:
	rm -rf .venv .venv-lean .venv-oldest .venv-backends .venv-serving .venv-docs build *.egg-info demo site notebooks
