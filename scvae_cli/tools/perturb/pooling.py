"""Combine several observed changes of expression into one estimate.

A change estimated from a few cells is uncertain, and the change of other groups may differ from the change of the
target group. For each gene, the true changes of the groups are therefore treated as draws around a common mean. The
observed changes differ between groups partly because of estimation errors. The variance between groups is the observed
variance minus the variance that estimation errors explain (DerSimonian & Laird 1986, doi:10.1016/0197-2456(86)90046-2).
The target's own change is shrunk to the mean change of the other groups. The shrinkage is strong if the squared error
of the target's change is large compared with the variance between groups.

If two perturbations change a gene in opposite directions, or if only one of them changes the gene, the two changes are
added. If both perturbations raise the gene, or both lower the gene, the joint change may be as large as the sum of the
two changes or only as large as the stronger change. For two changes in the same direction, the result is therefore the
mean of the sum and the stronger change.

Letters in array shapes: s groups, p perturbations, g genes.
"""

from __future__ import annotations

import numpy as np

# A squared error of 0 is replaced by this number, which is large enough that the square of its inverse is finite.
_NO_ERROR = 1e-30


def pooled(change_sg: np.ndarray, error_sg: np.ndarray) -> np.ndarray:
    """Compute the posterior mean of the first group's change, shape (g,).

    The arguments are the observed changes of all groups, and the squared standard errors of these changes.

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
    # Variance of the first group's change around the mean of the other groups: the variance between groups plus the
    # squared error of this mean.
    prior_g = between_g + 1 / weight_rg.sum(0)
    result: np.ndarray = others_g + prior_g / (prior_g + error_sg[0]) * (change_sg[0] - others_g)
    return result


def between_variance(change_sg: np.ndarray, error_sg: np.ndarray) -> np.ndarray:
    """Estimate the variance of the groups' true changes by the method of DerSimonian and Laird, shape (g,)."""
    weight_sg = 1 / error_sg
    total_g = weight_sg.sum(0)
    mean_g = (weight_sg * change_sg).sum(0) / total_g
    excess_g = (weight_sg * np.square(change_sg - mean_g)).sum(0) - (len(change_sg) - 1)
    result: np.ndarray = np.maximum(excess_g / (total_g - np.square(weight_sg).sum(0) / total_g), 0)
    return result


def combined(change_pg: np.ndarray) -> np.ndarray:
    """Compute the change under all perturbations together, shape (g,), from the change under each perturbation alone.

    Changes are log ratios, or differences for real-valued data.

    >>> combined(np.array([[1.0, 1.0, -2.0, 0.0], [0.5, -1.5, -1.0, 3.0]])).tolist()
    [1.25, -0.5, -2.5, 3.0]
    """
    strongest_g = change_pg.max(0).clip(min=0) + change_pg.min(0).clip(max=0)
    result: np.ndarray = (change_pg.sum(0) + strongest_g) / 2
    return result
