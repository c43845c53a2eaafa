"""Reading an .h5 file of Cell Ranger, of version 2 or later, with scanpy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from scvae_cli.data.h5ad_damage import check_vector, whole_numbers
from scvae_cli.data.h5ad_rows import check_compressed
from scvae_cli.errors import ChoiceError, DataError

if TYPE_CHECKING:
    from anndata import AnnData

# Names of the parts of a matrix of counts.
_PARTS = {"data", "indices", "indptr", "shape", "barcodes"}


def read_tenx_h5(path: Path, genome: str | None, *, version_2: bool) -> AnnData:
    """Read all features of a file as an AnnData, cells × features.

    Parameters
    ----------
    genome
        Genome to read. If None, all genomes of a file of Cell Ranger 3 or later are read, or the only genome of a file
        of Cell Ranger 2.
    version_2
        Whether the file has a separate matrix for each genome, as files of Cell Ranger 2 have.

    Raises
    ------
    DataError
        If the genome does not exist. If the file has several genomes with separate matrices and `genome` is None, the
        error is a ChoiceError.
    ValueError
        If the parts of the matrix do not fit together.
    """
    import scanpy as sc

    if not version_2:
        with h5py.File(path, "r") as file:
            _check_matrix(file["matrix"], features="features/id")
        adata = sc.read_10x_h5(path, gex_only=False)
        if genome is None:
            return adata
        genomes = list(dict.fromkeys(adata.var["genome"].astype(str))) if "genome" in adata.var else []
        _check_genome(path, genome, [known for known in genomes if known])
        return adata[:, (adata.var["genome"].astype(str) == genome).to_numpy()].copy()
    with h5py.File(path, "r") as file:
        genomes = list(file)
    if genome is None and len(genomes) == 1:
        [genome] = genomes
    _check_genome(path, genome, genomes)
    with h5py.File(path, "r") as file:
        _check_matrix(file[str(genome)], features="genes")
    return sc.read_10x_h5(path, genome=genome, gex_only=False)


def _check_genome(path: Path, genome: str | None, genomes: list[str]) -> None:
    if genome in genomes:
        return
    hint = "use " + " or ".join(f"--genome {known}" for known in genomes) if genomes else "remove --genome"
    if genome is None:
        raise ChoiceError(f"{path} has the counts of several genomes: {', '.join(genomes)}", hint)
    raise DataError(f"{path} has no genome {genome!r}", hint)


def _check_matrix(group: h5py.Group, *, features: str) -> None:
    """Check the arrays of a sparse matrix before scanpy reads the matrix, because scanpy does not check the arrays."""
    _refuse_twins(group)
    n_cells, n_features = len(check_vector(group["barcodes"])), len(check_vector(group[features]))
    # The matrix is features × cells as CSC.
    shape = [int(n) for n in whole_numbers(check_vector(group["shape"], 2)[:], "shape")]
    if shape != [n_features, n_cells]:
        raise ValueError(
            f"{group.name} has shape {shape[0]:,} × {shape[1]:,}, but there are {n_features:,} features and "
            f"{n_cells:,} cells"
        )
    check_compressed(group, n_cells, n_features)


def _refuse_twins(matrix: h5py.Group) -> None:
    """Raise a ValueError if the HDF5 group of a matrix has subgroups with a second copy of an array such as indptr.

    scanpy would read the second copy instead of the array that was checked. Links are followed, as scanpy does. A
    subgroup with two names is also refused, because the subgroup could contain itself.
    """
    seen, waiting = {matrix}, [matrix]
    while waiting:
        group = waiting.pop()
        for name, item in group.items():
            if isinstance(item, h5py.Group):
                if item in seen:
                    raise ValueError(f"{item.name} has two names in the same matrix")
                seen.add(item)
                waiting.append(item)
            elif group != matrix and name in _PARTS:
                raise ValueError(f"the matrix has two parts called {name}: one is {item.name}")
