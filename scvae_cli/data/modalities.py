"""Reading one modality of a MuData file (.h5mu), which contains an AnnData for each modality of the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from scvae_cli.errors import ChoiceError, DataError

if TYPE_CHECKING:
    from anndata import AnnData


def read_modality(path: Path, modality: str | None) -> tuple[AnnData, str]:
    """Read a modality of a MuData file; return the modality as an AnnData, and the name of the modality.

    Columns in the obs of the MuData that belong to no single modality are added to the obs of the AnnData.

    Raises
    ------
    DataError
        If the modality does not exist. If the file has several modalities and `modality` is None, the error is a
        ChoiceError.
    """
    from anndata.io import read_elem

    with h5py.File(path, "r") as file:
        name = choose_modality(path, list(file["mod"]), modality)
        adata = read_elem(file[f"mod/{name}"])
        shared = read_elem(file["obs"]) if "obs" in file else None
        prefixes = tuple(f"{other}:" for other in file["mod"])
    if shared is not None and shared.index.is_unique:
        for column in shared.columns:
            if column not in adata.obs and not str(column).startswith(prefixes):
                adata.obs[column] = shared[column].reindex(adata.obs_names)
    return adata, name


def choose_modality(path: Path, names: Sequence[str], modality: str | None) -> str:
    """Return the name of the modality to read, among the modalities of a file.

    Raises a DataError if the modality does not exist. Raises a ChoiceError if the file has several modalities and
    `modality` is None.
    """
    if modality is None and len(names) == 1:
        return names[0]
    if modality in names and modality is not None:
        return modality
    known = ", ".join(names) or "none"
    hint = f"use --modality {'rna' if 'rna' in names or not names else names[0]}, the modality with the counts of genes"
    if modality is None:
        raise ChoiceError(f"{path} has several modalities: {known}", hint)
    raise DataError(f"{path} has no modality {modality!r}", f"modalities: {known}")
