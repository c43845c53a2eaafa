"""Log-probabilities of counts: plain formulas, and the zero-aware form training uses.

Shapes: n cells, g genes. x counts, μ mean, θ inverse dispersion per gene, a zero-inflation logit.
Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.

The plain functions (`poisson_log_prob`, `nb_log_prob`, `zinb_log_prob`) work in any dtype and differentiate by
autograd: they are the reference. `count_nll` is the same quantity from the decoder's raw outputs, with the gradients
written by hand: real matrices are 85–99% zeros, so the dense part is evaluated with the (cheap) formula for zero and
only the nonzeros, gathered by index, are corrected. Their lgΓ differences are taken in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scvae_cli.data.minibatches import Nonzeros

# Inverse dispersion is kept where float32 can tell it from its limits: below, a gene is all noise; above, Poisson.
LOG_THETA_MIN, LOG_THETA_MAX = -9.210340371976182, 9.210340371976182  # log(1e-4), log(1e4)


def poisson_log_prob(x_ng: Tensor, log_mu_ng: Tensor) -> Tensor:
    """Log-probability of counts under a Poisson, shape (n, g), nats.

    >>> poisson_log_prob(torch.tensor([0.0]), torch.tensor([0.0]))
    tensor([-1.])
    """
    return x_ng * log_mu_ng - log_mu_ng.exp() - torch.lgamma(x_ng + 1)


def nb_log_prob(x_ng: Tensor, log_mu_ng: Tensor, log_theta_g: Tensor) -> Tensor:
    """Log-probability of counts under a negative binomial, shape (n, g), nats.

    Parameters
    ----------
    x_ng
        Counts.
    log_mu_ng
        Log of the mean.
    log_theta_g
        Log of the inverse dispersion: the variance is μ + μ²/θ.
    """
    theta_g = log_theta_g.exp()
    mu_ng = log_mu_ng.exp()
    # log1p keeps the log-probability of zero exact where θ is large and μ small.
    log_zero_ng = -theta_g * torch.log1p(mu_ng / theta_g)
    return (
        log_zero_ng
        + x_ng * (log_mu_ng - torch.log(theta_g + mu_ng))
        + torch.lgamma(x_ng + theta_g)
        - torch.lgamma(theta_g)
        - torch.lgamma(x_ng + 1)
    )


def zinb_log_prob(x_ng: Tensor, log_mu_ng: Tensor, log_theta_g: Tensor, zero_logit_ng: Tensor) -> Tensor:
    """Log-probability of counts under a zero-inflated negative binomial, shape (n, g), nats.

    Parameters
    ----------
    x_ng, log_mu_ng, log_theta_g
        As for `nb_log_prob`.
    zero_logit_ng
        Logit of the probability that a count is zero whatever its mean.
    """
    log_nb_ng = nb_log_prob(x_ng, log_mu_ng, log_theta_g)
    log_zero_ng = nb_log_prob(torch.zeros_like(x_ng), log_mu_ng, log_theta_g)
    at_zero_ng = softplus(log_zero_ng - zero_logit_ng) - softplus(-zero_logit_ng)
    return torch.where(x_ng == 0, at_zero_ng, log_nb_ng - softplus(zero_logit_ng))


def nonzeros_of(x_ng: Tensor) -> Nonzeros:
    """Gather the nonzeros of a dense block (training has them from the sparse matrix already)."""
    flat = torch.nonzero(x_ng.reshape(-1)).squeeze(1)
    value = x_ng.reshape(-1)[flat]
    log_factorial_n = torch.lgamma(x_ng.double() + 1).sum(1)
    return Nonzeros(flat, flat % x_ng.shape[1], value, log_factorial_n)


def count_nll(
    logits_ng: Tensor,
    log_library_n: Tensor,
    nonzeros: Nonzeros,
    log_theta_g: Tensor | None = None,
    zero_logit_ng: Tensor | None = None,
) -> Tensor:
    """Negative log-probability of each cell's counts, shape (n,), nats; μ = library · softmax(logits).

    Parameters
    ----------
    logits_ng
        The decoder's output before the softmax over genes.
    log_library_n
        Log of each cell's library size.
    nonzeros
        The cells' counts.
    log_theta_g
        Log inverse dispersion; None for a Poisson.
    zero_logit_ng
        Zero-inflation logits; None for no zero inflation.
    """
    nll_n: Tensor = _CountNLL.apply(  # type: ignore[no-untyped-call]  # torch leaves Function.apply untyped
        logits_ng, log_library_n, log_theta_g, zero_logit_ng, nonzeros
    )
    return nll_n


class _CountNLL(torch.autograd.Function):
    """Value and gradient in one forward pass; the backward pass only scales.

    With η = log μ, L the log-probability, r = μ/θ and s = −θ·log1p(r):
    at zero (NB)    ∂L/∂η = −μ/(1+r)            ∂L/∂θ = r/(1+r) − log1p(r)
    at zero (ZINB)  the same times σ(s−a)        ∂L/∂a = −expm1(s)·σ(a−s)·σ(−a)
    above zero      ∂L/∂η = (x−μ)/(1+r)          ∂L/∂θ = r/(1+r) − log1p(r) − x/(θ+μ) + ψ(x+θ) − ψ(θ)
                    ∂L/∂a = −σ(a)
    The softmax turns ∂/∂η into ∂/∂logits: d_g − softmax_g · Σ d.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_ng: Tensor,
        log_library_n: Tensor,
        log_theta_g: Tensor | None,
        zero_logit_ng: Tensor | None,
        nonzeros: Nonzeros,
    ) -> Tensor:
        flat, gene, value, log_factorial_n = nonzeros
        n_genes = logits_ng.shape[1]
        eta_ng = torch.log_softmax(logits_ng, dim=1).add_(log_library_n.unsqueeze(1))
        mu_ng = eta_ng.exp()
        x, x32 = value.double(), value.to(logits_ng.dtype)
        cell = torch.div(flat, n_genes, rounding_mode="floor")
        eta_x = _at(eta_ng, flat)
        mu_x = _at(mu_ng, flat)
        d_zero_ng = None

        if log_theta_g is None:  # Poisson
            nll_n = mu_ng.sum(1, dtype=torch.float64) + log_factorial_n
            nll_n.index_add_(0, cell, -(x * eta_x.double()))
            d_eta_ng = -mu_ng
            d_eta_ng.view(-1).index_add_(0, flat, x32)
        else:
            theta_g = log_theta_g.exp()
            r_ng = mu_ng / theta_g
            log1p_ng = torch.log1p(r_ng)
            s_ng = log1p_ng * -theta_g
            shrink_ng = r_ng.add_(1).reciprocal_()  # 1/(1+r) = θ/(θ+μ)
            d_eta_ng = (mu_ng * shrink_ng).neg_()
            d_theta_ng = (1 - shrink_ng).sub_(log1p_ng)  # r/(1+r) = 1 − 1/(1+r)
            s_x = _at(s_ng, flat)
            shrink_x = _at(shrink_ng, flat)
            d_theta_zero_x = _at(d_theta_ng, flat)

            theta64_g = theta_g.double()
            theta_x = theta64_g[gene]
            # log(μ/(θ+μ)) = η − log θ + log(θ/(θ+μ))
            log_ratio_x = (eta_x - log_theta_g[gene] + shrink_x.log()).double()
            log_gamma_x = torch.lgamma(x + theta_x) - torch.lgamma(theta64_g)[gene]
            digamma_x = torch.digamma(x + theta_x) - torch.digamma(theta64_g)[gene]
            log_nb_x = s_x.double() + x * log_ratio_x + log_gamma_x  # − log x!, which log_factorial_n holds
            d_theta_x = d_theta_zero_x.double() - x * shrink_x.double() / theta_x + digamma_x

            if zero_logit_ng is None:
                nll_n = log_factorial_n - s_ng.sum(1, dtype=torch.float64)
                nll_n.index_add_(0, cell, s_x.double() - log_nb_x)
            else:
                a_ng = zero_logit_ng
                gap_ng = s_ng - a_ng
                at_zero_ng = softplus(gap_ng) - softplus(-a_ng)
                weight_ng = torch.sigmoid(gap_ng)  # posterior probability that a zero came from the NB
                a_x = _at(a_ng, flat)
                nll_n = log_factorial_n - at_zero_ng.sum(1, dtype=torch.float64)
                log_x = log_nb_x - softplus(a_x).double()
                nll_n.index_add_(0, cell, _at(at_zero_ng, flat).double() - log_x)
                d_zero_ng = torch.sigmoid(-a_ng).mul_(torch.sigmoid(-gap_ng)).mul_(torch.expm1(s_ng)).neg_()
                d_zero_ng.view(-1).index_copy_(0, flat, -torch.sigmoid(a_x))
                d_eta_ng.mul_(weight_ng)
                d_theta_ng.mul_(weight_ng)
            d_eta_ng.view(-1).index_copy_(0, flat, (x32 - mu_x) * shrink_x)
            d_theta_ng.view(-1).index_copy_(0, flat, d_theta_x.to(d_theta_ng.dtype))
            ctx.theta_g, ctx.d_theta_ng = theta_g, d_theta_ng

        ctx.save_for_backward(eta_ng, log_library_n)
        ctx.d_eta_ng, ctx.d_zero_ng = d_eta_ng, d_zero_ng
        return nll_n.to(logits_ng.dtype)

    @staticmethod
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        eta_ng, log_library_n = ctx.saved_tensors
        scale_n1 = -grad_n.unsqueeze(1)
        rho_ng = (eta_ng - log_library_n.unsqueeze(1)).exp_()
        d_logits_ng = ctx.d_eta_ng - rho_ng * ctx.d_eta_ng.sum(1, keepdim=True)
        d_theta_g = None
        if ctx.needs_input_grad[2]:
            d_theta_g = ctx.theta_g * (scale_n1 * ctx.d_theta_ng).sum(0)
        d_zero_ng = scale_n1 * ctx.d_zero_ng if ctx.needs_input_grad[3] else None
        d_library_n = None
        if ctx.needs_input_grad[1]:
            d_library_n = scale_n1.squeeze(1) * ctx.d_eta_ng.sum(1)
        return d_logits_ng.mul_(scale_n1), d_library_n, d_theta_g, d_zero_ng, None


def _at(values_ng: Tensor, flat: Tensor) -> Tensor:
    return values_ng.reshape(-1).index_select(0, flat)
