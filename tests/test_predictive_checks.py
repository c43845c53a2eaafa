"""Counts drawn from the model lie inside the bands of predictive checks; counts with additional zeros do not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from simulated import TINY, counts_of, tree

import scvae_cli as scvae
from scvae_cli.latent.count_draws import drawn_counts
from scvae_cli.latent.gene_moments import GeneMoments
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.tools.diagnose.model_verdicts import likelihood_verdicts
from scvae_cli.tools.diagnose.predictive import compare, predictive_check


@pytest.fixture(scope="module")
def model_and_own():
    """A model, and counts that it simulated from posterior samples of its own cells."""
    model = scvae.train(tree(n_cells=400, n_genes=300, depth=3000), **TINY, likelihood="nb", genes="all")
    counts = counts_of(tree(n_cells=400, n_genes=300, depth=3000))
    q = posteriors(model, counts)
    library_n = np.full(400, 3000.0)
    z_nk = q.sample(torch.randn(q.mean_nk.shape, generator=torch.Generator().manual_seed(8)))
    own = sp.vstack(list(drawn_counts(model, z_nk, library_n, None, np.random.SeedSequence(9))), format="csr")
    return model, counts, own, q, library_n


def moments(matrix) -> GeneMoments:
    return GeneMoments(matrix.shape[1]).add(sp.csr_matrix(matrix))


def replicates(model, q, library_n, n: int = 25) -> list[GeneMoments]:
    noise = torch.Generator().manual_seed(5)
    return [
        moments(sp.vstack(list(drawn_counts(model, q.sample(torch.randn(q.mean_nk.shape, generator=noise)), library_n,
                                            None, seed)), format="csr"))
        for seed in np.random.SeedSequence(6).spawn(n)
    ]  # fmt: skip


def test_cells_drawn_from_the_model_are_inside_the_bands(model_and_own):
    model, _, own, q, library_n = model_and_own
    drawn = replicates(model, q, library_n)
    check = compare(moments(own), drawn, model.genes)
    assert check.zeros.evaluated_g.sum() > 200
    assert check.zeros.outside < 0.035
    assert check.variances.outside < 0.035
    assert check.variances.median_ratio == pytest.approx(1, abs=0.1)
    assert check.zeros.error == pytest.approx(check.zeros.error_expected, rel=0.25)
    assert [verdict.level for verdict in likelihood_verdicts(check, "nb")] == ["good", "good"]
    # The bands are not simply wide: with half the standard errors, the faults would be found.
    assert np.std(check.zeros.score_g[check.zeros.evaluated_g]) == pytest.approx(1, abs=0.25)


def test_additional_zeros_are_found_in_their_genes(model_and_own):
    model, _, own, q, library_n = model_and_own
    changed = own.toarray()
    frequent = np.flatnonzero((changed > 0).mean(0) > 0.5)[:5]
    rng = np.random.default_rng(1)
    for g in frequent:
        changed[rng.random(len(changed)) < 0.3, g] = 0
    drawn = replicates(model, q, library_n)
    check = compare(moments(changed), drawn, model.genes)
    assert set(frequent) <= set(check.zeros.worst(8))
    assert (check.zeros.score_g[frequent] > check.zeros.limit).all()
    all_changed = own.toarray() * (rng.random(own.shape) < 0.7)
    zeros, variances = likelihood_verdicts(compare(moments(all_changed), drawn, model.genes), "nb")
    assert zeros.level == "poor"
    assert "--likelihood zinb" in zeros.remedy
    assert model.genes[compare(moments(all_changed), drawn, model.genes).zeros.worst(1)[0]] in zeros.sentence
    assert variances.topic == "variances"


def test_zeros_are_left_out_for_real_numbers(model_and_own):
    model, _, own, q, library_n = model_and_own
    check = compare(moments(own), replicates(model, q, library_n, 3), model.genes, zeros_are_counts=False)
    assert check.zeros is None
    assert [verdict.topic for verdict in likelihood_verdicts(check, "normal")] == ["variances"]
    assert "zeros" not in check.values()


def test_check_depends_only_on_the_seed(model_and_own):
    model, counts, _, q, _ = model_and_own
    first, second, other = (predictive_check(model, counts, q, n_replicates=2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.variances.predicted_g, second.variances.predicted_g)
    assert (first.variances.predicted_g != other.variances.predicted_g).any()
    np.testing.assert_allclose(first.zeros.observed_g, (counts.matrix.toarray() == 0).mean(0), atol=1e-12)


# --- real numbers -----------------------------------------------------------------------------------------------------


def of_real_numbers(observed_ng, sd: float = 1.0, unit: float = 1.0):
    """A check of features against replicates around −4 with a given standard deviation."""
    rng = np.random.default_rng(3)
    n, g = observed_ng.shape
    made = [moments(unit * (sd * rng.standard_normal((n, g)) - 4)) for _ in range(25)]
    return compare(moments(unit * observed_ng), made, tuple(f"f{i}" for i in range(g)), zeros_are_counts=False)


def test_negative_features_are_evaluated():
    observed_ng = np.random.default_rng(2).standard_normal((300, 40)) - 4
    observed_ng[:, 7] = -4
    check = of_real_numbers(observed_ng)
    np.testing.assert_array_equal(np.flatnonzero(~check.variances.evaluated_g), [7])
    assert np.isfinite(check.variances.score_g).all()
    assert likelihood_verdicts(check, "normal")[0].level == "good"
    assert check.variances.median_ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("unit", [1e-9, 1e-5, 1.0, 1e6])
@pytest.mark.parametrize("sd", [1.0, 3.0])
def test_wrong_variance_is_found_in_any_unit(unit, sd):
    observed_ng = np.random.default_rng(2).standard_normal((300, 40)) - 4
    check = of_real_numbers(observed_ng, sd=sd, unit=unit)
    np.testing.assert_allclose(
        check.variances.score_g, of_real_numbers(observed_ng, sd=sd).variances.score_g, rtol=1e-6
    )
    (verdict,) = likelihood_verdicts(check, "normal")
    assert verdict.level == ("good" if sd == 1 else "poor")


def test_check_without_evaluated_genes_is_rated_watch():
    (verdict,) = likelihood_verdicts(of_real_numbers(np.full((300, 4), -4.0)), "normal")
    assert verdict.level == "watch"
    assert "none of 4 genes varies enough" in verdict.sentence
    rare = np.zeros((300, 4))
    rare[0] = 1
    verdicts = likelihood_verdicts(compare(moments(rare), [moments(rare)] * 3, tuple("abcd")), "nb")
    assert [verdict.level for verdict in verdicts] == ["watch", "watch"]
    assert all("none of 4 genes is detected in enough cells" in verdict.sentence for verdict in verdicts)
