# make book    builds the book and runs every chapter      make lint    style and types
# make test    tests the library and the chapters          make bench   measures (ONLY=name: one thing)
# make site    tests the built book in a browser          make links   asks whether the links out of the book still lead somewhere
# make print   the built book as one PDF                  make clean   removes all that was built
# make repository NAME=owner/name   sets the repository's address in every file
# make fuzz    tries for hours to break what is promised
#
# No environment has to be active: the first command makes .venv, and a changed pyproject.toml or
# constraints.txt installs again. PYTHON=python3.12 picks another Python, SDAP_SCALE=full longer runs.

PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/ready
NOTEBOOKS = $(wildcard book/*.ipynb)
JOBS ?= auto

# Two threads are at best 1.7 times as fast on these networks as one, and 70 times slower where anything else wants the
# second core: they wait for each other in every operation. With one, a figure does not depend on the machine's size either.
# The other cores run other chapters and other tests: JOBS=2 says how many test processes, where not one a core.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS
# glibc hands large tensors back to the system and asks for them again at each step; kept, a step is a seventh faster,
# and on a virtual machine whose host takes memory back, many times.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592
# What the caller's shell has set must not reach the notebooks.
unexport PYTHONPATH PYTHONHOME MPLBACKEND VIRTUAL_ENV
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONUTF8 := 1

.PHONY: help book site print links test lint bench fuzz repository clean
help:
	@sed -n 's/^# //p;/^$$/q' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "sdap_lite needs Python 3.10 or newer; name one: make PYTHON=python3.12")'
	$(PY) -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book,test]'
	@touch $@

# From nothing each time: the library may have changed under a page that has not.
book: $(READY)
	rm -rf book/_build
	$(PY) scripts/run_chapters.py book
	.venv/bin/jupyter-book build book --config book/_build/_config.yml -W -n --keep-going
	@echo "The book: $(CURDIR)/book/_build/html/index.html"

# After make book, with Chromium and its driver; its pictures of the pages lie in book/_build/screenshots.
site: $(READY)
	$(PY) -m pytest tests/test_site.py

print: $(READY)
	$(PY) scripts/print_book.py book/_build/html book/_build/book.pdf

# Runs the chapters at the tiny scale: Sphinx reads a page's links when it reads the page.
links: $(READY)
	SDAP_SCALE=tiny .venv/bin/jupyter-book build book --builder linkcheck --path-output build/links

test: $(READY)
	$(PY) -m pytest -n $(JOBS) --junit-xml=.pytest_cache/library.xml
	SDAP_SCALE=tiny $(PY) -m pytest -n $(JOBS) --junit-xml=.pytest_cache/chapters.xml -W default --nbmake --nbmake-timeout=300 $(NOTEBOOKS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/codespell

bench: $(READY)
	$(PY) benchmarks/run.py $(ONLY)

repository:
	$(PYTHON) scripts/set_repository.py $(NAME)

fuzz: $(READY)
	$(PY) scripts/trust.py

clean:
	rm -rf .venv book/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
