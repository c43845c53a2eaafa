"""Run `scvae` inside the test process, with options for a training that takes only a second."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scvae_cli.cli.app import run

TINY = (
    *("--max-epochs", "3", "--n-hidden", "16", "--n-latent", "4", "--n-layers", "1"),
    *("--batch-size", "32", "--threads", "1", "--device", "cpu"),
)


# A script that kills its own process (kill -9) when a function is entered or left for the nth time.
_KILLED = """
import functools, importlib, os, signal, sys

def dying(function, when, count):
    calls = 0
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if when == "before" and calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if when == "after" and calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapper

when, place, count = sys.argv[1:4]
module, *path, name = place.split(":")
owner = importlib.import_module(module)
for part in path:
    owner = getattr(owner, part)
setattr(owner, name, dying(getattr(owner, name), when, int(count)))
from scvae_cli.cli.app import run
sys.exit(run(sys.argv[4:]))
"""


@dataclass(frozen=True)
class Outcome:
    """Result of a command: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def run_cli(*arguments: object) -> Outcome:
    """Run one command, and raise every exception that is not a `ScvaeError`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def run_ok(*arguments: object) -> Outcome:
    """Run a command that must succeed."""
    outcome = run_cli(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def run_elsewhere(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a separate process."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)


def run_forked(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in the fork of a process that has imported the slow packages, and has done nothing else."""
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["torch", "anndata", "scvae_cli.cli.app", "scvae_cli.training.fit"])
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("out", "err")]
        process = fork.Process(target=_run_script, args=(script, [str(argument) for argument in arguments], outputs))
        process.start()
        process.join()
        out, err = (path.read_text() for path in outputs)
    return subprocess.CompletedProcess(["fork", *map(str, arguments)], process.exitcode or 0, out, err)


def _run_script(script: str, arguments: list[str], outputs: list[Path]) -> None:
    for descriptor, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = ["-c", *arguments]
    exec(script, {"__name__": "__main__"})


def run_killed(moment: tuple[str, str, int], *arguments: object) -> None:
    """Run a command that is killed "before" or "after" the nth call of "module:Class:function"."""
    done = run_forked(_KILLED, *moment, *arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr
