"""Functions that open data in all supported formats.

The supported formats are .h5ad and .zarr of anndata, modalities of .h5mu, 10x .h5 files, 10x mtx folders, and AnnData
in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from scvae_cli.data.atomic import check_new_file, check_writable
from scvae_cli.data.feature_types import COLUMN, feature_types
from scvae_cli.data.file_kinds import kind_of
from scvae_cli.data.h5ad import H5adFile
from scvae_cli.data.h5ad_create import new_h5ad
from scvae_cli.data.h5ad_whole import check_all_stored
from scvae_cli.data.memory import AnnDataStore
from scvae_cli.data.modalities import choose_modality, read_modality
from scvae_cli.data.slots import Slot
from scvae_cli.data.sparse_parts import check_sparse
from scvae_cli.data.tenx_folder import has_matrix, read_tenx_folder
from scvae_cli.data.tenx_h5 import read_tenx_h5
from scvae_cli.errors import ConfigError, DataError, ScvaeError
from scvae_cli.regular_file import refuse_irregular_within

if TYPE_CHECKING:
    from anndata import AnnData

    from scvae_cli.data.store import CellStore

T = TypeVar("T")


class ForeignFile(AnnDataStore):
    """Cells from a file or folder that is not an .h5ad file, such as a 10x .h5 file.

    The cells and their results are written to a new .h5ad file.

    Parameters
    ----------
    kind
        The format in words, such as "a 10x .h5 file".
    """

    def __init__(self, adata: AnnData, path: Path, kind: str, notes: tuple[str, ...] = ()) -> None:
        super().__init__(adata, title=path.name, notes=notes)
        self.path = path
        self.kind = kind

    def check_destination(self, paths: Sequence[str], *, output: Path | None, force: bool) -> None:  # noqa: ARG002  # an argument of every `CellStore`
        """Check before a computation that `write` will be able to write the results."""
        if output is None:
            raise ConfigError(f"{self.path} is {self.kind}, so results cannot be written into it", "use -o OUT.h5ad")
        if output.resolve() == self.path.resolve():
            message = f"{output} is the input file, and results cannot be written into {self.kind}"
            raise ConfigError(message, "choose another file with -o OUT.h5ad")
        check_new_file(output, force=force, of_same_cells=True)
        check_writable(output)

    def write(self, slots: Sequence[Slot], *, output: Path | None = None, force: bool = False) -> None:
        """Write cells and results to the new file `output`, completely or not at all."""
        self.check_destination([slot.path for slot in slots], output=output, force=force)
        assert output is not None, "the output was checked before"
        self.put(slots)
        with new_h5ad(output, self.adata, force=force):
            pass


def open_store(data: AnnData | Path | str, *, genome: str | None = None, modality: str | None = None) -> CellStore:
    """Open data in any supported format.

    Parameters
    ----------
    data
        An AnnData, or the path of an .h5ad, .h5mu, .zarr or 10x .h5, or of a 10x mtx folder. The format is recognized
        by the content, not by the name.
    genome, modality
        Genome to read from a 10x .h5, and modality to read from an .h5mu; None if the file has only one genome or
        modality.

    Raises
    ------
    DataError
        If the path does not exist, or scvae cannot read it.
    ConfigError
        If a genome or modality was given for data that have none.
    """
    if not isinstance(data, str | Path):
        if not hasattr(data, "obs_names"):
            raise DataError(f"the data has type {type(data).__name__}", "give an AnnData, or the path of a file")
        _refuse_choices(genome, modality, "an AnnData in memory")
        return AnnDataStore(data)
    path = Path(data)
    if path.is_dir():
        return _open_folder(path, genome, modality)
    kind = kind_of(path)
    if kind == "anndata":
        # The format of a damaged file is unknown, so a genome or modality is refused only after the file was opened.
        store = H5adFile(path)
        _refuse_choices(genome, modality, str(path))
        return store
    if kind == "mudata":
        _refuse_choices(genome, None, str(path))

        def read_checked() -> tuple[AnnData, str]:
            adata, name = read_modality(path, modality)
            return check_sparse(adata), name

        adata, name = _read(path, "an .h5mu", read_checked, "write it again with mudata")
        return ForeignFile(adata, path, "a MuData", (f"modality: {name}",))
    _refuse_choices(None, modality, str(path))
    adata = _read(
        path,
        "a 10x .h5",
        lambda: read_tenx_h5(path, genome, version_2=kind == "10x v2"),
        "copy or download it again, or use another file written by Cell Ranger",
    )
    return _genes_of(adata, path, "a 10x .h5 file")


def _open_folder(path: Path, genome: str | None, modality: str | None) -> CellStore:
    if path.suffix == ".scvae" or (path / "weights.safetensors").exists():
        raise DataError(f"{path} is a model folder, not data", "give the data as the argument, and the model with -m")
    if any((path / name).exists() for name in (".zgroup", ".zattrs", "zarr.json")):
        _refuse_choices(genome, None, str(path))
        return _open_zarr(path, modality)
    if not has_matrix(path):
        raise DataError(f"{path} is a folder without a matrix.mtx", "use an .h5ad file, a 10x .h5 or a 10x mtx folder")
    _refuse_choices(genome, modality, str(path))
    adata = _read(
        path,
        "a 10x mtx folder",
        lambda: read_tenx_folder(path),
        "copy or download it again; it must have matrix.mtx, features.tsv and barcodes.tsv, gzipped or not",
    )
    return _genes_of(adata, path, "a 10x mtx folder")


def _open_zarr(path: Path, modality: str | None) -> CellStore:
    try:
        refuse_irregular_within(path)
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read: {error.strerror}", "write the folder again with anndata"
        ) from error
    folder, notes = path, tuple[str, ...]()
    if (path / "mod").is_dir():
        name = choose_modality(path, sorted(p.name for p in (path / "mod").iterdir() if p.is_dir()), modality)
        folder, notes = path / "mod" / name, (f"modality: {name}",)
    else:
        _refuse_choices(None, modality, str(path))

    def read() -> AnnData:
        from anndata.io import read_zarr

        return check_sparse(read_zarr(folder))

    adata = _read(
        path, "a .zarr of anndata", read, "install zarr, or convert it: anndata.io.read_zarr(...).write_h5ad(OUT)"
    )
    return ForeignFile(adata, path, "a .zarr", notes)


def _read(path: Path, what: str, reader: Callable[[], T], hint: str) -> T:
    """Call a function that reads data, and convert every exception that is not an error of scvae to a DataError."""
    try:
        if path.is_file():
            check_all_stored(path)
        return reader()
    except (ScvaeError, MemoryError):
        raise
    except Exception as error:  # parsers raise various errors for damaged and incomplete files
        raise DataError(f"{path} cannot be read as {what}: {_first_line(error)}", hint) from error


def _genes_of(adata: AnnData, path: Path, kind: str) -> ForeignFile:
    """Open the genes of a 10x matrix, which may also contain antibodies, guides or peaks."""
    notes: tuple[str, ...] = ()
    if COLUMN in adata.var:
        types = feature_types(adata.var[COLUMN].to_numpy(), path.name)
        if types.about is not None:
            adata = adata[:, types.are_genes].copy()
            notes = (f"only genes are read; left out: {types.about}",)
    # 10x names genes by symbols, and a few symbols belong to two genes. scanpy's readers do not make the names unique.
    adata.var_names_make_unique()
    return ForeignFile(adata, path, kind, notes)


def _refuse_choices(genome: str | None, modality: str | None, what: str) -> None:
    if genome is not None:
        raise ConfigError(f"--genome was given, but {what} is not a 10x .h5 file", "remove --genome")
    if modality is not None:
        raise ConfigError(f"--modality was given, but {what} is not an .h5mu file", "remove --modality")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
