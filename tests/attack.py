"""Attack scvae with damaged files, hostile models and hostile saved states; called by `make attack`.

Every case consists of one mutation of a file (`damaged_files.py`, `hostile_models.py`) and one command, which are
chosen by a seed. A server process imports all modules once and forks a child process for each case, so that the server
notices crashes, hangs and the use of memory. A child process may use 5 s of processor time (and 30 s of wall time, for
machines with other work) and 3 GiB of memory beyond that of the imports. Each case has one of these outcomes:

- **refused well**: exit code 3 for data and 4 for models, a one-line message and a hint, no traceback, and an unchanged
  input.
- **accepted rightly**: exit code 0, all numbers finite, and the result equals that of an independent reading of the
  same file (by anndata, element by element), or that of the undamaged file. If the weights of a model were changed to
  other finite numbers, the numbers of the result must only be finite.
- **failed**: any other outcome.

As soon as a case ends, the outcome is appended to a file as one line. Cases that are already in the file of outcomes
are not tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import hashlib
import io
import json
import os
import pickle
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["NUMBA_THREADING_LAYER"] = "workqueue"  # a threading layer of numba that works after a fork

import anndata as ad
import damaged_files
import h5py
import hostile_models
import numpy as np
import scipy.sparse as sp
import torch
import typer
from anndata.io import read_elem
from simulated import tree

import scvae_cli as scvae
from scvae_cli.cli.app import run
from scvae_cli.config import RunConfig
from scvae_cli.data.counts import read_counts
from scvae_cli.data.formats import open_store
from scvae_cli.training.fit import fit

CPU_SECONDS, WALL_SECONDS, MEMORY = 5, 30, 3 << 30
N_CELLS, N_GENES = 60, 30
DATA, MODEL = 3, 4
TINY = {"max_epochs": 2, "n_hidden": 8, "n_latent": 3, "batch_size": 32, "threads": 1, "device": "cpu"}
FLAGS = [part for name, value in TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))]
# More commands for hostile models, with options that make them quick.
MORE_VERBS = {
    "score": ["--samples", "5", "--simulated", "100"],
    "interpolate": ["--groupby", "batch", "--from", "batch_1", "--to", "batch_2", "--steps", "5"],
    "annotate": [],
}
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@dataclass(frozen=True)
class Case:
    """A case and its outcome."""

    seed: int
    family: str
    kind: str
    base: str
    verb: str
    outcome: str
    seconds: float
    why: str = ""


TABLES: dict[str, dict[str, Any]] = {
    "file": damaged_files.KINDS,
    "model": hostile_models.MODEL_KINDS,
    "saved state": hostile_models.KINDS,
}
# The families of inputs that the cases of ten consecutive seeds attack.
FAMILIES = [*["file"] * 6, *["model"] * 3, "saved state"]


def family_and_kind(seed: int) -> tuple[str, str]:
    """Return the family of inputs to attack in the case of a seed, and the kind of damage.

    The kinds of damage of a family take turns.
    """
    family = FAMILIES[seed % 10]
    turn = seed // 10 * FAMILIES.count(family) + FAMILIES[: seed % 10].count(family)
    return family, list(TABLES[family])[turn % len(TABLES[family])]


# --- valid inputs -----------------------------------------------------------------------------------------------------


def make_valid_inputs(folder: Path) -> list[str]:
    """Write valid files of several forms, a model and the saved state of a training; return the names of the files."""
    cells = tree(N_CELLS, N_GENES, n_batches=2, depth=300)
    counts = sp.csr_matrix(cells.X).astype(np.float32)
    obs, var = cells.obs[["cell_type", "batch"]].copy(), cells.var[[]].copy()
    obs["depth"], obs["kept"] = np.asarray(counts.sum(1)).ravel(), np.arange(N_CELLS) % 2 == 0
    obs["day"] = (np.arange(N_CELLS) % 3).astype(float)

    def written(name: str, x: Any, compression: str | None = None, **parts: Any) -> None:
        adata = ad.AnnData(x, obs=obs.copy(), var=var.copy(), **parts)
        if name == "counts and raw":
            adata.layers["counts"] = counts.copy()
            adata.raw = ad.AnnData(counts.copy(), obs=obs.copy(), var=var.copy())
        adata.write_h5ad(folder / f"{name}.h5ad", compression=compression)

    uns = {"palette": np.array(["#fff", "#000"], dtype=object), "note": "simulated"}
    written("CSR", counts, obsm={"X_pca": np.ones((N_CELLS, 2), np.float32)}, uns=uns)
    written("CSC, gzip", counts.tocsc(), compression="gzip", uns=uns)
    written("dense", counts.toarray(), uns=uns)
    written("counts and raw", np.log1p(counts.toarray()), compression="lzf")
    names = ["CSR", "CSC, gzip", "dense", "counts and raw"]
    model = scvae.train(folder / "CSR.h5ad", labels_key="cell_type", **TINY)
    model.save(folder / "cells.scvae")
    config = RunConfig.of(TINY)
    counts_read = read_counts(open_store(folder / "CSR.h5ad"))
    for _ in fit(counts_read, config, model_folder=folder / "half.scvae", stop_requested=lambda: True):
        pass
    return names


# --- expected results -------------------------------------------------------------------------------------------------


def read_independently(path: Path) -> ad.AnnData | None:
    """Read names and matrices by anndata, element by element; matrices that anndata cannot read are left out.

    The result is None if anndata cannot read the names.
    """
    try:
        with h5py.File(path) as file:
            names = [_index(file["obs"]), _index(file["var"])]
            obs, var = (ad.AnnData(np.zeros((len(n), 0)), obs={"_": np.zeros(len(n))}).obs[[]] for n in names)
            obs.index, var.index = names
            adata = ad.AnnData(obs=obs, var=var)
            with contextlib.suppress(Exception):
                adata.X = _matrix(file["X"])
            with contextlib.suppress(Exception):
                adata.layers["counts"] = _matrix(file["layers/counts"])
            with contextlib.suppress(Exception):
                genes = ad.AnnData(np.zeros((len(_index(file["raw/var"])), 0))).obs
                genes.index = _index(file["raw/var"])
                adata.raw = ad.AnnData(_matrix(file["raw/X"]), obs=obs, var=genes)
            return adata
    except Exception:
        return None


def _matrix(item: Any) -> Any:
    matrix = read_elem(item)
    return matrix if sp.issparse(matrix) else np.asarray(matrix)


def _index(frame: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in read_elem(frame[frame.attrs["_index"]])]


def numbers_of_result(verb: str, data: Any, model: Path) -> Any:
    """Run a verb in Python on data, and return numbers of the result for a comparison."""
    if verb == "embed":
        return scvae.embed(data, model, inplace=False, device="cpu").position_nj
    if verb == "denoise":
        found = scvae.denoise(data, model, inplace=False, device="cpu")
        values = np.concatenate(list(found.rows.blocks))
        return values[:, found.modelled] if found.columns.in_layer else values
    if verb == "train":
        return _flat(scvae.train(data, **TINY).vae.state_dict())
    seen = scvae.check(data)
    return seen.n_cells, seen.n_genes, seen.counts_source, seen.zero_share, seen.median_library, seen.ok


def _flat(tensors: Any) -> np.ndarray:
    return np.concatenate([tensors[name].numpy().ravel() for name in sorted(tensors)])


def results_equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return one == other
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-5, atol=1e-6))


def numbers_of_written_result(verb: str, path: Path, folder: Path, out: str) -> Any:
    """Return numbers of the result that a command has written, for a comparison."""
    if verb == "train":
        return _flat(hostile_arrays(folder / "new.scvae" / "weights.safetensors"))
    if verb == "check":
        f = json.loads(out)
        return f["n_cells"], f["n_genes"], f["counts_source"], f["zero_share"], f["median_library"], f["ok"]
    slots = {"embed": "obsm/X_scvae", "denoise": "layers/scvae_denoised", "score": "obs/scvae_elbo"}
    slots["annotate"] = "obsm/scvae_label_probabilities"
    with h5py.File(path) as file:
        if verb == "denoise" and slots[verb] not in file:
            return file["obsm/scvae_denoised"][:]  # the denoised genes are only some of the genes
        if verb == "denoise":
            return file[slots[verb]][:][:, file["var/scvae_modelled"][:]]  # genes outside the model have NaN
        found = file[slots.get(verb, "varm/scvae_path_batch_1_to_batch_2")][:]
        # Genes outside the model have NaN.
        modeled = ~np.isnan(found).all(1) if verb == "interpolate" else slice(None)
        return found[modeled] if np.any(modeled) else found


def hostile_arrays(path: Path) -> dict[str, Any]:
    header, values = hostile_models.read_tensors(path)
    numbers = np.frombuffer(values, "<f4")
    return {n: torch.tensor(numbers[slice(*(at // 4 for at in h["data_offsets"]))]) for n, h in header.items()}


# --- one case, in a child process -------------------------------------------------------------------------------------


class Attack:
    """Valid inputs, and the correct results for these inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = make_valid_inputs(folder)
        self.model = folder / "cells.scvae"
        # Typer takes a tenth of a second to make the commands, and every child would need this time again.
        typer.main.get_command = functools.cache(typer.main.get_command)
        self.expected: dict[tuple[str, str], Any] = {}
        for name in self.names:
            for verb in ("check", "embed", "denoise", "train"):
                self.expected[verb, name] = numbers_of_result(verb, folder / f"{name}.h5ad", self.model)
        for verb, options in MORE_VERBS.items():
            copy = shutil.copyfile(folder / "CSR.h5ad", folder / f"{verb}.h5ad")
            _run([verb, copy, "-m", self.model, *options])
            self.expected[verb, "CSR"] = numbers_of_written_result(verb, copy, folder, "")
        self._warm()

    def _warm(self) -> None:
        """Run every command once, so that the child processes need not load and compile the code of the commands."""
        warm = shutil.copyfile(self.folder / "CSR.h5ad", self.folder / "warm.h5ad")
        model = ["-m", self.model]
        for command in (["info", warm], ["check", warm], ["embed", warm, *model], ["denoise", warm, *model]):
            _run(command)
        _run(["train", warm, "-m", self.folder / "warm.scvae", *FLAGS])
        _run(["info", self.model, "--json"])

    def try_case(self, seed: int, place: Path) -> Case:
        """Make the case of a seed in an empty folder, run its command, and judge the outcome."""
        random = np.random.default_rng(seed)
        family, kind = family_and_kind(seed)
        attack = {"file": self._file, "model": self._model, "saved state": self._state}[family]
        return attack(seed, kind, random, place)

    def _file(self, seed: int, kind: str, random: np.random.Generator, place: Path) -> Case:
        for _ in range(20):
            name = self.names[int(random.integers(0, len(self.names)))]
            path = place / "cells.h5ad"
            shutil.copyfile(self.folder / f"{name}.h5ad", path)
            with contextlib.suppress(IndexError, ValueError, KeyError, OSError, TypeError, RuntimeError):
                damaged_files.KINDS[kind](path, random)
                break
            path.unlink(missing_ok=True)
        verb = ("check", "train", "embed", "denoise", "info")[int(random.integers(0, 5))]
        arguments: list[Any] = [verb, path]
        arguments += ["-m", place / "new.scvae", *FLAGS] if verb == "train" else []
        arguments += ["-m", self.model] if verb in ("embed", "denoise") else []
        arguments += ["--json"] if verb in ("check", "info") else []
        before = _state_of(path)
        kept = place / "kept.h5ad"
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 26:
            shutil.copyfile(path, kept)
        code, out, err, seconds = _run(arguments)
        case = Case(seed, "file", kind, name, verb, "", seconds)

        def ended(outcome: str, why: str = "") -> Case:
            return Case(**{**asdict(case), "outcome": outcome, "why": why})

        if code == DATA and verb == "check" and out and not err:
            json.loads(out)
            return ended("refused well")
        if code != 0:
            wrong = _badly_refused(code, out, err, DATA)
            if wrong is None and _state_of(path) != before:
                wrong = "the file was changed"
            return ended("failed" if wrong else "refused well", wrong or err.splitlines()[0])
        if verb == "info":
            json.loads(out)
            return ended("accepted rightly")
        found = numbers_of_written_result(verb, path, place, out)
        if not isinstance(found, tuple) and not np.isfinite(found).all():
            return ended("failed", "numbers that are not finite")
        if results_equal(found, self.expected[verb, name]):
            return ended("accepted rightly")
        read = read_independently(kept)
        if read is None:
            return ended("failed", "another result, and anndata cannot read the file")
        if results_equal(found, numbers_of_result(verb, read, self.model)):
            return ended("accepted rightly")
        return ended("failed", "another result than from anndata's reading")

    def _model(self, seed: int, kind: str, random: np.random.Generator, place: Path) -> Case:
        folder, path = place / "cells.scvae", place / "cells.h5ad"
        self._mutate(hostile_models.MODEL_KINDS[kind], self.model, folder, random)
        shutil.copyfile(self.folder / "CSR.h5ad", path)
        verb = ("info", "embed", "denoise", *MORE_VERBS)[int(random.integers(0, 3 + len(MORE_VERBS)))]
        arguments = ["info", folder, "--json"] if verb == "info" else [verb, path, "-m", folder]
        arguments += MORE_VERBS.get(verb, [])
        before, text = _state_of(path), random.random() < 0.5
        code, out, err, seconds = _run(arguments[:-1] if verb == "info" and text else arguments)
        case = Case(seed, "model", kind, "model", verb, "", seconds)
        if code != 0:
            wrong = _badly_refused(code, out, err, MODEL, DATA)
            wrong = "the file was changed" if wrong is None and _state_of(path) != before else wrong
            return Case(**{**asdict(case), "outcome": "failed" if wrong else "refused well", "why": wrong or err})
        wrong = ""
        if verb == "info":
            forged = [line for line in out.splitlines() if line.startswith(("error:", "hint:"))]
            wrong = "a forged line" if forged or "\x1b" in out else ""
        else:
            found = numbers_of_written_result(verb, path, place, out)
            if not np.isfinite(found).all():
                wrong = "numbers that are not finite"
            elif self._same_network(folder) and not results_equal(found, self.expected[verb, "CSR"]):
                wrong = "another result of the same weights"
        return Case(**{**asdict(case), "outcome": "failed" if wrong else "accepted rightly", "why": wrong})

    def _state(self, seed: int, kind: str, random: np.random.Generator, place: Path) -> Case:
        valid, mutated, state = self.folder / ".half.scvae.partial", place / "box", place / ".new.scvae.partial"
        complete, split = place / "whole", place / "apart"
        complete.mkdir()
        shutil.copyfile(valid, complete / state.name)
        hostile_models.unpack_state(valid, split)
        if kind == "no file":
            self._mutate(hostile_models.KINDS[kind], complete, mutated, random)
            if os.path.lexists(mutated / state.name):
                (mutated / state.name).rename(state)
        else:
            self._mutate(hostile_models.KINDS[kind], split, mutated, random)
            hostile_models.pack_state(mutated, state)
        path = place / "cells.h5ad"
        shutil.copyfile(self.folder / "CSR.h5ad", path)
        arguments = ["train", path, "-m", place / "new.scvae", *FLAGS, "--resume"]
        code, out, err, seconds = _run(arguments)
        case = Case(seed, "saved state", kind, "state", "train --resume", "", seconds)
        if code != 0:
            wrong = _badly_refused(code, out, err, MODEL)
            return Case(**{**asdict(case), "outcome": "failed" if wrong else "refused well", "why": wrong or err})
        finite = np.isfinite(numbers_of_written_result("train", path, place, out)).all()
        why = "" if finite else "numbers that are not finite"
        return Case(**{**asdict(case), "outcome": "accepted rightly" if finite else "failed", "why": why})

    def _mutate(self, kind: Callable[..., None], source: Path, target: Path, random: np.random.Generator) -> None:
        for _ in range(20):
            shutil.copytree(source, target)
            with contextlib.suppress(IndexError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
                kind(target, random)
                return
            shutil.rmtree(target)
        shutil.copytree(source, target)

    def _same_network(self, folder: Path) -> bool:
        """Whether a model has the same weights, genes and options as the undamaged model."""
        names = (*hostile_models.TENSORS, "genes.txt")
        if any((folder / name).read_bytes() != (self.model / name).read_bytes() for name in names):
            return False
        one, other = (json.loads((at / "config.json").read_text()) for at in (folder, self.model))
        return one["run"] == other["run"] and one["format"] == other["format"]


def _run(arguments: list[Any]) -> tuple[int, str, str, float]:
    out, err = io.StringIO(), io.StringIO()
    started = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    out.getvalue().encode(), err.getvalue().encode()  # a terminal must be able to show the characters
    return code, out.getvalue(), err.getvalue(), time.process_time() - started


def _badly_refused(code: int, out: str, err: str, *codes: int) -> str | None:
    """Describe what is wrong with the refusal of an input; return None if the refusal is correct."""
    lines = err.splitlines()
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if code not in codes:
        return f"exit code {code}: {err[-300:]}"
    if out or len(errors) != 1 or len(lines) != errors[0] + 2 or not lines[-1].startswith("hint: "):
        return f"not one line and a hint: {err[-300:]!r}"
    if "Traceback" in err or (not err.isascii() and any(ord(c) < 32 and c != "\n" for c in err)):
        return "a traceback or control characters"
    return None


def _state_of(path: Path) -> str | None:
    if not path.is_file() or path.is_symlink():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size < 1 << 26 else None


# --- server -----------------------------------------------------------------------------------------------------------


def in_child(attack: Attack, seed: int) -> Case:
    """Run one case in a child process with limits."""
    place = Path(tempfile.mkdtemp(prefix="attack-"))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(attack, seed, place, writing)
    os.close(writing)
    started = time.monotonic()
    content, status = b"", 0
    os.set_blocking(reading, False)
    while True:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(reading, 1 << 16):
                content += part
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            with contextlib.suppress(BlockingIOError):
                while part := os.read(reading, 1 << 16):
                    content += part
            break
        if time.monotonic() - started > WALL_SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = -1
            break
        time.sleep(0.002)
    os.close(reading)
    shutil.rmtree(place, ignore_errors=True)
    if content:
        case: Case = pickle.loads(content)
        if case.outcome != "failed" and case.seconds > CPU_SECONDS:
            return Case(**{**asdict(case), "outcome": "failed", "why": f"{case.seconds:.1f} s"})
        return case
    why = "hang" if status == -1 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU) else "crash"
    return Case(seed, *family_and_kind(seed), "", "", "failed", 0.0, f"{why} ({status})")


def _child(attack: Attack, seed: int, place: Path, writing: int) -> None:
    """Run one case and exit."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (2 * CPU_SECONDS, 2 * CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setsid()  # no terminal, so /dev/tty cannot be opened
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    try:
        case = attack.try_case(seed, place)
    except BaseException:
        last = traceback.format_exc().splitlines()
        at = " < ".join([line.strip() for line in last if line.strip().startswith("File")][:-4:-1])
        case = Case(seed, *family_and_kind(seed), "", "", "failed", 0.0, f"traceback: {last[-1][:200]} at {at}")
    os.write(writing, pickle.dumps(case))
    os._exit(0)


def serve(seeds: list[int], results: Path, minutes: float) -> None:
    """Try cases one after another, until all are tried or the time is over."""
    with tempfile.TemporaryDirectory() as folder:
        attack = Attack(Path(folder))
        # A garbage collection in a child would touch, and therefore copy, all memory of the server.
        gc.freeze()
        gc.disable()
        end = time.monotonic() + 60 * minutes
        with results.open("a") as file:
            for seed in seeds:
                if time.monotonic() > end:
                    break
                case = in_child(attack, seed)
                file.write(json.dumps(asdict(case)) + "\n")
                file.flush()
                if case.outcome == "failed":
                    print(json.dumps(asdict(case)), flush=True)


# --- table ------------------------------------------------------------------------------------------------------------


def table(cases: list[dict[str, Any]]) -> str:
    """Make the table of outcomes by kind of damage, in Markdown."""
    tried, ends = Counter(), Counter()
    for case in cases:
        key = (case["family"], case["kind"])
        tried[key] += 1
        ends[*key, case["outcome"]] += 1
    lines = ["| input | damage | cases | refused well | accepted rightly | failed |", "|---|---|--:|--:|--:|--:|"]
    for family, kind in sorted(tried):
        row = [ends[family, kind, outcome] for outcome in ("refused well", "accepted rightly", "failed")]
        lines.append(f"| {family} | {kind} | {tried[family, kind]:,} | {row[0]:,} | {row[1]:,} | {row[2]:,} |")
    total = [sum(n for key, n in ends.items() if key[2] == o) for o in ("refused well", "accepted rightly", "failed")]
    lines.append(f"| all | | {len(cases):,} | {total[0]:,} | {total[1]:,} | {total[2]:,} |")
    return "\n".join(lines)


def report(results: Path) -> int:
    """Write the table of all cases, and return the number of failed cases."""
    cases = [json.loads(line) for line in results.read_text().splitlines()]
    failed = [case for case in cases if case["outcome"] == "failed"]
    seconds = sorted(case["seconds"] for case in cases)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "scvae": scvae.__version__,
        "python": platform.python_version(),
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "anndata": ad.__version__,
        "torch": torch.__version__,
        "cases": len(cases),
        "failed": len(failed),
        "slowest_seconds": round(seconds[-1], 2),
        "median_seconds": round(seconds[len(seconds) // 2], 3),
    }
    counts = Counter((c["family"], c["kind"], c["verb"], c["outcome"]) for c in cases)
    rows = [[*key, n] for key, n in sorted(counts.items())]
    (RESULTS / "attack.json").write_text(json.dumps(facts | {"counts": rows, "failures": failed}, indent=1) + "\n")
    text = [
        "# Attack: damaged files, hostile models and hostile saved states",
        "",
        f"{facts['cases']:,} cases of `make attack` on {facts['date']}, {facts['failed']:,} failed. scvae "
        f"{facts['scvae']}, Python {facts['python']}, h5py {facts['h5py']} (HDF5 {facts['hdf5']}), anndata "
        f"{facts['anndata']}, torch {facts['torch']}. Processor time of a command: median {facts['median_seconds']} s, "
        f"at most {facts['slowest_seconds']} s.",
        "",
        "Each case is one command with one damaged input. *Refused well*: the command ended with the right exit code, "
        "a one-line message and a hint, and left the input unchanged. *Accepted rightly*: the command succeeded, and "
        "its result is that of an independent reading of the same file, or that of the undamaged file. (If the weights "
        "of a model were changed to other finite numbers, the result must only be finite.) *Failed*: any other "
        "outcome.",
        "",
        table(cases),
    ]
    (RESULTS / "attack.md").write_text("\n".join(text) + "\n")
    print(table(cases))
    return len(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description="Attack scvae with damaged and hostile inputs.")
    parser.add_argument("--cases", type=int, default=10_000, help="number of cases")
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--seeds", help="try only these seeds, separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="number of servers that work at the same time")
    parser.add_argument("--minutes", type=float, default=30, help="time after which no case is begun")
    parser.add_argument("--results", type=Path, default=Path("attack.jsonl"), help="file of lines, one for each case")
    parser.add_argument("--no-report", action="store_true", help="write no table")
    given = parser.parse_args()
    lines = given.results.read_text().splitlines() if given.results.exists() else []
    done = {json.loads(line)["seed"] for line in lines}
    seeds = list(range(given.first, given.first + given.cases))
    if given.seeds:
        seeds = [int(text) for text in given.seeds.split(",")]
    left = [seed for seed in seeds if seed not in done]
    children = []
    for job in range(min(given.jobs, len(left))):
        if (child := os.fork()) == 0:
            serve(left[job :: given.jobs], given.results, given.minutes)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return 0 if given.no_report else int(report(given.results) > 0)


if __name__ == "__main__":
    sys.exit(main())
