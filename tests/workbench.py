"""Tools for tests: data and models that tests may damage, checks of refusals, and the contents of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp
from command_line import TINY, run_cli

if TYPE_CHECKING:
    from conftest import Trained

USAGE, DATA, MODEL, DEVICE = 2, 3, 4, 5
# Arguments of an interpolation from the first batch to the second batch.
BETWEEN_BATCHES = ("--groupby", "batch", "--from", "batch_1", "--to", "batch_2")


class Bench:
    """A folder with `cells.h5ad` and its model in `cells.scvae`, which tests may change."""

    def __init__(self, folder: Path, trained: Trained) -> None:
        self.folder = folder
        copied = trained.copy_to(folder)
        self.data, self.model = copied.data, copied.model

    def change(self, change: Callable[[ad.AnnData], ad.AnnData | None]) -> Path:
        """Change the data with a function, and write the data again."""
        adata = ad.read_h5ad(self.data)
        result = change(adata)
        (adata if result is None else result).write_h5ad(self.data)
        return self.data

    def with_value(self, value: float) -> Path:
        """Rewrite the data with one value replaced."""
        with h5py.File(self.data, "r+") as file:
            file["X/data"][3] = value
        return self.data

    def file(self, name: str, content: bytes | str = b"") -> Path:
        """Make a file."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def train_args(self, *options: object) -> list[object]:
        """Return arguments of a training whose model gets another name."""
        return ["train", self.data, "-m", self.folder / "other.scvae", *TINY, *options]

    def args(self, verb: str, *options: object) -> list[object]:
        """Return arguments of a command with the data and the model."""
        return [verb, self.data, "-m", self.model, *options]

    def between_groups(self, start: str, end: str, *options: object) -> list[object]:
        """Return arguments of an interpolation between two groups."""
        return self.args("interpolate", "--groupby", "cell_type", "--from", start, "--to", end, *options)

    def between_cells(self, start: str, end: str, *options: object) -> list[object]:
        """Return arguments of an interpolation between two cells."""
        return self.args("interpolate", "--from-cell", start, "--to-cell", end, *options)


def with_two_empty_cells(adata: ad.AnnData) -> ad.AnnData:
    """Remove all counts of the first two cells."""
    adata.X = sp.csr_matrix(adata.X.multiply(np.arange(adata.n_obs)[:, None] >= 2))
    return adata


def contents(folder: Path) -> dict[str, str]:
    """Return every file in a folder, with its hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_refused(folder: Path, arguments: list[object], code: int, fragment: str) -> str:
    """Assert that a command refuses its input in one line and changes no file, and return the hint of the error."""
    before = contents(folder)
    outcome = run_cli(*arguments)
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    hints = [line for line in outcome.err.splitlines() if line.startswith("hint: ")]
    assert len(errors) == len(hints) == 1, outcome.err
    assert fragment in errors[0]
    assert outcome.err.endswith(f"{errors[0]}\n{hints[0]}\n")
    assert contents(folder) == before
    return hints[0]


def elements_of(path: Path) -> dict[str, Any]:
    """Return every group and dataset of a file: its bytes, how it is stored, and its attributes."""
    seen: dict[str, Any] = {}

    def attributes(item: Any) -> dict[str, str]:
        return {
            key: repr((np.asarray(value).tolist(), str(np.asarray(value).dtype), item.attrs.get_id(key).dtype.str))
            for key, value in item.attrs.items()
        }

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            seen[name] = ("group", attributes(item))
            return
        values = item[()]
        text = h5py.check_string_dtype(item.dtype) is not None
        content = repr(np.asarray(values).tolist()) if text else np.asarray(values).tobytes()
        stored = (item.shape, item.dtype.str, item.chunks, item.compression, item.compression_opts, item.shuffle)
        seen[name] = ("dataset", attributes(item), stored, content)

    with h5py.File(path) as file:
        seen["/"] = ("group", attributes(file))
        file.visititems(visit)
    return seen
