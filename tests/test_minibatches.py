"""Minibatches contain the requested counts, whether they are gathered on the host or on the device."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvae_cli.data import minibatches
from scvae_cli.data.minibatches import CellTable, even_batches
from scvae_cli.model.encoder_input import log1p_at_depth

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def matrix():
    rng = np.random.default_rng(0)
    return sp.csr_matrix(rng.poisson(0.4, (300, 37)).astype(np.float32))


@pytest.fixture(params=[False, True], ids=["gathered on the host", "resident on the device"])
def table(request, matrix):
    cells = np.arange(10, 290)
    return CellTable(matrix, np.arange(300) % 3, CPU, cells=cells, resident=request.param)


def test_minibatches_contain_the_counts(table, matrix, monkeypatch):
    monkeypatch.setattr(minibatches, "GATHERED_CELLS", 100)
    order = np.random.default_rng(1).permutation(table.n_cells)
    row_blocks = []
    for rows, cells in table.in_batches(order, 32):
        expected = matrix[rows + 10].toarray()
        np.testing.assert_array_equal(cells.x_ng.numpy(), expected)
        np.testing.assert_allclose(cells.library_n.numpy(), expected.sum(1))
        np.testing.assert_array_equal(cells.batch_n.numpy(), (rows + 10) % 3)
        assert cells.n_cells == cells.nonzeros.n_cells == len(rows)
        assert len(cells.nonzeros.cell) == len(cells.nonzeros.value) == (expected > 0).sum()
        row_blocks.append(rows)
    assert [len(rows) for rows in row_blocks] == [len(rows) for rows in even_batches(order, 32)]
    np.testing.assert_array_equal(np.concatenate(row_blocks), order)


def test_take_and_in_order_return_the_counts(table, matrix):
    rows = np.array([5, 0, 5, 279])
    np.testing.assert_array_equal(table.take(rows).x_ng.numpy(), matrix[rows + 10].toarray())
    blocks = [cells.x_ng.numpy() for _, cells in table.in_order(64)]
    np.testing.assert_array_equal(np.concatenate(blocks), matrix[10:290].toarray())


@pytest.mark.parametrize("fused", [False, True])
def test_encoder_input_is_log1p_of_counts_at_one_depth(table, fused):
    cells = table.take(np.arange(40))
    centre_g = torch.rand(cells.n_genes, generator=torch.Generator().manual_seed(0))
    expected = np.log1p(cells.x_ng.double().numpy() * (1000 / cells.library_n.double().numpy())[:, None])
    found = log1p_at_depth(cells, torch.tensor(1000.0), centre_g, fused=fused)
    np.testing.assert_allclose(found.numpy(), expected - centre_g.numpy(), atol=1e-6)


def test_cell_without_counts_has_only_zeros(matrix):
    empty = matrix.copy()
    empty.data[empty.indptr[7] : empty.indptr[8]] = 0
    empty.eliminate_zeros()
    for resident in (False, True):
        cells = CellTable(empty, None, CPU, resident=resident).take(np.array([6, 7, 8]))
        assert not cells.x_ng[1].any()
        assert cells.batch_n is None


def test_of_cells_selects_other_cells_of_the_same_matrix(table, matrix):
    other = table.of_cells(np.array([3, 1]))
    assert other.resident is table.resident
    assert (other.n_cells, table.n_cells) == (2, 280)
    cells = other.take(np.array([1, 0]))
    np.testing.assert_array_equal(cells.x_ng.numpy(), matrix[[1, 3]].toarray())
    np.testing.assert_allclose(cells.library_n.numpy(), matrix[[1, 3]].toarray().sum(1))
    np.testing.assert_array_equal(cells.batch_n.numpy(), [1, 0])
