"""The options of `scvae info`."""

from __future__ import annotations

from dataclasses import dataclass

from scvae_cli.options import OUTPUT, Options, option
from scvae_cli.verb import Verb


@dataclass(frozen=True, kw_only=True)
class InfoOptions(Options):
    """Options that say which results are listed."""

    key_added: str | None = option(
        None,
        help="List only results that were written with this value of --key-added.",
        panel=OUTPUT,
        shown_default="all results of scvae",
    )


INFO = Verb(
    name="info",
    panel="Model",
    options=InfoOptions,
    home="scvae_cli.tools.info.information:info",
    about="""Describe a model, or list the commands that wrote results into a file.""",
    example="scvae info data.scvae",
    argument="MODEL|DATA",
    argument_help="A model folder, or an .h5ad file with results.",
    takes_model=False,
    in_python=False,
)
