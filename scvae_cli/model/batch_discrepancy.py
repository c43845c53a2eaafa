"""Difference between the latent positions of the cells of one batch and of the cells of all other batches.

Letters in array shapes: n cells, k latent dimensions, b batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Squared widths of the four kernels, relative to the mean squared distance between two cells. Narrow kernels compare
# the densities of the batches within a population of cells; wide kernels compare their means.
SQUARED_WIDTHS = (0.1, 0.3, 1.0, 3.0)
# Lower bound on the mean squared distance, in prior variances. In a model that uses three latent dimensions or more,
# the mean squared distance is larger than the lower bound. If the posterior collapses, the lower bound prevents the
# noise of the estimated discrepancy from pushing cells apart.
LEAST_SQUARE = 5.0


def batch_discrepancy(position_nk: Tensor, *members: Tensor) -> tuple[Tensor, Tensor]:
    """Compute maximum mean discrepancies between each batch and all other batches, and the gradient of their mean.

    The discrepancy of a batch is E k(z, z') + E k(w, w') − 2 E k(z, w) (Gretton et al. 2012, Journal of Machine
    Learning Research 13:723). In the formula of the discrepancy, z and z' are the positions of two cells of the batch,
    and w and w' are the positions of two cells of other batches. The estimate of the discrepancy is unbiased, and may
    therefore be negative. The kernel k is the mean of four Gaussian kernels. The result is the mean discrepancy over
    the batches, weighted by their numbers of cells. A batch is left out if it has a single cell, or if there is at most
    one cell outside the batch.

    Parameters
    ----------
    position_nk
        Latent positions of the cells of a minibatch.
    members
        Indicator of each cell's batch, shape (n, b): 1 in the column of its batch and 0 elsewhere. The rows of cells
        that only pad a minibatch to its full size are zeros. With several batch keys, there is one matrix for each key,
        and the discrepancies of the keys are added.

    Returns
    -------
    The discrepancy (a scalar without unit), and its gradient with respect to `position_nk`, shape (n, k). The widths of
    the kernels are treated as constants in the gradient.
    """
    present_n1 = members[0].sum(1, keepdim=True)
    weight_nn = _pair_weights(members[0], present_n1)
    for member_nb in members[1:]:
        weight_nn = weight_nn + _pair_weights(member_nb, present_n1)
    square_nn = torch.cdist(position_nk, position_nk).square()
    n_pairs = present_n1.sum().square() - present_n1.sum()
    mean_square = ((present_n1 * square_nn * present_n1.T).sum() / n_pairs.clamp(min=1)).clamp(min=LEAST_SQUARE)
    value_nn, slope_nn = torch.zeros_like(square_nn), torch.zeros_like(square_nn)
    for width in SQUARED_WIDTHS:
        scale = width * mean_square
        kernel_nn = torch.exp(-square_nn / scale) / len(SQUARED_WIDTHS)
        value_nn += kernel_nn
        slope_nn -= kernel_nn / scale
    # The derivative of ‖z_i − z_j‖² with respect to z_i is 2 (z_i − z_j), and each pair occurs twice in the sum.
    pull_nn = 4 * weight_nn * slope_nn
    return (weight_nn * value_nn).sum(), pull_nn.sum(1, keepdim=True) * position_nk - pull_nn @ position_nk


def _pair_weights(member_nb: Tensor, present_n1: Tensor) -> Tensor:
    """Return the weight of each pair of cells in the sum of kernels, shape (n, n)."""
    other_nb = present_n1 - member_nb
    n_b, m_b = member_nb.sum(0), other_nb.sum(0)
    share_b = (n_b > 1) * (m_b > 1) * n_b / n_b.sum().clamp(min=1)
    within_b, among_b, across_b = (
        share_b / pairs_b.clamp(min=1) for pairs_b in (n_b * (n_b - 1), m_b * (m_b - 1), n_b * m_b)
    )
    across_nn = (member_nb * across_b) @ other_nb.T
    weight_nn = (member_nb * within_b) @ member_nb.T + (other_nb * among_b) @ other_nb.T - across_nn - across_nn.T
    return weight_nn - torch.diag(weight_nn.diagonal())
