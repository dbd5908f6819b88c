# `make study` and `make test` are all that a newcomer needs; each sets up .venv first. `make help` lists the rest.
BIN := .venv/bin
PROFILE ?= tiny
CASES ?= 2000
SEED ?= 0
CARD ?= h200
# One closing line for tests and notebooks together: nbval compares the cells tagged nbval-check-output. Two processes, each
# of which takes whole files, in the order given: a notebook's cells belong together, and none is to be begun last.
PYTEST := $(BIN)/python -m pytest --nbval-lax --nbval-current-env -n 2 --dist loadfile --no-loadscope-reorder
# These decode by every scheme and method, which takes minutes; the other notebooks read recorded tables.
DECODING := $(patsubst %,notebooks/%.ipynb,01_acceptance 03_hierarchical 04_quality)

.DEFAULT_GOAL := help
.PHONY: help study test test-notebooks test-bits test-full fuzz test-gpu test-slurm coverage figures record notebooks \
  lab docs test-browser lint types lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1@/p' Makefile | tr @ '\t' | expand -t 18

study: .venv/.ready  ## run the study and link it from results/PROFILE/index.html (PROFILE=tiny)
	$(BIN)/specquant study --profile $(PROFILE)

test: .venv/.ready  ## run the tests and the checks of the notebooks that decode little
	$(PYTEST) $(filter-out $(DECODING),$(wildcard notebooks/*.ipynb)) tests -m "not gpu and not full and not browser"

test-notebooks: .venv/.ready  ## run the checks of the other notebooks, which decode for minutes
	$(PYTEST) $(DECODING)

# What numpy's and torch's products take on a processor without AVX-512; each of these libraries has its own name for it.
test-bits: export OPENBLAS_CORETYPE = Haswell
test-bits: export MKL_ENABLE_INSTRUCTIONS = AVX2
test-bits: export ONEDNN_MAX_CPU_ISA = AVX2
test-bits: export ATEN_CPU_CAPABILITY = avx2
test-bits: .venv/.ready  ## run the tests that compare bits as a processor without AVX-512 would
	$(BIN)/python -m pytest tests -m "bits and not gpu and not full and not browser" -n 2

test-full: .venv/.ready  ## run the long tests as well
	$(PYTEST) notebooks tests -m "not gpu and not browser"

fuzz: .venv/.ready  ## run 2,000 cases of damaged input over all commands (CASES=2000, SEED=0)
	$(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)

test-gpu: .venv/.ready  ## run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest tests -m gpu

# Its own munged, slurmctld and two slurmd, with all their files in a temporary folder, on the loopback alone.
test-slurm: .venv/.ready  ## run jobs on a real Slurm of this machine (root; installs Debian's slurm-wlm and munge)
	@command -v slurmctld slurmd munged >/dev/null || \
	  { apt-get -qq update && apt-get -qq install -y --no-install-recommends slurm-wlm munge >/dev/null; } || \
	  { echo "slurm-wlm and munge cannot be installed here: install them, as root, and ask again" >&2; exit 1; }
	$(BIN)/python -m pytest tests/measure/on_slurm.py tests/study/on_slurm.py

# Without the notebooks: with --cov nbval starts coverage in their kernels as well, and its start gets no answer.
coverage: .venv/.ready  ## run the tests of make test, and show which lines they do not reach
	$(BIN)/python -m pytest tests -n 2 --dist loadfile -m "not gpu and not full and not browser" --cov --cov-report=term-missing

figures: .venv/.ready  ## rebuild figures/ from data/ alone
	$(BIN)/specquant figures

record: .venv/.ready  ## record every table of a card that data/recorded/CARD lacks (CARD=h200, or cpu)
	$(BIN)/specquant record --card $(CARD)

notebooks: .venv/.ready  ## run the notebooks in place, to commit them with the outputs of the default profile
	TQDM_DISABLE=1 $(BIN)/python -m nbconvert --to notebook --execute --inplace --log-level=WARN \
	  --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

lab: .venv/.ready  ## open JupyterLab on the project, with the tour open
	@$(BIN)/jupyter labextension disable "@jupyterlab/apputils-extension:announcements" >/dev/null 2>&1  # its question covers a figure
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (specquant)"
	$(BIN)/python -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb

docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/.ready  ## build the site, build/site/index.html, without a network
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "Site: build/site/index.html"

test-browser: .venv/.ready  ## open notebooks in JupyterLab, the report and the site in a browser (needs Chromium)
	$(BIN)/python -m pytest tests/test_browser.py

lint: .venv/.ready  ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.ready  ## check the types
	$(BIN)/python -m mypy

clean:  ## remove all that can be made again, .venv and results/ too
	rm -rf .venv build results src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last, so an interrupted installation is taken up again, and a newer lock is installed.
.venv/.ready: requirements.lock
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	  done; \
	  test -n "$$python" || { echo "specquant needs Python 3.11 or newer and found none: install it, or name it with make PYTHON=..." >&2; exit 1; }; \
	  echo "Making .venv with $$($$python --version)"; \
	  $$python -m venv --clear .venv; }
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

# Keeps the pins that stand in the lock; to move one, add UPGRADE="--upgrade-package NAME". Left out are packages that only
# Windows needs, and those that torch's CUDA build asks for by itself: the CPU build installs from the same lock.
lock:  ## resolve requirements.lock anew for every supported Python, on Linux and macOS (needs uv)
	uv pip compile pyproject.toml --extra dev --extra slurm --universal --python-version 3.11 --no-annotate $(UPGRADE) \
	  --custom-compile-command "make lock" --output-file requirements.lock
	grep -vE "^(cuda|nvidia)-|sys_platform == 'win32'|os_name == 'nt'" requirements.lock > requirements.lock.new
	grep -E "^nvidia-ml-py=" requirements.lock >> requirements.lock.new
	mv requirements.lock.new requirements.lock
