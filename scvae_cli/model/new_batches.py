"""Addition of new batches to a trained network, before the effects of the new batches are trained.

Letters in array shapes: b batches, h hidden units, g genes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scvae_cli.model.vae import VAE


@torch.no_grad()
def with_new_batches(vae: VAE, new: Sequence[str], *, reference: str) -> VAE:
    """Return a copy of a network that also has the batches `new`.

    The effect of a new batch on the decoder is at first the mean effect of the training batches. The additional
    parameters of the new batches (`mapped_batches.py`) are at first 0. Averages over batches do not include the new
    batches. For cells of the old batches, the copy therefore gives the same results as the original network.

    Parameters
    ----------
    reference
        Name of the batch that contains all training cells, if the network was trained without batches.
    """
    known = vae.batches or (reference,)
    wider = VAE(vae.config, vae.n_genes, (*known, *new), n_mapped=vae.n_mapped + len(new))
    state, own = vae.state_dict(), wider.state_dict()
    for name, tensor in state.items():
        if own[name].shape == tensor.shape:
            own[name].copy_(tensor)
        else:
            own[name][: len(tensor)] = tensor
    share_b = vae.batch_share_b if vae.batches else torch.ones(1)
    own["batch_share_b"].copy_(torch.cat([share_b, share_b.new_zeros(len(new))]))
    effect = vae.decoder.batch
    for name in ("gene_bg", "hidden_bh"):
        of_known = None if effect is None else getattr(effect, name)
        if of_known is not None:
            own[f"decoder.batch.{name}"][len(known) :] = share_b @ of_known
    return wider.to(vae.reference_library.device).eval()
