"""Raw counts as the rest of the house knows them, and the checks that make them trustworthy.

Real numbers, for a model with a normal likelihood, travel in the same carrier and say so (`real`).

Shapes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.labels import are_measurements, labels_of
from scvae_cli.data.row_stack import RowStack
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError

# Of a large matrix, so many cells or values are looked at together: what is needed for that stays small.
_CELLS_AT_ONCE = 4096
_VALUES_AT_ONCE = 1 << 20

# What raw counts never are.
_FAULTS: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("NaN", np.isnan),
    ("an infinite value", np.isinf),
    ("a negative value ({:.4g})", lambda values: values < 0),
    ("values that are not whole numbers ({:.4g})", lambda values: values != np.rint(values)),
]
_FAULTS_OF_INTEGERS: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("a negative value ({})", lambda values: values < 0)
]
# What no real number may be: the house computes in float32.
_LARGEST = float(np.finfo(np.float32).max)
_FAULTS_OF_REAL: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    *_FAULTS[:2],
    ("a value too large for float32 ({:.4g})", lambda values: np.abs(values) > _LARGEST),
]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Raw counts of n cells × g genes, or real numbers.

    Parameters
    ----------
    matrix
        CSR, float32, holding non-negative integers (real numbers: any that are finite); explicit zeros removed.
    cell_names, gene_names
        n and g strings.
    source
        The matrix they were read from: "X", "raw" or 'layers["NAME"]'.
    batch
        n strings naming each cell's batch, or None.
    real
        Whether the values are real numbers, whatever they look like: these have no depth, and no cell is empty.
    """

    matrix: sp.csr_matrix
    cell_names: np.ndarray
    gene_names: np.ndarray
    source: str
    batch: np.ndarray | None = None
    real: bool = False

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.matrix.shape[0])

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return int(self.matrix.shape[1])

    @property
    def library_n(self) -> np.ndarray:
        """Counts per cell over these genes, shape (n,), float64; of real numbers 1."""
        if self.real:
            return np.ones(self.n_cells)
        return np.asarray(self.matrix.sum(axis=1, dtype=np.float64)).ravel()

    @property
    def filled(self) -> np.ndarray:
        """Which cells have counts, shape (n,), bool; of real numbers all."""
        if self.real:
            return np.ones(self.n_cells, dtype=bool)
        filled: np.ndarray = np.diff(self.matrix.indptr) > 0
        return filled

    def seen_in_g(self, cells: np.ndarray | None = None) -> np.ndarray:
        """In how many cells (or how many of some cells, by index) each gene is seen, shape (g,)."""
        cells = np.arange(self.n_cells) if cells is None else cells
        seen_in_g = np.zeros(self.n_genes, dtype=np.int64)
        for start in range(0, len(cells), _CELLS_AT_ONCE):
            block = self.matrix[cells[start : start + _CELLS_AT_ONCE]]
            seen_in_g += np.bincount(block.indices, minlength=self.n_genes)
        return seen_in_g

    def cells(self, rows: np.ndarray) -> Counts:
        """The counts of some cells, by index or mask."""
        return replace(
            self,
            matrix=self.matrix[rows],
            cell_names=self.cell_names[rows],
            batch=None if self.batch is None else self.batch[rows],
        )

    def filled_cells(self) -> Counts:
        """The counts of the cells that have some; as empty cells hold no values, none is copied."""
        filled, old = self.filled, self.matrix
        parts = (old.data, old.indices, np.append(old.indptr[:-1][filled], old.indptr[-1]))
        return replace(
            self,
            matrix=sp.csr_matrix(parts, shape=(int(filled.sum()), self.n_genes)),
            cell_names=self.cell_names[filled],
            batch=None if self.batch is None else self.batch[filled],
        )

    def genes(self, columns: np.ndarray) -> Counts:
        """The counts of some genes, by index, in that order; all genes in the order they have are not copied."""
        if np.array_equal(columns, np.arange(self.n_genes)):
            return self
        return replace(self, matrix=self.matrix[:, columns].tocsr(), gene_names=self.gene_names[columns])


def read_counts(
    store: CellStore, *, layer: str | None = None, batch_key: str | None = None, real: bool = False
) -> Counts:
    """Read the raw counts of a store, or real numbers.

    Without `layer`, the first matrix that holds non-negative integers is taken: `layers["counts"]`, X, raw (from raw
    only genes that are in var_names). Of real numbers it is X, whatever else there is.

    Raises
    ------
    DataError
        When there are no cells or genes, gene or cell names repeat, or no matrix holds such values.
    """
    check_shape(store)
    duplicate = first_duplicate(store.gene_names)
    if duplicate is not None:
        raise DataError(
            f"{store.title}: gene name {duplicate!r} occurs more than once", "adata.var_names_make_unique()"
        )
    duplicate = first_duplicate(store.cell_names)
    if duplicate is not None:
        raise DataError(
            f"{store.title}: cell name {duplicate!r} occurs more than once", "adata.obs_names_make_unique()"
        )

    names = candidate_matrices(store, layer, real=real)
    refusals = []
    for name in names:
        loaded = _load(store, name, real=real)
        if isinstance(loaded, str):
            refusals.append(f"{name}: {loaded}")
            continue
        batch = None if batch_key is None else read_batch(store, batch_key)
        matrix, genes = loaded
        return Counts(matrix=matrix, cell_names=store.cell_names, gene_names=genes, source=name, batch=batch, real=real)
    if real:
        raise DataError(
            f"{store.title}: not every value is a finite number ({'; '.join(refusals)})",
            "drop or fill in what is missing, or name another --layer",
        )
    raise DataError(
        f"{store.title}: no raw counts found ({'; '.join(refusals)})",
        'raw counts belong in layers["counts"], or name a --layer; values that are no counts are modelled with '
        "--likelihood normal",
    )


def candidate_matrices(store: CellStore, layer: str | None, *, real: bool = False) -> list[str]:
    """The matrices to try for raw counts, in order; of real numbers only X.

    Raises
    ------
    DataError
        For a layer that is not there, or when there is no matrix at all.
    """
    if layer is not None:
        if layer not in store.layer_keys:
            known = ", ".join(store.layer_keys) or "none"
            raise DataError(f"{store.title}: no layer {layer!r}", f"layers in the file: {known}")
        return [f'layers["{layer}"]']
    if real:
        if "X" not in store.matrix_names:
            raise DataError(f"{store.title}: there is no X", "use --layer NAME")
        return ["X"]
    if not store.matrix_names:
        raise DataError(f"{store.title}: there is no X, no raw and no layer called counts", "use --layer NAME")
    return store.matrix_names


def check_shape(store: CellStore) -> None:
    """Refuse a matrix in which nothing can be learned."""
    n_cells, n_genes = len(store.cell_names), len(store.gene_names)
    if n_cells == 0 or n_genes == 0:
        raise DataError(
            f"{store.title}: the matrix is empty ({n_cells} cells × {n_genes} genes)", "check how it was made"
        )


def first_duplicate(names: np.ndarray) -> str | None:
    """The first name that occurs twice, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return str(name)
        seen.add(name)
    return None


def read_batch(store: CellStore, batch_key: str) -> np.ndarray:
    """The batch of every cell, as n strings.

    Raises
    ------
    DataError
        For a column that is not there or has missing values.
    """
    return read_labels(store, batch_key, purpose="--batch-key")


def read_labels(store: CellStore, key: str, *, purpose: str) -> np.ndarray:
    """A categorical column of obs as n strings, refusing missing values."""
    column = obs_values(store, key, purpose=purpose)
    missing = is_missing(column)
    if missing.any():
        cell = store.cell_names[int(np.flatnonzero(missing)[0])]
        raise DataError(
            f"{store.title}: obs[{key!r}] has no value for {int(missing.sum())} cell(s), the first is {cell!r}",
            f'drop them: adata[adata.obs["{key}"].notna()], or fill them in',
        )
    return labels_of(column)


def obs_values(store: CellStore, key: str, *, purpose: str, measured: bool = False) -> np.ndarray:
    """A column of obs, or a DataError that names those that fit; measurements only where they would do."""
    if key not in store.obs_keys:
        names = [name for name in store.obs_keys if _could_name_groups(store, name, measured=measured)]
        known = ", ".join(names) or "none"
        raise DataError(f"{store.title}: no column {key!r} in obs", f"{purpose} takes one of: {known}")
    return store.obs_column(key)


def _could_name_groups(store: CellStore, key: str, *, measured: bool) -> bool:
    try:
        return not are_measurements(store.obs_column(key)) or measured
    except DataError:  # a column that cannot be read, or shares its name with another
        return False


def is_missing(values: np.ndarray) -> np.ndarray:
    """Mask of the values that are None, NaN or pandas' NA."""
    # Here, not above: pandas takes time to import, and a training without batches does without.
    import pandas as pd

    missing: np.ndarray = pd.isna(values)
    return missing


def what_is_wrong(values: np.ndarray, *, real: bool = False) -> tuple[str, int] | None:
    """Say why values are not raw counts, or not even real numbers.

    Returns
    -------
    None when they are finite non-negative integers (real: finite), else the reason and the position of the first
    offender.

    >>> what_is_wrong(np.array([0.0, 3.0]))
    >>> what_is_wrong(np.array([1.0, 0.5, -2.0]))
    ('a negative value (-2)', 2)
    """
    if values.size == 0 or values.dtype.kind in "ub":
        return None
    faults = _FAULTS_OF_INTEGERS if values.dtype.kind == "i" else _FAULTS
    if real:
        faults = [] if values.dtype.kind == "i" else _FAULTS_OF_REAL
    for reason, has_it in faults:
        for start in range(0, values.size, _VALUES_AT_ONCE):
            bad = has_it(values[start : start + _VALUES_AT_ONCE])
            if bad.any():
                first = start + int(bad.argmax())
                return reason.format(values[first]), first
    return None


def _load(store: CellStore, name: str, *, real: bool) -> tuple[sp.csr_matrix, np.ndarray] | str:
    """A whole matrix as CSR with its gene names, or why it holds no raw counts (or no real numbers)."""
    genes = store.matrix_genes(name)
    columns: np.ndarray | None = None
    if name == "raw":
        known = set(store.gene_names)
        columns = np.flatnonzero([gene in known for gene in genes])
        if len(columns) == 0:
            return "none of its genes is in var_names"
        genes = genes[columns]
        repeated = first_duplicate(genes)
        if repeated is not None:
            return f"its gene name {repeated!r} occurs more than once"
    stack = RowStack(len(genes))
    row = 0
    for block in store.row_blocks(name):
        wrong = what_is_wrong(block.data, real=real)
        if wrong is not None:
            reason, position = wrong
            cell = store.cell_names[row + int(np.searchsorted(block.indptr, position, side="right")) - 1]
            gene = store.matrix_genes(name)[block.indices[position]]
            return f"it has {reason}, first in cell {cell!r}, gene {gene!r}"
        row += block.shape[0]
        block = _tidy(block if columns is None else block[:, columns])
        if block.shape[0] == len(store.cell_names):
            return block, genes
        stack.add(block)
    return stack.matrix(), genes


def _tidy(block: sp.csr_matrix) -> sp.csr_matrix:
    """The same in float32, every place stored once and in order, without zeros: a copy, unless it is all that already.

    Places that a file stores twice are added up, as scipy and anndata read them.
    """
    no_zeros = np.count_nonzero(block.data) == len(block.data) == block.nnz
    if block.dtype == np.float32 and no_zeros and block.has_canonical_format:
        return block
    block = block.astype(np.float32)
    block.sum_duplicates()
    block.eliminate_zeros()
    return block
