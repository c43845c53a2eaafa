"""Labels predicted by `annotate` are correct and calibrated, and unsuitable input is refused in one line.

Letters in array shapes: n cells, m labeled cells, c labels, v views of a cell.
"""

from __future__ import annotations

import functools
import json
import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from command_line import run_cli, run_ok
from scipy.spatial.distance import pdist
from scipy.special import log_softmax
from simulated import TINY, learned, tree
from workbench import DATA, assert_refused

import scvae_cli as scvae
from scvae_cli.errors import DataError, ScvaeWarning
from scvae_cli.tools.annotate.batch_novelty import corrected_novelty, known_type_p
from scvae_cli.tools.annotate.classifier import fit_pool, log_odds, pool_weights, regression
from scvae_cli.tools.annotate.conformal import HeldOutScores
from scvae_cli.tools.annotate.difference import difference
from scvae_cli.tools.annotate.expected import Expected, expected
from scvae_cli.tools.annotate.held_out_novelty import HeldOutNovelty
from scvae_cli.tools.annotate.held_out_parts import chosen_cells, parts_of
from scvae_cli.tools.annotate.novelty import metric_of_all, metric_of_labels, novelty
from scvae_cli.tools.annotate.quality import confusion, macro_f1, reliability
from scvae_cli.tools.annotate.views import Coordinates, fit_scaling


def cells_with_hidden_labels(seed: int = 0, share: float = 0.4):
    """Cells of a tree, of which only some keep their label, and a model of the cells."""
    adata, model = learned()
    adata = adata.copy()
    kept_n = np.random.default_rng(seed).random(adata.n_obs) < share
    adata.obs["known"] = adata.obs["cell_type"].astype(object).where(kept_n)
    return adata, model, kept_n


def predicted_labels(result) -> np.ndarray:
    return np.asarray(result.labels)[result.probability_nc.argmax(1)]


@pytest.fixture(scope="module")
def annotated():
    adata, model, kept_n = cells_with_hidden_labels()
    return adata, model, kept_n, scvae.annotate(adata, model, labels_key="known", inplace=False, unknown_rate=0.05)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_chosen_cells_include_all_cells_of_rare_labels():
    code_n = np.repeat([0, 1, 2, -1], [5000, 1, 20, 10])
    cells = chosen_cells(code_n, 3, seed=0, most=100)
    assert list(np.bincount(code_n[cells])) == [79, 1, 20]
    part_m = parts_of(code_n[cells], unseen_m=np.ones(len(cells), dtype=bool), seed=0)
    assert part_m[code_n[cells] == 1] == [-1]
    assert list(np.bincount(part_m[code_n[cells] == 2])) == [4] * 5


def test_training_cells_of_every_fold_include_every_label():
    code_m = np.repeat(np.arange(200), 2)
    part_m = parts_of(code_m, unseen_m=np.ones(len(code_m), dtype=bool), seed=3)
    for part in range(5):
        assert set(code_m[part_m != part]) == set(range(200))


@pytest.mark.parametrize("n_labels", [2, 4])
def test_log_probabilities_equal_those_of_scikit_learn(n_labels):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x_mj, code_m = rng.normal(size=(60, 3)).astype(np.float32), np.arange(60) % n_labels
    plain = LogisticRegression(C=0.5, max_iter=200, tol=1e-3).fit(x_mj, code_m)
    found = regression(x_mj, code_m, np.ones(60), 0.5).log_probabilities(x_mj)
    np.testing.assert_allclose(found, plain.predict_log_proba(x_mj), atol=1e-4)


def test_regression_on_genes_equals_regression_on_principal_components():
    rng = np.random.default_rng(5)
    log_mg = sp.random(60, 80, density=0.4, format="csr", random_state=5, dtype=np.float32)
    cells = Coordinates(rng.normal(size=(60, 3)), rng.normal(size=(60, 3)), log_mg)
    scaling = fit_scaling(cells)
    views, on_genes = scaling.views(cells), scaling.views_of_genes(cells)
    fitted = regression(views[-1], np.arange(60) % 3, np.ones(60), 1.0)
    same = scaling.on_genes(fitted).log_probabilities(on_genes[-1])
    np.testing.assert_allclose(same, fitted.log_probabilities(views[-1]), atol=1e-3)
    # All components of the scaled genes preserve their distances.
    scaled_mg = log_mg.toarray() / log_mg.toarray().std(0)
    np.testing.assert_allclose(pdist(views[-1]), pdist(np.minimum(scaled_mg, 10)), rtol=1e-3)


def test_pool_weights_recover_the_informative_view_and_the_temperature():
    rng = np.random.default_rng(1)
    true_mc = log_softmax(rng.normal(size=(4000, 3), scale=2), axis=1)
    code_m = (rng.random((4000, 1)) < np.exp(true_mc).cumsum(1)).argmax(1)
    # One view has probabilities that are three times too certain; the other view is noise.
    views = np.stack([log_softmax(3 * true_mc, axis=1), log_softmax(rng.normal(size=(4000, 3)), axis=1)])
    weight_v = pool_weights(views, code_m, np.ones(4000))
    assert weight_v[0] == pytest.approx(1 / 3, abs=0.05)
    # Because of the penalty, the weight of the noise is not exactly zero.
    assert weight_v[1] < 0.15
    np.testing.assert_allclose(np.exp(fit_pool(views, code_m, np.ones(4000)).log_probabilities(views)).sum(1), 1)


@pytest.mark.parametrize(("n_cells", "tolerance"), [(8000, 0.15), (4, None)])
def test_biases_of_labels_are_found_if_there_are_enough_cells(n_cells, tolerance):
    rng = np.random.default_rng(2)
    view_mc, bias_c = log_softmax(rng.normal(size=(n_cells, 3), scale=2), axis=1), np.array([0.8, -0.6, -0.2])
    true_mc = log_softmax(0.5 * view_mc + bias_c, axis=1)
    code_m = (rng.random((n_cells, 1)) < np.exp(true_mc).cumsum(1)).argmax(1)
    found = fit_pool(view_mc[None], code_m, np.ones(n_cells))
    if tolerance is None:
        assert np.abs(found.bias_c).max() < 1.5
    else:
        np.testing.assert_allclose(found.bias_c - found.bias_c.mean(), bias_c, atol=tolerance)
        assert found.weight_v[0] == pytest.approx(0.5, abs=0.05)


def test_log_odds_are_accurate_for_extreme_probabilities():
    log_p_nc = log_softmax(np.array([[0.0, -100.0, -101.0], [0.5, 0.0, 0.2]]), axis=1)
    odds_nc = log_odds(log_p_nc)
    assert odds_nc[0, 0] == pytest.approx(100 - np.log1p(np.exp(-1)), abs=1e-9)
    p_c = np.exp(log_p_nc[1])
    np.testing.assert_allclose(odds_nc[1], np.log(p_c / (1 - p_c)))


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enough", [50, 10_000])
def test_p_values_are_uniform_for_exchangeable_cells(enough):
    rng = np.random.default_rng(2)
    scores = HeldOutScores(rng.normal(size=3000), np.zeros(3000, dtype=int), np.arange(3000) % 5, 2, enough)
    p_n = scores.p_values(np.broadcast_to(rng.normal(size=4000), (5, 4000)), 0)
    for level in (0.05, 0.1, 0.5):
        assert (p_n <= level).mean() == pytest.approx(level, abs=0.03)
    own_m = scores.p_values_of_held_out(scores.score_m, 0)
    assert (own_m <= 0.1).mean() == pytest.approx(0.1, abs=0.02)


def test_rare_labels_pool_their_held_out_cells():
    code_m = np.repeat([0, 1, 2, 3], [200, 30, 30, 5])
    scores = HeldOutScores(np.zeros(265), code_m, np.zeros(265, dtype=int), 4, 50)
    assert [int(scores.compared_with(label).sum()) for label in range(4)] == [200, 65, 65, 65]
    few = HeldOutScores(np.zeros(30), np.repeat([0, 1], 15), np.zeros(30, dtype=int), 2, 50)
    assert few.compared_with(0).all()


def test_quality_metrics_equal_those_of_scikit_learn():
    from sklearn.metrics import confusion_matrix, f1_score

    rng = np.random.default_rng(3)
    code_m, found_m = rng.integers(4, size=300), rng.integers(4, size=300)
    table_cc = confusion(found_m, code_m, np.ones(300), 4)
    np.testing.assert_array_equal(table_cc, confusion_matrix(code_m, found_m))
    assert macro_f1(table_cc) == pytest.approx(f1_score(code_m, found_m, average="macro"))
    top_m = rng.random(20_000)
    assert reliability(top_m, rng.random(20_000) < top_m, np.ones(20_000)).error < 0.015
    assert reliability(top_m, rng.random(20_000) < top_m**2, np.ones(20_000)).error == pytest.approx(1 / 6, abs=0.015)


def test_novelty_ignores_directions_in_which_all_cells_vary():
    rng = np.random.default_rng(4)
    x_mj = rng.normal(size=(600, 3)) * [10, 1, 0.1]
    code_m = np.arange(600) % 2
    x_mj[:, 1] += 8 * code_m
    labels, all_cells = metric_of_labels(x_mj, code_m, 2), metric_of_all(x_mj)
    along, away = novelty(np.array([[60.0, 0, 0], [0, 0, 2.0]]), labels, all_cells)
    between = novelty(np.array([[0.0, 4.0, 0]]), labels, all_cells)[0]
    assert between > along + 5
    assert np.isfinite(away)


@pytest.mark.parametrize(
    ("shares", "shift", "clear"), [((0.5, 0.5), 0.0, False), ((0.9, 0.2), 0.0, False), ((0.5, 0.5), 0.7, True)]
)
def test_difference_is_clear_only_if_cells_of_equal_label_differ(shares, shift, clear):
    rng = np.random.default_rng(5)
    found = []
    for share in shares:
        label_n = (rng.random(800) < share).astype(int)
        # The labels differ in the first coordinate. A shift of the second coordinate does not depend on the labels.
        x_nj = (
            rng.normal(size=(800, 20)) + np.outer(label_n, np.eye(20)[0] * 5) + np.eye(20)[1] * shift * len(found) / 2
        )
        found += [x_nj, label_n]
    result = difference(*found, seed=0)
    assert result.is_clear == clear
    assert (result.auc < 0.58) != clear
    assert difference(found[0][:10], found[1][:10], found[2], found[3], seed=0) is None


def scores_of(rng, n_cells, n_labels=4):
    """Negative novelty and predicted label of cells of known types, with a typical novelty for each label."""
    label_n = rng.integers(n_labels, size=n_cells)
    return -rng.normal(5 * label_n, 1 + label_n), label_n


@pytest.mark.parametrize("new_share", [0.0, 0.15, 0.7])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.5, 1.0), (0.0, 2.5), (1.5, 2.5)])
def test_known_types_in_a_new_batch_get_the_novelty_of_labeled_batches(shift, scale, new_share):
    """Novelty of a batch is shifted by interquartile ranges and scaled, and some cells are of new types."""
    rng = np.random.default_rng(4)
    usual_m, label_m = scores_of(rng, 3000)
    held = HeldOutScores(usual_m, label_m, np.arange(3000) % 5, 4, 50)
    usual_n, label_n = scores_of(rng, 4000)
    range_n = 1.349 * (1 + label_n)
    low_n = 5 * label_n - range_n / 2
    novelty_n = low_n + shift * range_n + scale * (-usual_n - low_n)
    new_n = rng.random(4000) < new_share
    novelty_n[new_n] = low_n[new_n] + range_n[new_n] * rng.uniform(15, 40, new_n.sum())
    found_kn, _ = corrected_novelty(np.tile(novelty_n, (5, 1)), label_n, held)
    p_n = np.concatenate([held.p_values(-found_kn[:, label_n == c], c) for c in range(4)])
    of_new_n = np.concatenate([new_n[label_n == c] for c in range(4)])
    for level in (0.05, 0.25, 0.5):
        assert (p_n[~of_new_n] <= level).mean() == pytest.approx(level, abs=0.06)
    assert not new_share or (p_n[of_new_n] <= 0.05).mean() > 0.9


@pytest.mark.parametrize("novelty", [20.0, 200.0])
def test_a_batch_of_one_new_type_is_not_taken_for_a_batch_of_known_types(novelty):
    rng = np.random.default_rng(4)
    usual_m, label_m = scores_of(rng, 2000)
    held = HeldOutScores(usual_m, label_m, np.arange(2000) % 5, 4, 50)
    novelty_kn, label_n = np.tile(rng.normal(novelty, 2, 300), (5, 1)), np.zeros(300, dtype=int)
    found_kn, _ = corrected_novelty(novelty_kn, label_n, held)
    assert (held.p_values(-found_kn, 0) <= 0.05).mean() > 0.95


def test_a_new_batch_uses_the_way_to_compute_novelty_that_needs_a_clearly_smaller_correction():
    """Two batches of known types: mapping moved the first batch away from the labeled cells, and fits the second."""
    rng = np.random.default_rng(5)
    usual_m, label_m = scores_of(rng, 2000)
    scores = HeldOutScores(usual_m, label_m, np.arange(2000) % 5, 4, 50)
    held = HeldOutNovelty([], metric_of_all(rng.normal(size=(9, 2))), scores, np.ones(2000))
    usual_n, label_n = scores_of(rng, 1200)
    batch_n = np.repeat([0, 1, -1], 400)
    moved_n = -usual_n + np.where(batch_n == 0, 12.0 * (1 + label_n), 0)
    unmapped_n = -usual_n + np.where(batch_n == 1, 1.5 * (1 + label_n), 0)
    ways = [(held, np.tile(novelty_n, (5, 1))) for novelty_n in (moved_n, unmapped_n)]
    p_n = known_type_p(ways, label_n, batch_n)
    for batch in (0, 1, -1):
        assert (p_n[batch_n == batch] <= 0.05).mean() < 0.1
    first_n = known_type_p(ways[:1], label_n, batch_n)
    assert (first_n[batch_n == 0] <= 0.05).mean() > 0.9
    np.testing.assert_array_equal(p_n[batch_n != 0], first_n[batch_n != 0])


@pytest.mark.parametrize("hidden", [0.0, 0.4])
def test_types_that_mapping_may_have_hidden_give_a_warning(annotated, hidden):
    result = replace(annotated[3], expected=Expected(0.9, 0.05), expected_unmapped=Expected(0.5, 0.05 + hidden))
    assert any("without the corrections of scvae map" in text for text in result.warnings()) == (hidden > 0)


# --- expected accuracy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("missing", [0.0, 0.1, 0.4, 1.0])
def test_cells_of_missing_types_are_expected_to_be_wrong(missing, rate):
    rng = np.random.default_rng(7)
    known_n = rng.random(4000) >= missing
    p_n = np.where(known_n, rng.random(4000), 0.1 * rng.random(4000) ** 3)
    probability_n = rng.uniform(0.6, 1, 4000)
    right_n = known_n & (rng.random(4000) < probability_n) & (p_n > rate)
    found = expected(probability_n, p_n, rng.random(2000), np.ones(2000), rate=rate)
    assert found.of_missing_types == pytest.approx(missing, abs=0.03)
    assert found.accuracy == pytest.approx(right_n.mean(), abs=0.03)


def test_a_few_small_p_values_are_no_missing_type():
    rng = np.random.default_rng(8)
    found = [expected(np.ones(50), rng.random(50), rng.random(500), np.ones(500), rate=0.01) for _ in range(200)]
    assert np.mean([one.of_missing_types == 0 for one in found]) > 0.9


# --- annotate ---------------------------------------------------------------------------------------------------------


def test_hidden_labels_are_predicted_with_the_reported_accuracy(annotated):
    adata, _, kept_n, result = annotated
    right_n = predicted_labels(result) == adata.obs["cell_type"].astype(str)
    assert right_n[~kept_n].mean() > 0.7
    # The accuracy that is measured on labeled cells equals the accuracy of the cells without a label.
    assert right_n[~kept_n].mean() == pytest.approx(result.quality.labels.accuracy, abs=0.06)
    assert right_n[kept_n].mean() == pytest.approx(result.quality.labels.accuracy, abs=1e-9)
    assert right_n[~kept_n].mean() == pytest.approx(result.expected.accuracy, abs=0.06)
    np.testing.assert_allclose(result.probability_nc.sum(1), 1, rtol=1e-5)


def test_calibration_holds_for_cells_without_labels(annotated):
    adata, _, kept_n, result = annotated
    code_n = np.asarray([result.labels.index(label) for label in adata.obs["cell_type"]])
    inside_n = result.set_nc[np.arange(len(code_n)), code_n]
    assert inside_n[~kept_n].mean() == pytest.approx(0.9, abs=0.05)
    assert result.unknown_n[~kept_n].mean() == pytest.approx(0.05, abs=0.04)
    right_n = result.probability_nc.argmax(1) == code_n
    top_n = result.probability_nc.max(1)
    assert reliability(top_n[~kept_n], right_n[~kept_n], np.ones((~kept_n).sum())).error < 0.08


def test_prediction_of_a_labeled_cell_does_not_depend_on_its_own_label():
    adata, model, kept_n = cells_with_hidden_labels()
    cell = int(np.flatnonzero(kept_n & (adata.obs["cell_type"] == "stem"))[0])
    adata.obs.loc[adata.obs_names[cell], "known"] = "mature_1"
    result = scvae.annotate(adata, model, labels_key="known", inplace=False)
    assert predicted_labels(result)[cell] in ("stem", "progenitor")


def test_cells_of_a_type_without_labels_have_lower_p_values():
    adata, model, _ = cells_with_hidden_labels()
    new_n = (adata.obs["cell_type"] == "mature_1").to_numpy()
    adata.obs.loc[new_n, "known"] = None
    with pytest.warns(ScvaeWarning, match="are unknown"):
        result = scvae.annotate(adata, model, labels_key="known", inplace=False, unknown_rate=0.05)
    assert np.median(result.p_n[new_n]) < np.median(result.p_n[~new_n]) / 2
    others_n, share = ~result.labeled_n, new_n[~result.labeled_n].mean()
    assert share / 2 < result.expected.of_missing_types < 1.5 * share
    assert result.expected.accuracy < result.probability_nc[others_n].max(1).mean() - share / 2


def test_labels_in_a_reference_file_give_the_same_predictions(tmp_path):
    adata, model, kept_n = cells_with_hidden_labels()
    adata[kept_n].write_h5ad(tmp_path / "reference.h5ad")
    query = adata[~kept_n].copy()
    del query.obs["known"]
    separate = scvae.annotate(query, model, labels_key="known", reference=tmp_path / "reference.h5ad", inplace=False)
    joint = scvae.annotate(adata, model, labels_key="known", inplace=False)
    np.testing.assert_allclose(separate.probability_nc, joint.probability_nc[~kept_n], atol=1e-3)
    np.testing.assert_array_equal(separate.unknown_n, joint.unknown_n[~kept_n])
    assert separate.labeled_n.sum() == 0


@pytest.mark.parametrize(
    ("values", "labels"),
    [([1, 2], ["1", "2"]), ([1.0, 10.0], ["1", "10"]), ([True, False], ["False", "True"]), (["b", "a"], ["a", "b"])],
)
def test_labels_of_numbers_and_booleans_become_text(values, labels):
    adata, model, _ = cells_with_hidden_labels()
    adata = adata[:120].copy()
    adata.obs["known"] = [values[i % 3] if i % 3 < 2 else None for i in range(120)]
    result = scvae.annotate(adata, model, labels_key="known", inplace=False)
    assert list(result.labels) == labels
    assert list(result.labeled_c) == [40, 40]
    # With so few held-out cells, no cell can be more unusual than 99% of the held-out cells.
    assert not result.unknown_n.any()
    assert "must be at least 0.012" in result.notes()[0]


def test_annotate_accepts_rare_labels_and_many_labels():
    adata, model, _ = cells_with_hidden_labels()
    label_n = [f"type {i % 200}" for i in range(400)] + [None] * 400
    adata.obs["known"] = label_n
    with pytest.warns(ScvaeWarning, match="fewer than 10 labeled cells have \\('type 0': 2"):
        result = scvae.annotate(adata, model, labels_key="known", inplace=False)
    assert result.probability_nc.shape == (800, 200)
    adata.obs["known"] = ["one"] * 797 + ["other"] + [None] * 2
    with pytest.warns(ScvaeWarning, match="one labeled cell \\('other'\\)"):
        scvae.annotate(adata, model, labels_key="known", inplace=False)


@pytest.mark.parametrize("n_labeled", [2, 9, 10])
def test_labels_with_few_labeled_cells_are_reported_if_many_cells_get_them(annotated, n_labeled):
    *_, result = annotated
    got_c = np.bincount(result.code_n[~result.labeled_n], minlength=len(result.labels) + 1)[:-1]
    common = int(got_c.argmax())
    assert got_c[common] > 0.1 * (~result.labeled_n).sum()
    labeled_c = np.full(len(result.labels), 100)
    labeled_c[common] = n_labeled
    found = [text for text in replace(result, labeled_c=labeled_c).warnings() if "fewer than 10 labeled" in text]
    assert len(found) == (n_labeled < 10)
    assert all(f"{result.labels[common]!r}: {n_labeled}" in text for text in found)
    # Labels that few or no cells get are not reported.
    others_n = result.labeled_n | (result.code_n == common)
    of_others = replace(result, labeled_c=labeled_c, labeled_n=others_n).warnings()
    assert not any("fewer than 10 labeled" in text for text in of_others)


@pytest.mark.parametrize(
    ("column", "fragment"),
    [
        ([None] * 800, "no label"),
        (["T cell"] * 700 + [None] * 100, "only the label 'T cell'"),
        ([f"cell {i}" for i in range(800)], "a single cell of each label"),
        (list(np.linspace(0, 1, 800)), "measurements"),
        (["T cell", "unknown"] * 400, "'unknown'"),
        (["T cell", "B | plasma"] * 400, "separates the labels of a prediction set"),
        (["T cell", "B |"] * 400, "separates the labels of a prediction set"),
    ],
)
def test_unsuitable_labels_are_refused(column, fragment):
    adata, model, _ = cells_with_hidden_labels()
    adata.obs["known"] = pd.Series(column, index=adata.obs_names)
    before = set(adata.obs)
    with pytest.raises(DataError, match=fragment):
        scvae.annotate(adata, model, labels_key="known")
    assert set(adata.obs) == before


def test_results_do_not_depend_on_names_and_order_of_labels():
    adata, model, _ = cells_with_hidden_labels()
    first = scvae.annotate(adata, model, labels_key="known", inplace=False)
    adata.obs["known"] = adata.obs["known"].map({name: f"{9 - i} cells" for i, name in enumerate(first.labels)})
    second = scvae.annotate(adata, model, labels_key="known", inplace=False)
    assert list(second.labels) == sorted(second.labels)
    np.testing.assert_array_equal(second.probability_nc[:, ::-1], first.probability_nc)
    np.testing.assert_array_equal(second.set_nc[:, ::-1], first.set_nc)
    np.testing.assert_array_equal(second.p_n, first.p_n)
    np.testing.assert_array_equal(second.labeled_c[::-1], first.labeled_c)
    np.testing.assert_array_equal(second.quality.confusion_cc[::-1, ::-1], first.quality.confusion_cc)


@pytest.mark.parametrize("name", ["nan", "NaN", "NA", "N/A", "None", "?", "unassigned", "Unknown"])
def test_text_that_usually_means_no_label_gives_a_warning(name):
    adata, model, _ = cells_with_hidden_labels()
    adata = adata[:120].copy()
    adata.obs["known"] = [("a", "b", name)[i % 3] for i in range(120)]
    with pytest.warns(ScvaeWarning, match="which is taken as a cell type: use unlabeled "):
        scvae.annotate(adata, model, labels_key="known", inplace=False)
    result = scvae.annotate(adata, model, labels_key="known", unlabeled=name, inplace=False)
    assert result.labels == ("a", "b")


def test_empty_text_counts_as_no_label():
    adata, model, _ = cells_with_hidden_labels()
    adata = adata[:120].copy()
    adata.obs["known"] = [("a", "b", "")[i % 3] for i in range(120)]
    with pytest.warns(ScvaeWarning, match="40 cells have an empty text"):
        result = scvae.annotate(adata, model, labels_key="known", inplace=False)
    assert result.labels == ("a", "b")
    assert result.labeled_n.sum() == 80
    scvae.annotate(adata, model, labels_key="known", unlabeled="", inplace=False)


@functools.cache
def two_batches():
    """Cells of two batches, and a model that was trained with the batches; copy the cells before changing them."""
    adata = tree(300, 60, n_batches=2)
    return adata, scvae.train(adata, **TINY, batch_key="batch")


@pytest.mark.filterwarnings("ignore:the cells without a label differ")
def test_batches_without_labeled_cells_give_a_warning(tmp_path):
    adata, model = two_batches()
    adata = adata.copy()
    first = (adata.obs["batch"] == "batch_1").to_numpy()
    half = np.arange(adata.n_obs) % 2 == 0
    options = {"labels_key": "known", "inplace": False, "unknown_rate": 0.0}
    adata.obs["known"] = adata.obs["cell_type"].astype(object).where(half)
    assert not scvae.annotate(adata, model, **options).difference.is_clear
    adata.obs["known"] = adata.obs["cell_type"].astype(object).where(first)
    with pytest.warns(
        ScvaeWarning, match=f"{(~first).sum()} of .* of a batch without labeled cells .batch_2.: accuracy"
    ):
        found = scvae.annotate(adata, model, **options)
    assert found.difference.is_clear
    assert "sets of cells without a label contain the true label with probability 0.9" in found.warnings()[0]
    reference, query = tmp_path / "reference.h5ad", adata[~first].copy()
    adata[first].copy().write_h5ad(reference)
    with pytest.warns(ScvaeWarning, match="without labeled cells .batch_2."):
        scvae.annotate(query, model, reference=reference, **options)
    scvae.annotate(adata[first].copy(), model, reference=reference, **options)
    del query.obs["batch"]
    with pytest.warns(ScvaeWarning, match="another file, and it is not known"):
        scvae.annotate(query, model, reference=reference, **options)


def test_control_characters_in_labels_are_escaped(copied):
    import anndata as ad

    adata = ad.read_h5ad(copied.data)
    adata.obs["known"] = [("a\n  accuracy 100%\x1b[2K", "b")[i % 2] for i in range(adata.n_obs)]
    adata.write_h5ad(copied.data)
    out = run_ok("annotate", copied.data, "-m", copied.model, "--labels-key", "known").out
    assert "a\\n  accuracy 100%\\x1b[2K" in out
    assert not any(line.startswith("  accuracy") for line in out.splitlines())
    assert "called unknown by mistake (requested: 1%)" in out


def test_next_step_plots_a_umap_or_computes_one(copied):
    import anndata as ad

    command = ["annotate", copied.data, "-m", copied.model, "--labels-key", "cell_type"]
    embed = shlex.join(["scvae", "embed", str(copied.data), "-m", str(copied.model), "--umap"])
    # First with scanpy's UMAP in the data, then with the UMAP of `embed`.
    steps = [embed]
    for key, step in (
        ("X_umap", 'sc.pl.umap(adata, color="scvae_label")'),
        ("X_umap_scvae", 'sc.pl.embedding(adata, basis="umap_scvae", color="scvae_label")'),
    ):
        assert f"next: {steps[-1]}\n" in run_ok(*command).err
        adata = ad.read_h5ad(copied.data)
        adata.obsm[key] = np.zeros((adata.n_obs, 2))
        adata.write_h5ad(copied.data)
        steps.append(step)
    assert f"next: {steps[-1]}\n" in run_ok(*command).err


def test_invalid_options_are_refused_in_one_line(bench):
    assert_refused(bench.folder, bench.args("annotate", "--labels-key", "nothing"), DATA, "no column 'nothing'")
    missing_label = bench.args("annotate", "--labels-key", "cell_type", "--unlabeled", "Unknown")
    assert_refused(bench.folder, missing_label, DATA, "--unlabeled")
    missing_file = bench.args("annotate", "--labels-key", "cell_type", "--reference", bench.folder / "none.h5ad")
    assert run_cli(*missing_file).code == DATA


def test_annotate_writes_labels_and_reports_them_as_json(copied):
    import anndata as ad

    plot = copied.data.with_name("labels.png")
    command = ["annotate", copied.data, "-m", copied.model, "--labels-key", "cell_type", "--unlabeled", "stem"]
    report = json.loads(run_ok(*command, "--json", "--plot", plot).out)
    adata = ad.read_h5ad(copied.data)
    names = list(adata.uns["scvae"]["label_names"])
    assert names == [row["label"] for row in report["labels"]]
    assert "stem" not in names
    assert list(adata.obs["scvae_label"].cat.categories) == [*names, "unknown"]
    p_nc = adata.obsm["scvae_label_probabilities"]
    np.testing.assert_allclose(adata.obs["scvae_label_probability"], p_nc.max(1))
    known_n = (adata.obs["scvae_label"] != "unknown").to_numpy()
    assert (adata.obs["scvae_label"].astype(str).to_numpy() == np.asarray(names)[p_nc.argmax(1)])[known_n].all()
    assert {label for text in adata.obs["scvae_label_set"] for label in text.split(" | ") if text} <= set(names)
    assert report["n_unknown"] == (~known_n).sum()
    assert np.asarray(report["heldout"]["confusion"]).sum() == pytest.approx(report["heldout"]["n_cells"], rel=0.02)
    assert plot.exists()
    assert "regression on genes" in run_ok(*command).out


def test_figure_shows_names_of_labels_only_if_there_are_few(annotated):
    from dataclasses import replace

    from scvae_cli.tools.annotate.figure import annotation_figure

    result = annotated[3]
    few = annotation_figure(result)
    assert (few.axes[0].get_xlabel(), few.axes[0].get_ylabel()) == ("predicted", "true")
    n_cells = result.quality.confusion_cc.sum(1)

    def rows(labels):
        return [f"{label} (n = {n:,.0f})" for label, n in zip(labels, n_cells, strict=True)]

    assert [text.get_text() for text in few.axes[0].get_xticklabels()] == list(result.labels)
    assert [text.get_text() for text in few.axes[0].get_yticklabels()] == rows(result.labels)
    quality = replace(result.quality, confusion_cc=np.eye(150))
    many = annotation_figure(replace(result, labels=tuple(f"type {i}" for i in range(150)), quality=quality))
    long = tuple(f"CD4-positive, alpha-beta memory T cell {i}" for i in range(len(result.labels)))
    wide = annotation_figure(replace(result, labels=long))
    assert [text.get_text() for text in wide.axes[0].get_yticklabels()] == rows(long)
    for figure in (few, many, wide):
        size, box = figure.get_size_inches(), figure.get_tightbbox()
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= size[0]
        assert box.y1 <= size[1]
