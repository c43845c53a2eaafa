"""A group's own change and what the same did to other groups: neither alone, each for what it is worth.

What a few cells show of a change is uncertain, and what others show may not hold for them. So gene by gene the groups'
changes are taken for draws around a common mean, how far they truly differ is estimated from how much more they differ
than their errors explain (DerSimonian & Laird 1986, doi:10.1016/0197-2456(86)90046-2), and the group's own change is
drawn to the others' mean as far as its error is large beside that.

Shapes: s groups, g genes.
"""

from __future__ import annotations

import numpy as np

# Small enough to stand for no error, large enough for the squares of its inverse.
_NO_ERROR = 1e-30


def pooled(change_sg: np.ndarray, error_sg: np.ndarray) -> np.ndarray:
    """The first group's change, given the others', shape (g,).

    Parameters
    ----------
    change_sg
        What each group shows; the first is the one asked about.
    error_sg
        Squared standard errors.

    >>> pooled(np.array([[3.0], [0.0], [0.0]]), np.array([[1.0], [1e-6], [1e-6]])).round(2)  # others agree: noise
    array([0.])
    >>> pooled(np.array([[3.0], [0.0], [0.0]]), np.full((3, 1), 1e-6)).round(2)  # a difference that is sure
    array([3.])
    """
    if len(change_sg) == 1:
        alone_g: np.ndarray = change_sg[0]
        return alone_g
    error_sg = np.maximum(error_sg, _NO_ERROR)
    apart_g = between(change_sg, error_sg)
    weight_rg = 1 / (error_sg[1:] + apart_g)
    others_g = (weight_rg * change_sg[1:]).sum(0) / weight_rg.sum(0)
    # The others' mean tells of this group with the error of that mean, and as far as groups differ.
    prior_g = apart_g + 1 / weight_rg.sum(0)
    result: np.ndarray = others_g + prior_g / (prior_g + error_sg[0]) * (change_sg[0] - others_g)
    return result


def between(change_sg: np.ndarray, error_sg: np.ndarray) -> np.ndarray:
    """Variance of the groups' true changes, by DerSimonian and Laird's moments, 0 at least, shape (g,)."""
    weight_sg = 1 / error_sg
    total_g = weight_sg.sum(0)
    mean_g = (weight_sg * change_sg).sum(0) / total_g
    excess_g = (weight_sg * np.square(change_sg - mean_g)).sum(0) - (len(change_sg) - 1)
    result: np.ndarray = np.maximum(excess_g / (total_g - np.square(weight_sg).sum(0) / total_g), 0)
    return result
