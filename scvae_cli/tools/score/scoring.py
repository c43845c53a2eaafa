"""How likely each cell is under the model, and how rare a fit as bad would be among cells of the model itself.

Shapes: n cells, k latent dimensions, s samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from scvae_cli.data.counts import Counts
from scvae_cli.data.minibatches import CellTable, Minibatch
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.latent.posteriors import cell_table, known_batches
from scvae_cli.model.bundle import Model
from scvae_cli.model.posterior import Posterior
from scvae_cli.tools.score.anomalies import Calibration, CellFit, Circumstances, adjusted
from scvae_cli.tools.score.simulated_cells import simulate_cells

# Decoding dominates, and its blocks are fastest when they stay in the processor's cache.
_BLOCK_CELLS = 128
# Samples that tell how well a cell is explained when it is compared with simulated cells: what more would add is little
# beside the spread between cells, and simulated cells need no more than these.
_FIT_SAMPLES = 25
N_SIMULATED = 4000
# Held-out real cells with p-values up to this are counted: so large a share is expected if the model were the truth.
USUAL_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the model says of every cell: bounds on log p(x) and their parts, nats, and whether it is unlike the model.

    Parameters
    ----------
    elbo
        Evidence lower bound: the expected log-likelihood over the samples minus the exact KL; shape (n,).
    iwae
        Importance-weighted bound (Burda et al. 2016), which is tighter; shape (n,).
    iwae_density
        The same bound where cells lie as the model's density has it, not as the prior does: log p(x) of cells drawn as
        `sample` draws them; shape (n,).
    reconstruction
        E_q[log p(x|z)] over the samples; shape (n,).
    kl
        KL(q(z|x) ‖ N(0, I)), exact; shape (n,).
    anomaly_score
        How many standard deviations worse a cell is than expected, in how its counts are explained (by cells of its
        depth, batch and place) and how usual its place is, the two together; shape (n,).
    anomaly_p
        Share of simulated cells with such a score or a higher one; shape (n,).
    anomaly_p_adjusted
        The same after Benjamini and Hochberg over the n cells.
    heldout
        Mask of the cells that the model's training did not learn from, by their names; shape (n,).
    library
        Counts of each cell in the modelled genes; of real numbers 1; shape (n,).
    simulated_library, simulated_score
        The same of the simulated cells, and their anomaly scores.
    """

    elbo: np.ndarray
    iwae: np.ndarray
    iwae_density: np.ndarray
    reconstruction: np.ndarray
    kl: np.ndarray
    anomaly_score: np.ndarray
    anomaly_p: np.ndarray
    anomaly_p_adjusted: np.ndarray
    heldout: np.ndarray
    library: np.ndarray
    simulated_library: np.ndarray
    simulated_score: np.ndarray

    def anomalies(self, fdr: float) -> np.ndarray:
        """Mask of the cells called anomalous at a false discovery rate, shape (n,)."""
        called: np.ndarray = self.anomaly_p_adjusted <= fdr
        return called

    @property
    def heldout_below_05(self) -> float | None:
        """Share of held-out cells with p ≤ 0.05, which real cells need not keep to; None where none is in the data."""
        if not self.heldout.any():
            return None
        return float((self.anomaly_p[self.heldout] <= USUAL_SHARE).mean())

    def slots(self, names: SlotNames) -> list[Slot]:
        """Where the result goes."""
        columns = {
            names.elbo: self.elbo,
            names.iwae: self.iwae,
            names.iwae_density: self.iwae_density,
            names.reconstruction: self.reconstruction,
            names.kl: self.kl,
            names.anomaly_score: self.anomaly_score,
            names.anomaly_p: self.anomaly_p,
            names.anomaly_p_adjusted: self.anomaly_p_adjusted,
        }
        return [Slot(group="obs", key=key, value=value) for key, value in columns.items()]


@torch.inference_mode()
def score(
    model: Model, counts: Counts, *, n_samples: int = 100, n_simulated: int = N_SIMULATED, seed: int = 0
) -> Scores:
    """Score cells.

    log p̂(x) = logsumexp_s[log p(x|z_s) + log p(z_s) − log q(z_s|x)] − log S, with p(z) the prior or the density.

    How badly a cell fits is told by E_q[log p(x|z)], how well the decoder explains its counts, and by
    −KL(q ‖ density), how usual its place is. `scvae_cli.tools.score.anomalies` compares both with simulated cells.

    Parameters
    ----------
    model
        Judges.
    counts
        n cells in the model's genes, with the batches of a model that has them.
    n_samples
        S.
    n_simulated
        Cells drawn from the model, as many in each batch, at depths of that batch's cells.
    seed
        Of the samples and the simulated cells.

    Raises
    ------
    DataError
        For cells of a batch the model does not know: their likelihood is not defined.
    """
    batch_n = known_batches(model, counts)
    table = cell_table(model, counts, batch_n=batch_n)
    n_fit = min(n_samples, _FIT_SAMPLES)
    simulated = _simulated_fit(model, table, n_simulated, n_fit, seed)
    calibration = Calibration(simulated, len(model.batches))
    noise = torch.Generator().manual_seed(seed)
    bounds_and_parts = ("elbo", "iwae", "iwae_density", "reconstruction", "kl")
    parts = {name: np.empty(table.n_cells) for name in (*bounds_and_parts, "anomaly_score")}
    for rows, cells in table.in_order(_BLOCK_CELLS):
        judged = _judge(model, cells, n_samples, n_fit, noise)
        for name in bounds_and_parts:
            parts[name][rows] = getattr(judged, name)
        fit = judged.fit(table.library_n[rows], None if batch_n is None else batch_n[rows])
        parts["anomaly_score"][rows] = calibration.score(fit)
    p_n = calibration.p_value(parts["anomaly_score"])
    return Scores(
        **parts,
        anomaly_p=p_n,
        anomaly_p_adjusted=adjusted(p_n),
        heldout=model.held_out(counts.cell_names),
        library=table.library_n,
        simulated_library=simulated.circumstances.library_n,
        simulated_score=calibration.score_n,
    )


class Bounds(NamedTuple):
    """Of n cells, nats, each of shape (n,): E_q[log p(x|z)], the exact KL, and the importance-weighted bound."""

    reconstruction: np.ndarray
    kl: np.ndarray
    iwae: np.ndarray


@torch.inference_mode()
def bounds(model: Model, counts: Counts, *, n_samples: int, seed: int = 0) -> Bounds:
    """The bounds of `score` alone, without asking what is usual.

    Two models with as many latent dimensions meet the same noise.

    Raises
    ------
    DataError
        For cells of a batch the model does not know.
    """
    table = cell_table(model, counts, batch_n=known_batches(model, counts))
    noise = torch.Generator().manual_seed(seed)
    judged = [_judge(model, cells, n_samples, 0, noise) for _, cells in table.in_order(_BLOCK_CELLS)]
    return Bounds(*(np.concatenate([getattr(part, name) for part in judged]) for name in Bounds._fields))


class _Judged(NamedTuple):
    """Of some cells, each of shape (n,), and their posterior means (n, k)."""

    elbo: np.ndarray
    iwae: np.ndarray
    iwae_density: np.ndarray
    reconstruction: np.ndarray
    kl: np.ndarray
    explained: np.ndarray
    usual: np.ndarray
    mean_nk: np.ndarray

    def fit(self, library_n: np.ndarray, batch_n: np.ndarray | None) -> CellFit:
        """What anomalies are told by, for these cells at their depths and in their batches."""
        return CellFit(self.explained, self.usual, Circumstances(library_n, batch_n, self.mean_nk))


def _judge(model: Model, cells: Minibatch, n_samples: int, n_fit: int, noise: torch.Generator) -> _Judged:
    posterior: Posterior = model.vae.encode(cells)
    log_weight_ns, density_ratio_ns = torch.empty(2, cells.n_cells, n_samples, dtype=torch.float64)
    density = model.density.to(model.device)
    log_likelihood_n, explained_n = torch.zeros(2, cells.n_cells, dtype=torch.float64)
    kl_n = posterior.kl_nk().double().sum(1).cpu()
    # −KL(q ‖ density): against the prior it is exact, and only what the density says beyond the prior is sampled.
    usual_n = -kl_n
    for s in range(n_samples):
        noise_nk = torch.randn(posterior.mean_nk.shape, generator=noise).to(model.device)
        z_nk = posterior.sample(noise_nk)
        log_p_n = -model.vae.decode(z_nk, cells.batch_n).nll_n(cells).cpu()
        # log p(z) − log q(z|x); the constants of the two Gaussians cancel.
        ratio_nk = 0.5 * (noise_nk.square() + posterior.var_nk.log() - z_nk.square())
        log_weight_ns[:, s] = log_p_n + ratio_nk.double().sum(1).cpu()
        log_prior_n = -0.5 * (z_nk.double().square() + math.log(2 * math.pi)).sum(1)
        density_ratio_ns[:, s] = (density.log_prob(z_nk).double() - log_prior_n).cpu()
        log_likelihood_n += log_p_n / n_samples
        if s < n_fit:
            explained_n += log_p_n / n_fit
            usual_n += density_ratio_ns[:, s] / n_fit
    return _Judged(
        elbo=(log_likelihood_n - kl_n).numpy(),
        iwae=_log_mean(log_weight_ns),
        iwae_density=_log_mean(log_weight_ns + density_ratio_ns),
        reconstruction=log_likelihood_n.numpy(),
        kl=kl_n.numpy(),
        explained=explained_n.numpy(),
        usual=usual_n.numpy(),
        mean_nk=posterior.mean_nk.cpu().numpy(),
    )


def _log_mean(log_weight_ns: torch.Tensor) -> np.ndarray:
    """Log of the mean over the samples of weights given by their logs, shape (n,)."""
    result: np.ndarray = torch.logsumexp(log_weight_ns, dim=1).numpy() - math.log(log_weight_ns.shape[1])
    return result


def _simulated_fit(model: Model, table: CellTable, n_simulated: int, n_fit: int, seed: int) -> CellFit:
    """The fit of cells drawn from the model at the depths and in the batches of a table's cells."""
    drawing, of_cells, of_samples = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    like_n = _evenly_over_batches(table.batch_n, table.n_cells, n_simulated, np.random.default_rng(drawing))
    batch_n = None if table.batch_n is None else table.batch_n[like_n]
    matrix = simulate_cells(model, table.library_n[like_n], batch_n, seed=of_cells)
    filled = np.diff(matrix.indptr) > 0
    batch_n = None if batch_n is None else batch_n[filled]
    drawn = CellTable(matrix[filled], batch_n, model.device, real=not model.of_counts)
    noise = torch.Generator().manual_seed(of_samples)
    judged = [_judge(model, cells, n_fit, n_fit, noise) for _, cells in drawn.in_order(_BLOCK_CELLS)]
    explained_n, usual_n, mean_nk = (
        np.concatenate([getattr(part, name) for part in judged]) for name in ("explained", "usual", "mean_nk")
    )
    return CellFit(explained_n, usual_n, Circumstances(drawn.library_n, batch_n, mean_nk))


def _evenly_over_batches(
    batch_n: np.ndarray | None, n_cells: int, n_simulated: int, rng: np.random.Generator
) -> np.ndarray:
    """Indices of cells drawn at random, as many of each batch: few cells of a batch are no reason to know it less."""
    if batch_n is None:
        return rng.integers(n_cells, size=n_simulated)
    of_batch = [np.flatnonzero(batch_n == b) for b in np.unique(batch_n)]
    parts = np.array_split(np.arange(n_simulated), len(of_batch))
    return np.concatenate([rng.choice(cells, len(part)) for cells, part in zip(of_batch, parts, strict=True)])
