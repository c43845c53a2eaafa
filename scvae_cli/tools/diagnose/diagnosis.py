"""What one trained model tells of its own health: use of the latent space, its shape, gaps, calibration, distances.

A diagnosis is made of sections, each with its numbers and its verdicts. What needs further trainings is no question to
one model: such studies hand in sections of their own (`Diagnosis.with_section`).

Shapes: n cells, k latent dimensions, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import ConfigError
from scvae_cli.heldout import MIN_HELDOUT
from scvae_cli.latent.posteriors import known_batches, posteriors
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.model.geometry import Geometry
from scvae_cli.tools.diagnose.distortion import Distortion, distortion
from scvae_cli.tools.diagnose.gaps import Gaps, gaps
from scvae_cli.tools.diagnose.health import Shape, Usage, shape, usage
from scvae_cli.tools.diagnose.predictive import PredictiveCheck, predictive_check
from scvae_cli.tools.diagnose.verdicts import (
    Verdict,
    of_axes,
    of_counts,
    of_distances,
    of_gaps,
    of_prior,
    of_use,
    worst_level,
)

# More cells than these make covariances no surer.
_MAX_EVERYONE = 20_000


@dataclass(frozen=True, kw_only=True)
class DiagnosisOptions:
    """What is asked for.

    Parameters
    ----------
    n_samples
        Importance samples a cell.
    n_steps
        Steps of refinement that the amortization gap is measured with.
    max_cells
        Most cells that gaps and calibration are measured on, evenly chosen.
    seed
        Of everything drawn.

    Raises
    ------
    ConfigError
        For numbers that cannot be meant.
    """

    n_samples: int = 200
    n_steps: int = 100
    max_cells: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--samples", self.n_samples, 2),
            ("--refine", self.n_steps, 1),
            ("--cells", self.max_cells, MIN_HELDOUT),
            ("--seed", self.seed, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value}", f"it takes a whole number, {least} or more")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a diagnosis.

    Parameters
    ----------
    name
        Key of its numbers in the file; no two sections share it.
    values
        Numbers, arrays, texts and dicts of these; nothing that is None.
    verdicts
        What they come to.
    """

    name: str
    values: dict[str, Any]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The health of a model.

    Parameters
    ----------
    options
        What was asked for.
    usage, shape, gaps, check, distortion
        The parts that one model can answer.
    n_cells
        Cells in the data.
    n_judged
        Cells that gaps, calibration and the aggregated posterior's density were measured on.
    heldout
        Whether training did not learn from these. Where the data has fewer than ten held-out cells, all stand in.
    beta, likelihood
        What the model was trained with.
    further
        Sections that others handed in.
    """

    options: DiagnosisOptions
    usage: Usage
    shape: Shape
    gaps: Gaps
    check: PredictiveCheck
    distortion: Distortion
    n_cells: int
    n_judged: int
    heldout: bool
    beta: float
    likelihood: str
    further: tuple[Section, ...] = field(default=())

    @property
    def sections(self) -> tuple[Section, ...]:
        """All parts, in the order they are told."""
        return (
            Section(
                name="usage", values=self.usage.values(), verdicts=(of_use(self.usage, self.gaps, self.beta),)
            ),
            Section(name="aggregate", values=self.shape.values(), verdicts=(of_axes(self.shape), of_prior(self.shape))),
            Section(name="gaps", values=self.gaps.values(), verdicts=tuple(of_gaps(self.gaps))),
            Section(
                name="predictive",
                values=self.check.values(),
                verdicts=tuple(of_counts(self.check, self.likelihood)),
            ),
            Section(name="distances", values=self.distortion.values(), verdicts=(of_distances(self.distortion),)),
            *self.further,
        )  # fmt: skip

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts, in the order they are told."""
        return tuple(verdict for section in self.sections for verdict in section.verdicts)

    @property
    def level(self) -> str:
        """The worst of all."""
        return worst_level(self.verdicts)

    def with_section(self, section: Section) -> Diagnosis:
        """The same with one more part.

        Raises
        ------
        ConfigError
            When a section of that name, or a verdict on one of its topics, is there already.
        """
        topics = {verdict.topic for verdict in self.verdicts}
        taken = [verdict.topic for verdict in section.verdicts if verdict.topic in topics]
        if section.name in {other.name for other in self.sections} or taken:
            named = taken[0] if taken else section.name
            raise ConfigError(f"the diagnosis has a part on {named!r} already", "give it another name")
        return replace(self, further=(*self.further, section))

    def slots(self, names: SlotNames) -> list[Slot]:
        """Where the result goes."""
        values: dict[str, Any] = {
            "n_cells": self.n_cells,
            "n_judged": self.n_judged,
            "heldout": self.heldout,
            "beta": self.beta,
            "level": self.level,
        }
        values |= {section.name: section.values for section in self.sections}
        values["verdicts"] = {
            field_: np.asarray([verdict.values()[field_] for verdict in self.verdicts], dtype=object)
            for field_ in ("topic", "level", "sentence", "remedy")
        }
        return [Slot(group="uns", key=names.diagnosis, value=values)]


def diagnose(model: Model, counts: Counts, options: DiagnosisOptions) -> Diagnosis:
    """Diagnose a model on some cells.

    Parameters
    ----------
    model
        To be judged.
    counts
        Cells in the model's genes, best with those its training held out; with the batches of a model that has them.
    options
        What is asked for.

    Raises
    ------
    DataError
        For cells of a batch the model does not know.
    """
    known_batches(model, counts)
    everyone = counts.cells(even(np.arange(counts.n_cells), _MAX_EVERYONE))
    of_everyone = posteriors(model, everyone)
    rows = np.flatnonzero(model.held_out(counts.cell_names))
    heldout = len(rows) >= MIN_HELDOUT
    rows = rows if heldout else np.arange(counts.n_cells)
    # Densities cost little: they are taken at more cells than are decoded.
    of_unseen = posteriors(model, counts.cells(even(rows, _MAX_EVERYONE)))
    some = counts.cells(even(rows, options.max_cells))
    of_some = posteriors(model, some)
    used = usage(of_everyone)
    return Diagnosis(
        options=options,
        usage=used,
        shape=shape(of_everyone, of_unseen, model.density, seed=options.seed),
        gaps=gaps(model, some, n_steps=options.n_steps, n_samples=options.n_samples, seed=options.seed),
        check=predictive_check(model, some, of_some, seed=options.seed),
        distortion=distortion(Geometry(model.vae), of_some.mean_nk, used.active_k, seed=options.seed),
        n_cells=counts.n_cells,
        n_judged=some.n_cells,
        heldout=heldout,
        beta=model.config.train.beta,
        likelihood=model.config.model.likelihood,
    )
