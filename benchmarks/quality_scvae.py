"""The scvae side of `time_to_quality.py`: one training, and when it was as good as asked; started by it as a process.

    python quality_scvae.py TRAIN.h5ad TEST.h5ad --seed 0 --target -610.2 --started $(date +%s.%N) \\
        -m MODEL.scvae -o scores.npz --latent latent.npy

Trains as `scvae train TRAIN.h5ad --genes all --seed S` does, through `scvae_cli.train`, without the state for
`--resume` that the command writes every half minute. At the end of every epoch it keeps a copy of the weights that the
epoch was judged by (the running average) and notes the seconds since `--started`; the copying is in these seconds.
Epochs before the KL weight has reached β count as well, though the training itself keeps none of their weights; every
scored epoch says whether the training thought it the best so far (`is_best`). `process_s` ends when the model is saved:
Python's start, imports, reading, training and saving are in it; the scoring that follows is not, nor is Python's exit.
Saving the model is not in the seconds of an epoch.

Then the test cells are scored by scvae's own `score`: the finished model, and of the epochs as many as it takes to find
by bisection the first whose mean importance bound is at least `--target`. Where the bound does not rise steadily, a
later epoch than the first may be found, never one that is below the target. If the finished model is below it, the
target counts as never reached. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scvae_cli
from scvae_cli.device import bound_spinning
from scvae_cli.importing import importing

bound_spinning()  # as the command's own start does
with importing():
    import numpy as np
    import torch

    import scvae_cli.training.fit as fitting
    from scvae_cli.model.bundle import Model
    from scvae_cli.training.loop import EpochReport, Trainer

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch's judged weights, and the seconds since the process was started."""

    number: int
    seconds: float
    is_best: bool
    weights: Weights


class KeepingTrainer(Trainer):
    """A Trainer that remembers the weights it judged last."""

    judged: Weights

    def evaluate(self) -> tuple[float, float]:
        """Judge the held-out cells, and copy the weights they were judged by."""
        verdict = super().evaluate()
        KeepingTrainer.judged = {name: tensor.detach().clone() for name, tensor in self.vae.state_dict().items()}
        return verdict


def main() -> None:
    """Train, then score, then print."""
    args = parse_arguments()
    with contextlib.redirect_stdout(sys.stderr):
        result = train_and_score(args)
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer_file", type=Path)
    parser.add_argument("test_file", type=Path)
    parser.add_argument("-m", "--model", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the finished model's bounds per cell (.npz)")
    parser.add_argument("--latent", type=Path, help="mean latent positions of all cells, trainer's first (.npy)")
    parser.add_argument("--target", type=float, help="importance bound to reach, nats a test cell")
    parser.add_argument("--started", type=float, required=True, help="when this process was started (time.time())")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=100)
    return parser.parse_args()


def train_and_score(args: argparse.Namespace) -> dict[str, Any]:
    """The whole run; what is printed of it."""
    epochs: list[Epoch] = []

    def keep(event: fitting.FitEvent) -> None:
        if isinstance(event, EpochReport):
            seconds, weights = time.time() - args.started, KeepingTrainer.judged
            epochs.append(Epoch(number=event.epoch, seconds=seconds, is_best=event.is_best, weights=weights))

    fitting.Trainer = KeepingTrainer
    model = scvae_cli.train(args.trainer_file, genes="all", seed=args.seed, on_event=keep)
    model.save(args.model, force=True)
    process_s = time.time() - args.started

    # Here, not above: a training needs neither, and its time has ended.
    from scvae_cli.session import Session
    from scvae_cli.tools.score.options import ScoreOptions
    from scvae_cli.tools.score.scoring import score

    best = epochs[model.facts["best_epoch"] - 1] if model.facts["best_epoch"] else None
    if best is not None:
        refuse_others(best, model)
    counts = Session.open(args.test_file, model, needs_batch=True).counts
    final = score(model, counts, ScoreOptions(n_samples=args.samples))
    np.savez(args.output, elbo=final.elbo, iwae=final.iwae)
    if args.latent is not None:
        files = (args.trainer_file, args.test_file)
        parts = [scvae_cli.embed(file, model, inplace=False).position_nj for file in files]
        np.save(args.latent, np.concatenate(parts))

    scored: dict[int, dict[str, Any]] = {}

    def bound_of(epoch: Epoch) -> float:
        model.vae.load_state_dict(epoch.weights)
        found = score(model, counts, ScoreOptions(n_samples=args.samples))
        means = {"mean_iwae": float(found.iwae.mean()), "mean_elbo": float(found.elbo.mean())}
        facts = {"epoch": epoch.number, "seconds": round(epoch.seconds, 3), "is_best": epoch.is_best}
        scored[epoch.number] = facts | means
        return means["mean_iwae"]

    reached = None
    if args.target is not None and best is not None and float(final.iwae.mean()) >= args.target:
        reached = first_reaching(epochs[: best.number], bound_of, args.target)
        if reached is best:
            bound_of(best)
    return {
        "seconds": model.facts["seconds"],
        "process_s": process_s,
        "epochs": model.facts["epochs"],
        "best_epoch": model.facts["best_epoch"],
        "active_units": model.facts["active_units"],
        "n_genes": len(model.genes),
        "n_cells": len(final.iwae),
        "mean_elbo": float(final.elbo.mean()),
        "mean_iwae": float(final.iwae.mean()),
        "mean_iwae_density": float(final.iwae_density.mean()),
        "target": args.target,
        "reached": None if reached is None else scored[reached.number],
        "scored_epochs": [scored[number] for number in sorted(scored)],
        "epoch_seconds": [round(epoch.seconds, 3) for epoch in epochs],
        "versions": {
            "scvae-cli": scvae_cli.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "anndata")},
        },
    }


def first_reaching(epochs: list[Epoch], bound_of: Callable[[Epoch], float], target: float) -> Epoch:
    """The first epoch whose bound is at least the target, by bisection; that of the last one is known to be."""
    below, reaching = -1, len(epochs) - 1
    while reaching - below > 1:
        middle = (below + reaching) // 2
        if bound_of(epochs[middle]) >= target:
            reaching = middle
        else:
            below = middle
    return epochs[reaching]


def refuse_others(best: Epoch, model: Model) -> None:
    """Refuse kept weights that are not what the training judged: the best epoch's must be the model's."""
    finished = model.vae.state_dict()
    if any(not torch.equal(tensor.cpu(), finished[name]) for name, tensor in best.weights.items()):
        raise SystemExit(f"the weights kept of epoch {best.number}, the best, are not those of the model")


if __name__ == "__main__":
    main()
