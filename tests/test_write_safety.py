"""Signals, kills, other writers, links and metadata while files are written."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import write_attacks
from command_line import TINY, run_cli, run_ok
from system_calls import can_trace
from workbench import DATA, MODEL, assert_refused, contents, elements_of

import scvae_cli as scvae
from scvae_cli.data import atomic, exchange, file_metadata, writers_lock
from scvae_cli.data.atomic import replacing
from scvae_cli.data.patient_file import PatientFile, open_to_write
from scvae_cli.data.writers_lock import only_writer
from scvae_cli.errors import DataError, ScvaeWarning
from scvae_cli.interruption import deferred, stop_if_asked
from scvae_cli.model import bundle
from scvae_cli.training.checkpoint import only_training

pytestmark = pytest.mark.usefixtures("handled_signals")
traced = pytest.mark.skipif(not can_trace(), reason="this system does not let a process follow its children")


# --- signals ----------------------------------------------------------------------------------------------------------


@traced
@pytest.mark.parametrize("number", [signal.SIGKILL, *write_attacks.SIGNALS], ids=lambda number: number.name)
def test_signal_at_any_system_call_leaves_complete_old_or_new_file(copied, number):
    """A few of the cases of benchmarks/attack_writes.py."""
    folder = copied.data.parent / "work"
    folder.mkdir()
    data, model = (shutil.move(path, folder) for path in (copied.data, copied.model))
    writing = write_attacks.Writing(folder, ["embed", data, "-m", model])
    tally = write_attacks.interrupted(writing, 5, number)
    assert tally.total == 5
    assert not tally.failures


@pytest.mark.parametrize("call", ["write", "seek", "truncate"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(5, "Input/output error")])
def test_errors_in_callbacks_of_hdf5_are_raised_at_the_end(tmp_path, monkeypatch, call, error):
    original, calls = getattr(PatientFile.__mro__[1], call), []

    class Breaking(PatientFile.__mro__[1]):  # type: ignore[misc]  # the class is known only at run time
        pass

    def broken(self: Any, *args: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            raise error
        return original(self, *args)

    setattr(Breaking, call, broken)
    broken_file = type("BrokenFile", (PatientFile, Breaking), {})
    monkeypatch.setattr("scvae_cli.data.patient_file.PatientFile", broken_file)
    kind = error if isinstance(error, type) else type(error)
    if call == "truncate":
        calls += [None, None]
    with pytest.raises(kind), open_to_write(tmp_path / "new.h5", new=True) as (file, _):
        file["values"] = np.arange(10_000)
    assert len(calls) >= 3


def test_signals_are_delayed_until_the_end_of_nested_blocks():
    seen: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("handled"))
    try:
        with deferred():
            with deferred():
                signal.raise_signal(signal.SIGTERM)
                stop_if_asked()  # does not stop, because the handler does not end the process
                seen.append("inner")
            seen.append("outer")
        assert seen == ["inner", "outer", "handled"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_in_python_is_raised_after_the_write_or_at_a_safe_point(tmp_path):
    # The error is raised at the end of the block, so the block contains the whole write.
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.csv") as sibling:  # noqa: PT012  # see above
        signal.raise_signal(signal.SIGINT)
        sibling.write_text("whole")
    assert (tmp_path / "a.csv").read_text() == "whole"
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.csv") as sibling:  # noqa: PT012  # see above
        sibling.write_text("half")
        signal.raise_signal(signal.SIGINT)
        stop_if_asked()
    assert (tmp_path / "a.csv").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", write_attacks.SIGNALS, ids=lambda number: number.name)
def test_signal_at_the_start_ends_with_a_message(copied, number):
    """The signal arrives after the first line of scvae has run, but before its libraries are imported."""
    script = (
        "import scvae_cli.interruption as i; i.end_on_signals(); print('up', flush=True); import time; time.sleep(9)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert err == "interrupted; the data was not changed\n"


# --- other writers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not write_attacks.can_unshare(), reason="this system does not permit namespaces")
def test_writers_with_equal_process_id_and_host_name_lose_no_results(copied):
    folder = copied.data.parent / "work"
    folder.mkdir()
    data, model = (Path(shutil.move(path, folder)) for path in (copied.data, copied.model))
    tally = write_attacks.concurrent_writers(folder, data, model, rounds=2, writers=2)
    assert tally.total == 4
    assert not tally.failures


def test_second_writer_waits_and_is_then_refused(tmp_path, monkeypatch):
    target = tmp_path / "a.csv"
    monkeypatch.setattr(writers_lock, "WAIT_SECONDS", 0.1)
    with only_writer(target):
        began = time.monotonic()
        with pytest.raises(DataError, match="another scvae is writing"), replacing(target):
            pass
        assert time.monotonic() - began >= 0.1
    with replacing(target) as sibling:
        sibling.write_text("later")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_second_training_of_one_model_is_refused_before_it_reads_the_counts(copied):
    """Two trainings of one model at once would save their states in one file, and could not be resumed reliably."""
    saved_state = copied.model.with_name(f".{copied.model.name}.partial")
    saved_state.write_text("of the first training")
    with only_training(copied.model):
        outcome = run_cli("train", copied.data, "-m", copied.model, "--force", *TINY)
    assert (outcome.code, outcome.err.count("\n")) == (4, 2)
    assert f"error: another scvae is training {copied.model}" in outcome.err
    assert saved_state.read_text() == "of the first training"
    run_ok("train", copied.data, "-m", copied.model, "--force", *TINY)
    assert {path.name for path in copied.data.parent.iterdir()} == {copied.data.name, copied.model.name}


def test_only_temporary_files_without_a_writer_are_removed(tmp_path):
    target = tmp_path / "a.csv"
    orphan, old = (tmp_path / f".a.csv.scvae-{name}.tmp" for name in ("0123456789abcdef", "host-17"))
    for path in (orphan, old):
        path.write_text("left by a killed process")
    with atomic._temporary(target)[0].open() as held:
        running = Path(held.name)
        with replacing(target) as sibling:
            sibling.write_text("new")
        assert not orphan.exists()
        assert not old.exists()
        assert running.exists()


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_other_file_with_the_name_of_the_lock_is_not_changed(copied, kind):
    path, other = copied.data.parent / ".cells.h5ad.scvae.lock", copied.data.parent / "precious.txt"
    other.write_text("precious")
    {"link": lambda: path.symlink_to(other), "folder": path.mkdir, "fifo": lambda: os.mkfifo(path)}[kind]()
    assert_refused(copied.data.parent, ["embed", copied.data, "-m", copied.model], DATA, "is in the way of writing")
    assert other.read_text() == "precious"


def test_temporary_files_are_private_until_they_are_complete(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")
    target.chmod(0o640)
    names = set()
    for _ in range(3):
        with replacing(target) as sibling:
            names.add(sibling.name)
            assert stat.S_IMODE(sibling.stat().st_mode) == 0o600
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert len(names) == 3
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "new.csv"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.csv").stat().st_mode) == 0o640


def test_change_with_equal_size_and_time_is_detected(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")
    status = target.stat()
    read_as = atomic.fingerprint(target)
    time.sleep(0.02)  # the clock of the file system has a low resolution
    with target.open("r+") as file:
        file.write("new")
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    with (
        pytest.raises(DataError, match="changed by another program"),
        replacing(target, copy_of=target, read_as=read_as),
    ):
        pass
    assert target.read_text() == "new"


@pytest.mark.parametrize("links", [True, False], ids=["with hard links", "without"])
def test_file_that_appears_during_the_write_is_kept(tmp_path, monkeypatch, links):
    target = tmp_path / "a.csv"
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    for force in (False, True):
        refused = pytest.raises(DataError, match="created by another program")
        with refused, replacing(target, force=force) as sibling:  # the error is raised at the end of the block
            sibling.write_text("ours")
            target.write_text("theirs")
        assert target.read_text() == "theirs"
        target.unlink()
    with replacing(target, force=False) as sibling:
        sibling.write_text("ours")
    assert target.read_text() == "ours"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_file_open_for_writing_in_another_program_is_refused(tmp_path):
    data = tmp_path / "a.h5"
    with h5py.File(data, "w") as file:
        file["x"] = 1
        file.flush()
        with pytest.raises(DataError, match="open for writing in another program"), replacing(data, copy_of=data):
            pass


def test_temporary_files_of_long_names_can_be_created(tmp_path):
    target = tmp_path / f"{'ä' * 125}.csv"
    with replacing(target) as sibling:
        sibling.write_text("long")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


# --- invalid outputs, and metadata of files ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "link to a device"])
def test_pipes_and_devices_are_not_replaced(copied, kind):
    target = copied.data.with_name("out.h5ad")
    os.mkfifo(target) if kind == "fifo" else target.symlink_to("/dev/null")
    arguments = ["embed", copied.data, "-m", copied.model, "-o", target, "--force"]
    assert_refused(copied.data.parent, arguments, DATA, "is a device or a pipe")
    assert target.is_symlink() or target.is_fifo()


def test_link_to_itself_is_refused(copied):
    target = copied.data.with_name("out.h5ad")
    target.symlink_to(target)
    arguments = ["embed", copied.data, "-m", copied.model, "-o", target, "--force"]
    assert_refused(copied.data.parent, arguments, DATA, "leads back to itself")


def test_attributes_and_group_are_kept(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")
    try:
        os.setxattr(target, "user.origin", b"sequencer 3")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    if os.getuid() == 0:
        os.chown(target, 1234, 2345)
    before = target.stat()
    with replacing(target) as sibling:
        sibling.write_text("new")
    after = target.stat()
    assert os.getxattr(target, "user.origin") == b"sequencer 3"
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


def test_lost_metadata_is_reported_in_one_line(tmp_path, monkeypatch):
    target, other = tmp_path / "a.csv", tmp_path / "b.csv"
    target.write_text("old")
    target.chmod(0o664)
    other.hardlink_to(target)

    def denied(*_: Any) -> None:
        raise PermissionError

    old = os.stat(target)
    monkeypatch.setattr(os, "fchown", denied)
    monkeypatch.setattr(file_metadata, "_name", lambda number, _: "lab")
    theirs = os.stat_result((*old[:4], old.st_uid + 1, old.st_gid + 1, *old[6:]))
    descriptor = os.open(other, os.O_RDONLY)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: theirs)
    lost = file_metadata.keep_metadata(descriptor, target)
    os.close(descriptor)
    monkeypatch.undo()
    assert lost[:2] == ["owner lab", "group lab"]
    # The permissions of the group are not given to another group.
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    with (
        pytest.warns(ScvaeWarning, match=r"could not keep its hard links \(1 other name"),
        replacing(target) as sibling,
    ):
        sibling.write_text("new")
    assert other.read_text() == "old"


# --- links, virtual datasets, data outside ----------------------------------------------------------------------------


def move_to_other_file(copied: Any, group: str) -> Path:
    """Move a group into another file, and put an external link in its place."""
    other = copied.data.with_name("other.h5")
    with h5py.File(copied.data, "r+") as file, h5py.File(other, "w") as other_file:
        if group not in file:
            file.create_group(group)
        file.copy(group, other_file)
        del file[group]
        file[group] = h5py.ExternalLink(other.name, group)
    return other


@pytest.mark.parametrize(
    ("group", "verb"),
    [("obsm", "embed"), ("uns", "embed"), ("layers", "denoise"), ("obs", "score"), ("obs", "embed"), ("X", "embed")],
)
def test_links_to_other_files_are_read_and_never_replaced(copied, group, verb):
    other = move_to_other_file(copied, group)
    before, content = elements_of(copied.data), other.read_bytes()
    arguments = [verb, copied.data, "-m", copied.model]
    if group == "X" or (group, verb) == ("obs", "embed"):
        run_ok(*arguments)
    else:
        assert_refused(copied.data.parent, arguments, DATA, f"{group} is a link to another file")
        assert elements_of(copied.data) == before
    assert other.read_bytes() == content
    with h5py.File(copied.data) as file:
        assert isinstance(file.get(group, getlink=True), h5py.ExternalLink)
        assert group in file


def test_copy_in_another_folder_must_find_linked_files(copied):
    move_to_other_file(copied, "X")
    other_folder = copied.data.parent / "elsewhere"
    other_folder.mkdir()
    arguments = ["embed", copied.data, "-m", copied.model, "-o", other_folder / "out.h5ad"]
    assert_refused(copied.data.parent, arguments, DATA, "would not be found from")
    run_ok(*arguments[:-1], copied.data.with_name("out.h5ad"))


def test_soft_links_are_kept_or_refused(copied):
    with h5py.File(copied.data, "r+") as file:
        file.move("obsm", "kept")
        file["obsm"] = h5py.SoftLink("/kept")
        file["kept/mine"] = np.ones((120, 4))
        file["kept/X_scvae"] = h5py.SoftLink("/kept/mine")
    arguments = ["embed", copied.data, "-m", copied.model, "--force"]
    assert_refused(copied.data.parent, arguments, DATA, "obsm/X_scvae is a link to '/kept/mine'")
    run_ok(*arguments, "--key-added", "beside")
    with h5py.File(copied.data) as file:
        assert isinstance(file.get("obsm", getlink=True), h5py.SoftLink)
        assert {"mine", "X_beside"} <= set(file["kept"])


def test_missing_linked_file_is_named(copied):
    move_to_other_file(copied, "obs").unlink()
    assert_refused(copied.data.parent, ["embed", copied.data, "-m", copied.model], DATA, "obs is a link to 'other.h5'")


def make_virtual(copied: Any) -> Path:
    """Replace the values of X by a virtual dataset whose source is another file."""
    source = copied.data.with_name("source.h5")
    with h5py.File(copied.data, "r+") as file, h5py.File(source, "w") as there:
        values = file["X/data"][:]
        there["values"] = values
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(source.name, "values", shape=values.shape)
        del file["X/data"]
        file["X"].create_virtual_dataset("data", layout)
    return source


def test_virtual_dataset_requires_its_source(copied, tmp_path):
    source = make_virtual(copied)
    arguments = ["embed", copied.data, "-m", copied.model]
    run_ok(*arguments)
    source.rename(tmp_path / "elsewhere.h5")
    assert_refused(copied.data.parent, arguments, DATA, "takes its values from 'source.h5', which is missing")


@pytest.mark.parametrize("path", ["X/data", "obs/cell_type/codes"])
def test_data_in_a_raw_file_are_refused(copied, path):
    with h5py.File(copied.data, "r+") as file:
        shape, dtype, attributes = file[path].shape, file[path].dtype, dict(file[path].attrs)
        secret = copied.data.with_name("secret.bin")
        secret.write_bytes(b"topsecret" * shape[0])
        del file[path]
        made = file.create_dataset(path, shape=shape, dtype=dtype, external=[(secret.name, 0, h5py.h5f.UNLIMITED)])
        made.attrs.update(attributes)
    arguments: list[object] = ["embed", copied.data, "-m", copied.model]
    if path != "X/data":
        arguments = ["interpolate", *arguments[1:], "--groupby", "cell_type", "--from", "a", "--to", "b"]
    assert_refused(copied.data.parent, arguments, DATA, "are not in the file, but in 'secret.bin'")


# --- the model folder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["notes.txt", "plots"])
def test_force_does_not_replace_a_folder_with_other_files(copied, inside):
    path = copied.model / inside
    path.mkdir() if inside == "plots" else path.write_text("mine")
    arguments = ["train", copied.data, "-m", copied.model, *TINY, "--force"]
    assert_refused(copied.data.parent, arguments, MODEL, f"contains '{inside}', which scvae did not write")
    assert path.exists()


@pytest.mark.parametrize("content", ["{}", "[1]", '{"format": 4}', "{", '{"model_type": "bert"}'])
def test_force_does_not_replace_a_folder_that_is_not_a_model(copied, content):
    folder = copied.data.with_name("bert")
    folder.mkdir()
    (folder / "config.json").write_text(content)
    (folder / "weights.safetensors").write_text("mine")
    arguments = ["train", copied.data, "-m", folder, *TINY, "--force"]
    assert_refused(copied.data.parent, arguments, MODEL, "exists and is not a model folder")


@pytest.fixture(params=[True, False], ids=["exchanged", "renamed twice"])
def swap(request, monkeypatch):
    """Both ways to replace a folder: in one step, and with two renames if the system has no such step."""
    if not request.param:
        monkeypatch.setattr(bundle, "exchange", lambda *_: False)
    return request.param


def test_files_added_to_a_model_during_the_training_are_not_lost(copied, monkeypatch):
    model = scvae.load(copied.model)
    original = exchange.exchange
    calls: list[None] = []

    def exchange_late(new: Path, folder: Path) -> bool:
        if not calls:
            (folder / "notes.txt").write_text("mine")
        calls.append(None)
        return original(new, folder)

    monkeypatch.setattr(bundle, "exchange", exchange_late)
    before = contents(copied.model)
    with pytest.raises(scvae.ModelError, match="notes"):
        model.save(copied.model, force=True)
    assert contents(copied.model) == before | {"notes.txt": contents(copied.model)["notes.txt"]}
    assert {path.name for path in copied.data.parent.iterdir()} == {"cells.h5ad", "cells.scvae"}


@pytest.mark.parametrize("where", ["link", "detour"])
def test_model_is_replaced_at_its_real_path(copied, swap, where):
    folder = copied.data.parent / "shelf"
    folder.mkdir()
    real = folder / "real.scvae"
    copied.model.rename(real)
    copied.model.symlink_to(real)
    given = copied.model if where == "link" else folder / "real.scvae" / ".." / "real.scvae"
    old = (real / "weights.safetensors").read_bytes()
    run_ok("train", copied.data, "-m", given, *TINY, "--seed", "1", "--force")
    assert copied.model.is_symlink()
    assert (real / "weights.safetensors").read_bytes() != old
    run_ok("embed", copied.data, "-m", copied.model)
    assert [path.name for path in folder.iterdir()] == ["real.scvae"]


def test_model_path_may_pass_a_folder_that_does_not_exist(copied):
    run_ok("train", copied.data, "-m", copied.data.parent / "new.scvae" / ".." / "new.scvae", *TINY)
    assert (copied.data.parent / "new.scvae" / "config.json").exists()


@pytest.mark.parametrize("verb", ["train", "embed"])
def test_crash_between_two_renames_loses_no_model(copied, verb):
    before = contents(copied.model)
    copied.model.rename(copied.model.with_name(".cells.scvae.previous"))
    if verb == "train":
        outcome = run_cli("train", copied.data, "-m", copied.model, *TINY)
        assert outcome.code == MODEL
        assert "already exists" in outcome.err
    else:
        run_ok("embed", copied.data, "-m", copied.model)
    assert contents(copied.model) == before


def test_read_only_model_is_refused_before_the_training(copied, monkeypatch):
    monkeypatch.setattr("scvae_cli.training.loop.Trainer.events", None)
    copied.model.chmod(0o555)
    assert_refused(
        copied.data.parent, ["train", copied.data, "-m", copied.model, *TINY, "--force"], MODEL, "is read-only"
    )
    copied.model.chmod(0o755)
    assert stat.S_IMODE(copied.model.stat().st_mode) == 0o755


def test_saved_model_keeps_its_permissions(copied, swap):
    copied.model.chmod(0o750)
    (copied.model / "weights.safetensors").chmod(0o640)
    scvae.load(copied.model).save(copied.model, force=True)
    assert stat.S_IMODE(copied.model.stat().st_mode) == 0o750
    assert stat.S_IMODE((copied.model / "weights.safetensors").stat().st_mode) == 0o640
    scvae.load(copied.model)
