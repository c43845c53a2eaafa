"""The split of cells for the benchmark of held-out likelihood: one file for training, and one file for testing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MIN_CELLS = 3
# In a file with more than MANY_GENES genes, the TOP_GENES most variable genes are modeled.
MANY_GENES, TOP_GENES = 4000, 2000


@dataclass(frozen=True, kw_only=True)
class Split:
    """The two files of one split, and their contents.

    `fingerprint` changes with the cells, the genes, the counts, the split and the number of posterior samples. Two runs
    with the same fingerprint can therefore be compared cell by cell.
    """

    dataset: str
    seed: int
    trainer_file: Path
    test_file: Path
    n_trainer: int
    n_test: int
    n_genes: int
    fingerprint: str

    def describe(self) -> str:
        """Return one line for the log."""
        return f"{self.n_trainer} cells for training, {self.n_test} test cells, {self.n_genes} genes"

    def outdates(self, run: dict[str, Any]) -> bool:
        """Whether a recorded run of this data set and seed was made on other cells, genes, counts or samples."""
        same_place = (run["dataset"], run["seed"]) == (self.dataset, self.seed)
        return same_place and run["split"] != self.fingerprint


def split(data: Path, folder: Path, *, seed: int, test_share: float, samples: int) -> Split:
    """Write the two files of one seed, which contain only counts, cell names and gene names.

    Genes expressed in fewer than `MIN_CELLS` of the training cells are removed from both files. If there are more than
    `MANY_GENES`, the `TOP_GENES` most variable ones in the training cells are kept (scanpy's seurat_v3).
    """
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    adata = anndata.read_h5ad(data)
    counts = sp.csr_matrix(adata.X, dtype=np.float32)
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    n_test = round(test_share * adata.n_obs)
    # Sorted, so that the cells are in the order of the original file.
    cells = {"test": np.sort(order[:n_test]), "trainer": np.sort(order[n_test:])}
    counts_of = {part: counts[rows] for part, rows in cells.items()}
    genes = np.flatnonzero(counts_of["trainer"].getnnz(axis=0) >= MIN_CELLS)
    if len(genes) > MANY_GENES:
        genes = genes[_most_variable(counts_of["trainer"][:, genes])]

    folder.mkdir(parents=True)
    digest = hashlib.sha256(str(samples).encode())
    for part, rows in cells.items():
        # Selecting every gene would copy the counts once more, which takes long for a million cells.
        x_ng = counts_of[part] if len(genes) == adata.n_vars else counts_of[part][:, genes]
        obs, var = pd.DataFrame(index=adata.obs_names[rows]), pd.DataFrame(index=adata.var_names[genes])
        anndata.AnnData(x_ng, obs=obs, var=var).write_h5ad(folder / f"{part}.h5ad")
        for piece in ("\n".join(obs.index), "\n".join(var.index)):
            digest.update(piece.encode())
        digest.update(x_ng.indices.astype(np.int64).tobytes() + x_ng.data.tobytes())
    return Split(
        dataset=data.stem,
        seed=seed,
        trainer_file=folder / "trainer.h5ad",
        test_file=folder / "test.h5ad",
        n_trainer=len(cells["trainer"]),
        n_test=n_test,
        n_genes=len(genes),
        fingerprint=digest.hexdigest()[:16],
    )


def _most_variable(counts: Any) -> np.ndarray:
    """Return the indices of the most variable genes of CSR counts, in ascending order."""
    import anndata
    import scanpy as sc

    chosen = sc.pp.highly_variable_genes(
        anndata.AnnData(counts), n_top_genes=TOP_GENES, flavor="seurat_v3", inplace=False
    )
    return np.flatnonzero(chosen["highly_variable"].to_numpy())
