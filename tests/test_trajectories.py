"""Trajectories between populations, compared with brute force.

Letters in array shapes: n cells, g genes, k latent dimensions, t steps, p paths.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.spatial.distance import cdist
from simulated import learned

import scvae_cli as scvae
from scvae_cli.data.slots import SlotNames
from scvae_cli.errors import ConfigError, DataError, ScvaeWarning
from scvae_cli.model.geometry import Geometry
from scvae_cli.tools.trajectory.curves import straight
from scvae_cli.tools.trajectory.gene_changes import gene_changes
from scvae_cli.tools.trajectory.membership import project
from scvae_cli.tools.trajectory.options import InterpolateOptions
from scvae_cli.tools.trajectory.result import ASCENT, Trajectory, default_name

ENDS = ["stem", "mature_1"]
TWO_FATES = ["mature_1", "mature_2"]


@pytest.fixture(scope="module")
def adata():
    return learned()[0]


@pytest.fixture(scope="module")
def model():
    return learned()[1]


@pytest.fixture(scope="module")
def trajectory(adata, model) -> Trajectory:
    return interpolated(adata, model, groups=ENDS, n_steps=40)


@pytest.fixture(scope="module")
def bundle(adata, model) -> Trajectory:
    return interpolated(adata, model, groups=ENDS, couple="ot", n_paths=12, n_steps=20)


def interpolated(adata, model, **options) -> Trajectory:
    """Compute a trajectory without writing it."""
    result = scvae.interpolate(adata, model, inplace=False, **{"groupby": "cell_type"} | options)
    assert result is not None
    return result


def in_training_frame(model, z_tk: np.ndarray) -> torch.Tensor:
    return model.axes.in_training_frame(torch.as_tensor(z_tk, dtype=torch.float32))


# --- path -------------------------------------------------------------------------------------------------------------


def test_trajectory_through_a_group_starts_and_ends_at_means(adata, model):
    z_nk = scvae.embed(adata, model, inplace=False).mean_nk
    groups = ["stem", "progenitor", "mature_1"]
    trajectory = interpolated(adata, model, groups=groups, n_steps=31, endpoint="centroid")
    center = {group: z_nk[(adata.obs["cell_type"] == group).to_numpy()].mean(0) for group in groups}
    np.testing.assert_allclose(trajectory.z_tk[0], center["stem"], atol=1e-4)
    np.testing.assert_allclose(trajectory.z_tk[-1], center["mature_1"], atol=1e-4)
    to_middle = np.linalg.norm(trajectory.z_tk - center["progenitor"], axis=1)
    spacing = np.linalg.norm(np.diff(trajectory.z_tk, axis=0), axis=1)
    assert to_middle.min() <= spacing.max()
    assert trajectory.labels == tuple(groups)


def test_trajectory_starts_and_ends_at_cells_of_its_groups(adata, model, trajectory):
    z_nk = scvae.embed(adata, model, inplace=False).mean_nk
    for end, group in ((0, "stem"), (-1, "mature_1")):
        distance_n = np.linalg.norm(z_nk - trajectory.z_tk[end], axis=1)
        assert distance_n.min() < 1e-4
        assert adata.obs["cell_type"].iloc[distance_n.argmin()] == group
        assert trajectory.nearest_names_tj[end, 0] == adata.obs_names[distance_n.argmin()]


def test_decoded_means_at_cells_equal_denoised_counts(adata, model):
    ends = adata.obs_names[[3, 40]].tolist()
    trajectory = interpolated(adata, model, groupby=None, cells=ends, n_steps=5, path="straight")
    denoised_ng = scvae.denoise(adata, model, library="median", inplace=False).rows.whole()
    np.testing.assert_allclose(trajectory.mean_tg[[0, -1]], denoised_ng[[3, 40]], rtol=1e-3)
    np.testing.assert_allclose(trajectory.mean_tg.sum(1), float(model.vae.reference_library), rtol=1e-4)


@pytest.mark.parametrize("path", ["geodesic", "graph", "straight"])
def test_trajectory_between_cells(adata, model, path):
    z_nk = scvae.embed(adata, model, inplace=False).mean_nk
    rows = np.flatnonzero(adata.obs["cell_type"] == "stem")[:2]
    cells = list(adata.obs_names[rows])
    trajectory = interpolated(adata, model, groupby=None, cells=cells, n_steps=2, path=path)
    np.testing.assert_allclose(trajectory.z_tk, z_nk[rows], atol=1e-5)
    assert trajectory.steps.groups_passed() == []
    assert "nearest_group" not in next(iter(trajectory.slots(SlotNames(), adata.var_names.to_numpy()))).value
    found = interpolated(adata, model, groupby="cell_type", cells=cells, path=path)
    assert set(found.steps.groups_passed()) <= set(adata.obs["cell_type"])
    assert "stem" in found.steps.groups_passed()
    assert found.labels == tuple(cells)


# --- cells along the path ---------------------------------------------------------------------------------------------


def test_nearest_cells_and_groups_equal_brute_force(adata, model, trajectory):
    z_nk = scvae.embed(adata, model, inplace=False).mean_nk
    distance_tn = cdist(trajectory.z_tk, z_nk)
    expected = np.sort(distance_tn, axis=1)[:, :15]
    found = np.take_along_axis(distance_tn, trajectory.steps.nearest_tj, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(trajectory.nearest_names_tj, adata.obs_names.to_numpy()[trajectory.steps.nearest_tj])
    types = adata.obs["cell_type"].astype(str).to_numpy()
    for cells, group, share in zip(
        trajectory.steps.nearest_tj, trajectory.steps.group_t, trajectory.steps.group_share_t, strict=True
    ):  # fmt: skip
        counts = pd.Series(types[cells]).value_counts()
        assert counts[group] == counts.max()
        assert share == counts.max() / 15
    passed = trajectory.steps.groups_passed()
    assert passed[0] == "stem"
    assert passed[-1] == "mature_1"
    assert "progenitor" in passed
    assert all(a != b for a, b in pairwise(passed))


def test_cells_without_a_group_are_ignored_for_the_nearest_group(adata, model):
    cells = adata.copy()
    cells.obs["known"] = cells.obs["cell_type"].where(cells.obs["cell_type"].isin(ENDS))
    trajectory = interpolated(cells, model, groupby="known", groups=ENDS)
    assert set(trajectory.steps.groups_passed()) == set(ENDS)
    without_group = trajectory.steps.group_t == ""
    assert without_group.any()
    assert np.isnan(trajectory.steps.group_share_t[without_group]).all()
    assert (trajectory.steps.group_share_t[~without_group] > 0).all()


def test_speed_adds_up_to_the_length(model, trajectory):
    with torch.no_grad():
        y_tg = Geometry(model.vae).coordinates(in_training_frame(model, trajectory.z_tk)).double()
    length = float((y_tg[1:] - y_tg[:-1]).norm(dim=1).sum())
    assert trajectory.steps.length == pytest.approx(length, rel=1e-3)
    assert trapezoid(trajectory.steps.speed_t, trajectory.steps.position_t) == pytest.approx(length, rel=1e-3)
    # The speed is constant except for a step or two. Where the decoder folds, the chord between two steps is shorter.
    typical = np.median(trajectory.steps.speed_t)
    assert (np.abs(trajectory.steps.speed_t - typical) < 0.05 * typical).mean() >= 0.9
    np.testing.assert_allclose(trajectory.steps.position_t, np.linspace(0, 1, 40))


def test_geodesic_stays_near_cells_and_the_straight_line_does_not(adata, model):
    geodesic = interpolated(adata, model, groups=TWO_FATES)
    assert geodesic.warning() is None
    with pytest.warns(ScvaeWarning, match=r"where no cells were observed.*path geodesic stays in regions with cells"):
        line = interpolated(adata, model, groups=TWO_FATES, path="straight")
    assert line.steps.off_manifold_t.max() > 0.95 > geodesic.steps.off_manifold_t.max()
    assert line.steps.length < geodesic.steps.length
    own = model.density.off_manifold(in_training_frame(model, line.z_tk))
    np.testing.assert_allclose(line.steps.off_manifold_t, own, atol=0.02)


def test_warning_names_the_steps_and_a_remedy(trajectory):
    def warned(off: list[int], **changed) -> str | None:
        score_t = np.full(40, 0.4)
        score_t[off] = 0.97
        steps = replace(trajectory.steps, off_manifold_t=score_t)
        return replace(trajectory, steps=steps, **changed).warning()

    assert warned([]) is None
    between = warned([5, 6, 7, 20])
    passed = " → ".join(trajectory.steps.groups_passed())
    assert between.startswith(f"the trajectory passes {passed}; steps 5–7, 20 of 0–39 lie where no cells were observed")
    assert "(off-manifold score up to 0.970, limit 0.95): do not trust the genes decoded there" in between
    assert "name an intermediate group with --via" in between
    for ends in ([0], [0, 39]):
        assert "choose other ends" in warned(ends, endpoint="density")
        assert "use --endpoint density" in warned(ends, endpoint="centroid")
    assert "step 0 of 0–39 lies" in warned([0])
    assert "with --via" in warned([0, 1, 2, 3])
    for path in ("straight", "graph"):
        assert "--path geodesic stays in regions with cells" in warned([5, 6, 7, 20], kind=path)
    assert "choose another --group" in warned([0, 1], kind=ASCENT)
    assert "without --unconstrained" in warned([30, 31], kind=ASCENT)
    none_t = np.full(40, "", dtype=object)
    nowhere = replace(trajectory.steps, group_t=none_t, majority_t=none_t, off_manifold_t=np.full(40, 0.99))
    assert replace(trajectory, steps=nowhere).warning().startswith("on the trajectory, steps 0–39 of 0–39 lie")
    many_t = np.asarray([f"g{i}" for i in range(40)], dtype=object)
    many = replace(nowhere, group_t=many_t, majority_t=many_t)
    assert "passes g0 → g1 → g2 → … → g38 → g39; " in replace(trajectory, steps=many).warning()


# --- decoded genes ----------------------------------------------------------------------------------------------------


def test_decoded_means_equal_those_of_the_steps(adata, model, trajectory):
    np.testing.assert_allclose(trajectory.mean_tg.sum(1), float(model.vae.reference_library), rtol=1e-4)
    z_tk = in_training_frame(model, trajectory.z_tk)
    library_t = torch.full((40,), 777.0)
    for batch_as, batch in (("average", None), ("batch_2", 1)):
        found = interpolated(adata, model, groups=ENDS, n_steps=40, library=777, batch_as=batch_as)
        batch_t = None if batch is None else torch.full((40,), batch)
        with torch.no_grad():
            expected = model.vae.expected_counts(z_tk, library_t, batch_t, with_zero_inflation=True).numpy()
        np.testing.assert_allclose(found.mean_tg, expected, rtol=1e-3)


def test_bands_contain_the_posterior_of_near_cells(adata, model, trajectory):
    assert (trajectory.low_tg <= trajectory.high_tg).all()
    assert ((trajectory.low_tg <= trajectory.mean_tg) & (trajectory.mean_tg <= trajectory.high_tg)).mean() > 0.95
    var_nk = scvae.embed(adata, model, axes="training", inplace=False).var_nk
    t, noise = 17, torch.Generator().manual_seed(5)
    sd_k = torch.as_tensor(var_nk[trajectory.steps.nearest_tj[t]].mean(0)).sqrt()
    z_sk = in_training_frame(model, trajectory.z_tk[t : t + 1]) + sd_k * torch.randn(4000, len(sd_k), generator=noise)
    with torch.no_grad():
        mean_sg = model.vae.expected_counts(
            z_sk, torch.full((4000,), float(model.vae.reference_library)), None, with_zero_inflation=True
        )
    low_g, high_g = np.quantile(mean_sg.numpy(), (0.05, 0.95), axis=0)
    np.testing.assert_allclose(trajectory.low_tg[t], low_g, atol=0.35 * (high_g - low_g).max())
    ratio_g = (trajectory.high_tg[t] - trajectory.low_tg[t]) / (high_g - low_g)
    assert 0.7 < np.median(ratio_g) < 1.3


def test_gene_changes_are_in_the_isometric_coordinate(model, trajectory):
    theta_g = model.vae.decoder.head.log_theta_g.detach().double().exp().numpy()
    y_tg = 2 * np.sqrt(theta_g) * np.arcsinh(np.sqrt(trajectory.mean_tg.astype(float) / theta_g))
    expected = gene_changes(y_tg)
    np.testing.assert_allclose(trajectory.changes.effect_g, expected.effect_g, rtol=1e-6)
    np.testing.assert_allclose(trajectory.changes.effect_g, np.ptp(y_tg, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(trajectory.changes.direction_g, expected.direction_g)
    top = trajectory.top_genes(10)
    assert (np.diff(trajectory.changes.effect_g[top]) <= 0).all()
    assert trajectory.changes.effect_g[top].min() >= np.delete(trajectory.changes.effect_g, top).max()


def test_trajectory_follows_the_true_differentiation():
    adata, model = learned(n_branches=1)
    trajectory = interpolated(adata, model, groups=ENDS)
    near = ~np.isnan(trajectory.pseudotime_n)
    assert near.mean() > 0.25
    true = adata.obs["true_pseudotime"].to_numpy()
    # A rank correlation is not used: half of the cells near the trajectory lie beyond its ends, at exactly 0 or 1.
    assert np.corrcoef(trajectory.pseudotime_n[near], true[near])[0, 1] > 0.95
    rising = adata.varm["true_rho_branch_1"][:, -1] / adata.varm["true_rho_branch_1"][:, 0]
    names = {gene: i for i, gene in enumerate(adata.var_names)}
    top = trajectory.top_genes(10)
    agree = [
        (trajectory.mean_tg[-1, g] > trajectory.mean_tg[0, g]) == (rising[names[trajectory.genes[g]]] > 1) for g in top
    ]
    assert all(agree)


def test_projection_finds_the_nearest_point():
    z_tk = straight(np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0]]), 9)
    points = torch.tensor([[1.0, 0.5], [2.5, 1.0], [-1.0, 0.0], [2.0, 9.0]], dtype=torch.float64)
    position, distance = project(points, torch.as_tensor(z_tk))
    np.testing.assert_allclose(position, [0.25, 0.75, 0.0, 1.0])
    np.testing.assert_allclose(distance, [0.5, 0.5, 1.0, 7.0])


# --- paired paths -----------------------------------------------------------------------------------------------------


def test_paired_paths_join_cells_of_both_populations(adata, model, bundle):
    z_nk = scvae.embed(adata, model, inplace=False).mean_nk
    assert bundle.bundle_ptk.shape == (12, 20, 4)
    for end, group in ((0, "stem"), (-1, "mature_1")):
        distance_pn = cdist(bundle.bundle_ptk[:, end], z_nk)
        assert distance_pn.min(1).max() < 1e-4
        assert set(adata.obs["cell_type"].iloc[distance_pn.argmin(1)]) == {group}


def test_trajectory_of_paired_paths_is_their_medoid(model, bundle):
    with torch.no_grad():
        y_ptg = [Geometry(model.vae).coordinates(in_training_frame(model, z_tk)) for z_tk in bundle.bundle_ptk]
    distance_pp = np.asarray([[float((a - b).norm(dim=1).sum()) for b in y_ptg] for a in y_ptg])
    np.testing.assert_array_equal(bundle.z_tk, bundle.bundle_ptk[distance_pp.sum(1).argmin()])


def test_bands_of_paired_paths_are_quantiles_over_the_paths(model, bundle):
    library_t = torch.full((20,), float(model.vae.reference_library))
    with torch.no_grad():
        each = [
            model.vae.expected_counts(in_training_frame(model, z_tk), library_t, None, with_zero_inflation=True).numpy()
            for z_tk in bundle.bundle_ptk
        ]
    low_tg, high_tg = np.quantile(each, (0.05, 0.95), axis=0)
    np.testing.assert_allclose(bundle.low_tg, low_tg, rtol=1e-3)
    np.testing.assert_allclose(bundle.high_tg, high_tg, rtol=1e-3)


# --- time points ------------------------------------------------------------------------------------------------------


def test_labels_with_numbers_are_ordered_by_number(adata, model):
    cells = adata.copy()
    third = np.floor(3 * cells.obs["true_pseudotime"]).clip(0, 2).astype(int)
    cells.obs["day"] = [("E6.5", "E8", "E10.25")[t] for t in third]
    assert interpolated(cells, model, groupby=None, time_key="day").labels == ("E6.5", "E8", "E10.25")


def test_extreme_end_is_more_differentiated(adata, model, trajectory):
    densest = interpolated(adata, model, groups=ENDS, n_steps=40, endpoint="density")
    time_n = adata.obs["true_pseudotime"].to_numpy()
    assert time_n[trajectory.steps.nearest_tj[-1]].mean() > time_n[densest.steps.nearest_tj[-1]].mean()
    assert trajectory.steps.group_t[-1] == "mature_1"
    np.testing.assert_allclose(densest.z_tk[0], trajectory.z_tk[0])


def test_numeric_time_points_are_ordered_by_value(adata, model):
    cells = adata.copy()
    cells.obs["day"] = np.floor(3 * cells.obs["true_pseudotime"]).clip(0, 2).map({0: 2.0, 1: 10.0, 2: 100.0})
    trajectory = interpolated(cells, model, groupby=None, time_key="day")
    assert trajectory.labels == ("2", "10", "100")
    assert trajectory.name == "2_to_10_to_100"
    assert trajectory.steps.groups_passed()[0] == "2"
    assert trajectory.steps.groups_passed()[-1] == "100"
    found = interpolated(cells, model, groupby="cell_type", time_key="day")
    assert set(found.steps.groups_passed()) <= set(adata.obs["cell_type"])


def test_ordered_categories_are_passed_in_their_order(adata, model):
    cells = adata.copy()
    third = np.floor(3 * cells.obs["true_pseudotime"]).clip(0, 2).astype(int)
    cells.obs["stage"] = pd.Categorical.from_codes(third, ["old", "late", "new"], ordered=True).add_categories("never")
    assert interpolated(cells, model, groupby=None, time_key="stage").labels == ("old", "late", "new")
    cells.obs["stage"] = cells.obs["stage"].cat.as_unordered()
    with pytest.raises(DataError, match=r"obs\['stage'\] has no order") as caught:
        interpolated(cells, model, groupby=None, time_key="stage")
    assert "ordered categorical" in caught.value.hint


def test_name_of_many_time_points_is_short():
    assert default_name(["0", "1", "2", "3"]) == "0_to_3"
    assert default_name(["0", "1", "2"]) == "0_to_1_to_2"


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_invalid_ends_are_refused(adata, model):
    for groups in (["stem"], ["stem", "stem"]):
        with pytest.raises(ConfigError):
            interpolated(adata, model, groups=groups)
    with pytest.raises(DataError, match="no cells with"):
        interpolated(adata, model, groups=["stem", "nowhere"])
    with pytest.raises(DataError, match="no cell called"):
        interpolated(adata, model, cells=["x", "y"])
    with pytest.raises(DataError, match="is a single cell"):
        interpolated(adata, model, groupby=None, cells=list(adata.obs_names[:2]), couple="ot")
    duplicates = ad.concat([adata[:20], adata[:1]], index_unique="-", keys=["a", "b"])
    with pytest.raises(DataError, match="have the same position"):
        interpolated(duplicates, model, groupby=None, cells=[duplicates.obs_names[0], duplicates.obs_names[-1]])


@pytest.mark.parametrize(
    ("field", "value"),
    [("path", "curved"), ("endpoint", "mean"), ("couple", "all"), ("n_steps", 1), ("n_paths", 1), ("n_paths", 1001)],
)
def test_invalid_options_are_refused(field, value):
    option = {"n_steps": "steps", "n_paths": "paths"}.get(field, field)
    with pytest.raises(ConfigError, match=f"--{option} is {value!r}"):
        InterpolateOptions(cells=("a", "b"), **{field: value})


# --- slots ------------------------------------------------------------------------------------------------------------


def written(adata, model, tmp_path, *, file: bool, **options) -> ad.AnnData:
    """The cells with a written trajectory, after a round trip through a file."""
    cells, path = adata.copy(), tmp_path / "cells.h5ad"
    if file:
        cells.write_h5ad(path)
        scvae.interpolate(path, model, **options)
    else:
        scvae.interpolate(cells, model, **options)
        cells.write_h5ad(path)
    return ad.read_h5ad(path)


@pytest.mark.parametrize("file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("couple", ["none", "ot"])
def test_slots_contain_the_trajectory(adata, model, trajectory, bundle, tmp_path, file, couple):
    result = trajectory if couple == "none" else bundle
    options = {"groupby": "cell_type", "groups": ENDS, "couple": couple, "name": "my path"}
    n_steps = len(result.z_tk)
    cells = written(adata, model, tmp_path, file=file, **options, n_steps=n_steps, n_paths=12)
    for key, value in (("", result.mean_tg), ("_low", result.low_tg), ("_high", result.high_tg)):
        np.testing.assert_allclose(cells.varm[f"scvae_path_my_path{key}"], value.T, rtol=1e-5)
    np.testing.assert_allclose(cells.obs["scvae_pseudotime_my_path"], result.pseudotime_n, atol=1e-5)
    found = cells.uns["scvae"]["paths"]["my_path"]
    assert found["name"] == "my path"
    assert (found["kind"], found["endpoint"], found["couple"]) == ("geodesic", "extreme", couple)
    assert list(found["waypoints"]) == ENDS
    assert found["length"] == pytest.approx(result.steps.length, rel=1e-5)
    np.testing.assert_allclose(found["latent"], result.z_tk, atol=1e-5)
    np.testing.assert_allclose(found["speed"], result.steps.speed_t, rtol=1e-4)
    np.testing.assert_allclose(found["off_manifold"], result.steps.off_manifold_t, atol=1e-5)
    np.testing.assert_array_equal(found["nearest_cells"], result.nearest_names_tj)
    np.testing.assert_array_equal(found["nearest_group"], result.steps.group_t)
    np.testing.assert_array_equal(found["genes"]["names"], result.genes)
    np.testing.assert_array_equal(found["genes"]["direction"], result.changes.direction_g)
    np.testing.assert_array_equal(found["genes"]["switch_step"], result.changes.switch_g)
    np.testing.assert_allclose(found["genes"]["net"], result.changes.net_g, rtol=1e-4, atol=1e-5)
    assert ("bundle" in found) == (couple == "ot")
    if couple == "ot":
        np.testing.assert_allclose(found["bundle"], result.bundle_ptk, atol=1e-5)


def test_genes_outside_the_model_are_nan(adata, model, tmp_path):
    more = adata.copy()
    extra = ad.AnnData(
        np.ones((adata.n_obs, 1), dtype=np.float32), obs=adata.obs[[]], var=pd.DataFrame(index=["extra"])
    )
    more = ad.concat([extra, more], axis=1, merge="same")
    more.obs = adata.obs
    cells = written(more, model, tmp_path, file=True, groupby="cell_type", groups=ENDS)
    path = cells.varm["scvae_path_stem_to_mature_1"]
    assert np.isnan(path[0]).all()
    assert np.isfinite(path[1:]).all()
