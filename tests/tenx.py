"""Small data sets in the formats of Cell Ranger 3 or later, and in formats of earlier versions."""

from __future__ import annotations

import gzip
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import scipy.io
import scipy.sparse as sp


def write_10x_h5(path: Path, adata: ad.AnnData) -> None:
    """Write a feature-barcode matrix in HDF5; gene symbols are the var_names, and gene ids are numbered."""
    matrix = sp.csr_matrix(adata.X)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(adata.obs_names, dtype="S")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name).astype(np.int32)
        group["shape"] = np.array([adata.n_vars, adata.n_obs], np.int32)
        group["features/id"] = np.array(gene_ids(adata), dtype="S")
        group["features/name"] = np.array(adata.var_names, dtype="S")
        group["features/feature_type"] = np.full(adata.n_vars, b"Gene Expression")
        group["features/genome"] = np.full(adata.n_vars, b"GRCh38")


def write_10x_v2(path: Path, adata: ad.AnnData, genomes: dict[str, np.ndarray]) -> None:
    """Write a file in the format of Cell Ranger 2, with a group for each genome."""
    with h5py.File(path, "w") as file:
        for genome, columns in genomes.items():
            part = sp.csr_matrix(adata.X)[:, columns]
            group = file.create_group(genome)
            group["barcodes"] = np.array(adata.obs_names, dtype="S")
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(part, name).astype(np.int32)
            group["shape"] = np.array(part.shape[::-1], np.int32)
            group["genes"] = np.array([f"ENSG{j}" for j in columns], dtype="S")
            group["gene_names"] = np.array(adata.var_names[columns], dtype="S")


def write_10x_mtx(folder: Path, adata: ad.AnnData) -> None:
    """Write a feature-barcode matrix as a folder of three gzipped files."""
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_matrix(adata.X.T).astype(np.int32))
    with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{name}\n" for name in adata.obs_names)
    with gzip.open(folder / "features.tsv.gz", "wt") as file:
        names = zip(gene_ids(adata), adata.var_names, strict=True)
        file.writelines(f"{gene}\t{symbol}\tGene Expression\n" for gene, symbol in names)


def write_plain_mtx(folder: Path, adata: ad.AnnData) -> None:
    """Write a feature-barcode matrix as a folder of three files without compression, as STARsolo does."""
    write_10x_mtx(folder, adata)
    for path in list(folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


def gene_ids(adata: ad.AnnData) -> list[str]:
    """Make an invented Ensembl id for every gene."""
    return [f"ENSG{j:011d}" for j in range(adata.n_vars)]
