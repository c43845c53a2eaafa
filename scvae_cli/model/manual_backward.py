"""The negative ELBO and its gradients without autograd: a training step of counts.

On a CPU autograd's bookkeeping costs a training step of small matrices a quarter of its time; on a GPU a step without
it is one stretch of tensor operations, which can be compiled and recorded as a whole. The operations here are those of
`VAE.elbo_terms`, in the same order and with the same draws; what goes backwards stands beside them. Between the matrix
products they are someone else's: compiled for the CPU (`by_hand_compiled.py`), or plain torch (`by_hand_torch.py`).

Shapes: n cells, g genes, h hidden units, i inputs, k latent dimensions, b batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from scvae_cli.model.gradients import Gradients, Hidden
from scvae_cli.model.hidden import NormalisedHidden
from scvae_cli.model.likelihood import LOG_THETA_MAX, LOG_THETA_MIN
from scvae_cli.model.network import BatchEffect, CountHead, Decoder, Encoder, GeneShift, indicator
from scvae_cli.model.normal import NormalHead
from scvae_cli.model.vae import VAE


class Operations(Protocol):
    """What a step on some cells does between its matrix products, forwards and backwards."""

    def seen(self, encoder: Encoder, reference_library: Tensor) -> Tensor:
        """What the encoder sees of the cells, shape (n, g)."""

    def hidden(self, a_nh: Tensor, norm: NormalisedHidden) -> Hidden:
        """dropout(SiLU(LayerNorm(a)))."""

    def hidden_gradients(self, d_hidden_nh: Tensor, made: Hidden, weight_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients at the linear part (n, h), the norm's weight and its bias (h,) from those at the hidden units."""

    def draw(self, statistics_n2k: Tensor, noise_nk: Tensor) -> tuple[Tensor, Tensor]:
        """From means and log variances, side by side: a sample of each posterior (n, k), and the mean KL to N(0, I)."""

    def draw_gradients(
        self, statistics_n2k: Tensor, noise_nk: Tensor, d_z_nk: Tensor, kl_weight: Tensor | float
    ) -> Tensor:
        """Gradients at means and log variances from those at the samples, and of kl_weight · KL, shape (n, 2k)."""

    def nll(
        self, raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, *, narrow: bool
    ) -> tuple[Tensor, Gradients]:
        """The mean over the cells of −log p(x|z), and its gradients; `narrow`: in raw outputs, in bfloat16."""


class Layer(NamedTuple):
    """What a layer was, saw and made."""

    linear: nn.Linear
    norm: NormalisedHidden
    x_ni: Tensor
    made: Hidden


class Batches(NamedTuple):
    """Which batch each cell is of, 1 or 0, and what batches change."""

    indicator_nb: Tensor
    effect: BatchEffect | GeneShift


def can_train(vae: VAE) -> bool:
    """Whether this is the way to train a model: one of counts, in float32."""
    return vae.config.of_counts and all(p.dtype == torch.float32 for p in vae.parameters())


class ElboGradients:
    """One step's terms and gradients.

    Parameters
    ----------
    vae
        In training mode.
    batch_n, noise_nk, kl_weight
        Index of each cell's batch, or None; standard normal noise for one sample each; the weight of the KL.
    operations
        On the cells.
    narrow
        Whether products with a row or column for every gene are in bfloat16. The others are float32: they are small,
        and rounding takes longer than it saves.

    Attributes
    ----------
    nll, kl
        −log p(x|z) and KL(q(z|x) ‖ N(0, I)), means over the cells, scalars, nats.
    of
        The gradient of nll + kl_weight · kl at every parameter; in bfloat16 where that is the precision.
    """

    def __init__(
        self,
        vae: VAE,
        batch_n: Tensor | None,
        noise_nk: Tensor,
        kl_weight: Tensor | float,
        operations: Operations,
        *,
        narrow: bool,
    ) -> None:
        self.of: dict[Tensor, Tensor] = {}
        self._operations, self._dtype_of_genes = operations, torch.bfloat16 if narrow else torch.float32
        encoder, decoder = vae.encoder, vae.decoder
        seen_ng = operations.seen(encoder, vae.reference_library)
        h_nh, encoder_layers = self._through(encoder.hidden.pairs(), seen_ng, of_genes=True)
        statistics_n2k = nn.functional.linear(h_nh, encoder.posterior.weight, encoder.posterior.bias)
        z_nk, self.kl = operations.draw(statistics_n2k, noise_nk)

        batches, pairs, shift_nh = None, [], None
        if decoder.batch is not None and batch_n is not None:
            batches = Batches(indicator(batch_n, decoder.batch.gene_bg), decoder.batch)
        if isinstance(decoder, Decoder):
            pairs = [(decoder.first, decoder.first_norm), *decoder.hidden.pairs()]
        if batches is not None and isinstance(batches.effect, BatchEffect):
            shift_nh = batches.indicator_nb @ batches.effect.hidden_bh
        last_nh, decoder_layers = self._through(pairs, z_nk, shift_nh)

        # The head of a decoder with hidden layers sees the latent position beside the last of them.
        seen_ni = torch.cat([last_nh, z_nk], dim=1) if pairs else z_nk
        d_seen_ni = self._head(decoder.head, seen_ni, batches)
        d_first_nh, d_z_nk = d_seen_ni, d_seen_ni
        if pairs:
            n_hidden = last_nh.shape[1]
            d_first_nh, d_z_nk = self._back(decoder_layers, d_seen_ni[:, :n_hidden])
            d_z_nk += d_seen_ni[:, n_hidden:]
        if batches is not None and isinstance(batches.effect, BatchEffect):
            self.of[batches.effect.hidden_bh] = batches.indicator_nb.T @ d_first_nh

        d_statistics_n2k = operations.draw_gradients(statistics_n2k, noise_nk, d_z_nk, kl_weight)
        self._of_linear(encoder.posterior, h_nh, d_statistics_n2k)
        self._back(encoder_layers, d_statistics_n2k @ encoder.posterior.weight, of_genes=True)

    def _through(
        self,
        pairs: Iterable[tuple[nn.Linear, NormalisedHidden]],
        x_ni: Tensor,
        shift_nh: Tensor | None = None,
        *,
        of_genes: bool = False,
    ) -> tuple[Tensor, list[Layer]]:
        """Hidden units after layers; a shift is added to the linear part of the first, whose inputs may be genes."""
        layers: list[Layer] = []
        for linear, norm in pairs:
            dtype = self._dtype_of_genes if of_genes and not layers else torch.float32
            # Rounded here once, not within each product.
            x_ni = x_ni.to(dtype)
            a_nh = nn.functional.linear(x_ni, linear.weight.to(dtype)).float().add_(linear.bias)
            if shift_nh is not None and not layers:
                a_nh += shift_nh
            made = self._operations.hidden(a_nh, norm)
            layers.append(Layer(linear, norm, x_ni, made))
            x_ni = made.hidden_nh
        return x_ni, layers

    def _back(self, layers: list[Layer], d_nh: Tensor, *, of_genes: bool = False) -> tuple[Tensor, Tensor]:
        """Gradients at the first layer's linear part and, unless that is genes, at its input."""
        d_a_nh = d_nh
        for place in reversed(range(len(layers))):
            linear, norm, x_ni, made = layers[place]
            weight_h, last = norm.norm.weight, of_genes and place == 0
            d_a_nh, self.of[weight_h], self.of[norm.norm.bias] = self._operations.hidden_gradients(d_nh, made, weight_h)
            self._of_linear(linear, x_ni, d_a_nh)
            d_nh = d_a_nh if last else d_a_nh @ linear.weight
        return d_a_nh, d_nh

    def _of_linear(self, linear: nn.Linear, x_ni: Tensor, d_nh: Tensor) -> None:
        self.of[linear.weight] = d_nh.to(x_ni.dtype).T @ x_ni
        self.of[linear.bias] = d_nh.sum(0)

    def _head(self, head: CountHead | NormalHead, h_nh: Tensor, batches: Batches | None) -> Tensor:
        """From the last hidden units to the likelihood, and back to the gradients at these units."""
        assert isinstance(head, CountHead), "`can_train` was asked"
        bias_g, n_genes = head.outputs.bias, head.n_genes
        h_nh, weight = h_nh.to(self._dtype_of_genes), head.outputs.weight.to(self._dtype_of_genes)
        raw_ng = nn.functional.linear(h_nh, weight).float()
        if batches is not None:
            raw_ng[:, :n_genes] += batches.indicator_nb @ batches.effect.gene_bg
        narrow = self._dtype_of_genes == torch.bfloat16
        self.nll, (d_raw_ng, self.of[bias_g], d_log_theta_g) = self._operations.nll(
            raw_ng, bias_g, head.log_theta_g, narrow=narrow
        )
        if batches is not None:
            self.of[batches.effect.gene_bg] = batches.indicator_nb.T @ d_raw_ng[:, :n_genes].float()
        self.of[head.outputs.weight] = d_raw_ng.T @ h_nh
        d_h_nh = (d_raw_ng @ weight).float()
        raw_log_theta_g = head.raw_log_theta_g
        if raw_log_theta_g is not None and d_log_theta_g is not None:
            inside_g = (raw_log_theta_g >= LOG_THETA_MIN).logical_and(raw_log_theta_g <= LOG_THETA_MAX)
            self.of[raw_log_theta_g] = d_log_theta_g * inside_g
        return d_h_nh
