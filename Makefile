# make demo     set up, then find the leak of a small server (README)
# make test     set up, then run the linters and every test
# make test-kernels   run the kernel tests that matter on distribution kernels, in virtual machines
# make setup    leave .venv/bin/ebpftrace
# make help     all targets

PYTEST_ARGS ?=
# More than half of a kernel test is waiting for the kernel to let go of the tracer's probes.
WORKERS ?= 3
PYTEST = $(BIN)/pytest $(PYTEST_ARGS)
KERNEL ?= short
MINUTES ?= 5
READERS ?=
KERNEL_ARGS ?=
BIN := .venv/bin
C_SOURCES := $(wildcard bpf/*.[ch] demo/*.c tests/targets/*.[ch] tests/targets/*.cpp benchmarks/*.c) \
	$(shell find bpf/include -name '*.h')
SETUP := scripts/setup.sh pyproject.toml

.DEFAULT_GOAL := help

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 16

setup: .venv/.use ## install what is missing and leave .venv/bin/ebpftrace

demo: .venv/.demo build/app_server ## trace a leaking server and show the report
	scripts/demo.sh

test: .venv/.test lint ## run the linters and every test
	$(PYTEST) -n $(WORKERS) --dist worksteal --strict-skips

# Emulating another machine takes packages of its own.
test-kernels: .venv/.kernels $(if $(findstring arm64,$(KERNEL))$(filter all,$(KERNEL)),.venv/.arm64) ## test on other kernels, in VMs; KERNEL=short, all, userlands, arm64 or a name
	$(BIN)/python -m vmtest $(KERNEL_ARGS) $(KERNEL)

test-servers: .venv/.test ## trace real servers under load; as root, it installs them
	tests/servers/install.sh
	$(PYTEST) tests/servers

test-stacks: .venv/.test ## compare stacks of many languages with what is true of them; as root, it installs them
	tests/stacks/install.sh
	$(PYTEST) tests/stacks

bench: .venv/.bench ## measure what tracing costs, beside other tools (benchmarks/, docs/performance.md)
	$(BIN)/python -m benchmarks run

bench-compare: .venv/.bench ## measure again, and warn where it costs more than recorded
	$(BIN)/python -m benchmarks compare

fuzz: .venv/.fuzz ## feed the readers hostile bytes; MINUTES=5 in all, READERS= some of them (docs/security.md)
	$(BIN)/python -m fuzz run --minutes $(MINUTES) $(READERS)

unit: .venv/.test ## run the tests that need neither root nor tracing
	$(PYTEST) tests/unit -n $(WORKERS)

coverage: .venv/.test ## which lines the unit tests run
	$(PYTEST) tests/unit -n $(WORKERS) --cov=ebpftrace --cov-report=term:skip-covered

lint: .venv/.test lint-only ## check layout, style and types

lint-only: # with the linters in BIN
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)

format: .venv/.test ## lay out all sources
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_SOURCES)

walkthrough: .venv/.test ## run the commands of docs/walkthrough.md and show what they print now
	$(BIN)/python scripts/walkthrough.py write

man: .venv/.use ## write the man pages anew
	$(BIN)/python scripts/man.py

clean: ## remove what was built; the venv stays
	rm -rf build dist
	$(MAKE) -C tests/targets clean

.venv/.use .venv/.demo .venv/.test .venv/.kernels .venv/.arm64 .venv/.bench .venv/.fuzz: .venv/.%: $(SETUP)
	scripts/setup.sh $*
	@touch $@ $(SATISFIED_$*)

# A test runs the demo, while others need the venv to stay as it is.
SATISFIED_test := .venv/.use .venv/.demo

build/app_server: demo/app_server.c
	@mkdir -p build
	$(CC) -O2 -g -Wall -Wextra -pthread -o $@ $<

.PHONY: help setup demo test unit coverage test-servers test-stacks test-kernels bench bench-compare fuzz lint lint-only format walkthrough man clean
