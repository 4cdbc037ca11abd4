# Everything here works on a fresh machine with Python 3.11 or newer: the first target makes its own
# virtual environment and installs into it.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = $(BIN)/python

.PHONY: demo test test-long test-peers lint types bench clean

$(VENV)/installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/installed  ## train, attack, report on generated scans; demo/report.html
	$(RUN) -m experiments.demo --workdir=demo

test: $(VENV)/installed  ## the test suite; with MEDROBUST_DATA set, on real images too
	$(RUN) -m pytest -n 2 --dist loadfile -m 'not long and not peers'

test-long: $(VENV)/installed  ## checks that take minutes
	$(RUN) -m pytest -m long

test-peers: peers  ## comparisons with PyTorch (Python 3.11, CPU)
	$(RUN) -m pytest -m peers

.PHONY: peers
peers: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[peers]'
	$(RUN) -m pip install --quiet --no-deps torchattacks pyautoattack

lint: $(VENV)/installed  ## style
	$(BIN)/ruff check .

types: $(VENV)/installed  ## types; fetches Node.js where it is missing
	$(BIN)/pyright --pythonpath $(RUN) < /dev/null

bench: peers  ## speed and memory against PyTorch peers; see benchmarks/README.md
	$(RUN) -m benchmarks.pgd_speed --out=benchmarks/results/pgd_speed.jsonl
	$(RUN) -m benchmarks.training_memory --out=benchmarks/results/training_memory.jsonl

clean:
	rm -rf demo $(VENV) build *.egg-info
