"""The part of `throughput.py` that uses scvi-tools: train for some epochs and print the speed as one JSON object.

    python throughput_scvi.py FILE.h5ad --epochs 8 --batch-size 128 --threads 2

This script uses the defaults of `scvi.model.SCVI`; a lightning callback records when the training steps end. This
script needs scvi-tools (1.4 at the time of writing), and no code of this project.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from heldout_scvi import quiet_scvi
from step_timing import EpochTimes, cells_per_second


def main() -> None:
    """Train a model and print the speed of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet_scvi(args.threads, args.seed)
    with contextlib.redirect_stdout(sys.stderr):
        result = train(args.data, args.epochs, args.batch_size)
    print(json.dumps(result))


def train(data: Path, epochs: int, batch_size: int) -> dict[str, Any]:
    """Train for a number of epochs; return the JSON object that is printed."""
    import anndata
    import scvi
    import torch
    from lightning.pytorch.callbacks import Callback
    from scvi.model import SCVI

    class Clock(Callback):
        """Record the end times of the steps of a training."""

        def __init__(self) -> None:
            self.epochs: list[EpochTimes] = []

        def on_train_epoch_start(self, *_: Any) -> None:
            self.epochs.append(EpochTimes(began=time.perf_counter()))

        def on_train_batch_end(self, _trainer: Any, _plan: Any, _outputs: Any, batch: Any, _index: int) -> None:
            self.epochs[-1].cells.append(len(batch["X"]))
            self.epochs[-1].ends.append(time.perf_counter())

    adata = anndata.read_h5ad(data)
    SCVI.setup_anndata(adata)
    model = SCVI(adata)
    clock = Clock()
    model.train(
        max_epochs=epochs,
        batch_size=batch_size,
        early_stopping=False,
        callbacks=[clock],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return cells_per_second(clock.epochs) | {
        "epochs": len(clock.epochs),
        "steps_per_epoch": len(clock.epochs[-1].ends),
        "n_training": len(model.train_indices),
        "n_genes": adata.n_vars,
        "versions": {"scvi-tools": scvi.__version__, "torch": torch.__version__},
    }


if __name__ == "__main__":
    main()
