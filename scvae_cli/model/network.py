"""The parts a variational autoencoder is composed of: encoder, decoder, covariates, likelihood head.

Shapes: n cells, g genes, h hidden units, k latent dimensions, b batches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from scvae_cli.config import ModelConfig
from scvae_cli.data.minibatches import Minibatch
from scvae_cli.data.zinb_draws import draw_zinb
from scvae_cli.model.count_nll import mean_nll, nll_n
from scvae_cli.model.encoder_input import log1p_at_depth
from scvae_cli.model.hidden import HiddenLayers, NormalisedHidden
from scvae_cli.model.isometric import isometric, slope
from scvae_cli.model.likelihood import LOG_THETA_MAX, LOG_THETA_MIN
from scvae_cli.model.normal import NormalHead, NormalOutput


class Encoder(nn.Module):
    """Cells → posterior. It sees neither the batch nor anything beyond the counts, so new batches embed.

    Cells are seen at one depth, scaled to the reference library, then log1p, and as differences from the training
    cells' mean: what all cells share would otherwise be most of what the first layer's normalisation is taken over.
    """

    centre_g: Tensor

    def __init__(self, n_genes: int, n_hidden: int, n_layers: int, n_latent: int, dropout: float) -> None:
        super().__init__()
        self.hidden = HiddenLayers(n_genes, n_hidden, n_layers, dropout)
        self.posterior = nn.Linear(n_hidden, 2 * n_latent)
        self.register_buffer("centre_g", torch.zeros(n_genes))

    def forward(self, cells: Minibatch, reference_library: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x)."""
        h_nh = self.hidden(self.seen(cells, reference_library))
        mean_nk, log_var_nk = self.posterior(h_nh).chunk(2, dim=1)
        return mean_nk, log_var_nk

    def seen(self, cells: Minibatch, reference_library: Tensor) -> Tensor:
        """What goes into the network, shape (n, g)."""
        return log1p_at_depth(cells, reference_library, self.centre_g, fused=self.training)

    def absent_g(self) -> np.ndarray | None:
        """What a gene is given in data that lacks it, shape (g,); None for zero."""
        return None


class RealEncoder(Encoder):
    """The same of real numbers, which are seen as standard deviations from the training cells' mean."""

    scale_g: Tensor

    def __init__(self, n_genes: int, n_hidden: int, n_layers: int, n_latent: int, dropout: float) -> None:
        super().__init__(n_genes, n_hidden, n_layers, n_latent, dropout)
        self.register_buffer("scale_g", torch.ones(n_genes))

    def seen(self, cells: Minibatch, reference_library: Tensor) -> Tensor:  # noqa: ARG002  # as all encoders
        """As that of `Encoder`; real numbers have no depth."""
        return (cells.x_ng - self.centre_g) / self.scale_g

    def absent_g(self) -> np.ndarray:
        """The training cells' mean: zero may be far from all cells."""
        mean_g: np.ndarray = self.centre_g.cpu().numpy()
        return mean_g


class BatchEffect(nn.Module):
    """What a batch changes: a shift of the decoder's first hidden layer, and of every gene's log proportion."""

    def __init__(self, n_batches: int, n_hidden: int, n_genes: int) -> None:
        super().__init__()
        self.hidden_bh = nn.Parameter(torch.zeros(n_batches, n_hidden))
        self.gene_bg = nn.Parameter(torch.zeros(n_batches, n_genes))

    def forward(self, batch_n: Tensor) -> tuple[Tensor, Tensor]:
        """The two shifts of cells in given batches, shapes (n, h) and (n, g)."""
        indicator_nb = indicator(batch_n, self.gene_bg)
        return indicator_nb @ self.hidden_bh, indicator_nb @ self.gene_bg


class GeneShift(nn.Module):
    """What a batch changes where there is no hidden layer: a shift of every gene's log proportion."""

    def __init__(self, n_batches: int, n_genes: int) -> None:
        super().__init__()
        self.gene_bg = nn.Parameter(torch.zeros(n_batches, n_genes))

    def forward(self, batch_n: Tensor) -> Tensor:
        """The shift of cells in given batches, shape (n, g)."""
        return indicator(batch_n, self.gene_bg) @ self.gene_bg


def indicator(batch_n: Tensor, like_bg: Tensor) -> Tensor:
    """1 where a cell is of a batch, shape (n, b)."""
    # A product with indicators, not an indexing: the gradient of an indexing adds up the cells of a batch in whichever
    # order the threads come, and two runs would differ.
    batches_b = torch.arange(len(like_bg), device=batch_n.device)
    return (batch_n.unsqueeze(1) == batches_b).to(like_bg.dtype)


class CountHead(nn.Module):
    """What the decoder makes of a latent position → the distribution of a cell's counts.

    Parameters
    ----------
    n_inputs, n_genes
        Hidden units and latent dimensions that it sees, and g.
    likelihood
        "zinb", "nb" or "poisson".
    """

    def __init__(self, n_inputs: int, n_genes: int, likelihood: str) -> None:
        super().__init__()
        # One matrix for all outputs of a gene: one product is faster than two.
        self.outputs = nn.Linear(n_inputs, 2 * n_genes if likelihood == "zinb" else n_genes)
        self.raw_log_theta_g: nn.Parameter | None = None
        if likelihood != "poisson":
            self.raw_log_theta_g = nn.Parameter(torch.zeros(n_genes))
        self.n_genes = n_genes

    @torch.no_grad()
    def start(self, log_proportion_g: Tensor) -> None:
        """Start at given log proportions of the genes, and where nearly no zero is called technical."""
        self.outputs.bias[: self.n_genes] = log_proportion_g
        # The counts must argue for it.
        self.outputs.bias[self.n_genes :] = -3.0

    @property
    def log_theta_g(self) -> Tensor | None:
        """Log inverse dispersion, shape (g,); None for a Poisson."""
        if self.raw_log_theta_g is None:
            return None
        return self.raw_log_theta_g.clamp(LOG_THETA_MIN, LOG_THETA_MAX)

    def forward(self, h_nh: Tensor) -> CountOutput:
        """Decoder output before library size and batch."""
        # The bias is added where the outputs are used, which saves two walks over them.
        raw_ng = nn.functional.linear(h_nh, self.outputs.weight).float()
        return CountOutput(raw_ng, self.outputs.bias, self.log_theta_g, self.n_genes)

    def push(self, h_nh: Tensor, d_mnh: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the genes, shape (n, g), and tangents d at the hidden units pushed through, (m, n, g)."""
        weight, bias, g = self.outputs.weight, self.outputs.bias, self.n_genes
        return nn.functional.linear(h_nh, weight[:g], bias[:g]), d_mnh @ weight[:g].T

    def push_mean(
        self, logits_ng: Tensor, d_logits_mng: Tensor, *, share: float, library: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """A share of the means that logits stand for, shape (n, g), and of their change along tangents, (m, n, g)."""
        proportion_ng = torch.softmax(logits_ng, dim=1)
        part_ng = share * library * proportion_ng
        # The derivative of the softmax, in logs.
        return part_ng, part_ng * (d_logits_mng - (proportion_ng * d_logits_mng).sum(2, keepdim=True))

    def isometric(self, mean_ng: Tensor) -> Tensor:
        """The isometric coordinate of some means, shape (n, g), standard deviations of a count."""
        return isometric(mean_ng, self._theta_g(mean_ng))

    def isometric_slope(self, mean_ng: Tensor) -> Tensor:
        """Its derivative there, shape (n, g)."""
        return slope(mean_ng, self._theta_g(mean_ng))

    def _theta_g(self, like: Tensor) -> Tensor | None:
        return None if self.log_theta_g is None else self.log_theta_g.to(like).exp()

    def typical_loss(self, nll: Tensor) -> Tensor:
        """What a reconstruction loss −log p(x|z) is measured by: itself, of counts."""
        return nll


class CountOutput(NamedTuple):
    """The distribution of the counts of n cells, up to their library sizes.

    Parameters
    ----------
    raw_ng, bias_g
        What add up to the logits of all genes and then, with zero inflation, their zero logits; shapes (n, g) or
        (n, 2g), and (g,) or (2g,).
    log_theta_g
        Log inverse dispersion, or None.
    n_genes
        g.
    """

    raw_ng: Tensor
    bias_g: Tensor
    log_theta_g: Tensor | None
    n_genes: int

    @property
    def logits_ng(self) -> Tensor:
        """Log proportions of the genes, up to a constant a cell."""
        return self.raw_ng[:, : self.n_genes] + self.bias_g[: self.n_genes]

    @property
    def zero_logit_ng(self) -> Tensor | None:
        """Zero-inflation logits, or None."""
        if self.raw_ng.shape[1] == self.n_genes:
            return None
        return self.raw_ng[:, self.n_genes :] + self.bias_g[self.n_genes :]

    def shifted(self, gene_shift_ng: Tensor) -> CountOutput:
        """The same with the logits moved."""
        rest = self.raw_ng.shape[1] - self.n_genes
        return self._replace(raw_ng=self.raw_ng + nn.functional.pad(gene_shift_ng, (0, rest)))

    def mean_nll(self, cells: Minibatch) -> Tensor:
        """Mean over the cells of the negative log-probability of their counts, a differentiable scalar, nats."""
        return mean_nll(self.raw_ng, self.bias_g, self.log_theta_g, cells)

    @torch.no_grad()
    def nll_n(self, cells: Minibatch) -> Tensor:
        """Negative log-probability of each cell's counts, shape (n,), float64, nats."""
        return nll_n(self.raw_ng, self.bias_g, self.log_theta_g, cells)

    def mean_ng(self, library_n: Tensor, *, with_zero_inflation: bool = False) -> Tensor:
        """Expected counts μ at given library sizes, shape (n, g); zero inflation lowers them on request."""
        mean_ng = torch.softmax(self.logits_ng, dim=1) * library_n.unsqueeze(1)
        zero_logit_ng = self.zero_logit_ng
        if with_zero_inflation and zero_logit_ng is not None:
            mean_ng = mean_ng * torch.sigmoid(-zero_logit_ng)
        return mean_ng

    def own_factor_ng(self, cells: Minibatch, *, with_zero_inflation: bool = False) -> Tensor:
        """E[λ | x] / μ: how far each cell's own count moves the rate it was drawn with, shape (n, g).

        A negative binomial count is a Poisson one whose rate is λ = μ·m, m ~ Gamma(θ, θ): given the count, m is
        Gamma(θ + x, θ + μ). A zero that is technical says nothing about m; with zero inflation it makes λ zero.
        """
        if self.log_theta_g is None:
            return torch.ones_like(self.logits_ng)
        x_ng, mu_ng, theta_g = cells.x_ng, self.mean_ng(cells.library_n), self.log_theta_g.exp()
        factor_ng = (x_ng + theta_g) / (mu_ng + theta_g)
        zero_logit_ng = self.zero_logit_ng
        if zero_logit_ng is None:
            return factor_ng
        technical_ng = torch.sigmoid(zero_logit_ng + theta_g * torch.log1p(mu_ng / theta_g)) * (x_ng == 0)
        factor_ng = factor_ng * (1 - technical_ng)
        return factor_ng if with_zero_inflation else factor_ng + technical_ng

    def draw(self, library_n: Tensor, random: np.random.Generator) -> sp.csr_matrix:
        """One draw of every count, CSR (n, g), float32."""
        mu_ng = self.mean_ng(library_n).cpu().numpy()
        if self.log_theta_g is None:
            return sp.csr_matrix(random.poisson(mu_ng).astype(np.float32))
        zero_inflation = np.zeros(mu_ng.shape[1])
        if self.zero_logit_ng is not None:
            zero_inflation = torch.sigmoid(self.zero_logit_ng.double()).cpu().numpy()
        return draw_zinb(mu_ng, self.log_theta_g.double().exp().cpu().numpy(), zero_inflation, random)


Output = CountOutput | NormalOutput


def head_for(config: ModelConfig, n_inputs: int, n_genes: int) -> CountHead | NormalHead:
    """The likelihood head that a configuration asks for."""
    if config.of_counts:
        return CountHead(n_inputs, n_genes, config.likelihood)
    return NormalHead(n_inputs, n_genes, config.variance)


class Decoder(nn.Module):
    """Latent position (and batch) → distribution of what a cell shows.

    The head sees the hidden units and the latent position itself: what is linear needs no hidden layer.
    """

    def __init__(self, config: ModelConfig, n_genes: int, n_batches: int) -> None:
        super().__init__()
        n_hidden = config.n_hidden
        # Left open only where nobody trains.
        dropout = config.decoder_dropout or 0.0
        self.first = nn.Linear(config.n_latent, n_hidden)
        self.first_norm = NormalisedHidden(n_hidden, dropout)
        self.hidden = HiddenLayers(n_hidden, n_hidden, config.n_layers - 1, dropout)
        self.head = head_for(config, n_hidden + config.n_latent, n_genes)
        self.batch = BatchEffect(n_batches, n_hidden, n_genes) if n_batches else None

    def forward(self, z_nk: Tensor, batch_n: Tensor | None) -> Output:
        """Decode positions, each in its batch."""
        a_nh, gene_shift_ng = self.first(z_nk), None
        if self.batch is not None:
            hidden_shift_nh, gene_shift_ng = self.batch(batch_n)
            a_nh = a_nh + hidden_shift_nh
        output: Output = self.head(torch.cat([self.hidden(self.first_norm(a_nh)), z_nk], dim=1))
        return output if gene_shift_ng is None else output.shifted(gene_shift_ng)

    def push_logits(self, z_nk: Tensor, v_mnk: Tensor, batch_n: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of the genes, shape (n, g), and their change along m tangents at each position, shape (m, n, g).

        Without dropout, and differentiable.
        """
        a_nh, d_mnh = self.first(z_nk), v_mnk @ self.first.weight.T
        shift_ng: Tensor | float = 0.0
        if self.batch is not None:
            hidden_shift_nh, shift_ng = self.batch(batch_n)
            a_nh = a_nh + hidden_shift_nh
        h_nh, d_mnh = self.first_norm.push(a_nh, d_mnh)
        for linear, norm in self.hidden.pairs():
            h_nh, d_mnh = norm.push(linear(h_nh), d_mnh @ linear.weight.T)
        logits_ng, d_mng = self.head.push(torch.cat([h_nh, z_nk], dim=1), torch.cat([d_mnh, v_mnk], dim=2))
        return logits_ng + shift_ng, d_mng


class LinearDecoder(nn.Module):
    """The same without a hidden layer: the head acts on the latent position, and a batch shifts genes alone.

    Its weights are loadings: of gene g on latent axis k, in log proportion a latent unit (of real numbers, standard
    deviations of the feature).
    """

    def __init__(self, config: ModelConfig, n_genes: int, n_batches: int) -> None:
        super().__init__()
        self.head = head_for(config, config.n_latent, n_genes)
        self.batch = GeneShift(n_batches, n_genes) if n_batches else None

    def forward(self, z_nk: Tensor, batch_n: Tensor | None) -> Output:
        """Decode positions, each in its batch."""
        output: Output = self.head(z_nk)
        return output if self.batch is None else output.shifted(self.batch(batch_n))

    def push_logits(self, z_nk: Tensor, v_mnk: Tensor, batch_n: Tensor | None) -> tuple[Tensor, Tensor]:
        """As that of `Decoder`."""
        logits_ng, d_mng = self.head.push(z_nk, v_mnk)
        return logits_ng if self.batch is None else logits_ng + self.batch(batch_n), d_mng


def decoder_for(config: ModelConfig, n_genes: int, n_batches: int) -> Decoder | LinearDecoder:
    """The decoder that a configuration asks for."""
    return (LinearDecoder if config.decoder == "linear" else Decoder)(config, n_genes, n_batches)


def encoder_for(config: ModelConfig, n_genes: int) -> Encoder:
    """The encoder that a configuration asks for."""
    kind = Encoder if config.of_counts else RealEncoder
    # Left open only where nobody trains.
    dropout = config.encoder_dropout or 0.0
    return kind(n_genes, config.n_hidden, config.n_layers, config.n_latent, dropout)
