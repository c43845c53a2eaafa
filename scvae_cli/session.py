"""A session: data and a model that are opened together, with the counts of the model's genes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scvae_cli._version import __version__
from scvae_cli.amounts import amount
from scvae_cli.config import ComputeConfig
from scvae_cli.data.counts import Counts, read_counts
from scvae_cli.data.covariates import read_covariates
from scvae_cli.data.doubtful_labels import warn_of_doubtful
from scvae_cli.data.finite import finite_slots
from scvae_cli.data.formats import open_store
from scvae_cli.data.gene_names import GeneNames, gene_names
from scvae_cli.data.gene_selection import match_genes
from scvae_cli.data.labels import as_label, in_natural_order, labels_of, matching
from scvae_cli.data.obs_columns import obs_values
from scvae_cli.data.provenance import provenance, refuse_another, refuse_foreign
from scvae_cli.data.slots import Slot, SlotNames, spread
from scvae_cli.data.store import CellStore
from scvae_cli.data.subset import subset_mask
from scvae_cli.device import choose_compute
from scvae_cli.errors import ChoiceError, ConfigError, DataError, ModelError, ScvaeWarning
from scvae_cli.latent.cell_batches import batch_of_mapped, refuse_lacking, warn_of_new_batches
from scvae_cli.latent.expression import expression_positions
from scvae_cli.latent.populations import Population
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.bundle import Model, load
from scvae_cli.model.posterior import Posterior
from scvae_cli.model.probe import FARTHEST
from scvae_cli.progress import Progress, silent
from scvae_cli.shared_options import Rounding

if TYPE_CHECKING:
    from anndata import AnnData

# Largest share of the model's genes that may be missing in the data. With a larger share, results would depend more on
# the model than on the cells.
MAX_MISSING_GENES = 0.2
_SHOWN_GROUPS = 20


@dataclass(frozen=True, kw_only=True)
class Session:
    """A model, a source of cells (a file or AnnData), and the counts of the model's genes in these cells.

    Parameters
    ----------
    store
        Source of the cells and destination of the results.
    model
        The model, on its device.
    counts
        Counts of the model's genes in the selected cells. Cells without counts are left out.
    kept
        Boolean mask over all cells of `store`, True for the cells in `counts`; shape (cells of `store`,).
    missing_genes
        Genes of the model that the data lack. In a model of counts, the counts of missing genes are set to 0. In a
        model of real-valued data, the values of missing genes are set to the mean over the training cells.
    genes
        Names and symbols of the model's genes.
    progress
        Function that shows the progress of long computations.
    """

    store: CellStore
    model: Model
    counts: Counts
    kept: np.ndarray
    missing_genes: tuple[str, ...]
    genes: GeneNames
    progress: Progress = silent

    @classmethod
    def open(
        cls,
        data: AnnData | Path | str,
        model: Model | Path | str,
        *,
        layer: str | None = None,
        rounding: Rounding | None = None,
        genome: str | None = None,
        modality: str | None = None,
        gene_symbols: str | None = None,
        device: str = "auto",
        allow_missing_genes: bool = False,
        drop_empty: bool = False,
        subset: Sequence[str] = (),
        needs_batch: bool = False,
        maps_batches: bool = False,
        progress: Progress = silent,
    ) -> Session:
        """Open data and a trained model together.

        Parameters
        ----------
        data
            An AnnData in memory, or a path.
        model
            A trained model, or its folder.
        layer
            AnnData layer to read. If `layer` is None, the layer that was used for the training is read. If the training
            used no layer, `read_counts` chooses the matrix.
        rounding
            How to round fractions of counts. If None, fractions are rounded as in the training.
        genome, modality
            Genome or modality to read from a file that has several (see `open_store`). If None, the genome or modality
            of the training is read.
        gene_symbols
            Column of var with gene symbols, which then name the genes in options and results. If None, genes are named
            by var_names.
        device
            Device to compute on.
        allow_missing_genes
            Accept any number of missing genes.
        drop_empty
            Skip cells without counts. The results of these cells are NaN.
        subset
            Conditions KEY=VALUE[,VALUE…] on columns of obs; only cells that fulfill all conditions are used.
        needs_batch
            Whether the batch of every cell is needed.
        maps_batches
            Whether new batches will be mapped onto the model, so that no warning of new batches is needed.

        Raises
        ------
        DataError, ModelError, DeviceError
            If the data or the model cannot be opened, or if the data do not fit the model.
        """
        try:
            store = open_store(data, genome=genome, modality=modality)
            model = _opened(model)
        except ChoiceError:
            model = _opened(model)
            trained = model.config.data
            if trained.genome is None and trained.modality is None:
                raise
            store = open_store(data, genome=genome or trained.genome, modality=modality or trained.modality)
        model.vae.to(choose_compute(ComputeConfig(device=device)).device)
        trained_on = model.config.data
        mapped_batch = batch_of_mapped(store, model) if model.vae.n_mapped and not maps_batches else None
        reads = needs_batch and model.conditioned and mapped_batch is None
        if reads:
            refuse_lacking(store, model)
        genes = gene_names(store, gene_symbols, ids=model.genes)
        real = not model.of_counts
        if real and rounding is not None:
            raise ConfigError("--round was given, but the model describes real numbers", "remove --round")
        everything = read_counts(
            store,
            layer=layer or model.config.data.layer,
            batch_key=trained_on.batch_keys if reads else None,
            continuous_key=trained_on.continuous_keys if reads else None,
            real=real,
            rounding=rounding or model.config.data.round,
        )
        if mapped_batch is not None:
            everything = replace(everything, batch=mapped_batch)
        if model.conditioned and not maps_batches:
            warn_of_new_batches(store, model, categories=not needs_batch)
        aligned, missing = match_genes(
            everything,
            model.genes,
            max_missing=1.0 if allow_missing_genes else MAX_MISSING_GENES,
            absent_g=model.vae.encoder.absent_g(),
        )
        if missing:
            fate = "their values are set to the mean over the training cells" if real else "their counts are set to 0"
            message = f"{len(missing)} of the model's {len(model.genes)} genes are missing in the data; {fate}"
            warnings.warn(ScvaeWarning(message), stacklevel=2)
        chosen = subset_mask(store, subset)
        if not chosen.all():
            aligned = aligned.cells(chosen)
        filled, kept = aligned.filled, chosen
        if not filled.all():
            _refuse_empty(aligned, filled, drop=drop_empty)
            aligned = aligned.filled_cells()
            kept[chosen] = filled
        return cls(
            store=store,
            model=model,
            counts=aligned,
            kept=kept,
            missing_genes=tuple(missing),
            genes=genes,
            progress=progress,
        )

    def alongside(
        self,
        data: AnnData | Path | str,
        *,
        gene_symbols: str | None = None,
        allow_missing_genes: bool = False,
        drop_empty: bool = False,
    ) -> Session:
        """Open further data with the model and the device of this session.

        The counts are read from the layer that the training used, and rounded as in the training.

        Raises
        ------
        DataError
            If the data cannot be opened or do not fit the model.
        """
        return Session.open(
            data,
            self.model,
            gene_symbols=gene_symbols,
            device=str(self.model.device),
            allow_missing_genes=allow_missing_genes,
            drop_empty=drop_empty,
            progress=self.progress,
        )

    @cached_property
    def cells(self) -> Posterior:
        """Posteriors q(z|x) of the cells in `counts`, in the latent coordinates that encoder and decoder use."""
        return posteriors(self.model, self.counts, progress=self.progress)

    @cached_property
    def embedding(self) -> np.ndarray:
        """The default embedding of the cells (obsm["X_scvae"]), shape (n, j + m).

        The first j axes are principal components of expression space, and the other m axes are random directions.
        """
        counts = self.counts_and_batches(partly=True)
        return expression_positions(
            self.model, counts, self.cells.mean_nk, missing=self.missing_genes, progress=self.progress
        )

    @property
    def expression(self) -> np.ndarray:
        """The first j columns of the embedding, which are principal components of expression space; shape (n, j)."""
        embedding, space = self.embedding, self.model.expression
        assert space is not None, "a model without expression space has no embedding"
        return embedding[:, : len(space.component_jg)]

    def umap(self) -> np.ndarray | None:
        """Return the positions of the cells on the UMAP of `scvae embed --umap`, shape (n, 2).

        If the data have no UMAP of scvae, the positions on scanpy's UMAP (obsm["X_umap"]) are returned. The result is
        None if the data have no UMAP, or if some cells have no position on the UMAP.
        """
        for key in (SlotNames().umap, "X_umap"):
            xy = self.store.obsm(key)
            if xy is not None and xy.ndim == 2 and xy.shape[1] >= 2:
                xy_n2 = np.asarray(xy[self.kept, :2], dtype=np.float64)
                if np.isfinite(xy_n2).all():
                    return xy_n2
        return None

    def refuse_far_cells(self) -> None:
        """Raise a ModelError if the latent position of a cell is not finite, or is far outside the range of trained
        models.

        A computation with an extreme latent position may fail with an obscure error. The ModelError names the cause.
        """
        mean_nk, var_nk = self.cells.mean_nk, self.cells.var_nk
        usable_n = (mean_nk.abs() <= FARTHEST).all(1) & torch.isfinite(var_nk).all(1) & (var_nk > 0).all(1)
        if not usable_n.all():
            first = self.counts.cell_names[int(torch.nonzero(~usable_n)[0])]
            raise ModelError(
                f"the model has no usable position for {amount(int((~usable_n).sum()), 'cell')}; the first is "
                f"{first!r}",
                "look for extreme counts with scvae check, or train the model again",
            )

    @property
    def position_n2(self) -> np.ndarray:
        """Positions of the cells on the first two latent axes, for figures, shape (n, 2).

        If the model has only one latent axis, the second coordinate of every cell is 0.
        """
        mean_nk = self.model.axes.position(self.cells.mean_nk).numpy()
        return np.column_stack([mean_nk, np.zeros(len(mean_nk))])[:, :2].astype(np.float64)

    @property
    def distance_unit(self) -> str:
        """Unit of Fisher–Rao distances."""
        return f"standard deviations of {'a count' if self.model.of_counts else 'the noise'}"

    def populations(self, labels: Sequence[str], *, groupby: str | None) -> list[Population]:
        """Find groups of cells, or single cells, by their labels.

        Parameters
        ----------
        labels
            Groups of one column of obs, or names of cells.
        groupby
            Column of obs with the groups; None if the labels name cells.

        Raises
        ------
        DataError
            If a group does not exist or has no cells with counts, or if a cell does not exist or has no counts.
        """
        if groupby is None:
            position = {name: i for i, name in enumerate(self.counts.cell_names)}
            cells = [as_label(cell) for cell in labels]
            for cell in cells:
                if cell not in position:
                    empty = cell in set(self.store.cell_names)
                    why = f"cell {cell!r} has no counts in the modeled genes" if empty else f"no cell called {cell!r}"
                    raise DataError(f"{self.store.title}: {why}", "choose another cell; cells are named by obs_names")
            return [Population(label=cell, cells=np.asarray([position[cell]])) for cell in cells if cell is not None]
        groups = self.labels(groupby)
        points = []
        known = sorted(set(groups) - {None})
        for given in labels:
            label = matching(given, known)
            if label is None:
                shown = ", ".join(known[:_SHOWN_GROUPS]) + (", ..." if len(known) > _SHOWN_GROUPS else "")
                asked = given if as_label(given) is None else as_label(given)
                raise DataError(f"{self.store.title}: no cells with obs[{groupby!r}] == {asked!r}", f"groups: {shown}")
            points.append(Population(label=label, cells=np.flatnonzero(groups == label)))
        return points

    def time_points(self, key: str) -> list[str]:
        """Return the time points in a column of obs, from the earliest to the latest.

        Numbers are ordered by value. Labels that differ only in their numbers ("E7.5", "day3", "100-130") are ordered
        by these numbers. The values of an ordered categorical are ordered like its categories.

        Raises
        ------
        DataError
            If the column does not exist, if it has fewer than two time points, or if its values have no order.
        """
        present = {label for label in self.labels(key, of_times=True) if label is not None}
        if len(present) < 2:
            raise DataError(
                f"{self.store.title}: obs[{key!r}] has {amount(len(present), 'time point')}",
                "a trajectory needs two or more time points",
            )
        order = self.store.obs_order(key)
        if order is not None:
            return [label for label in order if label in present]
        times = in_natural_order(present)
        if times is None:
            raise DataError(
                f"{self.store.title}: obs[{key!r}] has no order (values: {', '.join(sorted(present)[:3])}, ...)",
                "--time-key takes numbers, labels that differ only in numbers (E7.5, day3), or an ordered categorical; "
                "for other columns, use --groupby and name the groups with --from, --via and --to",
            )
        return times

    def labels(self, key: str, *, of_times: bool = False, purpose: str = "--groupby") -> np.ndarray:
        """Return the labels of the cells in `counts`, from a column of obs that names groups (see `scvae_cli.labels`).

        Parameters
        ----------
        purpose
            Option with which the user named the column. If the column does not exist, the error message names this
            option.

        Returns
        -------
        Labels of the cells, shape (n,). The label of a cell without a group is None.
        """
        values = obs_values(self.store, key, purpose="--time-key" if of_times else purpose, measured=of_times)[
            self.kept
        ]
        label_n = labels_of(values)
        warn_of_doubtful(self.store.title, key, label_n)
        return label_n

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
        """Check before a long computation that `write` will be able to write the results.

        Parameters
        ----------
        paths
            Paths of the slots that will be written.
        run, made_of
            Arguments of `refuse_another`, for results that have names; None for other results.

        Raises
        ------
        DataError
            If the destination cannot be written to. If `force` is False, the error is also raised if a slot already
            contains an element that scvae did not write, or another result (see `refuse_another`).
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
        """Write results and their provenance, either completely or not at all.

        Returns
        -------
        The paths of the slots written.

        Raises
        ------
        DataError
            If the destination cannot be written to, if an existing element must not be replaced (see
            `check_destination`), or if writing fails.
        ModelError
            If a result is not a finite number.
        """
        slots = spread(finite_slots(slots), self.kept)
        record = self.record(slots, names=names, run=run, options=options)
        self.check_destination([slot.path for slot in slots], names=names, output=output, force=force)
        self.store.write([*slots, record], output=output, force=force)
        return [slot.path for slot in slots]

    def record(
        self, slots: Sequence[Slot], *, names: SlotNames, run: str, options: dict[str, Any], new_file: bool = False
    ) -> Slot:
        """Return the slot (element of uns) that records how results were computed.

        `new_file` says whether the results are written to a new file.
        """
        facts = {
            "command": run,
            "scvae_version": __version__,
            "model_hash": self.model.hash,
            "counts_source": self.counts.source,
            "rounding": self.counts.rounding,
            "device": str(self.model.device),
            "missing_genes": len(self.missing_genes),
            "options": options,
        }
        return provenance(None if new_file else self.store, names, run, slots, facts)

    def counts_and_batches(self, *, partly: bool = False) -> Counts:
        """Return the counts of the cells, and add the covariates that the model uses and the data contain.

        If `partly` is False and any covariate of any cell is missing, the counts are returned without covariates. If
        `partly` is True, the counts are returned with those covariates that are not missing.
        """
        data, known = self.model.config.data, self.counts.batch is not None or self.counts.covariates is not None
        keys = (*data.batch_keys, *data.continuous_keys)
        present = [key for key in keys if key in self.store.obs_keys]
        if known or not self.model.conditioned or not present or (len(present) < len(keys) and not partly):
            return self.counts
        covariates = read_covariates(self.store, data.batch_keys, data.continuous_keys, partly=True).cells(self.kept)
        if not partly and not covariates.complete_n.all():
            return self.counts
        return self.counts.with_covariates(covariates)


def _opened(model: Model | Path | str) -> Model:
    if isinstance(model, Model):
        return model
    if not isinstance(model, str | Path):
        raise ModelError(f"the model has type {type(model).__name__}", "give a trained model, or its folder")
    return load(model)


def _refuse_empty(counts: Counts, kept: np.ndarray, *, drop: bool) -> None:
    n_empty = int((~kept).sum())
    first = counts.cell_names[int(np.flatnonzero(~kept)[0])]
    if not kept.any():
        raise DataError(
            "no cell has counts in the modeled genes",
            "gene names must be of the same kind in data and model (symbols or Ensembl ids)",
        )
    if not drop:
        raise DataError(
            f"{amount(n_empty, 'cell has', 'cells have')} no counts in the modeled genes; the first is {first!r}",
            "use --drop-empty to leave these cells out; their results will be NaN",
        )
