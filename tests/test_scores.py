"""Results of `scvae score`: parts of the bounds, p-values of simulated and of foreign cells, and the written slots.

Letters in array shapes: n cells, g genes, k latent dimensions.
"""

from __future__ import annotations

import json

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from command_line import run_ok
from plain_likelihood import zinb_log_prob
from scipy import stats
from simulated import TINY, learned, tree
from workbench import USAGE, assert_refused

import scvae_cli as scvae
from scvae_cli.data.slots import SlotNames
from scvae_cli.errors import ConfigError
from scvae_cli.model.density import LatentDensity
from scvae_cli.tools.score.anomalies import Calibration, CellFit, Covariates, ParetoTail, adjusted
from scvae_cli.tools.score.figure import library_quantiles, score_figure
from scvae_cli.tools.score.question import p_value_sentence
from scvae_cli.tools.score.simulated_cells import simulate_cells

FEW = {"n_samples": 5, "inplace": False}


def as_cells(matrix: sp.csr_matrix, model, batch=None) -> anndata.AnnData:
    adata = anndata.AnnData(matrix)
    adata.obs_names = [f"made_up_{i}" for i in range(matrix.shape[0])]
    adata.var_names = list(model.genes)
    if batch is not None:
        adata.obs["batch"] = [model.batches[b] for b in batch]
    return adata


@pytest.fixture(scope="module")
def scored():
    """Cells of a tree in two batches, their model, and their scores."""
    adata, model = learned()
    return adata, model, scvae.score(adata, model, **FEW)


@pytest.fixture(scope="module")
def cells_of_model(scored):
    """Cells simulated from the model with the library sizes of real cells, and the scores of the simulated cells."""
    _, model, scores = scored
    rng = np.random.default_rng(5)
    batch_n = rng.integers(2, size=500)
    drawn = simulate_cells(model, rng.choice(scores.library, 500), batch_n, seed=77)
    cells = as_cells(drawn, model, batch_n)
    return cells, scvae.score(cells, model, **FEW | {"seed": 3})


# --- parts of the bound -----------------------------------------------------------------------------------------------


def test_parts_of_the_elbo_equal_their_definitions():
    adata = tree(n_cells=300)
    model = scvae.train(adata, **TINY | {"n_latent": 1}, genes="all")
    some = adata[:8]
    x_ng = torch.as_tensor(some.X.toarray(), dtype=torch.float64)
    embedding = scvae.embed(some, model, axes="training", inplace=False)
    mean, var = (torch.as_tensor(part).double() for part in (embedding.mean_nk, embedding.var_nk))
    # Gauss–Hermite: E_q[log p(x|z)] without sampling.
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    expected = torch.zeros(len(some), dtype=torch.float64)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        with torch.no_grad():
            output = model.vae.decode((mean + var.sqrt() * node).float(), None)
        log_mu = torch.log_softmax(output.logits_ng.double(), 1) + x_ng.sum(1).log()[:, None]
        log_p_ng = zinb_log_prob(x_ng, log_mu, output.log_theta_g.double(), output.zero_logit_ng.double())
        expected += weight * log_p_ng.detach().sum(1)
    scores = scvae.score(some, model, n_samples=4_000, inplace=False, n_simulated=100)
    np.testing.assert_allclose(scores.reconstruction, expected.numpy(), atol=0.3)
    normal = torch.distributions.Normal
    kl_nk = torch.distributions.kl_divergence(normal(mean, var.sqrt()), normal(torch.zeros(()).double(), 1.0))
    np.testing.assert_allclose(scores.kl, kl_nk.sum(1).numpy(), rtol=1e-4)
    np.testing.assert_allclose(scores.elbo, scores.reconstruction - scores.kl, rtol=1e-12)


def test_bounds_do_not_depend_on_the_simulated_cells(scored):
    adata, model, scores = scored
    second = scvae.score(adata, model, **FEW, n_simulated=100)
    for name in ("elbo", "iwae", "iwae_density", "reconstruction", "kl"):
        np.testing.assert_array_equal(getattr(second, name), getattr(scores, name))


def test_importance_bounds_equal_log_p_by_quadrature():
    """Compute the bounds under the prior and under the density, in one latent dimension."""
    adata = tree(n_cells=300)
    model = scvae.train(adata, **TINY | {"n_latent": 1}, genes="all")
    some = adata[:8]
    x_ng = torch.as_tensor(some.X.toarray(), dtype=torch.float64)
    z_m = torch.linspace(-7, 7, 2801)
    with torch.no_grad():
        output = model.vae.decode(z_m[:, None], None)
        log_weight_m = {
            "iwae": torch.distributions.Normal(0.0, 1.0).log_prob(z_m),
            "iwae_density": model.density.log_prob(z_m[:, None]),
        }
    share_mg = torch.log_softmax(output.logits_ng.double(), 1)
    of_model = (output.log_theta_g.double(), output.zero_logit_ng.double())
    log_p_nm = torch.stack([zinb_log_prob(x_g, share_mg + x_g.sum().log(), *of_model).sum(1) for x_g in x_ng])
    scores = scvae.score(some, model, n_samples=4_000, inplace=False, n_simulated=100)
    for name, weight_m in log_weight_m.items():
        expected = torch.logsumexp(log_p_nm + weight_m, 1) + (z_m[1] - z_m[0]).log()
        np.testing.assert_allclose(getattr(scores, name), expected.detach().numpy(), atol=0.05, err_msg=name)
    assert abs(scores.iwae - scores.iwae_density).max() > 0.1


# --- simulated cells --------------------------------------------------------------------------------------------------


def test_positions_are_drawn_from_the_density():
    lower = torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    whiten = torch.linalg.inv(lower).T.contiguous()
    other = torch.diag(torch.tensor([4.0, 4.0]))
    density = LatentDensity(
        torch.tensor([0.8, 0.2]).log(),
        torch.tensor([[1.0, -2.0], [50.0, 50.0]]),
        torch.stack([whiten, other]),
        torch.empty(0),
    )
    z_nk = density.sample(20_000, torch.Generator().manual_seed(0))
    near = z_nk[:, 0] < 30
    assert float(near.float().mean()) == pytest.approx(0.8, abs=0.01)
    np.testing.assert_allclose(z_nk[near].mean(0), [1, -2], atol=0.05)
    np.testing.assert_allclose(torch.cov(z_nk[near].T), lower @ lower.T, atol=0.12)
    np.testing.assert_allclose(z_nk[~near].std(0), 0.25, atol=0.01)


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_simulated_cells_have_the_mean_of_the_model_and_the_requested_depth(likelihood):
    adata = tree(n_cells=200, n_genes=60, zero_inflation=0.3)
    model = scvae.train(adata, **TINY | {"max_epochs": 4}, likelihood=likelihood, genes="all")
    library_n = np.full(4000, 500.0)
    matrix = simulate_cells(model, library_n, None, seed=1)
    assert matrix.dtype == np.float32
    assert (matrix.data > 0).all()
    z_nk = model.density.sample(4000, torch.Generator().manual_seed(1))
    mean_ng = model.vae.expected_counts(z_nk, torch.full((4000,), 500.0), None, with_zero_inflation=True)
    mean_ng = mean_ng * (500 / mean_ng.sum(1, keepdim=True))
    ours_g, theirs_g = np.asarray(matrix.mean(0)).ravel(), mean_ng.detach().mean(0).numpy()
    error_g = matrix.toarray().std(0) / np.sqrt(4000) + 1e-3
    assert (np.abs(ours_g - theirs_g) < 5 * error_g).all()
    assert matrix.sum(1).mean() == pytest.approx(500, rel=0.03)
    assert (matrix != simulate_cells(model, library_n, None, seed=1)).nnz == 0


# --- p-values ---------------------------------------------------------------------------------------------------------


def test_p_values_of_cells_from_the_model_are_uniform(cells_of_model):
    cells, scores = cells_of_model
    deep = scores.library > np.median(scores.library)
    first = (cells.obs["batch"] == "batch_1").to_numpy()
    for part in (np.ones(len(deep), dtype=bool), deep, ~deep, first, ~first):
        assert stats.kstest(scores.anomaly_p[part], "uniform").pvalue > 0.001
    assert (scores.anomaly_p <= 0.05).mean() == pytest.approx(0.05, abs=0.035)
    assert scores.anomalies(0.05).sum() <= 2
    assert scores.heldout_below_05 is None


def test_shuffled_cells_have_the_smallest_p_values(scored):
    adata, model, scores = scored
    changed = adata.copy()
    rows = np.arange(0, 800, 100)
    rng = np.random.default_rng(0)
    dense = changed.X.toarray()
    dense[rows] = [rng.permutation(dense[row]) for row in rows]
    changed.X = sp.csr_matrix(dense)
    found = scvae.score(changed, model, **FEW)
    assert set(np.argsort(found.anomaly_p)[: len(rows)]) == set(rows)
    assert found.anomalies(0.05)[rows].all()
    # The scores of the unchanged cells hardly differ, although changed cells are scored together with them.
    others = np.delete(np.arange(adata.n_obs), rows)
    assert np.abs(found.anomaly_p - scores.anomaly_p)[others].mean() < 0.03


def test_scores_do_not_depend_on_depth_and_batch():
    """If mean and spread of a fit depend on library size and batch, the scores depend on neither."""
    rng = np.random.default_rng(0)

    def fit(n):
        library_n, batch_n, mean_nk = np.exp(rng.normal(7, 0.6, n)), rng.integers(3, size=n), rng.normal(size=(n, 4))
        unit = np.log(library_n) - 7
        log_likelihood_n = -700 * unit - 300 * unit**2 + 40 * batch_n + 30 * mean_nk[:, 0]
        log_likelihood_n += np.exp(2 + unit) * rng.normal(size=n)
        negative_kl_n = 5 * unit + batch_n + rng.normal(size=n)
        return CellFit(log_likelihood_n, negative_kl_n, Covariates(library_n, batch_n, mean_nk)), unit

    (simulated, _), (cells, unit) = fit(4000), fit(2000)
    calibration = Calibration(simulated, 3)
    score_n, batch_n = calibration.score(cells), cells.covariates.batch_n
    p_n = calibration.p_value(score_n)
    assert stats.kstest(p_n, "uniform").pvalue > 0.01
    for part in (unit < -0.5, unit > 0.5, batch_n == 0, batch_n == 2):
        assert stats.kstest(p_n[part], "uniform").pvalue > 0.001
    order = np.argsort(score_n)
    assert (np.diff(p_n[order]) <= 0).all()
    worst = calibration.p_value(np.asarray([1e6, -1e6]))
    assert 0 < worst[0] < 1e-6
    assert worst[1] == 1


def test_distant_cell_has_a_small_p_value_despite_extrapolation():
    rng = np.random.default_rng(1)
    mean_nk = rng.normal(size=(2000, 2))
    log_likelihood_n = -500 + 100 * mean_nk[:, 0] + rng.normal(size=2000)
    covariates = Covariates(np.full(2000, 1000.0), None, mean_nk)
    calibration = Calibration(CellFit(log_likelihood_n, rng.normal(size=2000), covariates), 0)
    far_covariates = Covariates(np.asarray([1000.0]), None, np.asarray([[-45.0, 0.0]]))
    far = CellFit(np.asarray([-5000.0]), np.zeros(1), far_covariates)
    assert calibration.p_value(calibration.score(far))[0] < 1e-6


def test_position_without_cells_gives_a_small_p_value():
    """A part with a small variance, such as the density, is not hidden by a part with a large variance."""
    rng = np.random.default_rng(2)

    def fit(mean_nk):
        n = len(mean_nk)
        negative_kl_n = -0.5 * np.square(mean_nk).sum(1)
        return CellFit(-500 + 100 * rng.normal(size=n), negative_kl_n, Covariates(np.full(n, 1000.0), None, mean_nk))

    calibration = Calibration(fit(rng.normal(size=(4000, 2))), 0)
    between = calibration.p_value(calibration.score(fit(np.full((200, 2), 4.0))))
    ordinary = calibration.p_value(calibration.score(fit(rng.normal(size=(200, 2)))))
    assert np.median(between) < 1e-3
    assert np.median(ordinary) > 0.3


@pytest.mark.parametrize("shape", [0.0, 0.25])
def test_pareto_tail_is_recovered(shape):
    sample = np.sort(stats.genpareto(shape, scale=2.0).rvs(20_000, random_state=0))
    tail = ParetoTail.fitted(sample)
    assert tail.shape == pytest.approx(shape, abs=0.05)
    assert tail.scale == pytest.approx(2.0, rel=0.06)
    reference = stats.genpareto(tail.shape, scale=tail.scale)
    np.testing.assert_allclose(tail.survival(sample[::500]), reference.sf(sample[::500]), rtol=1e-6)


def test_bounded_tail_is_fitted_as_exponential():
    tail = ParetoTail.fitted(np.linspace(0, 1, 200))
    assert tail.shape == 0
    assert tail.survival(np.asarray([5.0]))[0] > 0
    assert ParetoTail.fitted(np.zeros(5)).survival(np.asarray([1.0]))[0] == 0


def test_adjusted_p_values_equal_scipy():
    rng = np.random.default_rng(0)
    for p_n in (rng.random(200), rng.random(50) ** 4, np.full(7, 0.02), np.asarray([0.3]), np.round(rng.random(99), 1)):
        p_n = np.maximum(p_n, 1e-9)
        np.testing.assert_allclose(adjusted(p_n), stats.false_discovery_control(p_n), rtol=1e-12)


def test_scores_are_reproducible_and_depend_on_the_seed(scored):
    adata, model, scores = scored
    second, other = (scvae.score(adata, model, **FEW | {"seed": seed}) for seed in (0, 1))
    np.testing.assert_array_equal(second.anomaly_p, scores.anomaly_p)
    assert not np.array_equal(other.anomaly_p, scores.anomaly_p)
    assert stats.spearmanr(other.anomaly_score, scores.anomaly_score)[0] > 0.9


def test_heldout_cells_are_counted_separately(scored):
    _, model, scores = scored
    assert scores.heldout.sum() == len(model.heldout_cells)
    assert scores.heldout_below_05 == (scores.anomaly_p[scores.heldout] <= 0.05).mean()


@pytest.mark.parametrize("n_cells", [1, 3])
def test_scores_of_few_cells_with_one_latent_dimension(n_cells):
    adata = tree(n_cells=200, n_genes=40)
    model = scvae.train(adata, **TINY | {"n_latent": 1, "max_epochs": 3}, genes="all")
    scores = scvae.score(adata[:n_cells].copy(), model, **FEW, n_simulated=100)
    assert ((scores.anomaly_p > 0) & (scores.anomaly_p <= 1)).all()


# --- slots, command and figure ----------------------------------------------------------------------------------------


def test_scores_are_written_to_slots(scored):
    adata, model, scores = scored
    cells = adata.copy()
    scvae.score(cells, model, n_samples=5)
    names = SlotNames()
    for key, name in {
        names.reconstruction: "reconstruction",
        names.kl: "kl",
        names.anomaly_score: "anomaly_score",
        names.anomaly_p: "anomaly_p",
        names.anomaly_p_adjusted: "anomaly_p_adjusted",
    }.items():
        np.testing.assert_array_equal(cells.obs[key], getattr(scores, name))
    assert {slot.path for slot in scores.slots(names)} <= {f"obs/{key}" for key in cells.obs}


def test_command_reports_anomalies_and_draws_a_figure(bench):
    figure_file = bench.folder / "scores.png"
    command = bench.args("score", "--samples", "2", "--simulated", "500", "--fdr", "0.5", "--plot", figure_file)
    values = json.loads(run_ok(*command, "--json").out)
    cells = anndata.read_h5ad(bench.data).obs
    assert values["anomalies"] == (cells["scvae_anomaly_p_adjusted"] <= 0.5).sum()
    assert values["fdr"] == 0.5
    assert 0 <= values["heldout_below_05"] <= 1
    assert values["mean_elbo"] == pytest.approx(values["mean_reconstruction"] - values["mean_kl"])
    assert values["simulated"] == 500
    assert values["plot"] == str(figure_file)
    first = figure_file.read_bytes()
    text = run_ok(*command, "--force").out
    assert figure_file.read_bytes() == first
    assert "anomalies" in text
    assert "held-out cells" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "n_samples is 0"),
        ({"n_simulated": 99}, "n_simulated is 99"),
        ({"fdr": 1}, "fdr is 1"),
        ({"fdr": 0.0}, "fdr is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_options_out_of_range_are_refused(scored, options, message):
    adata, model, _ = scored
    with pytest.raises(ConfigError, match=message):
        scvae.score(adata, model, **FEW | options)


def test_command_and_function_draw_the_same_figure(bench):
    typed, passed = bench.folder / "typed.png", bench.folder / "passed.png"
    run_ok(*bench.args("score", "--samples", "2", "--simulated", "200", "--plot", typed))
    scvae.score(bench.data, bench.model, n_samples=2, n_simulated=200, plot=passed, inplace=False)
    assert typed.read_bytes() == passed.read_bytes()


def test_figure_shows_every_anomaly(scored):
    _, _, scores = scored
    xy_n2 = np.random.default_rng(0).normal(size=(len(scores.elbo), 2))
    figure = score_figure(scores, xy_n2, ("a", "b"), 0.9)
    called = scores.anomalies(0.9).sum()
    for axes in figure.axes[1:]:
        assert len(axes.collections[1].get_offsets()) == called
    assert f"{called:,} anomalies (FDR 0.9)" in [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    bars = figure.axes[0].patches
    assert [float(np.mean(bar.get_data().values)) for bar in bars] == pytest.approx([1, 1])


def test_quantiles_are_those_of_the_cells_in_a_bin_of_library_size():
    library_m = np.repeat([100.0, 1000.0], 200)
    score_m = np.concatenate([np.linspace(0, 1, 200), np.linspace(5, 7, 200)])
    library_d, quantile_ds = library_quantiles(library_m, score_m, (0.0, 0.5, 1.0))
    np.testing.assert_allclose(library_d, [100, 1000])
    np.testing.assert_allclose(quantile_ds, [[0, 0.5, 1], [5, 6, 7]])
    assert len(library_quantiles(library_m[:3], score_m[:3], (0.5,))[0]) == 1


def test_invalid_figure_file_is_refused_before_the_computation(bench):
    assert_refused(
        bench.folder,
        bench.args("score", "--plot", bench.folder / "scores.doc"),
        USAGE,
        "does not have the extension of a figure",
    )


@pytest.mark.parametrize(
    ("share", "n_heldout", "n_anomalies", "expected"),
    [
        (0.05, 100, 3, "the p-values are well calibrated"),
        (0.08, 50, 0, "the p-values are well calibrated"),
        (0.11, 400, 0, "no cell has a p-value small enough"),
        (0.11, 400, 7, "may be ordinary cells"),
        (0.005, 2000, 0, "may be missed"),
    ],
)
def test_sentence_interprets_the_share_of_small_p_values(share, n_heldout, n_anomalies, expected):
    assert expected in p_value_sentence(share, n_heldout, n_anomalies)
