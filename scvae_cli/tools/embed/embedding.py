"""The latent position of each cell, and the uncertainty of the position.

Shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.latent.posteriors import posteriors, refined_posteriors
from scvae_cli.model.bundle import Model
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.embed.options import EmbedOptions
from scvae_cli.tools.embed.umap_leiden import UmapLeiden


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Means and variances of the cells' posteriors along the chosen latent axes, float32, shape (n, k).

    Refinement improves the encoder's posterior of each cell by gradient steps on the ELBO. `gain` is the mean increase
    of the ELBO, in nats per cell; None if the posteriors were not refined. `umap_leiden` is None if neither a UMAP nor
    clusters were asked for.
    """

    __repr__ = brief

    mean_nk: np.ndarray
    var_nk: np.ndarray
    gain: float | None = None
    umap_leiden: UmapLeiden | None = None

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the data to which the result is written."""
        return [
            Slot(group="obsm", key=names.embedding, value=self.mean_nk),
            Slot(group="obsm", key=names.latent_var, value=self.var_nk),
            *([] if self.umap_leiden is None else self.umap_leiden.slots(names)),
        ]


def embed(model: Model, counts: Counts, options: EmbedOptions, *, progress: Progress = silent) -> Embedding:
    """Compute the posteriors of n cells with the genes of the model.

    The batches of the cells are needed only for refinement, because the encoder does not use batches.

    Raises
    ------
    DataError
        If `options.refine` is above 0 and a cell's batch is unknown to the model.
    """
    gain = None
    if options.refine > 0:
        (mean_nk, var_nk), gain_n = refined_posteriors(model, counts, n_steps=options.refine, progress=progress)
        gain = float(gain_n.mean())
    else:
        mean_nk, var_nk = posteriors(model, counts, progress=progress)
    if options.axes == "canonical":
        mean_nk, var_nk = model.axes.position(mean_nk), model.axes.variance(var_nk)
    return Embedding(mean_nk=mean_nk.numpy(), var_nk=var_nk.numpy(), gain=gain)
