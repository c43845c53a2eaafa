"""The negative log-probability of counts, computed from the decoder's raw outputs, with formulas for its gradients.

Letters in array shapes: n cells, g genes. Symbols: x is a count, μ its mean, θ the inverse dispersion of a gene, a the
zero-inflation logit, σ the logistic function, lgΓ the log gamma function and ψ its derivative.

Let η = log μ, r = μ/θ, ℓ = log1p(r) and h = a + θℓ. Let w be the probability that a count came from the negative
binomial distribution. For a count of zero in a model with zero inflation, w = σ(−h), and otherwise w = 1. One count has
the log-probability

    L = x·(η − log θ − ℓ) − h + [x = 0]·softplus(h) − softplus(−a) + lgΓ(x+θ) − lgΓ(θ) − lgΓ(x+1)

where [x = 0] is 1 for a count of zero, and 0 otherwise. The derivatives of L are

    ∂L/∂η = (x − wμ)/(1+r),      ∂L/∂a = σ(−a) − w,      ∂L/∂log θ = −∂L/∂η − wθℓ + θ·(ψ(x+θ) − ψ(θ)).

The mean μ is the library size times the softmax of the logits over genes. Let d_g be ∂L/∂η of gene g. The derivative of
the log-probability of a cell with respect to the logit of gene g is then d_g − softmax_g · Σ d, with the sum over all
genes. The Poisson distribution is the limit of large θ. The log-probability and its derivatives contain the same
logarithms and exponentials, so all are computed in one pass over the genes.

On a CPU in float32, the log-probability and its derivatives are computed by compiled code (`compiled/count_nll.py`),
and otherwise by `dense_nll` in plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from scvae_cli.data.minibatches import Minibatch
from scvae_cli.model.gradients import Gradients
from scvae_cli.model.log_gamma import log_gamma_terms


def mean_nll(raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, cells: Minibatch) -> Tensor:
    """Compute the negative log-probability of a cell's counts, averaged over cells: a differentiable scalar, nats.

    `raw_ng` is the result of the last matrix product of the decoder, to which `bias_g` has not been added yet. The
    first g columns of raw_ng + bias_g are the logits of the genes, and μ = library size · softmax(logits). With zero
    inflation, `raw_ng` and `bias_g` have 2g columns, and the last g columns of raw_ng + bias_g are the zero-inflation
    logits of the genes. `log_theta_g` is the log inverse dispersion of the genes, or None for a Poisson distribution.
    """
    inputs = (raw_ng, bias_g, log_theta_g, cells, torch.is_grad_enabled())
    mean: Tensor = _MeanNLL.apply(*inputs)  # type: ignore[no-untyped-call]  # torch's
    return mean


class _MeanNLL(torch.autograd.Function):
    """Autograd function of the mean negative log-probability.

    The forward pass computes the mean and its gradients. The backward pass only multiplies the gradients by the
    derivative of the loss with respect to the mean.
    """

    @staticmethod
    def forward(
        ctx: Any, raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, cells: Minibatch, with_gradient: bool
    ) -> Tensor:
        values_n, ctx.gradients = nll_and_gradients(raw_ng, bias_g, log_theta_g, cells, with_gradient=with_gradient)
        return values_n.mean().to(raw_ng.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # The loss is nearly always a sum that contains the negative log-probability, so the factor `grad` is 1 and the
        # product is skipped.
        if grad.device.type != "cpu" or float(grad) != 1.0:
            ctx.gradients = tuple(None if g is None else g * grad for g in ctx.gradients)
        return (*ctx.gradients, None, None)


def nll_and_gradients(
    raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, cells: Minibatch, *, with_gradient: bool
) -> tuple[Tensor, Gradients | None]:
    """Compute the same results as `dense_nll` for a minibatch. On a CPU in float32, compiled code is used."""
    if raw_ng.device.type == "cpu" and raw_ng.dtype == torch.float32:
        # The compiled code is imported only where it is needed, because the import is slow and trajectories need no
        # likelihood.
        from scvae_cli.model.compiled.count_nll import fused_nll

        return fused_nll(raw_ng, bias_g, log_theta_g, cells.library_n, cells.nonzeros, with_gradient=with_gradient)
    return dense_nll(raw_ng, bias_g, log_theta_g, cells.library_n, cells.x_ng, with_gradient=with_gradient)


def dense_nll(
    raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, library_n: Tensor, x_ng: Tensor,
    *, with_gradient: bool, share_n: Tensor | None = None,
) -> tuple[Tensor, Gradients | None]:  # fmt: skip
    """Compute the loss of each cell (the negative log-probability of its counts), and gradients of the mean loss.

    The losses are in nats, shape (n,), float64. The counts `x_ng` are a dense matrix, on any device and in any
    precision. `share_n` is the weight of each cell in the mean loss. If `share_n` is None, every cell has the weight
    1/n.

    No operation of `dense_nll` waits for the GPU, and no shape depends on the counts. A training step with `dense_nll`
    can therefore be recorded as a CUDA graph (a fixed sequence of operations). `torch.where` with a Python number would
    copy the number to the GPU and wait, so `torch.where` is not used here.
    """
    n_genes = x_ng.shape[1]
    outputs_ng = raw_ng + bias_g
    logits_ng = outputs_ng[:, :n_genes]
    zero_logit_ng = outputs_ng[:, n_genes:] if outputs_ng.shape[1] > n_genes else None
    eta_ng = torch.log_softmax(logits_ng, dim=1).add_(library_n.log().unsqueeze(1))
    mu_ng = eta_ng.exp()
    if log_theta_g is None:
        log_prob_ng = x_ng * eta_ng - mu_ng - torch.lgamma(x_ng + 1)
        d_eta_ng, d_theta_ng, d_zero_ng = x_ng - mu_ng, None, None
    else:
        terms = _negative_binomial(eta_ng, mu_ng, x_ng, log_theta_g, zero_logit_ng)
        log_prob_ng, d_eta_ng, d_theta_ng, d_zero_ng = terms
    nll_n = -log_prob_ng.sum(1, dtype=torch.float64)
    if not with_gradient:
        return nll_n, None
    weight_n1 = torch.full_like(library_n, 1 / len(x_ng)) if share_n is None else share_n
    weight_n1 = -weight_n1.to(raw_ng.dtype).unsqueeze(1)
    total_share_n1 = d_eta_ng.sum(1, keepdim=True) / library_n.unsqueeze(1)
    d_outputs_ng = d_eta_ng - mu_ng * total_share_n1
    if d_zero_ng is not None:
        d_outputs_ng = torch.cat([d_outputs_ng, d_zero_ng], dim=1)
    d_outputs_ng = d_outputs_ng * weight_n1
    d_log_theta_g = None if d_theta_ng is None else (d_theta_ng * weight_n1).sum(0)
    return nll_n, (d_outputs_ng, d_outputs_ng.sum(0), d_log_theta_g)


def _negative_binomial(
    eta_ng: Tensor, mu_ng: Tensor, x_ng: Tensor, log_theta_g: Tensor, zero_logit_ng: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute the log-probability of each count and its derivatives ∂/∂η, ∂/∂log θ and ∂/∂a, each of shape (n, g)."""
    theta_g = log_theta_g.exp()
    r_ng = mu_ng / theta_g
    # log1p keeps the log-probability of a zero count accurate where θ is large and μ is small.
    log1p_ng = torch.log1p(r_ng)
    log_gamma_ng, slope_ng = log_gamma_terms(x_ng, theta_g)
    log_prob_ng = x_ng * (eta_ng - log_theta_g - log1p_ng) + log_gamma_ng
    from_nb_ng, d_zero_ng = torch.ones_like(x_ng), None
    if zero_logit_ng is None:
        log_prob_ng = log_prob_ng - theta_g * log1p_ng
    else:
        h_ng = zero_logit_ng + theta_g * log1p_ng
        # softplus(h) is computed as −logsigmoid(−h), because torch's softplus returns h for h above 20, which is less
        # accurate.
        seen_ng = x_ng != 0
        log_prob_ng = log_prob_ng + logsigmoid(zero_logit_ng) - h_ng - logsigmoid(-h_ng).masked_fill(seen_ng, 0.0)
        from_nb_ng = torch.sigmoid(-h_ng).masked_fill(seen_ng, 1.0)
        d_zero_ng = torch.sigmoid(-zero_logit_ng) - from_nb_ng
    d_eta_ng = (x_ng - from_nb_ng * mu_ng) / (1 + r_ng)
    d_theta_ng = theta_g * (slope_ng - from_nb_ng * log1p_ng) - d_eta_ng
    return log_prob_ng, d_eta_ng, d_theta_ng, d_zero_ng
