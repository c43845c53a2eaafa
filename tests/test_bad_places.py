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
from command_line import TINY, run_forked, run_well
from conftest import cells
from tenx import write_10x_h5
from workbench import DATA, MODEL, USAGE, Bench, contents, refused

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
def test_models_that_cannot_be_used(bench, case, verb):
    fragment, spoil = MODELS[case]
    spoil(bench)
    refused(bench.folder, bench.ask("embed") if verb == "embed" else ["info", bench.model], MODEL, fragment)


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
def test_places_a_model_cannot_go(bench, fragment, options):
    refused(bench.folder, ["train", bench.data, *TINY, *options(bench)], MODEL, fragment)


# --- where results cannot go ------------------------------------------------------------------------------------------


def test_output_that_exists_needs_force(bench):
    other = bench.file("other.h5ad", "precious")
    assert "--force" in refused(bench.folder, bench.ask("embed", "-o", other), DATA, "exists")
    run_well(*bench.ask("embed", "-o", other, "--force"))
    assert "X_scvae" in ad.read_h5ad(other).obsm


def hard_link(file: Path, name: str) -> Path:
    """Make a second name of a file."""
    os.link(file, file.parent / name)
    return file.parent / name


PLACES: dict[str, tuple[int, str, Callable[[Bench], list[object]]]] = {
    "not .h5ad": (DATA, "does not end in .h5ad", lambda b: b.ask("embed", "-o", b.folder / "out.csv")),
    "a folder": (DATA, "is a folder", lambda b: b.ask("embed", "-o", folder(b, "out.h5ad"))),
    "no such folder": (DATA, "is not a folder", lambda b: b.ask("embed", "-o", b.folder / "no" / "out.h5ad")),
    "steps not .h5ad": (DATA, "does not end in .h5ad", lambda b: b.walk("a", "b", "--path-out", "steps.csv")),
    "steps exist": (DATA, "exists", lambda b: b.walk("a", "b", "--path-out", b.file("steps.h5ad"))),
    "steps in the data": (USAGE, "contains the cells", lambda b: b.walk("a", "b", "--path-out", b.data, "--force")),
    "steps in the data, by a hard link": (
        USAGE,
        "contains the cells",
        lambda b: b.walk("a", "b", "--path-out", hard_link(b.data, "twin.h5ad"), "--force"),
    ),
    "steps in the input": (
        USAGE,
        "contains the cells",
        lambda b: b.walk("a", "b", "--path-out", b.data, "-o", b.folder / "out.h5ad", "--force"),
    ),
    "steps in the output": (
        USAGE,
        "contains the cells",
        lambda b: b.walk("a", "b", "--path-out", b.folder / "out.h5ad", "-o", b.folder / "out.h5ad"),
    ),
    "simulation exists": (DATA, "exists", lambda b: ["simulate", b.data]),
    "simulation not .h5ad": (DATA, "does not end in .h5ad", lambda b: ["simulate", b.folder / "out"]),
}


def folder(bench: Bench, name: str) -> Path:
    (bench.folder / name).mkdir()
    return bench.folder / name


@pytest.mark.parametrize("case", PLACES)
def test_places_results_cannot_go(bench, case):
    code, fragment, arguments = PLACES[case]
    refused(bench.folder, arguments(bench), code, fragment)


ASKED = {
    "embed": (),
    "annotate": ("--labels-key", "cell_type"),
    "denoise": (),
    "score": ("--samples", "2", "--simulated", "100"),
    "interpolate": ("--groupby", "batch", "--from", "batch_1", "--to", "batch_2"),
    "pseudotime": ("--groupby", "batch", "--root", "batch_1", "--to", "batch_2"),
}


@pytest.fixture
def no_computing(monkeypatch):
    """Fail when cells are encoded, to test that a refusal comes before the computation."""
    monkeypatch.setattr("scvae_cli.model.vae.VAE.encode", None)


@pytest.mark.parametrize("verb", ASKED)
def test_read_only_places_are_found_before_computing(bench, no_computing, verb):
    bench.data.chmod(0o444)
    assert "chmod u+w" in refused(bench.folder, bench.ask(verb, *ASKED[verb]), DATA, "cells.h5ad is read-only")
    bench.data.chmod(0o644)
    bench.folder.chmod(0o555)
    refused(bench.folder, bench.ask(verb, *ASKED[verb]), DATA, "is read-only")
    bench.folder.chmod(0o755)


def test_model_folder_is_not_put_into_a_read_only_one(bench):
    place = folder(bench, "shelf")
    place.chmod(0o555)
    arguments = ["train", bench.data, *TINY, "-m", place / "cells.scvae"]
    refused(bench.folder, arguments, MODEL, "is not a folder that can be written to")


def test_read_only_data_can_be_written_elsewhere(bench):
    bench.data.chmod(0o444)
    out = bench.folder / "out.h5ad"
    run_well(*bench.ask("embed", "-o", out))
    run_well("denoise", out, "-m", bench.model)
    assert "scvae_denoised" in ad.read_h5ad(out).layers


# Slots of the user with the names of results.
FOREIGN: dict[str, tuple[str, Callable[[ad.AnnData], object]]] = {
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


@pytest.mark.parametrize("verb", FOREIGN)
def test_slots_that_are_not_ours(bench, monkeypatch, verb):
    path, put = FOREIGN[verb]
    bench.changed(put)
    mine = ad.read_h5ad(bench.data)
    with monkeypatch.context() as patch:
        patch.setattr("scvae_cli.model.vae.VAE.encode", None)
        hint = refused(bench.folder, bench.ask(verb, *ASKED[verb]), DATA, f"{path} already exists")
    assert "--key-added" in hint
    run_well(*bench.ask(verb, *ASKED[verb], "--key-added", "beside"))
    kept, original = (element(adata, path) for adata in (ad.read_h5ad(bench.data), mine))
    np.testing.assert_array_equal(kept, original)
    run_well(*bench.ask(verb, *ASKED[verb], "--force"))
    # A slot that scvae wrote is replaced without --force.
    run_well(*bench.ask(verb, *ASKED[verb]))


@pytest.mark.parametrize("value", ["mine", {"notes": "mine"}], ids=["text", "dict"])
def test_provenance_does_not_replace_what_is_not_ours(bench, value):
    bench.changed(lambda a: a.uns.__setitem__("scvae", value))
    refused(bench.folder, bench.ask("embed"), DATA, "uns/scvae already exists")
    run_well(*bench.ask("embed", "--key-added", "mine"))
    assert ad.read_h5ad(bench.data).uns["scvae"] == value
    run_well(*bench.ask("embed", "--force"))
    uns = ad.read_h5ad(bench.data).uns["scvae"]
    assert set(uns) == {"runs"} | (set(value) if isinstance(value, dict) else set())


def test_10x_needs_an_output(tmp_path, trained):
    source = tmp_path / "cells.h5"
    write_10x_h5(source, cells())
    refused(
        tmp_path,
        ["embed", source, "-m", trained.model],
        USAGE,
        "is a 10x .h5 file, so results cannot be written into it",
    )


def test_records_that_are_not_ours_count_for_nothing(bench):
    uns = {"runs": {"embed": json.dumps({"slots": ["obsm/X_scvae"]}), "notes": "{", "list": "[1]"}}
    bench.changed(lambda a: a.uns.__setitem__("scvae", uns))
    assert "no results of scvae" in run_well("info", bench.data).out
    refused(bench.folder, bench.ask("embed"), DATA, "uns/scvae already exists")


# --- AnnData in memory ------------------------------------------------------------------------------------------------


def test_slots_in_memory_that_are_not_ours(bench):
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
def test_results_of_a_view_are_its_own(bench, before):
    parent = ad.read_h5ad(bench.data)
    if before:
        scvae.embed(parent, bench.model)
    known = json.dumps(parent.uns, default=str, sort_keys=True)
    part = parent[:60]
    groups = list(dict.fromkeys(part.obs["cell_type"].astype(str)))[:2]
    scvae.interpolate(part, bench.model, groupby="cell_type", groups=groups, name="walk")
    scvae.embed(part, bench.model)
    assert not part.is_view
    assert set(part.uns["scvae"]["paths"]) == {"walk"}
    assert json.dumps(parent.uns, default=str, sort_keys=True) == known
    assert (parent.n_obs, part.n_obs) == (120, 60)


def test_options_of_numpy_s_kinds_are_recorded(bench):
    adata = ad.read_h5ad(bench.data)
    scvae.denoise(adata, bench.model, library=np.float32(500))
    options = json.loads(adata.uns["scvae"]["runs"]["denoise"])["options"]
    assert options["library"] == 500


def test_groups_may_be_asked_for_by_their_numbers(bench):
    adata = ad.read_h5ad(bench.data)
    adata.obs["day"] = np.arange(120) % 2 * 2
    found = scvae.pseudotime(adata, bench.model, groupby="day", root=0, ends=[2], inplace=False)
    same = scvae.pseudotime(adata, bench.model, groupby="day", root="0", ends=["2"], inplace=False)
    np.testing.assert_array_equal(found.pseudotime_n, same.pseudotime_n)


def test_data_in_memory_has_no_output(bench):
    with pytest.raises(ConfigError, match="changed in place"):
        scvae.embed(ad.read_h5ad(bench.data), bench.model, output=bench.folder / "out.h5ad")


def test_backed_data_is_not_in_memory(bench):
    backed = ad.read_h5ad(bench.data, backed="r")
    with pytest.raises(DataError, match="backed by a file"):
        scvae.embed(backed, bench.model)
    backed.file.close()


def test_strings_in_memory(bench):
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
def test_full_disk(bench, verb, share):
    room = int(bench.data.stat().st_size * share)
    before = contents(bench.folder)
    done = full_disk(room, *bench.ask(verb))
    assert done.returncode == DATA, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("writing")]
    assert [line.split(":")[0] for line in errors] == ["error", "hint"], done.stderr
    assert "quota) is full" in errors[0]
    assert contents(bench.folder) == before


def test_full_disk_while_writing_the_steps_leaves_the_data_alone(bench):
    before = contents(bench.folder)
    steps = ["--path-out", bench.folder / "steps.h5ad", "--steps", "2000"]
    # The limit is larger than the data and smaller than the file of steps.
    done = full_disk(bench.data.stat().st_size + 100_000, *bench.ask("interpolate", *ASKED["interpolate"], *steps))
    assert done.returncode == DATA, done.stderr
    assert "quota) is full" in done.stderr
    assert "steps.h5ad" in done.stderr
    assert contents(bench.folder) == before


def test_full_disk_while_saving_a_model(bench):
    before = contents(bench.folder)
    done = full_disk(4096, *bench.train("--quiet"))
    assert done.returncode == MODEL, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"], done.stderr
    assert contents(bench.folder) == before


def full_disk(room: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_forked(_FULL_DISK, room, *arguments)
