"""The parts a variational autoencoder is composed of: encoder, decoder, covariates, likelihood head.

Shapes: n cells, g genes, h hidden units, k latent dimensions, b batches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scvae_cli.data.minibatches import Minibatch
from scvae_cli.model.likelihood import LOG_THETA_MAX, LOG_THETA_MIN, count_nll


class Posterior(NamedTuple):
    """q(z|x), a Gaussian with diagonal covariance: mean and variance, each of shape (n, k)."""

    mean_nk: Tensor
    var_nk: Tensor

    def sample(self, noise_nk: Tensor) -> Tensor:
        """Move standard normal noise to the posterior, shape (n, k)."""
        return self.mean_nk + self.var_nk.sqrt() * noise_nk

    def kl_nk(self) -> Tensor:
        """KL(q ‖ N(0, 1)) of each cell and dimension, shape (n, k), nats."""
        return 0.5 * (self.mean_nk.square() + self.var_nk - 1 - self.var_nk.log())


class HiddenLayers(nn.Sequential):
    """Linear → LayerNorm → ReLU → dropout, repeated.

    Layers are normalised within each cell, not across the minibatch: a cell's embedding then does not depend on
    which cells it was trained or read with, and a minibatch of one cell is no special case.
    """

    def __init__(self, n_in: int, n_hidden: int, n_layers: int, dropout: float) -> None:
        layers: list[nn.Module] = []
        for i in range(n_layers):
            layers += [nn.Linear(n_in if i == 0 else n_hidden, n_hidden), nn.LayerNorm(n_hidden), nn.ReLU()]
            layers += [nn.Dropout(dropout)]
        super().__init__(*layers)


class Encoder(nn.Module):
    """Counts → posterior. It sees neither the batch nor anything beyond the counts, so new batches embed."""

    def __init__(self, n_genes: int, n_hidden: int, n_layers: int, n_latent: int, dropout: float) -> None:
        super().__init__()
        self.hidden = HiddenLayers(n_genes, n_hidden, n_layers, dropout)
        self.mean = nn.Linear(n_hidden, n_latent)
        self.log_var = nn.Linear(n_hidden, n_latent)

    def forward(self, cells: Minibatch, reference_library: Tensor) -> Posterior:
        """Encode cells at one depth: counts are scaled to the reference library, then log1p."""
        values = cells.nonzeros.value
        cell = torch.div(cells.nonzeros.flat, cells.n_genes, rounding_mode="floor")
        scale_n = reference_library / cells.library_n
        h_nh = self.hidden(cells.scatter(torch.log1p(values * scale_n[cell])))
        # A floor under the variance keeps the KL finite whatever the network says.
        return Posterior(self.mean(h_nh).float(), self.log_var(h_nh).float().clamp(max=10.0).exp() + 1e-4)


class BatchEffect(nn.Module):
    """What a batch changes: a shift of the decoder's first hidden layer, and of every gene's log proportion."""

    def __init__(self, n_batches: int, n_hidden: int, n_genes: int) -> None:
        super().__init__()
        self.hidden_bh = nn.Parameter(torch.zeros(n_batches, n_hidden))
        self.gene_bg = nn.Parameter(torch.zeros(n_batches, n_genes))

    def forward(self, batch_n: Tensor) -> tuple[Tensor, Tensor]:
        """The two shifts of cells in given batches, shapes (n, h) and (n, g)."""
        # A product with indicators, not an indexing: the gradient of an indexing adds up the cells of a batch in
        # whichever order the threads come, and two runs would differ.
        indicator_nb = nn.functional.one_hot(batch_n, len(self.hidden_bh)).to(self.hidden_bh.dtype)
        return indicator_nb @ self.hidden_bh, indicator_nb @ self.gene_bg


class CountHead(nn.Module):
    """Hidden units → the distribution of a cell's counts.

    Parameters
    ----------
    n_hidden, n_genes
        h and g.
    likelihood
        "zinb", "nb" or "poisson".
    """

    def __init__(self, n_hidden: int, n_genes: int, likelihood: str) -> None:
        super().__init__()
        self.logits = nn.Linear(n_hidden, n_genes)
        self.zero_logit = nn.Linear(n_hidden, n_genes) if likelihood == "zinb" else None
        self.raw_log_theta_g = nn.Parameter(torch.zeros(n_genes)) if likelihood != "poisson" else None

    @property
    def log_theta_g(self) -> Tensor | None:
        """Log inverse dispersion, shape (g,); None for a Poisson."""
        if self.raw_log_theta_g is None:
            return None
        return self.raw_log_theta_g.clamp(LOG_THETA_MIN, LOG_THETA_MAX)

    def forward(self, h_nh: Tensor) -> CountOutput:
        """Decoder output before library size and batch."""
        zero_logit_ng = None if self.zero_logit is None else self.zero_logit(h_nh).float()
        return CountOutput(self.logits(h_nh).float(), self.log_theta_g, zero_logit_ng)


class CountOutput(NamedTuple):
    """The distribution of the counts of n cells, up to their library sizes.

    Parameters
    ----------
    logits_ng
        Log proportions of the genes, up to a constant a cell.
    log_theta_g
        Log inverse dispersion, or None.
    zero_logit_ng
        Zero-inflation logits, or None.
    """

    logits_ng: Tensor
    log_theta_g: Tensor | None
    zero_logit_ng: Tensor | None

    def nll_n(self, cells: Minibatch) -> Tensor:
        """Negative log-probability of the cells' counts, shape (n,), nats."""
        return count_nll(self.logits_ng, cells.library_n.log(), cells.nonzeros, self.log_theta_g, self.zero_logit_ng)

    def mean_ng(self, library_n: Tensor, *, with_zero_inflation: bool = False) -> Tensor:
        """Expected counts μ at given library sizes, shape (n, g); zero inflation lowers them on request."""
        mean_ng = torch.softmax(self.logits_ng, dim=1) * library_n.unsqueeze(1)
        if with_zero_inflation and self.zero_logit_ng is not None:
            mean_ng = mean_ng * torch.sigmoid(-self.zero_logit_ng)
        return mean_ng


class Decoder(nn.Module):
    """Latent position (and batch) → distribution of the counts."""

    def __init__(
        self,
        *,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        n_genes: int,
        n_batches: int,
        likelihood: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(n_latent, n_hidden)
        self.first_norm = nn.Sequential(nn.LayerNorm(n_hidden), nn.ReLU(), nn.Dropout(dropout))
        self.hidden = HiddenLayers(n_hidden, n_hidden, n_layers - 1, dropout)
        self.head = CountHead(n_hidden, n_genes, likelihood)
        self.batch = BatchEffect(n_batches, n_hidden, n_genes) if n_batches else None

    def forward(self, z_nk: Tensor, batch_n: Tensor | None) -> CountOutput:
        """Decode positions, each in its batch."""
        h_nh = self.first(z_nk)
        if self.batch is None:
            plain: CountOutput = self.head(self.hidden(self.first_norm(h_nh)))
            return plain
        hidden_shift_nh, gene_shift_ng = self.batch(batch_n)
        output: CountOutput = self.head(self.hidden(self.first_norm(h_nh + hidden_shift_nh)))
        return output._replace(logits_ng=output.logits_ng + gene_shift_ng)
