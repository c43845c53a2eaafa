"""Optimizations reach maxima that are known in closed form, and follow simulated cells to the expected branch.

Letters in array shapes: n cells, k latent dimensions, g genes, t steps.
"""

from __future__ import annotations

import math

import anndata as ad
import numpy as np
import pytest
import torch
from command_line import run_ok
from handmade import density_of, flat, points
from simulated import learned
from test_normal_commands import cells_on_a_line
from workbench import DATA, USAGE, assert_refused

import scvae_cli as scvae
from scvae_cli.errors import ConfigError
from scvae_cli.latent.decoding import decode, decoder_at
from scvae_cli.latent.neighbor_graph import cell_graph
from scvae_cli.tools.optimize.gene_program import scorer
from scvae_cli.tools.optimize.gradient_ascent import MAX_LENGTH, MAXIMUM, Region, ascend, kept_inside
from scvae_cli.tools.optimize.options import OptimizeOptions
from scvae_cli.tools.optimize.saddle_points import across_saddle_point

pytestmark = pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")


@pytest.fixture(scope="module")
def adata():
    return learned()[0]


@pytest.fixture(scope="module")
def model():
    return learned()[1]


def euclidean(a_k: torch.Tensor, b_k: torch.Tensor) -> float:
    return float((a_k - b_k).norm())


# --- gradient ascent, where the maximum is known ----------------------------------------------------------------------

MEAN = torch.tensor([0.5, -0.3, 0.2])
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.3, 0.1, 0.5]])


def gaussian(z_nk: torch.Tensor) -> torch.Tensor:
    """Log density of N(MEAN, FACTOR FACTORᵀ)."""
    unit_kn = torch.linalg.solve_triangular(FACTOR, (z_nk - MEAN).T, upper=False)
    return -0.5 * unit_kn.square().sum(0) - FACTOR.logdet() - 1.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("up", [(1.0, 0.0, 0.0), (-0.2, 1.0, 3.0), (0.3, -2.0, 0.1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_linear_score_reaches_the_maximum_over_an_ellipsoid(up, scale):
    """The maximum of a·z on {z: −log N(z; m, Σ) ≤ c} is m + r·Σa / √(aᵀΣa), r² = 2(c − c₀), c₀ the least −log N."""
    up_k, radius = scale * torch.tensor(up), 2.0
    least = float(-gaussian(MEAN[None]))
    region = Region(log_prob=gaussian, limit=least + radius**2 / 2)
    spread_kk = FACTOR @ FACTOR.T
    maximum_k = MEAN + radius * spread_kk @ up_k / (up_k @ spread_kk @ up_k).sqrt()
    found = ascend(lambda z: z @ up_k, MEAN - 0.4, region=region, length=euclidean, max_length=100)
    assert found.stopped == MAXIMUM
    np.testing.assert_allclose(found.z_tk[-1], maximum_k, atol=0.02)
    highest = float(maximum_k @ up_k)
    assert abs(found.score_t[-1] - highest) < 1e-3 * abs(highest - found.score_t[0])
    assert (np.diff(found.score_t) > 0).all()
    assert (-gaussian(points(found.z_tk)) <= region.limit + 2e-4).all()


def test_maximum_inside_is_found_with_and_without_a_region():
    maximum_k = torch.tensor([0.7, -0.1, 0.4])
    for region in (None, Region(log_prob=gaussian, limit=float(-gaussian(MEAN[None])) + 8)):
        found = ascend(
            lambda z: -(z - maximum_k).square().sum(1), MEAN + 0.3, region=region, length=euclidean, max_length=100
        )
        assert found.stopped == MAXIMUM
        np.testing.assert_allclose(found.z_tk[-1], maximum_k, atol=2e-3)


def test_path_without_a_region_is_straight_up_to_its_maximum_length():
    up_k = torch.tensor([0.0, 3.0, 4.0])
    found = ascend(lambda z: z @ up_k, MEAN, region=None, length=euclidean, max_length=7.25)
    assert found.stopped == MAX_LENGTH
    np.testing.assert_allclose(found.z_tk[-1], MEAN + 7.25 * up_k / 5, atol=1e-4)


def test_path_follows_a_curved_region():
    """Cells lie along a half-moon, and one tip has the highest score; the straight line to the tip leaves the cells."""
    angle_n = np.linspace(0, np.pi, 1500)
    moon = 3 * np.stack([np.cos(angle_n), np.sin(angle_n)], axis=1)
    density = density_of(moon + 0.15 * np.random.default_rng(0).standard_normal(moon.shape))
    region = Region(log_prob=density.log_prob, limit=density.nll_at(0.9))
    start_k, up_k = torch.tensor([0.0, 3.0]), torch.tensor([1.0, -0.3])
    found = ascend(lambda z: z @ up_k, start_k, region=region, length=euclidean, max_length=100)
    assert float(density.off_manifold(points(found.z_tk)).max()) <= 0.91
    assert np.linalg.norm(found.z_tk[-1] - moon[0]) < 0.7
    assert np.linalg.norm(found.z_tk, axis=1).min() > 2.4
    unconstrained = ascend(lambda z: z @ up_k, start_k, region=None, length=euclidean, max_length=6)
    assert float(density.off_manifold(points(unconstrained.z_tk[-1:]))) > 0.95


def test_path_that_starts_outside_does_not_go_to_lower_densities():
    region = Region(log_prob=gaussian, limit=float(-gaussian(MEAN[None])) + 0.5)
    start_k = MEAN + FACTOR @ torch.tensor([-3.0, 0.5, 0.0])
    found = ascend(lambda z: z[:, 1], start_k, region=region, length=euclidean, max_length=100)
    nll_t = -gaussian(points(found.z_tk)).numpy()
    assert (np.diff(np.maximum(nll_t, region.limit)) <= 2e-4).all()


def test_positions_outside_the_region_are_moved_inside():
    region = Region(log_prob=gaussian, limit=float(-gaussian(MEAN[None])) + 2)
    z_tk = MEAN + 2 * points(np.random.default_rng(1).standard_normal((20, 3))) @ FACTOR.T
    z_tk[0] = MEAN
    kept_tk = kept_inside(region, z_tk)
    inside_t = -gaussian(z_tk) <= region.limit
    assert 0 < int(inside_t.sum()) < 20
    torch.testing.assert_close(kept_tk[inside_t], z_tk[inside_t])
    assert (-gaussian(kept_tk) <= region.limit + 2e-4).all()


# --- across a saddle point --------------------------------------------------------------------------------------------


def two_normals(z_nk: torch.Tensor) -> torch.Tensor:
    """Log density of two unit normals at (±2.5, 0), half each: the saddle point between them is at 0."""
    squared = [(z_nk - torch.tensor([x, 0.0])).square().sum(1) for x in (-2.5, 2.5)]
    return torch.logsumexp(-torch.stack(squared) / 2, 0) - math.log(4 * math.pi)


@pytest.mark.parametrize(("margin", "found"), [(0.05, True), (-0.05, False)])
def test_path_crosses_the_saddle_point(margin, found):
    rng = np.random.default_rng(0)
    cells_nk = points(rng.standard_normal((600, 2)) + 2.5 * rng.choice([-1, 1], (600, 1)) * [1, 0])
    graph = cell_graph(flat(), cells_nk, always=np.arange(1))
    start_k, end_k = torch.tensor([-2.6, 1.5]), torch.tensor([2.0, 1.5])
    limit = -float(two_normals(torch.zeros(1, 2))) + margin
    path_tk = across_saddle_point(graph, two_normals, start_k, end_k, limit=limit)
    assert (float((-two_normals(path_tk)).max()) <= limit) == found
    # If the limit cannot be kept, the path still crosses near the saddle point.
    assert float((-two_normals(path_tk)).max()) <= limit + 2 * abs(margin)
    assert (path_tk[1:] - path_tk[:-1]).norm(dim=1).max() < 0.15
    torch.testing.assert_close(path_tk[[0, -1]], torch.stack([start_k, end_k]))
    # The density on the straight line between the two positions falls below the limit.
    line_tk = torch.lerp(start_k, end_k, torch.linspace(0, 1, 50)[:, None])
    assert float((-two_normals(line_tk)).max()) > limit


# --- the score --------------------------------------------------------------------------------------------------------


def test_score_is_the_mean_of_standardized_coordinates(adata, model):
    genes = model.genes
    options = OptimizeOptions(
        toward=(genes[3], genes[9]), away=(genes[20],), from_cell="any", library=500, batch_as="batch_2"
    )
    z_nk = points(scvae.embed(adata, model, axes="training", inplace=False).mean_nk)
    score, cell_score_n = scorer(model, options, z_nk)
    with torch.no_grad():
        mean_ng = decoder_at(model, 500, "batch_2")(z_nk).double()
        theta_g = model.vae.decoder.head.log_theta_g.double().exp()
    y_ng = (2 * theta_g.sqrt() * torch.asinh((mean_ng / theta_g).sqrt())).numpy()
    u_ng = (y_ng - y_ng.mean(0)) / y_ng.std(0)
    expected_n = (u_ng[:, 3] + u_ng[:, 9]) / 2 - u_ng[:, 20]
    np.testing.assert_allclose(cell_score_n, expected_n, atol=2e-3)
    with torch.no_grad():
        np.testing.assert_allclose(score(z_nk[:50]), expected_n[:50], atol=2e-3)


def test_gradient_equals_finite_differences(adata, model):
    z_nk = points(scvae.embed(adata, model, axes="training", inplace=False).mean_nk)
    for toward in (model.genes[:4], lambda x_ng: x_ng[:, :5].log().sum(1)):
        score, _ = scorer(model, OptimizeOptions(toward=toward, from_cell="any"), z_nk)
        z_1k = z_nk[:1].clone().requires_grad_(True)
        (slope_1k,) = torch.autograd.grad(score(z_1k).sum(), z_1k)
        for axis in torch.eye(z_nk.shape[1]):
            with torch.no_grad():
                rise = float(score(z_nk[:1] + 0.01 * axis) - score(z_nk[:1] - 0.01 * axis)) / 0.02
            assert rise == pytest.approx(float(slope_1k[0] @ axis), abs=0.02 * float(slope_1k.norm()))


# --- trajectories among cells -----------------------------------------------------------------------------------------


def run_optimize(adata, model, **options):
    """Compute an optimization without writing the result."""
    result = scvae.optimize(
        adata, model, inplace=False, **{"groupby": "cell_type", "group": "stem", "n_steps": 12, "n_starts": 2} | options
    )
    assert result is not None
    return result


@pytest.fixture(scope="module")
def markers(adata):
    """Genes with a much higher expression in a mature branch than in stem cells and in the other branch."""
    types = adata.obs["cell_type"].to_numpy()
    share_ng = np.asarray(adata.X.toarray() / adata.X.sum(1))
    mean = {kind: 3000 * share_ng[types == kind].mean(0) for kind in ("stem", "mature_1", "mature_2")}

    def clearest(fate: str, other: str) -> tuple[str, ...]:
        ratio_g = np.log((mean[fate] + 0.05) / (np.maximum(mean["stem"], mean[other]) + 0.05))
        ratio_g[mean[fate] < 2] = 0
        order = np.argsort(-ratio_g)[:8]
        return tuple(adata.var_names[order[ratio_g[order] > 0.25]])

    return {"mature_1": clearest("mature_1", "mature_2"), "mature_2": clearest("mature_2", "mature_1")}


def test_markers_lead_to_their_branch_through_cells(adata, model, markers):
    result = run_optimize(adata, model, toward=markers["mature_2"])
    assert result.trajectory.steps.groups_passed()[0] == "stem"
    assert result.trajectory.steps.groups_passed()[-1] == "mature_2"
    assert result.trajectory.steps.off_manifold_t.max() <= 0.91
    assert (np.diff(result.score_t) > -0.01).all()
    assert result.share_below > 0.9
    unconstrained = run_optimize(adata, model, toward=markers["mature_2"], unconstrained=True)
    assert unconstrained.trajectory.steps.off_manifold_t.max() > 0.95
    assert unconstrained.score_t[-1] > result.score_t[-1]
    assert unconstrained.score_t[-1] > unconstrained.best_score
    assert unconstrained.extrapolated_from is not None
    assert (unconstrained.score_t[unconstrained.extrapolated_from :] > unconstrained.best_score).all()
    assert unconstrained.score_t[unconstrained.extrapolated_from - 1] <= unconstrained.best_score
    warnings = " ".join(unconstrained.warnings())
    assert f"steps {unconstrained.extrapolated_from}–11 of 0–11 are extrapolated" in warnings
    assert "without --unconstrained" in warnings


def test_away_decreases_the_markers(adata, model, markers):
    away = run_optimize(adata, model, away=markers["mature_2"], group="mature_2")
    columns = np.isin(model.genes, markers["mature_2"])
    assert (away.trajectory.mean_tg[-1, columns] < away.trajectory.mean_tg[0, columns]).all()
    assert away.trajectory.steps.groups_passed()[0] == "mature_2"
    assert "mature_2" not in away.trajectory.steps.groups_passed()[1:]
    both = run_optimize(adata, model, toward=markers["mature_2"], away=markers["mature_1"])
    assert both.trajectory.steps.groups_passed()[-1] == "mature_2"


def test_score_function_is_evaluated_on_the_decoded_steps(adata, model):
    """A function is evaluated on decoded values, and the result repeats to the bit."""

    def first_genes(mean_ng: torch.Tensor) -> torch.Tensor:
        return mean_ng[:, :5].sum(1)

    one, two = (run_optimize(adata, model, toward=first_genes) for _ in range(2))
    np.testing.assert_allclose(one.score_t, one.trajectory.mean_tg[:, :5].sum(1), rtol=1e-4)
    np.testing.assert_array_equal(one.trajectory.z_tk, two.trajectory.z_tk)
    z_nk = scvae.embed(adata, model, axes="training", inplace=False).mean_nk
    expected_n = decode(model, z_nk, "median", "average")[:, :5].sum(1)
    assert one.best_score == pytest.approx(expected_n.max(), rel=1e-3)
    assert one.best_cell == adata.obs_names[expected_n.argmax()]
    assert one.share_below == pytest.approx((expected_n < one.score_t[-1]).mean(), abs=0.01)
    assert one.trajectory.labels == ("stem", "more first_genes")


@pytest.fixture(scope="module")
def ascent_only(adata, model, markers):
    """An optimization from a single start, whose gradient ascent ends at a lower maximum."""
    return run_optimize(adata, model, toward=markers["mature_1"], n_starts=1)


def test_lower_maximum_gives_a_warning(ascent_only):
    assert ascent_only.stopped == MAXIMUM
    assert ascent_only.share_below < 0.99
    warnings = " ".join(ascent_only.warnings())
    assert f"{1 - ascent_only.share_below:.1%} of the cells have a higher score" in warnings
    assert f"best cell {ascent_only.best_cell!r}" in warnings
    assert ascent_only.notes() == []


def test_higher_maximum_beyond_a_saddle_point_is_reached(adata, model, markers, ascent_only):
    at_its_start = str(adata.obs_names[ascent_only.trajectory.steps.nearest_tj[0, 0]])
    for options in ({"group": None, "from_cell": at_its_start}, {"group": "stem"}):
        result = run_optimize(adata, model, toward=markers["mature_1"], **options)
        assert result.score_t[-1] > ascent_only.score_t[-1] + 0.5
        assert result.trajectory.steps.groups_passed()[0] == "stem"
        assert result.trajectory.steps.groups_passed()[-1] == "mature_1"
        assert result.trajectory.steps.off_manifold_t.max() <= 0.91
        assert result.decrease == pytest.approx((np.maximum.accumulate(result.score_t) - result.score_t).max())
    short = run_optimize(adata, model, toward=markers["mature_1"], max_length=0.2 * result.trajectory.steps.length)
    assert short.score_t[-1] < result.score_t[-1] - 0.2


def test_functions_without_a_usable_score_are_refused(adata, model):
    with pytest.raises(ConfigError, match="has no gradient"):
        run_optimize(adata, model, toward=lambda mean_ng: mean_ng.detach().sum(1))
    with pytest.raises(ConfigError, match="does not return one number per cell"):
        run_optimize(adata, model, toward=lambda mean_ng: mean_ng.sum())
    with pytest.raises(ConfigError, match="away cannot be combined with a function"):
        run_optimize(adata, model, toward=lambda mean_ng: mean_ng.sum(1), away=[model.genes[0]])
    with pytest.raises(scvae.DataError, match="the score cannot increase"):
        run_optimize(adata, model, toward=lambda mean_ng: 0 * mean_ng.sum(1))


# --- at the command line ----------------------------------------------------------------------------------------------


def test_slots_are_those_of_a_trajectory_with_scores(bench):
    folder = bench.folder
    arguments = bench.args("optimize", "--toward", "gene_01,gene_02", "--away", "gene_05", "--name", "up/1")
    arguments += ["--groupby", "cell_type", "--group", "stem", "--steps", "12", "--path-out", folder / "steps.h5ad"]
    run_ok(*arguments, "--plot", folder / "up.png")
    found, steps = ad.read_h5ad(bench.data), ad.read_h5ad(folder / "steps.h5ad")
    path = found.uns["scvae"]["paths"]["up_1"]
    assert path["kind"] == "ascent"
    assert path["score"].shape == path["off_manifold"].shape == (12,)
    assert list(path["toward"]) == ["gene_01", "gene_02"]
    assert list(path["away"]) == ["gene_05"]
    assert path["best_cell"] in found.obs_names
    for key in ("", "_low", "_high"):
        assert found.varm[f"scvae_path_up_1{key}"].shape == (found.n_vars, 12)
    assert "scvae_pseudotime_up_1" in found.obs
    np.testing.assert_allclose(steps.obs["score"], path["score"])
    assert (folder / "up.png").read_bytes().startswith(b"\x89PNG")


def test_genes_are_read_from_a_file_and_the_start_may_be_a_cell(bench):
    gene_file = bench.file("program.txt", "gene_01\n\ngene_02\ngene_01\n")
    options = ["--from-cell", "cell_003", "--groupby", "cell_type", "--json"]
    outcome = run_ok(*bench.args("optimize", "--toward", f"@{gene_file}", *options))
    assert '"toward": [\n  "gene_01",\n  "gene_02"\n ]' in outcome.out
    assert '"name": "toward_gene_01"' in outcome.out


GROUP = ["--groupby", "cell_type", "--group", "stem"]


@pytest.mark.parametrize(
    ("code", "fragment", "options"),
    [
        (USAGE, "no gene to increase or to decrease", GROUP),
        (USAGE, "contains no gene names", ["--toward", " ,", *GROUP]),
        (USAGE, "cannot read the gene list none.txt", ["--toward", "@none.txt", *GROUP]),
        (
            USAGE,
            "'gene_01' is in both --toward and --away",
            ["--toward", "gene_01,gene_02", "--away", "gene_01", *GROUP],
        ),
        (USAGE, "an optimization needs --groupby", ["--toward", "gene_01"]),
        (USAGE, "an optimization needs --groupby", ["--toward", "gene_01", "--group", "stem"]),
        (USAGE, "given twice", ["--toward", "gene_01", "--from-cell", "cell_001", *GROUP]),
        (USAGE, "--within is 0.96", ["--toward", "gene_01", "--within", "0.96", *GROUP]),
        (USAGE, "--within is 0", ["--toward", "gene_01", "--within", "0", *GROUP]),
        (USAGE, "--starts is 0", ["--toward", "gene_01", "--starts", "0", *GROUP]),
        (USAGE, "--max-length is 0", ["--toward", "gene_01", "--max-length", "0", *GROUP]),
        (USAGE, "figure.gif", ["--toward", "gene_01", "--plot", "figure.gif", *GROUP]),
        (DATA, "2 genes (Xist, Hbb) are not in the model", ["--toward", "Xist,gene_01,Hbb", *GROUP]),
        (DATA, "'limbo'", ["--toward", "gene_01", "--groupby", "cell_type", "--group", "limbo"]),
        (DATA, "no cell called 'nobody'", ["--toward", "gene_01", "--from-cell", "nobody"]),
        (USAGE, "--library is 'observed'", ["--toward", "gene_01", "--library", "observed", *GROUP]),
    ],
)
def test_invalid_optimizations_are_refused(bench, code, fragment, options):
    assert_refused(bench.folder, bench.args("optimize", *options), code, fragment)


def test_features_of_real_numbers_can_be_optimized():
    adata = cells_on_a_line()
    model = scvae.train(
        adata, likelihood="normal", n_latent=2, n_hidden=32, max_epochs=40, device="cpu", threads=1, seed=0
    )
    feature = str(adata.var_names[np.argmax(np.abs(np.corrcoef(adata.X.T, np.arange(150))[-1, :-1]))])
    result = scvae.optimize(adata, model, toward=feature, groupby="station", group="b", inplace=False)
    column = model.genes.index(feature)
    assert result.trajectory.mean_tg[-1, column] > result.trajectory.mean_tg[0, column]
    assert result.trajectory.steps.off_manifold_t.max() <= 0.92
