"""The options of `scvae train` and `scvae_cli.train`: the options of `scvae_cli.config`, and a few more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scvae_cli.config import FITTING, RunConfig
from scvae_cli.options import OUTPUT, Options, option, section
from scvae_cli.verb import Verb


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """Options of a training, and whether to resume an interrupted training or to replace a model."""

    training: RunConfig = section(RunConfig)
    resume: bool = option(False, help="Continue a training that was interrupted.", panel=FITTING, in_python=False)
    force: bool = option(False, help="Replace an existing model.", panel=OUTPUT, in_python=False)
    on_event: Callable[[Any], None] | None = option(
        None,
        help="Function that is called with every event of the training (`scvae_cli.training.fit.FitEvent`).",
        on_command_line=False,
    )


TRAIN = Verb(
    name="train",
    panel="Model",
    options=TrainOptions,
    home="scvae_cli.tools.train.training:train",
    about="""Train a model on raw counts and write the model to a folder. DATA is not changed.

    With --likelihood normal, DATA may contain any real numbers. Some cells are held out of the training. Training
    stops when the loss on the held-out cells no longer falls, and the weights with the lowest loss on these cells are
    kept. Ctrl-C ends the training after the current epoch, and --resume continues the training later.""",
    python_about="""Train a model on raw counts.

    With a normal likelihood, the data may contain any real numbers. Some cells are held out of the training. Training
    stops when the loss on the held-out cells no longer falls, and the weights with the lowest loss on these cells are
    kept.""",
    example="scvae train data.h5ad --batch-key donor",
    argument_help="Cells: an .h5ad file, a 10x .h5, an mtx folder, an .h5mu or a .zarr.",
    trains=True,
    inplace=False,
    returns='The trained model; `model.save("NAME.scvae")` writes the model to a folder.',
)
