"""The components of the variational autoencoder: encoder, decoder, batch effects and likelihood head.

Letters in array shapes: n cells, g genes, h hidden units, k latent dimensions, b batches.
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
from scvae_cli.model.count_nll import mean_nll, nll_and_gradients
from scvae_cli.model.design import Design
from scvae_cli.model.encoder_input import log1p_at_depth
from scvae_cli.model.hidden import HiddenLayers, NormalizedHidden
from scvae_cli.model.isometric import isometric, slope
from scvae_cli.model.mapped_batches import EncoderShifts, Responses
from scvae_cli.model.normal import NormalHead, NormalOutput

# Bounds on the inverse dispersion θ. Below the lower bound, float32 cannot distinguish the counts of a gene from pure
# noise. Above the upper bound, float32 cannot distinguish the distribution of the counts from a Poisson distribution.
LOG_THETA_MIN, LOG_THETA_MAX = -9.210340371976182, 9.210340371976182  # log(1e-4), log(1e4)


class Encoder(nn.Module):
    """Network that maps a cell to its posterior. The batch is not an input, so cells of new batches can be embedded.

    If batches were mapped onto the model, the mapped batches shift the first hidden layer and the posterior mean
    (`mapped_batches.py`).

    Counts are scaled to the reference library size, which is the median library size of the training cells. The scaled
    counts are then log1p-transformed and centered on the mean of the training cells. Without centering, the expression
    that all cells have in common would dominate the normalization of the first layer.
    """

    centre_g: Tensor

    def __init__(
        self, n_genes: int, n_hidden: int, n_layers: int, n_latent: int, dropout: float, *, n_shifts: int = 0
    ) -> None:
        super().__init__()
        self.hidden = HiddenLayers(n_genes, n_hidden, n_layers, dropout)
        self.posterior = nn.Linear(n_hidden, 2 * n_latent)
        self.register_buffer("centre_g", torch.zeros(n_genes))
        self.shifts = EncoderShifts(n_shifts, n_hidden, n_latent) if n_shifts else None

    def forward(self, cells: Minibatch, reference_library: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the mean and the log variance of q(z|x), each of shape (n, k)."""
        first_nh = self.first_nh(cells, reference_library)
        if self.shifts is None or cells.batch_n is None:
            return self.after_first(first_nh)
        member_nb = indicator(cells.batch_n, self.shifts.hidden_bh)
        mean_nk, log_var_nk = self.after_first(self.shifts.first_nh(first_nh, member_nb))
        return self.shifts.mean_nk(mean_nk, member_nb), log_var_nk

    def first_nh(self, cells: Minibatch, reference_library: Tensor) -> Tensor:
        """Compute the output of the first linear map, before the shift of a batch is added, shape (n, h)."""
        first_nh: Tensor = self.hidden[0](self.seen(cells, reference_library))
        return first_nh

    def after_first(self, first_nh: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and log variance of q(z|x) from the output of the first linear map, each of shape (n, k)."""
        mean_nk, log_var_nk = self.posterior(self.hidden.after_first(first_nh)).chunk(2, dim=1)
        return mean_nk, log_var_nk

    def seen(self, cells: Minibatch, reference_library: Tensor) -> Tensor:
        """Compute the input of the encoder from the counts of cells, shape (n, g)."""
        return log1p_at_depth(cells, reference_library, self.centre_g, fused=self.training)

    def absent_g(self) -> np.ndarray | None:
        """Return the values that replace missing genes in new data, shape (g,). None means zeros."""
        return None


class RealEncoder(Encoder):
    """Encoder of real numbers, which are standardized by the mean and standard deviation of the training cells."""

    scale_g: Tensor

    def __init__(
        self, n_genes: int, n_hidden: int, n_layers: int, n_latent: int, dropout: float, *, n_shifts: int = 0
    ) -> None:
        super().__init__(n_genes, n_hidden, n_layers, n_latent, dropout, n_shifts=n_shifts)
        self.register_buffer("scale_g", torch.ones(n_genes))

    def seen(self, cells: Minibatch, reference_library: Tensor) -> Tensor:  # noqa: ARG002  # all encoders have this argument
        """Standardize the features of the cells, shape (n, g)."""
        return (cells.x_ng - self.centre_g) / self.scale_g

    def absent_g(self) -> np.ndarray:
        """Return the values that replace missing features in new data: the means over the training cells, shape (g,).

        Missing features are not set to 0, because 0 may be far from the values of all cells.
        """
        return np.asarray(self.centre_g.cpu())


class BatchEffect(nn.Module):
    """Effect of a batch on the decoder: a shift of the output for every gene, and a shift of the first hidden layer.

    For counts, the shifted output is the log proportion of a gene. In a linear decoder, which has no hidden layer, only
    the output is shifted.

    A model with several covariates has a design matrix (`design.py`), and one effect for each category and each
    continuous key. The shift of a cell is then the sum of its effects. With a design matrix, the letter b in array
    shapes counts effects, not batches. `combination_br` is the design matrix of the combinations.
    """

    combination_br: Tensor | None

    def __init__(self, n_batches: int, n_hidden: int, n_genes: int, design: Design | None = None) -> None:
        super().__init__()
        n_effects = n_batches if design is None else design.n_effects
        self.hidden_bh = nn.Parameter(torch.zeros(n_effects, n_hidden)) if n_hidden else None
        self.gene_bg = nn.Parameter(torch.zeros(n_effects, n_genes))
        self.register_buffer("combination_br", None if design is None else torch.tensor(design.combination_br))
        self._blocks = () if design is None else design.blocks

    def forward(self, batch: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the shifts of the hidden layer, shape (n, h), and of the genes, shape (n, g).

        The method `weights` describes the argument `batch`.
        """
        weight_nb = self.weights(batch)
        b = weight_nb.shape[1]
        return None if self.hidden_bh is None else weight_nb @ self.hidden_bh[:b], weight_nb @ self.gene_bg[:b]

    def weights(self, batch: Tensor) -> Tensor:
        """Return the weights of the effects for each cell, shape (n, b).

        `batch` is the index of each cell's batch, shape (n,), or the weights themselves, shape (n, b). A batch index
        means a weight of 1 for this batch and 0 for all other batches. In a model with a design matrix, a batch index
        selects a row of the design matrix as weights. If the weights are proportions of batches, the shift is the
        weighted mean of the shifts of the batches. The last columns of the weights may be left out if they are 0.
        Instead of one index or row for each cell, `batch` may hold a single index or row for all cells.
        """
        if batch.dim() == 2:
            return batch.to(self.gene_bg.dtype)
        # The design matrix is not trained, so indexing it needs no gradient. (The function `indicator` says why
        # gradients of indexing are avoided.)
        return indicator(batch, self.gene_bg) if self.combination_br is None else self.combination_br[batch]

    @property
    def of_numbers_alone(self) -> bool:
        """Whether the model has continuous keys, but no batch keys."""
        return self.combination_br is not None and len(self.combination_br) == 0

    def members(self, weight_nb: Tensor) -> list[Tensor]:
        """Return, for each batch key, the columns of `weight_nb` that indicate the category of each cell."""
        return [weight_nb] if self.combination_br is None else [weight_nb[:, block] for block in self._blocks]


def indicator(batch_n: Tensor, like_bg: Tensor) -> Tensor:
    """Return a matrix with 1 in the column of each cell's batch, and 0 in all other columns, shape (n, b)."""
    # Batch effects are computed as a matrix product with indicators and not by indexing. The gradient of indexing sums
    # over the cells of a batch in the order in which threads happen to run. With indexing, two trainings with the same
    # seed would therefore differ.
    batches_b = torch.arange(len(like_bg), device=batch_n.device)
    return (batch_n.unsqueeze(1) == batches_b).to(like_bg.dtype)


class CountHead(nn.Module):
    """Likelihood head of counts: the last layer of the decoder, which gives the distribution of a cell's counts.

    `likelihood` is "zinb", "nb" or "poisson".
    """

    def __init__(self, n_inputs: int, n_genes: int, likelihood: str) -> None:
        super().__init__()
        # One matrix computes all outputs of a gene, because one matrix product is faster than two.
        self.outputs = nn.Linear(n_inputs, 2 * n_genes if likelihood == "zinb" else n_genes)
        self.raw_log_theta_g = None if likelihood == "poisson" else nn.Parameter(torch.zeros(n_genes))
        self.n_genes = n_genes

    @torch.no_grad()
    def start(self, log_proportion_g: Tensor) -> None:
        """Initialize the biases at given log proportions of the genes, shape (g,), and at a low zero inflation."""
        self.outputs.bias[: self.n_genes] = log_proportion_g
        # Training raises the zero inflation if there are more zeros than a negative binomial distribution would give.
        self.outputs.bias[self.n_genes :] = -3.0

    @property
    def log_theta_g(self) -> Tensor | None:
        """Log inverse dispersion of each gene, shape (g,), or None for a Poisson distribution."""
        if self.raw_log_theta_g is None:
            return None
        return self.raw_log_theta_g.clamp(LOG_THETA_MIN, LOG_THETA_MAX)

    def forward(self, h_nh: Tensor) -> CountOutput:
        """Compute the decoder output, before library size and batch effect are applied."""
        # The bias is added only where the outputs are used, which saves two passes over the outputs.
        raw_ng = nn.functional.linear(h_nh, self.outputs.weight).float()
        return CountOutput(raw_ng, self.outputs.bias, self.log_theta_g, self.n_genes)

    def push(self, h_nh: Tensor, d_mnh: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits of the genes, shape (n, g), and their derivatives along directions d, shape (m, n, g)."""
        weight, bias, g = self.outputs.weight, self.outputs.bias, self.n_genes
        return nn.functional.linear(h_nh, weight[:g], bias[:g]), d_mnh @ weight[:g].T

    def push_mean(
        self, logits_ng: Tensor, d_logits_mng: Tensor, *, share: float, library: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Compute the contribution of one batch to expected counts, and its derivatives along directions.

        Expected counts are averaged over batches. `share` is the weight of the batch, by which the expected counts of
        the batch are multiplied. The contribution has shape (n, g), and the changes along m directions have shape
        (m, n, g).
        """
        proportion_ng = torch.softmax(logits_ng, dim=1)
        part_ng = share * library * proportion_ng
        # The difference in parentheses is the derivative of the log-softmax.
        return part_ng, part_ng * (d_logits_mng - (proportion_ng * d_logits_mng).sum(2, keepdim=True))

    def isometric(self, mean_ng: Tensor) -> Tensor:
        """Compute the isometric coordinates (`geometry.py`) of expected counts, shape (n, g)."""
        return isometric(mean_ng, self._theta_g(mean_ng))

    def isometric_slope(self, mean_ng: Tensor) -> Tensor:
        """Compute the derivative of the isometric coordinates at expected counts, shape (n, g)."""
        return slope(mean_ng, self._theta_g(mean_ng))

    def _theta_g(self, like: Tensor) -> Tensor | None:
        return None if self.log_theta_g is None else self.log_theta_g.to(like).exp()

    def typical_loss(self, nll: Tensor) -> Tensor:
        """Return a typical size of the reconstruction loss −log p(x|z). For counts, this size is the loss itself.

        The flatness penalty (`training/flatness.py`) is weighted by the typical size of the loss, so that the same
        value of `--flat` suits models with few and with many genes.
        """
        return nll


class CountOutput(NamedTuple):
    """The distribution of the counts of n cells, before their library sizes are applied.

    The fields `raw_ng`, `bias_g` and `log_theta_g` are arguments of `count_nll.mean_nll`, which describes them.
    """

    raw_ng: Tensor
    bias_g: Tensor
    log_theta_g: Tensor | None
    n_genes: int

    @property
    def logits_ng(self) -> Tensor:
        """Logits of the genes: log proportions up to a constant per cell, shape (n, g)."""
        return self.raw_ng[:, : self.n_genes] + self.bias_g[: self.n_genes]

    @property
    def zero_logit_ng(self) -> Tensor | None:
        """Zero-inflation logits, shape (n, g), or None for a model without zero inflation."""
        if self.raw_ng.shape[1] == self.n_genes:
            return None
        return self.raw_ng[:, self.n_genes :] + self.bias_g[self.n_genes :]

    def shifted(self, gene_shift_ng: Tensor) -> CountOutput:
        """Return a copy of the output in which `gene_shift_ng` is added to the logits of the genes.

        A single row is added to the logits of all cells.
        """
        shift_no = nn.functional.pad(gene_shift_ng, (0, self.raw_ng.shape[1] - self.n_genes))
        if len(shift_no) == 1 < len(self.raw_ng):
            # A shift that all cells share is a change of the bias, and needs no pass over the outputs.
            return self._replace(bias_g=self.bias_g + shift_no[0])
        return self._replace(raw_ng=self.raw_ng + shift_no)

    def mean_nll(self, cells: Minibatch) -> Tensor:
        """Compute the negative log-probability of the counts, averaged over cells: a differentiable scalar, nats."""
        return mean_nll(self.raw_ng, self.bias_g, self.log_theta_g, cells)

    @torch.no_grad()
    def nll_n(self, cells: Minibatch) -> Tensor:
        """Compute the negative log-probability of each cell's counts, shape (n,), float64, nats."""
        return nll_and_gradients(self.raw_ng, self.bias_g, self.log_theta_g, cells, with_gradient=False)[0]

    def mean_ng(self, library_n: Tensor, *, with_zero_inflation: bool = False) -> Tensor:
        """Compute expected counts, shape (n, g): (1 − π)μ if `with_zero_inflation` is True, and otherwise μ.

        The symbol π stands for the probability of zero inflation.
        """
        mean_ng = torch.softmax(self.logits_ng, dim=1) * library_n.unsqueeze(1)
        zero_logit_ng = self.zero_logit_ng
        if with_zero_inflation and zero_logit_ng is not None:
            mean_ng = mean_ng * torch.sigmoid(-zero_logit_ng)
        return mean_ng

    def own_factor_ng(self, cells: Minibatch, *, with_zero_inflation: bool = False) -> Tensor:
        """Compute the factor E[λ | x] / μ by which a cell's own count x changes the expected rate, shape (n, g).

        A negative binomial count is a Poisson count with the rate λ = μ·m, where m ~ Gamma(θ, θ). Given the count x,
        the distribution of m is Gamma(θ + x, θ + μ), with the mean (θ + x) / (θ + μ). A technical zero, that is, a zero
        from zero inflation, contains no information on the rate, so the factor of a technical zero is 1. If
        `with_zero_inflation` is True, the factor of a technical zero is 0. Whether a zero is technical is not known, so
        the factors of technical and other zeros are averaged, weighted by their probabilities.
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
        """Draw every count once at given library sizes. The result is a CSR matrix of shape (n, g) in float32."""
        mu_ng = self.mean_ng(library_n).cpu().numpy()
        if self.log_theta_g is None:
            return sp.csr_matrix(random.poisson(mu_ng).astype(np.float32))
        zero_inflation = np.zeros(mu_ng.shape[1])
        if self.zero_logit_ng is not None:
            zero_inflation = torch.sigmoid(self.zero_logit_ng.double()).cpu().numpy()
        return draw_zinb(mu_ng, self.log_theta_g.double().exp().cpu().numpy(), zero_inflation, random)


Output = CountOutput | NormalOutput


def head_for(config: ModelConfig, n_inputs: int, n_genes: int) -> CountHead | NormalHead:
    """Return the likelihood head for a configuration."""
    if config.of_counts:
        return CountHead(n_inputs, n_genes, config.likelihood)
    return NormalHead(n_inputs, n_genes, config.variance)


class Decoder(nn.Module):
    """Network that maps latent position and batch to the distribution of a cell's counts or features.

    The inputs of the last layer are the hidden units and the latent position itself, so that linear effects of the
    latent position need no hidden layer. A linear decoder has no hidden units, and its weights are the loadings of the
    genes on the latent axes. For counts, a loading is the change of the log proportion per latent unit. For real
    numbers, a loading is the change of the feature per latent unit, in standard deviations of the feature.
    """

    def __init__(
        self, config: ModelConfig, n_genes: int, n_batches: int, design: Design | None = None, *, n_mapped: int = 0
    ) -> None:
        super().__init__()
        n_latent, n_hidden = sizes(config)
        self.n_hidden = 0 if config.decoder == "linear" else n_hidden
        if self.n_hidden:
            # Dropout is None only in a network that will not be trained.
            dropout = config.decoder_dropout or 0.0
            self.first = nn.Linear(n_latent, self.n_hidden)
            self.first_norm = NormalizedHidden(self.n_hidden, dropout)
            self.hidden = HiddenLayers(self.n_hidden, self.n_hidden, config.n_layers - 1, dropout)
        self.head = head_for(config, self.n_hidden + n_latent, n_genes)
        conditioned = n_batches > 0 or design is not None
        self.batch = BatchEffect(n_batches, self.n_hidden, n_genes, design) if conditioned else None
        self.n_batches = n_batches
        self.responses = Responses(n_mapped, n_latent, n_genes) if n_mapped else None

    def pairs(self) -> list[tuple[nn.Linear, NormalizedHidden]]:
        """Return the linear part of each hidden layer, together with its normalization and activation."""
        return [(self.first, self.first_norm), *self.hidden.pairs()] if self.n_hidden else []

    def forward(self, z_nk: Tensor, batch: Tensor | None) -> Output:
        """Decode latent positions. `batch` gives the batch of each position in the form that `BatchEffect` takes."""
        return self.shifted(z_nk, *self._shifts(z_nk, batch))

    def _shifts(self, z_nk: Tensor, batch: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the shifts of the first hidden layer and of the output for each cell.

        A shift of 0 in all cells is returned as None. `batch` may be None for a decoder without batches.
        """
        if self.batch is None or (batch is None and self.batch.of_numbers_alone):
            return None, None
        assert batch is not None, "a decoder with batches needs the batch of each cell"
        shift_nh, shift_ng = self.batch(batch)
        if self.responses is not None:
            shift_ng = shift_ng + self.responses(z_nk, batch, self.n_batches)
        return shift_nh, shift_ng

    def shifted(self, z_nk: Tensor, shift_nh: Tensor | None, shift_ng: Tensor | None) -> Output:
        """Decode latent positions with given shifts of the first hidden layer and the output. None means no shift."""
        output: Output = self.head(self.before_head(z_nk, shift_nh))
        return output if shift_ng is None else output.shifted(shift_ng)

    def before_head(self, z_nk: Tensor, shift_nh: Tensor | None) -> Tensor:
        """Compute the inputs of the last layer (hidden units and latent position) with a shift of the first layer."""
        if not self.n_hidden:
            return z_nk
        a_nh = self.first(z_nk) if shift_nh is None else self.first(z_nk) + shift_nh
        return torch.cat([self.hidden(self.first_norm(a_nh)), z_nk], dim=1)

    def push_logits(self, z_nk: Tensor, v_mnk: Tensor, batch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute logits of the genes, shape (n, g), and their derivatives along directions v, shape (m, n, g).

        `batch` holds the index of each cell's batch, or the weights that `BatchEffect` takes. Dropout is not applied.
        The result is differentiable.
        """
        shift_nh, shift_ng = self._shifts(z_nk, batch)
        h_ni, d_mni = z_nk, v_mnk
        for linear, norm in self.pairs():
            a_nh = linear(h_ni) if shift_nh is None else linear(h_ni) + shift_nh
            h_ni, d_mni = norm.push(a_nh, d_mni @ linear.weight.T)
            shift_nh = None  # Batch effects shift only the first layer.
        if self.n_hidden:
            h_ni, d_mni = torch.cat([h_ni, z_nk], dim=1), torch.cat([d_mni, v_mnk], dim=2)
        logits_ng, d_mng = self.head.push(h_ni, d_mni)
        if self.responses is not None and batch is not None:
            d_mng = d_mng + self.responses.push(v_mnk, batch, self.n_batches)
        return logits_ng if shift_ng is None else logits_ng + shift_ng, d_mng


def sizes(config: ModelConfig) -> tuple[int, int]:
    """Return the numbers of latent dimensions and of hidden units.

    Before `sizes` is called, `settle` (`training/recipe.py`) must replace sizes that are None by defaults.
    """
    assert config.n_latent is not None, "`settle` chooses the sizes before the network is made"
    assert config.n_hidden is not None, "`settle` chooses the sizes before the network is made"
    return config.n_latent, config.n_hidden


def encoder_for(config: ModelConfig, n_genes: int, *, n_shifts: int = 0) -> Encoder:
    """Return the encoder for a configuration.

    `n_shifts` is the number of batches if the encoder has shifts for mapped batches, and otherwise 0.
    """
    kind = Encoder if config.of_counts else RealEncoder
    # Dropout is None only in a network that will not be trained.
    dropout = config.encoder_dropout or 0.0
    n_latent, n_hidden = sizes(config)
    return kind(n_genes, n_hidden, config.n_layers, n_latent, dropout, n_shifts=n_shifts)
