"""Rounding of nearly whole values to whole counts and, if the user requests it, rounding of fractions of counts.

Counts that were transformed and transformed back, for example by a logarithm and its inverse, differ slightly from
whole numbers. Nearly whole counts are always rounded. Tools that share a molecule between genes (alevin, kallisto,
RSEM) or subtract ambient molecules (SoupX) give fractions of counts, which are rounded only with `--round`.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse as sp

from scvae_cli.shared_options import Rounding

# Number of values of a large matrix that are examined at once, which limits the memory needed.
VALUES_AT_ONCE = 1 << 20
# A value x counts as whole if it differs from a whole number by at most NEAR + NEAR_SHARE · |x|. float32 has seven
# digits, and a transformation and its inverse lose the last digit.
NEAR, NEAR_SHARE = 1e-3, 1e-6
# Number of cells that are examined for signs of a normalization, and smallest number of values in an examined cell.
_EXAMINED_CELLS, _FEWEST_VALUES = 200, 5
_LARGEST_RATIO = 200


def not_whole(values: np.ndarray) -> np.ndarray:
    """Return a mask of the values that are farther from a whole number than the tolerance.

    >>> not_whole(np.array([3.0, 24.000015, 4.5]))
    array([False, False,  True])
    """
    nearest = np.rint(values)
    off: np.ndarray = values != nearest
    if off.any():
        off &= np.abs(values - nearest) > NEAR + NEAR_SHARE * np.abs(values)
    return off


class Rounder:
    """Rounds the values of a matrix, block by block.

    Parameters
    ----------
    how
        How fractions are rounded. With "nearest", values are rounded to the nearest whole number (half to even). With
        "stochastic", a value is rounded up with a probability that equals its fractional part, so that sums stay the
        same on average. Stochastic rounding depends only on the names of the cell and the gene, so that every command
        reads the same counts. With None, only nearly whole values are rounded, and the matrix must not contain
        fractions.
    gene_names
        Names of the columns.

    Attributes
    ----------
    farthest
        Largest difference between a value and the whole number by which it was replaced.
    """

    def __init__(self, how: Rounding | None, gene_names: np.ndarray) -> None:
        self.how = how
        self.farthest = 0.0
        self._gene_names = gene_names
        self._gene_hash_g: np.ndarray | None = None

    def rounded(self, block: sp.csr_matrix, cell_names: np.ndarray) -> sp.csr_matrix:
        """Return a block of rows with whole values. A block that already has whole values is returned unchanged.

        Parameters
        ----------
        block
            CSR matrix with finite values.
        cell_names
            Names of the rows.
        """
        if block.dtype.kind != "f":
            return block
        whole: np.ndarray | None = None
        for part in _parts(block.data.size):
            values = block.data[part]
            nearest = np.rint(values)
            if np.array_equal(values, nearest):
                continue
            if whole is None:
                whole = block.data.copy()
            if self.how == "stochastic":
                fractions = np.flatnonzero(not_whole(values))
                nearest[fractions] = self._drawn(block, part.start + fractions, cell_names)
            self.farthest = max(self.farthest, float(np.abs(values - nearest).max()))
            whole[part] = nearest
        if whole is None:
            return block
        return sp.csr_matrix((whole, block.indices, block.indptr), shape=block.shape)

    @property
    def about(self) -> str | None:
        """Text that says how values were rounded, or None if all values were whole numbers."""
        if self.farthest == 0:
            return None
        if self.how is None:
            return f"rounded to the nearest whole numbers, which are at most {self.farthest:.1g} away"
        return {"nearest": "fractions rounded to the nearest whole number"}.get(
            self.how, "fractions rounded up or down at random, so that sums stay the same on average"
        )

    def _drawn(self, block: sp.csr_matrix, at: np.ndarray, cell_names: np.ndarray) -> np.ndarray:
        """Round the values at the positions `at` of `block.data` up or down at random."""
        if self._gene_hash_g is None:
            self._gene_hash_g = _hashes(self._gene_names)
        rows = np.searchsorted(block.indptr, at, side="right") - 1
        distinct, row_of = np.unique(rows, return_inverse=True)
        uniform = _uniform(_hashes(cell_names[distinct])[row_of], self._gene_hash_g[block.indices[at]])
        below = np.floor(block.data[at])
        drawn: np.ndarray = below + (uniform < block.data[at] - below)
        return drawn


def sign_of_normalization(block: sp.csr_matrix) -> str | None:
    """Look for signs that values are normalized counts and not fractions of counts.

    Returns a text that describes the sign, or None if no sign was found.

    One sign of a normalization is that the values of every cell have the same sum. Another sign of a normalization is
    that all values of a cell are multiples of one number (the value of a single molecule), which differs from cell to
    cell. To recognize log-normalized values, the logarithm is undone first.
    """
    undone: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "normalized": lambda x: x,
        "log-normalized": np.expm1,
        "log2-normalized": lambda x: np.exp2(x) - 1,
    }
    for name, undo in undone.items():
        cells = []
        for row in _rows_of(block):
            # Values of 500 or more are not logarithms of counts, and undoing a logarithm would overflow.
            if row.max() < 500 or name == "normalized":
                cells.append(undo(row.astype(np.float64)))
        if len(cells) < 2:
            continue
        total_n, unit_n = np.array([cell.sum() for cell in cells]), np.array([_unit(cell) for cell in cells])
        if np.ptp(total_n) < 1e-3 * total_n.max():
            return f"they look {name}: all cells have the same total ({total_n[0]:,.6g})"
        multiples = np.array([_are_whole(cell / unit) for cell, unit in zip(cells, unit_n, strict=True)])
        whole = np.mean(np.concatenate([~not_whole(cell) for cell in cells]))
        distinct = len(np.unique(np.round(unit_n, 3 - int(np.floor(np.log10(unit_n.max()))))))
        if multiples.mean() > 0.9 and whole < 0.3 and distinct > len(cells) / 3:
            return (
                f"they look {name}: all values of a cell are multiples of one number, which differs from cell to cell"
            )
    return None


def _rows_of(block: sp.csr_matrix) -> Iterator[np.ndarray]:
    """Yield the positive values of each of the first 200 cells that have at least five values."""
    lengths = np.diff(block.indptr)
    for row in np.flatnonzero(lengths >= _FEWEST_VALUES)[:_EXAMINED_CELLS]:
        values = block.data[block.indptr[row] : block.indptr[row + 1]]
        values = values[values > 0]
        if len(values) >= _FEWEST_VALUES:
            yield values


def _unit(values: np.ndarray) -> float:
    """Return the value of a single molecule in a normalized cell.

    The value is the smallest number among the values of the cell and the differences between these values.
    """
    ordered = np.sort(values)
    steps = np.diff(ordered)
    # Differences below 1e-5 of a value are rounding errors of float32.
    steps = steps[steps > 1e-5 * ordered[1:]]
    return float(min(ordered[0], steps.min(initial=np.inf)))


def _are_whole(ratios: np.ndarray) -> bool:
    # Every number is near a multiple of a much smaller number, so large ratios are no evidence of a normalization.
    small = ratios[ratios < _LARGEST_RATIO]
    return bool(len(small) > 0.8 * len(ratios) and (np.abs(small - np.rint(small)) < 0.05).mean() > 0.95)


def _parts(n_values: int) -> Iterator[slice]:
    return (slice(start, min(start + VALUES_AT_ONCE, n_values)) for start in range(0, n_values, VALUES_AT_ONCE))


def _hashes(names: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each name, which is the same on every machine."""
    # pandas is slow to import, and only this function needs it.
    from pandas.util import hash_array

    hashes: np.ndarray = hash_array(np.asarray(names, dtype=object))
    return hashes


def _uniform(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return a pseudorandom number from 0 to below 1 for each pair of hashes (SplitMix64, Steele et al. 2014)."""
    mixed = left + np.uint64(0x9E3779B97F4A7C15) * right
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform: np.ndarray = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return uniform
