"""The order of cells from a root, and the fates of cells, are compared with the known truth.

Letters in array shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from command_line import run_ok
from handmade import clusters, points
from scipy.stats import spearmanr
from simulated import counts_of, learned
from sklearn.metrics import roc_auc_score

import scvae_cli as scvae
from scvae_cli.data.formats import open_store
from scvae_cli.data.provenance import read_runs
from scvae_cli.data.slots import SlotNames
from scvae_cli.errors import ConfigError, DataError, ScvaeWarning
from scvae_cli.latent import neighbor_graph
from scvae_cli.latent.neighbor_graph import cell_graph, coordinates
from scvae_cli.latent.populations import Population
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.geometry import Geometry
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import silent
from scvae_cli.session import Session
from scvae_cli.tools.pseudotime.figure import means_along, pseudotime_figure
from scvae_cli.tools.pseudotime.ordering import pseudotime
from scvae_cli.tools.pseudotime.result import Pseudotime, default_name

MATURE = ["mature_1", "mature_2"]


@pytest.fixture(scope="module")
def adata():
    return learned()[0]


@pytest.fixture(scope="module")
def model():
    return learned()[1]


@pytest.fixture(scope="module")
def branches(adata, model) -> Pseudotime:
    return ordered(adata, model, root="stem", ends=MATURE)


def ordered(adata, model, **options) -> Pseudotime:
    """Compute an order without writing it."""
    known = {} if "root_cell" in options else {"groupby": "cell_type"}
    result = scvae.pseudotime(adata, model, inplace=False, **known | options)
    assert result is not None
    return result


@pytest.fixture
def order_positions(adata, model):
    """Return a function that orders given latent positions with the decoder of the model."""

    def order(z_nk: np.ndarray, root: Population, ends: tuple[Population, ...] = ()) -> Pseudotime:
        z = points(np.pad(z_nk, ((0, 0), (0, 4 - z_nk.shape[1]))))
        cells, counts = Posterior(z, torch.full_like(z, 1e-3)), counts_of(adata[: len(z)])
        expression = coordinates(Geometry(model.vae), z).numpy()
        session = SimpleNamespace(model=model, counts=counts, cells=cells, expression=expression, progress=silent)
        return pseudotime(session, root, ends, name="planted", seed=0)

    return order


# --- order ------------------------------------------------------------------------------------------------------------


def test_order_on_a_line_equals_the_true_order():
    adata, model = learned(n_branches=1)
    true = adata.obs["true_pseudotime"]
    result = ordered(adata, model, root="stem")
    for value_n in (result.pseudotime_n, result.distance_n):
        assert spearmanr(value_n, true).statistic > 0.9
    assert result.pseudotime_n.min() == 0
    assert result.pseudotime_n.max() == 1
    from_end = ordered(adata, model, root="mature_1")
    assert spearmanr(from_end.pseudotime_n, true).statistic < -0.9
    # The cells of the root are those at the outer end.
    assert true[list(result.root_cells)].mean() < true.quantile(0.15)
    assert true[list(from_end.root_cells)].mean() > true.quantile(0.85)
    assert result.n_components == 1
    assert result.warnings() == []


def test_distances_are_shortest_paths_from_the_root(adata, model):
    root = adata.obs_names[7]
    result = ordered(adata, model, root_cell=root)
    mean_nk = posteriors(model, counts_of(adata)).mean_nk
    graph = cell_graph(Geometry(model.vae), mean_nk, always=np.empty(0, dtype=np.int64))
    reference = nx.single_source_dijkstra_path_length(nx.from_scipy_sparse_array(graph.lengths), 7)
    np.testing.assert_allclose(result.distance_n, [reference[n] for n in range(adata.n_obs)], rtol=1e-4, atol=1e-4)
    assert result.root_cells == (root,)
    assert result.pseudotime_n[7] == 0
    assert result.ends == ()
    assert result.branch_sizes() == {}


def test_fewer_nodes_than_cells_give_the_same_order(adata, model, branches, monkeypatch):
    monkeypatch.setattr(neighbor_graph, "MAX_NODES", 300)
    fewer = ordered(adata, model, root="stem", ends=MATURE)
    assert len(fewer.pseudotime_n) == adata.n_obs
    assert spearmanr(fewer.pseudotime_n, branches.pseudotime_n).statistic > 0.9
    np.testing.assert_allclose(fewer.probability_ne.sum(1), 1, rtol=1e-5)
    assert (fewer.branch_n == branches.branch_n).mean() > 0.7


# --- branches ---------------------------------------------------------------------------------------------------------


def test_branches_lead_to_the_named_ends(adata, branches):
    types, branch = adata.obs["cell_type"].to_numpy(), branches.branch_n
    for end, middle in zip(MATURE, ("intermediate_1", "intermediate_2"), strict=True):
        assert (branch[types == end] == end).mean() > 0.95
        assert (branch[types == middle] == MATURE[1 - MATURE.index(end)]).mean() < 0.1
    between = np.isin(types, ["intermediate_1", "intermediate_2"])
    assert roc_auc_score(types[between] == "intermediate_1", branches.probability_ne[between, 0]) > 0.85
    assert (branch[types == "stem"] == "uncommitted").mean() > 0.95
    assert sum(branches.branch_sizes().values()) == adata.n_obs
    assert list(branches.branch_sizes()) == ["uncommitted", *MATURE]
    for end, cells in zip(MATURE, branches.end_cells, strict=True):
        assert set(adata.obs.loc[list(cells), "cell_type"]) == {end}
    assert set(adata.obs.loc[list(branches.root_cells), "cell_type"]) == {"stem"}


def test_probabilities_sum_to_one_and_determine_the_branch(branches):
    np.testing.assert_allclose(branches.probability_ne.sum(1), 1)
    low_n, high_n = np.sort(branches.probability_ne, axis=1).T
    committed = high_n >= 2 * low_n
    np.testing.assert_array_equal(committed, branches.branch_n != "uncommitted")
    winner = np.asarray(MATURE, dtype=object)[branches.probability_ne.argmax(1)]
    np.testing.assert_array_equal(branches.branch_n[committed], winner[committed])


def test_order_of_the_ends_does_not_matter(adata, model, branches):
    other = ordered(adata, model, root="stem", ends=MATURE[::-1])
    np.testing.assert_allclose(other.probability_ne[:, ::-1], branches.probability_ne, atol=1e-6)
    np.testing.assert_array_equal(other.branch_n, branches.branch_n)


def fork(model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return latent positions, positions along the fork, and positions along the arms.

    A stem splits into two arms, in a plane of latent space whose directions change the expression equally.
    """
    random = np.random.default_rng(0)
    along_n = np.linspace(0, 8, 600)
    arm_n = np.where(along_n > 4, along_n - 4, 0) * np.where(np.arange(600) % 2 == 0, 1, -1)
    path_nk = 0.25 * np.column_stack([along_n, arm_n]) + 0.03 * random.standard_normal((600, 2))
    value_k, axis_kk = np.linalg.eigh(Geometry(model.vae).metric(points(np.zeros((1, 4))))[0].numpy())
    return 4 * path_nk @ (axis_kk[:, 2:] / np.sqrt(value_k[2:])).T, along_n, arm_n


def test_branches_of_a_simulated_fork(model, order_positions):
    z_nk, along_n, arm_n = fork(model)
    cells = np.arange(600)
    result = order_positions(
        z_nk,
        Population(label="root", cells=cells[:60]),
        (
            Population(label="up", cells=cells[540:][arm_n[540:] > 0]),
            Population(label="down", cells=cells[540:][arm_n[540:] < 0]),
        ),
    )
    far = along_n > 5.5
    assert (result.branch_n[far & (arm_n > 0)] == "up").mean() > 0.95
    assert (result.branch_n[far & (arm_n < 0)] == "down").mean() > 0.95
    assert (result.branch_n[along_n < 3.5] == "uncommitted").mean() > 0.6
    assert spearmanr(result.pseudotime_n, along_n).statistic > 0.95


def test_all_cells_are_committed_to_a_single_end(adata, model):
    with pytest.warns(ScvaeWarning, match=r"most probable for their cells: mature_2 \(mature_1\)"):
        result = ordered(adata, model, root="stem", ends=["mature_1"])
    assert set(result.branch_n) == {"mature_1"}
    assert (result.probability_ne == 1).all()


def test_endpoint_selects_the_end_cells(adata, model):
    time = adata.obs["true_pseudotime"]
    types = adata.obs["cell_type"]
    middle = time[types == "mature_1"].mean()
    mean_time, mean_order = {}, {}
    for endpoint in ("extreme", "density", "centroid"):
        result = ordered(adata, model, root="stem", ends=MATURE, endpoint=endpoint)
        cells = list(result.end_cells[0])
        assert set(types[cells]) == {"mature_1"}
        mean_time[endpoint] = time[cells].mean()
        mean_order[endpoint] = result.pseudotime_n[adata.obs_names.get_indexer(cells)].mean()
    assert mean_order["extreme"] > max(mean_order["density"], mean_order["centroid"])
    assert mean_time["extreme"] > middle
    assert abs(mean_time["centroid"] - middle) < 0.05


def test_ends_of_different_sizes_keep_their_cells(adata, model):
    types = adata.obs["cell_type"].astype(str).to_numpy()
    few = np.flatnonzero(types == "mature_2")[5:]
    cells = adata[np.setdiff1d(np.arange(adata.n_obs), few)].copy()
    with pytest.warns(ScvaeWarning, match="cells of the root 'stem' are committed to an end"):
        result = ordered(cells, model, root="stem", ends=MATURE)
    assert (result.branch_n[cells.obs["cell_type"] == "mature_2"] == "mature_2").all()
    assert (result.branch_n[cells.obs["cell_type"] == "mature_1"] == "mature_1").mean() > 0.95


def test_end_of_one_cell_is_represented_by_this_cell(adata, model):
    cells = adata.copy()
    types = cells.obs["cell_type"].astype(str)
    last = cells.obs["true_pseudotime"][types == "mature_2"].idxmax()
    types[(types == "mature_2") & (cells.obs_names != last)] = "unnamed"
    cells.obs["cell_type"] = types
    with pytest.warns(ScvaeWarning, match=r"most probable for their cells: unnamed \(mature_2\)\."):
        result = ordered(cells, model, root="stem", ends=MATURE)
    assert result.end_cells[1] == (last,)
    np.testing.assert_allclose(result.probability_ne.sum(1), 1)
    assert (result.branch_n[types == "unnamed"] == "mature_2").mean() > 0.8


# --- warnings and refusals --------------------------------------------------------------------------------------------


def test_disconnected_components_are_reported(order_positions):
    z_nk = clusters([[-3.0, 0], [3, 0], [3, 4]], 40, 0.1)
    result = order_positions(z_nk, Population(label="root", cells=np.arange(40)))
    assert result.n_components == 3
    assert "3 disconnected components" in result.warnings()[0]
    assert np.isfinite(result.pseudotime_n).all()
    assert result.pseudotime_n[:40].max() < result.pseudotime_n[40:80].min()


def test_ends_in_other_components_keep_their_cells(order_positions):
    z_nk = clusters([[-3.0, 0], [3, 0], [3, 4]], 40, 0.1)
    groups = [Population(label=label, cells=np.arange(40) + 40 * g) for g, label in enumerate(("root", "a", "b"))]
    result = order_positions(z_nk, groups[0], tuple(groups[1:]))
    assert set(result.branch_n[40:80]) == {"a"}
    assert set(result.branch_n[80:]) == {"b"}
    assert np.isfinite(result.probability_ne).all()


def test_an_end_of_two_clouds_gives_a_warning(model, order_positions, branches):
    assert branches.end_shares_apart == (0, 0)
    assert branches.root_share_apart == 0
    z_nk, _, arm_n = fork(model)
    root = Population(label="root", cells=np.arange(60))
    late = np.arange(540, 600)
    both = order_positions(z_nk, root, (Population(label="arms", cells=late),))
    assert both.end_shares_apart == pytest.approx((0.5,), abs=0.05)
    (warning,) = [text for text in both.warnings() if "another cloud" in text]
    assert "% of the cells of 'arms' lie in another cloud" in warning
    one = order_positions(z_nk, root, (Population(label="arm", cells=late[arm_n[late] > 0]),))
    assert one.end_shares_apart == (0.0,)


@pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")
def test_a_label_of_few_cells_is_one_cloud(adata, model):
    """Most neighbors of a cell do not have its label, although the cells lie together."""
    few = adata.copy()
    label = few.obs["cell_type"].astype(str)
    few.obs["few"] = label.where((np.arange(adata.n_obs) % 10 == 0) | (label == "stem"), "other")
    result = ordered(few, model, groupby="few", root="stem", ends=MATURE)
    assert max(result.end_shares_apart) < 0.25


@pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")
def test_ends_in_the_same_place_give_a_warning(adata, model):
    cells = adata.copy()
    types = cells.obs["cell_type"].astype(str).to_numpy()
    mature = np.flatnonzero(np.isin(types, MATURE))
    types[mature] = np.where(np.random.default_rng(0).random(len(mature)) < 0.5, "heads", "tails")
    cells.obs["cell_type"] = types
    result = ordered(cells, model, root="stem", ends=["heads", "tails"])
    assert any("hardly any cell of another group is committed" in text for text in result.warnings())
    between = ~np.isin(np.arange(len(types)), mature)
    assert (result.branch_n[between] == "uncommitted").mean() > 0.9


def test_uncommitted_cells_and_ends_without_cells_give_warnings(branches):
    all_uncommitted = replace(branches, branch_n=np.full(len(branches.branch_n), "uncommitted", dtype=object))
    uncommitted, empty = all_uncommitted.warnings()
    assert "800 of 800 cells are uncommitted" in uncommitted
    assert "no cell is committed to 'mature_1', 'mature_2'" in empty


def test_committed_root_gives_a_warning(branches):
    assert branches.root_branches["uncommitted"] > 0.9 * sum(branches.root_branches.values())
    committed = {"uncommitted": 70, "mature_1": 5, "mature_2": 25}
    (text,) = replace(branches, root_branches=committed).warnings()
    assert "30 of 100 cells of the root 'stem' are committed to an end (25 to 'mature_2', 5 to 'mature_1')" in text
    assert replace(branches, root_branches=committed | {"uncommitted": 200}).warnings() == []
    assert replace(branches, root_branches={}).warnings() == []


def test_end_without_progenitors_gives_a_warning(branches):
    assert all(n > 0 for n in branches.n_committed_outside)
    (warning,) = replace(branches, n_committed_outside=(9, 0)).warnings()
    assert "hardly any cell of another group is committed to 'mature_2' (0): " in warning


def test_python_function_gives_warnings(adata, model, monkeypatch):
    z = points(np.pad(clusters([[-3.0, 0], [3, 0]], 400, 0.1), ((0, 0), (0, 2))))
    monkeypatch.setattr(Session, "embedding", z.numpy())
    monkeypatch.setattr(Session, "cells", Posterior(z, torch.full_like(z, 1e-3)))
    with pytest.warns(ScvaeWarning, match="the neighbor graph has 2 disconnected components"):
        ordered(adata, model, root_cell=adata.obs_names[0])


def test_unknown_roots_and_ends_are_refused(adata, model):
    with pytest.raises(DataError, match="no cells with"):
        ordered(adata, model, root="stem", ends=["nowhere"])
    with pytest.raises(DataError, match="no cell called"):
        ordered(adata, model, root_cell="nobody")


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("the root was given twice", {"groupby": "cell_type", "root": "stem", "root_cell": "cell_001"}),
        ("pseudotime needs root", {"groupby": "cell_type"}),
        ("root names a group, so groupby is needed", {"groupby": None, "root": "stem"}),
        ("ends names groups, so groupby is needed", {"root_cell": "cell_001", "ends": ["mature_1"]}),
        ("'mature_1' was named twice", {"root": "stem", "ends": ["mature_1", "mature_1"]}),
        ("'stem' was named twice", {"root": "stem", "ends": ["stem"]}),
        ("no group in ends may be called 'uncommitted'", {"root": "stem", "ends": ["mature_1", "uncommitted"]}),
        ("seed is -1", {"root": "stem", "seed": -1}),
    ],
)
def test_invalid_options_are_refused(adata, model, message, options):
    with pytest.raises(ConfigError, match=message) as error:
        ordered(adata, model, **options)
    assert "--" not in error.value.hint


def test_root_may_be_called_uncommitted(adata, model):
    cells = adata.copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace("mature_2", "uncommitted")
    with pytest.warns(ScvaeWarning, match="as far from the root"):  # the other cells lie between two mature groups
        assert ordered(cells, model, root="uncommitted", ends=["mature_1"]).root == "uncommitted"


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_order_of_few_cells(adata, model, n):
    result = ordered(adata[:n].copy(), model, root_cell=adata.obs_names[0])
    assert len(result.pseudotime_n) == n
    assert np.isfinite(result.pseudotime_n).all()
    assert result.distance_n[0] == 0


def test_order_of_identical_cells(model, adata):
    same = adata[np.zeros(40, dtype=int)].copy()
    same.obs_names_make_unique()
    result = ordered(same, model, root_cell=same.obs_names[0])
    assert np.isfinite(result.pseudotime_n).all()
    assert result.distance_n.max() < 1e-3


# --- slots ------------------------------------------------------------------------------------------------------------


def written(adata, model, tmp_path, *, file: bool, **options) -> ad.AnnData:
    """The cells with a written order, after a round trip through a file."""
    cells, path = adata.copy(), tmp_path / "cells.h5ad"
    if file:
        cells.write_h5ad(path)
        scvae.pseudotime(path, model, **{"groupby": "cell_type"} | options)
    else:
        scvae.pseudotime(cells, model, **{"groupby": "cell_type"} | options)
        cells.write_h5ad(path)
    return ad.read_h5ad(path)


@pytest.mark.parametrize("file", [False, True], ids=["memory", "file"])
def test_slots_contain_the_order(adata, model, branches, tmp_path, file):
    cells = written(adata, model, tmp_path, file=file, root="stem", ends=MATURE)
    np.testing.assert_allclose(cells.obs["scvae_pseudotime_from_stem"], branches.pseudotime_n, atol=1e-6)
    np.testing.assert_allclose(cells.obs["scvae_distance_from_stem"], branches.distance_n, rtol=1e-5, atol=1e-5)
    column = cells.obs["scvae_branch_from_stem"]
    assert column.dtype == "category"
    assert set(column.cat.categories) == {"uncommitted", *MATURE}
    np.testing.assert_array_equal(column.astype(str), branches.branch_n)
    np.testing.assert_allclose(cells.obsm["scvae_ends_from_stem"], branches.probability_ne, atol=1e-5)
    assert list(cells.uns["scvae"]["runs"]) == ["pseudotime_from_stem"]


@pytest.mark.parametrize("file", [False, True], ids=["memory", "file"])
def test_order_without_ends_has_no_branches(adata, model, tmp_path, file):
    cells = written(adata, model, tmp_path, file=file, root="stem", name="order", key_added="wide")
    assert {"wide_pseudotime_order", "wide_distance_order"} <= set(cells.obs)
    assert not any("branch" in key for key in cells.obs if key.startswith("wide"))
    assert not list(cells.obsm)


@pytest.mark.parametrize("file", [False, True], ids=["memory", "file"])
def test_dropped_cells_have_no_pseudotime_and_no_branch(adata, model, tmp_path, file):
    emptied = adata.copy()
    emptied.X = sp.csr_matrix(emptied.X.multiply(np.arange(adata.n_obs)[:, None] >= 2))
    cells = written(emptied, model, tmp_path, file=file, root="stem", ends=MATURE, drop_empty=True)
    assert cells.obs["scvae_pseudotime_from_stem"].isna().sum() == 2
    assert cells.obs["scvae_branch_from_stem"].isna().to_numpy().nonzero()[0].tolist() == [0, 1]
    assert set(cells.obs["scvae_branch_from_stem"].cat.categories) == {"uncommitted", *MATURE}
    assert np.isnan(cells.obsm["scvae_ends_from_stem"]).all(1).nonzero()[0].tolist() == [0, 1]


@pytest.mark.parametrize("file", [False, True], ids=["memory", "file"])
def test_branches_of_an_earlier_run_are_recorded_as_earlier(adata, model, tmp_path, file):
    """Branches of an earlier order remain in the data, but the record of an order without ends does not list them."""
    cells, names, path = adata.copy(), SlotNames(), tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    options = {"root": "stem", "groupby": "cell_type"}
    older, newer = (replace(model, hash=name) for name in ("older", "newer"))
    data = path if file else cells

    def record() -> dict[str, object]:
        return read_runs(open_store(data))["pseudotime_from_stem"]

    scvae.pseudotime(data, older, ends=MATURE, **options)
    complete = record()
    earlier = {f"obs/{names.branch('from_stem')}": "older", f"obsm/{names.end_weights('from_stem')}": "older"}
    assert set(earlier) < set(complete["slots"])
    for _ in range(2):
        with pytest.warns(ScvaeWarning, match="obsm/scvae_ends_from_stem of .* from an earlier run"):
            scvae.pseudotime(data, newer, **options)
        assert set(record()["slots"]) == set(complete["slots"]) - set(earlier)
        assert record()["earlier"] == earlier
    if file:
        assert "of model older: obs/scvae_branch_from_stem" in run_ok("info", path).out
    scvae.pseudotime(data, older, ends=MATURE, **options)
    assert record() == complete


def test_default_name_replaces_slashes():
    assert default_name("a/b") == "from_a_b"


# --- figure -----------------------------------------------------------------------------------------------------------


def test_figure_shows_order_branches_and_genes(adata, model, branches, tmp_path):
    file = tmp_path / "order.png"
    options = {"groupby": "cell_type", "root": "stem", "ends": MATURE, "genes": list(adata.var_names[:5])}
    result = scvae.pseudotime(adata.copy(), model, plot=file, inplace=False, **options)
    np.testing.assert_array_equal(result.branch_n, branches.branch_n)
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="exists"):
        scvae.pseudotime(adata.copy(), model, plot=file, inplace=False, **options)


@pytest.mark.parametrize("with_ends", [True, False])
def test_panels_of_the_figure(adata, branches, with_ends):
    result = branches if with_ends else replace(branches, ends=(), probability_ne=branches.probability_ne[:, :0])
    genes = ["rising", "$x$ and a name that is long enough to be shortened", "low"]
    count_nc = np.column_stack([10 * result.pseudotime_n, np.ones(adata.n_obs), np.zeros(adata.n_obs)])
    xy_n2 = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    groups_n = adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    groups_n[:9] = None
    options = {"groups_n": groups_n, "genes": genes, "count_nc": count_nc}
    figure = pseudotime_figure(result, xy_n2, ("UMAP 1", "UMAP 2"), **options)
    labels = [axes.get_label() for axes in figure.axes]
    assert ("Most probable end" in labels) == with_ends
    assert ("Groups" in labels) != with_ends
    (key,) = [axes for axes in figure.axes if axes.get_label() == "legend"]
    names = ["uncommitted", *MATURE] if with_ends else sorted(set(groups_n) - {None})
    assert sorted(text.get_text().rsplit(" (", 1)[0] for text in key.texts) == sorted(names)
    (rising,) = [axes for axes in figure.axes if axes.get_label() == "gene rising"]
    names = MATURE if with_ends else ["all"]
    assert [line.get_gid() for line in rising.lines] == [f"{n}{part}" for n in names for part in (", few cells", "")]
    for line in rising.lines[1::2]:
        at_q, mean_q = line.get_data()
        shown_q = np.isfinite(mean_q) & (at_q > 0.15) & (at_q < 0.85)
        np.testing.assert_allclose(mean_q[shown_q], 10 * at_q[shown_q], atol=1)
    assert figure.get_tightbbox().x1 <= figure.get_size_inches()[0] + 0.05


def test_means_along_the_order_equal_means_of_near_cells():
    time_n = np.linspace(0, 1, 4000)
    value_n = np.sin(5 * time_n)
    at_q = np.linspace(0.15, 0.85, 9)
    mean_q, cells_q = means_along(time_n, value_n, np.ones(4000), at_q)
    np.testing.assert_allclose(mean_q, np.sin(5 * at_q), atol=0.04)
    # The integral of the weights of 4,000 cells per unit of pseudotime.
    np.testing.assert_allclose(cells_q, 4000 * 0.05 * np.sqrt(2 * np.pi), rtol=0.01)
    mean_q, cells_q = means_along(time_n, value_n, np.zeros(4000), at_q)
    assert (cells_q == 0).all()
    assert np.isfinite(mean_q).all()


def test_curves_end_where_few_cells_have_weight(branches):
    """The cells of one end are few in the second half of the order, and very few at its end."""
    pseudotime_n = np.concatenate([np.linspace(0, 0.5, 780), np.linspace(0.5, 0.75, 20)])
    probability_ne = np.tile([1.0, 0.0], (800, 1))
    result = replace(branches, pseudotime_n=pseudotime_n, probability_ne=probability_ne)
    options = {"genes": ["one"], "count_nc": np.ones((800, 1))}
    figure = pseudotime_figure(result, np.random.default_rng(0).normal(size=(800, 2)), ("x", "y"), **options)
    (axes,) = [axes for axes in figure.axes if axes.get_label() == "gene one"]
    faint, solid, *other = (line.get_data() for line in axes.lines)
    assert 0.45 < solid[0][np.isfinite(solid[1])].max() < faint[0][np.isfinite(faint[1])].max() < 0.75
    assert all(np.isnan(line[1]).all() for line in other)


def test_genes_require_a_figure_and_must_be_in_the_model(adata, model, tmp_path):
    with pytest.raises(ConfigError, match="genes was given without plot"):
        ordered(adata, model, root="stem", genes=["gene_001"])
    with pytest.raises(DataError, match="not in the model"):
        ordered(adata, model, root="stem", genes=["nothing"], plot=tmp_path / "order.png")


@pytest.mark.parametrize("missing", [False, True])
def test_umap_of_embed_is_preferred_to_that_of_scanpy(missing):
    cells, model = learned()
    cells = cells.copy()
    session = Session.open(cells, model)
    assert session.umap() is None
    scanpy_umap, own_umap = np.random.default_rng(0).normal(size=(2, cells.n_obs, 2))
    cells.obsm["X_umap"] = scanpy_umap
    np.testing.assert_array_equal(Session.open(cells, model).umap(), scanpy_umap)
    own_umap[3] = np.nan if missing else 0
    cells.obsm["X_umap_scvae"] = own_umap
    np.testing.assert_array_equal(Session.open(cells, model).umap(), scanpy_umap if missing else own_umap)
