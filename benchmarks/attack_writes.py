"""Attack commands while they write a file: is the file then the complete old or new file, and is every message true?

Commands are killed (SIGKILL) and signaled (SIGINT, SIGTERM, SIGHUP) at system calls that are spread over the whole
write. A training is killed while it saves its state, and several processes write one file at the same time. The file
tests/write_attacks.py contains the attacks and says what counts as a failure. The parts of the benchmark can be run one
by one. The results of each part are stored in a JSON file, and --table makes one table of all parts.

    python benchmarks/attack_writes.py                    everything, about 20 minutes on two cores
    python benchmarks/attack_writes.py --part kill:embed --cases 200
    python benchmarks/attack_writes.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

# A forked process cannot compile or train if its parent has used OpenMP.
os.environ["NUMBA_THREADING_LAYER"] = "workqueue"
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from command_line import TINY, run_ok
from conftest import cells
from workbench import BETWEEN_BATCHES
from write_attacks import (
    NEW_FILE,
    SAVE,
    SIGNALS,
    WRITE,
    Tally,
    Writing,
    can_unshare,
    concurrent_writers,
    interrupted,
    killed_trainings,
)

RESULTS = Path(__file__).parent / "results" / "attack_writes.json"
COMMANDS = ("embed", "denoise", "output", "files", "sample", "train")
# 1,000 kills, 1,000 signals, 200 killed trainings, and 200 rounds of two and of four writers.
PARTS = {
    **{f"kill:{name}": 170 for name in COMMANDS},
    **{f"signal:{name}": 170 for name in COMMANDS},
    "checkpoints": 200,
    "writers:2": 200,
    "writers:4": 200,
}


def writing_of(name: str, folder: Path) -> Writing:
    data = folder / "cells.h5ad"
    place = {"sample": NEW_FILE, "train": SAVE}.get(name, WRITE)
    arguments: dict[str, list[object]] = {
        "embed": ["embed", data],
        "denoise": ["denoise", data],
        "output": ["embed", data, "-o", folder / "out.h5ad", "--force"],
        "files": ["interpolate", data, *BETWEEN_BATCHES, "--path-out", folder / "steps.h5ad", "--force"],
        "sample": ["sample", data, "-n", "50", "-o", folder / "new.h5ad", "--force"],
        "train": ["train", data, *TINY, "--seed", "1", "--force"],
    }
    return Writing(folder, arguments[name], place)


def attack(part: str, cases: int, folder: Path, seed: int) -> Tally:
    kind, _, name = part.partition(":")
    folder.mkdir()
    data, model = folder / "cells.h5ad", folder / "cells.scvae"
    cells().write_h5ad(data)
    run_ok("train", data, *TINY)
    if kind == "checkpoints":
        return killed_trainings(folder, data, cases, [*TINY, "--max-epochs", "6"], seed)
    if kind == "writers":
        return concurrent_writers(folder, data, model, cases, int(name), seed)
    if kind == "kill":
        return interrupted(writing_of(name, folder), cases, signal.SIGKILL, seed)
    tally = Tally()
    for number in SIGNALS:
        one = interrupted(writing_of(name, folder), -(-cases // len(SIGNALS)), number, seed)
        tally.tried.update(one.tried)
        tally.failures += one.failures
    return tally


def table(parts: dict[str, dict]) -> str:
    lines = [
        "# Attacks on the writing of files",
        "",
        "Written by `benchmarks/attack_writes.py`. There are four kinds of attacks:",
        "",
        "- `kill:COMMAND` kills a command by SIGKILL immediately before or after a system call of the write. The cases",
        "  are spread evenly over all system calls. (`files` stands for a command that writes two files.)",
        "- `signal:COMMAND` does the same with SIGINT, SIGTERM or SIGHUP.",
        "- `checkpoints` kills a training that saves its state after every epoch, and resumes the training.",
        "- `writers:N` starts N processes that write one file at the same time. The processes have the same process id",
        "  and the same host name, as in containers.",
        "",
        "After each case, every file must be the complete old file or the complete new file. The message and the exit",
        "code must say which of the two it is, and no temporary file may be left (after SIGKILL: after the next run).",
        "The weights of a resumed training must equal those of an uninterrupted training. Every update of a writer "
        "must",
        "be in the file, or must have been refused with an error. All other outcomes are failures.",
        "",
        "| attack | cases | old file kept, or update refused | new file written, or same weights | failed |",
        "|---|---|---|---|---|",
    ]
    sums = [0, 0, 0, 0]
    for name in PARTS:
        if name not in parts:
            continue
        tried = parts[name]["tried"]
        refused = sum(n for outcome, n in tried.items() if outcome in ("old", "refused"))
        row = [sum(tried.values()), refused, sum(tried.values()) - refused, len(parts[name]["failures"])]
        row[2] -= 0 if name.startswith("writers") else row[3]
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        lines.append(f"| {name} | " + " | ".join(f"{n:,}" for n in row) + " |")
    lines.append("| **all** | " + " | ".join(f"**{n:,}**" for n in sums) + " |")
    lines += ["", f"Machine: {parts[next(iter(parts))]['machine']}."]
    return "\n".join(lines) + "\n"


def joined(one: dict, other: dict) -> dict:
    """Combine both runs of a part, which have different seeds."""
    outcomes = sorted({*one["tried"], *other["tried"]})
    tried = {outcome: one["tried"].get(outcome, 0) + other["tried"].get(outcome, 0) for outcome in outcomes}
    seconds = round(one["seconds"] + other["seconds"], 1)
    return one | {"tried": tried, "failures": one["failures"] + other["failures"], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="run only this part; may be repeated")
    parser.add_argument("--cases", type=int, help="number of cases of each part, instead of the usual number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file; the table is written beside it")
    parser.add_argument("--table", action="store_true", help="only make the table of the parts that were run before")
    arguments = parser.parse_args()
    folder = arguments.results.with_suffix("")
    for part in () if arguments.table else arguments.part or PARTS:
        if part.startswith("writers") and not can_unshare():
            print(f"{part}: left out, because namespaces are not permitted here")
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            tally = attack(part, arguments.cases or PARTS[part], Path(place) / "work", arguments.seed)
        found = {"tried": dict(sorted(tally.tried.items())), "failures": tally.failures, "seed": arguments.seed}
        found |= {
            "seconds": round(time.monotonic() - began, 1),
            "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        }
        print(
            part, found["tried"], f"{len(tally.failures)} failed, {found['seconds']} s", *tally.failures[:5], sep="\n  "
        )
        folder.mkdir(exist_ok=True)
        (folder / f"{part}.{arguments.seed}.json").write_text(json.dumps(found, indent=1) + "\n")
    stored: dict[str, dict] = {}
    for path in sorted(folder.glob("*.json")):
        part, found = path.stem.rpartition(".")[0], json.loads(path.read_text())
        stored[part] = joined(stored[part], found) if part in stored else found
    if arguments.table or not arguments.part:
        ordered = {part: stored[part] for part in PARTS if part in stored}
        arguments.results.write_text(json.dumps(ordered, indent=1) + "\n")
        arguments.results.with_suffix(".md").write_text(table(ordered))
        shutil.rmtree(folder)
        sys.exit(any(one["failures"] for one in ordered.values()))


if __name__ == "__main__":
    main()
