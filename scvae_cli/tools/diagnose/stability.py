"""Agreement of trainings that differ only in their random seeds.

Two equally good latent spaces may differ by a translation, rotation, reflection and scale. Every pair of embeddings of
the same cells is therefore aligned by Procrustes analysis, and the variance that still differs after the alignment is
reported. The fraction of nearest neighbors that two embeddings share shows how stable clusterings and two-dimensional
layouts would be. For comparison, the genes are drawn with replacement (bootstrapped) several times, and the fraction of
shared neighbors is computed for pairs of PCAs of the drawn genes.

Letters in array shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.evaluation.log_pca import log_normalized, shared_by_bootstrap
from scvae_cli.evaluation.neighbors import nearest_neighbors, shared
from scvae_cli.evaluation.retraining import Train, requested_config, train_silently
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.tools.diagnose.judged_embedding import embedding_of

MAX_CELLS = 5000
# Fraction of the first axis's variance of expression that a canonical axis must explain to be compared.
_STRONG = 0.01


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Agreement of trainings, as means over all pairs of trainings.

    Parameters
    ----------
    n_trainings
        Number of trainings, the diagnosed model included.
    procrustes, procrustes_by_chance
        Fraction of the variance, 0 to 1, that differs between two embeddings after the best alignment; and the same
        fraction if the cells of one embedding are in random order.
    neighbors_shared
        Fraction of a cell's 15 nearest neighbors in one training that are also among its 15 nearest neighbors in
        another training.
    pca_neighbors_shared
        Fraction of nearest neighbors that PCAs of bootstrapped genes share; there are as many PCAs as trainings.
    axis_correlation
        Mean absolute correlation between canonical axes of the same number in two trainings. Canonical axes are ordered
        by the variance of expression that they explain. Only axes that explain more than a hundredth of the variance of
        the first axis are compared.
    heldout_elbo
        Mean ELBO of the held-out cells of each training, nats. Each training holds out different cells.
    """

    n_trainings: int
    procrustes: float
    procrustes_by_chance: float
    neighbors_shared: float
    pca_neighbors_shared: float
    axis_correlation: float
    heldout_elbo: tuple[float, ...]

    def values(self) -> dict[str, Any]:
        """Return the measures of agreement in a dictionary."""
        return {
            "n_trainings": self.n_trainings,
            "procrustes": self.procrustes,
            "procrustes_by_chance": self.procrustes_by_chance,
            "neighbours_shared": self.neighbors_shared,
            "pca_neighbors_shared": self.pca_neighbors_shared,
            "axis_correlation": self.axis_correlation,
            "heldout_elbo": np.asarray(self.heldout_elbo),
        }


def stability(model: Model, counts: Counts, *, n_trainings: int = 3, train: Train = train_silently) -> Stability:
    """Train with other random seeds, and compare the embeddings of 2 or more trainings.

    Parameters
    ----------
    model, counts
        The first model, and the cells that it was trained on (`scvae_cli.evaluation.retraining.model_trained_on`). All
        cells are used for training. If there are more than 5,000 cells, only 5,000 cells, at regular intervals of the
        rows, are embedded.
    """
    config = requested_config(model)
    models = [model]
    for number in range(1, n_trainings):
        seed = (config.train.seed + number) % 2**32
        with_seed = replace(config, train=replace(config.train, seed=seed))
        models.append(train(f"Training with another random seed ({number} of {n_trainings - 1})", counts, with_seed))
    some = counts.cells(even(np.arange(counts.n_cells), MAX_CELLS))
    means = [posteriors(one, some).mean_nk for one in models]
    embeddings = [embedding_of(one, some, mean_nk) for one, mean_nk in zip(models, means, strict=True)]
    axes = [one.axes.position(mean_nk).numpy().astype(np.float64) for one, mean_nk in zip(models, means, strict=True)]
    n_strong = min(int((one.axes.strength_k > _STRONG * one.axes.strength_k[0]).sum()) for one in models)
    random = np.random.default_rng(config.train.seed)
    nearest = [nearest_neighbors(x_nk) for x_nk in embeddings]
    pairs = list(combinations(range(n_trainings), 2))

    def mean(measure: Callable[[int, int], float]) -> float:
        return float(np.mean([measure(i, j) for i, j in pairs]))

    return Stability(
        n_trainings=n_trainings,
        procrustes=mean(lambda i, j: disparity(embeddings[i], embeddings[j])),
        procrustes_by_chance=mean(lambda i, j: disparity(embeddings[i], random.permutation(embeddings[j]))),
        neighbors_shared=mean(lambda i, j: shared(nearest[i], nearest[j])),
        pca_neighbors_shared=shared_by_bootstrap(log_normalized(some), n_pcas=n_trainings, seed=config.train.seed),
        axis_correlation=mean(lambda i, j: axis_correlation(axes[i][:, :n_strong], axes[j][:, :n_strong])),
        heldout_elbo=tuple(float(one.facts["heldout_elbo"]) for one in models),
    )


def disparity(a_nk: np.ndarray, b_nk: np.ndarray) -> float:
    """Compute the fraction of the variance that differs after the best translation, rotation, reflection and scale.

    The two embeddings may have different numbers of coordinates.
    """
    from scipy.spatial import procrustes

    widest = max(a_nk.shape[1], b_nk.shape[1])
    a_nk, b_nk = (np.pad(x_nk, ((0, 0), (0, widest - x_nk.shape[1]))) for x_nk in (a_nk, b_nk))
    return float(procrustes(a_nk, b_nk)[2])


def axis_correlation(a_nk: np.ndarray, b_nk: np.ndarray) -> float:
    """Correlate the first axes of two embeddings, the second axes, and so on; return the mean absolute correlation."""
    return float(np.mean([abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(a_nk.T, b_nk.T, strict=True)]))
