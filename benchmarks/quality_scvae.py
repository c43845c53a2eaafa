"""The part of `time_to_quality.py` that uses scvae: train once, and find the time at which a given quality is reached.

    python quality_scvae.py TRAIN.h5ad TEST.h5ad --seed 0 --target -610.2 --started $(date +%s.%N) \\
        -m MODEL.scvae -o scores.npz --latent latent.npy

This script trains as `scvae train TRAIN.h5ad --genes all --seed S` does, through `scvae_cli.train`. Unlike the command,
the script does not save the state for `--resume` every half minute. At the end of every epoch, the script keeps a copy
of the weights that were evaluated (the running average) and records the seconds since `--started`, including the time
of copying. Epochs before the KL weight has reached β count as well, although the training itself keeps none of their
weights. For every scored epoch, `is_best` says whether this epoch was the best so far according to the training.
`process_s` is the time until the model is saved. `process_s` includes the start of Python, imports, reading, training
and saving, but not the scoring after the training or the exit of Python. The seconds of an epoch do not include the
saving of the model.

After the training, the test cells are scored by `scvae score`: with the finished model, and with the weights of some
epochs. A bisection finds the first epoch whose mean importance bound is at least `--target`. If the bound does not rise
steadily, the bisection may find a later epoch whose bound also reaches the target. If the finished model is below the
target, the target counts as never reached. The script prints one JSON object.
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

bound_spinning()  # the command `scvae` also starts with this call
with importing():
    import numpy as np
    import torch

    import scvae_cli.training.fit as fitting
    from scvae_cli.model.bundle import Model
    from scvae_cli.training.loop import EpochReport, Trainer

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The weights with which an epoch was evaluated, and the seconds since the start of the process."""

    number: int
    seconds: float
    is_best: bool
    weights: Weights


class KeepingTrainer(Trainer):
    """A Trainer that keeps a copy of the weights that were evaluated last."""

    judged: Weights

    def evaluate(self) -> tuple[float, float]:
        """Evaluate the held-out cells, and copy the weights that were used."""
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
    """Parse the command line; see the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer_file", type=Path)
    parser.add_argument("test_file", type=Path)
    parser.add_argument("-m", "--model", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("-o", "--output", type=Path, required=True, help="bounds per cell of the finished model (.npz)")
    parser.add_argument(
        "--latent", type=Path, help="mean latent positions of all cells, the training cells first (.npy)"
    )
    parser.add_argument("--target", type=float, help="importance bound to reach, nats per test cell")
    parser.add_argument(
        "--started", type=float, required=True, help="time at which this process was started (time.time())"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=100)
    return parser.parse_args()


def train_and_score(args: argparse.Namespace) -> dict[str, Any]:
    """Train and score a model; return the JSON object that is printed."""
    epochs: list[Epoch] = []

    def keep(event: fitting.FitEvent) -> None:
        if isinstance(event, EpochReport):
            seconds, weights = time.time() - args.started, KeepingTrainer.judged
            epochs.append(Epoch(number=event.epoch, seconds=seconds, is_best=event.is_best, weights=weights))

    fitting.Trainer = KeepingTrainer
    model = scvae_cli.train(args.trainer_file, genes="all", seed=args.seed, on_event=keep)
    model.save(args.model, force=True)
    process_s = time.time() - args.started

    # These modules are imported after the training, so that the time of the training does not include the imports.
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
    """Find the first epoch whose bound reaches the target, by bisection; the last epoch must reach the target."""
    below, reaching = -1, len(epochs) - 1
    while reaching - below > 1:
        middle = (below + reaching) // 2
        if bound_of(epochs[middle]) >= target:
            reaching = middle
        else:
            below = middle
    return epochs[reaching]


def refuse_others(best: Epoch, model: Model) -> None:
    """Stop if the copied weights of the best epoch are not the weights of the finished model."""
    finished = model.vae.state_dict()
    if any(not torch.equal(tensor.cpu(), finished[name]) for name, tensor in best.weights.items()):
        raise SystemExit(f"the weights that were kept for the best epoch, {best.number}, are not those of the model")


if __name__ == "__main__":
    main()
