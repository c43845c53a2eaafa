"""Loss of a classifier that predicts the labels of cells from their latent positions, and gradients of the loss.

The classifier of labels is a multinomial logistic regression. During the training of the VAE, the classifier is trained
too, so that the encoder separates the labels. A finished model does not contain the classifier that was trained with
the VAE.

Letters in array shapes: n cells, k latent dimensions, c labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class LabelLoss(NamedTuple):
    """Cross-entropy of the labels (a scalar, in nats per cell), and its gradients.

    The gradients are with respect to the latent positions, and to the weight and bias of the classifier.
    """

    value: Tensor
    d_z_nk: Tensor
    d_weight_ck: Tensor
    d_bias_c: Tensor


def label_loss(z_nk: Tensor, label_nc: Tensor, n_cells: Tensor | int, classifier: nn.Linear) -> LabelLoss:
    """Compute the sum of −log p(label | z) over the labeled cells, divided by the number of all cells.

    Parameters
    ----------
    z_nk
        Latent positions of the cells of a minibatch.
    label_nc
        One-hot encoding of each cell's label. Cells without a label, and cells that only pad the minibatch, have a row
        of zeros.
    n_cells
        Number of cells in the minibatch, without the cells that only pad the minibatch.
    classifier
        The linear map from a latent position to the logits of the labels.
    """
    log_p_nc = torch.log_softmax(nn.functional.linear(z_nk, classifier.weight, classifier.bias), dim=1)
    labeled_n1 = label_nc.sum(1, keepdim=True)
    d_logits_nc = (log_p_nc.exp() * labeled_n1 - label_nc) / n_cells
    return LabelLoss(
        -(label_nc * log_p_nc).sum() / n_cells,
        d_logits_nc @ classifier.weight,
        d_logits_nc.T @ z_nk,
        d_logits_nc.sum(0),
    )
