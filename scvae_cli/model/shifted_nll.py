"""The loss of counts as a function of the effects of mapped batches on the genes, with formulas for its gradients.

The logits of a cell of batch b are W·h + gene_b + z·slope_b, where h are the inputs of the likelihood head. With
autograd, each sum would need its own pass over cells × genes, forward and backward. The formulas add the effects in
place, and need no gradients with respect to the weights W of the head, which are not trained.

Letters in array shapes: n cells, g genes, i inputs of the head, k latent dimensions, b mapped batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scvae_cli.data.minibatches import Minibatch
from scvae_cli.model.count_nll import nll_and_gradients
from scvae_cli.model.network import CountHead


def shifted_nll(
    head: CountHead,
    inputs_ni: Tensor,
    z_nk: Tensor,
    gene_bg: Tensor,
    slope_bkg: Tensor,
    cells: Minibatch,
    own_n: Tensor,
) -> Tensor:
    """Compute −log p(x|z), averaged over cells: a scalar in nats.

    The result is differentiable with respect to `inputs_ni`, `z_nk`, `gene_bg` and `slope_bkg`.

    Parameters
    ----------
    head, inputs_ni, z_nk
        Likelihood head, its inputs, and the latent positions of the cells.
    gene_bg, slope_bkg
        Shifts of the log proportions of genes in each batch, and their changes along the latent axes.
    own_n
        Index of the batch of each cell, as a row of `gene_bg`.
    """
    loss: Tensor = _ShiftedNLL.apply(inputs_ni, z_nk, gene_bg, slope_bkg, head, cells, own_n)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss


class _ShiftedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs_ni: Tensor, z_nk: Tensor, gene_bg: Tensor, slope_bkg: Tensor, head: CountHead,
        cells: Minibatch, own_n: Tensor,
    ) -> Tensor:  # fmt: skip
        raw_ng = inputs_ni @ head.outputs.weight.T
        logits_ng = raw_ng[:, : head.n_genes]
        ctx.members = [(own_n == b).nonzero().squeeze(1) for b in range(len(gene_bg))]
        for rows, gene_g, slope_kg in zip(ctx.members, gene_bg, slope_bkg, strict=True):
            logits_ng.index_add_(0, rows, torch.addmm(gene_g, z_nk[rows], slope_kg))
        nll_n, gradients = nll_and_gradients(raw_ng, head.outputs.bias, head.log_theta_g, cells, with_gradient=True)
        assert gradients is not None, "with_gradient is True"
        ctx.save_for_backward(gradients[0], z_nk, slope_bkg, head.outputs.weight)
        return nll_n.mean().to(raw_ng.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_raw_ng, z_nk, slope_bkg, weight = ctx.saved_tensors
        d_logits_ng = d_raw_ng[:, : slope_bkg.shape[2]]
        d_z_nk, d_slope_bkg = torch.zeros_like(z_nk), torch.empty_like(slope_bkg)
        d_gene_bg = torch.empty_like(slope_bkg[:, 0])
        for b, rows in enumerate(ctx.members):
            d_own_ng = d_logits_ng[rows]
            d_gene_bg[b] = d_own_ng.sum(0)
            d_slope_bkg[b] = z_nk[rows].T @ d_own_ng
            d_z_nk[rows] = d_own_ng @ slope_bkg[b].T
        parts = (d_raw_ng @ weight, d_z_nk, d_gene_bg, d_slope_bkg)
        return (*(grad * part for part in parts), None, None, None)
