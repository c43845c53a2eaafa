"""Make scib_mixing.json: scib-metrics' iLISI and kBET for a small embedding.

Run with an interpreter that has scib-metrics (0.6.1 made the file in the repository):

    python tests/data/make_scib_mixing.py

The neighbors are exact. scib-metrics counts a cell among its own neighbors in kBET, so the neighbors are given to it
without the cell itself. For iLISI it expects the cell in the first place and ignores it.
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
from scib_metrics import ilisi_knn, kbet, lisi_knn
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.neighbors import NearestNeighbors

random = np.random.default_rng(0)
n, k = 240, 3
batch = random.choice(["a", "b", "c"], size=n, p=[0.5, 0.3, 0.2])
label = random.choice(["T", "B"], size=n, p=[0.6, 0.4])
x = random.normal(size=(n, k))
x[:, 0] += 1.2 * (batch == "c") + 0.4 * (batch == "b")
x[:, 1] += 4.0 * (label == "T")
x = np.round(x, 4)


def neighbors(positions: np.ndarray, m: int, *, itself: bool) -> NeighborsResults:
    """Find the m nearest other cells, optionally with the cell itself in front of them."""
    distances, indices = NearestNeighbors(n_neighbors=m).fit(positions).kneighbors()
    if itself:
        indices = np.column_stack([np.arange(len(positions)), indices])
        distances = np.column_stack([np.zeros(len(positions)), distances])
    return NeighborsResults(indices=indices, distances=distances)


near = neighbors(x, 90, itself=True)
rates, sizes = {}, {"all": 20, "T": 15, "B": 15}
for name, m in sizes.items():
    rows = np.arange(n) if name == "all" else np.flatnonzero(label == name)
    rate, statistics, _ = kbet(neighbors(x[rows], m, itself=False), batch[rows])
    rates[name] = {"n_neighbors": m, "rate": float(rate), "mean_statistic": float(statistics.mean())}
result = {
    "scib_metrics": importlib.metadata.version("scib-metrics"),
    "x": x.tolist(),
    "batch": batch.tolist(),
    "label": label.tolist(),
    "lisi": np.asarray(lisi_knn(near, batch, perplexity=30), dtype=float).round(6).tolist(),
    "ilisi": float(ilisi_knn(near, batch, perplexity=30)),
    "kbet": rates,
}
Path(__file__).with_name("scib_mixing.json").write_text(json.dumps(result) + "\n")
