"""PCA, Harmony, neighbors and labels, compared with scanpy and scikit-learn, and with known answers."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import types

import anndata
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from simulated import counts_of, tree
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier

from scvae_cli.data.counts import Counts
from scvae_cli.errors import DataError
from scvae_cli.evaluation import harmony as harmony_module
from scvae_cli.evaluation.harmony import harmony, has_harmony
from scvae_cli.evaluation.label_agreement import cluster_agreement, silhouette, vote
from scvae_cli.evaluation.log_pca import log_normalized, principal_components, shared_by_bootstrap
from scvae_cli.evaluation.neighbors import nearest_neighbors, shared, shared_by_chance
from scvae_cli.tools.diagnose import embedding_quality as quality_module
from scvae_cli.tools.diagnose.embedding_quality import (
    EMBEDDING,
    HARMONY,
    LEIDEN,
    PCA,
    EmbeddingQuality,
    Scores,
    embedding_quality,
)
from scvae_cli.tools.diagnose.embedding_verdicts import embedding_verdicts


@pytest.fixture(scope="module")
def cells() -> tuple[anndata.AnnData, Counts]:
    """Cells of a tree in two batches."""
    adata = tree(n_cells=500, n_genes=100, n_batches=2, depth=2000)
    return adata, counts_of(adata, "batch")


def three_groups(n: int = 300, k: int = 6, distance: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    """Three groups that lie far apart, and their labels."""
    random = np.random.default_rng(0)
    group_n = random.integers(3, size=n)
    return random.normal(size=(n, k)) + distance * np.eye(k)[group_n], np.asarray(["a", "b", "c"], dtype=object)[
        group_n
    ]


# --- coordinates ------------------------------------------------------------------------------------------------------


def test_components_equal_scanpy(cells):
    adata, counts = cells
    other = adata.copy()
    sc.pp.normalize_total(other)
    sc.pp.log1p(other)
    sc.pp.pca(other, n_comps=30, svd_solver="arpack")
    found = principal_components(log_normalized(counts))
    assert found.shape == (500, 30)
    sign = np.sign((found * other.obsm["X_pca"]).sum(0))
    np.testing.assert_allclose(found[:, :5] * sign[:5], other.obsm["X_pca"][:, :5], atol=0.02)
    np.testing.assert_allclose(found.std(0), other.obsm["X_pca"].std(0), rtol=1e-3)


@pytest.mark.parametrize(("n", "g", "expected"), [(20, 8, 7), (6, 50, 5), (10, 1, 1), (2, 2, 1)])
def test_few_cells_or_genes_have_fewer_components(cells, n, g, expected):
    _, counts = cells
    found = principal_components(log_normalized(counts)[:n, :g])
    assert found.shape == (n, expected)
    assert np.isfinite(found).all()


def test_equal_cells_have_equal_positions(cells):
    _, counts = cells
    alike = log_normalized(counts)[np.zeros(6, dtype=int)]
    assert (principal_components(alike) == 0).all()


def test_harmony_removes_a_simulated_shift_and_keeps_the_groups():
    x_nk, label_n = three_groups()
    batch_n = np.asarray(["one", "two"], dtype=object)[np.random.default_rng(1).integers(2, size=len(x_nk))]
    shifted = x_nk + np.where(batch_n == "one", 0, 4)[:, None] * np.eye(x_nk.shape[1])[4]
    state = np.random.get_state()[1].copy()  # noqa: NPY002  # old versions of harmonypy change this state
    corrected = harmony(shifted, batch_n)
    assert (np.random.get_state()[1] == state).all(), "the global random state is unchanged"  # noqa: NPY002  # see above

    def gap(of_nk: np.ndarray) -> float:
        return float(np.abs(of_nk[batch_n == "one"].mean(0) - of_nk[batch_n == "two"].mean(0)).max())

    assert gap(corrected) < 0.4 * gap(shifted)
    assert vote(corrected, label_n.astype(str)).mean() > 0.99
    np.testing.assert_array_equal(corrected, harmony(shifted, batch_n))


@pytest.mark.parametrize("n", [2, 3, 15, 16, 60])
def test_harmony_accepts_any_number_of_cells(n):
    position_nc = np.random.default_rng(n).normal(size=(n, 1))
    batch_n = np.array(["a", "b"])[np.arange(n) % 2]
    corrected = harmony(position_nc, batch_n)
    assert corrected.shape == (n, 1)
    assert np.isfinite(corrected).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_both_orientations_of_harmonypy_results_are_accepted(monkeypatch, transposed):
    """harmonypy before version 0.1.0 returns a matrix of components × cells, and later versions cells × components."""
    x_nk, label_n = three_groups()
    calls = []

    def run_harmony(data, meta, columns, **options):
        calls.append((data, list(meta[columns[0]]), options))
        return types.SimpleNamespace(Z_corr=2 * (data.T if transposed else data))

    monkeypatch.setitem(sys.modules, "harmonypy", types.SimpleNamespace(run_harmony=run_harmony))
    np.testing.assert_array_equal(harmony(x_nk, label_n, seed=3), 2 * x_nk)
    assert calls[0][1] == list(label_n)
    assert calls[0][2] == {"nclust": 10, "verbose": False, "random_state": 3}


def test_rotated_embeddings_share_all_neighbors_and_unrelated_ones_share_few():
    random = np.random.default_rng(0)
    a_nk, b_nk = random.normal(size=(2, 500, 6))
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    assert shared(nearest_neighbors(a_nk), nearest_neighbors(3 * a_nk @ rotation)) == 1
    found = shared(nearest_neighbors(a_nk), nearest_neighbors(b_nk))
    assert found == pytest.approx(shared_by_chance(500), abs=0.01)


def test_bootstrap_agreement_is_higher_if_genes_are_correlated():
    random = np.random.default_rng(0)
    state_nk, loading_kg = random.normal(size=(300, 3)), random.normal(size=(3, 400))
    clear = sp.csr_matrix(state_nk @ loading_kg + 0.1 * random.normal(size=(300, 400)))
    noise = sp.csr_matrix(random.normal(size=(300, 400)))
    assert shared_by_bootstrap(clear) > 2 * shared_by_bootstrap(noise)
    assert shared_by_bootstrap(clear) == shared_by_bootstrap(clear)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_votes_equal_scikit_learn():
    x_nk, label_n = three_groups(distance=1.5)
    label_n = label_n.astype(str)
    right = np.empty(len(x_nk), dtype=bool)
    for training, test in KFold(5, shuffle=True, random_state=2).split(x_nk):
        fitted = KNeighborsClassifier(15).fit(x_nk[training], label_n[training])
        right[test] = fitted.predict(x_nk[test]) == label_n[test]
    assert 0.4 < right.mean() < 0.95
    np.testing.assert_array_equal(vote(x_nk, label_n, seed=2), right)


def test_simulated_groups_are_found_and_shuffled_labels_are_not():
    x_nk, label_n = three_groups()
    label_n = label_n.astype(str)
    shuffled = np.random.default_rng(0).permutation(label_n)
    assert vote(x_nk, label_n).mean() == 1
    assert vote(x_nk, shuffled).mean() < 0.5
    found, by_chance = cluster_agreement(x_nk, label_n), cluster_agreement(x_nk, shuffled)
    assert found.ari > 0.3
    assert found.nmi > 0.6
    assert abs(by_chance.ari) < 0.03
    assert silhouette(x_nk, label_n) == pytest.approx(silhouette_samples(x_nk, label_n).mean())


# --- whole comparison -------------------------------------------------------------------------------------------------


def test_pca_as_embedding_scores_as_well_as_pca(cells):
    adata, counts = cells
    label_n = np.asarray(adata.obs["cell_type"].astype(str), dtype=object)
    pca_nc = principal_components(log_normalized(counts))
    found = embedding_quality(pca_nc, counts, labels="cell_type", label_n=label_n)
    own, pca, corrected = found.scores
    assert (own.name, pca.name, corrected.name) == (EMBEDDING, PCA, HARMONY)
    assert found.neighbors_shared_with_pca == 1
    assert own.vote_accuracy == pca.vote_accuracy
    assert pca.vote_advantage == (0, 0)
    assert (own.ilisi, own.kbet, own.ari, own.silhouette) == (pca.ilisi, pca.kbet, pca.ari, pca.silhouette)
    assert corrected.ilisi > pca.ilisi
    assert found.n_batches == 2
    assert found.not_installed == ()
    levels = {verdict.topic: verdict.level for verdict in embedding_verdicts(found)}
    assert levels["neighbors"] == levels["labels"] == "good"
    assert levels["batches"] != "good", "Harmony mixes them better"


def test_random_embedding_is_rated_poor(cells):
    adata, counts = cells
    label_n = np.asarray(adata.obs["cell_type"].astype(str), dtype=object)
    noise_nk = np.random.default_rng(0).normal(size=(counts.n_cells, 10))
    found = embedding_quality(noise_nk, counts, labels="cell_type", label_n=label_n)
    verdicts = {verdict.topic: verdict for verdict in embedding_verdicts(found)}
    assert verdicts["neighbors"].level == verdicts["labels"].level == "poor"
    assert "PCA" in verdicts["labels"].remedy or "Harmony" in verdicts["labels"].remedy
    assert verdicts["batches"].level == "good", "noise mixes all"


def test_batches_that_no_method_mixes_are_rated_watch(cells):
    _, counts = cells
    quality = embedding_quality(principal_components(log_normalized(counts)), counts)
    unmixed = dataclasses.replace(
        quality, scores=tuple(dataclasses.replace(one, ilisi=0.001) for one in quality.scores)
    )
    [verdict] = [verdict for verdict in embedding_verdicts(unmixed) if verdict.topic == "batches"]
    assert verdict.level == "watch"
    assert "same kinds of cells" in verdict.remedy


def test_packages_that_are_not_installed_are_left_out_and_listed(cells, monkeypatch):
    adata, counts = cells
    monkeypatch.setattr(quality_module, "has_harmony", lambda: False)
    monkeypatch.setattr(quality_module, "has_leiden", lambda: False)
    label_n = np.asarray(adata.obs["cell_type"].astype(str), dtype=object)
    found = embedding_quality(np.random.default_rng(0).normal(size=(500, 4)), counts, label_n=label_n, labels="x")
    assert [scores.name for scores in found.scores] == [EMBEDDING, PCA]
    assert found.not_installed == (HARMONY, LEIDEN)
    assert all(scores.ari is None and scores.silhouette is not None for scores in found.scores)
    assert "Leiden" not in "".join(verdict.sentence for verdict in embedding_verdicts(found))
    monkeypatch.setattr(harmony_module.importlib.util, "find_spec", lambda _name: None)
    assert not has_harmony()


def test_only_neighbors_are_rated_without_labels_and_batches(cells):
    adata, _ = cells
    found = embedding_quality(np.random.default_rng(0).normal(size=(500, 4)), counts_of(adata))
    assert [verdict.topic for verdict in embedding_verdicts(found)] == ["neighbors"]
    assert all(scores.ilisi is None and scores.vote_accuracy is None for scores in found.scores)
    assert "ilisi" in found.values()["scores"]
    one_batch = counts_of(adata)
    assert not embedding_quality(np.zeros((500, 2)), one_batch).by_batches


def test_rare_labels_and_cells_without_labels_are_left_out(cells):
    _, counts = cells
    label_n = np.asarray(["rare"] * 4 + ["A"] * 246 + ["B"] * 200 + [None] * 50, dtype=object)
    found = embedding_quality(np.random.default_rng(0).normal(size=(500, 4)), counts, labels="x", label_n=label_n)
    assert (found.n_labels, found.n_labeled) == (2, 446)
    with pytest.raises(DataError, match=r"obs\['x'\] has 1 label"):
        embedding_quality(np.zeros((500, 2)), counts, labels="x", label_n=np.where(label_n == "A", "A", None))


@pytest.mark.parametrize(("ari", "level"), [(0.5, "good"), (0.45, "good"), (0.3, "watch")])
def test_clusters_that_agree_less_with_the_labels_than_pca_are_rated_watch(cells, ari, level):
    adata, _ = cells
    label_n = np.asarray(adata.obs["cell_type"].astype(str), dtype=object)
    counts = counts_of(adata)
    pca_nc = principal_components(log_normalized(counts))
    found = embedding_quality(pca_nc, counts, labels="cell_type", label_n=label_n)
    own, pca = found.scores
    scores = dataclasses.replace(own, ari=ari), dataclasses.replace(pca, ari=0.5)
    verdicts = embedding_verdicts(dataclasses.replace(found, scores=scores))
    [verdict] = [verdict for verdict in verdicts if verdict.topic == "labels"]
    assert verdict.level == level
    assert ("PCA" in verdict.remedy) == (level == "watch")


@pytest.mark.parametrize("n_better", range(4))
@pytest.mark.parametrize("vote", [-0.2, -0.03])
def test_pca_is_recommended_only_if_most_measures_are_better_in_pca(cells, vote, n_better):
    """The vote of neighbors is better in PCA, and `n_better` of the other three measures in the embedding."""
    for better in itertools.combinations(("ari", "nmi", "silhouette"), n_better):
        worse = [name for name in ("ari", "nmi", "silhouette") if name not in better]
        own = Scores(name=EMBEDDING, vote_accuracy=0.7, ari=0.5, nmi=0.5, silhouette=0.5, vote_advantage=(0, 0))
        others = dict.fromkeys(better, 0.4) | dict.fromkeys(worse, 0.6)
        pca = Scores(name=PCA, vote_accuracy=0.7 - vote, vote_advantage=(vote, 0.005), **others)
        quality = EmbeddingQuality(
            n_cells=500,
            neighbors_shared_with_pca=0.5,
            neighbors_shared_by_chance=0.1,
            pca_neighbors_shared=0.5,
            scores=(own, pca),
            labels="cell_type",
            n_labels=3,
            n_labeled=500,
        )
        [verdict] = [verdict for verdict in embedding_verdicts(quality) if verdict.topic == "labels"]
        assert verdict.remedy.startswith("use PCA") == (n_better < 2)
        assert verdict.level == ("poor" if vote < -0.05 and n_better < 2 else "watch")
        named = {"ari": "ARI", "nmi": "NMI", "silhouette": "silhouette"}
        assert all(named[name] in verdict.remedy for name in (*better, *worse))
        assert "the vote" in verdict.remedy
