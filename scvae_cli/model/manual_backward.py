"""One training step without autograd: the negative ELBO of a model of counts, and the gradients of the negative ELBO.

With small matrices on a CPU, the bookkeeping of autograd would take a quarter of the time of a training step. Without
autograd, a training step on a GPU is one sequence of operations, which can be compiled and recorded as a whole. The
forward pass consists of the operations of `VAE.elbo_terms`, in the same order and with the same random numbers. The
operations between the matrix products are implemented twice: as code compiled for the CPU (`compiled/operations.py`),
and in plain torch (`torch_operations.py`).

Letters in array shapes: n cells, g genes, h hidden units, i inputs of a layer, k latent dimensions, b batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from scvae_cli.model.batch_discrepancy import batch_discrepancy
from scvae_cli.model.gradients import Gradients, Hidden
from scvae_cli.model.hidden import NormalizedHidden
from scvae_cli.model.label_loss import label_loss
from scvae_cli.model.network import LOG_THETA_MAX, LOG_THETA_MIN, CountHead, Decoder, Encoder, indicator
from scvae_cli.model.vae import VAE


class Operations(Protocol):
    """The operations between the matrix products of a training step, forward and backward, for one minibatch."""

    def seen(self, encoder: Encoder, reference_library: Tensor) -> Tensor:
        """Compute the scaled, log-transformed and centered counts that the encoder receives, shape (n, g)."""

    def hidden(self, a_nh: Tensor, norm: NormalizedHidden) -> Hidden:
        """Compute the hidden units dropout(SiLU(LayerNorm(a))) of a layer."""

    def hidden_gradients(self, d_hidden_nh: Tensor, made: Hidden, weight_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute gradients with respect to the input (n, h), weight (h,) and bias (h,) of `hidden`.

        `d_hidden_nh` is the gradient of the loss with respect to the result of `hidden`.
        """

    def draw(self, statistics_n2k: Tensor, noise_nk: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a sample from each cell's posterior, shape (n, k), and compute the mean KL over cells, nats."""

    def draw_gradients(self, statistics_n2k: Tensor, noise_nk: Tensor, d_z_nk: Tensor, d_kl: Tensor | float) -> Tensor:
        """Compute the gradients of the loss with respect to the posterior means and log variances `statistics_n2k`.

        `d_z_nk` are the gradients of the loss with respect to the sample. `d_kl` is the derivative of the loss with
        respect to the mean KL.
        """

    def without_padding(self, weight_nb: Tensor) -> Tensor:
        """Return a copy of a matrix in which the rows of padding cells are 0, shape (n, b)."""

    def nll(
        self, raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, *, narrow: bool
    ) -> tuple[Tensor, Gradients]:
        """Compute the mean of −log p(x|z) over cells, and the gradients of this mean.

        With `narrow`, the gradient with respect to `raw_ng` is in bfloat16.
        """


# A layer consists of its two modules, its input and its results.
Layer = tuple[nn.Linear, NormalizedHidden, Tensor, Hidden]


def can_train(vae: VAE) -> bool:
    """Return whether `ElboGradients` can train a model: the model must describe counts and be in float32."""
    return vae.config.of_counts and all(p.dtype == torch.float32 for p in vae.parameters())


class ElboGradients:
    """The terms of the ELBO and their gradients for one training step.

    Parameters
    ----------
    vae, batch, noise_nk, kl_weight
        Model in training mode; batch of each cell in the form that `BatchEffect` takes, or None; standard normal noise
        for the posterior samples; weight of the KL.
    mixing
        Weight of the discrepancy between the batches (`batch_discrepancy.py`), nats. With a weight of 0, the
        discrepancy is not computed.
    label_n, labeling
        Index of each cell's label, −1 for cells without one, and weight of the cross-entropy of the labels
        (`label_loss.py`). With None or a weight of 0, the labels are not used.
    operations
        Operations between the matrix products. The object `operations` also holds the cells of the minibatch.
    narrow
        Whether matrix products over genes, in the encoder's first layer and the decoder's last layer, are in bfloat16.
        All other matrix products are small and always in float32, because rounding their inputs would take more time
        than bfloat16 saves.

    Attributes
    ----------
    nll, kl
        −log p(x|z) and KL(q(z|x) ‖ N(0, I)), means over the cells, scalars, nats.
    penalty
        `mixing` times the discrepancy between the batches, plus `labeling` times the cross-entropy of the labels,
        scalar, nats. If both weights are 0, the penalty is 0.
    gradients
        Gradient of nll + kl_weight · kl + penalty with respect to every parameter. Gradients that are results of
        bfloat16 products are in bfloat16.
    """

    def __init__(
        self, vae: VAE, batch: Tensor | None, noise_nk: Tensor, kl_weight: Tensor | float, operations: Operations,
        *, narrow: bool, mixing: float = 0.0, label_n: Tensor | None = None, labeling: float = 0.0,
    ) -> None:  # fmt: skip
        self.gradients: dict[Tensor, Tensor] = {}
        self._operations, self._dtype_of_genes = operations, torch.bfloat16 if narrow else torch.float32
        encoder, decoder = vae.encoder, vae.decoder
        seen_ng = operations.seen(encoder, vae.reference_library)
        h_nh, encoder_layers = self._through(encoder.hidden.pairs(), seen_ng, of_genes=True)
        statistics_n2k = nn.functional.linear(h_nh, encoder.posterior.weight, encoder.posterior.bias)
        z_nk, self.kl = operations.draw(statistics_n2k, noise_nk)

        pairs, effect = decoder.pairs(), decoder.batch
        weight_nb = None if effect is None or batch is None else effect.weights(batch)
        hidden_bh = None if effect is None else effect.hidden_bh
        shift_nh = None if hidden_bh is None or weight_nb is None else weight_nb @ hidden_bh
        last_nh, decoder_layers = self._through(pairs, z_nk, shift_nh)

        # If the decoder has hidden layers, the inputs of the head are the last hidden layer and the latent position.
        seen_ni = torch.cat([last_nh, z_nk], dim=1) if pairs else z_nk
        d_seen_ni = self._head(decoder, seen_ni, weight_nb)
        d_first_nh, d_z_nk = d_seen_ni, d_seen_ni
        if pairs:
            n_hidden = last_nh.shape[1]
            d_first_nh, d_z_nk = self._back(decoder_layers, d_seen_ni[:, :n_hidden])
            d_z_nk += d_seen_ni[:, n_hidden:]
        if hidden_bh is not None and weight_nb is not None:
            self.gradients[hidden_bh] = weight_nb.T @ d_first_nh

        self.penalty: Tensor | float = 0.0
        classifier = vae.label_classifier
        if labeling and classifier is not None and label_n is not None:
            label_nc = operations.without_padding(indicator(label_n, classifier.weight))
            n_cells = operations.without_padding(torch.ones_like(z_nk[:, :1])).sum()
            found = label_loss(z_nk, label_nc, n_cells, classifier)
            self.penalty = labeling * found.value
            self.gradients[classifier.weight] = labeling * found.d_weight_ck
            self.gradients[classifier.bias] = labeling * found.d_bias_c
            d_z_nk = d_z_nk + labeling * found.d_z_nk

        d_statistics_n2k = operations.draw_gradients(statistics_n2k, noise_nk, d_z_nk, kl_weight)
        if mixing and effect is not None and weight_nb is not None:
            mean_nk, members = statistics_n2k[:, : vae.n_latent], effect.members(operations.without_padding(weight_nb))
            discrepancy, d_mean_nk = batch_discrepancy(mean_nk, *members)
            self.penalty = self.penalty + mixing * discrepancy
            d_statistics_n2k[:, : vae.n_latent] += mixing * d_mean_nk
        self._linear_gradients(encoder.posterior, h_nh, d_statistics_n2k)
        self._back(encoder_layers, d_statistics_n2k @ encoder.posterior.weight, of_genes=True)

    def _through(
        self, pairs: Iterable[tuple[nn.Linear, NormalizedHidden]], x_ni: Tensor, shift_nh: Tensor | None = None,
        *, of_genes: bool = False,
    ) -> tuple[Tensor, list[Layer]]:  # fmt: skip
        """Compute the forward pass through hidden layers.

        `shift_nh` is added to the linear part of the first layer. `of_genes` says whether the inputs of the first layer
        are genes.
        """
        layers: list[Layer] = []
        for linear, norm in pairs:
            dtype = self._dtype_of_genes if of_genes and not layers else torch.float32
            # The input of the layer is rounded here, and the backward pass uses the rounded input again.
            x_ni = x_ni.to(dtype)
            a_nh = nn.functional.linear(x_ni, linear.weight.to(dtype)).float().add_(linear.bias)
            if shift_nh is not None and not layers:
                a_nh += shift_nh
            made = self._operations.hidden(a_nh, norm)
            layers.append((linear, norm, x_ni, made))
            x_ni = made.hidden_nh
        return x_ni, layers

    def _back(self, layers: list[Layer], d_nh: Tensor, *, of_genes: bool = False) -> tuple[Tensor, Tensor]:
        """Run the backward pass through hidden layers, and store the gradients of their parameters.

        The function returns the gradients with respect to the output and the input of the first linear map. `of_genes`
        says whether the input of the first linear map is gene expression. The gradient with respect to gene expression
        is not needed, so the gradient with respect to the output is then returned twice.
        """
        d_a_nh = d_nh
        for index in reversed(range(len(layers))):
            linear, norm, x_ni, made = layers[index]
            weight_h = norm.norm.weight
            d_a_nh, d_weight_h, d_bias_h = self._operations.hidden_gradients(d_nh, made, weight_h)
            self.gradients[weight_h], self.gradients[norm.norm.bias] = d_weight_h, d_bias_h
            self._linear_gradients(linear, x_ni, d_a_nh)
            d_nh = d_a_nh if of_genes and index == 0 else d_a_nh @ linear.weight
        return d_a_nh, d_nh

    def _linear_gradients(self, linear: nn.Linear, x_ni: Tensor, d_nh: Tensor) -> None:
        self.gradients[linear.weight] = d_nh.to(x_ni.dtype).T @ x_ni
        self.gradients[linear.bias] = d_nh.sum(0)

    def _head(self, decoder: Decoder, h_nh: Tensor, weight_nb: Tensor | None) -> Tensor:
        """Compute forward and backward pass of the likelihood head, and return the gradient with respect to `h_nh`."""
        head, effect = decoder.head, decoder.batch
        assert isinstance(head, CountHead), "`can_train` accepts only models of counts"
        bias_g, n_genes = head.outputs.bias, head.n_genes
        h_nh, weight = h_nh.to(self._dtype_of_genes), head.outputs.weight.to(self._dtype_of_genes)
        raw_ng = nn.functional.linear(h_nh, weight).float()
        if effect is not None and weight_nb is not None:
            raw_ng[:, :n_genes] += weight_nb @ effect.gene_bg
        narrow = self._dtype_of_genes == torch.bfloat16
        self.nll, (d_raw_ng, self.gradients[bias_g], d_log_theta_g) = self._operations.nll(
            raw_ng, bias_g, head.log_theta_g, narrow=narrow
        )
        if effect is not None and weight_nb is not None:
            self.gradients[effect.gene_bg] = weight_nb.T @ d_raw_ng[:, :n_genes].float()
        self.gradients[head.outputs.weight] = d_raw_ng.T @ h_nh
        raw_log_theta_g = head.raw_log_theta_g
        if raw_log_theta_g is not None and d_log_theta_g is not None:
            inside_g = (raw_log_theta_g >= LOG_THETA_MIN).logical_and(raw_log_theta_g <= LOG_THETA_MAX)
            self.gradients[raw_log_theta_g] = d_log_theta_g * inside_g
        return (d_raw_ng @ weight).float()
