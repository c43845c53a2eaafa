"""The embedding of each cell, its latent position, and the uncertainty of the latent position.

Letters in array shapes: n cells, k latent dimensions, j coordinates of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.brief import brief
from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import DataError
from scvae_cli.latent.expression import expression_positions
from scvae_cli.latent.posteriors import refined_posteriors
from scvae_cli.session import Session
from scvae_cli.tools.embed.options import EmbedOptions
from scvae_cli.tools.embed.umap_leiden import UmapLeiden


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Coordinates of n cells, float32.

    Parameters
    ----------
    position_nj
        Coordinates for neighbors, clusters and UMAPs, in expression space or in latent space; shape (n, j).
    mean_nk, var_nk
        Means and variances of the cells' posteriors along the chosen latent axes; shape (n, k).
    gain
        Mean increase of the ELBO by the refinement of the posteriors, in nats per cell; None if the posteriors were not
        refined.
    umap_leiden
        UMAP and clusters of the cells; None if neither a UMAP nor clusters were requested.
    """

    __repr__ = brief

    position_nj: np.ndarray
    mean_nk: np.ndarray
    var_nk: np.ndarray
    gain: float | None = None
    umap_leiden: UmapLeiden | None = None

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the data to which the result is written."""
        return [
            Slot(group="obsm", key=names.embedding, value=self.position_nj),
            Slot(group="obsm", key=names.latent, value=self.mean_nk),
            Slot(group="obsm", key=names.latent_var, value=self.var_nk),
            *([] if self.umap_leiden is None else self.umap_leiden.slots(names)),
        ]


def embed(session: Session, options: EmbedOptions) -> Embedding:
    """Embed the cells of a session, which holds the opened data and model.

    Raises
    ------
    DataError
        If the coordinates of a cell are not finite. If `options.refine` is above 0, the error is also raised if a
        cell's batch is unknown to the model.
    """
    model = session.model
    if options.refine > 0:
        posterior, gain_n = refined_posteriors(model, session.counts, n_steps=options.refine, progress=session.progress)
        gain = float(gain_n.mean())
    else:
        posterior, gain = session.cells, None
    mean_nk, var_nk = posterior
    if options.axes == "canonical":
        mean_nk, var_nk = model.axes.position(mean_nk), model.axes.variance(var_nk)
    if options.space == "latent":
        position_nj = mean_nk.numpy()
    elif options.refine > 0:
        position_nj = expression_positions(
            model, session.counts, posterior.mean_nk, missing=session.missing_genes, progress=session.progress
        )
    else:
        position_nj = session.embedding
    _refuse_not_finite(session.counts, position_nj, mean_nk.numpy(), var_nk.numpy())
    return Embedding(position_nj=position_nj, mean_nk=mean_nk.numpy(), var_nk=var_nk.numpy(), gain=gain)


def _refuse_not_finite(counts: Counts, *coordinates: np.ndarray) -> None:
    """Refuse coordinates that are NaN or infinite, because the neighbors of all cells would then be wrong."""
    broken = np.flatnonzero(~np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in coordinates]))
    if len(broken):
        first = counts.cell_names[broken[0]]
        raise DataError(
            f"the model has no finite position for {amount(len(broken), 'cell')}; the first is {first!r}",
            "look for extremely large values in these cells, and leave these cells out",
        )
