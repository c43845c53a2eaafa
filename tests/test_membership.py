"""Cells that belong to a trajectory, compared with known lineages and known distributions.

Letters in array shapes: n cells, k latent dimensions, c components.
"""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch
from handmade import density_of, flat, points
from simulated import TINY, converging_tree, learned, tree

import scvae_cli as scvae
from scvae_cli.data.slots import SlotNames
from scvae_cli.errors import ScvaeWarning
from scvae_cli.latent.gaps import LongestStep
from scvae_cli.latent.neighbor_graph import cell_graph
from scvae_cli.model.density import LatentDensity
from scvae_cli.model.geometry import Geometry
from scvae_cli.model.posterior import Posterior
from scvae_cli.session import Session
from scvae_cli.tools.trajectory.detours import returning_steps
from scvae_cli.tools.trajectory.end_clouds import cloud
from scvae_cli.tools.trajectory.lineage import Lineage, visited_fates
from scvae_cli.tools.trajectory.recorded_orders import recorded_ends, recorded_orders
from scvae_cli.tools.trajectory.steps import along
from scvae_cli.tools.trajectory.walks import Walks

ENDS = ["stem", "mature_1"]


@pytest.fixture(scope="module")
def mixed():
    """Cells of a tree, and among them cells of another tree with unrelated genes."""
    own = tree(n_cells=700, n_genes=150, depth=3000)
    foreign = tree(n_cells=150, n_genes=150, depth=3000, seed=99)
    foreign.obs["cell_type"] = "foreign"
    foreign.obs["true_branch"] = "foreign"
    cells = ad.concat([own, foreign], index_unique="-", keys=["own", "foreign"])
    model = scvae.train(cells, **TINY | {"n_hidden": 64, "max_epochs": 40, "precision": "fp32"}, genes="all")
    return cells, model


@pytest.fixture(scope="module")
def ordered():
    """Cells of a tree, whose order from the stem cells is in the data."""
    adata, model = learned()
    cells = adata.copy()
    scvae.pseudotime(cells, model, groupby="cell_type", root="stem")
    return cells, model


@pytest.fixture(scope="module")
def converged():
    """Cells of two branches whose mature cells are similar; few cells are on the way to the end of the first branch."""
    adata = converging_tree()
    options = {"n_hidden": 64, "max_epochs": 50, "precision": "fp32"}
    return adata, scvae.train(adata, **TINY | options, genes="all")


@pytest.fixture(scope="module")
def trajectory(mixed):
    cells, model = mixed
    return scvae.interpolate(cells, model, groupby="cell_type", groups=ENDS, inplace=False)


def test_cells_of_the_lineage_belong_and_unrelated_cells_do_not(mixed, trajectory):
    obs = mixed[0].obs
    belongs = np.isfinite(trajectory.pseudotime_n)
    lineage = np.isin(obs["true_branch"], ["trunk", "branch_1"])
    sister = (obs["true_branch"] == "branch_2") & (obs["true_pseudotime"] > 0.6)
    assert belongs[lineage].mean() > 0.9
    assert belongs[sister].mean() < 0.3
    assert belongs[obs["cell_type"] == "foreign"].mean() <= 0.02


def test_group_sizes_count_the_cells_that_belong(mixed, trajectory):
    groups = mixed[0].obs["cell_type"][np.isfinite(trajectory.pseudotime_n)]
    assert trajectory.group_sizes == groups[groups != ""].value_counts().loc[lambda n: n > 0].to_dict()
    assert list(trajectory.group_sizes.values()) == sorted(trajectory.group_sizes.values(), reverse=True)


def test_groups_that_are_not_passed_give_a_warning(trajectory):
    assert trajectory.warning_of_groups() is None
    n_cells = int(np.isfinite(trajectory.pseudotime_n).sum())
    many = replace(trajectory, group_sizes={"B": n_cells // 2, "stem": n_cells // 4})
    assert "% of the" in many.warning_of_groups()
    assert f"{n_cells // 2:,} of 'B'" in many.warning_of_groups()
    few = replace(trajectory, group_sizes={"stem": n_cells // 2, "B": n_cells // 8})
    assert few.warning_of_groups() is None


def test_trajectory_that_turns_back_gives_a_warning(mixed, trajectory):
    cells, model = mixed
    assert trajectory.returning is None
    there_and_back = ["stem", "mature_1", "progenitor"]
    with pytest.warns(ScvaeWarning, match="returns to an earlier state"):
        back = scvae.interpolate(cells, model, groupby="cell_type", groups=there_and_back, inplace=False)
    begin, farthest, end = back.returning
    assert begin < farthest < end
    assert back.steps.group_t[farthest] == "mature_1"


def test_steps_without_cells_give_a_warning(mixed, trajectory):
    cells, model = mixed
    assert trajectory.warning_of_gap() is None
    with pytest.warns(ScvaeWarning) as warned:
        with_gap = scvae.interpolate(cells, model, groupby="cell_type", groups=["stem", "foreign"], inplace=False)
    assert any("no cell belongs to steps" in str(warning.message) for warning in warned)
    first, last = with_gap.empty
    position_n = with_gap.pseudotime_n[np.isfinite(with_gap.pseudotime_n)] * (len(with_gap.z_tk) - 1)
    assert not ((position_n > first) & (position_n < last)).any()


def test_trajectory_between_cells_needs_no_groups():
    adata, model = learned()
    stage = adata.obs["cell_type"].to_numpy()
    names = [adata.obs_names[int(np.flatnonzero(stage == group)[0])] for group in ENDS]
    found = scvae.interpolate(adata, model, cells=names, inplace=False)
    belongs = np.isfinite(found.pseudotime_n)
    assert belongs[adata.obs_names.isin(names)].all()
    assert found.group_sizes == {}


def test_cloud_contains_only_its_own_cluster():
    noise = torch.Generator().manual_seed(0)
    first = torch.randn(300, 3, generator=noise) * torch.tensor([2.0, 1.0, 0.1])
    second = torch.randn(100, 3, generator=noise) + torch.tensor([0.0, 15.0, 0.0])
    mean_nk = torch.cat([first, second])
    cells = Posterior(mean_nk, torch.full_like(mean_nk, 1e-4))
    seeds_n = (mean_nk.norm(dim=1) < 1.5).numpy()
    chosen = cloud(cells, np.arange(400), seeds_n)
    assert chosen.max() < 300
    assert len(chosen) > 280
    assert len(cloud(cells, np.arange(300, 400), seeds_n)) == 0


def test_covariance_equals_that_of_the_component():
    covariance_ckk = torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[0.3, 0.0], [0.0, 0.2]]])
    mean_ck = torch.tensor([[0.0, 0.0], [50.0, 0.0]])
    whiten_ckk = torch.linalg.inv(torch.linalg.cholesky(covariance_ckk)).transpose(1, 2)
    density = LatentDensity(torch.tensor([0.5, 0.5]).log(), mean_ck, whiten_ckk, torch.empty(0))
    torch.testing.assert_close(density.covariance(mean_ck), covariance_ckk)


@pytest.mark.parametrize("n_steps", [50, 100, 101, 5000])
def test_return_of_a_path_is_found_for_any_number_of_steps(n_steps):
    at = np.linspace(0, 1, n_steps)
    there_and_back = np.column_stack([1 - np.abs(2 * at - 1), 0.1 * at])
    begin, farthest, end = returning_steps(there_and_back)
    assert np.array([begin, farthest, end]) / (n_steps - 1) == pytest.approx([0, 0.5, 1], abs=0.03)
    assert returning_steps(np.column_stack([at, at**2])) is None


# --- other branches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [50, 500])
def test_groups_of_a_few_cells_are_not_passed(n_steps):
    """Groups are counted along stretches, not at single steps; the groups at the two ends are always listed."""
    at_n = np.linspace(0, 1, 1000)
    line_nk = points(np.column_stack([at_n, np.zeros(1000)]))
    groups_n = np.select([at_n < 0.01, at_n < 0.2, at_n < 0.6, at_n < 0.99], ["start", "", "a", "b"], "end").astype(
        object
    )
    groups_n[groups_n == ""] = None
    groups_n[400:415] = "few"
    z_tk = np.column_stack([np.linspace(0, 1, n_steps), np.zeros(n_steps)])
    density = density_of(np.random.default_rng(0).normal(size=(100, 2)))
    steps = along(flat(), density, line_nk, z_tk, groups_n)
    assert "few" in steps.group_t
    assert steps.groups_passed() == ["start", "a", "b", "end"]


@pytest.mark.parametrize("groups", [["stem", "mature_1"], ["stem", "mature_2"], ["progenitor", "mature_2"]])
def test_true_lineages_give_no_warning(ordered, groups):
    cells, model = ordered
    found = scvae.interpolate(cells, model, groupby="cell_type", groups=groups, inplace=False)
    other = {"mature_1": "2", "mature_2": "1"}[groups[-1]]
    assert not any(group.endswith(other) for group in found.steps.groups_passed())
    assert found.beyond == ()
    assert found.turning is None
    assert found.returning is None
    assert found.empty is None


def test_trajectory_between_two_fates_returns_to_their_progenitor(ordered):
    cells, model = ordered
    with pytest.warns(ScvaeWarning, match="goes back toward 'stem'"):
        found = scvae.interpolate(cells, model, groupby="cell_type", groups=["mature_1", "mature_2"], inplace=False)
    step, root = found.turning
    assert root == "stem"
    time_n = cells.obs["true_pseudotime"].to_numpy()
    time_t = time_n[found.steps.nearest_tj].mean(1)
    assert time_t[step] < min(time_t[0], time_t[-1]) - 0.2
    # A trajectory is not compared with an order that was computed with another model.
    other = replace(model, hash="other")
    assert (
        scvae.interpolate(cells, other, groupby="cell_type", groups=["mature_1", "mature_2"], inplace=False).turning
        is None
    )


def test_end_of_another_branch_on_the_way_gives_a_warning(trajectory):
    assert trajectory.warning_of_groups_beyond() is None
    warning = replace(trajectory, beyond=("sister",)).warning_of_groups_beyond()
    assert "passes 'sister' before 'mature_1'" in warning
    assert "--via" in warning


def test_passed_fates_give_a_warning(trajectory):
    assert trajectory.warning_of_sisters() is None
    passed = replace(trajectory, sisters=("a", "b"))
    assert "that develop into 'a' or 'b' rather than 'mature_1'" in passed.warning_of_sisters()
    assert "into 'b' rather" in replace(passed, beyond=("a",)).warning_of_sisters()
    # If the trajectory passes named groups already, naming a group is no advice.
    assert "with --via" in passed.warning_of_sisters()
    labels = (passed.labels[0], "middle", passed.labels[-1])
    assert "--via" not in replace(passed, labels=labels).warning_of_sisters()
    # One text says whether the trajectory leads through the cells of a fate.
    again = replace(passed, avoided=("b", "c"))
    assert "'a' or 'b' rather than 'mature_1', although it was computed again" in again.warning_of_sisters()
    assert "develop into 'c' rather than 'mature_1'" in again.note_of_avoided()
    assert replace(again, avoided=("a",)).note_of_avoided() is None
    assert replace(passed, beyond=("a", "b")).warning_of_sisters() is None


def test_other_fates_in_via_give_a_warning(ordered):
    cells, model = ordered

    def via(group: str):
        return scvae.interpolate(
            cells, model, groupby="cell_type", groups=["stem", group, "mature_2"], n_steps=20, inplace=False
        )

    assert via("progenitor").visited == ()
    with pytest.warns(ScvaeWarning, match="returns to an earlier state.* again; 'mature_1' is probably an end of"):
        found = via("mature_1")
    assert found.visited == ("mature_1",)
    # The cells on the way to the group that the user named do not count as cells of another fate.
    assert found.sisters == found.avoided == ()
    assert found.warning_of_visits() is None
    assert "check the order of the groups" in replace(found, visited=()).warning_of_return()
    warning = replace(found, returning=None).warning_of_visits()
    assert "'mature_1' is probably an end of other branches" in warning


def test_trajectory_toward_the_root_gives_a_warning(ordered):
    cells, model = ordered
    with pytest.warns(
        ScvaeWarning, match="toward 'stem', where .* begins: if cells develop from 'stem', it runs against"
    ):
        back = scvae.interpolate(
            cells, model, groupby="cell_type", groups=["mature_1", "stem"], n_steps=20, inplace=False
        )
    assert back.turning == (19, "stem")


def test_an_order_from_another_root_does_not_count_if_an_order_begins_at_the_start(ordered):
    cells, model = ordered[0].copy(), ordered[1]
    scvae.pseudotime(cells, model, groupby="cell_type", root="mature_1", name="wrong")
    options = {"groupby": "cell_type", "groups": ["stem", "mature_1"], "n_steps": 20, "inplace": False}
    assert scvae.interpolate(cells, model, **options).turning is None
    for key in list(cells.uns["scvae"]["runs"]):
        if "wrong" not in key:
            del cells.uns["scvae"]["runs"][key]
    with pytest.warns(ScvaeWarning, match="if they do not, compute scvae pseudotime again from the right root"):
        assert scvae.interpolate(cells, model, **options).turning == (19, "mature_1")


def test_ends_of_several_cell_types_are_reported(ordered):
    cells, model = ordered[0].copy(), ordered[1]
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace("mature_2", "mature_1")
    with pytest.warns(ScvaeWarning, match="of the cells of 'mature_1' lie in another cloud than the position"):
        found = scvae.interpolate(cells, model, groupby="cell_type", groups=["stem", "mature_1"], inplace=False)
    ((label, share),) = found.apart
    assert label == "mature_1"
    assert 0.3 < share < 0.7


def test_gaps_are_reported_and_then_no_group_is_called_another_fate(ordered, trajectory):
    """Without the late cells on the way, the order ends at the intermediate cells, which are no other fate."""
    gap = LongestStep(share=0.6, ratio=20.0, before="progenitor", after="mature_1")
    text = replace(trajectory, gap=gap).warning_of_missing_cells()
    assert "gap without cells on the way from 'stem' to 'mature_1'" in text
    assert "(60% of the way, 'progenitor' → 'mature_1')" in text
    cells, model = ordered
    time_n, branch_n = cells.obs["true_pseudotime"], cells.obs["true_branch"]
    kept = (branch_n == "trunk") | ((branch_n == "branch_1") & ((time_n < 0.5) | (time_n > 0.85)))
    some = cells[kept].copy()
    session = Session.open(some, model)
    groups_n = session.labels("cell_type")
    graph = cell_graph(Geometry(model.vae), session.cells.mean_nk, always=np.empty(0, dtype=int))
    walks = Walks.beginning_at(session, graph, int(time_n[kept].to_numpy().argmin()), groups_n)
    named = ["stem", "intermediate_1", "mature_1"]
    assert walks.gap_before("mature_1") is not None
    assert visited_fates(walks, named, fates=()) == []
    assert visited_fates(walks, named, fates=("intermediate_1",)) == ["intermediate_1"]


def test_detours_are_steps_where_the_probability_of_the_end_decreases():
    """Two of the four steps are among cells that develop into other fates; one cell alone is no detour."""
    own = Lineage(
        away_m=np.zeros(8, dtype=bool),
        chance_n=np.array([1, 1, 0.2, 0.1, 0.9, 0.3, 1.5, 2]),
        sister_n=np.array(["a", "a", "a", "b", "a", "b", "a", "a"], dtype=object),
    )
    nearest_tj = np.arange(8).reshape(4, 2)
    assert own.detour(nearest_tj).tolist() == [False, True, True, False]
    assert own.sisters(nearest_tj) == ("b", "a")
    assert own.sisters(nearest_tj[[0, 3]]) == ()
    # Most cells of a step decide, even if the end is very probable for one of them.
    assert own.detour(np.array([[2, 3, 7], [2, 7, 7]])).tolist() == [True, False]


def test_trajectory_avoids_another_branch_that_becomes_alike(converged):
    """The path of least change to the smaller end leads through the other branch, and the trajectory avoids it."""
    cells, model = converged
    found = scvae.interpolate(cells, model, groupby="cell_type", groups=["stem", "mature_1"], inplace=False)
    assert found.avoided == ("mature_2",)
    assert "'mature_2' rather than 'mature_1'" in found.note_of_avoided()
    # Without groups, nothing is known of fates.
    ends = [str(found.nearest_names_tj[t, 0]) for t in (0, -1)]
    least = scvae.interpolate(cells, model, cells=ends, inplace=False)
    assert least.avoided == ()
    other_n = (cells.obs["true_branch"] == "branch_2").to_numpy() & (cells.obs["true_pseudotime"] > 0.5).to_numpy()
    assert other_n[least.steps.nearest_tj].mean() > 0.3
    assert other_n[found.steps.nearest_tj].mean() < 0.1
    true = scvae.interpolate(cells, model, groupby="cell_type", groups=["stem", "mature_2"], inplace=False)
    assert true.beyond == true.avoided == ()


def test_ends_of_a_pseudotime_are_recorded(ordered):
    cells, model = ordered
    session, names = Session.open(cells, model), SlotNames()
    assert recorded_ends(session, names, "cell_type") == frozenset()
    scvae.pseudotime(cells, model, groupby="cell_type", root="stem", ends=["mature_1", "mature_2"], name="ends")
    assert recorded_ends(session, names, "cell_type") == {"mature_1", "mature_2"}
    assert recorded_ends(session, names, "batch") == frozenset()
    assert recorded_ends(replace(session, model=replace(model, hash="other")), names, "cell_type") == frozenset()


def test_overwritten_pseudotime_is_ignored(ordered):
    cells, model = ordered[0].copy(), ordered[1]
    scvae.pseudotime(cells, model, groupby="cell_type", root="stem", name="mine")
    session, names, n = Session.open(cells, model), SlotNames(), cells.n_obs
    before = [root for root, _ in recorded_orders(session, names)]
    for values in (["x"] * n, [7.0] * n, [-1e308] * n, [True, False] * (n // 2) + [True] * (n % 2)):
        cells.obs[names.pseudotime("mine")] = values
        remaining = [root for root, _ in recorded_orders(Session.open(cells, model), names)]
        assert len(remaining) == len(before) - 1, values[0]
