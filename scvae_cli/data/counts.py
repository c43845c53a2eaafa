"""The class `Counts`, which contains raw counts, and functions that check whether values are raw counts.

For a model with a normal likelihood, a `Counts` object contains real-valued data, and the field `real` is True.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.covariates import CellCovariates, read_covariates
from scvae_cli.data.feature_types import COLUMN, FeatureTypes, feature_types
from scvae_cli.data.known_labels import KnownLabels
from scvae_cli.data.moments import cell_blocks
from scvae_cli.data.rounding import NEAR, VALUES_AT_ONCE, Rounder, not_whole, sign_of_normalization
from scvae_cli.data.row_stack import RowStack
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError
from scvae_cli.shared_options import Rounding

# Numbers above 2³¹ − 1 are not counts of molecules or reads, and float32 stores only their first seven digits.
_LARGEST_COUNT = 2**31 - 1
_REPEATED = "occurs more than once"
# Values that do not occur in raw counts.
_FAULTS: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("NaN", np.isnan),
    ("an infinite value", np.isinf),
    # A transformation and its inverse can make a zero slightly negative.
    ("a negative value ({:.4g})", lambda values: values < -NEAR),
    ("a value too large for a count ({:.4g})", lambda values: values > _LARGEST_COUNT),
    ("values that are not whole numbers ({:.9g})", not_whole),
]
_FAULTS_OF_FRACTIONS = _FAULTS[:4]
_FAULTS_OF_INTEGERS: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("a negative value ({})", lambda values: values < 0),
    ("a value too large for a count ({})", lambda values: values > _LARGEST_COUNT),
]
# Values that are refused in real-valued data. scvae computes in float32, so values outside the range of float32 are
# refused.
_LARGEST = float(np.finfo(np.float32).max)
_FAULTS_OF_REAL: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    *_FAULTS[:2],
    ("a value too large for float32 ({:.4g})", lambda values: np.abs(values) > _LARGEST),
]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Raw counts of n cells × g genes, or real-valued data for a normal likelihood.

    Parameters
    ----------
    matrix
        CSR matrix of float32 without stored zeros. Raw counts are non-negative integers; real numbers are finite.
    cell_names, gene_names, batch
        Names of the cells (n strings) and of the genes (g strings), and the batch of each cell (n strings, or None).
        With several batch keys, a batch is a combination of their categories.
    covariates
        The categories of each cell, and its values of the continuous keys. `covariates` is None if there is at most one
        batch key and no continuous key.
    labels
        Labels of the cells for a training with labels. `labels` is None for a training without labels.
    source
        Matrix from which the values were read: "X", "raw" or 'layers["NAME"]'.
    real
        Whether the values are treated as real numbers. For real numbers, cells have no library size, and no cell is
        treated as empty.
    rounding
        Method by which fractions of counts were rounded; None if all values were whole numbers within the tolerance.
    notes
        Texts on how the values were read: which values were rounded, and which features were left out.
    """

    matrix: sp.csr_matrix
    cell_names: np.ndarray
    gene_names: np.ndarray
    source: str
    batch: np.ndarray | None = None
    covariates: CellCovariates | None = None
    labels: KnownLabels | None = None
    real: bool = False
    rounding: Rounding | None = None
    notes: tuple[str, ...] = ()

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
        """Library size of each cell: the sum of its counts over all genes, shape (n,), float64.

        For real-valued data, the library size of every cell is set to 1.
        """
        if self.real:
            return np.ones(self.n_cells)
        return np.asarray(self.matrix.sum(axis=1, dtype=np.float64)).ravel()

    @property
    def filled(self) -> np.ndarray:
        """Mask of the cells that have counts, shape (n,), bool.

        For real-valued data, all values of the mask are True.
        """
        if self.real:
            return np.ones(self.n_cells, dtype=bool)
        filled: np.ndarray = np.diff(self.matrix.indptr) > 0
        return filled

    def seen_in_g(self, cells: np.ndarray | None = None) -> np.ndarray:
        """Return the number of cells that express each gene, shape (g,).

        Only the cells whose indices are in `cells` are counted. If `cells` is None, all cells are counted.
        """
        seen_in_g = np.zeros(self.n_genes, dtype=np.int64)
        for block in cell_blocks(self.matrix, np.arange(self.n_cells) if cells is None else cells):
            seen_in_g += np.bincount(block.indices, minlength=self.n_genes)
        return seen_in_g

    def cells(self, rows: np.ndarray) -> Counts:
        """Return the counts of the cells that `rows` selects, as indices or as a mask."""
        return self._of_cells(self.matrix[rows], rows)

    def filled_cells(self) -> Counts:
        """Return the counts without the empty cells; the values are not copied."""
        filled, old = self.filled, self.matrix
        parts = (old.data, old.indices, np.append(old.indptr[:-1][filled], old.indptr[-1]))
        return self._of_cells(sp.csr_matrix(parts, shape=(int(filled.sum()), self.n_genes)), filled)

    def _of_cells(self, matrix: sp.csr_matrix, rows: np.ndarray) -> Counts:
        batch = None if self.batch is None else self.batch[rows]
        covariates = None if self.covariates is None else self.covariates.cells(rows)
        labels = None if self.labels is None else self.labels.cells(rows)
        names = self.cell_names[rows]
        return replace(self, matrix=matrix, cell_names=names, batch=batch, covariates=covariates, labels=labels)

    def covariates_of(self, batch_keys: Sequence[str]) -> CellCovariates | None:
        """Return the covariates of the cells, also if there is only one batch key; None if there are none.

        `batch_keys` are the keys with which the counts were read.
        """
        if self.covariates is None and self.batch is not None and len(batch_keys) == 1:
            return CellCovariates.of_one_batch(batch_keys[0], self.batch)
        return self.covariates

    def with_covariates(self, covariates: CellCovariates) -> Counts:
        """Return the counts together with the batches and the continuous covariates of the cells."""
        return replace(self, batch=covariates.batch_n, covariates=None if covariates.is_one_batch else covariates)

    def genes(self, columns: np.ndarray) -> Counts:
        """Return the counts of the genes with the indices `columns`, in the given order.

        If the indices select all genes in their current order, the `Counts` object itself is returned.
        """
        if np.array_equal(columns, np.arange(self.n_genes)):
            return self
        return replace(self, matrix=self.matrix[:, columns].tocsr(), gene_names=self.gene_names[columns])


def read_counts(
    store: CellStore,
    *,
    layer: str | None = None,
    batch_key: str | Sequence[str] | None = None,
    continuous_key: Sequence[str] | None = None,
    real: bool = False,
    rounding: Rounding | None = None,
) -> Counts:
    """Read raw counts or real-valued data from a store (a file or an AnnData).

    If `layer` is given, the values are read from this layer. Without `layer`, raw counts are read from the first of
    `layers["counts"]`, X and raw that contains only non-negative integers, and real-valued data are read from X. With
    `rounding`, a matrix with fractions of counts is read and rounded if no matrix contains only integers. If the counts
    are read from raw, only the genes in var_names are read. Features that are not genes according to
    var["feature_types"] are left out of raw counts.

    Raises a DataError if there are no cells or genes, or if no matrix contains only raw counts. If `real` is True, a
    matrix may contain any finite numbers. Names of genes or cells that are not unique, or that have line breaks, also
    raise a DataError.
    """
    for fault in faults_of_names(store):
        raise fault
    return counts_whatever_names(
        store, layer=layer, batch_key=batch_key, continuous_key=continuous_key, real=real, rounding=rounding
    )


def faults_of_names(store: CellStore) -> list[DataError]:
    """Return an error for names of genes and for names of cells that are not unique or that have line breaks."""
    faults = []
    for kind, frame, names in (("gene", "var", store.gene_names), ("cell", "obs", store.cell_names)):
        duplicate = first_duplicate(names)
        if duplicate is not None:
            message = f"{store.title}: {kind} name {duplicate!r} {_REPEATED}"
            faults.append(DataError(message, f"adata.{frame}_names_make_unique()"))
        elif "\n" in "".join(names):
            broken = next(name for name in names if "\n" in name)
            # A model folder stores one gene or cell name per line, so a name cannot contain a line break.
            message = f"{store.title}: {kind} name {broken!r} has a line break"
            faults.append(DataError(message, f"rename it: adata.{frame}_names = [...]"))
    return faults


def counts_whatever_names(
    store: CellStore,
    *,
    layer: str | None = None,
    batch_key: str | Sequence[str] | None = None,
    continuous_key: Sequence[str] | None = None,
    real: bool = False,
    rounding: Rounding | None = None,
) -> Counts:
    """Read counts like `read_counts`, but also if `faults_of_names` finds faults."""
    n_cells, n_genes = len(store.cell_names), len(store.gene_names)
    if n_cells == 0 or n_genes == 0:
        message = f"{store.title}: the matrix is empty ({n_cells} cells × {n_genes} genes)"
        raise DataError(message, "check how the matrix was made")
    features = None if real else types_of_features(store)
    refusals = []
    candidates = candidate_matrices(store, layer, real=real)
    # All matrices are first tried as raw counts. If no matrix contains raw counts and `rounding` is given, the matrices
    # are tried again with rounding.
    attempts: list[tuple[str, Rounding | None]] = [(name, None) for name in candidates]
    attempts += [(name, rounding) for name in candidates if rounding is not None and not real]
    for name, how in attempts:
        loaded = _load(store, name, features, real=real, rounding=how)
        if isinstance(loaded, str):
            refusals.append(f"{name}: {loaded}")
            continue
        keys = (batch_key,) if isinstance(batch_key, str) else tuple(batch_key or ())
        if not keys and not continuous_key:
            return loaded
        covariates = read_covariates(store, keys, tuple(continuous_key or ()))
        return loaded.with_covariates(covariates)
    if real:
        raise DataError(
            f"{store.title}: not every value is a finite number ({'; '.join(refusals)})",
            "remove or fill in the missing values, or choose another matrix with --layer NAME",
        )
    if any(refusal.endswith(_REPEATED) for refusal in refusals):
        raise DataError(
            f"{store.title}: no raw counts that can be used ({'; '.join(refusals[-len(candidates) :])})",
            "make the names of raw unique: raw = adata.raw.to_adata(); raw.var_names_make_unique(); adata.raw = raw",
        )
    raise DataError(
        f"{store.title}: no raw counts found ({'; '.join(refusals[-len(candidates) :])})",
        'put raw counts in layers["counts"], or use --layer NAME; for fractions of counts (SoupX, alevin, kallisto, '
        "RSEM), use --round nearest or --round stochastic; for values that are not counts, use --likelihood normal",
    )


def types_of_features(store: CellStore) -> FeatureTypes | None:
    """Find out from var["feature_types"] which features are genes; return None if there is no such column.

    Raises a DataError if no feature is a gene.
    """
    if COLUMN not in store.existing("var"):
        return None
    return feature_types(store.var_column(COLUMN), store.title)


def read_rows(
    store: CellStore, source: str, rows: np.ndarray, columns: np.ndarray, *, rounding: Rounding | None = None
) -> sp.csr_matrix:
    """Read selected rows and columns of a matrix as CSR; `read_counts` must have checked the matrix before.

    Only the values of the requested columns are held in memory.

    Parameters
    ----------
    source
        Name of the matrix (`Counts.source`).
    rows, columns
        Indices of the cells of the store, in ascending order, and indices of the columns of the matrix.
    rounding
        Method by which fractions of counts are rounded (`Counts.rounding`).
    """
    stack, start = RowStack(len(columns)), 0
    rounder = Rounder(rounding, store.matrix_genes(source)[columns])
    for block in store.row_blocks(source):
        end = start + block.shape[0]
        inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)] - start
        chosen = block[inside][:, columns].tocsr()
        stack.add(_tidy(rounder.rounded(chosen, store.cell_names[start + inside])))
        start = end
    return stack.matrix()


def candidate_matrices(store: CellStore, layer: str | None, *, real: bool = False) -> list[str]:
    """Return the names of the matrices that may contain raw counts, in the order in which they are tried.

    If `layer` is given, only this layer is returned. For real-valued data without a `layer`, only X is returned. Raises
    a DataError if the layer does not exist, or there is no matrix.
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


def first_duplicate(names: np.ndarray) -> str | None:
    """Return the first name that occurs twice, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return str(name)
        seen.add(name)
    return None


def what_is_wrong(values: np.ndarray, *, real: bool = False, fractions: bool = False) -> tuple[str, int] | None:
    """Find a value that is not a raw count, and return the reason and the index of the value.

    The result is None if all values are raw counts. If `real` is True, any finite values that fit into float32 are
    accepted. If `fractions` is True, finite values that are not negative are accepted. Values very close to a whole
    number, and negative values very close to 0, are always accepted. If a matrix has several kinds of wrong values,
    only one kind is returned.

    >>> what_is_wrong(np.array([0.0, 3.0]))
    >>> what_is_wrong(np.array([1.0, 0.5, -2.0]))
    ('a negative value (-2)', 2)
    """
    if values.size == 0 or values.dtype.kind == "b" or (values.dtype.kind == "u" and values.dtype.itemsize < 4):
        return None
    faults = _FAULTS_OF_INTEGERS if values.dtype.kind in "iu" else _FAULTS
    if real:
        faults = [] if values.dtype.kind in "iu" else _FAULTS_OF_REAL
    elif fractions and values.dtype.kind not in "iu":
        faults = _FAULTS_OF_FRACTIONS
    for reason, has_it in faults:
        for start in range(0, values.size, VALUES_AT_ONCE):
            bad = has_it(values[start : start + VALUES_AT_ONCE])
            if bad.any():
                first = start + int(bad.argmax())
                return reason.format(values[first]), first
    return None


def _load(
    store: CellStore, name: str, features: FeatureTypes | None, *, real: bool, rounding: Rounding | None
) -> Counts | str:
    """Read a whole matrix.

    If the matrix cannot be used, return the reason as text.
    """
    all_genes = store.matrix_genes(name)
    wanted = set(store.gene_names if features is None else store.gene_names[features.are_genes])
    columns: np.ndarray | None = None
    genes = all_genes
    if name == "raw" or (features is not None and features.left_out):
        columns = np.flatnonzero([gene in wanted for gene in all_genes])
        if len(columns) == 0:
            return "none of its genes is in var_names"
        genes = all_genes[columns]
    rounder = Rounder(rounding, genes)
    stack, matrix = RowStack(len(genes)), None
    row, examined = 0, False
    for block in store.row_blocks(name):
        wrong = what_is_wrong(block.data, real=real, fractions=rounding is not None)
        if wrong is not None:
            reason, position = wrong
            cell = store.cell_names[row + int(np.searchsorted(block.indptr, position, side="right")) - 1]
            return f"it has {reason}, first in cell {cell!r}, gene {all_genes[block.indices[position]]!r}"
        if rounding is not None and not examined and block.nnz:
            sign, examined = sign_of_normalization(block), True
            if sign is not None:
                return f"its values are not fractions of counts: {sign}"
        block = block if columns is None else block[:, columns].tocsr()
        if not real:
            block = rounder.rounded(block, store.cell_names[row : row + block.shape[0]])
        row += block.shape[0]
        block = _tidy(block)
        if block.shape[0] == len(store.cell_names):  # the only block, which need not be copied
            matrix = block
            break
        stack.add(block)
    repeated = first_duplicate(genes) if name == "raw" else None
    if repeated is not None:
        return f"it has counts, but its gene name {repeated!r} {_REPEATED}"
    about = [f"{name}: {rounder.about}"] if rounder.about else []
    if features is not None and features.about is not None:
        about.append(f"only genes are modeled; left out: {features.about}")
    return Counts(
        matrix=stack.matrix() if matrix is None else matrix,
        cell_names=store.cell_names,
        gene_names=genes,
        source=name,
        real=real,
        rounding=rounding,
        notes=(*store.notes, *about),
    )


def _tidy(block: sp.csr_matrix) -> sp.csr_matrix:
    """Convert a CSR block to float32, with sorted indices and without stored zeros; copy the block only if necessary.

    Values that a file stores twice for the same position are added, as scipy and anndata do.
    """
    no_zeros = np.count_nonzero(block.data) == len(block.data) == block.nnz
    if block.dtype == np.float32 and no_zeros and block.has_canonical_format:
        return block
    block = block.astype(np.float32)
    block.sum_duplicates()
    block.eliminate_zeros()
    return block
