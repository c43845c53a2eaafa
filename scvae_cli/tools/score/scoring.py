"""The likelihood of each cell under the model, and how well the cell fits the model compared with simulated cells.

Letters in array shapes: n cells, k latent dimensions, s samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from scvae_cli.data.counts import Counts
from scvae_cli.data.minibatches import CellTable, Minibatch
from scvae_cli.errors import ModelError
from scvae_cli.latent.posteriors import cell_table, known_batches
from scvae_cli.model.bundle import Model
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Advance, Progress, silent
from scvae_cli.tools.score.anomalies import Calibration, CellFit, Covariates, adjusted
from scvae_cli.tools.score.options import ScoreOptions
from scvae_cli.tools.score.result import BOUNDS, Scores
from scvae_cli.tools.score.simulated_cells import simulate_cells

# Decoding takes most of the time. Decoding is fastest when a block of cells fits into the processor's cache.
_BLOCK_CELLS = 128
# Number of posterior samples from which the fit of a cell is estimated for the comparison with simulated cells. More
# samples would change the fit only little compared with the spread between cells.
_FIT_SAMPLES = 25


@torch.inference_mode()
def score(model: Model, counts: Counts, options: ScoreOptions, *, progress: Progress = silent) -> Scores:
    """Compute bounds on the log-likelihood of each cell, and p-values for cells that fit the model badly.

    The importance-weighted bound from S posterior samples z_s of a cell is

        log p̂(x) = logsumexp_s[log p(x|z_s) + log p(z_s) − log q(z_s|x)] − log S.

    The density p(z) is the prior for `iwae`, and the latent density of the training cells for `iwae_density`.

    The fit of a cell has two parts. E_q[log p(x|z)] measures how well the decoder explains the counts of the cell.
    −KL(q ‖ density) measures how common the latent position of the cell is. `scvae_cli.tools.score.anomalies` compares
    the fit of each cell with the fit of simulated cells.

    Parameters
    ----------
    model, counts
        Model, and n cells with the model's genes, and with batches if the model has them.
    options
        The number S of posterior samples is `options.n_samples`. Equally many cells are simulated in every batch. The
        library sizes of the simulated cells are drawn from the cells of the same batch.

    Raises
    ------
    DataError
        If a cell's batch is unknown to the model, because the likelihood of the cell is then not defined.
    """
    table = cell_table(model, counts, batch_n=known_batches(model, counts))
    n_samples, n_fit = options.n_samples, min(options.n_samples, _FIT_SAMPLES)
    with progress("Scoring", options.n_simulated * n_fit + table.n_cells * n_samples) as advance:
        simulated = _simulated_fit(model, table, options.n_simulated, n_fit, options.seed, advance)
        design = model.vae.design
        calibration = Calibration(simulated, len(model.batches) if design is None else 1 + design.n_effects)
        found = _evaluated(model, table, n_samples, options.seed, advance)
    # Cells are scored in blocks, because the features of all cells would take much memory.
    blocks = (slice(start, start + _BLOCK_CELLS) for start in range(0, table.n_cells, _BLOCK_CELLS))
    score_n = np.concatenate([calibration.score(found.fit(table, rows)) for rows in blocks])
    p_n = calibration.p_value(score_n)
    return Scores(
        **{name: getattr(found, name) for name in BOUNDS},
        anomaly_score=score_n,
        anomaly_p=p_n,
        anomaly_p_adjusted=adjusted(p_n),
        heldout=model.held_out(counts.cell_names),
        library=table.library_n,
        simulated_library=simulated.covariates.library_n,
        simulated_score=calibration.score_n,
    )


class Bounds(NamedTuple):
    """Bounds on the log-likelihood of cells (see `Scores`), fits to the model (see `CellFit`), and posterior means.

    Bounds and fits are in nats and have shape (n,); the posterior means have shape (n, k).
    """

    elbo: np.ndarray
    iwae: np.ndarray
    iwae_density: np.ndarray
    reconstruction: np.ndarray
    kl: np.ndarray
    log_likelihood: np.ndarray
    negative_kl: np.ndarray
    mean_nk: np.ndarray

    def fit(self, table: CellTable, rows: slice) -> CellFit:
        """Return the fit of the cells to the model. `rows` are the rows of the cells in `table`."""
        batch_n = None if table.batch_n is None else table.batch_n[rows]
        covariates = Covariates(table.library_n[rows], batch_n, self.mean_nk[rows])
        return CellFit(self.log_likelihood[rows], self.negative_kl[rows], covariates)


@torch.inference_mode()
def bounds(model: Model, counts: Counts, *, n_samples: int, seed: int = 0, progress: Progress = silent) -> Bounds:
    """Compute the same bounds as `score`, and the fit of each cell, but no anomaly scores.

    Two models with the same number of latent dimensions are evaluated with the same random numbers.

    Raises
    ------
    DataError
        If a cell's batch is unknown to the model.
    """
    table = cell_table(model, counts, batch_n=known_batches(model, counts))
    with progress("Scoring", table.n_cells * n_samples) as advance:
        return _evaluated(model, table, n_samples, seed, advance)


def _evaluated(model: Model, table: CellTable, n_samples: int, seed: int, advance: Advance) -> Bounds:
    noise = torch.Generator().manual_seed(seed)
    blocks = []
    for _, cells in table.in_order(_BLOCK_CELLS):
        blocks.append(_evaluate(model, cells, n_samples, noise))
        advance(cells.n_cells * n_samples)
    return Bounds(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _evaluate(model: Model, cells: Minibatch, n_samples: int, noise: torch.Generator) -> Bounds:
    n_fit = min(n_samples, _FIT_SAMPLES)
    posterior: Posterior = model.vae.encode(cells)
    log_weight_ns, density_ratio_ns = torch.empty(2, cells.n_cells, n_samples, dtype=torch.float64)
    density = model.density.to(model.device)
    reconstruction_n, fit_n = torch.zeros(2, cells.n_cells, dtype=torch.float64)
    kl_n = posterior.kl_nk().double().sum(1).cpu()
    # −KL(q ‖ density): the KL to the prior is exact, and only the log ratio of density and prior is sampled.
    negative_kl_n = -kl_n
    for s in range(n_samples):
        noise_nk = torch.randn(posterior.mean_nk.shape, generator=noise).to(model.device)
        z_nk = posterior.sample(noise_nk)
        log_p_n = -model.vae.decode(z_nk, cells.batch_n).nll_n(cells).cpu()
        # log p(z) − log q(z|x); the constants of the two Gaussians cancel.
        ratio_nk = 0.5 * (noise_nk.square() + posterior.var_nk.log() - z_nk.square())
        log_weight_ns[:, s] = log_p_n + ratio_nk.double().sum(1).cpu()
        log_prior_n = -0.5 * (z_nk.double().square() + math.log(2 * math.pi)).sum(1)
        density_ratio_ns[:, s] = (density.log_prob(z_nk).double() - log_prior_n).cpu()
        reconstruction_n += log_p_n / n_samples
        if s < n_fit:
            fit_n += log_p_n / n_fit
            negative_kl_n += density_ratio_ns[:, s] / n_fit
    return Bounds(
        elbo=(reconstruction_n - kl_n).numpy(),
        iwae=_log_mean(log_weight_ns),
        iwae_density=_log_mean(log_weight_ns + density_ratio_ns),
        reconstruction=reconstruction_n.numpy(),
        kl=kl_n.numpy(),
        log_likelihood=fit_n.numpy(),
        negative_kl=negative_kl_n.numpy(),
        mean_nk=posterior.mean_nk.cpu().numpy(),
    )


def _log_mean(log_weight_ns: torch.Tensor) -> np.ndarray:
    """Compute the logarithm of the mean weight over the samples, shape (n,); the weights are given as logarithms."""
    result: np.ndarray = torch.logsumexp(log_weight_ns, dim=1).numpy() - math.log(log_weight_ns.shape[1])
    return result


def _simulated_fit(
    model: Model, table: CellTable, n_simulated: int, n_fit: int, seed: int, advance: Advance
) -> CellFit:
    """Simulate cells with the library sizes and batches of real cells, and compute the fit of the simulated cells."""
    of_choice, of_cells, of_samples = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    stratum_n = _strata(model, table.batch_n)
    chosen_n = _evenly_over_batches(stratum_n, table.n_cells, n_simulated, np.random.default_rng(of_choice))
    batch_n = None if table.batch_n is None else table.batch_n[chosen_n]
    matrix = simulate_cells(model, table.library_n[chosen_n], batch_n, seed=of_cells)
    filled = np.flatnonzero(np.diff(matrix.indptr))
    if len(filled) == 0:
        raise ModelError("no cell that the model simulates has counts", "train the model again")
    drawn = CellTable(matrix, batch_n, model.device, filled, real=not model.of_counts)
    return _evaluated(model, drawn, n_fit, of_samples, advance).fit(drawn, slice(None))


def _strata(model: Model, batch_n: np.ndarray | None) -> np.ndarray | None:
    """Return the index of each cell's batch; None for a model without batches.

    If the model has several batch keys, each combination of their categories is a batch.
    """
    if batch_n is None or batch_n.ndim == 1:
        return batch_n
    assert model.vae.design is not None, "batch_n is a matrix only for a model with a design"
    n_categories = sum(map(len, model.vae.design.categories))
    if not n_categories:
        return None
    index_n: np.ndarray = np.unique(batch_n[:, :n_categories], axis=0, return_inverse=True)[1].ravel()
    return index_n


def _evenly_over_batches(
    batch_n: np.ndarray | None, n_cells: int, n_simulated: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw indices of cells at random, equally many from each batch, so that small batches are also calibrated."""
    if batch_n is None:
        return rng.integers(n_cells, size=n_simulated)
    of_batch = [np.flatnonzero(batch_n == b) for b in np.unique(batch_n)]
    parts = np.array_split(np.arange(n_simulated), len(of_batch))
    return np.concatenate([rng.choice(cells, len(part)) for cells, part in zip(of_batch, parts, strict=True)])
