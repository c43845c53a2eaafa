"""The cell at the center of the latent space: z = 0, decoded and compared with the average training cell.

Letters in array shapes: k latent dimensions, g genes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.latent.decoding_batch import AVERAGE, decoding_mixture, fixed_covariates, one_batch
from scvae_cli.latent.expected_counts import library_size
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.sample.batches import free
from scvae_cli.tools.sample.options import SampleOptions
from scvae_cli.tools.sample.result import covariate_slots
from scvae_cli.tools.sample.sampling import calibrated_for_samples, reference_draws

_BLOCK = 4096
_MAX_CELLS = 100_000


@dataclass(frozen=True, kw_only=True)
class Prototype:
    """The prototype: latent position z = 0, decoded as one cell.

    Parameters
    ----------
    mean_g, average_g, change_g
        Expected counts of the prototype, zero inflation included; counts of the average training cell at the same
        library size; and the difference between these two cells in Fisher–Rao coordinates. One unit of the difference
        is the standard deviation of a single count around its expected value. In a model of real-valued data, one unit
        is the standard deviation of the noise.
    z_k, off_manifold
        Latent position (all zero), and off-manifold score: the share of the held-out cells' posterior samples that lie
        where the density is higher.
    library
        Library size at which z = 0 was decoded; None for a model of real-valued data.
    batch_as, covariates
        `batch_as` is the batch in which z = 0 was decoded, or the fixed covariates; it is None for a model without
        batches. `covariates` maps each batch key and each continuous key of the model to the value with which z = 0 was
        decoded, shape (1,). The batch is "average" if the decoded counts are averaged over the batches.
    """

    mean_g: np.ndarray
    average_g: np.ndarray
    change_g: np.ndarray
    z_k: np.ndarray
    library: float | None
    off_manifold: float
    batch_as: str | None
    covariates: Mapping[str, np.ndarray]

    @property
    def blocks(self) -> Iterator[np.ndarray]:
        """The expected counts as one block with a single row."""
        return iter([self.mean_g[None]])

    def cell_names(self) -> np.ndarray:
        """Return the name of the prototype, shape (1,)."""
        return np.asarray(["prototype"], dtype=object)

    def top_genes(self, n: int) -> np.ndarray:
        """Return the indices of the n genes that differ most from the average cell, largest difference first."""
        return np.argsort(-np.abs(self.change_g), kind="stable")[:n]

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the output file that hold the result."""
        slots = [Slot(group="obs", key=names.off_manifold, value=np.asarray([self.off_manifold], dtype=np.float32))]
        if self.library is not None:
            slots.append(Slot(group="obs", key=names.library, value=np.asarray([self.library])))
        slots += covariate_slots(self.covariates)
        return [*slots, Slot(group="obsm", key=names.latent, value=self.z_k[None])]


@torch.inference_mode()
def prototype(model: Model, counts: Counts, options: SampleOptions, *, progress: Progress = silent) -> Prototype:
    """Decode the latent position z = 0.

    Parameters
    ----------
    model, counts
        The model that decodes, and real cells with the genes of the model. Cells held out of training are left out of
        the average training cell.
    options
        `library` is "median" or a number. `batch_as` is "average" or the name of a batch. `seed` is the seed of the
        posterior samples from which the off-manifold score is computed.

    Raises
    ------
    DataError
        If the batch is unknown.
    ConfigError
        If a library size is requested from a model of real-valued data.
    """
    size = library_size(model, options.library_or_default, usual="median")
    assert size is not None, "SampleOptions.check refuses an observed library size"
    z_1k = torch.zeros(1, model.density.mean_ck.shape[1])
    batch_as = options.batch_as or AVERAGE
    mixture = decoding_mixture(model, batch_as)
    library_1 = torch.full((1,), size, device=model.device)
    mean_g = model.vae.expected_counts(z_1k.to(model.device), library_1, mixture, with_zero_inflation=True)[0].cpu()
    average_g = torch.as_tensor(_average(model, counts) * size)
    head = model.vae.decoder.head
    change_g = head.isometric(mean_g.double()) - head.isometric(average_g.double())
    z_ck, _ = reference_draws(model, counts, seed=options.seed, progress=progress)
    density = calibrated_for_samples(model.density.to(torch.device("cpu")), z_ck)
    return Prototype(
        mean_g=mean_g.numpy(),
        average_g=average_g.float().numpy(),
        change_g=change_g.numpy(),
        z_k=np.zeros(z_1k.shape[1], dtype=np.float32),
        library=size if model.of_counts else None,
        off_manifold=float(density.off_manifold(z_1k)),
        batch_as=_named(model, batch_as),
        covariates=_columns(model, batch_as),
    )


def _named(model: Model, batch_as: str) -> str | None:
    """Return the name of the batch to decode in; None for a model without batches."""
    if not model.conditioned or batch_as == AVERAGE:
        return AVERAGE if model.conditioned else None
    if model.vae.design is None:
        return one_batch(model, batch_as, usual=AVERAGE)
    return fixed_covariates(model, batch_as, usual=AVERAGE).name


def _columns(model: Model, batch_as: str) -> dict[str, np.ndarray]:
    """Return the columns of obs that hold the batch or the covariates of the prototype."""
    design, named = model.vae.design, _named(model, batch_as)
    if design is None:
        return {key: np.asarray([named], dtype=object) for key in model.config.data.batch_keys if model.batches}
    fixed = free(design) if named == AVERAGE else fixed_covariates(model, batch_as, usual=AVERAGE)
    columns = {
        key: np.asarray([AVERAGE if category is None else category], dtype=object)
        for key, category in zip(design.batch_keys, fixed.categories, strict=True)
    }
    numbers = zip(design.continuous, fixed.values, strict=True)
    return columns | {one.key: np.asarray([one.mean if value is None else value]) for one, value in numbers}


def _average(model: Model, counts: Counts) -> np.ndarray:
    """Compute each gene's share of the counts of a cell, averaged over the training cells, shape (g,).

    For a model of real-valued data, the result is the mean value of each gene.
    """
    rows = np.flatnonzero(~model.held_out(counts.cell_names))
    rows = even(rows if len(rows) else np.arange(counts.n_cells), _MAX_CELLS)
    library_n = counts.library_n
    total_g = np.zeros(counts.n_genes)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        total_g += (1 / library_n[block]) @ counts.matrix[block]
    share_g: np.ndarray = total_g / len(rows)
    return share_g
