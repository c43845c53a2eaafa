"""The tasks of `labels.py`: data sets, the cells whose label is given, and the cells whose predictions are scored.

Letters in array shapes: n cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import numpy as np
from sklearn.model_selection import StratifiedKFold

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
FOLDS = 5
# File and batch key of each data set.
SETS: dict[str, tuple[Path, str | None]] = {
    "mixology": (SHARED_DATA / "mixology_sc.h5ad", "batch"),
    "kang": (SHARED_DATA / "kang_muscat_2donors.h5ad", "condition"),
    "paul15": (SHARED_DATA / "paul15_3004.h5ad", None),
    "pbmc68k": (ROOT / "data_samples" / "pbmc68k_700.h5ad", None),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: labels that are transferred to other cells.

    Parameters
    ----------
    name
        Name of the task; the folds of one set have the same name and are scored together.
    label_n
        True labels.
    given_n, scored_n
        Masks of the cells whose label is given to the methods, and of the cells that are scored.
    exchangeable
        Whether the scored cells are a random part of the same cells as the labeled cells.
    left_out
        A label that is not given for any cell.
    """

    name: str
    label_n: np.ndarray
    given_n: np.ndarray
    scored_n: np.ndarray
    exchangeable: bool
    left_out: str = ""


def tasks(name: str, adata: anndata.AnnData, seed: int) -> Iterator[Task]:
    """Yield the tasks of a set."""
    random, obs = np.random.default_rng(seed), adata.obs
    if name == "mixology":
        label_n = obs["cell_line"].astype(str).to_numpy()
        celseq_n = (obs["protocol"] == "celseq2").to_numpy()
        # Two of the five cell lines have no Drop-seq cells.
        both_n = np.isin(label_n, np.unique(label_n[~celseq_n]))
        yield Task(
            name="mixology CEL-seq2 → Drop-seq", label_n=label_n, given_n=celseq_n, scored_n=~celseq_n,
            exchangeable=False,
        )  # fmt: skip
        yield Task(
            name="mixology Drop-seq → CEL-seq2", label_n=label_n, given_n=~celseq_n, scored_n=celseq_n & both_n,
            exchangeable=False,
        )  # fmt: skip
    if name == "kang":
        label_n = obs["cell_type"].astype(str).to_numpy()
        control_n = (obs["condition"] == "ctrl").to_numpy()
        for task, given_n in (("ctrl → stim", control_n), ("stim → ctrl", ~control_n)):
            yield Task(name=f"kang {task}", label_n=label_n, given_n=given_n, scored_n=~given_n, exchangeable=False)
    if name == "paul15":
        label_n = obs["cell_type"].astype(str).to_numpy()
        for share in (0.1, 0.01):
            given_n = np.zeros(len(label_n), dtype=bool)
            for label in np.unique(label_n):
                cells = np.flatnonzero(label_n == label)
                given_n[random.permutation(cells)[: max(1, round(share * len(cells)))]] = True
            yield Task(
                name=f"paul15, {share:.0%} labeled", label_n=label_n, given_n=given_n, scored_n=~given_n,
                exchangeable=True,
            )  # fmt: skip
    if name == "pbmc68k":
        label_n = obs["bulk_labels"].astype(str).to_numpy()
        for given, scored in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(label_n, label_n):
            cells = np.arange(len(label_n))
            yield Task(
                name="pbmc68k, 5 folds", label_n=label_n, given_n=np.isin(cells, given),
                scored_n=np.isin(cells, scored), exchangeable=True,
            )  # fmt: skip


def leaving_out(task: Task) -> Iterator[Task]:
    """Yield one task for each label, in which no cell of the label is given to the methods."""
    for label in np.unique(task.label_n[task.given_n]):
        if (task.label_n[task.scored_n] == label).any():
            yield replace(task, given_n=task.given_n & (task.label_n != label), left_out=str(label))


def all_tasks(name: str, adata: anndata.AnnData, seed: int) -> list[Task]:
    """Return the tasks of a set, followed by tasks in which one label is left out.

    A label is left out only in the first fold, and not in the task with 1% of the labels.
    """
    given = list(tasks(name, adata, seed))
    first = {task.name: task for task in reversed(given)}
    return given + [left for task in first.values() if "1%" not in task.name for left in leaving_out(task)]
