"""Options that the commands which train share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvae_cli.cli.options import COMPUTE, INPUT

MODEL, FITTING = "Model", "Fitting"

BatchKey = Annotated[
    str | None, typer.Option(help="Column of obs the decoder is conditioned on.", rich_help_panel=INPUT)
]
NTopGenes = Annotated[
    int | None,
    typer.Option(
        help="Most variable genes to model (seurat_v3).",
        show_default="all up to 5,000 expressed genes, else 4,000",
        rich_help_panel=INPUT,
    ),
]
Genes = Annotated[
    str | None, typer.Option(help='Genes to model: "all", or @FILE with one a line.', rich_help_panel=INPUT)
]
Likelihood = Annotated[
    str | None,
    typer.Option(
        help="Of counts: zinb, nb or poisson; of any real numbers: normal.", show_default="zinb", rich_help_panel=MODEL
    ),
]
Variance = Annotated[
    float | None,
    typer.Option(
        help="Of --likelihood normal, for all features.", show_default="learned for each", rich_help_panel=MODEL
    ),
]
DecoderKind = Annotated[
    str | None,
    typer.Option(
        help="mlp, or linear: no hidden layer, so that a gene's weights are its loadings on the latent axes.",
        show_default="mlp",
        rich_help_panel=MODEL,
    ),
]
NHidden = Annotated[
    int | None, typer.Option(help="Units in a hidden layer.", show_default="256", rich_help_panel=MODEL)
]
NLayers = Annotated[
    int | None,
    typer.Option(help="Hidden layers in encoder and decoder.", show_default="1", rich_help_panel=MODEL),
]
MaxEpochs = Annotated[
    int | None,
    typer.Option(help="Bound on passes over the cells.", show_default="by number of cells", rich_help_panel=FITTING),
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Cells in a step.", show_default="by number of cells", rich_help_panel=FITTING),
]
LearningRate = Annotated[
    float | None, typer.Option(help="Peak rate of AdamW.", show_default="by batch size", rich_help_panel=FITTING)
]
ValidationFraction = Annotated[
    float | None,
    typer.Option(help="Share of the cells held out.", show_default="0.1", rich_help_panel=FITTING),
]
Patience = Annotated[
    int | None,
    typer.Option(
        help="Epochs without a noticeable improvement before training ends.",
        show_default="by number of cells",
        rich_help_panel=FITTING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Of split, weights, order and noise.", show_default="0", rich_help_panel=FITTING),
]
Config = Annotated[
    Path | None,
    typer.Option(help="TOML with sections data, model, train and compute; flags win.", rich_help_panel=FITTING),
]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="auto", rich_help_panel=COMPUTE),
]
Precision = Annotated[
    str | None,
    typer.Option(help="Of matrix products: auto, fp32, tf32 or bf16.", show_default="auto", rich_help_panel=COMPUTE),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Have torch compile the training steps.",
        show_default="on a GPU with Triton, for many cells",
        rich_help_panel=COMPUTE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(help="CPU threads.", show_default="torch's choice", rich_help_panel=COMPUTE),
]
