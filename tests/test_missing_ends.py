"""Missing cells, ends that are not named, and labels of several cell types are found in planted and simulated data.

Letters in array shapes: m nodes, k dimensions, e ends.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from handmade import points
from simulated import learned

import scvae_cli as scvae
from scvae_cli.latent.clouds import share_apart
from scvae_cli.latent.diffusion import similarities
from scvae_cli.latent.fates import remaining_shares
from scvae_cli.latent.gaps import LongestStep, longest_step
from scvae_cli.latent.neighbor_graph import CellGraph, euclidean_graph
from scvae_cli.tools.pseudotime.result import Pseudotime
from scvae_cli.tools.pseudotime.unnamed_groups import unnamed_ends

MATURE = ["mature_1", "mature_2"]
pytestmark = pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")


@pytest.fixture(scope="module")
def adata():
    return learned()[0]


@pytest.fixture(scope="module")
def model():
    return learned()[1]


def ordered(adata, model, **options) -> Pseudotime:
    result = scvae.pseudotime(adata, model, inplace=False, groupby="cell_type", **options)
    assert result is not None
    return result


@pytest.fixture(scope="module")
def branches(adata, model) -> Pseudotime:
    return ordered(adata, model, root="stem", ends=MATURE)


def graph_of(x_mk: np.ndarray, n_neighbors: int = 15) -> CellGraph:
    return euclidean_graph(np.arange(len(x_mk)), points(x_mk), n_neighbors)


# --- ends that are not named ------------------------------------------------------------------------------------------


def test_shares_of_walks_that_remain_equal_those_of_a_markov_chain():
    """Nodes 0-1-2-3 on a line; the group consists of the nodes 1 and 2."""
    line = sp.diags([np.ones(3), np.ones(3)], [-1, 1]).tocsr()
    group = np.array([1, 2])
    (found,) = remaining_shares([line], np.arange(4.0), [group], [group[1:]])
    # Each step changes the order by one, so a step back is less probable by exp(-3).
    back = np.exp(-3) / (1 + np.exp(-3))
    directed = np.array([[0, 1 - back], [back, 0]])
    free = np.array([[0, 0.5], [0.5, 0]])
    steps = next(h for h in range(9) if np.linalg.matrix_power(free, h)[1].sum() <= 0.25)
    assert found == pytest.approx(np.linalg.matrix_power(directed, steps)[1].sum())


def test_groups_as_far_as_their_end_are_reported():
    """A group is compared with the end that is most probable for its cells. All cells lie on a line to the end."""
    time_m = np.sort(np.random.default_rng(0).uniform(0, 1, 600))
    stages, edges = ["root", "young", "other", "between", "end"], [0.2, 0.5, 0.86, 0.94]
    group_m = np.asarray(stages, dtype=object)[np.searchsorted(edges, time_m)]
    probability_me = np.where((group_m == "young")[:, None], [0.6, 0.4], [0.9, 0.1])
    graph = graph_of(np.column_stack([time_m, np.zeros(600)]))
    near = similarities(graph)

    def found(group_m: np.ndarray, ends: list[str]) -> tuple[tuple[str, str], ...]:
        stops = [(np.arange(590, 600), np.linspace(0, 1, 10)), (np.array([0]), np.ones(1))]
        return unnamed_ends(graph, [near], [time_m], probability_me, group_m, ends=ends, stops=stops, root="root")

    assert found(group_m, ["end", "near"]) == (("between", "end"),)
    assert found(np.where(group_m == "between", "end", group_m), ["end", "near"]) == ()
    assert found(np.where(group_m == "young", None, group_m), ["end", "near"]) == (("between", "end"),)
    # The distance of an end that is a single cell is unknown. The order ends at the last group.
    assert found(group_m, ["cell", "near"]) == (("between", "cell"), ("end", "cell"))


@pytest.mark.parametrize("left_out", [*MATURE, None])
def test_groups_at_which_the_order_ends_are_reported(adata, model, left_out):
    """Branches are divided into many groups of intermediate cells, which are no ends."""
    cells = adata.copy()
    types, time_n = cells.obs["cell_type"].astype(str), cells.obs["true_pseudotime"]
    steps = cells.obs["true_branch"].astype(str) + np.floor(10 * time_n).clip(upper=5).astype(int).astype(str)
    cells.obs["cell_type"] = types.where(types.isin([*MATURE, "stem"]), steps)
    assert cells.obs["cell_type"].nunique() > 6
    result = ordered(cells, model, root="stem", ends=[end for end in MATURE if end != left_out])
    assert [group for group, _ in result.unnamed] == ([] if left_out is None else [left_out])
    assert any("not named as ends" in text for text in result.warnings()) == (left_out is not None)


def test_a_small_group_that_leaves_near_the_root_is_reported():
    """A side branch of the root is far nearer to the root than the end."""
    random = np.random.default_rng(0)
    line = np.column_stack([random.uniform(0, 10, 800), *random.normal(0, 0.2, (2, 800))])
    spur = np.column_stack([random.normal(1, 0.2, 60), random.uniform(0.5, 2.5, 60), random.normal(0, 0.2, 60)])
    x_mk = np.concatenate([line, spur])
    group_m = np.asarray(["root", *["way"] * 2, "late", "end"], dtype=object)[
        (x_mk[:, 0] / 2).clip(0, 4.99).astype(int)
    ]
    group_m[800:] = "spur"
    time_m = np.hypot(x_mk[:, 0], x_mk[:, 1])
    graph = graph_of(x_mk)
    late = np.flatnonzero(group_m == "end")
    options = {"ends": ["end"], "stops": [(late, np.linspace(0, 1, len(late)))], "root": "root"}
    found = unnamed_ends(graph, [similarities(graph)], [time_m], np.ones((860, 1)), group_m, **options)
    assert found == (("spur", "end"),)


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_missing_cells_on_the_way_to_an_end_are_reported(adata, model, branches):
    assert max(step.share for step in branches.longest_steps) < 0.2
    assert branches.warnings() == []
    on_way = (adata.obs["true_branch"] == "branch_1") & (adata.obs["cell_type"] != "mature_1")
    result = ordered(adata[~on_way].copy(), model, root="stem", ends=MATURE)
    (warning,) = [text for text in result.warnings() if "are missing in the data" in text]
    assert "hardly any cell of another group is committed to 'mature_1' (" in warning


@pytest.mark.parametrize(("share", "reported"), [(0.2, False), (0.4, True)])
def test_a_long_step_is_reported(branches, share, reported):
    step = LongestStep(share=share, ratio=20.0, before="stem", after="mature_1")
    texts = replace(branches, longest_steps=(step, branches.longest_steps[1])).warnings()
    assert any("gap without cells on the way from 'stem' to 'mature_1' (40%" in text for text in texts) == reported


def test_the_longest_step_is_that_of_a_line():
    x_mk = np.concatenate([np.arange(10), [14.0, 15, 16]])[:, None]
    group_m = np.asarray([*"abcdefghijklm"], dtype=object)
    step = longest_step(graph_of(x_mk, 2), np.array([0]), np.array([10, 11, 12]), group_m)
    assert (step.before, step.after) == ("j", "k")
    assert step.share == pytest.approx(5 / 15)
    assert step.is_gap
    group_m[9] = None
    assert longest_step(graph_of(x_mk, 2), np.array([0]), np.array([10, 11, 12]), group_m).before is None


def test_descriptions_of_gaps_name_the_groups_on_both_sides():
    texts = {"": (None, "a"), ", 'a' → 'b'": ("a", "b"), ", within 'a'": ("a", "a")}
    for text, (before, after) in texts.items():
        assert LongestStep(share=0.5, ratio=20.0, before=before, after=after).described() == f"50% of the way{text}"


# --- several clouds ---------------------------------------------------------------------------------------------------


def rod(n: int, length: float, *, seed: int = 0) -> np.ndarray:
    """Cells of one kind: a normal distribution that is longer in one direction."""
    return np.random.default_rng(seed).normal(size=(n, 8)) * [length, *[1] * 7]


@pytest.mark.parametrize("n", [5, 40, 95, 240, 3000])
@pytest.mark.parametrize("length", [1, 5])
def test_a_label_of_one_kind_of_cells_is_one_cloud(n, length):
    for seed in range(5):
        assert share_apart(points(rod(n, length, seed=seed)), np.arange(2)) == 0


def test_a_branch_of_cells_is_one_cloud(adata):
    along = np.sort(np.random.default_rng(0).uniform(0, 30, 1000))
    line_mk = np.column_stack([along, *np.random.default_rng(1).normal(0, 1, (5, 1000))])
    assert share_apart(points(line_mk), np.arange(990, 1000)) == 0


@pytest.mark.parametrize("n", [60, 240, 3000])
@pytest.mark.parametrize("share", [0.15, 0.35, 0.5])
def test_two_clouds_are_found_although_stray_cells_join_them(n, share):
    n_other = round(share * n)
    x_mk = rod(n, 1)
    x_mk[:n_other, 0] += 12
    # Two stray cells between the clouds.
    x_mk[n - 2 :] = [[x, *[0] * 7] for x in (4, 8)]
    assert share_apart(points(x_mk), np.arange(n_other, n_other + 5)) == pytest.approx(n_other / n, abs=0.05)
    assert share_apart(points(x_mk), np.arange(5)) == pytest.approx(1 - n_other / n, abs=0.05)


def test_a_label_of_two_ends_is_reported(adata, model):
    cells = adata.copy()
    types = cells.obs["cell_type"].astype(str)
    cells.obs["cell_type"] = types.replace(dict.fromkeys(MATURE, "mature"))
    for options in ({"root": "stem", "ends": ["mature"]}, {"root": "mature", "ends": ["stem"]}):
        result = ordered(cells, model, **options)
        assert max(result.root_share_apart, *result.end_shares_apart) > 0.3
        assert any("of the cells of 'mature' lie in another cloud" in text for text in result.warnings())


def test_a_way_of_few_long_steps_has_no_gap():
    assert not LongestStep(share=0.5, ratio=1.5, before="stem", after="mature_1").is_gap
