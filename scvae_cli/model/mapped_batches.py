"""Additional parameters of batches that were mapped onto a trained model.

- **Decoder**: the effect of a mapped batch on the log proportion of a gene may differ between populations of cells. A
  treatment, for example, may change some genes in T cells only, and other genes in monocytes only. A mapped batch
  therefore has an additional effect z·slope, which is linear in the latent position z.
- **Encoder**: a mapped batch has a shift of the first hidden layer, which is equivalent to a shift of the input. A
  mapped batch also has an affine map of the posterior mean, mean + mean·turn + move. The shift and the affine map
  move the cells of a mapped batch to the latent positions of similar training cells.

The additional parameters are 0 for the batches of the training and for unknown batches. Mapping therefore does not
change the results for training cells and for cells of unknown batches.

Letters in array shapes: n cells, k latent dimensions, h hidden units, g genes, b batches, d mapped batches, m tangent
vectors per cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Responses(nn.Module):
    """Effects of mapped batches that change linearly along the latent axes.

    The mapped batches are the last batches of a model.
    """

    def __init__(self, n_mapped: int, n_latent: int, n_genes: int) -> None:
        super().__init__()
        self.slope_dkg = nn.Parameter(torch.zeros(n_mapped, n_latent, n_genes))

    def forward(self, z_nk: Tensor, batch: Tensor, n_batches: int) -> Tensor:
        """Return the additional shift of the log proportions at the latent positions `z_nk`, shape (n, g).

        `batch` is the index of each cell's batch, shape (n,), or the weights of the batches, shape (n, b). The last
        columns of the weights may be left out if they are 0. If no position is in a mapped batch, the result has a
        single row of zeros.
        """
        return self._along(z_nk, self._shares(batch, n_batches))

    def push(self, v_mnk: Tensor, batch: Tensor, n_batches: int) -> Tensor:
        """Return the derivatives of the shift of log proportions along directions `v_mnk`, shape (m, n, g)."""
        return self._along(v_mnk, self._shares(batch, n_batches))

    def _shares(self, batch: Tensor, n_batches: int) -> Tensor:
        """Return the weight of each mapped batch for each cell, shape (n, d)."""
        first = n_batches - len(self.slope_dkg)
        if batch.dim() == 1:
            mapped_d = torch.arange(first, n_batches, device=batch.device)
            return (batch.unsqueeze(1) == mapped_d).to(self.slope_dkg.dtype)
        weight_nd = batch[:, first:]
        return nn.functional.pad(weight_nd, (0, len(self.slope_dkg) - weight_nd.shape[1]))

    def _along(self, direction_nk: Tensor, share_nd: Tensor) -> Tensor:
        shift_ng = direction_nk.new_zeros(1, self.slope_dkg.shape[2])
        for share_n, slope_kg in zip(share_nd.T, self.slope_dkg, strict=True):
            if share_n.any():
                shift_ng = shift_ng + share_n.unsqueeze(1) * (direction_nk @ slope_kg)
        return shift_ng


class EncoderShifts(nn.Module):
    """Changes of the encoder for each batch: a shift of the first hidden layer, and a map of the posterior mean."""

    def __init__(self, n_batches: int, n_hidden: int, n_latent: int) -> None:
        super().__init__()
        self.hidden_bh = nn.Parameter(torch.zeros(n_batches, n_hidden))
        self.turn_bkk = nn.Parameter(torch.zeros(n_batches, n_latent, n_latent))
        self.move_bk = nn.Parameter(torch.zeros(n_batches, n_latent))

    def first_nh(self, first_nh: Tensor, member_nb: Tensor) -> Tensor:
        """Add the shift of each cell's batch to the output of the encoder's first linear map, shape (n, h)."""
        return first_nh + member_nb @ self.hidden_bh

    def mean_nk(self, mean_nk: Tensor, member_nb: Tensor) -> Tensor:
        """Transform the posterior mean of each cell by the affine map of the cell's batch, shape (n, k)."""
        turned_nk = torch.einsum("nb,nk,bkj->nj", member_nb, mean_nk, self.turn_bkk)
        return mean_nk + turned_nk + member_nb @ self.move_bk
