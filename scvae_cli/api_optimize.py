"""Optimisation for the Python API and the command line: what is asked for, checked once, and put to a session."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae_cli.data.slots import DEFAULT_KEY, SlotNames
from scvae_cli.errors import ConfigError, ScvaeWarning
from scvae_cli.latent.populations import Population
from scvae_cli.model.bundle import Model
from scvae_cli.session import Session
from scvae_cli.tools.optimize import optimization
from scvae_cli.tools.optimize.gene_program import Programme, Property
from scvae_cli.tools.optimize.optimization import AscentOptions, Optimized

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["AscentRequest", "optimize"]


@dataclass(frozen=True, kw_only=True)
class AscentRequest:
    """What is asked for; refuses what cannot be meant together.

    Parameters
    ----------
    toward, away
        As for `Programme`.
    groupby, group
        Column of obs and the group in it to start from.
    from_cell
        Or the cell to start at; `groupby` then only names the groups that are passed.
    name
        Of the walk; by default made of the first gene.
    unconstrained
        Whether the walk may go where no cells are; `within` is then not looked at.
    n_steps, within, n_starts, max_length, library, batch_as, seed
        As for `AscentOptions`.

    Raises
    ------
    ConfigError
        For options that cannot be meant, alone or together.
    """

    toward: tuple[str, ...] | Property = ()
    away: tuple[str, ...] = ()
    groupby: str | None = None
    group: str | None = None
    from_cell: str | None = None
    name: str | None = None
    n_steps: int = 50
    within: float = 0.9
    unconstrained: bool = False
    n_starts: int = 8
    max_length: float | None = None
    library: str | float = "median"
    batch_as: str = "average"
    seed: int = 0

    def __post_init__(self) -> None:
        self.programme()
        if self.from_cell is not None and self.group is not None:
            raise ConfigError("the start was given twice", "use one of --group and --from-cell")
        if self.from_cell is None and (self.group is None or self.groupby is None):
            raise ConfigError(
                "a walk needs --groupby KEY --group VALUE (or --from-cell ID)",
                "scvae check DATA lists the columns that group cells",
            )
        self.options()

    def programme(self) -> Programme:
        """What is to rise and what to fall."""
        return Programme(toward=self.toward, away=self.away)

    def options(self) -> AscentOptions:
        """How to climb."""
        return AscentOptions(
            name=self.name or self.programme().default_name(),
            n_steps=self.n_steps,
            within=None if self.unconstrained else self.within,
            n_starts=self.n_starts,
            max_length=self.max_length,
            library=self.library,
            batch_as=self.batch_as,
            seed=self.seed,
        )

    def start(self, session: Session) -> tuple[Population, np.ndarray | None]:
        """Where the walk starts, and the group of each cell.

        Raises
        ------
        DataError
            For an unknown group or cell.
        """
        groups = None if self.groupby is None else session.labels(self.groupby)
        if self.from_cell is not None:
            return session.places([self.from_cell], groupby=None)[0], groups
        assert self.group is not None, "checked"
        return session.places([self.group], groupby=self.groupby)[0], groups

    def told(self) -> dict[str, Any]:
        """What stands in the record beside the options."""
        where = {"groupby": self.groupby, "group": self.group, "from_cell": self.from_cell}
        return where | self.programme().told()


def optimize(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    toward: Sequence[str] | Property = (),
    away: Sequence[str] = (),
    groupby: str | None = None,
    group: str | None = None,
    from_cell: str | None = None,
    name: str | None = None,
    n_steps: int = 50,
    within: float = 0.9,
    unconstrained: bool = False,
    n_starts: int = 8,
    max_length: float | None = None,
    library: str | float = "median",
    batch_as: str = "average",
    seed: int = 0,
    key_added: str = DEFAULT_KEY,
    inplace: bool = True,
    layer: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    output: Path | str | None = None,
    force: bool = False,
    device: str = "auto",
) -> Optimized | None:
    """Climb through latent space towards more of some genes, or of any property, and decode the walk.

    Parameters
    ----------
    toward
        Genes to raise; or a function that gives decoded values, a tensor (n, g) in the order of `model.genes`, each a
        number, shape (n,), written in torch.
    away
        Genes to lower.
    groupby, group, from_cell, name, n_steps, within, unconstrained, n_starts, max_length, library, batch_as, seed
        As for `AscentRequest`.
    data, model, key_added, inplace, layer, allow_missing_genes, drop_empty, output, force, device
        As for `scvae_cli.embed`.
    """
    request = AscentRequest(
        toward=toward if callable(toward) else _genes(toward),
        away=_genes(away),
        groupby=groupby,
        group=group,
        from_cell=from_cell,
        name=name,
        n_steps=n_steps,
        within=within,
        unconstrained=unconstrained,
        n_starts=n_starts,
        max_length=max_length,
        library=library,
        batch_as=batch_as,
        seed=seed,
    )
    session = Session.open(
        data, model, layer=layer, device=device, allow_missing_genes=allow_missing_genes, drop_empty=drop_empty
    )
    start, groups = request.start(session)
    options, names, to = request.options(), SlotNames(key_added=key_added), None if output is None else Path(output)
    run = f"optimize_{options.name}"
    if inplace:
        planned = names.written_by("optimize", options.name)
        session.check_destination(planned, names=names, output=to, force=force, run=run)
    result = optimization.optimize(session.model, session.counts, start, request.programme(), options, groups=groups)
    for warning in (*result.warnings(), *result.advice()):
        warnings.warn(ScvaeWarning(warning), stacklevel=2)
    if not inplace:
        return result
    session.write(
        result.slots(names, session.store.gene_names),
        names=names,
        run=run,
        options=asdict(options) | request.told(),
        output=to,
        force=force,
    )
    return None


def _genes(genes: Sequence[str]) -> tuple[str, ...]:
    """Genes, each once; a lone name is one gene."""
    return tuple(dict.fromkeys([genes] if isinstance(genes, str) else genes))
