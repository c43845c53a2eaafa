"""Expected counts of cells, from the decoder for the genes of the model, and from library sizes for all other genes.

Letters in array shapes: n cells of a block, g genes, s samples (groups of cells).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
import torch

from scvae_cli.data.minibatches import CellTable, Minibatch
from scvae_cli.model.bundle import Model
from scvae_cli.model.network import CountOutput

# Number of cells in a block. With 20,000 genes, each float64 array of a block then needs 20 MB.
_BLOCK_CELLS = 128
_LEAST_EXPECTED = 1e-10


class CellBlock(NamedTuple):
    """Observed and expected counts of a block of cells; all arrays are float64.

    Parameters
    ----------
    x_ng, library_n
        Observed counts, and library sizes over all genes of the data.
    expected_ng, excess_ng
        Expected counts m, zero inflation included, and overdispersion (Var(x) − m) / m².
    """

    x_ng: np.ndarray
    library_n: np.ndarray
    expected_ng: np.ndarray
    excess_ng: np.ndarray


class ExpectedCounts(Protocol):
    """Counts and expected counts of cells, for a set of genes."""

    @property
    def n_genes(self) -> int:
        """Number of genes."""

    def blocks(self, rows: np.ndarray) -> Iterator[CellBlock]:
        """Return the cells with the given indices, block by block."""


class DecodedGenes:
    """The genes of a model; the decoder gives the expected counts of these genes.

    Parameters
    ----------
    model, table
        A model of counts, and cells. If the model has batches, the batch of every cell must be given.
    library_n
        Library size of each cell, over all genes of the data.
    n_samples, seed
        Number of posterior samples over which a cell's expected counts are averaged, and the random seed of these
        samples.
    """

    def __init__(self, model: Model, table: CellTable, library_n: np.ndarray, *, n_samples: int, seed: int) -> None:
        self._model, self._table, self._library_n, self._n_samples = model, table, library_n, n_samples
        self._noise = torch.Generator().manual_seed(seed)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return int(self._table.n_genes)

    @torch.inference_mode()
    def blocks(self, rows: np.ndarray) -> Iterator[CellBlock]:
        """Return the cells with the given indices, block by block."""
        for start in range(0, len(rows), _BLOCK_CELLS):
            part = rows[start : start + _BLOCK_CELLS]
            cells = self._table.take(part)
            x_ng = cells.x_ng.cpu().double().numpy()
            yield CellBlock(x_ng, self._library_n[part], *self._expected(cells))

    def _expected(self, cells: Minibatch) -> tuple[np.ndarray, np.ndarray]:
        posterior = self._model.vae.encode(cells)
        device = self._model.device
        expected_ng = torch.zeros(cells.n_cells, cells.n_genes, device=device)
        inflation_ng = torch.zeros_like(expected_ng)
        dispersion_g = torch.zeros(cells.n_genes, device=device)
        for _ in range(self._n_samples):
            z_nk = posterior.sample(torch.randn(posterior.mean_nk.shape, generator=self._noise).to(device))
            output = self._model.vae.decode(z_nk, cells.batch_n)
            assert isinstance(output, CountOutput), "earlier code refuses models of real-valued data"
            expected_ng += output.mean_ng(cells.library_n, with_zero_inflation=True) / self._n_samples
            if output.zero_logit_ng is not None:
                inflation_ng += torch.sigmoid(output.zero_logit_ng) / self._n_samples
            if output.log_theta_g is not None:
                dispersion_g = (-output.log_theta_g).exp()
        excess_ng = (dispersion_g + inflation_ng) / (1 - inflation_ng).clamp(min=1e-6)
        # An expected count that float32 rounds to zero is in fact above zero.
        return expected_ng.clamp(min=_LEAST_EXPECTED).cpu().double().numpy(), excess_ng.cpu().double().numpy()


class CountedGenes:
    """Genes that a model lacks; an expected count is the cell's library size times the gene's share of all counts.

    The share of a gene is its proportion of the summed counts of both compared groups. With batches, the share of
    a gene is computed for each batch from the compared cells of this batch. The overdispersion of a gene is estimated
    by the method of moments from the variance between cells of the same sample.

    Parameters
    ----------
    matrix, rows
        Counts of the genes as a CSR matrix, and the index of the cell of each row, in ascending order.
    library_n
        Library size of each cell over all genes of the data; the indices in `rows` refer to this array.
    samples
        Indices of the cells of each sample. All samples together contain all compared cells.
    batch_n
        Batch of each cell, in the same order as `library_n`; None to ignore batches.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        rows: np.ndarray,
        library_n: np.ndarray,
        samples: Sequence[np.ndarray],
        batch_n: np.ndarray | None,
    ) -> None:
        self._matrix, self._rows, self._library_n = matrix.astype(np.float64), rows, library_n
        self._batch_n = np.zeros(len(library_n), dtype=np.int64) if batch_n is None else batch_n
        compared = np.concatenate(samples)
        self._share_g = {b: self._share(compared[self._batch_n[compared] == b]) for b in set(self._batch_n[compared])}
        self._excess_g = self._overdispersion(samples)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return int(self._matrix.shape[1])

    def blocks(self, rows: np.ndarray) -> Iterator[CellBlock]:
        """Return the cells with the given indices, block by block."""
        for start in range(0, len(rows), _BLOCK_CELLS):
            part = rows[start : start + _BLOCK_CELLS]
            library_n = self._library_n[part]
            share_ng = np.stack([self._share_g[batch] for batch in self._batch_n[part]])
            expected_ng = np.maximum(share_ng * library_n[:, None], _LEAST_EXPECTED)
            excess_ng = np.broadcast_to(self._excess_g, expected_ng.shape)
            yield CellBlock(self._counts(part).toarray(), library_n, expected_ng, excess_ng)

    def _counts(self, cells: np.ndarray) -> sp.csr_matrix:
        return self._matrix[np.searchsorted(self._rows, cells)]

    def _share(self, cells: np.ndarray) -> np.ndarray:
        share_g: np.ndarray = np.asarray(self._counts(cells).sum(0)).ravel() / self._library_n[cells].sum()
        return share_g

    def _overdispersion(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        """Estimate the overdispersion (Var(x) − m) / m² by the method of moments, shape (g,), at least 0."""
        beyond_g, square_g = np.zeros((2, self.n_genes))
        for cells in samples:
            if len(cells) < 2:
                continue
            x_ng, library_n, share_g = self._counts(cells), self._library_n[cells], self._share(cells)
            square_sum = share_g**2 * (library_n**2).sum()
            deviation_g = np.asarray(x_ng.multiply(x_ng).sum(0)).ravel() - 2 * share_g * (x_ng.T @ library_n)
            freedom = len(cells) / (len(cells) - 1)
            beyond_g += (deviation_g + square_sum) * freedom - share_g * library_n.sum()
            square_g += square_sum
        return np.maximum(beyond_g, 0) / np.maximum(square_g, np.finfo(float).tiny)
