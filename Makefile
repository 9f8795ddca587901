# Every target does its own set-up. They need Python 3.10 or newer, make and git, and nothing else.
PYTHON ?= python3
ARGS ?=
SHELL := /bin/bash

DEV := .venv/bin
DEMO := .venv-demo/bin

.PHONY: help demo test coverage check fuzz soak servers incidents bench dashboards reference docs dist pictures matrix constraints clean

help:  ## Say what the targets do
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

demo: .venv-demo/ready  ## A working application with live /metrics; ARGS="--seconds 30"
	@$(DEMO)/python -m session_metrics_otel demo $(ARGS)

test: .venv/ready  ## All tests that need no server
	$(DEV)/python -m pytest tests --ignore=tests/servers -n auto --dist worksteal $(ARGS)

coverage: .venv/ready  ## How much of the code, by branches, all the tests reach: at least 97 %
	rm -rf .coverage
	# Counting lines slows and grows what is left out: it looks at how much a session runs and keeps.
	$(DEV)/coverage run -m pytest tests --ignore=tests/servers --ignore=tests/test_hot_path.py \
	    --ignore=tests/test_load.py -n auto --dist worksteal $(ARGS)
	$(DEV)/coverage run -m pytest tests/servers -p no:xdist $(ARGS)
	$(DEV)/coverage combine --quiet .coverage
	$(DEV)/coverage report

check: .venv/ready  ## Style, types, the direction of imports
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/mypy
	$(DEV)/lint-imports
	$(DEV)/python scripts/figures.py --check

fuzz: .venv/ready  ## Hostile text, thousands of kinds of it, through every way out
	$(DEV)/python -m pytest tests/faults/test_hostile_text.py --hypothesis-profile=fuzz $(ARGS)

soak: .venv/ready  ## The demo with faults under a real Prometheus, against its books; ARGS="--minutes 5"
	PYTHONPATH=tests $(DEV)/python -m servers.soak $(ARGS)

servers: .venv/ready  ## Tests against a real Prometheus, Jaeger and PostgreSQL
	$(DEV)/python -m pytest tests/servers -p no:xdist $(ARGS)

incidents: .venv/ready  ## Real outages, each with the culprit that is named, the signal and the seconds it took
	$(DEV)/python -m pytest tests/servers/test_incidents.py tests/servers/test_recycled_workers.py tests/servers/test_usual_instrumentation.py -p no:xdist -q -s $(ARGS)

bench: .venv/ready  ## The figures in the README, measured here
	$(DEV)/python benchmarks/run.py $(ARGS)

dashboards: .venv/ready  ## Write grafana/dashboards and grafana/rules from grafana/generate
	$(DEV)/python -m grafana.generate

reference: .venv/ready  ## Write docs/reference from the code
	$(DEV)/python scripts/reference.py

docs: .venv/ready  ## The documentation's site, docs/_build/index.html; needs Python 3.11
	$(DEV)/python scripts/reference.py --check
	$(DEV)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build
	@! grep -rnE '(src|<link[^>]*href)="(https?:)?//' docs/_build --include='*.html' || \
	    { echo "The pages above load something from elsewhere."; exit 1; }

dist: .venv/ready  ## Wheel and sdist, in dist/
	rm -rf dist
	$(DEV)/python -m build --outdir dist

pictures: .venv/ready  ## The pictures in docs/: Graphviz, real runs, and Chromium looking at the demo
	$(DEV)/python scripts/drawings.py
	$(DEV)/python scripts/pictures.py

matrix:  ## Tests on Python 3.10-3.13 x SQLAlchemy 2.0 and 2.1, and on the oldest versions supported
	@$(PYTHON) scripts/matrix.py $(ARGS)

constraints:  ## Write constraints.txt anew from the newest releases
	@$(PYTHON) scripts/constraints.py

clean:  ## Remove what the targets made
	rm -rf .venv .venv-demo .matrix .coverage docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/ready: pyproject.toml constraints.txt scripts/make_venv.py
	@$(PYTHON) scripts/make_venv.py .venv --group dev

.venv-demo/ready: pyproject.toml constraints.txt scripts/make_venv.py
	@$(PYTHON) scripts/make_venv.py .venv-demo --extra otlp
