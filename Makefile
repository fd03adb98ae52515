# `make` lists what there is. Everything lives in .venv and var/; nothing is installed elsewhere.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
BIN := .venv/bin
# uv reads its own variable; whoever has told pip where wheels lie means uv as well.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Airflows that the bridge is tested on, in environments without Ray and torch. The oldest comes with what was current
# then: today's FastAPI breaks it.
AIRFLOW_oldest := --exclude-newer 2025-09-15 apache-airflow==3.0.6
AIRFLOW_newest := -c requirements.lock apache-airflow

# In environments of their own: what the one needs makes jsonschema, and with it every start of Ray, seconds slower, and the
# other brings 17,000 files.
SBOM := $(BIN)/uv tool run --quiet --python $(PYTHON) --from cyclonedx-bom==7.5.0 cyclonedx-py
KUBERNETES := $(BIN)/uv tool run --quiet --python $(PYTHON) --from kubernetes-validate==1.37.0 kubernetes-validate

.PHONY: help setup lock demo airflow check test test-lib test-line test-compose test-bridge-oldest test-bridge-newest bench bench-train bench-dags bench-cluster trials up down clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: .venv/ready ## the environment in .venv, every version locked (about 2 minutes, 2 GB)

# Compiled, as pip does it: Ray and Airflow start dozens of processes, and not everywhere may the first one compile.
.venv/ready: requirements.lock pyproject.toml lib/airflow_ray_jobs/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . --editable lib/airflow_ray_jobs
	touch $@

# What the lock names already stays as it is; delete its lines but torch's to take newer ones.
lock: ## bring requirements.lock into line with both pyproject.toml
	@grep -v '^torch==' requirements.lock > requirements.lock.new
	$(BIN)/uv pip compile pyproject.toml lib/airflow_ray_jobs/pyproject.toml -c <(grep '^torch==' requirements.lock) --extra cpu --extra ray --extra airflow --extra dev --quiet \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.lock.new
	@{ sed -n '/^#/p' requirements.lock; sed -e 's/+cpu//' -e '/^#/d' requirements.lock.new; } > requirements.lock.tmp
	@mv requirements.lock.tmp requirements.lock && rm requirements.lock.new

demo: setup ## the main job on a made-up archive: Airflow runs Ray jobs to a published report
	@$(BIN)/python -m infra.local.demo

airflow: setup ## the Airflow UI with the demo's DAGs, left running until Ctrl-C
	@$(BIN)/python -m infra.local.ui

check: setup ## format, lint, types, import rules, compose file, Dockerfiles, Kubernetes files, bill of materials
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml infra/compose/*.yml
	$(BIN)/hadolint --config infra/images/hadolint.yaml infra/images/*.Dockerfile
	$(KUBERNETES) --strict infra/kubernetes/atlas.yaml infra/kubernetes/network.yaml
	@mkdir -p var
	$(SBOM) environment $(BIN)/python --pyproject pyproject.toml --output-reproducible --no-validate -o var/sbom.json

test-lib: setup ## the library's tests alone: no Ray, Airflow or server
	$(BIN)/python -m pytest $(TWO) tests/lib tests/architecture

# Three runs: what the bridge's tests start must be gone before the next ones start theirs. Two processes, each with
# servers of its own, where tests wait for one core or for others; the last ones need the machine for themselves.
TWO := -n 2 --dist loadfile
test: setup ## the tests: library, real Ray, real Airflow, real S3 server, real browser
	$(BIN)/python -m pytest $(TWO) tests/lib tests/store tests/architecture tests/browser tests/demo tests/monitoring tests/security
	$(BIN)/python -m pytest $(TWO) tests/airflow_ray_jobs
	$(BIN)/python -m pytest tests/ray tests/airflow

test-line: setup ## the long tests: the DAGs on real Airflow, Ray and S3; more of the workers (25 minutes)
	DAMAGE_ATLAS_LINE=1 $(BIN)/python -m pytest tests/store tests/ray tests/airflow

test-compose: setup ## docker-compose.yml in a real engine, through losses, restarts and an upgrade (needs Docker; an hour)
	DAMAGE_ATLAS_COMPOSE=1 $(BIN)/python -m pytest -s tests/compose

test-bridge-oldest: ## the bridge's tests on Airflow 3.0.6, in an environment without ray and torch (12 minutes)
test-bridge-newest: ## the same on the Airflow of the lock
test-bridge-oldest test-bridge-newest: test-bridge-%: setup
	test -x var/airflow-$*/bin/python || $(BIN)/uv venv --quiet --python $(PYTHON) var/airflow-$*
	$(BIN)/uv pip install --quiet --compile-bytecode --python var/airflow-$*/bin/python $(AIRFLOW_$*) httpx wtforms pytest pytest-timeout
	$(BIN)/uv pip install --quiet --python var/airflow-$*/bin/python --no-deps --editable lib/airflow_ray_jobs
	RAY_PYTHON=$(CURDIR)/$(BIN)/python var/airflow-$*/bin/python -m pytest --confcutdir=tests/airflow_ray_jobs tests/airflow_ray_jobs

bench: setup ## benchmarks against named peers; each prints a ratio
	$(BIN)/python -m bench

bench-train: setup ## a training step against the plain recipe and against explicit tuples
	$(BIN)/python -m bench.train

bench-dags: setup ## how long Airflow takes for the DAG files
	$(BIN)/python -m bench.dags

trials: setup ## runs of the DAG struck in ten ways at random moments; goes on where it was (3 minutes each; needs PostgreSQL)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r infra/images/database-drivers.txt
	$(BIN)/python -m bench.trials --work var/trials --log docs/trials.jsonl --each 3

bench-cluster: setup ## t-SNE, DBSCAN and the cluster stage against their peers, and how they grow
	$(BIN)/python -m bench cluster

up: ## the team's stack in containers: PostgreSQL, Airflow, Ray, an S3 server (needs Docker)
	infra/compose/up.sh

down: ## stop the containers; volumes stay
	docker compose down || docker-compose down

clean: ## remove var/ (runs, demo archive); .venv stays
	rm -rf var
