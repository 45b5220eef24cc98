# Everything a developer types. `make demo` and `make test` set themselves up; see CONTRIBUTING.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test lint test-xen test-xen-long mutants faults attacks fuzz soak controls differential sanitize \
	test-freethreaded bench bench-table bench-vchan bench-data bench-start screenshots pictures docs check-docs wheel \
	dist check-dist test-aarch64 clean

FUZZ_S ?= 600
SOAK_S ?= 1800
EXAMPLES ?= 200

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(READY): pyproject.toml setup.py $(wildcard src/native/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,rich]'
	@touch $@

demo: $(READY)  ## two domains share pages on an embedded machine, step by step
	$(BIN)/xengrant demo

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

test: $(READY) lint  ## everything that needs no QEMU
	$(BIN)/pytest -n auto --dist loadfile

mutants: $(READY)  ## break the code once for each conformance case and see the case fail
	$(BIN)/python -m tests.mutations

test-xen: $(READY)  ## the suite, the examples and the checks on real Xen, in both labs
	$(BIN)/python -m lab test

test-xen-long: $(READY)  ## what takes minutes: long races, 100 GiB through a vchan, fuzzers, disks, arm64
	XENGRANT_RACE_ROUNDS=1000000 $(BIN)/pytest --durations=0 tests/grant_table/test_races.py
	XENGRANT_VCHAN_MESSAGES=10000000 XENGRANT_VCHAN_GIB=100 $(BIN)/pytest -s tests/vchan/test_long.py
	$(BIN)/python -m tests.fuzz --seconds 60
	$(BIN)/python -m lab test --long
	$(BIN)/python -m lab run --with numpy --with pyarrow data
	$(BIN)/python -m lab run --release trixie --with numpy --with pyarrow data
	$(BIN)/python -m lab project examples/other_project

faults: $(READY)  ## either side killed, stopped, destroyed or out of something at every step
	XENGRANT_FAULTS=all $(BIN)/pytest tests/faults tests/threads

attacks: $(READY)  ## a domain of an embedded machine tries all that it must not be able to do
	$(BIN)/pytest tests/attacks

fuzz: $(READY)  ## each fuzzer for FUZZ_S seconds (default: 600)
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S)

soak: $(READY)  ## everything at once between 4 domains that die at random, for SOAK_S seconds (default: 1800)
	$(BIN)/python -m tests.soak --seconds $(SOAK_S)

controls: $(READY)  ## broken ring and table code, which each must fail a test
	$(BIN)/pytest tests/controls

differential: $(READY)  ## the same random steps on the embedded machine and on real Xen, compared, in both labs
	$(BIN)/python -m lab run --release bookworm --timeout 3000 differential --examples $(EXAMPLES)
	$(BIN)/python -m lab run --release trixie --timeout 3000 differential --examples $(EXAMPLES)

sanitize: $(READY)  ## _native under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	$(BIN)/python -m tests.sanitize

test-freethreaded:  ## the tests on a CPython without a GIL, make test-freethreaded PYTHON=/path/to/python3.13t
	$(PYTHON) -c 'import sys; sys.exit(getattr(sys, "_is_gil_enabled", lambda: True)() and "$(PYTHON) has a GIL")'
	$(PYTHON) -m venv build/freethreaded
	build/freethreaded/bin/pip install --quiet --disable-pip-version-check --only-binary hypothesis -e . \
		'pytest>=8' 'hypothesis>=6.100'
	build/freethreaded/bin/python -c 'import xengrant, sys; sys.exit(sys._is_gil_enabled() and "_native wants the GIL")'
	build/freethreaded/bin/pytest tests/native tests/threads tests/rings tests/grant_table tests/xenstore tests/library \
		tests/vchan tests/embedded tests/conformance --ignore tests/vchan/test_streams_libraries.py --deselect \
		tests/native/test_mapping_place.py::test_where_there_is_little_address_space_pages_are_mapped_all_the_same

bench: $(READY)  ## the loops of Python and of C side by side on real Xen
	$(BIN)/python -m benchmarks.run

bench-table: $(READY)  ## references and full grant tables, with no Xen
	$(BIN)/python -m benchmarks.grant_table

bench-vchan: $(READY)  ## a vchan beside multiprocessing.Pipe, with no Xen
	$(BIN)/python -m benchmarks.vchan_local

bench-data: $(READY)  ## arrays, tables and objects by pages and by sockets, with no Xen
	$(BIN)/python -m benchmarks.data

bench-start: $(READY)  ## how long `xengrant --help` takes
	$(BIN)/python -m benchmarks.start

screenshots: $(READY)  ## the pictures in docs/images, of the tool as it runs
	$(BIN)/python docs/screenshots.py

pictures: $(READY)  ## the drawings in docs/images, by docs/pictures.py
	$(BIN)/python docs/pictures.py

$(VENV)/.docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## the documentation's site in build/docs; a warning fails it
	$(BIN)/python -m sphinx -q -W --keep-going -n -E -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

check-docs: $(READY)  ## README and the tutorial, literally, in a clean clone; without make test and the lab by SKIP=tests,lab
	$(BIN)/python -m tests.docs.newcomer --skip "$(SKIP)"

wheel: $(READY)  ## one abi3 wheel in dist/
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

dist: $(READY)  ## wheel, sdist and Debian package in dist/, as a release has them; as root
	rm -rf build/lib.* build/shared build/wheel dist
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dist]'
	$(BIN)/python -m build --sdist --outdir dist .
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel dist/xengrant-*.tar.gz
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/xengrant-*.whl
	$(BIN)/python -m shipping.deb

check-dist: dist  ## install and try them in clean roots of Debian's releases: minutes; as root
	$(BIN)/python -m shipping.check

test-aarch64: $(READY)  ## _native cross-compiled, and its tests run, for aarch64; as root the first time
	$(BIN)/python -m shipping.aarch64

clean:  ## what was built here; the lab's images are in ~/.cache/xengrant
	rm -rf build dist $(VENV) src/*.egg-info src/xengrant/*.so
