"""Cells without counts are refused, or left out on request; the results of all other cells do not change."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from command_line import run_ok
from workbench import BETWEEN_BATCHES, DATA, assert_refused, with_two_empty_cells


@pytest.mark.parametrize("verb", ["embed", "denoise", "score", "interpolate"])
def test_empty_cells_are_refused_or_get_nan(bench, verb):
    bench.change(with_two_empty_cells)
    options = {"interpolate": BETWEEN_BATCHES, "score": ("--samples", "2", "--simulated", "100")}.get(verb, ())
    hint = assert_refused(bench.folder, bench.args(verb, *options), DATA, "2 cells have no counts")
    assert "--drop-empty" in hint
    run_ok(*bench.args(verb, *options, "--drop-empty"))
    adata = ad.read_h5ad(bench.data)
    result = {
        "embed": lambda: np.hstack([adata.obsm["X_scvae"], adata.obsm["scvae_latent_var"]]),
        "denoise": lambda: adata.layers["scvae_denoised"][:, adata.var["scvae_modelled"].to_numpy()],
        "score": lambda: adata.obs[["scvae_elbo", "scvae_iwae"]].to_numpy(),
        "interpolate": lambda: adata.obs[["scvae_pseudotime_batch_1_to_batch_2"]].to_numpy(),
    }[verb]()
    assert np.isnan(result[:2]).all()
    # A trajectory also leaves out cells that are far from the trajectory.
    assert not np.isnan(result[2:]).all() if verb == "interpolate" else not np.isnan(result[2:]).any()


def test_drop_empty_does_not_change_other_results(bench):
    run_ok(*bench.args("embed"))
    before = ad.read_h5ad(bench.data).obsm["X_scvae"]
    bench.change(with_two_empty_cells)
    run_ok(*bench.args("embed", "--drop-empty"))
    np.testing.assert_allclose(ad.read_h5ad(bench.data).obsm["X_scvae"][2:], before[2:], rtol=1e-5, atol=1e-6)


def test_train_drops_empty_cells_on_request(bench):
    bench.change(with_two_empty_cells)
    outcome = run_ok(*bench.train_args("--drop-empty", "--json"))
    assert json.loads(outcome.out)["n_cells"] == 118


@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_cells_with_counts_in_other_genes_only_are_dropped_on_request(bench, verb):
    def only_one_gene(adata):
        dense = adata.X.toarray()
        dense[:2] = 0
        dense[:2, 7] = 3
        adata.X = sp.csr_matrix(dense)

    names = ad.read_h5ad(bench.change(only_one_gene)).var_names
    genes = bench.file("genes.txt", "\n".join(names.delete(7)))
    commands = {"train": bench.train_args(), "sweep": ["sweep", bench.data, "--beta", "1,2", "--max-epochs", 2]}
    arguments = [*commands[verb], "--genes", f"@{genes}"]
    assert "--drop-empty" in assert_refused(bench.folder, arguments, DATA, "2 cells have no counts")
    assert json.loads(run_ok(*arguments, "--drop-empty", "--json").out)["n_cells"] == 118


def test_cell_without_counts_is_refused_as_end_of_a_path(bench):
    first = bench.change(with_two_empty_cells) and ad.read_h5ad(bench.data).obs_names
    arguments = bench.args("interpolate", "--from-cell", first[0], "--to-cell", first[5], "--drop-empty")
    assert_refused(bench.folder, arguments, DATA, "has no counts in the modeled genes")
