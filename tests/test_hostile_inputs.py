"""Inputs from strangers: paths that are not files, names with line breaks, extreme numbers, and damaged caches."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from pathlib import Path

import anndata as ad
import h5py
import hostile_models
import numpy as np
import pytest
import scipy.sparse as sp
from command_line import run_cli, run_elsewhere, run_ok
from workbench import DATA, MODEL, USAGE, assert_refused

import scvae_cli as scvae
from scvae_cli.data.finite import finite_slots, refuse_not_finite
from scvae_cli.data.h5ad import H5adFile
from scvae_cli.data.h5ad_heaps import check_heaps
from scvae_cli.data.slots import RowBlocks, Slot
from scvae_cli.errors import DataError, ModelError, ScvaeError, ScvaeWarning
from scvae_cli.model.bundle import load
from scvae_cli.model.folder_checks import empty_network
from scvae_cli.regular_file import read_regular
from scvae_cli.strict_json import parse_json

# --- paths that are not files -----------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path) -> Path:
    """A named pipe, which blocks every process that opens it."""
    path = tmp_path / "pipe.h5ad"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("verb", ["check", "train", "info"])
def test_pipe_as_data_is_refused(pipe, verb):
    outcome = run_cli(verb, pipe)
    assert outcome.code == DATA
    assert "it is a named pipe, not a file" in outcome.err


def test_pipe_or_device_as_an_option_is_refused(bench, pipe):
    for path in (pipe, Path("/dev/zero")):
        outcome = run_cli(*bench.train_args("--config", path))
        assert outcome.code == USAGE, outcome
        assert "cannot read" in outcome.err
        assert run_cli(*bench.train_args("--genes", f"@{path}")).code == DATA
        assert run_cli(*bench.args("denoise", "--genes", f"@{path}")).code == USAGE


def test_pipe_in_a_10x_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "matrix.mtx")
    assert run_cli("check", tmp_path).code == DATA


def test_link_to_itself_is_refused(bench):
    loop = bench.folder / "loop.h5ad"
    loop.symlink_to(loop)
    assert run_cli("embed", loop, "-m", bench.model).code == DATA


def test_only_regular_files_up_to_a_size_are_read(tmp_path, pipe):
    path = tmp_path / "file"
    path.write_bytes(b"four")
    assert read_regular(path, most=4) == b"four"
    for bad, most in ((path, 3), (pipe, 9), (Path("/dev/zero"), 9), (tmp_path, 9)):
        with pytest.raises(OSError, match=r"it (is|has)") as caught:
            read_regular(bad, most=most)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nowhere", most=9)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_control_characters_in_messages_are_escaped():
    error = ScvaeError("no column 'a\nerror: all is lost\x1b[2J'", "columns: \r")
    assert error.message == "no column 'a\\nerror: all is lost\\x1b[2J'"
    assert error.hint == "columns: \\r"
    assert str(ScvaeWarning("batch\nwarning: forged")) == "batch\\nwarning: forged"
    assert ScvaeError("β = 1 µm, naïve 'γδ T'").message == "β = 1 µm, naïve 'γδ T'"


def test_names_with_line_breaks_are_refused(bench):
    bench.change(lambda a: setattr(a, "var_names", [f"{name}\n" for name in a.var_names]))
    assert_refused(bench.folder, bench.train_args(), DATA, "has a line break")


@pytest.mark.parametrize(
    "text", ["[" * 10_000, "[" * 40 + "]" * 40, "9" * 5000, '{"a": ' + "9" * 19 + "}", '"\\ud800"', b"\xff", "", "{"]
)
def test_hostile_json_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_valid_json_is_read():
    value = {"a": [1, -(10**17), 1.5, "β", None, {"b": []}]}
    assert parse_json(json.dumps(value)) == value


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e39, 1e300, 2.0**31])
def test_float_counts_that_are_too_large_are_refused(bench, value):
    def change(adata: ad.AnnData) -> None:
        x = adata.X.astype(np.float64)
        x.data[3] = value
        adata.X = x

    bench.change(change)
    assert_refused(bench.folder, bench.train_args(), DATA, "a value too large for a count")


def test_integer_counts_that_are_too_large_are_refused(bench):
    bench.change(lambda a: setattr(a, "X", sp.csr_matrix(a.X.astype(np.uint64).multiply(2**40)).astype(np.uint64)))
    assert_refused(bench.folder, bench.train_args(), DATA, "a value too large for a count")


def test_results_that_are_not_finite_are_not_written():
    good = np.ones((3, 2), np.float32)
    for value in (np.nan, np.inf):
        bad = good.copy()
        bad[1, 0] = value
        with pytest.raises(ModelError, match="obsm/x that are not finite"):
            finite_slots([Slot(group="obsm", key="x", value=bad)])
        blocks = RowBlocks(shape=(6, 2), dtype=good.dtype, blocks=iter([good, bad]))
        [slot] = finite_slots([Slot(group="layers", key="x", value=blocks)])
        with pytest.raises(ModelError, match="layers/x"):
            slot.value.whole()
    refuse_not_finite(np.array([1, np.nan]), "x", may_lack=True)
    with pytest.raises(ModelError):
        refuse_not_finite(np.array([1, np.inf]), "x", may_lack=True)


@pytest.mark.parametrize("verb", ["embed", "denoise", "score"])
def test_huge_weights_give_no_result(bench, verb):
    header, values = hostile_models.read_tensors(bench.model / "weights.safetensors")
    numbers = np.frombuffer(values, "<f4") * np.float32(1e30)
    hostile_models.write_tensors(bench.model / "weights.safetensors", header, numbers.astype("<f4").tobytes())
    hostile_models.sign(bench.model)
    before = bench.data.read_bytes()
    outcome = run_cli(*bench.args(verb))
    assert outcome.code in (DATA, MODEL), outcome
    assert bench.data.read_bytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bench, value):
    header, values = hostile_models.read_tensors(bench.model / "weights.safetensors")
    numbers = np.frombuffer(values, "<f4").copy()
    numbers[7] = value
    hostile_models.write_tensors(bench.model / "weights.safetensors", header, numbers.tobytes())
    hostile_models.sign(bench.model)
    assert_refused(bench.folder, bench.args("embed"), MODEL, "values that are not finite numbers")


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_sizes_are_checked_before_the_network_is_created(bench):
    config = load(bench.model).config.model
    for change in ({"n_layers": 100}, {"n_hidden": 65536}, {"n_latent": 1000}):
        huge = type(config)(**vars(config) | change)
        with pytest.raises(ValueError, match="too few for the"):
            empty_network(huge, 40, (), n_bytes=20_000)


def test_declared_size_without_stored_values_is_refused(bench):
    with h5py.File(bench.data, "r+") as file:
        del file["obs/_index"]
        file["obs"].create_dataset("_index", shape=(10**12,), dtype=h5py.string_dtype(), chunks=(1000,))
    assert_refused(bench.folder, ["check", bench.data], DATA, "but few of them are stored")


def test_loaded_model_equals_the_saved_model(bench):
    one, other = load(bench.model), load(bench.model)
    one.save(bench.folder / "again.scvae")
    for name in ("weights.safetensors", "latent.safetensors", "genes.txt"):
        assert (bench.model / name).read_bytes() == (bench.folder / "again.scvae" / name).read_bytes()
    assert all(p.requires_grad for p in other.vae.parameters())


# --- inputs that crash or hang HDF5 or numba --------------------------------------------------------------------------


def test_heap_that_makes_hdf5_loop_forever_is_refused(bench):
    check_heaps(bench.data)
    content = bytearray(bench.data.read_bytes())
    heap = content.find(b"GCOL")
    content[heap + 16 : heap + 2048] = bytes(2032)
    bench.data.write_bytes(content)
    assert_refused(bench.folder, bench.args("embed"), DATA, "a text has no size")


def test_exponentially_many_links_are_not_followed(bench):
    with h5py.File(bench.data, "r+") as file:
        group = file["uns"]
        for _ in range(40):
            deeper = group.create_group("a")
            group["b"] = deeper
            group = deeper
    run_ok(*bench.args("embed"))


def test_deeply_nested_uns_is_not_traversed(bench):
    with h5py.File(bench.data, "r+") as file:
        group = file["uns"]
        for _ in range(2000):
            group = group.create_group("a")
    run_ok(*bench.args("embed"))
    assert list(H5adFile(bench.data).existing("uns/scvae/runs")) == ["embed"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 20], ids=["empty", "truncated"])
def test_damaged_cache_of_numba_is_repaired(size, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
    script = "import numpy; from scvae_cli.model.compiled.vector_math import total; print(total(numpy.ones(4, 'f4')))"
    first = run_elsewhere(script)
    assert first.returncode == 0, first.stderr
    files = {path: path.stat().st_size for path in cache.rglob("*.nb?")}
    assert files
    for path in files:
        os.truncate(path, size)
    second = run_elsewhere(script)
    assert (second.returncode, second.stdout) == (0, first.stdout), second.stderr
    assert all(path.stat().st_size > 20 for path in cache.rglob("*.nbi"))


# --- saved states -----------------------------------------------------------------------------------------------------


def test_saved_state_with_wrong_numbers_is_refused(bench, monkeypatch):
    """The hash of the saved state is correct although the numbers are wrong, as in a forged state."""
    from scvae_cli.training import fit as fitting

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr("scvae_cli.training.loop.Trainer.evaluate", _interrupted_at(3))
        assert run_cli(*bench.train_args()).code == 130
    state = bench.folder / ".other.scvae.partial"
    valid = bench.folder / "sound"
    shutil.copyfile(state, valid)
    unpacked = bench.folder / "apart"
    hostile_models.unpack_state(state, unpacked)
    numbers = json.loads((unpacked / "state.json").read_text())
    for name, value in (("epoch", 10**6), ("step", -1), ("best_loss", "low"), ("max_epochs", 10**9), ("beta", 7)):
        changed = numbers | {"schedule": numbers["schedule"] | {name: value}}
        (unpacked / "state.json").write_text(json.dumps(changed))
        hostile_models.sign(unpacked)
        hostile_models.pack_state(unpacked, state)
        outcome = run_cli(*bench.train_args("--resume"))
        assert outcome.code == MODEL, outcome
        assert "is damaged" in outcome.err
    valid.replace(state)
    run_ok(*bench.train_args("--resume"))


def _interrupted_at(count: int):
    from scvae_cli.training.loop import Trainer

    evaluate, calls = Trainer.evaluate, 0

    def evaluated(self):
        nonlocal calls
        calls += 1
        if calls == count:
            raise KeyboardInterrupt
        return evaluate(self)

    return evaluated


def test_python_functions_raise_the_same_errors(bench):
    with h5py.File(bench.data, "r+") as file:
        file["X/indptr"][5] = 10**6
    with pytest.raises(DataError, match="X cannot be read: the pointers"), warnings.catch_warnings():
        scvae.embed(bench.data, bench.model)
