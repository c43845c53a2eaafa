"""Expected counts of a cell, given only its latent position, or given its latent position and its own counts.

A negative binomial distribution with mean μ is a Poisson distribution whose rate λ varies between cells around μ. E_q
is the mean over the posterior q(z|x) of a cell. E_q[μ] is the average expression of cells in the same state, and
describes the cell state. E_q[E[λ | x]] is an estimate of the rate λ of the individual cell. The estimate of the
individual rate also uses the cell's own counts, as SAVER does (Huang et al. 2018, doi:10.1038/s41592-018-0033-z).

In a zero-inflated model, the expected count is (1 − π)μ, where π is the probability of an inflated zero. If a gene is
silent in a cell type, the decoder describes the zeros partly by a small mean μ and partly by a large probability π. If
the probability of an inflated zero is close to 1, the counts hardly depend on the mean μ, which may then be far above
the counts. In zero-inflated models, the mean μ alone is therefore not an estimate of expression. The expected counts
(1 − π)μ of a cell are scaled such that their sum is the library size.

Letters in array shapes: n cells, g modeled genes, k latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from scvae_cli.data.counts import Counts
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.latent.decoding_batch import decoding_mixture
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
    n_samples: int = 0,
    library: str | float = OBSERVED,
    batch_as: str = "average",
    with_zero_inflation: bool | None = None,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Compute the expected counts of every cell, in blocks of cells. A block contains the expected counts of several
    cells, shape (number of cells, g), float32.

    Parameters
    ----------
    model, counts
        Model whose encoder and decoder are used, and counts of n cells in the genes of the model.
    estimate
        "state" for E_q[μ], or "cell" for E_q[E[λ | x]]. If the model has batches, "cell" needs the batches of the
        cells.
    n_samples
        Number of seeded posterior samples whose expected counts are averaged. If `n_samples` is 0, the posterior mean
        is decoded instead.
    library
        "observed" for the library size of each cell, "median" for the median library size of the training cells, or a
        number that is used as the library size of all cells.
    batch_as
        Batch in which cells are decoded: the name of a batch, "average" for the average over batches weighted by their
        proportions in the training cells, or "observed" for the batch of each cell. For a model with several
        covariates, KEY=VALUE[,KEY=VALUE…] fixes the named covariates, and expected counts are averaged over all other
        covariates.
    with_zero_inflation
        Whether the probability of an inflated zero lowers the expected counts. If None, expected counts are lowered if
        the model has zero inflation.

    Raises
    ------
    DataError
        If `batch_as` or `library` is invalid, or if the batch of a cell is needed and unknown to the model.
    ConfigError
        If a library size, zero inflation or the estimate "cell" is requested from a model of real-valued data.
    """
    if with_zero_inflation and not model.of_counts:
        raise ConfigError("a model of real-valued data has no zero inflation", "remove --with-zero-inflation")
    if estimate == CELL and not model.of_counts:
        raise ConfigError(
            "--estimate cell needs a model of counts, but this model describes real numbers", "remove --estimate cell"
        )
    of_cell = estimate == CELL
    inflated = model.of_counts if with_zero_inflation is None else with_zero_inflation
    own_batch_n = known_batches(model, counts) if of_cell or batch_as == OBSERVED else None
    table = cell_table(model, counts, batch_n=own_batch_n)
    mixture = None if batch_as == OBSERVED else decoding_mixture(model, batch_as)
    fixed_library = library_size(model, library)

    @torch.inference_mode()
    def blocks() -> Iterator[np.ndarray]:
        # With one generator and blocks of fixed size, the noise of a cell depends only on the seed and the cell's row.
        noise = torch.Generator().manual_seed(seed)
        for rows, cells in table.in_order(BLOCK_CELLS):
            posterior = model.vae.encode(cells)
            library_n = cells.library_n
            if fixed_library is not None:
                library_n = torch.full_like(library_n, fixed_library)
            batch = cells.batch_n if batch_as == OBSERVED else mixture
            points = [posterior.mean_nk]
            if n_samples:
                draws = (torch.randn(posterior.mean_nk.shape, generator=noise) for _ in range(n_samples))
                points = [posterior.sample(noise_nk.to(model.device)) for noise_nk in draws]
            mean_ng = torch.zeros(len(rows), model.vae.n_genes, device=model.device)
            for z_nk in points:
                lowered = inflated and not of_cell
                expected_ng = model.vae.expected_counts(z_nk, library_n, batch, with_zero_inflation=lowered)
                if of_cell:
                    # A cell's counts are compared with the expectation at the cell's own library size and batch.
                    output = model.vae.decode(z_nk, cells.batch_n)
                    assert isinstance(output, CountOutput), "models of real-valued data were refused before"
                    expected_ng = expected_ng * output.own_factor_ng(cells, with_zero_inflation=inflated)
                mean_ng += expected_ng / len(points)
            yield mean_ng.cpu().numpy()

    # The generator is an inner function, so that errors are raised when `expected_counts` is called, and not at the
    # first block.
    return blocks()


def library_size(model: Model, library: str | float, *, usual: str = "observed") -> float | None:
    """Return the library size at which cells are decoded, or None for the observed library size of each cell.

    `library` is "observed", "median" or a number of counts. `usual` is the default of the calling function. A model of
    real-valued data has no library size, so `library` must equal `usual`.

    Raises
    ------
    ConfigError
        If a library size is requested from a model of real-valued data.
    DataError
        If `library` is not "observed", "median" or a number above 0.
    """
    if not model.of_counts and library != usual:
        raise ConfigError(
            f"--library is {library!r}, but a model of real-valued data has no library size", "remove --library"
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
        raise DataError(
            f"--library is {library!r}, which is not a library size",
            "use observed, median, or a number of counts above 0",
        )
    return size
