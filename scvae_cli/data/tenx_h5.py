"""Reading an .h5 file of Cell Ranger, of version 2 or later, with scanpy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from scvae_cli.errors import ChoiceError, DataError

if TYPE_CHECKING:
    from anndata import AnnData


def read_tenx_h5(path: Path, genome: str | None, *, version_2: bool) -> AnnData:
    """Read all features of a file as an AnnData, cells × features.

    Parameters
    ----------
    genome
        Genome to read; None for the only one, or, in a file of Cell Ranger 3 or later, for all.
    version_2
        Whether each genome is a group of the file, with a matrix of its own.

    Raises
    ------
    DataError
        If the genome does not exist. If it must be chosen, the error is a ChoiceError.
    """
    import scanpy as sc

    if not version_2:
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
    return sc.read_10x_h5(path, genome=genome, gex_only=False)


def _check_genome(path: Path, genome: str | None, genomes: list[str]) -> None:
    if genome in genomes:
        return
    hint = "use " + " or ".join(f"--genome {known}" for known in genomes) if genomes else "remove --genome"
    if genome is None:
        raise ChoiceError(f"{path} has the counts of several genomes: {', '.join(genomes)}", hint)
    raise DataError(f"{path} has no genome {genome!r}", hint)
