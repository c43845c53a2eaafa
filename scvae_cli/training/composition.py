"""Composition of the cells of a new batch: how frequent each population of the training cells is in the batch.

The populations are clusters of simulated positions, which represent the training cells. A new batch may contain other
shares of the populations than the training, or none of some populations, and all its positions may be shifted, because
the encoder was not trained on this batch. The positions z of the cells of a new batch are therefore described by

    z ~ Σ_p w_p · N(center_p + δ, Σ),

where w_p is the share of population p, δ is the common shift of the batch, and Σ is the covariance of simulated
positions within populations. Shares and shift are estimated by expectation–maximization.

Letters in array shapes: n cells, b new batches, s simulated cells, p populations, k latent dimensions.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

# Largest number of populations, and smallest average number of simulated cells of a population. Populations are coarse,
# because differences between batches may be larger than differences between similar populations.
MOST_POPULATIONS, CELLS_PER_POPULATION = 10, 50
# Number of cells with the shares of the training that are added to the cells of a batch.
PRIOR_CELLS = 10.0
_ROUNDS, _CLUSTER_ROUNDS = 50, 20


@torch.no_grad()
def composition_weights(mean_nk: Tensor, own_bn: Tensor, simulated_sk: Tensor, *, seed: int) -> np.ndarray:
    """Compute the frequency with which each simulated cell represents the cells of each new batch, shape (b, s).

    `own_bn` is the mask of the cells of each batch. The frequencies of a batch sum to 1. Within a population, all
    simulated cells have the same frequency.
    """
    n_populations = max(1, min(MOST_POPULATIONS, len(simulated_sk) // CELLS_PER_POPULATION))
    label_s = clusters(simulated_sk.double(), n_populations, seed=seed)
    share_bp = torch.stack([shares(mean_nk[own_n].double(), simulated_sk.double(), label_s) for own_n in own_bn])
    weight_bs: np.ndarray = (share_bp / torch.bincount(label_s))[:, label_s].cpu().numpy()
    weight_bs /= weight_bs.sum(axis=1, keepdims=True)
    return weight_bs


def clusters(x_sk: Tensor, n_clusters: int, *, seed: int) -> Tensor:
    """Assign positions to clusters by k-means, shape (s,); clusters without positions are left out."""
    from scipy.cluster.vq import kmeans2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scipy warns of clusters without positions
        _, label_s = kmeans2(x_sk.cpu().numpy(), n_clusters, iter=_CLUSTER_ROUNDS, minit="++", seed=seed)
    _, label_s = np.unique(label_s, return_inverse=True)
    return torch.as_tensor(label_s.reshape(-1)).to(x_sk.device)


def shares(z_nk: Tensor, x_sk: Tensor, label_s: Tensor) -> Tensor:
    """Estimate the share of each population in a batch whose positions are shifted, shape (p,)."""
    member_sp = torch.nn.functional.one_hot(label_s).to(x_sk)
    size_p = member_sp.sum(0)
    center_pk = (member_sp.T @ x_sk) / size_p[:, None]
    within_sk = x_sk - center_pk[label_s]
    covariance_kk = within_sk.T @ within_sk / len(x_sk)
    covariance_kk += 1e-3 * covariance_kk.diagonal().mean() * torch.eye(len(covariance_kk)).to(covariance_kk)
    # Positions are standardized by the covariance within populations.
    factor_kk = torch.linalg.cholesky(torch.linalg.inv(covariance_kk))
    z_nk, center_pk = z_nk @ factor_kk, center_pk @ factor_kk
    trained_p = size_p / len(x_sk)
    share_p, shift_k = trained_p, torch.zeros_like(z_nk[0])
    for _ in range(_ROUNDS):
        square_np = torch.cdist(z_nk - shift_k, center_pk).square()
        member_np = torch.softmax(share_p.clamp(min=math.exp(-50)).log() - 0.5 * square_np, dim=1)
        share_p = (member_np.sum(0) + PRIOR_CELLS * trained_p) / (len(z_nk) + PRIOR_CELLS)
        shift_k = (z_nk - member_np @ center_pk).sum(0) / (len(z_nk) + PRIOR_CELLS)
    return share_p
