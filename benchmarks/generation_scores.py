"""How well can generated cells be distinguished from real cells, in principal components of real cells?

Counts are scaled to one depth, log-transformed and projected on 30 principal components. The components are computed
from further real cells, which are not compared. (Principal components follow the noise of the cells from which they are
computed, so a classifier could recognize these cells.) Two scores are computed:

- AUC of classifiers that distinguish generated from real cells, evaluated on folds that the classifiers have not seen
  (0.5: the cells cannot be distinguished). Gradient boosting detects shapes and interactions; logistic regression
  detects differences of means.
- Energy distance (Székely & Rizzo 2013): 2·E|X − Y| − E|X − X'| − E|Y − Y'|, which is 0 for equal distributions.

Letters in array shapes: n cells, g genes, p components.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

COMPONENTS, FOLDS = 30, 5


def log_scaled(counts: sp.csr_matrix, depth: float) -> np.ndarray:
    """Compute log(1 + count) of counts that are scaled to one depth, as a dense matrix of shape (n, g)."""
    library_n = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    return np.log1p(sp.diags_array(depth / library_n) @ counts.astype(np.float64)).toarray()


class Judge:
    """Comparison of cells with one set of real cells.

    Parameters
    ----------
    others
        Counts of the real cells from which the components are computed.
    real
        Counts of the real cells to compare with, n × g.
    seed
        Random seed of the folds and the classifiers.
    """

    def __init__(self, others: sp.csr_matrix, real: sp.csr_matrix, seed: int) -> None:
        self._seed = seed
        self._depth = float(np.median(np.asarray(others.sum(1)).ravel()))
        n_components = min(COMPONENTS, min(others.shape) - 1)
        self._pca = PCA(n_components, svd_solver="randomized", random_state=seed)
        self._pca.fit(log_scaled(others, self._depth))
        self._real_np = self._pca.transform(log_scaled(real, self._depth))

    def scores(self, cells: sp.csr_matrix) -> dict[str, float]:
        """Compute the AUC of both classifiers and the energy distance."""
        other_np = self._pca.transform(log_scaled(cells, self._depth))
        x = np.concatenate([self._real_np, other_np])
        generated = np.repeat([0, 1], [len(self._real_np), len(other_np)])
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=self._seed)
        found = {}
        for name, classifier in (
            ("boosting", HistGradientBoostingClassifier(random_state=self._seed)),
            ("logistic", make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))),
        ):
            said = cross_val_predict(classifier, x, generated, cv=folds, method="predict_proba")[:, 1]
            found[name] = float(roc_auc_score(generated, said))
        return found | {"energy": energy_distance(self._real_np, other_np)}


def energy_distance(x_np: np.ndarray, y_np: np.ndarray) -> float:
    """Estimate the energy distance without bias: distances of points to themselves are left out."""
    within = [cdist(a, a).sum() / (len(a) * (len(a) - 1)) for a in (x_np, y_np)]
    return float(2 * cdist(x_np, y_np).mean() - sum(within))
