"""The variational autoencoder: one encoder, one latent space, one decoder with a likelihood.

Letters in array shapes: n cells, g genes, k latent dimensions, b batches, s samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scvae_cli.config import ModelConfig
from scvae_cli.data.minibatches import Minibatch
from scvae_cli.model.design import Design
from scvae_cli.model.hidden import NormalizedHidden
from scvae_cli.model.network import CountHead, Decoder, Output, RealEncoder, encoder_for, sizes
from scvae_cli.model.normal import NormalHead
from scvae_cli.model.posterior import Posterior, sample_and_kl

# Number of positions that are decoded at once in each batch of a mixture. The decoded values of larger blocks exceed
# the processor's cache, so that with many batches the average takes half as long again.
_BLOCK_POSITIONS = 128


class Mixture(NamedTuple):
    """Batches over which decoded counts are averaged, and the weight of each batch in the average."""

    batch_b: Tensor
    share_b: tuple[float, ...]


class ElboTerms(NamedTuple):
    """The two terms of the negative ELBO, and the latent positions of the cells.

    `nll` and `kl` are the means of −log p(x|z) and of KL(q(z|x) ‖ N(0, I)) over the cells, in nats. `mean_nk` and
    `z_nk` are the posterior mean and a posterior sample of each cell.
    """

    nll: Tensor
    kl: Tensor
    mean_nk: Tensor
    z_nk: Tensor


class VAE(nn.Module):
    """The encoder q(z|x) and the decoder p(x|z, library, batch). `batches` are the names of the decoder's batches.

    The last `n_mapped` of the batches were mapped onto the trained model. `mapped_batches.py` describes the additional
    parameters of mapped batches. Mapped batches have no weight in averages over batches.

    With `n_labels`, a classifier predicts labels from latent positions during the training (`label_loss.py`).

    With a design matrix (several batch keys, or continuous keys), the batches are the combinations of categories in the
    training. A model without batch keys has no batches.
    """

    reference_library: Tensor
    batch_share_b: Tensor

    def __init__(
        self,
        config: ModelConfig,
        n_genes: int,
        batches: Sequence[str] = (),
        *,
        n_mapped: int = 0,
        design: Design | None = None,
        n_labels: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.n_genes = n_genes
        self.n_latent = sizes(config)[0]
        self.design = design
        self.batches = tuple(batches) if design is None else design.names
        self.n_mapped = n_mapped
        self.encoder = encoder_for(config, n_genes, n_shifts=len(self.batches) if n_mapped else 0)
        self.decoder = Decoder(config, n_genes, len(self.batches), design, n_mapped=n_mapped)
        self.label_classifier = _label_classifier(self.n_latent, n_labels) if n_labels else None
        self.register_buffer("reference_library", torch.tensor(1.0))
        self.register_buffer("batch_share_b", torch.ones(len(self.batches)))

    @torch.no_grad()
    def start_from_data(
        self, gene_sums_g: np.ndarray, mean_log_g: np.ndarray, depth: float, batch_n: np.ndarray | None
    ) -> None:
        """Initialize the decoder at the gene proportions of the training cells, and store averages of these cells.

        Parameters
        ----------
        gene_sums_g, mean_log_g
            Sum of the counts of each gene over the training cells, and mean of each gene in the encoder's input before
            centering.
        depth, batch_n
            Median library size of the training cells; index of the batch of each training cell, or None for a model
            without batches.
        """
        assert isinstance(self.decoder.head, CountHead), "counts have proportions"
        # Half a count keeps the log proportion of a gene without counts in the training cells finite.
        proportion_g = (gene_sums_g + 0.5) / (gene_sums_g + 0.5).sum()
        self.decoder.head.start(torch.as_tensor(np.log(proportion_g), dtype=torch.float32))
        self.encoder.centre_g.copy_(torch.as_tensor(mean_log_g))
        self.reference_library.fill_(depth)
        self._note_batches(batch_n)

    @torch.no_grad()
    def start_from_moments(self, mean_g: np.ndarray, variance_g: np.ndarray, batch_n: np.ndarray | None) -> None:
        """Initialize a model of real-valued data at the mean and variance of each feature over the training cells.

        For a constant feature, a standard deviation of 1 is used instead of 0.
        """
        assert isinstance(self.decoder.head, NormalHead), "real numbers have moments"
        assert isinstance(self.encoder, RealEncoder), "the encoder and the head describe the same kind of data"
        mean = torch.as_tensor(mean_g, dtype=torch.float32)
        sd = torch.as_tensor(np.sqrt(np.where(variance_g > 0, variance_g, 1.0)), dtype=torch.float32)
        self.decoder.head.start(mean, sd)
        self.encoder.centre_g.copy_(mean)
        self.encoder.scale_g.copy_(sd)
        self._note_batches(batch_n)

    def _note_batches(self, batch_n: np.ndarray | None) -> None:
        if batch_n is not None:
            share_b = np.bincount(batch_n, minlength=len(self.batches)) / len(batch_n)
            self.batch_share_b.copy_(torch.as_tensor(share_b))

    @property
    def trained_share_b(self) -> Tensor:
        """Proportions of the batches in the training cells, without batches that were mapped after the training."""
        return self.batch_share_b[: len(self.batches) - self.n_mapped]

    @property
    def average(self) -> Mixture | None:
        """The batches of the training, weighted by their proportions, or None for a model without batches."""
        share_b = self.trained_share_b
        if not self.batches:
            return None
        return Mixture(torch.arange(len(share_b), device=share_b.device), tuple(share_b.tolist()))

    @property
    def average_weights(self) -> Tensor | None:
        """Weights of the batch effects in the average over the batches, shape (b,).

        `average_weights` is None for a model without batches. Batches that were mapped onto the model are left out of
        the average. If mapped batches were included with a weight of 0, rounding errors might change the averages
        slightly.
        """
        effect = self.decoder.batch
        if not self.batches or effect is None:
            return None
        share_b = self.trained_share_b
        return share_b if effect.combination_br is None else share_b @ effect.combination_br

    def scale_dropout(self, share: float) -> None:
        """Set the dropout of encoder and decoder to the fraction `share` of the configured values."""
        config = self.config
        for part, dropout in ((self.encoder, config.encoder_dropout), (self.decoder, config.decoder_dropout)):
            for module in part.modules():
                if isinstance(module, NormalizedHidden):
                    module.dropout = share * (dropout or 0.0)

    def encode(self, cells: Minibatch) -> Posterior:
        """Compute the approximate posterior q(z|x) of the cells of a minibatch."""
        return Posterior.from_network(*self.encoder(cells, self.reference_library))

    def decode(self, z_nk: Tensor, batch: Tensor | None) -> Output:
        """Compute p(x|z) at the latent positions `z_nk`, before the library size is applied.

        `batch` holds the index of each position's batch, or the weights of effects that `BatchEffect` takes. A single
        index or row of weights is used for all positions.
        """
        output: Output = self.decoder(z_nk, batch)
        return output

    def elbo_terms(self, cells: Minibatch, noise_nk: Tensor) -> ElboTerms:
        """Compute the two terms of the negative ELBO, with one posterior sample per cell."""
        mean_nk, log_var_nk = self.encoder(cells, self.reference_library)
        z_nk, kl = sample_and_kl(mean_nk, log_var_nk, noise_nk)
        return ElboTerms(self.decode(z_nk, cells.batch_n).mean_nll(cells), kl, mean_nk, z_nk)

    def expected_counts(
        self,
        z_nk: Tensor,
        library_n: Tensor,
        batch: Tensor | Mixture | None,
        *,
        with_zero_inflation: bool = False,
    ) -> Tensor:
        """Compute expected counts, shape (n, g): (1 − π)μ if `with_zero_inflation` is True, and otherwise μ.

        The symbol π stands for the probability of zero inflation. The expected counts of a cell are scaled such that
        their sum is the library size. The positions `z_nk` are in the coordinates of encoder and decoder, not along the
        canonical axes. `batch` gives the batch of each position, as in `decode`. If `batch` is a mixture of batches,
        the expected counts are averaged over the batches of the mixture. If `batch` is None, the expected counts are
        averaged over all batches, weighted by the proportions of the batches in the training cells.
        """
        lowered = with_zero_inflation and self.config.likelihood == "zinb"
        batch = self.average if batch is None else batch
        if isinstance(batch, Mixture):
            z_blocks, library_blocks = (torch.split(part, _BLOCK_POSITIONS) for part in (z_nk, library_n))
            pairs = zip(z_blocks, library_blocks, strict=True)
            mean_ng = torch.cat([self._mixed(z, library, batch, lowered=lowered) for z, library in pairs])
        else:
            mean_ng = self.decode(z_nk, batch).mean_ng(library_n, with_zero_inflation=lowered)
        return mean_ng * (library_n / mean_ng.sum(1)).unsqueeze(1) if lowered else mean_ng

    def _mixed(self, z_nk: Tensor, library_n: Tensor, mixture: Mixture, *, lowered: bool) -> Tensor:
        """Compute expected counts that are averaged over the batches of a mixture, shape (n, g)."""
        mean_ng = torch.zeros(len(z_nk), self.n_genes, device=z_nk.device)
        for same, share in zip(mixture.batch_b, mixture.share_b, strict=True):
            # One row stands for all positions, so that the effects of the batch are computed only once.
            output = self.decode(z_nk, same.unsqueeze(0))
            mean_ng.add_(output.mean_ng(library_n, with_zero_inflation=lowered), alpha=share)
        return mean_ng


def _label_classifier(n_latent: int, n_labels: int) -> nn.Linear:
    """Return a classifier that gives all labels the same probability."""
    classifier = nn.Linear(n_latent, n_labels)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier
