# `make demo` and `make test` set up everything that they need; the only requirement is Python ≥ 3.11.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# File that pins the versions. With no file (`make test CONSTRAINTS= VENV=.venv-newest`), pip installs the newest ones.
CONSTRAINTS := constraints.txt
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PEER := .venv-scvi
DESEQ2 := .venv-deseq2
DEMO := demo
STAMP := $(VENV)/.installed

.PHONY: venv demo test test-lowest test-newest lint reference attack bench gpu clean

venv: $(STAMP)

# torch is installed first, so that no other package decides which build of torch is installed.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit("scvae needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[test,lint,demo,compare]'
	touch $(STAMP)

demo: venv
	mkdir -p $(DEMO)
	cp data_samples/pbmc68k_700.h5ad $(DEMO)/pbmc68k_700.h5ad
	$(BIN)/scvae check $(DEMO)/pbmc68k_700.h5ad
	$(BIN)/scvae train $(DEMO)/pbmc68k_700.h5ad --force
	$(BIN)/scvae embed $(DEMO)/pbmc68k_700.h5ad --umap --leiden --plot $(DEMO)/cells.png \
		--color scvae_leiden,bulk_labels,CST3 --force
	$(BIN)/scvae denoise $(DEMO)/pbmc68k_700.h5ad
	$(BIN)/scvae interpolate $(DEMO)/pbmc68k_700.h5ad --groupby bulk_labels --from CD34+ --to "CD14+ Monocyte" \
		--plot $(DEMO)/trajectory.png --force
	$(BIN)/scvae pseudotime $(DEMO)/pbmc68k_700.h5ad --groupby bulk_labels --root CD34+ --to "CD14+ Monocyte" --to "CD19+ B"
	$(BIN)/scvae score $(DEMO)/pbmc68k_700.h5ad
	$(BIN)/scvae diagnose $(DEMO)/pbmc68k_700.h5ad --quick --plot $(DEMO)/diagnosis.png --force
	cd $(DEMO) && ../$(BIN)/python ../examples/after_scvae.py pbmc68k_700.h5ad
	@echo "pictures: $(DEMO)/cells.png $(DEMO)/umap.png $(DEMO)/dotplot.png $(DEMO)/trajectory.png $(DEMO)/diagnosis.png"

# One process per core, each with one thread. The tests of a file run in one process, because they share trained models.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# The tests with the oldest and with the newest dependencies that pyproject.toml allows.
test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Make the reference page and the type stubs from the declarations of the options.
reference: venv
	$(BIN)/python docs/make_reference.py

# Try 10,000 damaged files, hostile models and hostile saved states. Then try writes that are killed, interrupted or
# disturbed by a second writer.
# The tables go to benchmarks/results/attack.md and attack_writes.md. Each script exits with 1 if a single case fails.
attack: venv
	rm -f attack.jsonl
	$(BIN)/python -W ignore tests/attack.py
	$(BIN)/python benchmarks/attack_writes.py

# Compare with scvi-tools and DESeq2, which get separate environments. benchmarks/README.md lists the data sets.
bench: venv $(PEER)/.installed $(DESEQ2)/.installed
	$(BIN)/python benchmarks/heldout.py --scvi-python $(PEER)/bin/python --also-2x30nb
	$(BIN)/python benchmarks/walks.py
	$(BIN)/python benchmarks/optimization.py
	$(BIN)/python benchmarks/denoising.py --scvi-python $(PEER)/bin/python
	$(BIN)/python benchmarks/leakage.py --scvi-python $(PEER)/bin/python
	$(BIN)/python benchmarks/generation.py --scvi-python $(PEER)/bin/python
	$(BIN)/python benchmarks/trajectories.py --scvi-python $(PEER)/bin/python
	$(BIN)/python benchmarks/fates.py
	$(BIN)/python benchmarks/labels.py --scvi-python $(PEER)/bin/python
	$(BIN)/python benchmarks/expected_accuracy.py
	$(BIN)/python benchmarks/label_training.py
	$(BIN)/python benchmarks/label_trajectories.py
	$(BIN)/python benchmarks/membership.py
	$(BIN)/python benchmarks/embedding.py --scvi-python $(PEER)/bin/python
	$(BIN)/python benchmarks/embedding_table.py
	$(BIN)/python benchmarks/mapping.py --scvi-python $(PEER)/bin/python
	$(BIN)/python benchmarks/annotate_time.py
	$(BIN)/python benchmarks/covariates.py --scvi-python $(PEER)/bin/python
	$(BIN)/python benchmarks/embed_time.py
	$(BIN)/python benchmarks/flatness.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/anomalies.py
	$(BIN)/python benchmarks/differential_expression.py --deseq2-python $(DESEQ2)/bin/python
	$(BIN)/python benchmarks/perturbation.py
	$(BIN)/python benchmarks/throughput.py --scvi-python $(PEER)/bin/python
	$(BIN)/python benchmarks/time_to_quality.py --scvi-python $(PEER)/bin/python

# Run the measurements that need a GPU, in at most nine minutes.
gpu: venv
	PYTHON=$(BIN)/python benchmarks/gpu.sh

$(PEER)/.installed: benchmarks/constraints-scvi.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet --disable-pip-version-check -c benchmarks/constraints-scvi.txt torch
	$(PEER)/bin/pip install --quiet --disable-pip-version-check -c benchmarks/constraints-scvi.txt scvi-tools \
		scib-metrics harmonypy scikit-misc
	touch $@

$(DESEQ2)/.installed:
	$(PYTHON) -m venv $(DESEQ2)
	$(DESEQ2)/bin/pip install --quiet --disable-pip-version-check pydeseq2==0.5.4
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest $(PEER) $(DESEQ2) $(DEMO)
