"""Mixing of batches in an embedding: iLISI and kBET, as scIB defines them (Luecken et al. 2022).

- iLISI (Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0) weights the neighbors of a cell by their distance. The
  weights decrease with distance, at a rate that gives each cell the same effective number of neighbors (perplexity).
  The inverse Simpson index of the batches of the weighted neighbors is the effective number of batches around the cell.
  iLISI is the median effective number of batches over the cells, scaled to the range from 0 to 1. An iLISI of 0 means
  that each cell has neighbors of one batch only. An iLISI of 1 means that all batches are equally frequent around a
  cell.
- kBET (Büttner et al. 2019, doi:10.1038/s41592-018-0254-1) compares, for each cell, the batches of its neighbors with
  the batches of all cells by a χ² test. The acceptance rate of kBET is the fraction of cells for which the χ² test is
  not significant. If cell types are known, the acceptance rate is computed within each cell type and averaged over the
  cell types. The acceptance rate is therefore not lowered by cell types whose frequency differs between batches.

The functions for iLISI and kBET were compared with scib-metrics (`tests/data/make_scib_mixing.py`).

Letters in array shapes: n cells, k coordinates, m neighbors, b batches.
"""

from __future__ import annotations

import numpy as np

from scvae_cli.evaluation.neighbors import neighbors_and_distances

# Number of neighbors and perplexity of iLISI, as in the publication of iLISI.
LISI_NEIGHBORS, PERPLEXITY = 90, 30.0
# Difference of entropies, in nats, and number of steps at which the search for weights with the given perplexity ends.
_TOLERANCE, _TRIES = 1e-5, 50
# Smallest and largest number of neighbors of kBET, and the significance level of its test.
KBET_NEIGHBORS, ALPHA = (15, 50), 0.05
# Smallest number of cells of a cell type for which kBET is computed.
_LEAST_CELLS = 10


def ilisi(x_nk: np.ndarray, batch_n: np.ndarray) -> float:
    """Compute the iLISI of an embedding, scaled to the range from 0 to 1, for cells of at least two batches.

    Parameters
    ----------
    x_nk
        Positions of the cells in the embedding. There should be more than 90 cells.
    batch_n
        Batch of each cell, shape (n,).
    """
    index_nm, distance_nm = neighbors_and_distances(x_nk, LISI_NEIGHBORS)
    names, code_n = np.unique(batch_n.astype(str), return_inverse=True)
    # The perplexity is limited, because with very few cells it would exceed the number of neighbors.
    perplexity = min(PERPLEXITY, index_nm.shape[1] / 3)
    return float((np.median(lisi(distance_nm, code_n[index_nm], perplexity)) - 1) / (len(names) - 1))


def lisi(distance_nm: np.ndarray, code_nm: np.ndarray, perplexity: float) -> np.ndarray:
    """Compute the inverse Simpson index of the batches of each cell's weighted neighbors, shape (n,).

    Parameters
    ----------
    distance_nm, code_nm
        Distance of each neighbor; index of each neighbor's batch, from 0 to b − 1.
    perplexity
        Effective number of neighbors.
    """
    weight_nm = _weights(distance_nm, perplexity)
    share_nb = np.stack([(weight_nm * (code_nm == batch)).sum(1) for batch in range(int(code_nm.max()) + 1)], axis=1)
    index_n: np.ndarray = 1 / np.square(share_nb).sum(1)
    return index_n


def kbet(index_nm: np.ndarray, code_n: np.ndarray) -> float:
    """Compute the acceptance rate of kBET, from 0 to 1.

    Parameters
    ----------
    index_nm
        Indices of the neighbors of each cell.
    code_n
        Index of each cell's batch, from 0 to b − 1. There are at least two batches, and each batch has at least one
        cell.
    """
    from scipy.special import chdtrc

    frequency_b = np.bincount(code_n) / len(code_n)
    observed_nb = np.stack([(code_n[index_nm] == batch).sum(1) for batch in range(len(frequency_b))], axis=1)
    expected_b = frequency_b * index_nm.shape[1]
    statistic_n = (np.square(observed_nb - expected_b) / expected_b).sum(1)
    return float((chdtrc(len(frequency_b) - 1, statistic_n) >= ALPHA).mean())


def kbet_within(x_nk: np.ndarray, batch_n: np.ndarray, label_n: np.ndarray | None = None) -> float | None:
    """Compute the acceptance rate of kBET in an embedding, either over all cells or as the mean over the cell labels.

    The number of neighbors is a quarter of the mean number of cells of a batch, but at least 15 and at most 50. Labels
    with fewer than 10 cells or with a single batch are left out.

    Parameters
    ----------
    x_nk, batch_n
        Positions and batches of the cells.
    label_n
        Label of each cell, shape (n,), with None for a cell without a label. `label_n` is None if no labels are known.

    Returns
    -------
    The acceptance rate, or None if all labels were left out.
    """
    if label_n is None:
        groups = [np.arange(len(x_nk))]
    else:
        groups = [
            np.flatnonzero(label_n == label) for label in sorted({label for label in label_n if label is not None})
        ]
    rates = []
    for rows in groups:
        names, code_n = np.unique(batch_n[rows].astype(str), return_inverse=True)
        if len(rows) < _LEAST_CELLS or len(names) < 2:
            continue
        n_neighbors = int(np.clip(len(rows) / len(names) / 4, *KBET_NEIGHBORS))
        rates.append(kbet(neighbors_and_distances(x_nk[rows], n_neighbors)[0], code_n))
    return float(np.mean(rates)) if rates else None


def _weights(distance_nm: np.ndarray, perplexity: float) -> np.ndarray:
    """Compute weights proportional to exp(−β·distance), with sum 1 and the entropy log(perplexity).

    The rate β of each cell is found by bisection.
    """
    # Subtracting the smallest distance changes no weight after normalization, and prevents an underflow of all weights.
    distance_nm = distance_nm - distance_nm.min(1, keepdims=True)
    n = len(distance_nm)
    beta_n, low_n, high_n = np.ones(n), np.zeros(n), np.full(n, np.inf)
    weight_nm = np.empty_like(distance_nm)
    active = np.arange(n)
    for _ in range(_TRIES):
        weight = np.exp(-beta_n[active, None] * distance_nm[active])
        total = weight.sum(1)
        entropy = np.log(total) + beta_n[active] * (distance_nm[active] * weight).sum(1) / total
        weight_nm[active] = weight / total[:, None]
        excess = entropy - np.log(perplexity)
        wide = excess > 0
        low_n[active[wide]] = beta_n[active[wide]]
        high_n[active[~wide]] = beta_n[active[~wide]]
        active = active[np.abs(excess) >= _TOLERANCE]
        bounded = np.isfinite(high_n[active])
        middle = np.where(bounded, (low_n[active] + np.where(bounded, high_n[active], 0)) / 2, 2 * beta_n[active])
        beta_n[active] = middle
        if not len(active):
            break
    return weight_nm
