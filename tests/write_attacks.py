"""Attacks on the writing of files: a command is killed, signaled or disturbed by another writer at chosen system calls.

Each command runs in this process until the command begins to write. At the start of the writing, this process is forked
once for every case. A case therefore takes only some hundredths of a second, and all cases write the same result.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
from system_calls import Ended, end_child, fork_here, forked
from workbench import contents

from scvae_cli.cli.app import run
from scvae_cli.data.atomic import fingerprint
from scvae_cli.interruption import end_on_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The point at which a command begins to write: a module, a class and its method.
WRITE, SAVE = "scvae_cli.question:Question:write", "scvae_cli.model.bundle:Model:save"
NEW_FILE = "scvae_cli.new_cells_question:NewCellsQuestion:write"


@dataclass
class Tally:
    """Number of cases that were tried, what was left in the folder, and what went wrong."""

    tried: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: str, fault: str | None = None) -> None:
        self.tried[outcome] += 1
        if fault is not None:
            self.failures.append(fault)

    @property
    def total(self) -> int:
        return sum(self.tried.values())


class _Done(BaseException):
    """Raised when all cases were tried, so that the parent process does not continue the command."""


class _Continue(BaseException):
    """Raised in the forked process of a case, which continues the command."""


def _owner(place: str) -> tuple[Any, str]:
    module, owner, name = place.split(":")
    return getattr(importlib.import_module(module), owner), name


class Writing:
    """A command that is stopped before it writes, in a folder whose content is restored before every case."""

    def __init__(self, folder: Path, arguments: Sequence[object], place: str = WRITE) -> None:
        self.folder, self.place = folder, place
        self.arguments = [str(argument) for argument in arguments]
        self.pristine = folder.with_name(f"{folder.name}-pristine")
        shutil.rmtree(self.pristine, ignore_errors=True)
        shutil.copytree(folder, self.pristine, symlinks=True)

    def put_back(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.pristine, self.folder, symlinks=True, dirs_exist_ok=True)

    def __call__(self, cases: Callable[[Callable[..., Ended]], None]) -> None:
        """Run the command until it writes, and call `cases` with a function that continues in a fork."""
        owner, name = _owner(self.place)
        original, parent = getattr(owner, name), os.getpid()

        def continue_in_fork(**how: Any) -> Ended:
            ended = fork_here(self.pristine.parent, prepare=_handle_signals, **how)
            if ended is None:
                raise _Continue
            return ended

        def stopped(this: Any, *args: Any, **kwargs: Any) -> Any:
            if os.getpid() == parent:
                try:
                    cases(continue_in_fork)
                    raise _Done
                except _Continue:
                    _accept_restored_file(this)
            return original(this, *args, **kwargs)

        # The first run imports and compiles all code, so that the forks need not do so.
        run(self.arguments)
        self.put_back()
        setattr(owner, name, stopped)
        try:
            code = run(self.arguments)
        except _Done:
            return
        finally:
            if os.getpid() == parent:
                setattr(owner, name, original)
                self.put_back()
        if os.getpid() != parent:
            end_child(lambda: code)
        raise AssertionError("the command did not write")


def _handle_signals() -> None:
    """Handle all signals as a command in a terminal does; a process in the background ignores some signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    end_on_signals()


def _accept_restored_file(this: Any) -> None:
    """Accept the restored data file in place of the file that the command has read."""
    store = getattr(getattr(this, "session", None), "store", None)
    if store is not None:
        store._read_as = fingerprint(store.path)


def interrupted(writing: Writing, points: int, number: int, seed: int = 0) -> Tally:
    """Send one signal at points spread over all system calls of a write."""
    tally = Tally()

    def cases(continue_in_fork: Callable[..., Ended]) -> None:
        writing.put_back()
        old = contents(writing.folder)
        complete = continue_in_fork()
        new = contents(writing.folder)
        assert complete.code == 0, complete
        assert new != old
        random_points = random.Random(seed)
        for k in range(points):
            # The stops are divided into `points` equal parts, with one random stop in each part.
            until = 1 + int((k + random_points.random()) * complete.stops / points)
            writing.put_back()
            ended = continue_in_fork(until=until, number=number)
            case = f"{signal.Signals(number).name} at {until} of {complete.stops}"
            _judge(tally, writing, continue_in_fork, ended, number, case, old, new)

    writing(cases)
    return tally


def _judge(
    tally: Tally,
    writing: Writing,
    continue_in_fork: Callable[..., Ended],
    ended: Ended,
    number: int,
    case: str,
    old: dict[str, str],
    new: dict[str, str],
) -> None:
    found = contents(writing.folder)
    changed = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    faults = [
        f"{name} is neither old nor new" for name in changed if found.get(name) not in (old.get(name), new.get(name))
    ]
    faults += [f"{name} was changed" for name in {*old, *new} - changed if found.get(name) != old.get(name)]
    written = {name for name in changed if found.get(name) == new.get(name)}
    state = "new" if written == changed else "partly new" if written else "old"
    leftover = found.keys() - {*old, *new}
    if ended.code == -signal.SIGKILL:
        # The next run removes leftover files, and its result is complete.
        following = continue_in_fork(traced=False)
        after = contents(writing.folder)
        if following.code != 0 or after.keys() != new.keys() or (state == "old" and after != new):
            faults.append(f"the next run: {following}, left {sorted(after)}")
    else:
        message = ended.err.splitlines()[-1] if ended.err else ""
        if leftover:
            faults.append(f"leftover files: {sorted(leftover)}")
        if ended.code == 0:
            if state != "new":
                faults.append("exit code 0, but the results are not complete")
            state += ", exit code 0"
        elif ended.code != 128 + number or not message.startswith("interrupted; "):
            faults.append("another exit code, or no message")
        elif ("was not changed" in message) != (not written):
            faults.append("the message is not true")
        elif any(Path(name).parts[0] not in message for name in written):
            faults.append("the message does not name what was written")
        if "Traceback" in ended.err or "Error" in ended.err:
            faults.append("a traceback")
    tally.add(state, f"{case}: {'; '.join(faults)}; {ended}" if faults else None)


def killed_trainings(folder: Path, data: Path, kills: int, options: Sequence[str], seed: int = 0) -> Tally:
    """Kill a training that saves its state after every epoch, at system calls after its first save, and resume it."""
    from scvae_cli.training import fit

    tally, model = Tally(), folder / "killed.scvae"
    command = ["train", data, "-m", model, "--quiet", *options]
    interval, fit.CHECKPOINT_SECONDS = fit.CHECKPOINT_SECONDS, -1.0
    writing = Writing(folder, command, "scvae_cli.training.checkpoint:Checkpoint:save")

    def trained(*more: str) -> Ended:
        return forked(lambda: run([str(word) for word in (*command, *more)]), folder.parent, traced=False)

    def cases(continue_in_fork: Callable[..., Ended]) -> None:
        complete = continue_in_fork()
        expected = _weights(model)
        assert complete.code == 0, complete
        random_points = random.Random(seed)
        for k in range(kills):
            until = 1 + int((k + random_points.random()) * complete.stops / kills)
            writing.put_back()
            ended = continue_in_fork(until=until, number=signal.SIGKILL)
            resumed = trained("--resume")
            outcome = "resumed"
            if "no interrupted training" in resumed.err:  # killed before the first state was saved
                resumed, outcome = trained(), "trained again"
            elif "already exists" in resumed.err:
                resumed, outcome = Ended(0, "", "", 0, False), "the model was complete"
            fault = None
            if resumed.code != 0 or not model.exists() or _weights(model) != expected:
                fault = f"killed at {until} of {complete.stops} ({ended.code}): {resumed}"
            elif leftover := [path.name for path in folder.iterdir() if path.name.startswith(".")]:
                # A complete model may have leftover files beside it, which the next training removes.
                again = trained("--force")
                leftover = [path.name for path in folder.iterdir() if path.name.startswith(".")]
                fault = f"leftover files after {again}: {leftover}" if again.code != 0 or leftover else None
            tally.add(outcome, fault)

    try:
        writing(cases)
    finally:
        fit.CHECKPOINT_SECONDS = interval
    return tally


def concurrent_writers(folder: Path, data: Path, model: Path, rounds: int, writers: int, seed: int = 0) -> Tally:
    """Let several processes write one file; each is process 1 of a namespace, and all have the same host name."""
    tally, random_delays = Tally(), random.Random(seed)
    writing = Writing(folder, [])
    run(["embed", str(data), "-m", str(model)])  # imports all modules before the forks
    for number in range(rounds):
        writing.put_back()
        keys = [f"writer{k}" for k in range(writers)]
        # In every second round, all processes begin at once. In the other rounds, some begin when others have ended.
        delays = [random_delays.random() * 0.5 * (number % 2) for _ in keys]
        running = [_start(data, model, key, delay, folder.parent) for key, delay in zip(keys, delays, strict=True)]
        ended = [_wait(process, errors) for process, errors in running]
        with h5py.File(data) as file:
            written = {key for key in keys if f"uns/{key}/runs/embed" in file and f"obsm/X_{key}" in file}
        succeeded = {key for key, (code, _) in zip(keys, ended, strict=True) if code == 0}
        # A command that starts while another one replaces the file finds the file locked.
        refusals = ("nothing was written", "is open for writing in another program")
        refused = [text for code, text in ended if code == 3 and any(words in text for words in refusals)]
        faults = []
        if written != succeeded or not succeeded:
            faults.append(f"ended well: {sorted(succeeded)}, in the file: {sorted(written)}")
        if len(succeeded) + len(refused) < writers:
            faults.append("neither written nor refused")
        if leftover := [path.name for path in folder.iterdir() if path.name.startswith(".")]:
            faults.append(f"leftover files {leftover}")
        for _ in succeeded:
            tally.add("written")
        for _ in refused:
            tally.add("refused")
        tally.failures += [f"round {number} of {writers} writers: {'; '.join(faults)}: {ended}"] if faults else []
    return tally


def can_unshare() -> bool:
    """Whether this process may create namespaces."""
    return forked(lambda: 0 if _unshare() else 1, Path("/tmp"), traced=False).code == 0


def _unshare() -> bool:
    """Give this process its own host name, and its children their own process ids."""
    new_uts, new_user, new_pid = 0x04000000, 0x10000000, 0x20000000
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.unshare(new_uts | new_pid | (new_user if os.getuid() else 0)) == 0


def _start(data: Path, model: Path, key: str, delay: float, folder: Path) -> tuple[int, int]:
    errors = os.open(folder / f".{key}.err", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    (folder / f".{key}.err").unlink()
    process = os.fork()
    if process == 0:
        for place in (1, 2):
            os.dup2(errors, place)
        sys.stdout, sys.stderr = (os.fdopen(place, "w", closefd=False) for place in (1, 2))
        end_child(lambda: _write_as_first_process(delay, ["embed", str(data), "-m", str(model), "--key-added", key]))
    return process, errors


def _write_as_first_process(delay: float, arguments: list[str]) -> int:
    assert _unshare()
    first = os.fork()
    if first:
        return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    assert os.getpid() == 1
    socket.sethostname("same")
    time.sleep(delay)
    return run(arguments)


def _wait(process: int, errors: int) -> tuple[int, str]:
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.lseek(errors, 0, os.SEEK_SET)
    with os.fdopen(errors, "rb") as file:
        return code, file.read().decode(errors="replace")


def _weights(model: Path) -> tuple[bytes, ...]:
    return tuple((model / name).read_bytes() for name in ("weights.safetensors", "latent.safetensors", "genes.txt"))
