"""In the figures of all commands, no text covers another text or leaves the page, however long names are."""

from __future__ import annotations

import dataclasses
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.figure import Figure
from simulated import TINY
from text_boxes import collisions, cut_off, text_boxes

import scvae_cli as scvae
from scvae_cli.errors import ScvaeWarning
from scvae_cli.options import declarations
from scvae_cli.report import figure_file
from scvae_cli.report.fonts import families, widths_in_em
from scvae_cli.report.page import fitted, head, text_width
from scvae_cli.tools.annotate.figure import annotation_figure
from scvae_cli.verbs import VERBS

N_CELLS, N_GENES = 480, 40
# Kinds of names: short, long with differences at the end, without spaces, wide letters, and with special characters.
NAMES = {
    "short": "{}{}",
    "long": "CD4-positive, alpha-beta memory {} cell of the small intestine, type {}",
    "unbroken": "ENSG00000000000{}.17_with_a_tail_that_goes_on_and_on_{}",
    "wide": "W" * 40 + "{}W{}",
    "Chinese": "小肠固有层中的记忆性辅助性{}淋巴细胞亚群第{}型",
    "special": "$x^2$ {} _y %d \\frac {}",
}
GROUPS, PARTS, TREATMENTS = 6, 2, 3


def data(kind: str) -> anndata.AnnData:
    """Simulate groups of cells with treatments, whose names have the given kind."""
    rng = np.random.default_rng(0)

    def name(what: str, i: int) -> str:
        return NAMES[kind].format(what, i)

    group_n, treatment_n = rng.integers(GROUPS, size=N_CELLS), rng.integers(TREATMENTS, size=N_CELLS)
    log_rate_ng = rng.normal(0, 1, (GROUPS, N_GENES))[group_n]
    log_rate_ng[:, :10] += rng.normal(0, 1.5, (TREATMENTS, 10))[treatment_n]
    counts = sp.csr_matrix(rng.poisson(3 * np.exp(log_rate_ng)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "group": [name("group", i) for i in group_n],
            "part": [name("part", i % PARTS) for i in group_n],
            "treatment": [name("treatment", i) for i in treatment_n],
            "batch": [name("batch", i % 2) for i in range(N_CELLS)],
        },
        index=[f"cell {i}" for i in range(N_CELLS)],
    )
    return anndata.AnnData(counts, obs, pd.DataFrame(index=[name("gene", i) for i in range(N_GENES)]))


def questions(kind: str) -> dict[str, list[dict]]:
    """Return options of every command that draws figures."""

    def name(what: str, i: int) -> str:
        return NAMES[kind].format(what, i)

    groups = [name("group", i) for i in range(GROUPS)]
    genes = [name("gene", i) for i in range(5)]
    treated = {"perturbation_key": "treatment", "control": name("treatment", 0), "treated": name("treatment", 1)}
    treated |= {"groupby": "group", "group": groups[0]}
    return {
        "annotate": [{"labels_key": "group"}, {"labels_key": "group", "coarse_key": "part"}],
        "embed": [{"umap": True, "color": ["group", "treatment", genes[0]]}, {"umap": True, "leiden": True}],
        "score": [{"n_simulated": 200}],
        "de": [{"groupby": "group", "group": groups[0], "reference": groups[1]}],
        "sample": [{"n": 50}, {"n": 50, "groupby": "group", "group": groups[0]}],
        "perturb": [treated],
        "interpolate": [{"groupby": "group", "groups": groups[:n], "n_steps": 11} for n in (2, 3)],
        "optimize": [{"toward": genes[:2], "groupby": "group", "group": groups[0]}],
        "pseudotime": [
            {"groupby": "group", "root": groups[0], "ends": groups[1:4], "genes": genes},
            {"groupby": "group", "root": groups[0]},
        ],
        "diagnose": [{"quick": True, "labels": "group", "n_samples": 4, "refine": 2}],
        "sweep": [{"beta": [0.5, 2]}],
    }


QUESTIONS = questions("short")


def test_every_command_with_a_figure_is_drawn():
    assert {*QUESTIONS} == {
        verb.name for verb in VERBS if any(declared.name == "plot" for declared in declarations(verb.options))
    }


@pytest.fixture(scope="module")
def trained():
    known = {}

    def of(kind: str):
        if kind not in known:
            adata = data(kind)
            known[kind] = adata, scvae.train(adata, **TINY, batch_key="batch", genes="all")
        adata, model = known[kind]
        return adata.copy(), model

    return of


@pytest.mark.parametrize("kind", ["long", "wide"])
@pytest.mark.parametrize(("verb", "which"), [(verb, i) for verb, asked in QUESTIONS.items() for i in range(len(asked))])
@pytest.mark.filterwarnings("ignore")
def test_texts_do_not_overlap(trained, tmp_path, monkeypatch, kind, verb, which):
    adata, model = trained(kind)
    drawn = []
    monkeypatch.setattr(figure_file, "save_figure", lambda figure, *_, **__: drawn.append(figure))
    options = questions(kind)[verb][which] | {"plot": tmp_path / "figure.png"}
    if verb == "sweep":
        without = {name: value for name, value in TINY.items() if name != "n_latent"} | {"max_epochs": 3}
        scvae.sweep(adata, **without, batch_key="batch", genes="all", **options)
    else:
        getattr(scvae, verb)(adata, model, device="cpu", **options)
    [figure] = drawn
    with figure_file.house_style():
        assert (collisions(figure), cut_off(figure)) == ([], [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n_labels", [2, 3, 16, 60, 150, 151, 300])
def test_any_number_of_labels_fits(trained, n_labels):
    adata, model = trained("short")
    result = scvae.annotate(adata, model, labels_key="group", device="cpu", inplace=False)
    rng = np.random.default_rng(0)
    table_cc = np.diag(rng.integers(50, 5000, n_labels)) + rng.poisson(0.2, (n_labels, n_labels)) * 12.0
    quality = dataclasses.replace(result.quality, confusion_cc=table_cc)
    for kind in NAMES if n_labels < 60 else ("long", "wide"):
        labels = tuple(NAMES[kind].format("group", i) for i in range(n_labels))
        figure = annotation_figure(dataclasses.replace(result, labels=labels, quality=quality))
        with figure_file.house_style():
            assert (collisions(figure), cut_off(figure)) == ([], [])
        texts = [text for text, _ in text_boxes(figure)]
        if n_labels <= 150:
            assert sum(f"(n = {n:,.0f})" in text for text in texts for n in set(table_cc.sum(1))) >= n_labels
        else:
            assert any("too many to name" in text for text in texts)
            assert sum(" → " in text and text.endswith(" cells") for text in texts) == 15


def test_missing_characters_are_named_in_one_warning(tmp_path):
    figure = Figure()
    figure.text(0, 0.5, "T\U0010ffff and \U0010fffe\U0010ffff")
    with pytest.warns(ScvaeWarning) as caught:
        figure_file.save_figure(figure, tmp_path / "figure.png")
    [warning] = [str(one.message) for one in caught]
    assert "characters U+10FFFF U+10FFFE," in warning
    assert "fonts-noto-cjk" in warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert widths_in_em("\U0010ffff")[0] > 0
        figure.texts[0].set_text("Zellen β −1 → ü")
        figure_file.save_figure(figure, tmp_path / "other.png")


def test_installed_fonts_follow_the_first_font(monkeypatch):
    known = font_manager.fontManager.ttflist
    added = [dataclasses.replace(known[0], name=name) for name in ("Noto Sans CJK JP", "WenQuanYi Zen Hei")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*known, *added])
    found = families.__wrapped__()
    assert found[0] == "DejaVu Sans"
    assert {"Noto Sans CJK JP", "WenQuanYi Zen Hei"} <= set(found)
    assert found.index("Noto Sans CJK JP") < found.index("WenQuanYi Zen Hei")
    assert set(found) <= {font.name for font in font_manager.fontManager.ttflist}


@given(st.text(min_size=1, max_size=60), st.floats(0.3, 3), st.sampled_from(["normal", "bold"]))
def test_fitted_texts_have_the_given_width(text, wide, weight):
    short = fitted(text, wide, 7, weight)
    assert text_width([short], 7, weight) <= wide or short == "…"
    if text_width([" ".join(text.split())], 7, weight) <= wide / 1.02:
        assert short == " ".join(text.split())


def test_titles_end_before_the_next_panel():
    figure = Figure((7.5, 2))
    for left, letter in ((4.5, "c"), (0.1, "a"), (2.0, "b")):
        head(figure, left, 0.2, letter, "A long title of the panel with many words in it " * 3)
    head(figure, 0.1, 1.0, "d", "A title that has the whole width of the page")
    assert collisions(figure) == []
    assert cut_off(figure) == []
    assert "A title that has the whole width of the page" in [text for text, _ in text_boxes(figure)]
