"""Diagnoses are compared with known truth: simulated collapse, rotation and holes, closed forms, and quadrature.

Letters in array shapes: n cells, g genes, k latent dimensions.
"""

from __future__ import annotations

import dataclasses
import json
import math

import anndata
import numpy as np
import pytest
import torch
from command_line import run_ok
from handmade import random_vae
from scipy.stats import ncx2
from simulated import TINY, learned
from test_refinement import Quadrature, random_cells
from workbench import DATA, USAGE, assert_refused

import scvae_cli as scvae
from scvae_cli.errors import DataError
from scvae_cli.latent.refinement import refine
from scvae_cli.model.density import LatentDensity
from scvae_cli.model.geometry import Geometry
from scvae_cli.model.posterior import Posterior
from scvae_cli.report.figure_file import save_figure
from scvae_cli.tools.diagnose.distortion import condition_numbers, distortion
from scvae_cli.tools.diagnose.figure import SCORES, diagnosis_figure
from scvae_cli.tools.diagnose.gaps import Gaps, bounds
from scvae_cli.tools.diagnose.latent_use import aggregated_posterior, latent_use
from scvae_cli.tools.diagnose.model_verdicts import (
    axes_verdict,
    distance_verdicts,
    gap_verdicts,
    likelihood_verdicts,
    prior_verdict,
    use_verdict,
)
from scvae_cli.tools.diagnose.stability import Stability
from scvae_cli.tools.diagnose.verdict import Verdict, page


def mixture(shares, means, covariances) -> LatentDensity:
    """A Gaussian mixture that is known exactly."""
    lower_ckk = torch.linalg.cholesky(torch.as_tensor(np.asarray(covariances)).double())
    whiten_ckk = torch.linalg.inv(lower_ckk).transpose(1, 2).contiguous()
    log_c = torch.as_tensor(np.asarray(shares)).double().log()
    return LatentDensity(log_c, torch.as_tensor(np.asarray(means)).double(), whiten_ckk, torch.empty(0))


def normal_posteriors(n: int, between_kk, within_k, seed: int = 0) -> Posterior:
    """Posteriors with normal means; their mixture is N(0, between + within)."""
    lower = np.linalg.cholesky(np.asarray(between_kk) + 1e-12 * np.eye(len(within_k)))
    mean_nk = np.random.default_rng(seed).standard_normal((n, len(within_k))) @ lower.T
    return Posterior(torch.as_tensor(mean_nk), torch.as_tensor(np.asarray(within_k)).double().expand(n, -1))


def no_gaps(kl: float) -> Gaps:
    n = 4
    return Gaps(
        encoder_n=np.full(n, -10.0),
        refined_n=np.full(n, -10.0),
        bound_n=np.full(n, -10.0),
        kl_n=np.full(n, kl),
        effective_n=np.full(n, 2.0),
        n_samples=2,
    )


# --- use and shape of the latent space --------------------------------------------------------------------------------


def test_encoder_that_ignores_its_cells_is_reported_as_collapsed():
    collapsed = Posterior(torch.zeros(500, 3), torch.ones(500, 3))
    used = latent_use(collapsed)
    assert used.collapse == "all"
    assert used.n_active == 0
    np.testing.assert_allclose(used.kl_k, 0, atol=1e-6)
    found = aggregated_posterior(collapsed, collapsed, mixture([1.0], np.zeros((1, 3)), [np.eye(3)]))
    assert found.mutual_information == pytest.approx(0, abs=1e-6)
    assert found.total_correlation == pytest.approx(0, abs=1e-6)
    assert found.most_correlated is None
    assert axes_verdict(found).level == "good"
    verdict = use_verdict(used, no_gaps(0.0), beta=20)
    assert verdict.level == "poor"
    assert "collapsed" in verdict.sentence
    assert "--beta (now 20)" in verdict.remedy


def test_inactive_axes_are_distinguished_from_active_axes():
    posterior = normal_posteriors(4000, np.diag([0.7, 0.0, 0.5]), [0.3, 1.0, 0.5])
    used = latent_use(posterior)
    assert used.collapse == "some"
    np.testing.assert_array_equal(used.active_k, [True, False, True])
    between_k, within_k = np.array([0.7, 0, 0.5]), np.array([0.3, 1, 0.5])
    expected_k = 0.5 * (between_k + within_k - 1 - np.log(within_k))
    np.testing.assert_allclose(used.kl_k, expected_k, atol=0.05)
    assert use_verdict(used, no_gaps(1.0), beta=1).level == "good"
    one_active = latent_use(normal_posteriors(4000, np.diag([0.7, 0.0, 0.0]), [0.3, 1.0, 1.0]))
    assert use_verdict(one_active, no_gaps(1.0), beta=1).level == "watch"


def test_rotated_axes_are_reported_as_correlated():
    between, within = np.diag([0.95, 0.3]), np.array([0.05, 0.05])
    aligned = normal_posteriors(20_000, between, within)
    rotation = np.array([[1, -1], [1, 1]]) / math.sqrt(2)
    rotated = Posterior(aligned.mean_nk @ torch.as_tensor(rotation).T, aligned.var_nk)
    aligned_density = mixture([1.0], np.zeros((1, 2)), [between + np.diag(within)])
    rotated_density = mixture([1.0], np.zeros((1, 2)), [rotation @ (between + np.diag(within)) @ rotation.T])
    found = aggregated_posterior(aligned, aligned, aligned_density)
    assert abs(found.correlation) < 0.03
    assert axes_verdict(found).level == "good"
    assert found.total_correlation == pytest.approx(0, abs=0.02)
    found = aggregated_posterior(rotated, rotated, rotated_density)
    expected = (1.0 - 0.35) / (1.0 + 0.35)
    assert found.correlation == pytest.approx(expected, abs=0.02)
    assert found.most_correlated == (0, 1)
    assert axes_verdict(found).level == "watch"
    assert "axes 1 and 2" in axes_verdict(found).sentence
    assert found.total_correlation == pytest.approx(-0.5 * math.log(1 - expected**2), abs=0.02)


def test_information_of_a_gaussian_aggregate_equals_the_closed_form():
    between, within = np.array([[0.8, 0.3], [0.3, 0.6]]), np.array([0.2, 0.5])
    covariance_kk = between + np.diag(within)
    posterior = normal_posteriors(20_000, between, within, seed=2)
    found = aggregated_posterior(posterior, posterior, mixture([1.0], np.zeros((1, 2)), [covariance_kk]))
    np.testing.assert_allclose(found.covariance_kk, covariance_kk, atol=0.03)
    # For a linear Gaussian model, I(x; z) = ½ log det(aggregate)/det(within).
    information = 0.5 * (np.linalg.slogdet(covariance_kk)[1] - np.log(within).sum())
    assert found.mutual_information == pytest.approx(information, abs=0.03)
    to_prior = 0.5 * (np.trace(covariance_kk) - 2 - np.linalg.slogdet(covariance_kk)[1])
    assert found.kl_to_prior == pytest.approx(to_prior, abs=0.02)
    from_prior = 0.5 * (np.trace(np.linalg.inv(covariance_kk)) - 2 + np.linalg.slogdet(covariance_kk)[1])
    assert found.prior_kl == pytest.approx(from_prior, abs=0.03)


def test_prior_equal_to_the_aggregate_has_one_percent_holes():
    posterior = normal_posteriors(5000, 0.6 * np.eye(3), [0.4] * 3)
    found = aggregated_posterior(posterior, posterior, mixture([1.0], np.zeros((1, 3)), [np.eye(3)]))
    assert found.holes == pytest.approx(0.01, abs=0.004)
    assert prior_verdict(found).level == "good"
    np.testing.assert_allclose(found.prior_ranks_b, 0.05, atol=0.012)
    assert found.prior_ranks_b.sum() == pytest.approx(1)


def test_simulated_holes_have_their_mass_under_the_prior():
    center, sd = 1.5, 0.5
    side_n = np.where(np.arange(6000) % 2 == 0, -center, center)
    mean_nk = np.stack([side_n, np.zeros(6000)], 1) + 0.4 * np.random.default_rng(1).standard_normal((6000, 2))
    posterior = Posterior(torch.as_tensor(mean_nk), torch.full((6000, 2), sd**2 - 0.4**2).double())
    clusters = mixture([0.5, 0.5], [[-center, 0], [center, 0]], [sd**2 * np.eye(2)] * 2)
    # The holes are the region outside two discs, each of which contains 99% of the samples of one cluster. `inside` is
    # the mass of the prior in the discs.
    inside = 2 * ncx2.cdf(2 * math.log(100) * sd**2, 2, center**2)
    found = aggregated_posterior(posterior, posterior, clusters)
    # The mass is not exact, because the two discs overlap a little.
    assert found.holes == pytest.approx(1 - inside, abs=0.03)
    assert prior_verdict(found).level != "good"
    assert "--from density" in prior_verdict(found).remedy
    far = mixture([0.5, 0.5], [[-6, 0], [6, 0]], [0.09 * np.eye(2)] * 2)
    distant = Posterior(posterior.mean_nk * torch.tensor([4.0, 0.1]).double(), torch.full((6000, 2), 0.05).double())
    assert prior_verdict(aggregated_posterior(distant, distant, far)).level == "poor"


# --- gaps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2])
def test_gaps_equal_quadrature(k):
    vae, n = random_vae("nb", k=k, seed=1), 3
    table = random_cells(vae, n, False)
    cells = table.take(np.arange(n))
    start = Posterior(0.8 * torch.ones(n, k).double(), torch.full((n, k), 0.3).double())
    found = refine(vae, cells, start, n_steps=100).posterior
    noise = torch.Generator().manual_seed(4)
    encoder_n, refined_n, bound_n, kl_n, effective_n = bounds(vae, cells, (start, found), n_samples=4000, noise=noise)
    exact = Quadrature(vae, table, k)
    for i in range(n):
        for elbo, q in ((encoder_n[i], start), (refined_n[i], found)):
            assert elbo == pytest.approx(exact.elbo(i, q.mean_nk[i].numpy(), q.var_nk[i].numpy()), abs=0.06)
        evidence = exact.evidence(i, found.mean_nk[i].numpy(), found.var_nk[i].numpy())
        assert bound_n[i] == pytest.approx(evidence, abs=0.05)
        assert encoder_n[i] - 0.01 <= refined_n[i] <= bound_n[i] + 0.01
        assert kl_n[i] == pytest.approx(k * 0.5 * (0.64 + 0.3 - 1 - math.log(0.3)), rel=1e-5)
        assert 100 < effective_n[i] <= 4000


def test_gaps_are_additive_and_have_standard_errors():
    rng = np.random.default_rng(0)
    encoder_n = rng.normal(-100, 20, 400)
    refined_n = encoder_n + rng.normal(3, 1, 400)
    result = Gaps(
        encoder_n=encoder_n,
        refined_n=refined_n,
        bound_n=refined_n + 0.1,
        kl_n=np.full(400, 7.0),
        effective_n=np.full(400, 30.0),
        n_samples=200,
    )
    assert result.amortization.mean + result.variational.mean == pytest.approx(result.inference.mean)
    assert result.amortization.error == pytest.approx(1 / 20, rel=0.15)
    assert result.amortization.percent == pytest.approx(100 * result.amortization.mean / -result.bound_n.mean())
    assert result.distortion + result.rate == pytest.approx(-encoder_n.mean())
    encoder, family = gap_verdicts(result)
    assert (encoder.level, family.level) == ("poor", "good")
    assert "--refine" in encoder.remedy


# --- distances and verdicts -------------------------------------------------------------------------------------------


def test_condition_numbers_are_ratios_of_eigenvalues():
    metric = torch.stack([torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.eye(2)])
    np.testing.assert_allclose(condition_numbers(metric.double()), [4, 3, 1])
    unresponsive = torch.diag(torch.tensor([1.0, 0.0])).double()[None]
    assert condition_numbers(unresponsive)[0] == pytest.approx(1e7)


def test_page_contains_every_verdict_and_its_remedy():
    verdicts = [
        Verdict(topic="one", level="good", sentence="all is well"),
        Verdict(topic="another", level="poor", sentence="long " * 40, finding="axes"),
    ]
    text = page(verdicts, width=60)
    assert max(len(line) for line in text.splitlines()) <= 60
    assert "good   one      all is well" in text
    assert "→ do not interpret single axes" in text


# --- trained models ---------------------------------------------------------------------------------------------------

QUICK = {"n_samples": 10, "refine": 5, "quick": True, "inplace": False}


@pytest.fixture(scope="module")
def diagnosed():
    adata, model = learned()
    return adata, model, scvae.diagnose(adata, model, **QUICK)


def test_diagnosis_agrees_with_training_and_scores(diagnosed):
    adata, model, found = diagnosed
    assert found.heldout
    assert found.n_evaluated == len(model.heldout_cells)
    assert -found.gaps.encoder_n.mean() == pytest.approx(-model.facts["heldout_elbo"], rel=0.01)
    assert found.gaps.rate == pytest.approx(model.facts["heldout_kl"], rel=0.01)
    assert found.use.n_active == model.facts["active_units"]
    heldout = adata[adata.obs_names.isin(model.heldout_cells)]
    scores = scvae.score(heldout, model, n_samples=20, n_simulated=100, inplace=False)
    assert found.gaps.encoder_n.mean() == pytest.approx(scores.elbo.mean(), abs=1.0)
    assert found.gaps.bound_n.mean() >= scores.elbo.mean()
    limited = scvae.diagnose(adata, model, **QUICK, max_cells=20)
    assert 10 <= limited.n_evaluated <= 20
    of_training = scvae.diagnose(adata[~adata.obs_names.isin(model.heldout_cells)][:40].copy(), model, **QUICK)
    assert not of_training.heldout
    assert of_training.n_evaluated == 40


def test_model_with_large_beta_is_reported_as_collapsed(diagnosed):
    adata, _, found = diagnosed
    with pytest.warns(scvae.ScvaeWarning, match="posterior collapse"):
        collapsed = scvae.train(adata, **TINY, beta=20, batch_key="batch", genes="all")
    other = scvae.diagnose(adata, collapsed, **QUICK)
    assert other.gaps.rate < 0.1 * found.gaps.rate
    verdict = other.verdicts[0]
    assert verdict.level == "poor"
    assert "--beta (now 20)" in verdict.remedy
    assert other.aggregate.mutual_information == pytest.approx(0, abs=0.1)
    assert found.aggregate.mutual_information > 0.5


def test_names_of_sections_and_topics_are_unique(diagnosed):
    _, _, found = diagnosed
    unstable = Stability(
        n_trainings=2,
        procrustes=0.6,
        procrustes_by_chance=0.9,
        neighbors_shared=0.2,
        pca_neighbors_shared=0.4,
        axis_correlation=0.5,
        heldout_elbo=(-1.0, -2.0),
    )
    with_stability = dataclasses.replace(found, stability=unstable)
    assert [section.name for section in with_stability.sections] == [
        *(section.name for section in found.sections),
        "stability",
    ]
    topics = [verdict.topic for verdict in with_stability.verdicts]
    assert len(set(topics)) == len(topics)
    assert topics[-1] == "stability"
    assert with_stability.level == "poor"


def test_advice_does_not_contradict_itself(diagnosed):
    """For all faults together, no advice recommends an increase of a setting that another advice recommends to
    decrease.
    """
    _, _, found = diagnosed
    collapsed = Posterior(torch.zeros(50, 2), torch.ones(50, 2))
    far = mixture([0.5, 0.5], [[-6, 0], [6, 0]], [0.09 * np.eye(2)] * 2)
    for use in (found.use, latent_use(collapsed)):
        correlated = dataclasses.replace(
            aggregated_posterior(collapsed, collapsed, far),
            active_k=np.array([True, True]),
            covariance_kk=np.array([[1.0, 0.9], [0.9, 1.0]]),
            holes=0.9,
        )
        zeros = dataclasses.replace(found.check.zeros, score_g=np.full_like(found.check.zeros.score_g, 9))
        check = dataclasses.replace(found.check, zeros=zeros, variances=zeros)
        worse = dataclasses.replace(found, use=use, aggregate=correlated, check=check)
        advice = " ".join(verdict.remedy for verdict in worse.verdicts)
        assert not ("higher --beta" in advice and "lower --beta" in advice)
        assert not ("larger --n-latent" in advice and "fewer --n-latent" in advice)


def test_diagnosis_is_written_to_uns(bench_with_batches):
    bench = bench_with_batches
    file = bench.folder / "health.png"
    command = bench.args("diagnose", "--samples", "4", "--refine", "2", "--quick", "--plot", file)
    text = run_ok(*command).out
    assert "evaluated on" in text
    assert file.stat().st_size > 10_000
    stored = anndata.read_h5ad(bench.data).uns["scvae"]["diagnosis"]
    assert set(stored["verdicts"]["level"]) <= {"good", "watch", "poor"}
    assert list(stored["verdicts"]["topic"])[:2] == ["latent use", "axes"]
    assert stored["usage"]["kl"].shape == (4,)
    assert stored["predictive"]["zeros"]["observed"].shape == (40,)
    assert stored["gaps"]["amortization"]["percent"] == pytest.approx(
        100 * stored["gaps"]["amortization"]["mean"] / abs(stored["gaps"]["bound"])
    )
    report = json.loads(run_ok(*command, "--force", "--json").out)
    assert report["gaps"]["bound"] == stored["gaps"]["bound"]
    assert [v["sentence"] for v in report["verdicts"]] == list(stored["verdicts"]["sentence"])


def test_figure_shows_kl_gaps_and_zeros(diagnosed):
    _, _, found = diagnosed
    figure = diagnosis_figure(found)
    parts = {axes.get_label(): axes for axes in figure.axes}
    heights = sorted(bar.get_height() for bar in parts["Use of the axes"].patches)
    np.testing.assert_allclose(heights, np.sort(found.use.kl_k), rtol=1e-6)
    bars = [bar.get_height() for bar in parts["Gaps"].patches]
    assert bars == pytest.approx([found.gaps.amortization.mean, found.gaps.variational.mean])
    dots = sum(len(part.get_offsets()) for part in parts["Zeros of genes"].collections)
    assert dots == found.check.zeros.evaluated_g.sum()


def test_figure_compares_embeddings_if_there_are_labels_or_batches(diagnosed):
    adata, model, found = diagnosed
    labeled = scvae.diagnose(adata, model, **QUICK, labels="cell_type")
    for diagnosis, scores in ((found, ("ilisi", "kbet")), (labeled, tuple(SCORES))):
        figure = diagnosis_figure(diagnosis)
        [panel] = [axes for axes in figure.axes if axes.get_label().startswith("Embedding")]
        heights = [[bar.get_height() for bar in bars] for bars in panel.containers]
        assert heights == [[getattr(one, name) for name in scores] for one in diagnosis.quality.scores]
    quality = dataclasses.replace(found.quality, n_batches=0)
    figure = diagnosis_figure(dataclasses.replace(found, quality=quality))
    assert not [axes for axes in figure.axes if axes.get_label().startswith("Embedding")]


def test_verdict_on_the_embedding_uses_its_own_distances(diagnosed):
    """If an embedding has the distances of the latent space, its rank correlation is that of the latent space."""
    _, model, found = diagnosed
    assert found.distortion.embedding_rank_correlation > 0.9
    mean_nk = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    same = distortion(Geometry(model.vae), mean_nk, mean_nk.numpy(), found.use.active_k)
    assert same.embedding_rank_correlation == pytest.approx(same.rank_correlation, abs=1e-3)
    noise_nk = np.random.default_rng(0).normal(size=(60, 9))
    other = distortion(Geometry(model.vae), mean_nk, noise_nk, found.use.active_k)
    assert abs(other.embedding_rank_correlation) < 0.3 < other.rank_correlation
    of_embedding, of_latent = distance_verdicts(other)
    assert of_embedding.level == "poor"
    assert "--flat" not in of_embedding.remedy
    assert of_latent.level == "good" or "--flat" in of_latent.remedy


def test_figures_of_incomplete_diagnoses(diagnosed, tmp_path):
    _, _, found = diagnosed
    nothing = Posterior(torch.zeros(50, 1), torch.ones(50, 1))
    collapsed = dataclasses.replace(
        found,
        use=latent_use(nothing),
        aggregate=aggregated_posterior(nothing, nothing, mixture([1.0], np.zeros((1, 1)), [np.eye(1)])),
        check=dataclasses.replace(found.check, zeros=None),
        gaps=no_gaps(0.0),
    )
    save_figure(diagnosis_figure(collapsed), tmp_path / "diagnosis.svg")
    # The axes also fit the variances of very small real numbers.
    small = dataclasses.replace(
        found.check.variances,
        observed_g=1e-20 * found.check.variances.observed_g,
        predicted_g=1e-20 * found.check.variances.predicted_g,
    )
    figure = diagnosis_figure(
        dataclasses.replace(found, check=dataclasses.replace(found.check, zeros=None, variances=small))
    )
    assert next(axes for axes in figure.axes if axes.get_label() == "Variances of genes").get_xlim()[1] < 1e-4
    not_evaluated = dataclasses.replace(small, evaluated_g=np.zeros_like(small.evaluated_g))
    diagnosis_figure(dataclasses.replace(found, check=dataclasses.replace(found.check, variances=not_evaluated)))
    assert collapsed.level == "poor"
    assert "zeros" not in [verdict.topic for verdict in collapsed.verdicts]


@pytest.mark.parametrize(
    ("code", "fragment", "options"),
    [
        (USAGE, "--samples is 1", ["--samples", "1"]),
        (USAGE, "--refine is 0", ["--refine", "0"]),
        (USAGE, "--cells is 5", ["--cells", "5"]),
        (USAGE, "--seed is -1", ["--seed", "-1"]),
        (USAGE, "--trainings is 1", ["--trainings", "1"]),
        (USAGE, "--trainings is 0", ["--trainings", "0"]),
        (USAGE, "does not have the extension of a figure", ["--plot", "health.doc"]),
        (DATA, "no column 'type' in obs", ["--labels", "type"]),
    ],
)
def test_invalid_options_are_refused(bench, code, fragment, options):
    assert_refused(bench.folder, bench.args("diagnose", *options), code, fragment)


def test_unsuitable_labels_are_refused_before_the_computation(bench):
    def add_columns(adata):
        adata.obs["one"] = "T"
        adata.obs["barcode"] = adata.obs_names

    bench.change(add_columns)
    for column, count in (("one", "1 label"), ("barcode", "0 labels")):
        command = bench.args("diagnose", "--labels", column)
        assert "--labels takes" in assert_refused(bench.folder, command, DATA, f"obs['{column}'] has {count} ")


def test_advice_depends_on_the_decoder(diagnosed):
    _, _, found = diagnosed
    zeros = dataclasses.replace(found.check.zeros, score_g=np.full_like(found.check.zeros.score_g, 9))
    check = dataclasses.replace(found.check, zeros=zeros, variances=zeros)
    for decoder, advice in (("linear", "--decoder mlp"), ("mlp", "--n-hidden")):
        assert all(advice in verdict.remedy for verdict in likelihood_verdicts(check, "zinb", decoder=decoder))


def test_python_message_uses_the_argument_name(diagnosed):
    adata, model, _ = diagnosed
    with pytest.raises(scvae.ConfigError, match="n_trainings is 1"):
        scvae.diagnose(adata, model, n_trainings=1)


def test_diagnose_requires_known_batches(bench_with_batches):
    def rename_batch(adata):
        adata.obs["batch"] = ["elsewhere"] * adata.n_obs

    bench_with_batches.change(rename_batch)
    assert_refused(
        bench_with_batches.folder, bench_with_batches.args("diagnose"), DATA, "was not trained on batch 'elsewhere'"
    )


def test_single_cell_is_refused(diagnosed):
    adata, model, _ = diagnosed
    with pytest.raises(DataError, match="two or more cells"):
        scvae.diagnose(adata[:1].copy(), model, quick=True)


def test_next_step_for_other_cells_is_not_a_training(bench):
    """Advice to train another model refers to the training cells."""
    adata = anndata.read_h5ad(bench.data)
    adata.obs_names = [f"other_{name}" for name in adata.obs_names]
    other = bench.folder / "other.h5ad"
    adata.write_h5ad(other)
    command = ["diagnose", other, "-m", bench.model, "--quick", "--samples", "4", "--refine", "2"]
    outcome = run_ok(*command)
    assert "the data are not those of the training" in outcome.out
    assert "next: scvae embed" in outcome.err
    run_ok("embed", other, "-m", bench.model)
    assert "next: sc.pp.neighbors" in run_ok(*command).err
