"""Unusable models, and paths to which nothing can be written, are refused in one line; no file is changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from command_line import TINY, run_forked, run_ok
from conftest import cells
from tenx import write_10x_h5
from workbench import DATA, MODEL, USAGE, Bench, assert_refused, contents

import scvae_cli as scvae
from scvae_cli.errors import ConfigError, DataError

# --- model folders ----------------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[Bench], object]:
    return lambda b: (b.model / name).unlink()


def flipped(name: str) -> Callable[[Bench], object]:
    """Change one byte in the middle of a file."""

    def change(bench: Bench) -> None:
        content = bytearray((bench.model / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bench.model / name).write_bytes(content)

    return change


def config(**changes: object) -> Callable[[Bench], object]:
    def change(bench: Bench) -> None:
        path = bench.model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


HASHED = ("genes.txt", "heldout_cells.txt", "weights.safetensors", "latent.safetensors", "history.csv")
MODELS: dict[str, tuple[str, Callable[[Bench], object]]] = {
    "missing": ("there is no model folder", lambda b: shutil.rmtree(b.model)),
    **{f"without {name}": (f"is incomplete: it has no {name}", without(name)) for name in ("config.json", *HASHED)},
    **{f"changed {name}": (f"{name} is not the file that was saved", flipped(name)) for name in HASHED},
    "other batches": ("config.json is not the file that was saved", config(batches=["a", "b"])),
    "other facts": ("config.json is not the file that was saved", config(facts={})),
    "no hashes": ("is not the file that was saved", config(sha256={})),
    "hashes of another kind": ("config.json is incomplete", config(sha256=["abc"])),
    "newer format": ("in a newer format", config(format=99, scvae_version="9.0")),
    "older format": ("in an older format", config(format=1)),
    "format in words": ("in a newer format", config(format="two")),
    "config that is not JSON": ("config.json is damaged", lambda b: (b.model / "config.json").write_text("{")),
    "config of another shape": ("config.json is damaged", lambda b: (b.model / "config.json").write_text("[1]")),
    "config that is not text": ("config.json is damaged", lambda b: (b.model / "config.json").write_bytes(b"\xff\xfe")),
}


@pytest.mark.parametrize("verb", ["embed", "info"])
@pytest.mark.parametrize("case", MODELS)
def test_unusable_model_is_refused(bench, case, verb):
    fragment, damage = MODELS[case]
    damage(bench)
    assert_refused(bench.folder, bench.args("embed") if verb == "embed" else ["info", bench.model], MODEL, fragment)


@pytest.mark.parametrize(
    ("fragment", "options"),
    [
        ("exists", lambda b: ["-m", b.model]),
        ("exists and is not a model folder", lambda b: ["-m", b.data, "--force"]),
        ("is not a folder that can be written to", lambda b: ["-m", b.folder / "no" / "such.scvae"]),
        ("no interrupted training to resume", lambda b: ["-m", b.folder / "new.scvae", "--resume"]),
    ],
    ids=["exists", "a file in the way", "no such folder", "nothing to resume"],
)
def test_invalid_model_path_is_refused(bench, fragment, options):
    assert_refused(bench.folder, ["train", bench.data, *TINY, *options(bench)], MODEL, fragment)


# --- invalid output paths ---------------------------------------------------------------------------------------------


def test_existing_output_requires_force(bench):
    other = bench.file("other.h5ad", "precious")
    hint = assert_refused(bench.folder, bench.args("embed", "-o", other), DATA, "exists")
    assert "--force" in hint
    assert f"{other} can be the input (with -m), to which the results are added" in hint
    run_ok(*bench.args("embed", "-o", other, "--force"))
    assert "X_scvae" in ad.read_h5ad(other).obsm


def hard_link(file: Path, name: str) -> Path:
    """Make a second name of a file."""
    os.link(file, file.parent / name)
    return file.parent / name


INVALID_OUTPUTS: dict[str, tuple[int, str, Callable[[Bench], list[object]]]] = {
    "not .h5ad": (DATA, "does not end in .h5ad", lambda b: b.args("embed", "-o", b.folder / "out.csv")),
    "a folder": (DATA, "is a folder", lambda b: b.args("embed", "-o", folder(b, "out.h5ad"))),
    "no such folder": (DATA, "is not a folder", lambda b: b.args("embed", "-o", b.folder / "no" / "out.h5ad")),
    "steps not .h5ad": (DATA, "does not end in .h5ad", lambda b: b.between_groups("a", "b", "--path-out", "steps.csv")),
    "steps exist": (DATA, "exists", lambda b: b.between_groups("a", "b", "--path-out", b.file("steps.h5ad"))),
    "steps in the data": (
        USAGE,
        "contains the cells",
        lambda b: b.between_groups("a", "b", "--path-out", b.data, "--force"),
    ),
    "steps in the data, by a hard link": (
        USAGE,
        "contains the cells",
        lambda b: b.between_groups("a", "b", "--path-out", hard_link(b.data, "twin.h5ad"), "--force"),
    ),
    "steps in the input": (
        USAGE,
        "contains the cells",
        lambda b: b.between_groups("a", "b", "--path-out", b.data, "-o", b.folder / "out.h5ad", "--force"),
    ),
    "steps in the output": (
        USAGE,
        "contains the cells",
        lambda b: b.between_groups("a", "b", "--path-out", b.folder / "out.h5ad", "-o", b.folder / "out.h5ad"),
    ),
    "simulation exists": (DATA, "exists", lambda b: ["simulate", b.data]),
    "simulation not .h5ad": (DATA, "does not end in .h5ad", lambda b: ["simulate", b.folder / "out"]),
}


def folder(bench: Bench, name: str) -> Path:
    (bench.folder / name).mkdir()
    return bench.folder / name


@pytest.mark.parametrize("case", INVALID_OUTPUTS)
def test_invalid_output_path_is_refused(bench, case):
    code, fragment, arguments = INVALID_OUTPUTS[case]
    assert_refused(bench.folder, arguments(bench), code, fragment)


OPTIONS = {
    "embed": (),
    "annotate": ("--labels-key", "cell_type"),
    "denoise": (),
    "score": ("--samples", "2", "--simulated", "100"),
    "interpolate": ("--groupby", "batch", "--from", "batch_1", "--to", "batch_2"),
    "pseudotime": ("--groupby", "batch", "--root", "batch_1", "--to", "batch_2"),
}


@pytest.fixture
def no_encoding(monkeypatch):
    """Fail when cells are encoded, to test that a refusal comes before the computation."""
    monkeypatch.setattr("scvae_cli.model.vae.VAE.encode", None)


@pytest.mark.parametrize("verb", OPTIONS)
def test_read_only_output_is_refused_before_the_computation(bench, no_encoding, verb):
    bench.data.chmod(0o444)
    assert "chmod u+w" in assert_refused(
        bench.folder, bench.args(verb, *OPTIONS[verb]), DATA, "cells.h5ad is read-only"
    )
    bench.data.chmod(0o644)
    bench.folder.chmod(0o555)
    assert_refused(bench.folder, bench.args(verb, *OPTIONS[verb]), DATA, "is read-only")
    bench.folder.chmod(0o755)


def test_model_in_a_read_only_folder_is_refused(bench):
    read_only = folder(bench, "shelf")
    read_only.chmod(0o555)
    arguments = ["train", bench.data, *TINY, "-m", read_only / "cells.scvae"]
    assert_refused(bench.folder, arguments, MODEL, "is not a folder that can be written to")


def test_results_of_read_only_data_can_be_written_to_another_file(bench):
    bench.data.chmod(0o444)
    out = bench.folder / "out.h5ad"
    run_ok(*bench.args("embed", "-o", out))
    run_ok("denoise", out, "-m", bench.model)
    assert "scvae_denoised" in ad.read_h5ad(out).layers


# Slots of the user with the names of results.
USER_SLOTS: dict[str, tuple[str, Callable[[ad.AnnData], object]]] = {
    "embed": ("obsm/X_scvae", lambda a: a.obsm.__setitem__("X_scvae", np.ones((120, 2)))),
    "annotate": ("obs/scvae_label", lambda a: a.obs.__setitem__("scvae_label", "mine")),
    "denoise": ("layers/scvae_denoised", lambda a: a.layers.__setitem__("scvae_denoised", a.X.copy())),
    "score": ("obs/scvae_elbo", lambda a: a.obs.__setitem__("scvae_elbo", "mine")),
    "interpolate": (
        "varm/scvae_path_batch_1_to_batch_2",
        lambda a: a.varm.__setitem__("scvae_path_batch_1_to_batch_2", np.ones((40, 2))),
    ),
    "pseudotime": (
        "obsm/scvae_ends_from_batch_1",
        lambda a: a.obsm.__setitem__("scvae_ends_from_batch_1", np.ones((120, 2))),
    ),
}


def element(adata: ad.AnnData, path: str) -> np.ndarray:
    group, key = path.split("/")
    value = getattr(adata, group)[key]
    return value.toarray() if sp.issparse(value) else np.asarray(value)


@pytest.mark.parametrize("verb", USER_SLOTS)
def test_slot_of_the_user_is_overwritten_only_with_force(bench, monkeypatch, verb):
    path, add_slot = USER_SLOTS[verb]
    bench.change(add_slot)
    before = ad.read_h5ad(bench.data)
    with monkeypatch.context() as patch:
        patch.setattr("scvae_cli.model.vae.VAE.encode", None)
        hint = assert_refused(bench.folder, bench.args(verb, *OPTIONS[verb]), DATA, f"{path} already exists")
    assert "--key-added" in hint
    run_ok(*bench.args(verb, *OPTIONS[verb], "--key-added", "beside"))
    kept, original = (element(adata, path) for adata in (ad.read_h5ad(bench.data), before))
    np.testing.assert_array_equal(kept, original)
    run_ok(*bench.args(verb, *OPTIONS[verb], "--force"))
    # A slot that scvae wrote is replaced without --force.
    run_ok(*bench.args(verb, *OPTIONS[verb]))


@pytest.mark.parametrize("value", ["mine", {"notes": "mine"}], ids=["text", "dict"])
def test_uns_scvae_of_the_user_is_overwritten_only_with_force(bench, value):
    bench.change(lambda a: a.uns.__setitem__("scvae", value))
    assert_refused(bench.folder, bench.args("embed"), DATA, "uns/scvae already exists")
    run_ok(*bench.args("embed", "--key-added", "mine"))
    assert ad.read_h5ad(bench.data).uns["scvae"] == value
    run_ok(*bench.args("embed", "--force"))
    uns = ad.read_h5ad(bench.data).uns["scvae"]
    assert set(uns) == {"runs"} | (set(value) if isinstance(value, dict) else set())


def test_10x_input_requires_an_output(tmp_path, trained):
    source = tmp_path / "cells.h5"
    write_10x_h5(source, cells())
    assert_refused(
        tmp_path,
        ["embed", source, "-m", trained.model],
        USAGE,
        "is a 10x .h5 file, so results cannot be written into it",
    )


def test_invalid_records_of_runs_are_ignored(bench):
    uns = {"runs": {"embed": json.dumps({"slots": ["obsm/X_scvae"]}), "notes": "{", "list": "[1]"}}
    bench.change(lambda a: a.uns.__setitem__("scvae", uns))
    assert "no results of scvae" in run_ok("info", bench.data).out
    assert_refused(bench.folder, bench.args("embed"), DATA, "uns/scvae already exists")


# --- AnnData in memory ------------------------------------------------------------------------------------------------


def test_slot_of_the_user_in_memory_is_overwritten_only_with_force(bench):
    adata = ad.read_h5ad(bench.data)
    adata.obsm["X_scvae"] = np.ones((120, 2))
    with pytest.raises(DataError, match="obsm/X_scvae already exists"):
        scvae.embed(adata, bench.model)
    np.testing.assert_array_equal(adata.obsm["X_scvae"], np.ones((120, 2)))
    scvae.embed(adata, bench.model, force=True)
    scvae.embed(adata, bench.model)
    assert adata.obsm["scvae_latent"].shape == (120, 4)


@pytest.mark.filterwarnings("ignore:.*belong to groups that the trajectory does not pass:scvae_cli.errors.ScvaeWarning")
@pytest.mark.parametrize("before", [False, True], ids=["first", "after its parent"])
def test_results_of_a_view_do_not_change_its_parent(bench, before):
    parent = ad.read_h5ad(bench.data)
    if before:
        scvae.embed(parent, bench.model)
    parent_uns = json.dumps(parent.uns, default=str, sort_keys=True)
    part = parent[:60]
    groups = list(dict.fromkeys(part.obs["cell_type"].astype(str)))[:2]
    scvae.interpolate(part, bench.model, groupby="cell_type", groups=groups, name="walk")
    scvae.embed(part, bench.model)
    assert not part.is_view
    assert set(part.uns["scvae"]["paths"]) == {"walk"}
    assert json.dumps(parent.uns, default=str, sort_keys=True) == parent_uns
    assert (parent.n_obs, part.n_obs) == (120, 60)


def test_numpy_scalars_in_options_are_recorded(bench):
    adata = ad.read_h5ad(bench.data)
    scvae.denoise(adata, bench.model, library=np.float32(500))
    options = json.loads(adata.uns["scvae"]["runs"]["denoise"])["options"]
    assert options["library"] == 500


def test_groups_can_be_given_as_numbers(bench):
    adata = ad.read_h5ad(bench.data)
    adata.obs["day"] = np.arange(120) % 2 * 2
    from_numbers = scvae.pseudotime(adata, bench.model, groupby="day", root=0, ends=[2], inplace=False)
    from_text = scvae.pseudotime(adata, bench.model, groupby="day", root="0", ends=["2"], inplace=False)
    np.testing.assert_array_equal(from_numbers.pseudotime_n, from_text.pseudotime_n)


def test_output_is_refused_for_data_in_memory(bench):
    with pytest.raises(ConfigError, match="changed in place"):
        scvae.embed(ad.read_h5ad(bench.data), bench.model, output=bench.folder / "out.h5ad")


def test_backed_anndata_is_refused(bench):
    backed = ad.read_h5ad(bench.data, backed="r")
    with pytest.raises(DataError, match="backed by a file"):
        scvae.embed(backed, bench.model)
    backed.file.close()


def test_layer_of_strings_in_memory_is_refused(bench):
    adata = ad.read_h5ad(bench.data)
    adata.layers["text"] = np.full(adata.shape, "many", dtype=object)
    with pytest.raises(DataError, match="does not hold numbers"):
        scvae.embed(adata, bench.model, layer="text")


# --- full disk --------------------------------------------------------------------------------------------------------

# Limit the size of files, which has the same effect on one process as a full disk.
_FULL_DISK = """
import resource, sys
from scvae_cli.cli.app import run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize("verb", ["embed", "denoise"])
@pytest.mark.parametrize("share", [0.5, 1.01], ids=["no room for the copy", "no room for the result"])
def test_full_disk_leaves_files_unchanged(bench, verb, share):
    size_limit = int(bench.data.stat().st_size * share)
    before = contents(bench.folder)
    done = full_disk(size_limit, *bench.args(verb))
    assert done.returncode == DATA, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("writing")]
    assert [line.split(":")[0] for line in errors] == ["error", "hint"], done.stderr
    assert "quota) is full" in errors[0]
    assert contents(bench.folder) == before


def test_full_disk_during_the_path_file_leaves_the_data_unchanged(bench):
    before = contents(bench.folder)
    steps = ["--path-out", bench.folder / "steps.h5ad", "--steps", "2000"]
    # The limit is larger than the data and smaller than the file of steps.
    done = full_disk(bench.data.stat().st_size + 100_000, *bench.args("interpolate", *OPTIONS["interpolate"], *steps))
    assert done.returncode == DATA, done.stderr
    assert "quota) is full" in done.stderr
    assert "steps.h5ad" in done.stderr
    assert contents(bench.folder) == before


def test_full_disk_during_the_save_of_a_model_leaves_no_model(bench):
    before = contents(bench.folder)
    done = full_disk(4096, *bench.train_args("--quiet"))
    assert done.returncode == MODEL, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"], done.stderr
    assert contents(bench.folder) == before


def full_disk(size_limit: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_forked(_FULL_DISK, size_limit, *arguments)
