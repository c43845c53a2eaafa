"""Classifiers of cells: several logistic regressions predict labels, and their log probabilities are combined.

A view is a matrix of coordinates of the cells, such as the embedding. In each view, a multinomial logistic regression
with an L2 penalty predicts the label. The predictions of the views are combined by a logarithmic opinion pool,

    log p(label) = Σ_v w_v · log p_v(label) + b(label) + constant,

where the weights w_v ≥ 0 minimize the cross-entropy of held-out labeled cells. A view that generalizes worse to
held-out cells gets a smaller weight. With few labeled cells, the view of the genes improves the predictions little.
With many labeled cells, the genes add information that the model lacks.

The weights also calibrate the probabilities: their sum acts as the inverse temperature of temperature scaling (Guo et
al. 2017, doi:10.48550/arXiv.1706.04599). A second fit to the held-out cells scales all weights and finds the bias b of
each label, as in bias-corrected temperature scaling (Alexandari et al. 2020, doi:10.48550/arXiv.1901.06852). With few
held-out cells, normal priors keep the scale near 1 and the biases near 0.

Letters in array shapes: n cells, m labeled cells, c labels, v views of a cell, j coordinates.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax

_MAX_ITERATIONS, _TOLERANCE = 200, 1e-3
# Strength of the penalty that keeps the weights of the views similar to each other, in nats per cell. Without this
# penalty, held-out cells alone would decide the weights, although other cells may be unlike the held-out cells.
_EQUAL_WEIGHTS = 0.03
_MOST_WEIGHT = 5.0
# Largest absolute value of the log of the scale by which all weights are multiplied.
_MOST_LOG_SCALE = 2.0


@dataclass(frozen=True)
class Regression:
    """A multinomial logistic regression, whose logits are x·coefficient + intercept.

    The coefficients have the shape (j, c), and the intercepts have the shape (c,).
    """

    coefficient_jc: np.ndarray
    intercept_c: np.ndarray

    def log_probabilities(self, x_nj: Any) -> np.ndarray:
        """Compute the log probability of each label for each cell, shape (n, c); `x_nj` is an array or a CSR matrix."""
        found: np.ndarray = log_softmax((x_nj @ self.coefficient_jc).astype(np.float64) + self.intercept_c, axis=1)
        return found


def regression(x_mj: np.ndarray, code_m: np.ndarray, weight_m: np.ndarray, inverse_penalty: float) -> Regression:
    """Fit a multinomial logistic regression to labeled cells.

    Parameters
    ----------
    x_mj
        Coordinates of the labeled cells.
    code_m
        Label of each cell, as a number from 0 to c − 1. Every label must occur, and c must be at least 2.
    weight_m
        Number of labeled cells that each given cell represents, if only some of the labeled cells are given.
    inverse_penalty
        Inverse strength of the L2 penalty; scikit-learn's argument `C`.
    """
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=inverse_penalty, max_iter=_MAX_ITERATIONS, tol=_TOLERANCE)
    with warnings.catch_warnings():
        # scikit-learn warns if many labels have few cells, and if the optimum is not reached exactly.
        warnings.simplefilter("ignore", UserWarning)
        fitted.fit(x_mj, code_m, weight_m)
    coefficient_cj, intercept_c = fitted.coef_, fitted.intercept_
    if len(coefficient_cj) == 1:
        # If there are two labels, scikit-learn keeps only the logit of the second label.
        coefficient_cj = np.concatenate([np.zeros_like(coefficient_cj), coefficient_cj])
        intercept_c = np.append(0.0, intercept_c)
    return Regression(coefficient_cj.T.astype(np.float32), np.asarray(intercept_c, dtype=np.float64))


@dataclass(frozen=True)
class Pool:
    """The weights of the views, shape (v,), and the bias of each label, shape (c,)."""

    weight_v: np.ndarray
    bias_c: np.ndarray

    def log_probabilities(self, log_p_vnc: np.ndarray) -> np.ndarray:
        """Combine the log probabilities of all views, and normalize the probabilities; shape (n, c)."""
        log_p_nc: np.ndarray = log_softmax(np.tensordot(self.weight_v, log_p_vnc, axes=1) + self.bias_c, axis=1)
        return log_p_nc


def fit_pool(log_p_vmc: np.ndarray, code_m: np.ndarray, weight_m: np.ndarray) -> Pool:
    """Find the weights of the views and the biases of the labels from held-out labeled cells.

    `weight_m` holds the number of labeled cells that each held-out cell represents.
    """
    weight_v = pool_weights(log_p_vmc, code_m, weight_m)
    scale, bias_c = _scale_and_biases(np.tensordot(weight_v, log_p_vmc, axes=1), code_m, weight_m)
    return Pool(scale * weight_v, bias_c)


def pool_weights(log_p_vmc: np.ndarray, code_m: np.ndarray, weight_m: np.ndarray) -> np.ndarray:
    """Find the weights of the views that minimize the cross-entropy of held-out labeled cells, shape (v,).

    The cross-entropy is a convex function of the weights. `weight_m` holds the number of labeled cells that each
    held-out cell represents.
    """
    from scipy.optimize import minimize

    n_views, rows = len(log_p_vmc), np.arange(len(code_m))
    share_m = weight_m / weight_m.sum()
    own_vm = log_p_vmc[:, rows, code_m]

    def loss(weight_v: np.ndarray) -> tuple[float, np.ndarray]:
        log_p_mc = log_softmax(np.tensordot(weight_v, log_p_vmc, axes=1), axis=1)
        expected_vm = np.einsum("vmc,mc->vm", log_p_vmc, np.exp(log_p_mc))
        from_equal_v = weight_v - 1 / n_views
        value = -log_p_mc[rows, code_m] @ share_m + _EQUAL_WEIGHTS * (from_equal_v**2).sum()
        return float(value), (expected_vm - own_vm) @ share_m + 2 * _EQUAL_WEIGHTS * from_equal_v

    start_v = np.full(n_views, 1 / n_views)
    found = minimize(loss, start_v, jac=True, bounds=[(0.0, _MOST_WEIGHT)] * n_views, method="L-BFGS-B")
    weight_v: np.ndarray = found.x
    return weight_v


def _scale_and_biases(logit_mc: np.ndarray, code_m: np.ndarray, weight_m: np.ndarray) -> tuple[float, np.ndarray]:
    """Find the scale of the logits and the biases of the labels with the highest posterior density.

    The biases and the log of the scale have standard normal priors. The posterior density is a function with one
    maximum in the biases; the search starts at a scale of 1 and without biases.
    """
    from scipy.optimize import minimize

    rows, share_m = np.arange(len(code_m)), weight_m / weight_m.sum()
    n_cells = 1 / float(share_m @ share_m)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled_mc = np.exp(parameters[0]) * logit_mc
        log_p_mc = log_softmax(scaled_mc + parameters[1:], axis=1)
        residual_mc = np.exp(log_p_mc)
        residual_mc[rows, code_m] -= 1
        residual_mc *= share_m[:, None]
        value = -log_p_mc[rows, code_m] @ share_m + (parameters**2).sum() / (2 * n_cells)
        gradient = np.append((residual_mc * scaled_mc).sum(), residual_mc.sum(axis=0))
        return float(value), gradient + parameters / n_cells

    limits = [(-_MOST_LOG_SCALE, _MOST_LOG_SCALE)] + [(None, None)] * logit_mc.shape[1]
    found = minimize(loss, np.zeros(1 + logit_mc.shape[1]), jac=True, bounds=limits, method="L-BFGS-B").x
    return float(np.exp(found[0])), found[1:]


def log_odds(log_p_nc: np.ndarray) -> np.ndarray:
    """Return the log odds log p − log(1 − p) of each label, shape (n, c).

    The log odds are accurate even if the probability p is nearly 1.
    """
    rows, top_n = np.arange(len(log_p_nc)), log_p_nc.argmax(1)
    # For the most probable label, 1 − p is computed as the sum of the probabilities of all other labels.
    with np.errstate(divide="ignore"):
        rest_nc = np.log1p(-np.exp(log_p_nc))
    others_nc = log_p_nc.copy()
    others_nc[rows, top_n] = -np.inf
    highest_n = others_nc.max(1, keepdims=True)
    rest_nc[rows, top_n] = highest_n[:, 0] + np.log(np.exp(others_nc - highest_n).sum(1))
    odds_nc: np.ndarray = log_p_nc - rest_nc
    return odds_nc
