"""Harmony, a correction of principal components for batches (Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0).

Harmony is computed by the optional package harmonypy, which the extra `compare` of scvae-cli installs.

Letters in array shapes: n cells, c components.
"""

from __future__ import annotations

import importlib.util
import logging

import numpy as np


def has_harmony() -> bool:
    """Return whether the optional package harmonypy is installed."""
    return importlib.util.find_spec("harmonypy") is not None


def harmony(pca_nc: np.ndarray, batch_n: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Correct principal components for batches, shape (n, c). There must be more cells (n) than components (c).

    Parameters
    ----------
    pca_nc
        Positions of the cells on the principal components.
    batch_n
        Batch of each cell, shape (n,).

    Raises
    ------
    ModuleNotFoundError
        If harmonypy is not installed (see `has_harmony`).
    """
    import harmonypy
    import pandas as pd

    # Some versions of harmonypy report progress even with verbose=False. Versions before 2.0 also seed numpy's global
    # random generator.
    logger, state = logging.getLogger("harmonypy"), np.random.get_state()  # noqa: NPY002  # harmonypy's own
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        batches = pd.DataFrame({"batch": batch_n.astype(str)})
        # The number of clusters is harmonypy's default, but at least 1, because the default is 0 for 15 cells or fewer.
        n_clusters = max(1, min(round(len(pca_nc) / 30), 100))
        found = harmonypy.run_harmony(
            pca_nc.astype(np.float64),
            batches,
            ["batch"],
            nclust=n_clusters,
            verbose=False,
            random_state=seed % 2**31,
        )
    finally:
        logger.setLevel(level)
        np.random.set_state(state)  # noqa: NPY002  # harmonypy's own
    corrected = np.asarray(found.Z_corr, dtype=np.float64)
    # Versions of harmonypy before 0.1.0 return the transposed matrix, components × cells.
    return corrected if corrected.shape == pca_nc.shape else corrected.T
