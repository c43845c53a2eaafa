"""iLISI and kBET are compared with scib-metrics and with known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scvae_cli.evaluation.batch_mixing import ilisi, kbet, kbet_within, lisi
from scvae_cli.evaluation.neighbors import neighbors_and_distances

# Made by tests/data/make_scib_mixing.py.
SCIB = json.loads(Path(__file__).with_name("data").joinpath("scib_mixing.json").read_text())
X, BATCH = np.asarray(SCIB["x"]), np.asarray(SCIB["batch"], dtype=object)
LABEL = np.asarray(SCIB["label"], dtype=object)


def codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values.astype(str), return_inverse=True)[1]


def test_lisi_equals_scib_metrics():
    index_nm, distance_nm = neighbors_and_distances(X, 90)
    np.testing.assert_allclose(lisi(distance_nm, codes(BATCH)[index_nm], 30), SCIB["lisi"], rtol=1e-3)
    assert ilisi(X, BATCH) == pytest.approx(SCIB["ilisi"], abs=1e-4)


@pytest.mark.parametrize("group", ["all", "T", "B"])
def test_kbet_equals_scib_metrics(group):
    rows = np.arange(len(X)) if group == "all" else np.flatnonzero(np.equal(LABEL, group))
    expected = SCIB["kbet"][group]
    index_nm, _ = neighbors_and_distances(X[rows], expected["n_neighbors"])
    assert kbet(index_nm, codes(BATCH[rows])) == pytest.approx(expected["rate"], abs=1e-9)


def test_kbet_within_labels_is_the_mean_over_the_labels():
    expected = np.mean([SCIB["kbet"][label]["rate"] for label in ("T", "B")])
    assert kbet_within(X, BATCH, LABEL) == pytest.approx(expected)
    unknown = LABEL.copy()
    unknown[LABEL == "B"] = None
    assert kbet_within(X, BATCH, unknown) == pytest.approx(SCIB["kbet"]["T"]["rate"])
    assert kbet_within(X, BATCH) == pytest.approx(SCIB["kbet"]["all"]["rate"])


@pytest.mark.parametrize("n_batches", [2, 4])
def test_mixed_batches_score_high_and_separate_batches_score_zero(n_batches):
    random = np.random.default_rng(n_batches)
    batch = np.asarray([f"batch {i}" for i in random.integers(n_batches, size=600)], dtype=object)
    mixed = random.normal(size=(600, 5))
    # With 30 effective neighbors, chance alone keeps the value below 1.
    assert ilisi(mixed, batch) > 0.75
    assert kbet_within(mixed, batch) == pytest.approx(0.95, abs=0.04)
    separate = mixed + 100 * codes(batch)[:, None]
    assert ilisi(separate, batch) == pytest.approx(0, abs=1e-6)
    assert kbet_within(separate, batch) == 0


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_mixing_does_not_depend_on_scale_and_origin(scale):
    assert ilisi(scale * X + 3, BATCH) == pytest.approx(ilisi(X, BATCH), abs=1e-3)
    assert kbet_within(scale * X + 3, BATCH) == pytest.approx(kbet_within(X, BATCH), abs=0.01)


def test_batches_with_different_shares_of_types_are_unmixed_only_without_labels():
    """Batches that differ only in their shares of cell types are mixed within each type, but not over all cells."""
    random = np.random.default_rng(0)
    label = np.asarray(["T", "B"], dtype=object)[np.repeat([0, 1], 400)]
    batch = np.where(random.random(800) < np.where(label == "T", 0.8, 0.2), "a", "b").astype(object)
    x = random.normal(size=(800, 4)) + 50 * (label == "T")[:, None]
    assert kbet_within(x, batch) < 0.2
    assert kbet_within(x, batch, label) > 0.9


def test_kbet_leaves_out_labels_that_cannot_be_tested():
    one_batch = np.where(LABEL == "T", "a", BATCH).astype(object)
    assert kbet_within(X, one_batch, LABEL) == pytest.approx(SCIB["kbet"]["B"]["rate"])
    assert kbet_within(X, LABEL, LABEL) is None


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_few_or_identical_cells_give_finite_values():
    assert 0 <= ilisi(X[:12], BATCH[:12]) <= 1
    assert np.isfinite(ilisi(np.zeros_like(X), BATCH))
