"""Quality of predicted labels: confusion table, macro F1, calibration, prediction sets and false alarms.

All measures are computed on labeled cells that were held out from the classifier. The weight of a held-out cell is the
number of labeled cells that it represents.

Letters in array shapes: m held-out labeled cells, c labels, d bins of probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15
_DRAWS = 200


@dataclass(frozen=True)
class Prediction:
    """Quality of predicted labels and of their probabilities.

    Parameters
    ----------
    accuracy, macro_f1
        Share of the cells whose predicted label is correct, and mean F1 score of the labels that have held-out cells.
    calibration_error
        Expected calibration error: mean absolute difference between the probability of the predicted label and the
        share of correct labels, over 15 bins of probability.
    calibration_error_by_chance
        Calibration error that perfectly calibrated probabilities would have by chance with the same number of cells.
    """

    accuracy: float
    macro_f1: float
    calibration_error: float
    calibration_error_by_chance: float


@dataclass(frozen=True)
class Reliability:
    """For each bin: mean probability of the predicted label, share of correct labels, and share of the cells.

    Each array has the shape (d,).
    """

    probability_d: np.ndarray
    right_d: np.ndarray
    share_d: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error."""
        return float(np.abs(self.probability_d - self.right_d) @ self.share_d)


@dataclass(frozen=True)
class Quality:
    """Quality of the labels predicted for held-out labeled cells.

    Parameters
    ----------
    n_cells
        Number of held-out cells, m.
    labels, genes
        Quality of the predicted labels, and for comparison that of a logistic regression on genes alone.
    confusion_cc
        Confusion table (rows: true label, columns: predicted label). Each held-out cell is counted as often as the
        number of labeled cells that it represents.
    reliability
        Calibration of the probabilities, in bins that contain cells.
    coverage, set_size
        Share of the held-out cells whose prediction set contains their label, and mean number of labels in a set.
    false_alarms
        Share of the held-out cells that are called "unknown" by mistake.
    """

    n_cells: int
    labels: Prediction
    genes: Prediction
    confusion_cc: np.ndarray
    reliability: Reliability
    coverage: float
    set_size: float
    false_alarms: float


def prediction_quality(p_mc: np.ndarray, code_m: np.ndarray, weight_m: np.ndarray) -> Prediction:
    """Measure the quality of the label probabilities `p_mc` of cells, whose true labels are `code_m`."""
    share_m = weight_m / weight_m.sum()
    right_m = p_mc.argmax(1) == code_m
    confusion_cc = confusion(p_mc.argmax(1), code_m, weight_m, p_mc.shape[1])
    return Prediction(
        accuracy=float(right_m @ share_m),
        macro_f1=macro_f1(confusion_cc),
        calibration_error=reliability(p_mc.max(1), right_m, weight_m).error,
        calibration_error_by_chance=_error_by_chance(p_mc.max(1), weight_m),
    )


def confusion(predicted_m: np.ndarray, code_m: np.ndarray, weight_m: np.ndarray, n_labels: int) -> np.ndarray:
    """Count cells by true label (rows) and predicted label (columns), shape (c, c)."""
    confusion_cc = np.zeros((n_labels, n_labels))
    np.add.at(confusion_cc, (code_m, predicted_m), weight_m)
    return confusion_cc


def macro_f1(confusion_cc: np.ndarray) -> float:
    """Compute the mean F1 score of all labels that have cells, from a confusion table.

    >>> macro_f1(np.array([[3.0, 1.0], [0.0, 4.0]]))
    0.873015873015873
    """
    true_c, predicted_c = confusion_cc.sum(1), confusion_cc.sum(0)
    f1_c = 2 * np.diag(confusion_cc) / np.maximum(true_c + predicted_c, 1e-300)
    return float(f1_c[true_c > 0].mean())


def reliability(top_m: np.ndarray, right_m: np.ndarray, weight_m: np.ndarray) -> Reliability:
    """Compare the probability of the predicted label with the share of correct labels, in bins of equal width."""
    bin_m = np.minimum((top_m * BINS).astype(int), BINS - 1)
    cells_d, top_d, right_d = (
        np.bincount(bin_m, weights=weight_m * values, minlength=BINS) for values in (1.0, top_m, right_m)
    )
    some_d = cells_d > 0
    n_d = cells_d[some_d]
    return Reliability(top_d[some_d] / n_d, right_d[some_d] / n_d, n_d / n_d.sum())


def _error_by_chance(top_m: np.ndarray, weight_m: np.ndarray) -> float:
    random = np.random.default_rng(0)
    draws = [reliability(top_m, random.random(len(top_m)) < top_m, weight_m).error for _ in range(_DRAWS)]
    return float(np.mean(draws))
