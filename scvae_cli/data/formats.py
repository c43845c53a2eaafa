"""Opening all supported inputs: .h5ad files, 10x Genomics .h5 files and mtx folders, and AnnData in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scvae_cli.data.atomic import check_new_file, check_writable
from scvae_cli.data.h5ad import H5adFile
from scvae_cli.data.h5ad_create import new_h5ad
from scvae_cli.data.h5ad_whole import check_all_stored
from scvae_cli.data.memory import AnnDataStore
from scvae_cli.data.slots import Slot
from scvae_cli.data.tenx_folder import read_tenx_folder
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.regular_file import what_it_is

if TYPE_CHECKING:
    from anndata import AnnData

    from scvae_cli.data.store import CellStore


class ForeignFile(AnnDataStore):
    """Cells in a 10x format. This format cannot store results, so cells and results are written to a new .h5ad file."""

    def __init__(self, adata: AnnData, path: Path) -> None:
        super().__init__(adata, title=path.name)
        self.path = path

    def check_destination(self, paths: Sequence[str], *, output: Path | None, force: bool) -> None:  # noqa: ARG002  # a `CellStore` has it
        """Check before a computation that `write` will be possible."""
        if output is None:
            raise ConfigError(f"{self.path} is not an .h5ad, so results cannot be written into it", "use -o OUT.h5ad")
        check_new_file(output, force=force)
        check_writable(output)

    def write(self, slots: Sequence[Slot], *, output: Path | None = None, force: bool = False) -> None:
        """Write cells and results to `output`, completely or not at all."""
        self.check_destination([slot.path for slot in slots], output=output, force=force)
        assert output is not None, "it was just checked"
        self.put(slots)
        with new_h5ad(output, self.adata, force=force):
            pass


def open_store(data: AnnData | Path | str) -> CellStore:
    """Open data in any supported format: an AnnData, or the path of an .h5ad file, a 10x .h5 file, or a 10x mtx folder.

    Raises a DataError if the path does not exist, or scvae cannot read it.
    """
    if not isinstance(data, str | Path):
        if not hasattr(data, "obs_names"):
            raise DataError(f"the data has type {type(data).__name__}", "give an AnnData, or the path of a file")
        return AnnDataStore(data)
    path = Path(data)
    if path.is_dir():
        return ForeignFile(_read_10x_folder(path), path)
    if path.suffix == ".h5":
        return ForeignFile(_read_10x_h5(path), path)
    return H5adFile(path)


def _read_10x_folder(path: Path) -> AnnData:
    if path.suffix == ".scvae" or (path / "weights.safetensors").exists():
        raise DataError(f"{path} is a model folder, not data", "give the data as the argument, and the model with -m")
    names = ("matrix.mtx", "matrix.mtx.gz")
    if not any((path / name).exists() for name in names):
        raise DataError(f"{path} is a folder without a matrix.mtx", "use an .h5ad file, a 10x .h5 or a 10x mtx folder")
    try:
        return _unique_genes(read_tenx_folder(path))
    except Exception as error:  # parsers raise various errors for incomplete folders
        raise DataError(
            f"{path} cannot be read as a 10x mtx folder: {_first_line(error)}",
            "the folder must have matrix.mtx, features.tsv and barcodes.tsv, gzipped or not",
        ) from error


def _read_10x_h5(path: Path) -> AnnData:
    if not path.exists():
        raise DataError(f"{path} does not exist", "check the path")
    if not path.is_file():
        raise DataError(f"{path} cannot be read: {what_it_is(path.stat().st_mode)}", "name a 10x .h5 file")
    import scanpy as sc

    try:
        check_all_stored(path)
        return _unique_genes(sc.read_10x_h5(path))
    except Exception as error:  # the parser raises various errors for damaged files
        raise DataError(
            f"{path} cannot be read as a 10x .h5: {_first_line(error)}", "use a file written by Cell Ranger"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _unique_genes(adata: AnnData) -> AnnData:
    # 10x names genes by their symbols, and a few symbols belong to two genes. scanpy's readers do not make them unique.
    adata.var_names_make_unique()
    return adata
