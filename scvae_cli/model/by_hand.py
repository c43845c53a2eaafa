"""The negative ELBO and its gradients without autograd, for training on a CPU.

On a CPU autograd's bookkeeping costs a training step of small matrices a quarter of its time. The operations here are
those of `VAE.elbo_terms`, in the same order and with the same draws; what goes backwards stands beside them.

Shapes: n cells, g genes, h hidden units, i inputs, k latent dimensions, b batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scvae_cli.data.minibatches import Minibatch
from scvae_cli.device import Compute
from scvae_cli.model.fused_hidden import Hidden, hidden_gradients, hidden_units
from scvae_cli.model.fused_nll import fused_nll_and_gradients
from scvae_cli.model.fused_posterior import draw, draw_gradients
from scvae_cli.model.likelihood import LOG_THETA_MAX, LOG_THETA_MIN
from scvae_cli.model.network import BatchEffect, CountHead, Decoder, GeneShift, NormalisedHidden, indicator
from scvae_cli.model.normal import NormalHead
from scvae_cli.model.vae import VAE


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
    """Whether this is the way to train a model: one of counts, in float32, on a CPU."""
    return vae.config.of_counts and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in vae.parameters())


class ElboGradients:
    """One step's terms and gradients.

    Parameters
    ----------
    vae
        In training mode: dropout draws from torch's generator, as it does under autograd.
    cells, noise_nk, kl_weight
        The cells, standard normal noise for one sample each, and the weight of the KL.
    compute
        Has the precision of products with a row or column for every gene. The others are float32: they are small, and
        rounding takes longer than it saves.

    Attributes
    ----------
    nll, kl
        −log p(x|z) and KL(q(z|x) ‖ N(0, I)), means over the cells, nats.
    of
        The gradient of nll + kl_weight · kl at every parameter; in bfloat16 where that is the precision.
    """

    @torch.no_grad()
    def __init__(self, vae: VAE, cells: Minibatch, noise_nk: Tensor, kl_weight: float, compute: Compute) -> None:
        self.of: dict[Tensor, Tensor] = {}
        self._compute, self._narrow = compute, compute.precision == "bf16"
        encoder, decoder = vae.encoder, vae.decoder
        h_nh, encoder_layers = self._through(
            encoder.hidden.pairs(), encoder.seen(cells, vae.reference_library), of_genes=True
        )
        statistics_n2k = nn.functional.linear(h_nh, encoder.posterior.weight, encoder.posterior.bias)
        z_nk, self.kl = draw(statistics_n2k, noise_nk)

        batches, pairs, shift_nh = None, [], None
        if decoder.batch is not None and cells.batch_n is not None:
            batches = Batches(indicator(cells.batch_n, decoder.batch.gene_bg), decoder.batch)
        if isinstance(decoder, Decoder):
            pairs = [(decoder.first, decoder.first_norm), *decoder.hidden.pairs()]
        if batches is not None and isinstance(batches.effect, BatchEffect):
            shift_nh = batches.indicator_nb @ batches.effect.hidden_bh
        last_nh, decoder_layers = self._through(pairs, z_nk, shift_nh)

        # The head of a decoder with hidden layers sees the latent position beside the last of them.
        seen_ni = torch.cat([last_nh, z_nk], dim=1) if pairs else z_nk
        d_seen_ni = self._head(decoder.head, seen_ni, batches, cells)
        d_first_nh, d_z_nk = d_seen_ni, d_seen_ni
        if pairs:
            n_hidden = last_nh.shape[1]
            d_first_nh, d_z_nk = self._back(decoder_layers, d_seen_ni[:, :n_hidden])
            d_z_nk += d_seen_ni[:, n_hidden:]
        if batches is not None and isinstance(batches.effect, BatchEffect):
            self.of[batches.effect.hidden_bh] = batches.indicator_nb.T @ d_first_nh

        d_statistics_n2k = draw_gradients(statistics_n2k, noise_nk, d_z_nk, kl_weight)
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
            with self._products(of_genes=of_genes and not layers):
                a_nh = nn.functional.linear(x_ni, linear.weight, linear.bias)
            if shift_nh is not None and not layers:
                a_nh += shift_nh
            made = hidden_units(a_nh, norm.norm.weight, norm.norm.bias, norm.dropout)
            layers.append(Layer(linear, norm, x_ni, made))
            x_ni = made.hidden_nh
        return x_ni, layers

    def _back(self, layers: list[Layer], d_nh: Tensor, *, of_genes: bool = False) -> tuple[Tensor, Tensor]:
        """Gradients at the first layer's linear part and, unless that is genes, at its input."""
        d_a_nh = d_nh
        for place in reversed(range(len(layers))):
            linear, norm, x_ni, made = layers[place]
            weight_h, last = norm.norm.weight, of_genes and place == 0
            d_a_nh, self.of[weight_h], self.of[norm.norm.bias] = hidden_gradients(d_nh, made, weight_h)
            self._of_linear(linear, x_ni, d_a_nh, of_genes=last)
            d_nh = d_a_nh if last else d_a_nh @ linear.weight
        return d_a_nh, d_nh

    def _of_linear(self, linear: nn.Linear, x_ni: Tensor, d_nh: Tensor, *, of_genes: bool = False) -> None:
        dtype = torch.bfloat16 if of_genes and self._narrow else torch.float32
        self.of[linear.weight] = d_nh.to(dtype).T @ x_ni.to(dtype)
        self.of[linear.bias] = d_nh.sum(0)

    def _head(self, head: CountHead | NormalHead, h_nh: Tensor, batches: Batches | None, cells: Minibatch) -> Tensor:
        """From the last hidden units to the likelihood, and back to the gradients at these units."""
        assert isinstance(head, CountHead), "`can_train` was asked"
        weight, bias_g, n_genes = head.outputs.weight, head.outputs.bias, head.n_genes
        with self._products(of_genes=True):
            raw_ng = nn.functional.linear(h_nh, weight)
            if batches is not None:
                raw_ng[:, :n_genes] += batches.indicator_nb @ batches.effect.gene_bg
            nll_n, (d_raw_ng, self.of[bias_g], d_log_theta_g) = fused_nll_and_gradients(
                raw_ng,
                bias_g,
                head.log_theta_g,
                cells.library_n,
                cells.nonzeros,
                narrow=self._narrow,
            )
            if batches is not None:
                self.of[batches.effect.gene_bg] = batches.indicator_nb.T @ d_raw_ng[:, :n_genes].float()
            # Rounded here once, not within each product.
            self.of[weight] = d_raw_ng.T @ h_nh.to(d_raw_ng.dtype)
            d_h_nh = (d_raw_ng @ weight.to(d_raw_ng.dtype)).float()
        raw_log_theta_g = head.raw_log_theta_g
        if raw_log_theta_g is not None and d_log_theta_g is not None:
            inside_g = (raw_log_theta_g >= LOG_THETA_MIN).logical_and(raw_log_theta_g <= LOG_THETA_MAX)
            self.of[raw_log_theta_g] = d_log_theta_g * inside_g
        self.nll = float(nll_n.mean())
        return d_h_nh

    def _products(self, *, of_genes: bool) -> contextlib.AbstractContextManager[object]:
        return self._compute.matrix_products() if of_genes else contextlib.nullcontext()
