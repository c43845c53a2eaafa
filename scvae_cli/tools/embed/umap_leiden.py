"""UMAP and Leiden clusters of an embedding, computed by scanpy from one neighbor graph.

Letters in array shapes: n cells, k dimensions of the embedding.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.evaluation.label_agreement import LEIDEN, has_leiden
from scvae_cli.progress import Progress, silent

if TYPE_CHECKING:
    from pandas import Categorical

# UMAP starts from three eigenvectors of the neighbor graph, so the graph needs at least four cells.
MIN_CELLS = 4


@dataclass(frozen=True, kw_only=True)
class UmapLeiden:
    """UMAP and Leiden clusters of n cells.

    Parameters
    ----------
    umap_n2
        Positions of the cells, float32, shape (n, 2); None if no UMAP was requested.
    cluster_n
        Cluster of each cell, a categorical of n strings, "0", "1", …; None if no clusters were requested.
    settings
        Settings of the computation and versions of the packages, for the provenance.
    """

    __repr__ = brief

    umap_n2: np.ndarray | None
    cluster_n: Categorical | None
    settings: dict[str, Any]

    @property
    def n_neighbors(self) -> int:
        """Number of neighbors of a cell in the graph, the cell itself included."""
        return int(self.settings["n_neighbors"])

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the data to which the result is written."""
        slots = [] if self.umap_n2 is None else [Slot(group="obsm", key=names.umap, value=self.umap_n2)]
        if self.cluster_n is not None:
            slots.append(Slot(group="obs", key=names.leiden, value=self.cluster_n))
        return slots


def umap_leiden(
    embedding_nk: np.ndarray,
    *,
    umap: bool,
    leiden: bool,
    n_neighbors: int = 15,
    resolution: float = 1.0,
    seed: int = 0,
    progress: Progress = silent,
) -> UmapLeiden:
    """Compute the UMAP and the Leiden clusters of an embedding.

    The computation uses scanpy's `sc.pp.neighbors`, `sc.tl.umap`, and `sc.tl.leiden` with `flavor="igraph"` and
    `n_iterations=2`. If there are fewer than `n_neighbors` cells, the number of neighbors is the number of cells.

    Raises
    ------
    ConfigError
        If clusters are requested, and igraph is not installed.
    DataError
        If there are fewer than `MIN_CELLS` cells.
    """
    n_cells = len(embedding_nk)
    check_enough_cells(n_cells)
    if leiden:
        check_igraph()
    import anndata as ad
    import scanpy as sc

    n_neighbors = min(n_neighbors, n_cells)
    cells = ad.AnnData(np.zeros((n_cells, 0), dtype=np.float32), obsm={"embedding": np.asarray(embedding_nk)})
    # Warnings of scanpy and umap-learn about their defaults and about threads are hidden, because the user did not
    # choose these settings.
    with warnings.catch_warnings(), progress("neighbor graph", 1 + umap + leiden) as advance:
        warnings.simplefilter("ignore")
        sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="embedding", random_state=seed)
        advance(1)
        if leiden:
            sc.tl.leiden(cells, resolution, random_state=seed, **LEIDEN)
            advance(1)
        if umap:
            sc.tl.umap(cells, random_state=seed)
            advance(1)
    packages = ["scanpy", "umap-learn", "pynndescent", *(["igraph"] if leiden else [])]
    settings: dict[str, Any] = {"umap": umap, "leiden": leiden, "n_neighbors": n_neighbors, "seed": seed}
    settings |= {"resolution": resolution} if leiden else {}
    return UmapLeiden(
        umap_n2=np.asarray(cells.obsm["X_umap"], dtype=np.float32) if umap else None,
        cluster_n=cells.obs["leiden"].array if leiden else None,
        settings=settings | {package: version(package) for package in packages},
    )


def check_enough_cells(n_cells: int) -> None:
    """Raise a DataError if there are too few cells for a UMAP or for clusters."""
    if n_cells < MIN_CELLS:
        cells = amount(n_cells, "cell")
        raise DataError(
            f"a UMAP and clusters need at least {MIN_CELLS} cells, and the data has {cells}",
            "leave out --umap, --leiden and --plot, or add cells",
        )


def check_igraph() -> None:
    """Raise a ConfigError if igraph, which finds the clusters, is not installed."""
    if not has_leiden():
        raise ConfigError("--leiden needs the package igraph, which is not installed", "pip install igraph")
