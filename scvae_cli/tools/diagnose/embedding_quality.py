"""Compare the embedding with PCA and Harmony, by the neighbors of cells, known labels and the mixing of batches.

PCA has 30 components of log-normalized counts of the model's genes. Harmony corrects the principal components for
batches. Harmony is left out if harmonypy is not installed, and Leiden clusters are left out if igraph is not installed.

Letters in array shapes: n cells, k coordinates, m neighbors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.data.counts import Counts
from scvae_cli.errors import DataError
from scvae_cli.evaluation.batch_mixing import ilisi, kbet_within
from scvae_cli.evaluation.harmony import harmony, has_harmony
from scvae_cli.evaluation.label_agreement import cluster_agreement, has_leiden, silhouette, vote
from scvae_cli.evaluation.log_pca import log_normalized, principal_components, shared_by_bootstrap
from scvae_cli.evaluation.neighbors import nearest_neighbors, shared, shared_by_chance
from scvae_cli.latent.selection import even
from scvae_cli.progress import Progress, silent, tracked

EMBEDDING, PCA, HARMONY = "embedding", "PCA", "Harmony"
LEIDEN = "Leiden clusters"
# Packages of the extra "compare", by what they compute.
PACKAGES = {HARMONY: "harmonypy", LEIDEN: "igraph"}
MAX_CELLS = 5000
# Smallest number of cells of a label. Labels of fewer cells are left out, because they can hardly win a vote of 15
# neighbors.
LEAST_CELLS = 5

# Mean advantage of the embedding over other coordinates, and standard error of this mean over cells.
Advantage = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one set of coordinates of the cells; a score that was not computed is None.

    Parameters
    ----------
    name
        "embedding", "PCA" or "Harmony".
    vote_accuracy, vote_advantage
        Fraction of cells whose label is found by a vote of 15 neighbors; and how much higher this fraction is for the
        embedding, with a standard error.
    ari, nmi
        Agreement of Leiden clusters with the labels.
    silhouette
        Mean silhouette of the labels, −1 to 1.
    ilisi, kbet
        Mixing of the batches, 0 to 1 (`scvae_cli.evaluation.batch_mixing`).
    """

    name: str
    vote_accuracy: float | None = None
    vote_advantage: Advantage | None = None
    ari: float | None = None
    nmi: float | None = None
    silhouette: float | None = None
    ilisi: float | None = None
    kbet: float | None = None


@dataclass(frozen=True, kw_only=True)
class EmbeddingQuality:
    """Quality of the embedding.

    Parameters
    ----------
    n_cells
        Number of cells on which the scores were computed.
    neighbors_shared_with_pca, neighbors_shared_by_chance
        Mean fraction of a cell's 15 nearest neighbors in the embedding that are also among its 15 nearest neighbors in
        PCA; and this fraction for unrelated embeddings.
    pca_neighbors_shared
        Mean fraction of nearest neighbors that two PCAs of bootstrapped genes share.
    scores
        Scores of the embedding, of PCA and, if there are batches, of Harmony; the embedding comes first.
    labels, n_labels, n_labeled
        Column of the labels or None, number of labels, and number of cells with a label. Labels of fewer than five
        cells are left out.
    n_batches
        Number of batches of the cells; 0 if mixing was not evaluated.
    not_installed
        "Harmony" or "Leiden clusters", if they were left out because their library is not installed.
    """

    n_cells: int
    neighbors_shared_with_pca: float
    neighbors_shared_by_chance: float
    pca_neighbors_shared: float
    scores: tuple[Scores, ...]
    labels: str | None = None
    n_labels: int = 0
    n_labeled: int = 0
    n_batches: int = 0
    not_installed: tuple[str, ...] = ()

    def of(self, name: str) -> Scores | None:
        """Return the scores with the given name; None if these scores were not computed."""
        return next((scores for scores in self.scores if scores.name == name), None)

    @property
    def by_labels(self) -> bool:
        """Whether labels were compared."""
        return self.labels is not None

    @property
    def by_batches(self) -> bool:
        """Whether the mixing of batches was evaluated."""
        return self.n_batches > 0

    def summary(self) -> dict[str, Any]:
        """Return all scores and counts in a dictionary; scores that were not computed are None."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("scores", "not_installed")}
        return own | {
            "scores": [asdict(scores) for scores in self.scores],
            "not_installed": list(self.not_installed),
        }

    def values(self) -> dict[str, Any]:
        """Return the scores and counts in a dictionary of arrays and numbers, without missing values."""
        values = {name: value for name, value in self.summary().items() if value is not None and name != "scores"}
        values.pop("not_installed")
        if self.not_installed:
            values["not_installed"] = np.asarray(self.not_installed, dtype=object)
        columns: dict[str, Any] = {"name": np.asarray([scores.name for scores in self.scores], dtype=object)}
        pairs = np.asarray([scores.vote_advantage or (np.nan, np.nan) for scores in self.scores])
        columns |= {"vote_advantage": pairs[:, 0].copy(), "vote_advantage_error": pairs[:, 1].copy()}
        for f in fields(Scores):
            if f.name not in ("name", "vote_advantage"):
                columns[f.name] = np.asarray([getattr(scores, f.name) for scores in self.scores], dtype=np.float64)
        return values | {"scores": columns}


def usable_labels(label_n: np.ndarray, *, column: str) -> np.ndarray:
    """Return the labels, in which every label of fewer than five cells is replaced by None.

    Raises
    ------
    DataError
        If fewer than two labels have five or more cells.
    """
    names = [label for label in set(label_n) - {None} if (label_n == label).sum() >= LEAST_CELLS]
    if len(names) < 2:
        raise DataError(
            f"obs[{column!r}] has {amount(len(names), 'label')} with {LEAST_CELLS} or more cells",
            "--labels takes a column with two or more labels, such as cell types",
        )
    kept_n = label_n.astype(object)
    kept_n[~np.isin(label_n, names)] = None
    return kept_n


def evaluated_rows(n_cells: int) -> np.ndarray:
    """Return the rows of the cells on which an embedding is evaluated: at most 5,000, at regular intervals."""
    return even(np.arange(n_cells), MAX_CELLS)


def embedding_quality(
    embedding_nk: np.ndarray,
    counts: Counts,
    *,
    labels: str | None = None,
    label_n: np.ndarray | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> EmbeddingQuality:
    """Evaluate the embedding of n cells.

    Parameters
    ----------
    embedding_nk, counts
        The embedding of n cells, and the counts of the same cells in the model's genes. If the counts have two or more
        batches, the mixing of the batches is evaluated.
    labels, label_n
        Column of the labels, and the label of each cell (None for a cell without a label), shape (n,).

    Raises
    ------
    DataError
        If there are fewer than two labels of five or more cells.
    """
    logged = log_normalized(counts)
    pca_nc = principal_components(logged)
    coordinates = {EMBEDDING: embedding_nk, PCA: pca_nc}
    batch_n = counts.batch if counts.batch is not None and len(set(counts.batch)) > 1 else None
    missing = []
    if batch_n is not None:
        if has_harmony():
            coordinates[HARMONY] = harmony(pca_nc, batch_n, seed=seed)
        else:
            missing.append(HARMONY)
    if label_n is not None:
        label_n = usable_labels(label_n, column=labels or "labels")
        if not has_leiden():
            missing.append(LEIDEN)
    right: dict[str, np.ndarray] = {}
    scores = tuple(
        _scores(name, x_nk, batch_n, label_n, right, seed)
        for name, x_nk in tracked(list(coordinates.items()), progress, "Comparing embeddings", len(coordinates))
    )
    known_n = [] if label_n is None else [label for label in label_n if label is not None]
    return EmbeddingQuality(
        n_cells=len(embedding_nk),
        neighbors_shared_with_pca=shared(nearest_neighbors(embedding_nk), nearest_neighbors(pca_nc)),
        neighbors_shared_by_chance=shared_by_chance(len(embedding_nk)),
        pca_neighbors_shared=shared_by_bootstrap(logged, seed=seed),
        scores=scores,
        labels=None if label_n is None else labels,
        n_labels=len(set(known_n)),
        n_labeled=len(known_n),
        n_batches=0 if batch_n is None else len(set(batch_n)),
        not_installed=tuple(missing),
    )


def _scores(
    name: str,
    x_nk: np.ndarray,
    batch_n: np.ndarray | None,
    label_n: np.ndarray | None,
    right: dict[str, np.ndarray],
    seed: int,
) -> Scores:
    """Compute all scores of an embedding. `right` receives a mask of the cells whose neighbors vote for their label."""
    found: dict[str, Any] = {}
    if label_n is not None:
        known = np.flatnonzero(label_n != None)  # noqa: E711  # elementwise
        known_nk, of_known = x_nk[known], label_n[known].astype(str)
        right[name] = vote(known_nk, of_known, seed=seed)
        found["vote_accuracy"] = float(right[name].mean())
        found["vote_advantage"] = _mean_and_error(right[EMBEDDING].astype(float) - right[name])
        found["silhouette"] = silhouette(known_nk, of_known)
        if has_leiden():
            found |= cluster_agreement(known_nk, of_known, seed=seed)._asdict()
    if batch_n is not None:
        found |= {"ilisi": ilisi(x_nk, batch_n), "kbet": kbet_within(x_nk, batch_n, label_n)}
    return Scores(name=name, **found)


def _mean_and_error(difference_n: np.ndarray) -> Advantage:
    return float(difference_n.mean()), float(difference_n.std(ddof=1) / np.sqrt(len(difference_n)))
