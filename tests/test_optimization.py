"""Walks uphill, where the top is known: against closed forms, and what a walk among simulated cells must keep to.

Shapes: n cells, k latent dimensions, g genes, t steps.
"""

from __future__ import annotations

import math

import anndata as ad
import numpy as np
import pytest
import torch
from command_line import run_well
from handmade import density_of, flat, points
from simulated import learned
from test_normal_commands import line
from workbench import DATA, USAGE, refused

import scvae_cli as scvae
from scvae_cli.errors import ConfigError
from scvae_cli.latent.decoding import decoder_at
from scvae_cli.latent.neighbor_graph import cell_graph
from scvae_cli.tools.optimize.gene_program import Programme, scorer
from scvae_cli.tools.optimize.gradient_ascent import LENGTH, TOP, Region, ascend, kept_inside
from scvae_cli.tools.optimize.saddle_points import over_the_pass

pytestmark = pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")


@pytest.fixture(scope="module")
def adata():
    return learned()[0]


@pytest.fixture(scope="module")
def model():
    return learned()[1]


def euclidean(a_k: torch.Tensor, b_k: torch.Tensor) -> float:
    return float((a_k - b_k).norm())


# --- the climb, where its top is known --------------------------------------------------------------------------------

MEAN = torch.tensor([0.5, -0.3, 0.2])
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.3, 0.1, 0.5]])


def gaussian(z_nk: torch.Tensor) -> torch.Tensor:
    """Log density of N(MEAN, FACTOR FACTORᵀ)."""
    unit_kn = torch.linalg.solve_triangular(FACTOR, (z_nk - MEAN).T, upper=False)
    return -0.5 * unit_kn.square().sum(0) - FACTOR.logdet() - 1.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("up", [(1.0, 0.0, 0.0), (-0.2, 1.0, 3.0), (0.3, -2.0, 0.1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_linear_score_over_an_ellipsoid(up, scale):
    """The top of a·z on {z: −log N(z; m, Σ) ≤ c} is m + r·Σa / √(aᵀΣa), r² = 2(c − c₀), c₀ the least −log N."""
    up_k, radius = scale * torch.tensor(up), 2.0
    least = float(-gaussian(MEAN[None]))
    region = Region(log_prob=gaussian, limit=least + radius**2 / 2)
    spread_kk = FACTOR @ FACTOR.T
    top_k = MEAN + radius * spread_kk @ up_k / (up_k @ spread_kk @ up_k).sqrt()
    found = ascend(lambda z: z @ up_k, MEAN - 0.4, region=region, length=euclidean, max_length=100)
    assert found.stopped == TOP
    np.testing.assert_allclose(found.z_tk[-1], top_k, atol=0.02)
    highest = float(top_k @ up_k)
    assert abs(found.score_t[-1] - highest) < 1e-3 * abs(highest - found.score_t[0])
    assert (np.diff(found.score_t) > 0).all()
    assert (-gaussian(points(found.z_tk)) <= region.limit + 2e-4).all()


def test_a_top_inside_is_found_with_and_without_a_region():
    top_k = torch.tensor([0.7, -0.1, 0.4])
    for region in (None, Region(log_prob=gaussian, limit=float(-gaussian(MEAN[None])) + 8)):
        found = ascend(
            lambda z: -(z - top_k).square().sum(1), MEAN + 0.3, region=region, length=euclidean, max_length=100
        )
        assert found.stopped == TOP
        np.testing.assert_allclose(found.z_tk[-1], top_k, atol=2e-3)


def test_without_a_region_it_goes_straight_up_until_its_length_is_used():
    up_k = torch.tensor([0.0, 3.0, 4.0])
    found = ascend(lambda z: z @ up_k, MEAN, region=None, length=euclidean, max_length=7.25)
    assert found.stopped == LENGTH
    np.testing.assert_allclose(found.z_tk[-1], MEAN + 7.25 * up_k / 5, atol=1e-4)


def test_it_keeps_to_bent_cells():
    """Along a half-moon of cells, whose far tip lies highest: the straight way up leads off it."""
    angle_n = np.linspace(0, np.pi, 1500)
    moon = 3 * np.stack([np.cos(angle_n), np.sin(angle_n)], axis=1)
    density = density_of(moon + 0.15 * np.random.default_rng(0).standard_normal(moon.shape))
    region = Region(log_prob=density.log_prob, limit=density.nll_at(0.9))
    start_k, up_k = torch.tensor([0.0, 3.0]), torch.tensor([1.0, -0.3])
    found = ascend(lambda z: z @ up_k, start_k, region=region, length=euclidean, max_length=100)
    assert float(density.off_manifold(points(found.z_tk)).max()) <= 0.91
    assert np.linalg.norm(found.z_tk[-1] - moon[0]) < 0.7
    assert np.linalg.norm(found.z_tk, axis=1).min() > 2.4
    free = ascend(lambda z: z @ up_k, start_k, region=None, length=euclidean, max_length=6)
    assert float(density.off_manifold(points(free.z_tk[-1:]))) > 0.95


def test_a_walk_that_starts_outside_goes_no_farther_out():
    region = Region(log_prob=gaussian, limit=float(-gaussian(MEAN[None])) + 0.5)
    start_k = MEAN + FACTOR @ torch.tensor([-3.0, 0.5, 0.0])
    found = ascend(lambda z: z[:, 1], start_k, region=region, length=euclidean, max_length=100)
    nll_t = -gaussian(points(found.z_tk)).numpy()
    assert (np.diff(np.maximum(nll_t, region.limit)) <= 2e-4).all()


def test_places_between_are_brought_back():
    region = Region(log_prob=gaussian, limit=float(-gaussian(MEAN[None])) + 2)
    z_tk = MEAN + 2 * points(np.random.default_rng(1).standard_normal((20, 3))) @ FACTOR.T
    z_tk[0] = MEAN
    kept_tk = kept_inside(region, z_tk)
    inside_t = -gaussian(z_tk) <= region.limit
    assert 0 < int(inside_t.sum()) < 20
    torch.testing.assert_close(kept_tk[inside_t], z_tk[inside_t])
    assert (-gaussian(kept_tk) <= region.limit + 2e-4).all()


# --- over a pass ------------------------------------------------------------------------------------------------------


def two_hills(z_nk: torch.Tensor) -> torch.Tensor:
    """Log density of two unit normals at (±2.5, 0), half each: the lowest pass between them is at 0."""
    squared = [(z_nk - torch.tensor([x, 0.0])).square().sum(1) for x in (-2.5, 2.5)]
    return torch.logsumexp(-torch.stack(squared) / 2, 0) - math.log(4 * math.pi)


@pytest.mark.parametrize(("room", "found"), [(0.05, True), (-0.05, False)])
def test_a_way_leads_over_the_lowest_pass_where_that_is_within_the_limit(room, found):
    rng = np.random.default_rng(0)
    cells_nk = points(rng.standard_normal((600, 2)) + 2.5 * rng.choice([-1, 1], (600, 1)) * [1, 0])
    graph = cell_graph(flat(), cells_nk, always=np.arange(1))
    start_k, end_k = torch.tensor([-2.6, 1.5]), torch.tensor([2.0, 1.5])
    limit = -float(two_hills(torch.zeros(1, 2))) + room
    way_tk = over_the_pass(graph, two_hills, start_k, end_k, limit=limit)
    assert (way_tk is not None) == found
    if way_tk is not None:
        assert float((-two_hills(way_tk)).max()) <= limit
        assert (way_tk[1:] - way_tk[:-1]).norm(dim=1).max() < 0.15
        torch.testing.assert_close(way_tk[[0, -1]], torch.stack([start_k, end_k]))
        # On the straight line between the two it would be emptier.
        line_tk = torch.lerp(start_k, end_k, torch.linspace(0, 1, 50)[:, None])
        assert float((-two_hills(line_tk)).max()) > limit


# --- the score --------------------------------------------------------------------------------------------------------


def test_score_is_the_mean_of_standardised_coordinates(adata, model):
    genes = model.genes
    programme = Programme(toward=(genes[3], genes[9]), away=(genes[20],))
    z_nk = points(scvae.embed(adata, model, axes="training", inplace=False).mean_nk)
    score, cell_score_n = scorer(model, programme, z_nk, library=500, batch_as="batch_2")
    with torch.no_grad():
        mean_ng = decoder_at(model, 500, "batch_2")(z_nk).double()
        theta_g = model.vae.decoder.head.log_theta_g.double().exp()
    y_ng = (2 * theta_g.sqrt() * torch.asinh((mean_ng / theta_g).sqrt())).numpy()
    u_ng = (y_ng - y_ng.mean(0)) / y_ng.std(0)
    expected_n = (u_ng[:, 3] + u_ng[:, 9]) / 2 - u_ng[:, 20]
    np.testing.assert_allclose(cell_score_n, expected_n, atol=2e-3)
    with torch.no_grad():
        np.testing.assert_allclose(score(z_nk[:50]), expected_n[:50], atol=2e-3)


def test_gradient_is_that_of_differences(adata, model):
    z_nk = points(scvae.embed(adata, model, axes="training", inplace=False).mean_nk)
    for programme in (Programme(toward=model.genes[:4]), Programme(toward=lambda x_ng: x_ng[:, :5].log().sum(1))):
        score, _ = scorer(model, programme, z_nk, library="median", batch_as="average")
        z_1k = z_nk[:1].clone().requires_grad_(True)
        (slope_1k,) = torch.autograd.grad(score(z_1k).sum(), z_1k)
        for axis in torch.eye(z_nk.shape[1]):
            with torch.no_grad():
                rise = float(score(z_nk[:1] + 0.01 * axis) - score(z_nk[:1] - 0.01 * axis)) / 0.02
            assert rise == pytest.approx(float(slope_1k[0] @ axis), abs=0.02 * float(slope_1k.norm()))


# --- walks among cells ------------------------------------------------------------------------------------------------


def climbed(adata, model, **options):
    """A walk that writes nothing."""
    result = scvae.optimize(
        adata, model, inplace=False, **{"groupby": "cell_type", "group": "stem", "n_steps": 12, "n_starts": 2} | options
    )
    assert result is not None
    return result


@pytest.fixture(scope="module")
def markers(adata):
    """Genes that are plainly higher in a mature branch than in stem cells and in the other branch."""
    types = adata.obs["cell_type"].to_numpy()
    share_ng = np.asarray(adata.X.toarray() / adata.X.sum(1))
    mean = {kind: 3000 * share_ng[types == kind].mean(0) for kind in ("stem", "mature_1", "mature_2")}

    def plainest(fate: str, other: str) -> tuple[str, ...]:
        ratio_g = np.log((mean[fate] + 0.05) / (np.maximum(mean["stem"], mean[other]) + 0.05))
        ratio_g[mean[fate] < 2] = 0
        order = np.argsort(-ratio_g)[:8]
        return tuple(adata.var_names[order[ratio_g[order] > 0.25]])

    return {"mature_1": plainest("mature_1", "mature_2"), "mature_2": plainest("mature_2", "mature_1")}


def test_markers_lead_to_their_branch_along_cells(adata, model, markers):
    result = climbed(adata, model, toward=markers["mature_2"])
    assert result.walk.steps.groups_passed()[0] == "stem"
    assert result.walk.steps.groups_passed()[-1] == "mature_2"
    assert result.walk.steps.off_manifold_t.max() <= 0.91
    assert (np.diff(result.score_t) > -0.01).all()
    assert result.below > 0.9
    free = climbed(adata, model, toward=markers["mature_2"], unconstrained=True)
    assert free.walk.steps.off_manifold_t.max() > 0.95
    assert free.score_t[-1] > result.score_t[-1]
    assert free.score_t[-1] > free.best_score
    assert free.beyond is not None
    assert (free.score_t[free.beyond :] > free.best_score).all()
    assert free.score_t[free.beyond - 1] <= free.best_score
    said = " ".join(free.warnings())
    assert f"extrapolated: from step {free.beyond} of 0 to 11 on" in said
    assert "leave out --unconstrained" in said


def test_away_leads_away(adata, model, markers):
    away = climbed(adata, model, away=markers["mature_2"], group="mature_2")
    columns = np.isin(model.genes, markers["mature_2"])
    assert (away.walk.mean_tg[-1, columns] < away.walk.mean_tg[0, columns]).all()
    assert away.walk.steps.groups_passed()[0] == "mature_2"
    assert "mature_2" not in away.walk.steps.groups_passed()[1:]
    both = climbed(adata, model, toward=markers["mature_2"], away=markers["mature_1"])
    assert both.walk.steps.groups_passed()[-1] == "mature_2"


def test_scores_are_those_of_the_decoded_steps(adata, model):
    """A property is measured on what is decoded, and its walk repeats to the bit."""

    def first_genes(mean_ng: torch.Tensor) -> torch.Tensor:
        return mean_ng[:, :5].sum(1)

    one, two = (climbed(adata, model, toward=first_genes) for _ in range(2))
    np.testing.assert_allclose(one.score_t, one.walk.mean_tg[:, :5].sum(1), rtol=1e-4)
    np.testing.assert_array_equal(one.walk.z_tk, two.walk.z_tk)
    expected_n = scvae.denoise(adata, model, n_samples=0, library="median", inplace=False).rows.whole()[:, :5].sum(1)
    assert one.best_score == pytest.approx(expected_n.max(), rel=1e-3)
    assert one.best_cell == adata.obs_names[expected_n.argmax()]
    assert one.below == pytest.approx((expected_n < one.score_t[-1]).mean(), abs=0.01)
    assert one.walk.labels == ("stem", "more first_genes")


@pytest.fixture(scope="module")
def uphill_only(adata, model, markers):
    """A climb that ends on a lower top."""
    return climbed(adata, model, toward=markers["mature_1"], n_starts=1)


def test_a_lower_top_is_told(uphill_only):
    assert uphill_only.stopped == TOP
    assert uphill_only.below < 0.99
    said = " ".join(uphill_only.advice())
    assert f"{1 - uphill_only.below:.1%} of the cells score higher ({uphill_only.best_cell!r} highest" in said
    assert "over a pass" not in said


def test_a_top_that_no_climb_leads_to_is_reached_over_a_pass(adata, model, markers, uphill_only):
    at_its_start = str(adata.obs_names[uphill_only.walk.steps.nearest_tj[0, 0]])
    for options in ({"group": None, "from_cell": at_its_start}, {"group": "stem"}):
        result = climbed(adata, model, toward=markers["mature_1"], **options)
        assert result.score_t[-1] > uphill_only.score_t[-1] + 0.5
        assert result.walk.steps.groups_passed()[0] == "stem"
        assert result.walk.steps.groups_passed()[-1] == "mature_1"
        assert result.walk.steps.off_manifold_t.max() <= 0.91
        assert result.fall == pytest.approx((np.maximum.accumulate(result.score_t) - result.score_t).max())
    short = climbed(adata, model, toward=markers["mature_1"], max_length=0.2 * result.walk.steps.length)
    assert short.score_t[-1] < result.score_t[-1] - 0.2


def test_functions_that_give_no_score_are_refused(adata, model):
    with pytest.raises(ConfigError, match="has no gradient"):
        climbed(adata, model, toward=lambda mean_ng: mean_ng.detach().sum(1))
    with pytest.raises(ConfigError, match="no number for each row"):
        climbed(adata, model, toward=lambda mean_ng: mean_ng.sum())
    with pytest.raises(ConfigError, match="let the function lower them"):
        climbed(adata, model, toward=lambda mean_ng: mean_ng.sum(1), away=[model.genes[0]])
    with pytest.raises(scvae.DataError, match="rises in no direction"):
        climbed(adata, model, toward=lambda mean_ng: 0 * mean_ng.sum(1))


# --- at the command line ----------------------------------------------------------------------------------------------


def test_slots_are_those_of_a_walk_with_scores(bench):
    folder = bench.folder
    arguments = bench.ask("optimize", "--toward", "gene_01,gene_02", "--away", "gene_05", "--name", "up/1")
    arguments += ["--groupby", "cell_type", "--group", "stem", "--steps", "12", "--path-out", folder / "steps.h5ad"]
    run_well(*arguments, "--plot", folder / "up.png")
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


def test_a_programme_from_a_file_and_a_start_at_a_cell(bench):
    listed = bench.file("programme.txt", "gene_01\n\ngene_02\ngene_01\n")
    asked = ["--from-cell", "cell_003", "--groupby", "cell_type", "--json"]
    outcome = run_well(*bench.ask("optimize", "--toward", f"@{listed}", *asked))
    assert '"toward": [\n  "gene_01",\n  "gene_02"\n ]' in outcome.out
    assert '"name": "toward_gene_01"' in outcome.out


GROUP = ["--groupby", "cell_type", "--group", "stem"]


@pytest.mark.parametrize(
    ("code", "fragment", "options"),
    [
        (USAGE, "no gene to raise or to lower", GROUP),
        (USAGE, "names no gene", ["--toward", " ,", *GROUP]),
        (USAGE, "cannot read the gene list none.txt", ["--toward", "@none.txt", *GROUP]),
        (USAGE, "'gene_01' is to rise and to fall", ["--toward", "gene_01,gene_02", "--away", "gene_01", *GROUP]),
        (USAGE, "a walk needs --groupby", ["--toward", "gene_01"]),
        (USAGE, "a walk needs --groupby", ["--toward", "gene_01", "--group", "stem"]),
        (USAGE, "given twice", ["--toward", "gene_01", "--from-cell", "cell_001", *GROUP]),
        (USAGE, "--within is 0.96", ["--toward", "gene_01", "--within", "0.96", *GROUP]),
        (USAGE, "--within is 0", ["--toward", "gene_01", "--within", "0", *GROUP]),
        (USAGE, "--starts is 0", ["--toward", "gene_01", "--starts", "0", *GROUP]),
        (USAGE, "--max-length is 0", ["--toward", "gene_01", "--max-length", "0", *GROUP]),
        (USAGE, "does not have the extension of a figure", ["--toward", "gene_01", "--plot", "walk.gif", *GROUP]),
        (DATA, "gene 'Xist' is not in the model (nor 1 more)", ["--toward", "Xist,gene_01,Hbb", *GROUP]),
        (DATA, "'limbo'", ["--toward", "gene_01", "--groupby", "cell_type", "--group", "limbo"]),
        (DATA, "no cell called 'nobody'", ["--toward", "gene_01", "--from-cell", "nobody"]),
        (DATA, "no observed library size", ["--toward", "gene_01", "--library", "observed", *GROUP]),
    ],
)
def test_walks_that_cannot_be_meant(bench, code, fragment, options):
    refused(bench.folder, bench.ask("optimize", *options), code, fragment)


def test_features_of_real_numbers_are_climbed_too():
    adata = line()
    model = scvae.train(
        adata, likelihood="normal", n_latent=2, n_hidden=32, max_epochs=40, device="cpu", threads=1, seed=0
    )
    feature = str(adata.var_names[np.argmax(np.abs(np.corrcoef(adata.X.T, np.arange(150))[-1, :-1]))])
    result = scvae.optimize(adata, model, toward=feature, groupby="station", group="b", inplace=False)
    column = model.genes.index(feature)
    assert result.walk.mean_tg[-1, column] > result.walk.mean_tg[0, column]
    assert result.walk.steps.off_manifold_t.max() <= 0.92
