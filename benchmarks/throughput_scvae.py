"""The part of `throughput.py` that uses scvae: train for some epochs and print the speed as one JSON object.

    python throughput_scvae.py FILE.h5ad --epochs 8 --batch-size 128 --threads 2

The network is the default of scvi-tools: 1 hidden layer of 128 units in encoder and decoder, 10 latent dimensions,
ZINB, dropout 0.1 in the encoder only. (scvae normalizes layers within each cell, scvi-tools within each minibatch.)
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_timing import EpochTimes, cells_per_second

import scvae_cli
from scvae_cli.training.fit import FitEvent, Prepared
from scvae_cli.training.loop import EpochReport, StepReport

NETWORK: dict[str, Any] = {
    "likelihood": "zinb",
    "n_hidden": 128,
    "n_layers": 1,
    "n_latent": 10,
    "encoder_dropout": 0.1,
    "decoder_dropout": 0.0,
}


class Clock:
    """Record the end times of the steps of a training, from the events of the training."""

    def __init__(self) -> None:
        self.epochs: list[EpochTimes] = []
        self.prepared: Prepared | None = None
        self._sizes: list[int] = []

    def __call__(self, event: FitEvent) -> None:
        """Record one event."""
        if isinstance(event, Prepared):
            self.prepared = event
            # Minibatches have nearly equal sizes, and the larger minibatches come first.
            self._sizes = [len(part) for part in np.array_split(np.arange(event.n_training), event.steps_per_epoch)]
            self.epochs.append(EpochTimes(began=time.perf_counter()))
        elif isinstance(event, StepReport):
            epoch = self.epochs[-1]
            epoch.cells.append(self._sizes[len(epoch.ends)])
            epoch.ends.append(time.perf_counter())
        elif isinstance(event, EpochReport):
            self.epochs.append(EpochTimes(began=time.perf_counter()))


def main() -> None:
    """Train a model and print the speed of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    clock = Clock()
    scvae_cli.train(
        args.data,
        genes="all",
        batch_size=args.batch_size,
        max_epochs=args.epochs,
        patience=args.epochs,
        seed=args.seed,
        threads=args.threads,
        on_event=clock,
        **NETWORK,
    )
    assert clock.prepared is not None
    epochs = [epoch for epoch in clock.epochs if epoch.ends]
    result = cells_per_second(epochs) | {
        "epochs": len(epochs),
        "steps_per_epoch": clock.prepared.steps_per_epoch,
        "n_training": clock.prepared.n_training,
        "n_genes": clock.prepared.n_genes,
        "versions": {"scvae-cli": scvae_cli.__version__, "torch": torch.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
