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
        logits_ng, log_library_n, log_theta_g, zero_logit_ng, nonzeros, torch.is_grad_enabled()
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
        with_gradient: bool,
    ) -> Tensor:
        eta_ng = torch.log_softmax(logits_ng, dim=1).add_(log_library_n.unsqueeze(1))
        cell = torch.div(nonzeros.flat, logits_ng.shape[1], rounding_mode="floor")
        # What the zero formula leaves out, summed over each cell's nonzeros.
        correction_n = -nonzeros.log_factorial_n
        if log_theta_g is None:
            log_zero_ng, log_x, gradients = _poisson(eta_ng, nonzeros, with_gradient)
        else:
            log_zero_ng, log_x, gradients = _negative_binomial(
                eta_ng, log_theta_g, zero_logit_ng, nonzeros, with_gradient
            )
        log_x -= _at(log_zero_ng, nonzeros.flat)
        correction_n = correction_n.index_add(0, cell, log_x)
        if with_gradient:
            ctx.save_for_backward(eta_ng, log_library_n)
            ctx.gradients = gradients
        return -(log_zero_ng.sum(1, dtype=torch.float64) + correction_n).to(logits_ng.dtype)

    @staticmethod
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        eta_ng, log_library_n = ctx.saved_tensors
        d_eta_ng, d_log_theta_ng, d_zero_ng = ctx.gradients
        scale_n1 = -grad_n.unsqueeze(1)
        d_library_n1 = d_eta_ng.sum(1, keepdim=True)
        rho_ng = (eta_ng - log_library_n.unsqueeze(1)).exp_()
        d_logits_ng = torch.addcmul(d_eta_ng, rho_ng, d_library_n1, value=-1).mul_(scale_n1)
        return (
            d_logits_ng,
            (scale_n1 * d_library_n1).squeeze(1) if ctx.needs_input_grad[1] else None,
            scale_n1.squeeze(1) @ d_log_theta_ng if ctx.needs_input_grad[2] else None,
            scale_n1 * d_zero_ng if ctx.needs_input_grad[3] else None,
            None,
            None,
        )


# ∂L/∂η, ∂L/∂log θ and ∂L/∂a, each of shape (n, g) or None.
_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _poisson(eta_ng: Tensor, nonzeros: Nonzeros, with_gradient: bool) -> tuple[Tensor, Tensor, _Gradients]:
    """Log-probability of zero everywhere, log-probability + log x! of the nonzeros (float64), and gradients."""
    log_zero_ng = -eta_ng.exp()
    flat, value = nonzeros.flat, nonzeros.value
    log_x = value.double() * _at(eta_ng, flat).double() + _at(log_zero_ng, flat).double()
    if not with_gradient:
        return log_zero_ng, log_x, (None, None, None)
    d_eta_ng = log_zero_ng.clone()
    d_eta_ng.view(-1).index_add_(0, flat, value.to(eta_ng.dtype))
    return log_zero_ng, log_x, (d_eta_ng, None, None)


def _negative_binomial(
    eta_ng: Tensor, log_theta_g: Tensor, zero_logit_ng: Tensor | None, nonzeros: Nonzeros, with_gradient: bool
) -> tuple[Tensor, Tensor, _Gradients]:
    """As `_poisson`, with or without zero inflation."""
    flat, gene = nonzeros.flat, nonzeros.gene
    x = nonzeros.value.double()
    theta_g = log_theta_g.exp()
    mu_ng = eta_ng.exp()
    shrink_ng = mu_ng / theta_g
    log1p_ng = torch.log1p(shrink_ng)
    shrink_ng = shrink_ng.add_(1).reciprocal_()  # 1/(1+r) = θ/(θ+μ)
    s_ng = log1p_ng * -theta_g

    theta64_g = theta_g.double()
    theta_x = theta64_g.index_select(0, gene)
    shrink_x = _at(shrink_ng, flat).double()
    # log(μ/(θ+μ)) = η − log θ + log(θ/(θ+μ))
    log_ratio_x = _at(eta_ng, flat).double() - log_theta_g.double().index_select(0, gene) + shrink_x.log()
    log_gamma_x = torch.lgamma(x + theta_x) - torch.lgamma(theta64_g).index_select(0, gene)
    log_x = _at(s_ng, flat).double() + x * log_ratio_x + log_gamma_x
    log_zero_ng = s_ng
    if zero_logit_ng is not None:
        gap_ng = s_ng - zero_logit_ng
        log_zero_ng = softplus(gap_ng).sub_(softplus(-zero_logit_ng))
        zero_logit_x = _at(zero_logit_ng, flat)
        log_x -= softplus(zero_logit_x).double()
    if not with_gradient:
        return log_zero_ng, log_x, (None, None, None)

    d_eta_ng = (mu_ng * shrink_ng).neg_()
    d_theta_ng = (1 - shrink_ng).sub_(log1p_ng)  # r/(1+r) = 1 − 1/(1+r)
    digamma_x = torch.digamma(x + theta_x) - torch.digamma(theta64_g).index_select(0, gene)
    d_theta_x = _at(d_theta_ng, flat).double() - x * shrink_x / theta_x + digamma_x
    d_eta_x = (x - _at(mu_ng, flat)) * shrink_x
    d_zero_ng = None
    if zero_logit_ng is not None:
        d_zero_ng = torch.sigmoid(-zero_logit_ng).mul_(torch.sigmoid(-gap_ng)).mul_(torch.expm1(s_ng)).neg_()
        d_zero_ng.view(-1).index_copy_(0, flat, -torch.sigmoid(zero_logit_x))
        weight_ng = torch.sigmoid(gap_ng)  # posterior probability that a zero came from the NB
        d_eta_ng.mul_(weight_ng)
        d_theta_ng.mul_(weight_ng)
    d_eta_ng.view(-1).index_copy_(0, flat, d_eta_x.to(d_eta_ng.dtype))
    d_theta_ng.view(-1).index_copy_(0, flat, d_theta_x.to(d_theta_ng.dtype))
    return log_zero_ng, log_x, (d_eta_ng, d_theta_ng.mul_(theta_g), d_zero_ng)


def _at(values_ng: Tensor, flat: Tensor) -> Tensor:
    return values_ng.reshape(-1).index_select(0, flat)
