"""Log-probabilities of counts, written as plain formulas: the reference for `count_nll`, in any dtype.

Letters in array shapes: n cells, g genes. Letters in formulas: x counts, μ mean, θ inverse dispersion of a gene, a
zero-inflation logit. Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def poisson_log_prob(x_ng: Tensor, log_mu_ng: Tensor) -> Tensor:
    """Compute the log-probability of counts under a Poisson, shape (n, g), nats."""
    return x_ng * log_mu_ng - log_mu_ng.exp() - torch.lgamma(x_ng + 1)


def nb_log_prob(x_ng: Tensor, log_mu_ng: Tensor, log_theta_g: Tensor) -> Tensor:
    """Compute the log-probability of counts under a negative binomial of variance μ + μ²/θ, shape (n, g), nats."""
    theta_g = log_theta_g.exp()
    mu_ng = log_mu_ng.exp()
    # log1p keeps the log-probability of zero accurate where θ is large and μ small.
    log_zero_ng = -theta_g * torch.log1p(mu_ng / theta_g)
    return (
        log_zero_ng
        + x_ng * (log_mu_ng - torch.log(theta_g + mu_ng))
        + torch.lgamma(x_ng + theta_g)
        - torch.lgamma(theta_g)
        - torch.lgamma(x_ng + 1)
    )


def zinb_log_prob(x_ng: Tensor, log_mu_ng: Tensor, log_theta_g: Tensor, zero_logit_ng: Tensor) -> Tensor:
    """Compute the log-probability of counts under a zero-inflated negative binomial, shape (n, g), nats."""
    log_nb_ng = nb_log_prob(x_ng, log_mu_ng, log_theta_g)
    log_zero_ng = nb_log_prob(torch.zeros_like(x_ng), log_mu_ng, log_theta_g)
    # −logsigmoid(−v) is log(1 + eᵛ). torch's softplus returns v for v above 20, which is less accurate.
    at_zero_ng = logsigmoid(zero_logit_ng) - logsigmoid(zero_logit_ng - log_zero_ng)
    return torch.where(x_ng == 0, at_zero_ng, log_nb_ng + logsigmoid(-zero_logit_ng))
