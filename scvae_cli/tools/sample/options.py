"""Options of `scvae sample` and `scvae_cli.sample`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scvae_cli.errors import ConfigError
from scvae_cli.options import DECODING, option
from scvae_cli.shared_options import (
    SEVERAL_COVARIATES,
    Drawing,
    Reading,
    WritingNewCells,
    batch_as_option,
    library_option,
)
from scvae_cli.verb import Verb

SAMPLING = "Sampling"

Source = Literal["auto", "prior", "density"]


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Reading, Drawing, WritingNewCells):
    """Options that say which new cells are drawn, and how."""

    n: int | None = option(
        None, flags=("--cells", "-n"), help="Number of new cells.", least=1, most=10**9, positional=True
    )
    source: Source = option(
        "auto",
        flags=("--from",),
        help="Distribution from which the latent positions are drawn. prior: N(0, I). density: the density of the "
        "training cells. auto: the prior or the density, whichever fits the held-out cells better.",
        panel=SAMPLING,
    )
    groupby: str | None = option(None, help="Column of obs that names the groups.", panel=SAMPLING)
    group: str | None = option(
        None,
        help="Group of cells from which the latent positions are drawn, instead of --from.",
        label=True,
        panel=SAMPLING,
    )
    prototype: bool = option(
        False,
        help="Draw no cells. Instead, decode the center of the latent space (z = 0), which gives one typical cell.",
        panel=SAMPLING,
    )
    avoid_holes: bool = option(
        False,
        help="Draw again if a position lies in a hole of latent space. In a hole, the density of cells is lower than "
        "at 95% of the positions of held-out cells.",
        panel=SAMPLING,
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1, panel=SAMPLING)
    library: str | float | None = library_option(
        None,
        words=("observed", "median"),
        help="Library size to decode at: observed (the library size of a real cell nearby), median (of the training "
        "cells), or a number of counts.",
        shown_default="observed; for the prototype, median",
    )
    batch_as: str | None = batch_as_option(
        None,
        help="Batch to decode in: the name of a batch, or drawn. With drawn, the batch of each cell is drawn at "
        f"random. The probability of a batch is its share of the training cells. {SEVERAL_COVARIATES}",
        shown_default="drawn; for the prototype, average",
    )
    mean: bool = option(False, help="Write expected counts instead of counts drawn at random.", panel=DECODING)

    def check(self) -> None:
        """Refuse missing and contradictory options."""
        if self.prototype:
            self._check_prototype()
        elif self.n is None:
            raise ConfigError("no number of cells was given", "use --cells N, or --prototype for a single cell")
        if (self.groupby is None) != (self.group is None):
            given, missing = ("--groupby", "--group") if self.group is None else ("--group", "--groupby")
            raise ConfigError(f"{given} was given without {missing}", "use both: --groupby KEY --group NAME")
        if self.group is not None and self.source != "auto":
            raise ConfigError(
                f"--from {self.source} and --group were both given",
                "remove one of them: --group draws from the cells of the group",
            )
        if self.plot is not None and (self.mean or self.prototype):
            raise ConfigError(
                "--plot needs drawn counts, which it compares with the counts of real cells",
                "leave out --plot, or leave out --mean and --prototype",
            )

    def _check_prototype(self) -> None:
        others = {"--cells": self.n is not None, "--from": self.source != "auto", "--groupby": self.groupby is not None}
        others |= {"--group": self.group is not None, "--mean": self.mean, "--avoid-holes": self.avoid_holes}
        for name, was_given in others.items():
            if was_given:
                raise ConfigError(
                    f"--prototype and {name} were both given",
                    "use one of them: the prototype is a single cell at z = 0",
                )
        if self.library == "observed":
            raise ConfigError(
                "the prototype has no observed library size", "with --prototype, --library takes median or a number"
            )

    @property
    def library_or_default(self) -> str | float:
        """Library size to decode at."""
        return self.library or ("median" if self.prototype else "observed")


SAMPLE = Verb(
    name="sample",
    panel="Results",
    options=SampleOptions,
    home="scvae_cli.tools.sample.question:Sample",
    about="""Draw new cells from a model: first latent positions, then the counts of each cell.

    The latent positions come from the prior, from the density of the training cells, or from the cells of a group. The
    new cells are written to a separate file. obs["scvae_library"] holds the library size of each cell.
    obs["scvae_off_manifold"] holds the off-manifold score: the share of held-out cells whose positions have a higher
    density of cells. A new cell with a score above 0.95 lies in a hole of latent space, where hardly any cells were
    observed.

    The means, variances and zero fractions of the genes are compared between new and real cells. For reference, two
    halves of the real cells are compared, too.""",
    example="scvae sample data.h5ad -n 1000 -o sampled.h5ad",
    inplace=False,
    returns="The new cells as an AnnData, or None if the cells were written to a file.",
)
