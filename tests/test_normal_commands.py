"""Every command works with a model with a normal likelihood, or refuses options that do not suit real numbers.

Letters in array shapes: n cells, g features.
"""

from __future__ import annotations

import json
import math

import anndata as ad
import numpy as np
import pytest
from command_line import TINY, run_cli, run_ok
from conftest import Trained
from workbench import DATA, USAGE, Bench, assert_refused

from scvae_cli.errors import ScvaeWarning
from scvae_cli.session import Session
from scvae_cli.tools.sample.options import SampleOptions
from scvae_cli.tools.sample.prototype import prototype


def cells_on_a_line(n: int = 150, g: int = 12, seed: int = 0) -> ad.AnnData:
    """Real numbers, many of them negative, along a line with three stations; the first cell is all zero."""
    random = np.random.default_rng(seed)
    t_n = np.linspace(-2, 2, n)
    x_ng = np.outer(t_n, random.standard_normal(g)) + np.outer(t_n**2, random.standard_normal(g)) + 1
    x_ng = (x_ng + 0.3 * random.standard_normal(x_ng.shape)) * np.logspace(-1, 1, g)
    x_ng[0] = 0
    adata = ad.AnnData(x_ng.astype(np.float32))
    adata.obs["station"] = np.asarray(["a", "b", "c"])[np.digitize(t_n, (-0.7, 0.7))]
    adata.obs["batch"] = [f"batch_{i % 2}" for i in range(n)]
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(n)], [f"g{i}" for i in range(g)]
    return adata


@pytest.fixture(scope="module")
def trained_on_line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("normal")
    cells_on_a_line().write_h5ad(folder / "line.h5ad")
    options = [*TINY, "--max-epochs", "40", "--likelihood", "normal", "--batch-key", "batch", "--flat", "1"]
    values = json.loads(run_ok("train", folder / "line.h5ad", *options, "--json").out)
    assert np.isfinite(values["heldout_elbo"])
    return folder


@pytest.fixture
def on_line(trained_on_line, tmp_path):
    return Bench(tmp_path, Trained(trained_on_line / "line.h5ad", trained_on_line / "line.scvae"))


def test_all_commands_accept_real_numbers(on_line):
    new, folder = on_line.folder / "new.h5ad", on_line.folder
    for verb, *options in (
        ["embed"],
        ["denoise"],
        ["interpolate", "--groupby", "station", "--from", "a", "--to", "c", "--plot", folder / "walk.png"],
        ["pseudotime", "--groupby", "station", "--root", "a", "--to", "c"],
        ["score", "--samples", "5", "--simulated", "100", "--plot", folder / "score.png"],
        ["sample", "-n", "80", "-o", new, "--plot", folder / "sample.png"],
        ["sample", "-n", "20", "--mean", "-o", folder / "mean.h5ad"],
        ["sample", "--prototype", "-o", folder / "prototype.h5ad"],
        ["sample", "-n", "20", "--groupby", "station", "--group", "b", "-o", folder / "b.h5ad"],
    ):
        outcome = run_ok(*on_line.args(verb, *options))
        assert "of a count" not in outcome.out
        assert "zero fraction" not in outcome.out
    found = ad.read_h5ad(on_line.data)
    denoised = found.layers["scvae_denoised"]
    assert np.isfinite(denoised).all()
    assert (denoised < 0).any()
    # Decoded values have the scale and the unit of the data.
    residual = ((denoised - found.X) ** 2).mean(0) / found.X.var(0)
    assert residual.max() < 0.6
    for key in ("scvae_elbo", "scvae_iwae", "scvae_anomaly_score", "scvae_anomaly_p"):
        assert np.isfinite(found.obs[key]).all()
    sampled = ad.read_h5ad(new)
    assert isinstance(sampled.X, np.ndarray)
    assert sampled.X.dtype == np.float32
    assert (sampled.X < 0).any()
    assert "scvae_library" not in sampled.obs
    assert np.isfinite(ad.read_h5ad(folder / "prototype.h5ad").X).all()
    assert "normal" in run_ok("info", on_line.model).out
    assert "real numbers: X" in run_ok("check", on_line.data, "--likelihood", "normal").out


def test_prototype_is_compared_with_the_mean_cell(on_line):
    session = Session.open(on_line.data, on_line.model)
    kept = ~np.isin(session.counts.cell_names, session.model.heldout_cells)
    found = prototype(session.model, session.counts, SampleOptions(prototype=True))
    np.testing.assert_allclose(found.average_g, session.counts.matrix[kept].toarray().mean(0), rtol=1e-4)
    assert found.library is None


def test_matrix_x_is_read_by_default(on_line):
    adata = ad.read_h5ad(on_line.data)
    adata.layers["counts"] = np.ones(adata.shape, dtype=np.float32)
    adata.layers["other"] = -adata.X
    assert Session.open(adata, on_line.model).counts.source == "X"
    np.testing.assert_allclose(Session.open(adata, on_line.model).counts.matrix.toarray(), adata.X)
    assert Session.open(adata, on_line.model, layer="other").counts.source == 'layers["other"]'


def test_missing_features_give_a_warning_and_get_the_mean(on_line):
    adata = ad.read_h5ad(on_line.data)[:, 1:].copy()
    with pytest.warns(ScvaeWarning, match="mean over the training cells"):
        session = Session.open(adata, on_line.model)
    filled_n = session.counts.matrix.toarray()[:, 0]
    np.testing.assert_allclose(filled_n, session.model.vae.encoder.centre_g[0], rtol=1e-6)


def test_options_for_counts_are_refused(on_line):
    for verb in ("denoise", "interpolate"):
        groups = ["--groupby", "station", "--from", "a", "--to", "c"] if verb == "interpolate" else []
        command = on_line.args(verb, *groups, "--library", "1000")
        assert_refused(on_line.folder, command, USAGE, "has no library size")
    assert_refused(on_line.folder, on_line.args("denoise", "--library", "median"), USAGE, "has no library size")
    assert_refused(on_line.folder, on_line.args("denoise", "--with-zero-inflation"), USAGE, "no zero inflation")
    for options in (["-n", "5"], ["--prototype"]):
        command = on_line.args("sample", *options, "--library", "9", "-o", on_line.folder / "new.h5ad")
        assert_refused(on_line.folder, command, USAGE, "has no library size")
    assert_refused(
        on_line.folder, on_line.train_args("--likelihood", "nb", "--variance", "1"), USAGE, "--variance was given with"
    )
    assert_refused(
        on_line.folder, on_line.train_args("--likelihood", "normal", "--variance", "0"), USAGE, "--variance is 0"
    )
    assert_refused(on_line.folder, ["check", on_line.data, "--likelihood", "cauchy"], USAGE, "--likelihood is 'cauchy'")


def test_hint_for_real_numbers_names_the_normal_likelihood(on_line):
    hint = assert_refused(on_line.folder, on_line.train_args(), DATA, "no raw counts found")
    assert "--likelihood normal" in hint
    outcome = run_cli("check", on_line.data)
    assert outcome.code == DATA
    assert "--likelihood normal" in outcome.out


@pytest.mark.parametrize(("value", "reason"), [(math.nan, "NaN"), (math.inf, "an infinite value")])
@pytest.mark.parametrize("verb", ["train", "embed", "check"])
def test_message_names_the_first_value_that_is_not_finite(on_line, verb, value, reason):
    def damage(adata: ad.AnnData) -> None:
        adata.X[3, 5] = value

    on_line.change(damage)
    if verb == "check":
        outcome = run_cli("check", on_line.data, "--likelihood", "normal")
        assert outcome.code == DATA
        assert f"it has {reason}, first in cell 'c3', gene 'g5'" in outcome.out
        return
    command = on_line.train_args("--likelihood", "normal") if verb == "train" else on_line.args("embed")
    assert_refused(on_line.folder, command, DATA, f"it has {reason}, first in cell 'c3', gene 'g5'")
