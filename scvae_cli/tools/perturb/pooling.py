"""A group's own change combined with the change of other groups under the same perturbation, by random effects.

The change that a few cells show is uncertain, and the change of other groups may not apply to this one. So, gene by
gene, the groups' changes are taken as draws around a common mean. Their true variance is estimated from how much more
they differ than their errors explain (DerSimonian & Laird 1986, doi:10.1016/0197-2456(86)90046-2), and the group's own
change is shrunk to the others' mean according to the ratio of its error to that variance.

Shapes: s groups, g genes.
"""

from __future__ import annotations

import numpy as np

# Stands for no error: small, but the square of its inverse is still finite.
_NO_ERROR = 1e-30


def pooled(change_sg: np.ndarray, error_sg: np.ndarray) -> np.ndarray:
    """Posterior mean of the first group's change, given the others', shape (g,).

    Parameters
    ----------
    change_sg
        Observed change of each group; the first is the target.
    error_sg
        Squared standard errors of the changes.

    >>> pooled(np.array([[3.0], [0.0], [0.0]]), np.array([[1.0], [1e-6], [1e-6]])).round(2)  # the others agree
    array([0.])
    >>> pooled(np.array([[3.0], [0.0], [0.0]]), np.full((3, 1), 1e-6)).round(2)  # a certain difference
    array([3.])
    """
    if len(change_sg) == 1:
        alone_g: np.ndarray = change_sg[0]
        return alone_g
    error_sg = np.maximum(error_sg, _NO_ERROR)
    between_g = between_variance(change_sg, error_sg)
    weight_rg = 1 / (error_sg[1:] + between_g)
    others_g = (weight_rg * change_sg[1:]).sum(0) / weight_rg.sum(0)
    # Variance of this group around the others' mean: that between groups, and the error of the mean.
    prior_g = between_g + 1 / weight_rg.sum(0)
    result: np.ndarray = others_g + prior_g / (prior_g + error_sg[0]) * (change_sg[0] - others_g)
    return result


def between_variance(change_sg: np.ndarray, error_sg: np.ndarray) -> np.ndarray:
    """Variance of the groups' true changes by the moments of DerSimonian and Laird, at least 0, shape (g,)."""
    weight_sg = 1 / error_sg
    total_g = weight_sg.sum(0)
    mean_g = (weight_sg * change_sg).sum(0) / total_g
    excess_g = (weight_sg * np.square(change_sg - mean_g)).sum(0) - (len(change_sg) - 1)
    result: np.ndarray = np.maximum(excess_g / (total_g - np.square(weight_sg).sum(0) / total_g), 0)
    return result
