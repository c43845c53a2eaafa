"""The figure of a UMAP shows every cell in the color of its value, for every column and gene."""

from __future__ import annotations

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from command_line import run_ok
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from test_figures import assert_nothing_is_cut_off, panel
from workbench import DATA, assert_refused

import scvae_cli as scvae
from scvae_cli.data.formats import open_store
from scvae_cli.data.gene_expression import log_expression
from scvae_cli.data.gene_names import gene_names
from scvae_cli.errors import DataError
from scvae_cli.report.column_colors import column_colors, palette_colors
from scvae_cli.report.page import NO_GROUP, PALETTE, group_colors
from scvae_cli.tools.embed.coloring import Groups, Values, colorings, column_coloring
from scvae_cli.tools.embed.figure import umap_figure
from scvae_cli.tools.embed.options import parse_colors


def plane(n_cells: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_cells, 2)).astype(np.float32)


def in_groups(n_cells: int, names: list[str | None], title: str = "groups", **options) -> Groups:
    label_n = np.asarray([names[i % len(names)] for i in range(n_cells)], dtype=object)
    order = tuple(dict.fromkeys(label for label in label_n if label is not None))
    return Groups(title=title, label_n=label_n, order=order, **options)


def colors_drawn(figure, title: str) -> dict[tuple[float, float], tuple[float, ...]]:
    """Return the color of every drawn cell, by its position."""
    found = {}
    for cells in panel(figure, title).collections:
        faces = cells.to_rgba(cells.get_array()) if cells.get_array() is not None else cells.get_facecolors()
        if len(faces) == 1:
            faces = np.repeat(faces, len(cells.get_offsets()), axis=0)
        for xy, color in zip(np.asarray(cells.get_offsets()), faces, strict=True):
            found[tuple(map(float, xy))] = tuple(np.round(color[:3], 4))
    return found


def legends(figure) -> list[list[str]]:
    return [[text.get_text() for text in axes.texts] for axes in figure.axes if axes.get_label() == "legend"]


def colored(**frame) -> ad.AnnData:
    n_cells = len(next(iter(frame.values())))
    index = [f"c{i}" for i in range(n_cells)]
    adata = ad.AnnData(np.ones((n_cells, 1), dtype=np.float32), obs=pd.DataFrame(index=index))
    for key, column in frame.items():
        adata.obs[key] = column if isinstance(column, np.ndarray) else pd.Series(column).set_axis(index)
    return adata


def coloring_of(column) -> Groups | Values:
    store = open_store(colored(column=column))
    return column_coloring(store, np.ones(len(store.cell_names), dtype=bool), "column")


# --- groups and values of columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "order"),
    [
        (["b", "a", None], ["a", "b"]),
        (["g10", "g9", "g1"], ["g1", "g9", "g10"]),
        (pd.Categorical(["b", "a", "b"], categories=["b", "c", "a"]), ["b", "a"]),
        (pd.Categorical(["10", "9", None]), ["9", "10"]),
        (pd.Categorical([3, 1, 2]), ["1", "2", "3"]),
        (pd.Categorical([0.25, 1.0, 0.25]), ["0.25", "1"]),
        ([True, False, True], ["False", "True"]),
        (np.asarray([2, 1, 2]), ["1", "2"]),
        (np.asarray([2.0, 1.0, np.nan]), ["1", "2"]),
        (pd.array([2, None, 1], dtype="Int64"), ["1", "2"]),
        (pd.array([True, None, False], dtype="boolean"), ["False", "True"]),
        (pd.to_datetime(["2024-05-31", "2023-01-02", "2024-05-31"]), ["2023-01-02", "2024-05-31"]),
        ([None, None, None], []),
        (np.full(3, np.nan), []),
    ],
)
def test_columns_of_labels_become_groups(column, order):
    found = coloring_of(column)
    assert isinstance(found, Groups)
    assert list(found.order) == order
    assert set(found.label_n) - {None} == set(order)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (np.asarray([0.5, 2.0, np.nan]), [0.5, 2, np.nan]),
        (np.asarray([0.5, np.inf, -np.inf]), [0.5, np.nan, np.nan]),
        (np.asarray([0.5, 0.25, 0.75], dtype=np.float32), [0.5, 0.25, 0.75]),
        (pd.array([0.5, None, 1.5], dtype="Float64"), [0.5, np.nan, 1.5]),
        (np.arange(21), np.arange(21)),
        (pd.array([*range(21), None], dtype="Int64"), [*range(21), np.nan]),
    ],
)
def test_columns_of_numbers_become_values(column, expected):
    found = coloring_of(column)
    assert isinstance(found, Values)
    np.testing.assert_array_equal(found.value_n, expected)


def test_file_and_memory_give_the_same_colors(tmp_path):
    path = tmp_path / "cells.h5ad"
    frame = {
        "number": np.asarray([0.5, 1.5, np.nan]),
        "group": pd.Categorical(["b", None, "a"], categories=["b", "a"]),
        "flag": [True, False, True],
        "counted": pd.array([1, None, 2], dtype="Int64"),
        "numbered": pd.Categorical([2, 1, 2]),
    }
    adata = colored(**frame)
    adata.write_h5ad(path)
    for key in frame:
        from_memory, from_file = (column_coloring(open_store(x), np.ones(3, dtype=bool), key) for x in (adata, path))
        assert type(from_memory) is type(from_file)
        if isinstance(from_memory, Groups):
            assert list(from_memory.label_n) == list(from_file.label_n)
            assert from_memory.order == from_file.order
        else:
            np.testing.assert_array_equal(from_memory.value_n, from_file.value_n)


# --- genes ------------------------------------------------------------------------------------------------------------


def counts(seed: int, *, dense: bool = False) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    matrix = rng.poisson(0.8, size=(60, 12)).astype(np.float32)
    matrix[3] = 0
    adata = ad.AnnData(matrix if dense else sp.csr_matrix(matrix))
    adata.var_names = [f"gene_{i}" for i in range(12)]
    return adata


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_expression_equals_scanpy(tmp_path, seed, dense):
    adata = counts(seed, dense=dense)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    genes = ["gene_7", "gene_2"]
    normalized = sc.pp.log1p(sc.pp.normalize_total(adata, copy=True), copy=True)
    expected = sc.get.obs_df(normalized, genes).to_numpy()
    for data in (adata, tmp_path / "cells.h5ad"):
        np.testing.assert_allclose(log_expression(open_store(data), "X", genes), expected, rtol=1e-5)


def test_expression_in_raw_and_in_layers():
    adata = counts(0)
    expected = log_expression(open_store(adata), "X", ["gene_5"])
    adata.layers["spliced"] = adata.X.copy()
    adata.raw = adata.copy()
    subset = adata[:, ["gene_5", "gene_0"]].copy()
    np.testing.assert_array_equal(log_expression(open_store(adata), 'layers["spliced"]', ["gene_5"]), expected)
    # raw holds all genes, so the totals are those of all genes.
    np.testing.assert_array_equal(log_expression(open_store(subset), "raw", ["gene_5"]), expected)


def test_real_numbers_are_not_transformed():
    adata = ad.AnnData(np.asarray([[-1.5, 2.0], [0.5, 0.0]], dtype=np.float32))
    np.testing.assert_array_equal(log_expression(open_store(adata), "X", ["1", "0"], real=True), [[2, -1.5], [0, 0.5]])


def test_gene_that_raw_lacks_is_refused():
    adata = counts(0)
    adata.raw = adata[:, ["gene_5", "gene_0"]].copy()
    with pytest.raises(DataError, match="gene 'gene_1' is not in raw"):
        log_expression(open_store(adata), "raw", ["gene_1"])


@pytest.mark.parametrize("codes", [[-999.0], [1e9], [-999.0, 9999.0], [-1e6, np.nan]])
def test_codes_of_missing_values_do_not_change_the_color_scale(codes):
    value_n = np.random.default_rng(0).uniform(20, 65, size=200)
    expected = coloring_of(value_n)
    np.testing.assert_array_equal(expected.value_n, value_n)
    marked_n = np.arange(200) % 3 == 0
    value_n[marked_n] = np.resize(codes, marked_n.sum())
    found = coloring_of(value_n)
    np.testing.assert_array_equal(np.isnan(found.value_n), marked_n)
    named = [f"{mark:g}" for mark in codes if not np.isnan(mark)]
    assert set(found.missing.split(", ")) == {*named, *(["no value"] if np.isnan(codes).any() else [])}
    assert [found.missing] in legends(umap_figure(plane(200), [found]))
    # A number within reach of the others stays on the scale.
    value_n[marked_n] = -1.0
    np.testing.assert_array_equal(coloring_of(value_n).value_n, value_n)


@pytest.mark.parametrize(
    "value_n",
    [
        np.linspace(-1, 1, 60) * 1.7e308,
        np.asarray([1.7e308, -1.7e308, *np.linspace(0, 1, 58)]),
        pd.Series([10**400 * sign + i for i in range(30) for sign in (-1, 1)], dtype=object),
        np.asarray([2**70 + 2**20 * i for i in range(60)], dtype=object),
        np.asarray(["9" * 5000 + str(i % 3) for i in range(60)], dtype=object),
    ],
    ids=["largest floats", "two large floats", "huge integers", "integers beyond int64", "long digits"],
)
@pytest.mark.filterwarnings("error")
def test_numbers_of_any_size_can_be_drawn(value_n):
    figure = umap_figure(plane(60), [coloring_of(value_n)])
    figure.canvas.draw()
    scales = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert all(np.isfinite([*axes.get_xlim()]).all() for axes in scales)


def test_long_numbers_in_labels_are_sorted_by_value():
    labels = ["9" * 5000, "10", "009", "1" + "0" * 5000]
    found = coloring_of(np.asarray(labels, dtype=object))
    assert list(found.order) == ["009", "10", "9" * 5000, "1" + "0" * 5000]


def colorings_by_name(adata: ad.AnnData, names: list[str], column: str | None = None) -> dict[str, Groups | Values]:
    store = open_store(adata)
    genes = gene_names(store, column)
    return colorings(store, np.ones(adata.n_obs, dtype=bool), names, genes=genes, source="X")


def test_color_may_name_a_column_or_a_gene():
    adata = counts(0)
    adata.var["symbol"] = ["TWIN", "TWIN", *(f"SYM{i}" for i in range(2, 12))]
    adata.obs["gene_3"] = "of obs"
    found = colorings_by_name(adata, ["gene_3", "SYM4", "gene_5"], "symbol")
    assert found["gene_3"].order == ("of obs",)
    assert [found[name].title for name in ("SYM4", "gene_5")] == ["SYM4", "SYM5"]
    expected = log_expression(open_store(adata), "X", ["gene_4"])[:, 0]
    np.testing.assert_array_equal(found["SYM4"].value_n, expected)
    with pytest.raises(DataError, match="'TWIN' is the symbol of 2 genes"):
        colorings_by_name(adata, ["TWIN"], "symbol")


@pytest.mark.parametrize(
    ("name", "hint"), [("Batch", "did you mean batch"), ("gene_33", "did you mean gene_3"), ("xyz", "columns: batch")]
)
def test_unknown_color_is_refused_with_a_suggestion(name, hint):
    adata = counts(0)
    adata.obs["batch"] = "a"
    with pytest.raises(DataError, match=f"no column of obs and no gene is called '{name}'") as caught:
        colorings_by_name(adata, [name])
    assert hint in caught.value.hint


@given(st.lists(st.text("ab ", min_size=1, max_size=3), min_size=1, max_size=4))
def test_colors_can_be_given_in_one_text_or_in_several(names):
    expected = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if expected:
        assert parse_colors("--color", names) == parse_colors("--color", ",".join(names)) == expected


# --- figure -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(4, 60), st.lists(st.sampled_from(["a", "b", "γδ T", "$x$", "_y", None]), min_size=1, max_size=6))
def test_every_cell_has_the_color_of_its_group(n_cells, names):
    groups, xy_n2 = in_groups(n_cells, names), plane(n_cells)
    drawn = colors_drawn(umap_figure(xy_n2, [groups]), "groups")
    assert len(drawn) == n_cells
    expected = palette_colors(groups.order)
    for xy, label in zip(xy_n2, groups.label_n, strict=True):
        color = NO_GROUP if label is None else expected[label]
        assert drawn[tuple(map(float, xy))] == tuple(np.round(to_rgb(color), 4))


def test_groups_are_drawn_in_random_order():
    n_cells = 2000
    groups = in_groups(n_cells, ["a", "b", None])
    cells = panel(umap_figure(np.zeros((n_cells, 2)), [groups]), "groups").collections[0]
    colors = [tuple(np.round(color[:3], 4)) for color in cells.get_facecolors()]
    gray = tuple(np.round(to_rgb(NO_GROUP), 4))
    n_gray = colors.count(gray)
    # Cells without a group are drawn first. All other cells are drawn in random order: each half contains as many "a".
    assert set(colors[:n_gray]) == {gray}
    front = colors[n_gray:]
    first = front[: len(front) // 2].count(front[0]) / (len(front) / 2)
    assert 0.4 < first < 0.6


def test_high_values_are_drawn_last_and_missing_values_first():
    value_n = np.random.default_rng(0).normal(size=50)
    value_n[:5] = np.nan
    figure = umap_figure(plane(50), [Values(title="numbers", value_n=value_n)])
    missing, known = panel(figure, "numbers").collections
    np.testing.assert_array_equal(np.sort(missing.get_offsets(), axis=0), np.sort(plane(50)[:5], axis=0))
    np.testing.assert_array_equal(np.asarray(known.get_array()), np.sort(value_n[5:]))
    np.testing.assert_array_equal(known.get_offsets(), plane(50)[np.argsort(value_n)[:45]])
    assert ["no value"] in legends(figure)


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("stored", [["#123456", "teal", "0.5"], ["#123456", "teal"], ["#123456", "teal", "no"], None])
def test_groups_have_the_colors_of_scanpy_or_one_color_in_all_figures(tmp_path, stored, in_file):
    names = ["a", "b", "c"]
    adata = colored(group=pd.Categorical([names[i % 3] for i in range(30)], categories=names[::-1]))
    if stored is not None:
        adata.uns["group_colors"] = np.asarray(stored, dtype=object)
    adata.write_h5ad(tmp_path / "a.h5ad")
    store = open_store(tmp_path / "a.h5ad" if in_file else adata)
    valid = stored is not None and stored[-1] == "0.5"
    expected = dict(zip(names[::-1], ["#123456", "#008080", "#808080"] if valid else PALETTE, strict=False))
    assert column_colors(store, "group") == expected
    some = adata.obs["group"].to_numpy() != "b"
    shown = column_coloring(store, some, "group")
    positions = plane(int(some.sum()))
    drawn = set(colors_drawn(umap_figure(positions, [shown]), "group").values())
    assert drawn == {tuple(np.round(to_rgb(expected[name]), 4)) for name in ("a", "c")}
    assert group_colors(shown.label_n, ["c"], expected) == {name: expected[name] for name in ("c", "a")}


@pytest.mark.parametrize("n_groups", [1, 2, 30, 31, 60, 102, 103, 300])
@pytest.mark.parametrize("name", ["{}", "a very long description of the cell type with number {}", "W" * 60 + "{}"])
def test_any_number_of_groups_fits(n_groups, name):
    names = [name.format(i) for i in range(n_groups)]
    groups = in_groups(max(n_groups, 40), names, on_map=len(name) == 2)
    figure = umap_figure(plane(max(n_groups, 40)), [groups])
    assert_nothing_is_cut_off(figure)
    shown = [text for texts in legends(figure) for text in texts]
    assert len(set(shown)) == len(shown)
    assert len(shown) == (n_groups if n_groups <= 102 else 1)
    n_colors = len(set(colors_drawn(figure, "groups").values()))
    assert n_colors == n_groups if n_groups <= 102 else n_colors >= 102


def test_names_of_clusters_are_written_at_the_clusters():
    groups = in_groups(60, ["0", "1", "2"], on_map=True)
    xy_n2 = plane(60) * 0.1 + 10 * np.asarray([[int(label), int(label) % 2] for label in groups.label_n])
    texts = {text.get_text(): text for text in panel(umap_figure(xy_n2, [groups]), "groups").texts}
    assert set(texts) == {"0", "1", "2"}
    for name, text in texts.items():
        center = np.median(xy_n2[groups.label_n == name], axis=0)
        assert np.linalg.norm(np.asarray(text.xy) - center) < 1


@pytest.mark.parametrize("n_panels", range(8))
def test_any_number_of_panels_fits(n_panels):
    rng = np.random.default_rng(0)
    kinds = [
        in_groups(50, ["a", "b", None], title="few"),
        Values(title="gene", value_n=rng.normal(size=50) * 1e-7, unit="log1p of normalized counts"),
        Values(title="constant", value_n=np.full(50, 1e6)),
        Values(title="nothing", value_n=np.full(50, np.nan)),
        in_groups(50, [None], title="none"),
        in_groups(50, [f"name {i}" for i in range(40)], title="W" * 80),
        Values(title="large", value_n=rng.exponential(1e9, size=50)),
    ]
    figure = umap_figure(plane(50), kinds[:n_panels])
    assert_nothing_is_cut_off(figure)
    axes = [axes for axes in figure.axes if axes.get_xlabel() == "UMAP 1"]
    assert len(axes) == max(n_panels, 1)
    boxes = [a.get_tightbbox() for a in figure.axes]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :] if one.width > 9 and other.width > 9)


def test_figure_without_colors_has_one_color():
    figure = umap_figure(plane(4), [])
    assert set(colors_drawn(figure, "4 cells").values()) == {tuple(np.round(to_rgb(PALETTE[0]), 4))}


def test_points_get_smaller_with_more_cells():
    sizes = [panel(umap_figure(plane(n), []), f"{n:,} cells").collections[0].get_sizes()[0] for n in (4, 2000, 50_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 5


# --- the command ------------------------------------------------------------------------------------------------------


def title_of(figure) -> list[str]:
    return [axes.get_label() for axes in figure.axes if axes.get_xlabel() == "UMAP 1"]


@pytest.fixture
def figures(monkeypatch):
    """The figures that commands save."""
    from scvae_cli.report import figure_file

    saved, save = [], figure_file.save_figure

    def keep(figure, path, **options):
        saved.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(figure_file, "save_figure", keep)
    return saved


@pytest.mark.parametrize(
    ("options", "titles"),
    [
        ([], ["120 cells"]),
        (["--leiden"], ["scvae_leiden"]),
        (["--umap", "--color", "batch,gene_01", "--color", "cell_type"], ["batch", "gene_01", "cell_type"]),
        (["--leiden", "--key-added", "wide", "--color", "batch,wide_leiden"], ["batch", "wide_leiden"]),
    ],
)
def test_options_select_the_colors_of_the_figure(bench, figures, options, titles):
    figure = bench.folder / "umap.png"
    outcome = run_ok(*bench.args("embed", "--plot", figure, *options))
    assert figure.exists()
    assert f"→ {figure}" in outcome.out
    assert title_of(figures[0]) == titles
    assert any(key.startswith("X_umap_") for key in ad.read_h5ad(bench.data).obsm)


def test_figure_of_a_model_with_batches_is_colored_by_batch(bench_with_batches, figures):
    bench = bench_with_batches
    outcome = run_ok(*bench.args("embed", "--plot", bench.folder / "umap.svg"))
    assert title_of(figures[0]) == ["batch"]
    assert 'color="batch"' in outcome.err


def test_new_clusters_are_drawn_instead_of_older_ones(bench, figures):
    run_ok(*bench.args("embed", "--leiden", "--resolution", "5"))
    old = ad.read_h5ad(bench.data).obs["scvae_leiden"].nunique()
    plot = ["--plot", bench.folder / "umap.png", "--color", "scvae_leiden", "--force"]
    run_ok(*bench.args("embed", *plot))
    run_ok(*bench.args("embed", "--leiden", "--resolution", "0.1", *plot))
    n_drawn = [len(set(colors_drawn(figure, "scvae_leiden").values())) for figure in figures]
    assert n_drawn == [old, ad.read_h5ad(bench.data).obs["scvae_leiden"].nunique()]
    assert n_drawn[0] > n_drawn[1]


def test_invalid_colors_are_refused(bench):
    plot = ["--plot", bench.folder / "umap.png"]
    hint = assert_refused(bench.folder, bench.args("embed", *plot, "--color", "celltype"), DATA, "called 'celltype'")
    assert "cell_type" in hint
    hint = assert_refused(bench.folder, bench.args("embed", *plot, "--color", "scvae_leiden"), DATA, "no clusters")
    assert "--leiden" in hint


def test_genes_can_be_given_as_symbols_and_need_not_be_in_the_model(bench, figures):
    def add_gene(adata):
        extra = ad.AnnData(sp.csr_matrix(np.arange(adata.n_obs, dtype=np.float32)[:, None]), obs=adata.obs)
        extra.var_names = ["new"]
        joined = ad.concat([adata, extra], axis=1, merge="same")
        joined.var["symbol"] = [f"Sym_{name}" for name in joined.var_names]
        return joined

    bench.change(add_gene)
    options = ["--gene-symbols", "symbol", "--color", "Sym_gene_01,Sym_new", "--plot", bench.folder / "umap.pdf"]
    run_ok(*bench.args("embed", *options))
    assert title_of(figures[0]) == ["Sym_gene_01", "Sym_new"]


def test_command_and_function_draw_the_same_figure(copied):
    adata = ad.read_h5ad(copied.data)
    paths = [copied.data.with_name(name) for name in ("typed.png", "passed.png")]
    run_ok("embed", copied.data, "-m", copied.model, "--leiden", "--color", "cell_type", "--plot", paths[0])
    before = dict(matplotlib.rcParams)
    scvae.embed(adata, copied.model, leiden=True, color="cell_type", plot=paths[1])
    assert dict(matplotlib.rcParams) == before
    assert paths[0].read_bytes() == paths[1].read_bytes()
