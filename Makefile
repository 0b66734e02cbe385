# Everything here works on a machine with Python 3.11+, git and make: the environment is made on first use.
PYTHON ?= python3
BIN = .venv/bin
LOWEST = .venv-lowest/bin
COMPILE = $(BIN)/uv pip compile --quiet --no-emit-index-url --no-header --no-annotate --python-version 3.11 --universal --all-extras

SECONDS ?= 60
FIRST ?= 0
JOBS ?= 1
TALLY ?=
KILLS ?= 50

.PHONY: demo test test-gpu check fix docs lock test-lowest release-check fuzz faults memory clean

demo: .venv/ready
	$(BIN)/tightbox demo

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# What computes on a GPU: the tests of tensors again, and those of a GPU alone.
test-gpu: .venv/ready
	$(BIN)/python -m pytest -m gpu

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The variable silences an announcement of the theme's authors, which is no warning about this site.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python tools/check_site.py site

# torch and torchvision must be a matching pair, so versions are pinned for whoever works on the package.
lock: .venv/ready
	$(COMPILE) --group dev pyproject.toml -o requirements.txt
	$(COMPILE) --group test --resolution lowest-direct pyproject.toml -o requirements-lowest.txt

# Every test with the lowest versions that pyproject.toml declares, on the lowest Python.
test-lowest: .venv-lowest/ready
	OMP_NUM_THREADS=1 $(LOWEST)/python -m pytest -n 2 --dist loadfile

# Changed files and command lines, from round FIRST on in JOBS processes; writes its table into docs/robustness.md.
# With TALLY=file.json it goes on where the file's last run ended, and adds up.
fuzz: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(SECONDS) --first $(FIRST) --jobs $(JOBS) $(if $(TALLY),--tally $(TALLY)) --page

# Trainings killed at random moments and resumed; writes its table into docs/robustness.md.
faults: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.kills $(KILLS) --page

# Memory over 10,000 predictions and 20 epochs; writes its table into docs/robustness.md.
memory: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.memory --page

# Wheel and sdist, and the wheel alone in an empty environment.
release-check: .venv/ready
	$(BIN)/python tools/release_check.py

.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "tightbox needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch .venv/ready

.venv-lowest/ready: requirements-lowest.txt pyproject.toml | .venv/ready
	$(BIN)/uv venv --quiet --clear --python 3.11 .venv-lowest
	$(BIN)/uv pip install --quiet --python $(LOWEST)/python --requirement requirements-lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST)/python --no-deps --editable .
	touch .venv-lowest/ready

clean:
	rm -rf .venv .venv-lowest demo site
