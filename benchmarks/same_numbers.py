"""Do two commits give the same numbers? Run the same commands with both commits, and compare every array exactly.

The benchmark needs one checkout for each commit, one machine, and one environment with the dependencies. The code is
always taken from the checkout, even if scvae is installed in the environment. Run these commands in the top folder of a
clone that has this script:

    git worktree add ../before COMMIT_BEFORE
    python benchmarks/same_numbers.py record ../numbers-before --checkout ../before
    python benchmarks/same_numbers.py record ../numbers-after
    python benchmarks/same_numbers.py compare ../numbers-before ../numbers-after
    git worktree remove ../before

`record` trains models and runs the commands of `same_numbers_cases.py` on copies of the data, in a temporary folder.
`record` keeps the arrays and numbers of all files that the commands wrote: weights, elements that the commands added to
an .h5ad, tables, new files, and the output of `--json`. Single texts (options, versions, hashes) and times are left
out. The data are the two files in data_samples and, if they exist, two files in ../shared/data beside the clone
(benchmarks/README.md says where they come from). `--data FILE ...` names data files in other folders. On two cores,
`record` takes six to eight minutes.

`compare` ends with exit code 0 if everything is equal except for the differences that `RENAMED` and `ON_PURPOSE` list,
and otherwise with exit code 1. Recordings of the same commit are equal only if the processor, the number of threads and
the libraries are the same.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors.numpy import load_file
from same_numbers_cases import CASES
from timed import describe_machine

# A name is DATA/MODEL/COMMAND/FILE/ELEMENT, as `compare` prints it:
# "pbmc68k_700/default/embed/cells.h5ad/obsm/X_scvae". The table lists arrays that got a new name: a pattern and its
# replacement, as in re.sub. The patterns are applied to the names of the first recording.
RENAMED: dict[str, str] = {
    r"/beyond_step$": "/extrapolated_from",
    r"/(diagnosis|printed)/n_judged$": r"/\1/n_evaluated",
    r"/(zeros|variances)/judged$": r"/\1/n_evaluated",
    r"/diagnosis/worth/contender$": "/diagnosis/baselines/model",
    r"/diagnosis/worth/heldout$": "/diagnosis/baselines/heldout_log_prob",
    r"/diagnosis/worth/(heldout|thinned)_behind$": r"/diagnosis/baselines/vae_advantage_\1",
    r"/diagnosis/worth/(heldout|thinned)_error$": r"/diagnosis/baselines/vae_advantage_\1_error",
    r"/diagnosis/worth/thinned_(state|cell)$": r"/diagnosis/baselines/thinned_loss_\1",
    r"/diagnosis/worth/": "/diagnosis/baselines/",
    r"/printed/worth/contenders/(\d+)/heldout$": r"/printed/baselines/models/\1/heldout_log_prob",
    r"/printed/worth/contenders/(\d+)/(heldout|thinned)_behind/": r"/printed/baselines/models/\1/vae_advantage_\2/",
    r"/printed/worth/contenders/(\d+)/thinned_(state|cell)$": r"/printed/baselines/models/\1/thinned_loss_\2",
    r"/printed/worth/": "/printed/baselines/",
    r"/(sweep[^/]*/printed)/kept$": r"/\1/kept_molecules",
    r"/sweep/(beta|n_latent)/judge$": r"/sweep/\1/criterion",
    r"/sweep/(beta|n_latent)/kept$": r"/sweep/\1/kept_molecules",
    r"/(de[^/]*/printed|rank_genes_groups_scvae/params)/shift$": r"/\1/common_change",
    r"/(de[^/]*/printed)/agreeing$": r"/\1/near_common_share",
    r"/(de[^/]*/printed)/null_share$": r"/\1/unchanged_share",
    r"/plain_share$": "/mean_shift_share",
    r"/(perturb[^/]*/printed)/carried$": r"/\1/model_agreement",
    r"/(perturb[^/]*/printed)/expected/": r"/\1/mean_accuracy/",
    r"/(perturb[^/]*/printed)/own/": r"/\1/group_check/",
    r"/checks/unseen$": "/checks/held_out",
    r"/(checks|own|group_check)(/\d+)?/unseen$": r"/\1\2/held_out",
}
# Patterns of the names of arrays that changed, appeared or disappeared on purpose (as in re.search), and the reason.
# The patterns are applied to the names after RENAMED.
ON_PURPOSE: dict[str, str] = {
    r"/diagnosis/verdicts/topic$": "two topics are called by what the VAE is compared with",
    r"/pseudotime[^/]*/printed/(bridges|n_components)$": "components of the neighbor graph, not added edges",
    r"/stopped$": "the reasons to stop have plainer names",
}
# Times and the sentences of a diagnosis are never compared.
LEFT_OUT = re.compile(r"/(seconds|sentence|remedy)$")

ROOT = Path(__file__).resolve().parents[1]
DATA = [ROOT / "data_samples" / name for name in ("pbmc68k_700.h5ad", "differentiation.h5ad")]
DATA += [ROOT.parent / "shared" / "data" / name for name in ("paul15_3004.h5ad", "kang_muscat_2donors.h5ad")]
KINDS = ("equal", "different", "only in A", "only in B")


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    recording = verbs.add_parser("record", help="run all commands with one checkout")
    recording.add_argument("out", type=Path, metavar="OUT_DIR")
    recording.add_argument("--python", default=sys.executable, help="interpreter with the dependencies [this one]")
    recording.add_argument(
        "--checkout", type=Path, default=ROOT, help="checkout with the code to run [that of this script]"
    )
    recording.add_argument("--data", type=Path, nargs="+", default=[], help="data files in other places")
    comparing = verbs.add_parser("compare", help="compare two recordings exactly")
    comparing.add_argument("a", type=Path, metavar="DIR_A")
    comparing.add_argument("b", type=Path, metavar="DIR_B")
    arguments = parser.parse_args()
    if arguments.verb == "compare":
        return compare(arguments.a, arguments.b)
    return record(arguments.out, arguments.python, arguments.checkout.resolve(), [*DATA, *arguments.data])


def record(out: Path, python: str, checkout: Path, data: list[Path]) -> int:
    """Run all cases and keep their arrays, one .npz per command; return 1 if a command failed."""
    if out.exists():
        raise SystemExit(f"{out} is there already")
    cache = tempfile.TemporaryDirectory()
    environment = os.environ | {"PYTHONPATH": str(checkout), "CUDA_VISIBLE_DEVICES": "", "NUMBA_CACHE_DIR": cache.name}
    code = "import numpy, scipy, sklearn, torch, numba, scvae_cli; print(scvae_cli.__file__); "
    code += "print(torch.get_num_threads()); "
    code += "print(*(f'{m.__name__} {m.__version__}' for m in (numpy, scipy, sklearn, torch, numba)), sep=', ')"
    answer = subprocess.run([python, "-P", "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    package, threads, libraries = answer.stdout.splitlines()
    if not Path(package).is_relative_to(checkout):
        raise SystemExit(f"{python} takes scvae_cli from {package}, not from {checkout}")
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, stdout=subprocess.PIPE, text=True)
    about = {"commit": commit.stdout.strip(), "machine": describe_machine(int(threads)), "libraries": libraries}
    recorder = Recorder(out=out, python=python, environment=environment, seconds={}, failed=[])
    files, taken = {path.stem: path for path in data if path.exists()}, {}
    for name, models in CASES.items():
        if name not in files:
            print(f"{name}: left out, as the file is neither in its usual place nor given with --data")
            continue
        taken[name] = hashlib.sha256(files[name].read_bytes()).hexdigest()
        for model, commands in models.items():
            recorder.run(f"{name}/{model}", commands, files[name])
    about |= {"data": taken, "failed": recorder.failed, "seconds": recorder.seconds}
    (out / "about.json").write_text(json.dumps(about, indent=1))
    print(f"{len(recorder.seconds)} commands, {sum(recorder.seconds.values()):.0f} s, {len(recorder.failed)} failed")
    return 1 if recorder.failed else 0


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Run commands, and keep the arrays of their results in `out`; `seconds` and `failed` are updated.

    A command during which numba compiled code is run again, because new code and the same code from numba's cache may
    round the last bit differently.
    """

    out: Path
    python: str
    environment: dict[str, str]
    seconds: dict[str, float]
    failed: list[str]

    def run(self, case: str, commands: dict[str, str], data: Path) -> None:
        """Run every command on a copy of the data and the model, without the results of other commands."""
        given = read(data)
        cells = given["/obs/_index" if "/obs/_index" in given else "/obs/index"]
        (self.out / case).mkdir(parents=True)
        with tempfile.TemporaryDirectory() as work:
            start, folder = Path(work, "start"), Path(work, "run")
            start.mkdir()
            shutil.copyfile(data, start / "cells.h5ad")
            for command, spellings in commands.items():
                chosen = spellings.format(first=cells[0], last=cells[-1])
                for _ in range(2):
                    shutil.rmtree(folder, ignore_errors=True)
                    shutil.copytree(start, folder)
                    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
                    compiled = self._compiled()
                    printed = self._run(f"{case}/{command}", chosen, folder)
                    if self._compiled() == compiled:
                        break
                arrays = {f"printed/{name}": value for name, value in _numbers(json.loads(printed or "{}"))}
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    if before.get(path) != path.read_bytes():
                        known = given if path.name == "cells.h5ad" else {}
                        new = {key: value for key, value in read(path).items() if not same(value, known.get(key))}
                        arrays |= {f"{path.relative_to(folder)}{key}": value for key, value in new.items()}
                kept = {name: value for name, value in arrays.items() if not LEFT_OUT.search(name)}
                np.savez(self.out / case / f"{command}.npz", **kept)
                if command == "train":
                    shutil.rmtree(start)
                    folder.rename(start)

    def _compiled(self) -> set[Path]:
        return set(Path(self.environment["NUMBA_CACHE_DIR"]).rglob("*.nbc"))

    def _run(self, name: str, spellings: str, folder: Path) -> str:
        since = time.perf_counter()
        for spelling in spellings.split(" || "):
            verb, *options = shlex.split(spelling)
            line = [self.python, "-m", "scvae_cli", verb, "cells.h5ad", *options, "--json"]
            done = subprocess.run(line, cwd=folder, env=self.environment, capture_output=True, text=True)
            if done.returncode != 2:
                break
        seconds = round(time.perf_counter() - since, 1)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)
        print(f"{name}: {seconds} s", flush=True)
        if done.returncode == 0:
            return done.stdout
        self.failed.extend([] if name in self.failed else [name])
        print(f"failed: {shlex.join(line)}\n{done.stderr[-1000:]}")
        return ""


def read(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays and numbers of a file by their names; return nothing for a file of an unknown kind."""
    if path.suffix == ".h5ad":
        with h5py.File(path) as file:
            found: list[tuple[str, h5py.Dataset]] = []
            file.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
            return dict(pair for name, item in found for pair in _columns(f"/{name}", item))
    if path.suffix == ".safetensors":
        return {f"/{name}": tensor for name, tensor in load_file(path).items()}
    if path.suffix == ".json":
        return {f"/{name}": value for name, value in _numbers(json.loads(path.read_text()))}
    if path.suffix == ".txt":
        return {"/lines": np.asarray(path.read_text().splitlines(), dtype=np.str_)}
    if path.suffix == ".csv":
        header, *rows = csv.reader(path.read_text().splitlines())
        return {f"/{name}": _parsed([row[i] for row in rows]) for i, name in enumerate(header)}
    return {}


def _columns(name: str, item: h5py.Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Return a data set, or each field of a table. Single texts are left out, because they are options or versions."""
    values = item[()]
    fields = {f"{name}/{field}": values[field] for field in item.dtype.names} if item.dtype.names else {name: values}
    for key, value in fields.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "O":
            texts = [text.decode() if isinstance(text, bytes) else str(text) for text in value.ravel()]
            yield key, np.asarray(texts, dtype=np.str_).reshape(value.shape)
        elif not isinstance(value, bytes | str):
            yield key, np.asarray(value)


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, int | float):
        yield name, np.asarray(value)
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(inner, f"{name}/{key}" if name else str(key))


def _parsed(texts: list[str]) -> np.ndarray:
    try:
        return np.asarray([float(text or "nan") for text in texts])
    except ValueError:
        return np.asarray(texts, dtype=np.str_)


def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether both arrays exist and are identical, including type and shape."""
    if a is None or b is None:
        return False
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def compare(a: Path, b: Path) -> int:
    """Print which arrays are equal and which are not; return 1 if a difference is in none of the tables."""
    about_a, about_b = (json.loads((folder / "about.json").read_text()) for folder in (a, b))
    for key in ("commit", "machine", "libraries", "data"):
        if key == "commit" or about_a[key] != about_b[key]:
            print(f"{key}\n  A: {about_a[key]}\n  B: {about_b[key]}")
    apart: list[tuple[str, str]] = []
    for which, about, other in (("A", about_a, about_b), ("B", about_b, about_a)):
        apart += [(name, f"failed in {which}") for name in about["failed"]]
        apart += [(name, f"only in {which}") for name in about["seconds"] if name not in other["seconds"]]
    counts: dict[str, list[int]] = {}
    for command in (name for name in about_a["seconds"] if name in about_b["seconds"]):
        left = {_renamed(f"{command}/{key}"): value for key, value in np.load(a / f"{command}.npz").items()}
        right = {f"{command}/{key}": value for key, value in np.load(b / f"{command}.npz").items()}
        kinds = {name: _kind(left.get(name), right.get(name)) for name in sorted({*left, *right})}
        counts[command] = [sum(kind.startswith(word) for kind in kinds.values()) for word in KINDS]
        new = [name for name, kind in kinds.items() if kind == "only in B"]
        for name, kind in kinds.items():
            twins = [other for other in new if same(left.get(name), right[other])] if kind == "only in A" else []
            renamed = f"; renamed? B has its values as {twins[0]}" if len(twins) == 1 else ""
            apart += [(name, kind + renamed)] if kind != "equal" else []
    counts["all"] = [sum(row[i] for row in counts.values()) for i in range(len(KINDS))]
    width = max(map(len, counts))
    print(f"{'arrays of':{width}}", *(f"{word:>10}" for word in KINDS))
    for command, row in counts.items():
        print(f"{command:{width}}", *(f"{number:10}" for number in row))
    unexplained = 0
    for name, kind in apart:
        reason = next((why for pattern, why in ON_PURPOSE.items() if re.search(pattern, name)), None)
        print(f"{name}: {kind}" + ("" if reason is None else f"; on purpose: {reason}"))
        unexplained += reason is None
    print(f"{unexplained} differences that no table names")
    return 1 if unexplained else 0


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def _kind(a: np.ndarray | None, b: np.ndarray | None) -> str:
    if a is None or b is None:
        return "only in B" if a is None else "only in A"
    if same(a, b):
        return "equal"
    if a.shape != b.shape or {a.dtype.kind, b.dtype.kind} - set("biuf"):
        kept = f", {(a != b).sum()} values differ" if a.shape == b.shape and a.dtype.kind == b.dtype.kind else ""
        return f"different: {a.dtype} {a.shape}, {b.dtype} {b.shape}{kept}"
    x, y = a.astype(np.float64), b.astype(np.float64)
    missing = (np.isnan(x) != np.isnan(y)).sum()
    most = np.abs(x - y)[~np.isnan(x - y)].max(initial=0)
    return f"different: by at most {most:.3g}, {a.dtype} and {b.dtype}, {missing} NaN in one alone"


if __name__ == "__main__":
    raise SystemExit(main())
