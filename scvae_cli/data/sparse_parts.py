"""A check of the sparse matrices of an AnnData that was read from a file.

Neither anndata nor scipy's C code checks the indices of a sparse matrix. A damaged index could therefore make scipy
read or write memory outside the matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import scipy.sparse as sp

if TYPE_CHECKING:
    from anndata import AnnData


def check_sparse(adata: AnnData) -> AnnData:
    """Check the sparse matrices of an AnnData, and return the AnnData.

    Raises a ValueError if the pointers (indptr) of a matrix decrease, or if an index is out of range. The error names
    the matrix.
    """
    matrices: dict[str, Any] = {f'layers["{key}"]': matrix for key, matrix in adata.layers.items() if key is not None}
    matrices["X"] = adata.X
    if adata.raw is not None:
        matrices["raw"] = adata.raw.X
    for name, matrix in matrices.items():
        if sp.issparse(matrix) and matrix.format in ("csr", "csc"):
            try:
                matrix.check_format(full_check=True)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return adata
