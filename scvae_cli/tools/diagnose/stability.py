"""Would another training have said the same? The same cells, placed by trainings that differ in their seeds.

Every pair of embeddings is brought together by the rotation, reflection and scale that fit best (Procrustes), which is
all that may differ between two equally good latent spaces; what then is left apart is instability. Neighbours shared
between two embeddings say the same about what users do next, clustering and layouts.

Shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.errors import ConfigError
from scvae_cli.evaluation.retraining import as_asked
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.training.fit import fit_to_end

MAX_CELLS = 5000
NEIGHBOURS = 15


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Agreement of trainings; means over pairs of them.

    Parameters
    ----------
    n_trainings
        The model given and its repetitions.
    procrustes
        Share of the variance left apart after the best alignment, 0 to 1.
    procrustes_by_chance
        The same with one embedding's cells in random order.
    neighbours_shared
        Share of a cell's 15 nearest neighbours that another training also finds among them.
    axis_correlation
        Absolute correlation of canonical axes of the same rank, over the strong ones, which explain at least a
        hundredth of what the first does.
    heldout_elbo
        Of each training, nats a cell; each holds out other cells.
    """

    n_trainings: int
    procrustes: float
    procrustes_by_chance: float
    neighbours_shared: float
    axis_correlation: float
    heldout_elbo: tuple[float, ...]


def stability(
    model: Model, counts: Counts, *, n_trainings: int = 3, say: Callable[[str], None] = lambda _: None
) -> Stability:
    """Train again with other seeds, and compare.

    Parameters
    ----------
    model
        Counts as the first training, which was on these cells (`again.on_some`).
    counts
        n cells in the model's genes, with batches if the model has them; all are trained on, and of more than 5,000 an
        even selection is placed.
    n_trainings
        Trainings to compare, 2 or more.
    say
        Told what is being done.

    Raises
    ------
    ConfigError
        For fewer than two trainings.
    """
    if n_trainings < 2:
        raise ConfigError(f"--trainings is {n_trainings}", "it takes 2 or more, the model itself among them")
    config = as_asked(model)
    models = [model]
    for more in range(1, n_trainings):
        say(f"training again, {more} of {n_trainings - 1}")
        seed = (config.train.seed + more) % 2**32
        models.append(fit_to_end(counts, replace(config, train=replace(config.train, seed=seed))))
    some = counts.cells(even(np.arange(counts.n_cells), MAX_CELLS))
    placed = [one.axes.position(posteriors(one, some).mean_nk).numpy().astype(np.float64) for one in models]
    n_strong = min(int((one.axes.strength_k > 0.01 * one.axes.strength_k[0]).sum()) for one in models)
    random = np.random.default_rng(config.train.seed)
    near = [neighbours(z_nk) for z_nk in placed]
    pairs = list(combinations(range(n_trainings), 2))

    def mean(figure: Callable[[int, int], float]) -> float:
        return float(np.mean([figure(i, j) for i, j in pairs]))

    return Stability(
        n_trainings=n_trainings,
        procrustes=mean(lambda i, j: disparity(placed[i], placed[j])),
        procrustes_by_chance=mean(lambda i, j: disparity(placed[i], random.permutation(placed[j]))),
        neighbours_shared=mean(lambda i, j: shared(near[i], near[j])),
        axis_correlation=mean(lambda i, j: same_axes(placed[i][:, :n_strong], placed[j][:, :n_strong])),
        heldout_elbo=tuple(float(one.facts["heldout_elbo"]) for one in models),
    )


def disparity(a_nk: np.ndarray, b_nk: np.ndarray) -> float:
    """Share of the variance left apart after the best translation, rotation, reflection and scale, 0 to 1."""
    from scipy.spatial import procrustes

    return float(procrustes(a_nk, b_nk)[2])


def neighbours(z_nk: np.ndarray) -> np.ndarray:
    """Indices of each cell's nearest neighbours but itself, shape (n, 15) or as many as there are."""
    from sklearn.neighbors import NearestNeighbors

    n_neighbours = min(NEIGHBOURS, len(z_nk) - 1)
    found: np.ndarray = NearestNeighbors(n_neighbors=n_neighbours).fit(z_nk).kneighbors(return_distance=False)
    return found


def shared(a_nm: np.ndarray, b_nm: np.ndarray) -> float:
    """Mean share of neighbours that two lists have in common."""
    both = np.sort(np.concatenate([a_nm, b_nm], axis=1), axis=1)
    return float((both[:, 1:] == both[:, :-1]).sum() / a_nm.size)


def same_axes(a_nk: np.ndarray, b_nk: np.ndarray) -> float:
    """Mean absolute correlation of axes of the same rank."""
    return float(np.mean([abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(a_nk.T, b_nk.T, strict=True)]))
