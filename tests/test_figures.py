"""Figures of trajectories show the computed values; the files are complete, repeatable and in the right place."""

from __future__ import annotations

import dataclasses
import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from simulated import TINY, tree

import scvae_cli as scvae
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.latent.populations import Population
from scvae_cli.report import figure_file
from scvae_cli.report.figure_file import check_figure_file, save_figure
from scvae_cli.report.page import PALETTE, group_colors, legend_names
from scvae_cli.session import Session
from scvae_cli.tools.trajectory.figure import path_figure
from scvae_cli.tools.trajectory.gene_curves import N_CURVES, smoothed
from scvae_cli.tools.trajectory.heat_map import N_GENES, heat_map_genes
from scvae_cli.tools.trajectory.interpolation import interpolate
from scvae_cli.tools.trajectory.options import InterpolateOptions
from scvae_cli.tools.trajectory.plane import Backdrop, steps_in_plane, waypoint_steps
from scvae_cli.tools.trajectory.result import Trajectory

KINDS = (".png", ".svg", ".pdf")


@pytest.fixture(scope="module")
def adata():
    return tree(n_cells=200, n_genes=30)


@pytest.fixture(scope="module")
def model(adata):
    return scvae.train(adata, **TINY | {"max_epochs": 4}, genes="all")


@pytest.fixture(scope="module")
def groups_n(adata):
    return np.asarray(adata.obs["cell_type"].astype(str), dtype=object)


@pytest.fixture(scope="module")
def trajectory(adata, model, groups_n):
    return interpolated(adata, model, groups_n)


@pytest.fixture(scope="module")
def bundle(adata, model, groups_n):
    return interpolated(adata, model, groups_n, couple="ot", n_paths=4)


def interpolated(adata, model, groups_n, labels=("stem", "mature_1"), *, grouped=True, **options) -> Trajectory:
    populations = [Population(label=label, cells=np.flatnonzero(groups_n == label)) for label in labels]
    config = InterpolateOptions(cells=labels, **{"n_steps": 12, "path": "straight"} | options)
    session = Session.open(adata, model, device="cpu")
    return interpolate(session, populations, config, name="trajectory", groups_n=groups_n if grouped else None)


def with_off_manifold(trajectory, off_t) -> Trajectory:
    steps = dataclasses.replace(trajectory.steps, off_manifold_t=np.where(off_t, 0.99, 0.2))
    return dataclasses.replace(trajectory, steps=steps)


def draw_figure(trajectory, groups_n, n_chosen=1, **backdrop) -> Figure:
    rng = np.random.default_rng(0)
    n_cells = len(trajectory.pseudotime_n)
    plane = {"xy_n2": rng.normal(size=(n_cells, 2)), "xy_t2": trajectory.z_tk[:, :2], "names": ("axis 1", "axis 2")}
    chosen = trajectory.top_genes(n_chosen)
    expression_nc = rng.poisson(2.0, size=(n_cells, len(chosen))).astype(float)
    background = Backdrop(**plane | {"groups_n": groups_n} | backdrop)
    return path_figure(trajectory, backdrop=background, expression_nc=expression_nc, chosen=chosen)


def panel(figure, label):
    return next(axes for axes in figure.axes if axes.get_label() == label)


def lines(axes, gid):
    return [line for line in axes.lines if line.get_gid() == gid]


def legends(figure):
    for axes in figure.axes:
        found = [child for child in axes.get_children() if isinstance(child, matplotlib.legend.Legend)]
        for legend in found:
            yield [text.get_text() for text in legend.get_texts()]


def assert_nothing_is_cut_off(figure):
    size, box = figure.get_size_inches(), figure.get_tightbbox()
    assert min(box.x0, box.y0) >= 0, box
    assert box.x1 <= size[0], box
    assert box.y1 <= size[1], box


def test_trajectory_is_drawn_at_its_coordinates(trajectory, groups_n):
    plane = panel(draw_figure(trajectory, groups_n), "plane")
    (line,) = lines(plane, "trajectory")
    np.testing.assert_array_equal(line.get_xydata(), trajectory.z_tk[:, :2].astype(np.float64))
    assert [plane.get_xlabel(), plane.get_ylabel()] == ["axis 1", "axis 2"]
    assert {"stem", "mature_1"} <= {text.get_text() for text in plane.texts}


def test_every_cell_has_the_color_of_its_group(trajectory, groups_n):
    some = groups_n.copy()
    some[:7] = None
    cells = panel(draw_figure(trajectory, some), "plane").collections[0]
    assert len(cells.get_offsets()) == len(some)
    colors = {tuple(np.round(color[:3], 3)) for color in cells.get_facecolors()}
    assert len(colors) == len(set(groups_n)) + 1


@pytest.mark.parametrize("off", [[], [0], [2, 7, 8, 11]])
def test_off_manifold_steps_are_marked(trajectory, groups_n, off):
    off_t = np.isin(np.arange(12), off)
    figure = draw_figure(with_off_manifold(trajectory, off_t), groups_n)
    marked = lines(panel(figure, "plane"), "off")
    n_runs = int((np.diff(np.concatenate([[0], off_t.astype(int)])) == 1).sum())
    assert len(marked) == n_runs
    points = {tuple(point) for line in marked for point in line.get_xydata()}
    for xy in trajectory.z_tk[off_t, :2].astype(np.float64):
        assert tuple(xy) in points
    marks = [text for texts in legends(figure) for text in texts if "no cells (hatched" in text]
    assert len(marks) == bool(off)
    for label in ("heat map", "groups", f"gene {trajectory.genes[trajectory.top_genes(1)[0]]}"):
        hatched = [patch for patch in panel(figure, label).patches if patch.get_gid() == "hatched"]
        assert bool(hatched) == bool(off)


def test_the_steps_that_a_warning_calls_empty_are_hatched(trajectory, groups_n):
    """Steps to which no cell belongs are hatched, and steps with a high off-manifold score."""
    off_t = np.isin(np.arange(12), [1, 6])
    gapped = dataclasses.replace(with_off_manifold(trajectory, off_t), empty=(4, 6))
    assert np.flatnonzero(gapped.without_cells).tolist() == [1, 4, 5, 6]
    patches = [p for p in panel(draw_figure(gapped, groups_n), "heat map").patches if p.get_gid() == "hatched"]
    edges = sorted({(round(11 * p.get_x(), 6), round(11 * (p.get_x() + p.get_width()), 6)) for p in patches})
    assert edges == [(0.5, 1.5), (3.5, 6.5)]


def test_heat_map_rows_are_sorted_and_scaled(trajectory, groups_n):
    rows = heat_map_genes(trajectory)
    assert len(rows) == min(N_GENES, len(trajectory.genes))
    assert set(rows) == set(trajectory.top_genes(N_GENES))
    kinds = [kind for kind, _ in itertools.groupby(trajectory.changes.direction_g[rows])]
    assert kinds == [kind for kind in ("down", "peak", "up", "dip") if kind in kinds]
    for kind in kinds:
        assert (np.diff(trajectory.changes.switch_g[rows][trajectory.changes.direction_g[rows] == kind]) >= 0).all()
    axes = panel(draw_figure(trajectory, groups_n), "heat map")
    values_rt = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(values_rt.min(1), 0)
    np.testing.assert_allclose(values_rt.max(1), 1)
    np.testing.assert_array_equal(values_rt.argmax(1), trajectory.mean_tg[:, rows].argmax(0))
    assert [text.get_text() for text in axes.get_yticklabels()] == [trajectory.genes[g] for g in rows]


def test_strip_shows_the_nearest_groups(trajectory, groups_n):
    colors = group_colors(groups_n, trajectory.steps.groups_passed())
    shown = panel(draw_figure(trajectory, groups_n), "groups").images[0].get_array()[0]
    expected = [matplotlib.colors.to_rgb(colors[group]) for group in trajectory.steps.group_t]
    np.testing.assert_allclose(shown, expected)


def test_curves_equal_the_decoded_means(trajectory, groups_n):
    figure = draw_figure(trajectory, groups_n, n_chosen=N_CURVES)
    panels = [axes for axes in figure.axes if axes.get_label().startswith("gene ")]
    for axes, gene in zip(panels, trajectory.top_genes(N_CURVES), strict=True):
        (line,) = lines(axes, "decoded")
        np.testing.assert_allclose(line.get_ydata(), trajectory.mean_tg[:, gene])
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] >= trajectory.high_tg[:, gene].max()


def test_smoothing_equals_the_plain_formula():
    rng = np.random.default_rng(1)
    position_n, at_q = rng.uniform(size=500), np.linspace(0, 1, 21)
    value_n = 3 + 2 * position_n + rng.normal(size=500)
    mean_q, error_q = smoothed(position_n, value_n, at_q, 0.08)
    weight_qn = np.maximum(1 - ((at_q[:, None] - position_n) / 0.16) ** 2, 0)
    np.testing.assert_allclose(mean_q, weight_qn @ value_n / weight_qn.sum(1), atol=0.02)
    assert (np.abs(mean_q - 3 - 2 * at_q) < 5 * error_q + 0.16).all()
    assert (error_q < 0.4).all()
    few = smoothed(position_n[:3], value_n[:3], at_q, 0.08)[0]
    assert np.isnan(few).all()
    across_a_gap = smoothed(np.repeat([0.1, 0.9], 50), np.ones(100), np.asarray([0.1, 0.5, 0.9]), 0.08)[0]
    np.testing.assert_allclose(across_a_gap, [1, np.nan, 1])
    from_one_side = smoothed(np.full(50, 0.5), np.ones(50), np.asarray([0.39, 0.45, 0.55, 0.61]), 0.08)[0]
    np.testing.assert_allclose(from_one_side, [np.nan, 1, 1, np.nan])


def test_legend_lists_each_group_once_and_passed_groups_first(trajectory, groups_n):
    names = [text for texts in legends(draw_figure(trajectory, groups_n)) for text in texts]
    assert len(set(names)) == len(names)
    assert set(groups_n) <= set(names)
    passed = list(dict.fromkeys(trajectory.steps.groups_passed()))
    among_groups = [name for name in names if name in set(groups_n)]
    assert among_groups[: len(passed)] == passed


def test_group_has_the_same_color_for_all_trajectories(groups_n):
    assert group_colors(groups_n, ["stem"]) == group_colors(groups_n, ["mature_2", "mature_1"])
    many_n = np.asarray([f"g{i % 50}" for i in range(500)], dtype=object)
    colors = group_colors(many_n, ["g49"])
    assert len(colors) == len(set(colors.values())) == len(PALETTE) == 30
    assert "g49" in colors


@pytest.mark.parametrize("n_groups", [30, 41])
def test_many_groups_with_long_and_unusual_names_fit(trajectory, n_groups):
    unusual = ["$x^2$ & _y", "_hidden", "%d {} \\n", "Ünïcode"]
    names = [f"a very long description of the cell type with number {i} in it" for i in range(n_groups)]
    names = (unusual + names)[:n_groups]
    groups_n = np.asarray([names[i % n_groups] for i in range(len(trajectory.pseudotime_n))], dtype=object)
    long = tuple(f"ENSG00000000000{i:05d}.17 with a tail" for i in range(len(trajectory.genes)))
    steps = dataclasses.replace(trajectory.steps, group_t=groups_n[trajectory.steps.nearest_tj[:, 0]])
    named = dataclasses.replace(trajectory, genes=long, steps=steps, labels=("$from$ " * 20, "to " * 40))
    figure = draw_figure(named, groups_n)
    assert_nothing_is_cut_off(figure)
    names_shown = [text for texts in legends(figure) for text in texts]
    assert len(set(names_shown)) == len(names_shown)
    assert (f"{n_groups - 30} other groups" in names_shown) == (n_groups > 30)
    assert len(set(legend_names(names, 12))) == len(names)


@pytest.mark.parametrize("n_chosen", [0, 1, 5, 12])
def test_any_number_of_gene_curves_fits(trajectory, groups_n, n_chosen):
    assert_nothing_is_cut_off(draw_figure(trajectory, groups_n, n_chosen=n_chosen))


@pytest.mark.parametrize("grouped", [True, False])
def test_figure_of_two_steps(adata, model, groups_n, grouped):
    short = interpolated(adata, model, groups_n, n_steps=2, grouped=grouped)
    figure = draw_figure(with_off_manifold(short, [False, True]), groups_n if grouped else None)
    assert len(lines(panel(figure, "plane"), "trajectory")[0].get_xdata()) == 2
    assert_nothing_is_cut_off(figure)
    assert steps_in_plane(short, np.random.default_rng(0).normal(size=(adata.n_obs, 2))).shape == (2, 2)


@pytest.mark.parametrize("n_near", [0, 4, 40])
def test_figure_with_few_cells_near_the_trajectory(trajectory, groups_n, n_near):
    position_n = np.full(len(groups_n), np.nan)
    position_n[:n_near] = np.linspace(0.3, 0.6, n_near)
    figure = draw_figure(dataclasses.replace(trajectory, pseudotime_n=position_n), groups_n)
    assert_nothing_is_cut_off(figure)
    names = [text for texts in legends(figure) for text in texts]
    assert ("cells' mean ± s.e." in names) == (n_near == 40)
    assert ("cells" in names) == (n_near > 0)


def test_figure_of_a_trajectory_without_changes(trajectory, groups_n):
    no_changes = dataclasses.replace(trajectory.changes, effect_g=np.zeros(len(trajectory.genes)))
    flat = dataclasses.replace(trajectory, changes=no_changes)
    assert len(heat_map_genes(flat)) == 0
    assert_nothing_is_cut_off(draw_figure(flat, groups_n))


def test_figure_of_paired_trajectories(bundle, groups_n):
    assert_nothing_is_cut_off(draw_figure(bundle, groups_n))
    figure = draw_figure(bundle, groups_n, xy_bundle_pt2=bundle.bundle_ptk[:, :, :2])
    thin = [
        found
        for found in panel(figure, "plane").collections
        if isinstance(found, matplotlib.collections.LineCollection)
    ]
    np.testing.assert_allclose(thin[0].get_segments(), bundle.bundle_ptk[:, :, :2])
    assert "4 paired trajectories" in [text for texts in legends(figure) for text in texts]


def test_intermediate_waypoints_are_marked(adata, model, groups_n):
    through = interpolated(adata, model, groups_n, ("stem", "progenitor", "mature_1"))
    ((label, step),) = waypoint_steps(through, groups_n)
    assert label == "progenitor"
    assert 0 < step < 11
    figure = draw_figure(through, groups_n)
    assert "waypoint" in [text for texts in legends(figure) for text in texts]
    assert "progenitor" in {text.get_text() for text in panel(figure, "plane").texts}
    assert waypoint_steps(through, None) == []
    thrice_pt2 = np.stack([through.z_tk[:, :2]] * 3)
    full_figure = draw_figure(with_off_manifold(through, np.arange(12) > 8), groups_n, xy_bundle_pt2=thrice_pt2)
    frame = panel(full_figure, "plane").get_window_extent()
    below = [legend for legend in full_figure.findobj(matplotlib.legend.Legend) if len(legend.get_texts()) != 1]
    for legend in below[:3]:
        assert legend.get_window_extent().x1 <= frame.x1


def test_steps_in_the_plane_are_averages_of_near_cells(trajectory, adata):
    xy_n2 = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    xy_t2 = steps_in_plane(trajectory, xy_n2)
    assert xy_t2.shape == (12, 2)
    weight_j = np.arange(trajectory.steps.nearest_tj.shape[1], 0, -1)
    for end in (0, -1):
        np.testing.assert_allclose(
            xy_t2[end], np.average(xy_n2[trajectory.steps.nearest_tj[end]], axis=0, weights=weight_j)
        )
    raw_t2 = np.stack([np.average(xy_n2[cells], axis=0, weights=weight_j) for cells in trajectory.steps.nearest_tj])
    assert np.abs(np.diff(xy_t2, 2, axis=0)).sum() < np.abs(np.diff(raw_t2, 2, axis=0)).sum()
    np.testing.assert_allclose(steps_in_plane(trajectory, np.ones((adata.n_obs, 2))), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_figure_files_are_reproducible(tmp_path, trajectory, groups_n, kind):
    off_t = np.arange(12) > 8
    for name in ("first", "second"):
        save_figure(draw_figure(with_off_manifold(trajectory, off_t), groups_n), tmp_path / f"{name}{kind}")
    first, second = ((tmp_path / f"{name}{kind}").read_bytes() for name in ("first", "second"))
    assert first == second
    assert first.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[kind])
    assert len(list(tmp_path.iterdir())) == 2


def test_matplotlib_settings_of_the_caller_have_no_effect_and_are_kept(tmp_path, trajectory, groups_n):
    save_figure(draw_figure(trajectory, groups_n), tmp_path / "plain.svg")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": "mine"}):
        before = dict(matplotlib.rcParams)
        save_figure(draw_figure(trajectory, groups_n), tmp_path / "styled.svg")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "styled.svg").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_failed_write_keeps_the_old_figure(tmp_path, monkeypatch, kind):
    target = tmp_path / f"plot{kind}"
    target.write_text("before")

    def fail(self, file, **options):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(DataError, match="is full"):
        save_figure(Figure(), target)
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_invalid_figure_files_are_refused(tmp_path):
    for name in ("plot.jpg", "plot", "plot.h5ad"):
        with pytest.raises(ConfigError, match=r"\.png, \.pdf, \.svg|no picture") as caught:
            check_figure_file(tmp_path / name, force=True)
        assert ".svg" in caught.value.hint
        with pytest.raises(ConfigError):
            save_figure(Figure(), tmp_path / name)
    for kind in (*KINDS, ".PNG"):
        check_figure_file(tmp_path / f"plot{kind}", force=False)
    (tmp_path / "there.png").touch()
    check_figure_file(tmp_path / "there.png", force=True)
    with pytest.raises(DataError, match="exists"):
        check_figure_file(tmp_path / "there.png", force=False)
    with pytest.raises(DataError, match="not a folder"):
        check_figure_file(tmp_path / "nowhere" / "plot.png", force=False)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        check_figure_file(tmp_path / "folder.png", force=True)
    assert set(figure_file._DPI) == set(KINDS)
