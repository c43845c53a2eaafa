"""Make the table of the time-to-quality benchmark from the recorded runs.

python benchmarks/time_to_quality_table.py benchmarks/results/time_to_quality.json > time_to_quality.md
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
from heldout_table import OTHERS, Run, listed, paired_lead, provenance, standard_error, table

SCVI = ("scvi-es", "scvi-2x30nb")
# Two runs have the same target if their recorded targets differ by at most this value, in nats.
SAME_NATS = 1e-6
SCORES = ("knn_accuracy", "nmi", "ari", "silhouette", "bio")

INTRODUCTION = """\
# Time to quality: scvae and scVI

Written by `benchmarks/time_to_quality.py`; its docstring says what is measured. The bound is the importance bound on
log p(x) with {samples} posterior samples, in nats per test cell; higher is better. All times are wall times since the
start of the training process.

- Better scVI: scVI with early stopping, or scVI with 2 layers, 30 latent dimensions, nb and early stopping. For each
  data set and seed, the model with the higher bound is used.
- Time of scVI: the whole training process of the better scVI.
- Time to scVI's bound: the time until the bound of scvae reaches that of the better scVI.
- Speedup: the time of scVI, divided by the time to scVI's bound.
- Gain: the bound of scvae's finished model minus that of the better scVI, both with the prior N(0, I), in nats or in
  percent of scVI's bound. "Gain with density" uses scvae's own density of the training cells as the prior of scvae, as
  `scvae sample` does. scVI fits no density.
"""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Results of scvae and of the better scVI on one split.

    `faster` is the time of scVI divided by the time at which scvae reaches the same bound. `faster` is 0 if scvae never
    reaches the bound, and None if the time was not measured for the bound of scVI.
    """

    ours: Run
    theirs: Run
    gain: float
    gain_error: float
    faster: float | None

    @property
    def gain_percent(self) -> float:
        """Gain in percent of scVI's bound."""
        return 100 * self.gain / abs(self.theirs["mean_iwae"])

    @property
    def density_percent(self) -> float:
        """Gain in percent of the importance bound with the latent density of the cells as prior.

        The gain is NaN if the run did not record this bound.
        """
        return 100 * (1 - self.ours.get("mean_iwae_density", math.nan) / self.theirs["mean_iwae"])


def render(runs: list[Run]) -> str:
    """Make the markdown page with all comparisons."""
    if not runs:
        return "No runs yet.\n"
    parts = [INTRODUCTION.format(samples=listed({run["samples"] for run in runs}))]
    comparisons = compare(runs)
    if comparisons:
        parts += [_by_set(comparisons), _by_seed(comparisons), _embeddings(comparisons)]
    parts += [_single_runs(runs), provenance(runs)]
    return "\n".join(part for part in parts if part)


def better_scvi(found: dict[str, Run]) -> Run | None:
    """Return the scVI run with the higher bound on one split; None if one of the two scVI runs is missing."""
    if any(name not in found for name in SCVI):
        return None
    return max((found[name] for name in SCVI), key=lambda run: run["mean_iwae"])


def same_target(ours: Run, target: Run | None) -> bool:
    """Whether the time of scvae was measured up to this target, or neither run has a target."""
    if target is None or ours["target"] is None:
        return target is None and ours["target"] is None
    return math.isclose(ours["target"], target["mean_iwae"], abs_tol=SAME_NATS)


def compare(runs: list[Run]) -> list[Comparison]:
    """Compare scvae with the better scVI run, for all splits with a run of scvae and both runs of scVI."""
    comparisons = []
    for place in sorted({(run["dataset"], run["seed"]) for run in runs}):
        found = {run["contender"]: run for run in runs if (run["dataset"], run["seed"]) == place}
        ours, theirs = found.get("scvae"), better_scvi(found)
        if ours is None or theirs is None:
            continue
        gain, error = paired_lead(ours, theirs)
        faster = None
        if same_target(ours, theirs):
            faster = theirs["process_s"] / ours["reached"]["seconds"] if ours["reached"] else 0.0
        comparisons.append(Comparison(ours=ours, theirs=theirs, gain=gain, gain_error=error, faster=faster))
    return comparisons


def _by_set(comparisons: list[Comparison]) -> str:
    head = [
        "data set", "seeds", "speedup", "time to scVI's bound", "time of scVI", "gain", "gain, %",
        "gain with density, %",
    ]  # fmt: skip
    rows, summary = [], []
    for group in _grouped(comparisons):
        gain, percent = mean(c.gain for c in group), mean(c.gain_percent for c in group)
        faster = _middle([c.faster for c in group])
        reached = [c.ours["reached"]["seconds"] if c.faster else math.inf for c in group]
        density = mean(c.density_percent for c in group)
        summary.append((faster, gain, percent, density))
        rows.append(
            [
                group[0].ours["dataset"],
                str(len(group)),
                _times(faster),
                "" if faster is None else _seconds(median(reached)),
                _seconds(median(c.theirs["process_s"] for c in group)),
                f"{gain:.2f}{_over_seeds([c.gain for c in group])}",
                f"{percent:.2f}{_over_seeds([c.gain_percent for c in group])}",
                f"{density:.2f}{_over_seeds([c.density_percent for c in group])}",
            ]
        )
    faster = _times(_middle([row[0] for row in summary]))
    gain, percent, density = (f"{median(row[i] for row in summary):.2f}" for i in (1, 2, 3))
    rows.append(["median of the data sets", "", faster, "", "", gain, percent, density])
    note = (
        "Times and speedups are medians over the seeds. If scvae never reaches scVI's bound, its speedup counts as 0. "
        "Gains are means over the seeds ± the standard error between seeds."
    )
    return f"## By data set\n\n{note}\n\n{table(head, rows)}"


def _by_seed(comparisons: list[Comparison]) -> str:
    head = [
        "data set", "seed", "better scVI", "bound of scVI", "time of scVI", "time to scVI's bound", "speedup",
        "final bound of scvae", "total time of scvae", "gain", "gain, %",
    ]  # fmt: skip
    rows = []
    for c in comparisons:
        reached = "never" if c.faster == 0 else _seconds(c.ours["reached"]["seconds"]) if c.faster else "?"
        rows.append(
            [
                c.ours["dataset"],
                str(c.ours["seed"]),
                c.theirs["label"],
                f"{c.theirs['mean_iwae']:.2f}",
                _seconds(c.theirs["process_s"]),
                reached,
                _times(c.faster),
                f"{c.ours['mean_iwae']:.2f}",
                _seconds(c.ours["process_s"]),
                f"{c.gain:.2f} ± {c.gain_error:.2f}",
                f"{c.gain_percent:.2f}",
            ]
        )
    note = (
        "Gains are given with the standard error over the paired test cells. A question mark says that the time of "
        "scvae was measured for another bound."
    )
    return f"## By data set and seed\n\n{note}\n\n{table(head, rows)}"


def _embeddings(comparisons: list[Comparison]) -> str:
    labelled = [c for c in comparisons if "embedding" in c.ours and "embedding" in c.theirs]
    if not labelled:
        return ""
    head = ["data set", "model", "kNN accuracy", "NMI", "ARI", "silhouette", "bio conservation", "seeds"]
    sides: dict[str, Callable[[Comparison], Run]] = {"scvae": lambda c: c.ours, "better scVI": lambda c: c.theirs}
    rows, means = [], {name: [] for name in sides}
    for group in _grouped(labelled):
        for name, side in sides.items():
            values = [mean(side(c)["embedding"][score] for c in group) for score in SCORES]
            means[name].append(values)
            rows.append([group[0].ours["dataset"], name, *(f"{value:.3f}" for value in values), str(len(group))])
        leads = [[c.ours["embedding"][score] - c.theirs["embedding"][score] for c in group] for score in SCORES]
        rows.append(
            [
                group[0].ours["dataset"],
                "scvae minus scVI",
                *(f"{mean(lead):+.3f}{_over_seeds(lead, 3)}" for lead in leads),
                "",
            ]
        )
    for name, values in means.items():
        rows.append(["mean of the data sets", name, *(f"{value:.3f}" for value in np.mean(values, axis=0)), ""])
    note = (
        "Means over the seeds ± the standard error between the seeds. Higher is better; `embedding_quality.py` defines "
        "the scores."
    )
    return f"## Embeddings against known labels\n\n{note}\n\n{table(head, rows)}"


def _single_runs(runs: list[Run]) -> str:
    head = [
        "data set", "seed", "model", "IWAE", "ELBO", "process time", "training time", "epochs", OTHERS, "kNN accuracy",
        "bio conservation",
    ]  # fmt: skip
    rows = []
    for run in runs:
        embedding = run.get("embedding")
        rows.append(
            [
                run["dataset"],
                str(run["seed"]),
                run["label"],
                f"{run['mean_iwae']:.2f} ± {run['se_iwae']:.2f}",
                f"{run['mean_elbo']:.2f} ± {run['se_elbo']:.2f}",
                f"{run['process_s']:.1f} s",
                f"{run['training_s']:.1f} s",
                str(run["epochs"]),
                "?" if run["other_cores"] is None else f"{run['other_cores']:.1f} cores",
                *([f"{embedding[score]:.3f}" for score in ("knn_accuracy", "bio")] if embedding else ["", ""]),
            ]
        )
    return f"## Single runs\n\n{table(head, rows)}"


def _grouped(comparisons: list[Comparison]) -> list[list[Comparison]]:
    """Group by data set, in order."""
    names = dict.fromkeys(c.ours["dataset"] for c in comparisons)
    return [[c for c in comparisons if c.ours["dataset"] == name] for name in names]


def _over_seeds(values: list[float], digits: int = 2) -> str:
    return f" ± {standard_error(np.asarray(values)):.{digits}f}" if len(values) > 1 else ""


def _middle(values: list[float | None]) -> float | None:
    """Compute the median; None if a value is missing."""
    known = [value for value in values if value is not None]
    return median(known) if len(known) == len(values) else None


def _times(faster: float | None) -> str:
    return "?" if faster is None else "never" if faster == 0 else f"{faster:.1f} ×"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if math.isfinite(seconds) else "never"


if __name__ == "__main__":
    print(render(json.loads(Path(sys.argv[1]).read_text())["runs"]), end="")
