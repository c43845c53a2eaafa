"""Compare the cells of a mapped batch with cells that the model simulates in the same batch.

The posterior means of a mapped batch differ from those of the training cells even if the cells are of the same types:
library sizes and posterior variances differ, and the shifts of the encoder are not exact. A comparison with held-out
cells would therefore report most cells of a new technology. Simulated cells have latent positions like the training
cells, the effects of the mapped batch, and the library sizes of its cells. They show how strong the three signs of
`lacking_signs.py` are in cells with a counterpart if the effects of the batch are right.

The effects are never exactly right, so the signs are stronger in real cells. For each sign, the factor between real and
simulated cells is estimated from the real cells with the weakest signs, which probably have a counterpart. The signs of
simulated cells are multiplied by this factor (an empirical null distribution: Efron 2004,
doi:10.1198/016214504000000089). If most cells of a batch have no counterpart, the factor is too large, and few of these
cells are found.

Letters in array shapes: n cells, s simulated cells.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.errors import ModelError
from scvae_cli.model.bundle import Model
from scvae_cli.tools.map.lacking_signs import lacking_signs
from scvae_cli.tools.score.simulated_cells import simulate_cells

# Largest number of cells among which neighbors are found; a larger batch is divided at random into parts.
_MOST_CELLS = 1000
# Smallest number of simulated cells.
_LEAST_SIMULATED = 500
# Quantiles at which the signs of real and simulated cells are compared.
_WEAKEST = np.arange(0.05, 0.26, 0.05)


def mapped_counterpart_p(model: Model, counts: Counts, *, seed: int) -> np.ndarray:
    """Compute the share of simulated cells with the same signs as each cell, or stronger signs.

    Parameters
    ----------
    model
        Model with the mapped batch.
    counts
        Cells of the mapped batch, with the batch of each cell.

    Returns
    -------
    One share per cell, shape (n,), above 0 and at most 1.

    Raises
    ------
    ModelError
        If the model simulates only cells without counts.
    """
    assert counts.batch is not None, "the mapped batch"
    batch, random = model.batches.index(counts.batch[0]), np.random.default_rng(seed)
    parts = np.array_split(random.permutation(counts.n_cells), -(-counts.n_cells // _MOST_CELLS))
    signs_3n = np.empty((3, counts.n_cells))
    for part in parts:
        signs_3n[:, part] = lacking_signs(model, counts.cells(part), batch)
    # Simulated cells are as many as real cells in a part, so that neighbors are equally similar.
    size, rounds = len(parts[0]), []
    for _ in range(-(-_LEAST_SIMULATED // size)):
        drawn = _simulated(model, counts.cells(random.integers(counts.n_cells, size=size)), batch, random)
        rounds += [lacking_signs(model, drawn, batch)] if drawn.n_cells else []
    if not rounds:
        raise ModelError("no cell that the model simulates has counts", "train the model again")
    score_n, score_s = combined(signs_3n, np.concatenate(rounds, axis=1))
    n_stronger = len(score_s) - np.searchsorted(np.sort(score_s), score_n, side="left")
    result: np.ndarray = (1 + n_stronger) / (1 + len(score_s))
    return result


def combined(signs_3n: np.ndarray, simulated_3s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add up the signs of real and of simulated cells, in standard deviations of the simulated cells.

    Returns
    -------
    The sums of the real cells, shape (n,), and of the simulated cells, shape (s,).
    """
    least = np.finfo(float).tiny
    score_n, score_s = np.zeros(signs_3n.shape[1]), np.zeros(simulated_3s.shape[1])
    for sign_n, sign_s in zip(signs_3n, simulated_3s, strict=True):
        ratio = np.maximum(np.quantile(sign_n, _WEAKEST), least) / np.maximum(np.quantile(sign_s, _WEAKEST), least)
        expected_s = sign_s * max(1.0, float(np.exp(np.log(ratio).mean())))
        center, scale = expected_s.mean(), max(float(expected_s.std()), least)
        score_n += (sign_n - center) / scale
        score_s += (expected_s - center) / scale
    return score_n, score_s


def _simulated(model: Model, like: Counts, batch: int, random: np.random.Generator) -> Counts:
    """Simulate cells with the library sizes of `like`, without those that have no counts."""
    batch_s = np.full(like.n_cells, batch)
    matrix = simulate_cells(model, like.library_n, batch_s, seed=int(random.integers(2**31)))
    return replace(like, matrix=matrix).filled_cells()
