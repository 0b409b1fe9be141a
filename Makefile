# Every target makes the virtual environment by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.demo
SEEDS ?= 100000
SECONDS ?= 300
FAULTS_JSON ?= faults.json
# Rows of the fault matrix that the real-Kafka tests hold already.
FAULTS_ELSEWHERE := tests/kafka/test_exactness.py tests/kafka/test_faults.py tests/kafka/test_brokers.py tests/kafka/test_topics.py
ARGS ?=
BENCH ?= throughput latency restore types views quality

# Tests start hundreds of processes: none of them should compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint types bench coverage kafka faults simulate fuzz audit clean
.DEFAULT_GOAL := check

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pulsefold needs Python 3.11 or later; name one: make PYTHON=python3.12 …" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "no virtual environment can be made; on Debian: apt-get install python3-venv" >&2; exit 2; }

$(STAMP): pyproject.toml | $(VENV)/bin/python
	@echo "installing what tests and checks need into $(VENV) (once, some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP) $(DEMO_STAMP)

$(DEMO_STAMP): pyproject.toml | $(VENV)/bin/python
	@echo "installing what the demo needs into $(VENV) (once, a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[service,demo]'
	@touch $(DEMO_STAMP)

demo: $(DEMO_STAMP)  ## broker, worker and real training on this machine
	@$(BIN)/pulsefold demo $(ARGS)

test: $(STAMP)  ## unit, functional, packaging, browser and real-Kafka tests
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder tests/packaging tests/simulation tests/functional tests/unit $(ARGS)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/kafka tests/browser $(ARGS)

check: lint types test  ## everything that CI checks

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet tests/unit/test_compose.py

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/pyright

coverage: $(STAMP)  ## branches that unit tests and simulation go through; fails below 80 %
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=80 tests/unit tests/simulation $(ARGS)

bench: $(STAMP)  ## the benchmarks named: BENCH="types views" ARGS=--write; the first three need a real broker, quality some minutes, flat hours
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

kafka: $(STAMP)  ## a real Kafka on loopback until Ctrl-C
	$(BIN)/python -m tests.kafka.broker

faults: $(STAMP)  ## three brokers, and every fault that they, workers, networks and producers have; half an hour, FAULT_SOAK_S=60 makes it shorter
	$(BIN)/python -m pytest -p tests.faults.table --faults-json $(FAULTS_JSON) tests/faults $(if $(ARGS),,$(FAULTS_ELSEWHERE)) $(ARGS)

simulate: $(STAMP)  ## the core under SEEDS schedules
	SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/simulation -n auto

fuzz: $(STAMP)  ## codec, folds and HTTP, SECONDS each by seed, by coverage (atheris) and by the API's description (schemathesis)
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS) $(ARGS)

audit: $(STAMP)  ## known vulnerabilities of what is installed; says so where nobody can be asked, and fails then in CI (.ci/run audit)
	$(BIN)/python -m tests.packaging.audit $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache .coverage demo-events.jsonl faults.json
