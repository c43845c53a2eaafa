"""Make .h5ad files of two data sets that were not used to choose any setting of scvae, from packages that contain them.

    python benchmarks/unseen_sets.py FOLDER
    python benchmarks/time_to_quality.py --scvi-python SCVI_ENV/bin/python --seeds 0,1,2 \\
        --results benchmarks/results/time_to_quality_unseen.json FOLDER/*.h5ad

- `celltypist_sample.h5ad`: the sample in the Python package celltypist 1.7.1, 559 cells × 32,786 genes.
- `sctransform_pbmc.h5ad`: `pbmc` of the R package sctransform (0.3.5), 283 cells × 914 genes. `sctransform_pbmc.h5ad`
  needs `Rscript` with sctransform and Matrix installed.

Both files contain raw counts of molecules without labels. The script downloads celltypist from the package index.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp

CELLTYPIST = "celltypist==1.7.1"
SAMPLE = "celltypist/data/samples/sample_cell_by_gene.csv"
EXPORT = """
library(Matrix)
counts <- sctransform::pbmc
writeMM(counts, "counts.mtx"); writeLines(rownames(counts), "genes.txt"); writeLines(colnames(counts), "cells.txt")
"""


def main() -> None:
    """Make both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("celltypist_sample", celltypist_sample), ("sctransform_pbmc", sctransform_pbmc)):
        with tempfile.TemporaryDirectory() as scratch:
            adata = make(Path(scratch))
        assert not (adata.X.data % 1).any(), "counts are whole"
        adata.var_names_make_unique()
        adata.write_h5ad(folder / f"{name}.h5ad")
        print(f"{folder / name}.h5ad: {adata.n_obs} cells × {adata.n_vars:,} genes")


def celltypist_sample(scratch: Path) -> anndata.AnnData:
    """Read the sample from the downloaded package celltypist, without installing the package."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), CELLTYPIST]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel, wheel.open(SAMPLE) as table:
        counts = pd.read_csv(table, index_col=0)
    # The counts in the table are not exactly whole, because the numbers in the text are rounded.
    x_ng = sp.csr_matrix(np.asarray(counts, dtype=np.float32))
    return anndata.AnnData(x_ng, obs=pd.DataFrame(index=counts.index), var=pd.DataFrame(index=counts.columns))


def sctransform_pbmc(scratch: Path) -> anndata.AnnData:
    """Export the counts from R, and transpose the matrix from genes × cells to cells × genes."""
    subprocess.run(["Rscript", "-e", EXPORT], cwd=scratch, check=True)
    x_ng = sp.csr_matrix(scipy.io.mmread(scratch / "counts.mtx").T, dtype=np.float32)
    cells, genes = ((scratch / f"{kind}.txt").read_text().split() for kind in ("cells", "genes"))
    return anndata.AnnData(x_ng, obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=genes))


if __name__ == "__main__":
    main()
