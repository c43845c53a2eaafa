"""Differential expression for the Python API and the command line: what is asked for, and put to a session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae_cli.data.slots import DEFAULT_KEY, SlotNames
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.model.bundle import Model
from scvae_cli.session import Session
from scvae_cli.tools.de.comparison import differential_expression, refuse_real
from scvae_cli.tools.de.result import REST, ComparisonOptions, Contrast, DifferentialExpression

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["ComparisonRequest", "de"]


@dataclass(frozen=True, kw_only=True)
class ComparisonRequest:
    """What is asked for; refuses what cannot be meant.

    Parameters
    ----------
    groupby, group, reference
        Column of obs and two of its groups; without a reference, all other cells of the column.
    within
        Columns of obs and the group of each that cells must be in to be compared at all.
    options
        How.

    Raises
    ------
    ConfigError
        For a group compared with itself.
    """

    groupby: str
    group: str
    reference: str | None = None
    within: Mapping[str, str] = field(default_factory=dict)
    options: ComparisonOptions = field(default_factory=ComparisonOptions)

    def __post_init__(self) -> None:
        if self.group == self.reference:
            raise ConfigError(
                f"{self.group!r} is compared with itself", "--reference takes another group, or leave it out"
            )

    def contrast(self, session: Session) -> Contrast:
        """The two groups of cells.

        Raises
        ------
        DataError
            For an unknown column or group, or too few cells.
        """
        inside = np.ones(session.counts.n_cells, dtype=bool)
        for key, value in self.within.items():
            inside &= _mask(session.places([value], groupby=key)[0].cells, len(inside))
        asked = [self.group] if self.reference is None else [self.group, self.reference]
        masks = [_mask(place.cells, len(inside)) for place in session.places(asked, groupby=self.groupby)]
        if self.reference is None:
            labelled = np.asarray([label is not None for label in session.labels(self.groupby)])
            masks.append(labelled & ~masks[0])
            if not masks[1].any():
                raise DataError(
                    f"{session.store.title}: all cells have obs[{self.groupby!r}] == {self.group!r}",
                    "there is nothing to compare them with; choose another column",
                )
        return Contrast(
            groupby=self.groupby,
            group=self.group,
            reference=self.reference or REST,
            group_cells=np.flatnonzero(masks[0] & inside),
            reference_cells=np.flatnonzero(masks[1] & inside),
        )

    def answer(self, session: Session) -> DifferentialExpression:
        """Put it to a model and cells."""
        refuse_real(session.model)
        return differential_expression(session.model, session.counts, self.contrast(session), self.options)

    def told(self) -> dict[str, Any]:
        """What the record of a run says of it."""
        named = {"groupby": self.groupby, "group": self.group, "reference": self.reference}
        return named | {"within": dict(self.within)} | asdict(self.options)


def de(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    groupby: str,
    group: str,
    reference: str | None = None,
    within: Mapping[str, str] | None = None,
    threshold: float = ComparisonOptions.threshold,
    fdr: float = ComparisonOptions.fdr,
    centre: str = ComparisonOptions.centre,
    max_cells: int = ComparisonOptions.max_cells,
    n_samples: int = ComparisonOptions.n_samples,
    seed: int = 0,
    key_added: str = DEFAULT_KEY,
    inplace: bool = True,
    layer: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    output: Path | str | None = None,
    force: bool = False,
    device: str = "auto",
) -> DifferentialExpression | None:
    """Differential expression between two groups, from the model's posterior and the counts.

    Written as `uns["rank_genes_groups_scvae"]`, for `sc.get.rank_genes_groups_df` and `sc.pl.rank_genes_groups` with
    that key. Cells are taken for independent: replicates (donors) are not modelled.

    Parameters
    ----------
    groupby, group, reference, within
        As for `ComparisonRequest`.
    threshold, fdr, centre, max_cells, n_samples, seed
        As for `ComparisonOptions`.
    data, model, key_added, inplace, layer, allow_missing_genes, drop_empty, output, force, device
        As for `embed`.
    """
    request = ComparisonRequest(
        groupby=groupby,
        group=group,
        reference=reference,
        within=within or {},
        options=ComparisonOptions(
            threshold=threshold, fdr=fdr, centre=centre, max_cells=max_cells, n_samples=n_samples, seed=seed
        ),
    )
    session = Session.open(
        data,
        model,
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
        needs_batch=True,
    )
    names = SlotNames(key_added=key_added)
    target = None if output is None else Path(output)
    if inplace:
        session.check_destination(names.written_by("de"), names=names, output=target, force=force)
    result = request.answer(session)
    if not inplace:
        return result
    session.write(
        result.slots(names, session.store.gene_names),
        names=names,
        run="de",
        options=request.told(),
        output=target,
        force=force,
    )
    return None


def _mask(cells: np.ndarray, n: int) -> np.ndarray:
    mask = np.zeros(n, dtype=bool)
    mask[cells] = True
    return mask
