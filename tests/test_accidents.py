"""If a command is killed, or the file changes during the command, the complete old or the complete new file remains."""

from __future__ import annotations

import itertools
import os
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
from command_line import run_cli, run_killed, run_ok
from workbench import BETWEEN_BATCHES, elements_of

pytestmark = pytest.mark.slow

MOMENTS = {
    "before the copy": ("before", "scvae_cli.data.atomic:_clone", 1),
    "after the copy": ("after", "scvae_cli.data.atomic:_clone", 1),
    "at the first write": ("before", "scvae_cli.data.patient_file:PatientFile:write", 1),
    "between two slots": ("after", "scvae_cli.data.h5ad_edit:_write", 1),
    "during the writes": ("after", "scvae_cli.data.patient_file:PatientFile:write", 4),
    "after the last write": ("before", "os:fsync", 1),
    "before the swap": ("before", "os:replace", 1),
    "after the swap": ("after", "os:replace", 1),
}


@pytest.mark.parametrize(("moment", "verb"), [*zip(MOMENTS, itertools.cycle(["embed", "denoise"]), strict=False)])
def test_killed_command_leaves_complete_old_or_new_file(copied, moment, verb):
    old = elements_of(copied.data)
    run_killed(MOMENTS[moment], verb, copied.data, "-m", copied.model)
    left = elements_of(copied.data)
    assert len(list(copied.data.parent.glob(".*.tmp"))) == (moment != "after the swap")
    run_ok(verb, copied.data, "-m", copied.model)
    assert left == (elements_of(copied.data) if moment == "after the swap" else old)
    assert {path.name for path in copied.data.parent.iterdir()} == {"cells.h5ad", "cells.scvae"}


@pytest.mark.parametrize("where", ["_clone", "_check_unchanged"])
def test_file_changed_during_command_is_not_overwritten(copied, monkeypatch, where):
    """Another program changes the file after scvae has read the cells, before or after scvae copies the file."""
    from scvae_cli.data import atomic

    original = getattr(atomic, where)

    def edit_file(*arguments: Any) -> None:
        if where == "_clone":
            original(*arguments)
        with h5py.File(copied.data, "r+", locking=False) as file:
            file["uns"].attrs["edited"] = True
        os.utime(copied.data, ns=(0, 0))
        if where != "_clone":
            original(*arguments)

    monkeypatch.setattr(atomic, where, edit_file)
    outcome = run_cli("embed", copied.data, "-m", copied.model)
    assert outcome.code == 3
    assert "was changed by another program" in outcome.err
    with h5py.File(copied.data) as file:
        assert file["uns"].attrs["edited"]
        assert "X_scvae" not in file["obsm"]
    assert not list(copied.data.parent.glob(".*.tmp"))


def test_file_removed_during_command_gives_no_traceback(copied, monkeypatch):
    from scvae_cli.tools.embed import question

    original = question.embed

    def remove_file(*arguments: Any, **options: Any) -> Any:
        copied.data.unlink()
        return original(*arguments, **options)

    monkeypatch.setattr(question, "embed", remove_file)
    outcome = run_cli("embed", copied.data, "-m", copied.model)
    assert outcome.code == 3
    assert "Traceback" not in outcome.err


def test_ctrl_c_during_write_leaves_file_unchanged(copied, monkeypatch):
    from scvae_cli.data import h5ad_edit

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = elements_of(copied.data)
    monkeypatch.setattr(h5ad_edit, "_write", interrupt)
    outcome = run_cli("embed", copied.data, "-m", copied.model)
    assert outcome.code == 130
    assert outcome.err.startswith("interrupted")
    assert elements_of(copied.data) == before
    assert not list(copied.data.parent.glob(".*.tmp"))


def test_path_file_is_written_only_if_the_results_are_written(copied, monkeypatch):
    from scvae_cli.data import h5ad as h5ad

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    steps = copied.data.with_name("steps.h5ad")
    before = elements_of(copied.data)
    with monkeypatch.context() as patch:
        patch.setattr(h5ad, "edit_h5ad", fail)
        assert run_cli("interpolate", copied.data, "-m", copied.model, *BETWEEN_BATCHES, "--path-out", steps).code == 3
    assert not steps.exists()
    assert elements_of(copied.data) == before
    run_ok("interpolate", copied.data, "-m", copied.model, *BETWEEN_BATCHES, "--path-out", steps, "--steps", "7")
    path = ad.read_h5ad(steps)
    assert path.shape == (7, 40)
    assert path.obsm["scvae_latent"].shape == (7, 4)
    np.testing.assert_array_equal(path.X.T, ad.read_h5ad(copied.data).varm["scvae_path_batch_1_to_batch_2"])
