# Each command does its own set-up: scripts/setup.
.PHONY: help demo test lint unit charts integration containers cluster amazon bench format manifests constraints clean

help:
	@echo "make demo         calibrate the example with two workers on this machine"
	@echo "make test         all of the next seven"
	@echo "make lint         ruff and mypy"
	@echo "make unit         tests that need no server (a minute)"
	@echo "make charts       tests of the Helm chart and the manifests, without a cluster"
	@echo "make integration  tests with a RabbitMQ of their own"
	@echo "make containers   tests with a Docker engine of their own"
	@echo "make cluster      tests with a Kubernetes of their own"
	@echo "make amazon       tests with a stand-in of Amazon's cloud"
	@echo "make bench        figures of speed and memory, as JSON"
	@echo "make format       let ruff put the code into shape"
	@echo "make manifests    write k8s/ anew from the chart"
	@echo "make constraints  write constraints.txt anew"
	@echo "make clean        remove .venv and caches"

demo:
	@scripts/setup
	@scripts/demo

test:
	@scripts/setup dev system
	@scripts/check lint unit charts integration amazon containers cluster

lint unit charts:
	@scripts/setup dev
	@scripts/check $@

integration containers cluster amazon:
	@scripts/setup dev system
	@scripts/check $@

bench:
	@scripts/setup dev system
	@.venv/bin/python -m benchmarks

format:
	@scripts/setup dev
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

manifests:
	@scripts/setup dev
	@.venv/bin/python scripts/manifests

constraints:
	@scripts/constraints

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
