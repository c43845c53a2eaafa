"""A data set and a model, which are made once for all tests; each test works on copies of them."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from command_line import TINY, run_ok
from simulated import tree
from workbench import Bench

# The scripts in data/ made the reference values, and need packages that the tests do not need.
collect_ignore_glob = ["data/*.py"]

# The tests that use neighbors or UMAPs of scanpy, whose code is compiled once per process, in about 20 s.
UMAP = (
    "tests/test_umap_leiden.py",
    "tests/test_umap_figure.py",
    "tests/test_figure_layout.py",
    "tests/test_parity.py::test_results_are_equal[embed]",
    "tests/test_h5ad_roundtrip.py::test_anndata_and_scanpy_read_the_results",
)
# Files that take long. If such a file began last, only one process would work at the end.
LONG = (
    "tests/test_attacks.py",
    "tests/test_cli_contract.py",
    "tests/test_device_steps.py",
    "tests/test_studies.py",
    "tests/test_training.py",
    "tests/test_annotation.py",
    "tests/test_bad_trajectories.py",
    "tests/test_diagnosis.py",
    "tests/test_covariates.py",
    "tests/test_bad_places.py",
    "tests/test_accidents.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of UMAPs and with the files that take long."""
    items.sort(key=lambda item: next((i for i, at in enumerate((UMAP, *LONG)) if item.nodeid.startswith(at)), 99))


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist, nothing calls it
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run all tests of a file in one process and in the order of the collection, and all tests of UMAPs in one process.

    Without the order of the collection, pytest-xdist would begin with the files that have the most tests.
    """
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class FilesAndUmaps(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "UMAP" if nodeid.startswith(UMAP) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return FilesAndUmaps(config, log)


@dataclass(frozen=True)
class Trained:
    """The paths of an .h5ad file and of a model that was trained on the file."""

    data: Path
    model: Path

    def copy_to(self, folder: Path) -> Trained:
        """Copy the data and the model to a folder, so that a test may damage the copies."""
        data, model = folder / self.data.name, folder / self.model.name
        shutil.copyfile(self.data, data)
        shutil.copytree(self.model, model)
        return Trained(data, model)


def cells(n_cells: int = 120, n_genes: int = 40) -> ad.AnnData:
    """A few cells of a tree with two batches; every cell has counts."""
    adata = tree(n_cells, n_genes, n_batches=2, depth=300)
    assert (np.diff(sp.csr_matrix(adata.X).indptr) > 0).all()
    return ad.AnnData(sp.csr_matrix(adata.X), obs=adata.obs[["cell_type", "batch"]], var=adata.var[[]])


def _train(folder: Path, *options: str) -> Trained:
    trained = Trained(folder / "cells.h5ad", folder / "cells.scvae")
    cells().write_h5ad(trained.data)
    run_ok("train", trained.data, *TINY, *options)
    return trained


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    """Cells and a model without batches."""
    return _train(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def copied(tmp_path, trained) -> Trained:
    """Copies of the cells and of the model without batches, which a test may change."""
    return trained.copy_to(tmp_path)


@pytest.fixture(scope="session")
def trained_on_batches(tmp_path_factory) -> Trained:
    """Cells and a model that was trained with the batches of the cells."""
    return _train(tmp_path_factory.mktemp("trained_on_batches"), "--batch-key", "batch")


@pytest.fixture
def bench(tmp_path, trained) -> Bench:
    """Data and a model without batches, in a separate folder."""
    return Bench(tmp_path, trained)


@pytest.fixture
def bench_with_batches(tmp_path, trained_on_batches) -> Bench:
    """Data and a model that was trained with batches, in a separate folder."""
    return Bench(tmp_path, trained_on_batches)


@pytest.fixture
def handled_signals():
    """Handle signals as in a terminal; a test run in the background would ignore some signals."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
