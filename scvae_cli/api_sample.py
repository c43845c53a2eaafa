"""Sampling for the Python API and the command line: what is asked for, checked once, and put to a session."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scvae_cli.data.counts import Counts
from scvae_cli.data.new_cells import NewCells, check_output
from scvae_cli.data.slots import DEFAULT_KEY, SlotNames
from scvae_cli.errors import ConfigError
from scvae_cli.latent.populations import Population
from scvae_cli.model.bundle import Model
from scvae_cli.session import Session
from scvae_cli.tools.sample.prototype import Prototype
from scvae_cli.tools.sample.prototype import prototype as decode_prototype
from scvae_cli.tools.sample.result import Sampled, SamplingOptions
from scvae_cli.tools.sample.sampling import sample as draw

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["SampleRequest", "sample"]


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What is asked for; refuses what cannot be meant together.

    Parameters
    ----------
    n
        Number of cells; None for the prototype.
    source, library, batch_as, mean, avoid_holes, seed
        As for `SamplingOptions`; None leaves depth and batch to what is usual: observed depths and drawn batches, for
        the prototype the median depth and the average over batches.
    groupby, group
        Column of obs and the group in it to draw from.
    prototype
        Decode z = 0 instead of drawing cells.

    Raises
    ------
    ConfigError
        For options that cannot be meant, alone or together.
    """

    n: int | None = None
    source: str = "auto"
    groupby: str | None = None
    group: str | None = None
    library: str | float | None = None
    batch_as: str | None = None
    mean: bool = False
    prototype: bool = False
    avoid_holes: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prototype:
            others = {"-n": self.n is not None, "--from": self.source != "auto", "--groupby": self.groupby is not None}
            others |= {"--group": self.group is not None, "--mean": self.mean, "--avoid-holes": self.avoid_holes}
            given = [name for name, there in others.items() if there]
            if given:
                raise ConfigError(f"--prototype and {given[0]} were both given", "the prototype is one cell: z = 0")
        elif self.n is None:
            raise ConfigError("no number of cells was given", "say how many with -n N, or ask for the --prototype")
        if (self.groupby is None) != (self.group is None):
            missing = "--group VALUE" if self.group is None else "--groupby KEY"
            raise ConfigError(f"a group needs --groupby KEY and --group VALUE; {missing} is missing", "name both")
        if self.group is not None and self.source != "auto":
            raise ConfigError(
                f"--from {self.source} and --group were both given", "a group is drawn from its own cells"
            )
        self.options(n=self.n or 1)

    def options(self, *, n: int, batch_as: str | None = None) -> SamplingOptions:
        """The same for drawing cells."""
        return SamplingOptions(
            n=n if self.n is None else self.n,
            source=self.source,
            library="observed" if self.library is None else self.library,
            batch_as=self.batch_as or batch_as or "drawn",
            mean=self.mean,
            avoid_holes=self.avoid_holes,
            seed=self.seed,
        )

    def answer(self, session: Session) -> Sampled | Prototype:
        """Put it to a model and cells; counts are drawn when the result's blocks are walked through."""
        if self.prototype:
            return decode_prototype(
                session.model,
                session.counts,
                library="median" if self.library is None else self.library,
                batch_as=self.batch_as or "average",
                seed=self.seed,
            )
        group = self._group(session)
        # A batch that is asked for as the group is also the one to decode in, where the model knows it.
        same = self.groupby == session.model.config.data.batch_key and self.group in session.model.batches
        options = self.options(n=self.n or 1, batch_as=self.group if same else None)
        return draw(session.model, session.counts_and_batches(), options, group=group, groupby=self.groupby)

    def real_cells(self, session: Session) -> Counts:
        """The real cells that what is asked for should look like: those of the group, or of the batch, or all."""
        group = self._group(session)
        if group is not None:
            return session.counts.cells(group.cells)
        counts = session.counts_and_batches()
        if self.batch_as is not None and counts.batch is not None and (counts.batch == self.batch_as).any():
            return counts.cells(counts.batch == self.batch_as)
        return counts

    def _group(self, session: Session) -> Population | None:
        if self.group is None:
            return None
        return session.places([self.group], groupby=self.groupby)[0]

    def new_cells(self, session: Session, result: Sampled | Prototype, names: SlotNames) -> NewCells:
        """The result as cells of an AnnData of their own, and where they came from."""
        slots = result.slots(names)
        told = asdict(self)
        if isinstance(result, Sampled):
            told |= asdict(result.options) | {"drawn_from": result.source, "rejected": result.rejected}
        return NewCells(
            cell_names=result.cell_names(),
            gene_names=result.genes,
            blocks=result.blocks,
            dense=self.prototype or self.mean or not session.model.of_counts,
            slots=[*slots, session.record(slots, names=names, run="sample", options=told, new_file=True)],
        )


def sample(
    data: AnnData | Path | str,
    model: Model | Path | str,
    n: int | None = None,
    *,
    source: str = "auto",
    groupby: str | None = None,
    group: str | None = None,
    library: str | float | None = None,
    batch_as: str | None = None,
    mean: bool = False,
    prototype: bool = False,
    avoid_holes: bool = False,
    seed: int = 0,
    key_added: str = DEFAULT_KEY,
    layer: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    output: Path | str | None = None,
    force: bool = False,
    device: str = "auto",
) -> AnnData | None:
    """Draw new cells, with counts, off-manifold score and latent position.

    Parameters
    ----------
    data, model
        Cells × genes (they tell which source is better, library sizes, groups), and a model or its folder.
    n
        Number of cells.
    source, groupby, group, library, batch_as, mean, prototype, avoid_holes, seed
        As for `SampleRequest`.
    key_added, layer, allow_missing_genes, drop_empty, device
        As for `embed`.
    output, force
        Write the cells to this .h5ad, in blocks, and return None; replace an existing file.

    Returns
    -------
    The new cells as an AnnData, without `output`.

    Raises
    ------
    ScvaeError
        For options that cannot be meant, or when nearly all draws fall in holes.
    """
    request = SampleRequest(
        n=n,
        source=source,
        groupby=groupby,
        group=group,
        library=library,
        batch_as=batch_as,
        mean=mean,
        prototype=prototype,
        avoid_holes=avoid_holes,
        seed=seed,
    )
    target = None
    if output is not None:
        target = check_output(Path(output), Path(data) if isinstance(data, str) else data, force=force)
    session = Session.open(
        data, model, layer=layer, device=device, allow_missing_genes=allow_missing_genes, drop_empty=drop_empty
    )
    cells = request.new_cells(session, request.answer(session), SlotNames(key_added=key_added))
    if target is None:
        return cells.in_memory()
    cells.write(target, force=force)
    return None
