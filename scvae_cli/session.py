"""Putting a question about cells to a model: open both, bring the counts into the model's genes, write the answer.

The Python API and the command line both work through a `Session`; they differ only in what they open and print.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae_cli._version import __version__
from scvae_cli.config import ComputeConfig
from scvae_cli.data.counts import Counts, is_missing, obs_values, read_counts
from scvae_cli.data.formats import open_store
from scvae_cli.data.gene_selection import match_genes
from scvae_cli.data.provenance import provenance, refuse_another, refuse_foreign
from scvae_cli.data.slots import Slot, SlotNames, spread
from scvae_cli.data.store import CellStore
from scvae_cli.device import choose_compute
from scvae_cli.errors import ConfigError, DataError, ScvaeWarning
from scvae_cli.latent.populations import Population
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.bundle import Model, load
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Progress, silent

if TYPE_CHECKING:
    from anndata import AnnData

# Above this share of missing genes a model says more about itself than about the cells.
MAX_MISSING_GENES = 0.2
_SHOWN_GROUPS = 20


@dataclass(frozen=True, kw_only=True)
class Session:
    """A model, a store of cells, and the cells' counts in the model's genes.

    Parameters
    ----------
    store
        Where the cells are and the results go.
    model
        On its device.
    counts
        The cells that have counts, in the model's genes.
    kept
        Mask over the store's cells of those in `counts`.
    missing_genes
        Genes of the model that the data lacks; they count zero (of real numbers, their training mean).
    progress
        Shows how far a computation is.
    """

    store: CellStore
    model: Model
    counts: Counts
    kept: np.ndarray
    missing_genes: tuple[str, ...]
    progress: Progress = silent

    @classmethod
    def open(
        cls,
        data: AnnData | Path | str,
        model: Model | Path | str,
        *,
        layer: str | None = None,
        gene_symbols: str | None = None,  # noqa: ARG003  # names genes, which is yet to come
        device: str = "auto",
        allow_missing_genes: bool = False,
        drop_empty: bool = False,
        needs_batch: bool = False,
        progress: Progress = silent,
    ) -> Session:
        """Open data for a model.

        Parameters
        ----------
        data
            An AnnData in memory, or a path.
        model
            A model in memory, or its folder.
        layer
            Layer with what the model models; None takes the one it was trained on, or finds the counts.
        device
            Where to compute.
        allow_missing_genes
            Accept any number of missing genes.
        drop_empty
            Accept cells without counts; their results are NaN.
        needs_batch
            Whether the question needs each cell's batch.

        Raises
        ------
        DataError, ModelError, DeviceError
            For what cannot be opened or does not fit.
        """
        store = open_store(data)
        if not isinstance(model, Model):
            model = load(model)
        model.vae.to(choose_compute(ComputeConfig(device=device)).device)
        key = model.config.data.batch_key
        batch_key = key if needs_batch and model.batches else None
        if batch_key is not None and batch_key not in store.obs_keys:
            raise DataError(
                f"{store.title}: no column {batch_key!r} in obs, but the model was trained with it as --batch-key",
                "give the cells' batches a column of that name",
            )
        real = not model.of_counts
        everything = read_counts(store, layer=layer or model.config.data.layer, batch_key=batch_key, real=real)
        if model.batches and key is not None and not needs_batch:
            _warn_of_new_batches(store, key, model)
        aligned, missing = match_genes(
            everything,
            model.genes,
            max_missing=1.0 if allow_missing_genes else MAX_MISSING_GENES,
            absent_g=model.vae.encoder.absent_g(),
        )
        if missing:
            fate = "are given their training mean" if real else "count as zero"
            message = f"{len(missing)} of the model's {len(model.genes)} genes are missing and {fate}"
            warnings.warn(ScvaeWarning(message), stacklevel=2)
        kept = aligned.filled
        if not kept.all():
            _refuse_empty(aligned, kept, drop=drop_empty)
            aligned = aligned.filled_cells()
        return cls(store=store, model=model, counts=aligned, kept=kept, missing_genes=tuple(missing), progress=progress)

    @cached_property
    def cells(self) -> Posterior:
        """q(z|x) of the cells in `counts`, in the frame of the training, computed once."""
        return posteriors(self.model, self.counts, progress=self.progress)

    @property
    def position_n2(self) -> np.ndarray:
        """The cells along the first two latent axes, for figures; the second is 0 where there is one axis."""
        mean_nk = self.model.axes.position(self.cells.mean_nk).numpy()
        return np.column_stack([mean_nk, np.zeros(len(mean_nk))])[:, :2].astype(np.float64)

    @property
    def distance_unit(self) -> str:
        """What Fisher–Rao distances are measured in."""
        return f"standard deviations of {'a count' if self.model.of_counts else 'the noise'}"

    def waypoints(self, labels: Sequence[str], *, groupby: str | None) -> list[Population]:
        """Places for a path to go through.

        Parameters
        ----------
        labels
            Groups of one column of obs, or names of cells, in the order they are passed.
        groupby
            The column; None when the labels name cells.

        Raises
        ------
        ConfigError
            For fewer than two places, or one followed by itself.
        DataError
            As for `places`.
        """
        if len(labels) < 2:
            raise ConfigError("a walk needs two ends", "name the populations or cells to walk between")
        for before, after in pairwise(labels):
            if before == after:
                raise ConfigError(f"the walk goes from {before!r} to itself", "choose two different ends")
        return self.places(labels, groupby=groupby)

    def places(self, labels: Sequence[str], *, groupby: str | None) -> list[Population]:
        """Populations, or single cells, by their labels.

        Parameters
        ----------
        labels
            Groups of one column of obs, or names of cells.
        groupby
            The column; None when the labels name cells.

        Raises
        ------
        DataError
            For an unknown or empty group, or an unknown cell.
        """
        if groupby is None:
            position = {name: i for i, name in enumerate(self.counts.cell_names)}
            for cell in labels:
                if cell not in position:
                    empty = cell in set(self.store.cell_names)
                    why = f"cell {cell!r} has no counts in the modelled genes" if empty else f"no cell called {cell!r}"
                    raise DataError(f"{self.store.title}: {why}", "choose another cell; their names are obs_names")
            return [Population(label=cell, cells=np.asarray([position[cell]])) for cell in labels]
        groups = self.labels(groupby)
        points = []
        # Python's callers may give the numbers that a column holds.
        for label in map(str, labels):
            members = np.flatnonzero(groups == label)
            if len(members) == 0:
                known = sorted({str(group) for group in groups[~is_missing(groups)]})
                shown = ", ".join(known[:_SHOWN_GROUPS]) + (", ..." if len(known) > _SHOWN_GROUPS else "")
                raise DataError(f"{self.store.title}: no cells with obs[{groupby!r}] == {label!r}", f"groups: {shown}")
            points.append(Population(label=label, cells=members))
        return points

    def time_points(self, key: str) -> list[str]:
        """Time points of a column of obs, in order: of numbers by value, of an ordered categorical by its order.

        Raises
        ------
        DataError
            For a missing column, fewer than two time points, or values without an order.
        """
        present = {label for label in self.labels(key, of_times=True) if label is not None}
        if len(present) < 2:
            raise DataError(f"{self.store.title}: obs[{key!r}] has {len(present)} time point(s)", "a walk needs two")
        order = self.store.obs_order(key)
        if order is not None:
            return [label for label in order if label in present]
        try:
            return sorted(present, key=float)
        except ValueError:
            raise DataError(
                f"{self.store.title}: obs[{key!r}] has no order ({', '.join(sorted(present)[:3])}, ...)",
                "--time-key takes numbers or an ordered categorical; or name the way: --groupby, --from, --via, --to",
            ) from None

    def labels(self, key: str, *, of_times: bool = False) -> np.ndarray:
        """A column of obs that names groups, for the cells in `counts`: strings, None for a cell in no group."""
        purpose = "--time-key" if of_times else "--groupby"
        values = obs_values(self.store, key, purpose=purpose, measured=of_times)[self.kept]
        missing = is_missing(values)
        return np.asarray([None if none else str(v) for v, none in zip(values, missing, strict=True)], dtype=object)

    def check_destination(
        self,
        paths: Sequence[str],
        *,
        names: SlotNames,
        output: Path | None = None,
        force: bool = False,
        run: str | None = None,
        made_of: dict[str, Any] | None = None,
    ) -> None:
        """Refuse before a long computation what `write` would refuse after it, and what it could not know.

        Parameters
        ----------
        paths
            Of the slots that will be written (`SlotNames.written_by`).
        run, made_of
            As for `refuse_another`, of results that have names; None for those of which there is one.

        Raises
        ------
        DataError
            When a slot is taken by something scvae did not write, or by a result of another name, and `force` is not
            given; or the place cannot be written to.
        """
        self.store.check_destination(paths, output=output, force=force)
        if force:
            return
        refuse_foreign(self.store, paths, names)
        if run is not None:
            refuse_another(self.store, paths, names, run=run, made_of=made_of)

    def write(
        self,
        slots: Sequence[Slot],
        *,
        names: SlotNames,
        run: str,
        options: dict[str, Any],
        output: Path | None = None,
        force: bool = False,
    ) -> list[str]:
        """Write results and where they came from, all or nothing.

        Returns
        -------
        The paths of the slots written.

        Raises
        ------
        DataError
            As for `check_destination`, or when writing fails.
        """
        slots = spread(slots, self.kept)
        record = self.record(slots, names=names, run=run, options=options)
        self.check_destination([slot.path for slot in slots], names=names, output=output, force=force)
        self.store.write([*slots, record], output=output, force=force)
        return [slot.path for slot in slots]

    def record(
        self, slots: Sequence[Slot], *, names: SlotNames, run: str, options: dict[str, Any], new_file: bool = False
    ) -> Slot:
        """Where results came from: what stands beside them in the file, which may be one of their own."""
        facts = {
            "command": run,
            "scvae_version": __version__,
            "model_hash": self.model.hash,
            "counts_source": self.counts.source,
            "device": str(self.model.device),
            "missing_genes": len(self.missing_genes),
            "options": options,
        }
        return provenance(None if new_file else self.store, names, run, slots, facts)

    def counts_and_batches(self) -> Counts:
        """The counts, and with them each cell's batch where the model knows batches and the data names them all."""
        key = self.model.config.data.batch_key
        if not self.model.batches or key is None or key not in self.store.obs_keys:
            return self.counts
        batch = self.labels(key)
        return self.counts if is_missing(batch).any() else replace(self.counts, batch=batch)


def _warn_of_new_batches(store: CellStore, key: str, model: Model) -> None:
    """Say when cells come from batches the model has not seen: the encoder can still place them."""
    if key not in store.obs_keys:
        return
    batches = store.obs_column(key)
    new = sorted({str(value) for value in batches[~is_missing(batches)]} - set(model.batches))
    if new:
        shown = ", ".join(new[:3]) + (", ..." if len(new) > 3 else "")
        known = f"{len(new)} batch(es) were not in the training data ({shown})"
        message = f"{known}; the encoder does not see batches, so their cells embed all the same, without correction"
        warnings.warn(ScvaeWarning(message), stacklevel=3)


def _refuse_empty(counts: Counts, kept: np.ndarray, *, drop: bool) -> None:
    n_empty = int((~kept).sum())
    first = counts.cell_names[int(np.flatnonzero(~kept)[0])]
    if not kept.any():
        raise DataError(
            "no cell has counts in the modelled genes",
            "gene names must be of the same kind in data and model (symbols or Ensembl ids)",
        )
    if not drop:
        raise DataError(
            f"{n_empty} cell(s) have no counts in the modelled genes, the first is {first!r}",
            "--drop-empty leaves them out; their results are NaN",
        )
