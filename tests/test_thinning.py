"""Thinning divides counts into two parts of the right sizes that add up, and the loss is smallest at the true means."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import gammaln
from scipy.stats import binom, binomtest, chisquare, poisson

from scvae_cli.data.counts import Counts
from scvae_cli.evaluation.thinning import KEPT, thin


def as_counts(matrix: np.ndarray) -> Counts:
    n, g = matrix.shape
    return Counts(
        matrix=sp.csr_matrix(matrix.astype(np.float32)),
        cell_names=np.asarray([f"cell_{i}" for i in range(n)], dtype=object),
        gene_names=np.asarray([f"gene_{i}" for i in range(g)], dtype=object),
        source="X",
        batch=np.asarray([f"batch_{i % 2}" for i in range(n)], dtype=object),
    )


@pytest.fixture(scope="module")
def mean_ng():
    """Expected counts of cells in three states that differ in a third of their genes, with two library sizes."""
    random = np.random.default_rng(1)
    state_cg = np.exp(random.normal(0, 1.2, (3, 200)))
    state_cg /= state_cg.sum(1, keepdims=True)
    return state_cg[random.integers(0, 3, 400)] * random.choice([300.0, 900.0], 400)[:, None]


@pytest.fixture(scope="module")
def counts(mean_ng):
    return as_counts(np.random.default_rng(2).poisson(mean_ng))


def test_parts_add_up_to_the_counts(counts):
    before = counts.matrix.copy()
    thinned = thin(counts)
    assert (thinned.kept.matrix + thinned.withheld != counts.matrix).nnz == 0
    for part in (thinned.kept.matrix, thinned.withheld):
        assert part.dtype == np.float32
        assert (part.data > 0).all()
        assert (part.data == np.rint(part.data)).all()
    # The input is not changed, including explicit zeros and order.
    assert np.array_equal(counts.matrix.data, before.data)
    assert np.array_equal(counts.matrix.indices, before.indices)


@pytest.mark.parametrize("share", [KEPT, 0.5])
def test_each_molecule_is_kept_with_the_same_probability(counts, share):
    thinned = thin(counts, share=share, seed=3)
    kept, total = int(thinned.kept.matrix.sum()), int(counts.matrix.sum())
    assert binomtest(kept, total, share).pvalue > 1e-3
    # Of counts of three, 0 to 3 molecules are kept as often as a binomial distribution predicts.
    of_three = np.asarray(counts.matrix.todense()) == 3
    kept_of_three = np.asarray(thinned.kept.matrix.todense())[of_three].astype(int)
    expected = binom.pmf(np.arange(4), 3, share) * of_three.sum()
    assert chisquare(np.bincount(kept_of_three, minlength=4), expected).pvalue > 1e-3


def test_draws_depend_only_on_the_seed(counts):
    first, second, other = (thin(counts, seed=seed).kept.matrix for seed in (5, 5, 6))
    assert (first != second).nnz == 0
    assert (first != other).nnz > 0


def test_loss_equals_that_of_a_poisson(counts, mean_ng):
    thinned = thin(counts)
    predicted_ng = KEPT * mean_ng
    losses = thinned.poisson_loss(np.array_split(predicted_ng, 7))
    x_ng = np.asarray(thinned.withheld.todense())
    expected_ng = (1 - KEPT) * mean_ng
    reference = -(poisson.logpmf(x_ng, expected_ng) + gammaln(x_ng + 1)).sum(1)
    np.testing.assert_allclose(losses, reference, rtol=1e-6)


def test_loss_of_an_unexpected_gene_is_large_but_finite():
    thinned = thin(as_counts(np.full((3, 4), 50)))
    losses = thinned.poisson_loss([np.zeros((3, 4))])
    assert np.isfinite(losses).all()
    assert (losses > 10).all()


def test_true_mean_has_the_smallest_loss(counts, mean_ng):
    """The truth is compared with means that average over different cells, and with means that repeat the noise of the
    kept part.
    """
    thinned = thin(counts)
    kept_ng = np.asarray(thinned.kept.matrix.todense())
    truth = KEPT * mean_ng
    average = mean_ng.mean(0) / mean_ng.sum() * len(mean_ng) * KEPT * mean_ng.sum(1, keepdims=True)
    losses = {
        "truth": truth,
        "blurred": 0.7 * truth + 0.3 * average,
        "sharpened": 0.7 * truth + 0.3 * kept_ng,
        "counts themselves": kept_ng,
    }
    losses = {name: thinned.poisson_loss([values]) for name, values in losses.items()}
    for name in ("blurred", "sharpened", "counts themselves"):
        more = losses[name] - losses["truth"]
        assert more.mean() > 4 * more.std() / np.sqrt(len(more)), name


def test_cells_without_kept_molecules_are_removed_from_both_parts():
    matrix = np.zeros((300, 5))
    matrix[:, 1] = 1
    matrix[::3, 2] = 40
    counts = as_counts(matrix)
    thinned = thin(counts, share=0.5)
    assert 150 < thinned.kept.n_cells < 300
    assert thinned.kept.filled.all()
    assert thinned.withheld.shape == thinned.kept.matrix.shape
    # Rows with the same index in the two parts belong to the same cell.
    position = [int(name.removeprefix("cell_")) for name in thinned.kept.cell_names]
    assert np.array_equal(np.asarray((thinned.kept.matrix + thinned.withheld).todense()), matrix[position])
    assert [f"batch_{i % 2}" for i in position] == list(thinned.kept.batch)
