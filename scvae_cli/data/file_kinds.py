"""Recognition of the format of a file by its content, with advice for formats that scvae does not read.

Many files have a misleading name. For example, the file of an AnnData may end in .h5, and the file of a MuData may end
in .h5ad. Text tables, R objects and compressed files are recognized, but scvae does not read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import h5py

from scvae_cli.errors import DataError, ScvaeError

Kind = Literal["anndata", "mudata", "10x", "10x v2"]

_UNPACK = "unpack it first: {}"
# First bytes of compressed files, with the command that unpacks the file.
_PACKED = {
    b"\x1f\x8b": "gunzip",
    b"PK\x03\x04": "unzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"(\xb5/\xfd": "unzstd",
}
_TABLE = (
    "a text table",
    "convert it once, so that genes are columns: scanpy.read_csv(FILE, delimiter=...).T.write_h5ad(OUT)",
)
_R = (
    "an R object",
    "convert it once in R: zellkonverter::writeH5AD(x, OUT); for a Seurat object, x is as.SingleCellExperiment(object)",
)
_BY_SUFFIX = {
    ".csv": _TABLE,
    ".tsv": _TABLE,
    ".txt": _TABLE,
    ".mtx": ("a matrix without names", "name its folder, with features.tsv (or genes.tsv) and barcodes.tsv"),
    ".rds": _R,
    ".rdata": _R,
    ".rda": _R,
    ".xlsx": ("a spreadsheet", "convert it once: scanpy.read_excel(FILE, SHEET).write_h5ad(OUT)"),
    ".parquet": ("a Parquet table", "convert it once: anndata.AnnData(pandas.read_parquet(FILE)).write_h5ad(OUT)"),
}  # fmt: skip
# HDF5 files of other programs, which are recognized by the names of their groups or datasets.
_OTHER_HDF5 = {
    ("row_attrs", "col_attrs"): ("a loom file", "pip install loompy; anndata.io.read_loom(FILE).write_h5ad(OUT)"),
    ("assays", "cell.names"): ("a Seurat file", 'convert it once in R: SeuratDisk::Convert(FILE, dest = "h5ad")'),
    ("barcode_idx", "umi"): ("a table of molecules", "use filtered_feature_bc_matrix.h5 of Cell Ranger"),
}  # fmt: skip


def kind_of(path: Path) -> Kind:
    """Recognize the format of a file.

    A file that is not recognized is treated as an AnnData, so that the reader of .h5ad files reports the problem.

    Raises
    ------
    DataError
        If the file has a format that scvae does not read; the hint says how to convert it.
    """
    if not path.is_file():
        return "anndata"
    try:
        if not h5py.is_hdf5(path):
            _refuse_other(path)
            return "anndata"
        with h5py.File(path, "r") as file:
            return _kind_of_hdf5(path, file)
    except ScvaeError:
        raise
    except Exception:  # the file is damaged or not readable; the reader reports this
        return "anndata"


def _kind_of_hdf5(path: Path, file: h5py.File) -> Kind:
    names = set(file)
    if "mod" in names and isinstance(file["mod"], h5py.Group):
        return "mudata"
    if "obs" in names or "var" in names:
        return "anndata"
    if "matrix" in names and isinstance(file["matrix"], h5py.Group) and "barcodes" in file["matrix"]:
        return "10x"
    groups = [item for item in file.values() if isinstance(item, h5py.Group)]
    if groups and all({"barcodes", "genes", "indptr"} <= set(group) for group in groups):
        return "10x v2"
    for parts, (what, hint) in _OTHER_HDF5.items():
        if names.issuperset(parts):
            raise DataError(f"{path} is {what}, which scvae does not read", hint)
    if path.suffix == ".h5":
        found = ", ".join(sorted(names)[:8]) or "nothing"
        raise DataError(
            f"{path} is HDF5, but neither a 10x .h5 nor an AnnData: it contains {found}",
            "use a file that Cell Ranger or anndata wrote",
        )
    return "anndata"


def _refuse_other(path: Path) -> None:
    """Raise a DataError if the name or the first bytes of a file show a format that scvae does not read."""
    with path.open("rb") as file:
        start = file.read(8)
    packed = next((command for magic, command in _PACKED.items() if start.startswith(magic)), None)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = next((suffix for suffix in reversed(suffixes) if suffix in _BY_SUFFIX), None)
    if last is not None and suffixes.index(last) >= len(suffixes) - 2 and start:
        what, hint = _BY_SUFFIX[last]
        raise DataError(f"{path} is {what}, which scvae does not read", hint)
    if packed is not None:
        raise DataError(
            f"{path} is compressed with {packed.removeprefix('un')}", _UNPACK.format(f"{packed} {path.name}")
        )
