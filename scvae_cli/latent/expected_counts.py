"""What a cell would be expected to show: by its place in latent space, or by that and its own counts.

A negative binomial is a Poisson whose rate varies from cell to cell around μ. E_q[μ] is what cells in a cell's state
show on average; E_q[E[λ | x]] is the rate of the cell itself, for which its own count is a second witness (as in SAVER,
Huang et al. 2018, doi:10.1038/s41592-018-0033-z). The first says more about the state, the second more about the cell.

Shapes: n cells, g modelled genes, k latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.data.labels import matching
from scvae_cli.data.minibatches import Minibatch
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.latent.posteriors import BLOCK_CELLS, cell_table, known_batches
from scvae_cli.model.bundle import Model
from scvae_cli.model.network import CountOutput

STATE, CELL = "state", "cell"
OBSERVED = "observed"


def expected_counts(
    model: Model,
    counts: Counts,
    *,
    estimate: str = STATE,
    n_samples: int = 10,
    library: str | float = OBSERVED,
    batch_as: str = "average",
    with_zero_inflation: bool = False,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Expected counts of every cell, in blocks of cells, each of shape (cells, g), float32.

    Parameters
    ----------
    model, counts
        What decodes, and n cells in its genes.
    estimate
        "state" for E_q[μ], "cell" for E_q[E[λ | x]], which needs the cells' batches if the model has batches.
    n_samples
        Seeded posterior samples averaged; 0 decodes the posterior mean instead.
    library
        "observed" keeps each cell's depth, "median" takes the training median, a number is a depth for all.
    batch_as
        Batch to decode in: a category, "average" over all by their share of the training cells, or "observed" for
        each cell's own.
    with_zero_inflation
        Lower the expectation by the probability of a technical zero.
    seed
        Of the posterior samples.

    Raises
    ------
    DataError
        For an unknown batch or library size, or cells of an unknown batch where theirs is needed.
    ConfigError
        For a depth, zero inflation or a cell's own rate asked of a model of real numbers.
    """
    if with_zero_inflation and not model.of_counts:
        raise ConfigError("a model of real numbers has no zero inflation", "leave out --with-zero-inflation")
    if estimate == CELL and not model.of_counts:
        raise ConfigError("a model of real numbers has no rates of single cells", "leave out --estimate cell")
    own_batch_n = known_batches(model, counts) if estimate == CELL or batch_as == OBSERVED else None
    table = cell_table(model, counts, batch_n=own_batch_n)
    batch = None if batch_as == OBSERVED else batch_index(model, batch_as)
    fixed_library = library_size(model, library)

    def blocks() -> Iterator[np.ndarray]:
        # One generator over blocks of fixed size: a cell's noise depends on the seed and its row alone.
        noise = torch.Generator().manual_seed(seed)
        for rows, cells in table.in_order(BLOCK_CELLS):
            with torch.inference_mode():
                posterior = model.vae.encode(cells)
                library_n = cells.library_n
                if fixed_library is not None:
                    library_n = torch.full_like(library_n, fixed_library)
                batch_n = None if batch is None else torch.full((len(rows),), batch, device=model.device)
                if batch_as == OBSERVED:
                    batch_n = cells.batch_n
                points = [posterior.mean_nk]
                if n_samples:
                    draws = (torch.randn(posterior.mean_nk.shape, generator=noise) for _ in range(n_samples))
                    points = [posterior.sample(noise_nk.to(model.device)) for noise_nk in draws]
                mean_ng = torch.zeros(len(rows), model.vae.n_genes, device=model.device)
                for z_nk in points:
                    expected_ng = _expected(
                        model, z_nk, library_n, batch_n, cells, of_cell=estimate == CELL, technical=with_zero_inflation
                    )
                    mean_ng += expected_ng / len(points)
                block = mean_ng.cpu().numpy()
            yield block

    # What is refused is refused here, before the first block is asked for.
    return blocks()


def batch_index(model: Model, batch_as: str) -> int | None:
    """Index of the batch to decode in; None for the average over batches (or a model without).

    Raises
    ------
    DataError
        For a batch the model does not know.
    """
    if batch_as == "average":
        return None
    batch = matching(batch_as, model.batches)
    if batch is None:
        known = ", ".join(model.batches) or "none: it was trained without --batch-key"
        raise DataError(f"the model knows no batch {batch_as!r}", f"--batch-as takes average or one of: {known}")
    return model.batches.index(batch)


def library_size(model: Model, library: str | float, *, usual: str = "observed") -> float | None:
    """The depth to decode at; None for each cell's own.

    Parameters
    ----------
    usual
        What is decoded at when nothing is asked for; the only answer for a model of real numbers.

    Raises
    ------
    ConfigError
        For a depth asked of a model of real numbers.
    DataError
        For anything but "observed", "median" or a number above 0.
    """
    if not model.of_counts and library != usual:
        raise ConfigError(
            f"--library is {library!r}, but a model of real numbers knows no depth", "leave out --library"
        )
    if library == "observed":
        return None
    if library == "median":
        return float(model.vae.reference_library)
    try:
        size = float(library)
    except ValueError:
        size = float("nan")
    if not (np.isfinite(size) and size > 0):
        raise DataError(f"--library is {library!r}", "it takes observed, median, or a number of counts above 0")
    return size


def _expected(
    model: Model,
    z_nk: Tensor,
    library_n: Tensor,
    batch_n: Tensor | None,
    cells: Minibatch,
    *,
    of_cell: bool,
    technical: bool,
) -> Tensor:
    """Expected counts of some cells at given positions, depths and batches, shape (n, g)."""
    mean_ng = model.vae.expected_counts(z_nk, library_n, batch_n, with_zero_inflation=technical and not of_cell)
    if not of_cell:
        return mean_ng
    # A count is weighed against what its own depth and batch let expect.
    output = model.vae.decode(z_nk, cells.batch_n)
    assert isinstance(output, CountOutput), "refused before"
    return mean_ng * output.own_factor_ng(cells, with_zero_inflation=technical)
