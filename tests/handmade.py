"""Decoders, densities and cells made for tests, with a known geometry.

Letters in array shapes: n points, k latent dimensions, g genes, b batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvae_cli.config import ModelConfig
from scvae_cli.latent.neighbor_graph import CellGraph, cell_graph
from scvae_cli.model.density import LatentDensity, fit_density
from scvae_cli.model.vae import VAE


@dataclass(frozen=True)
class FlatGeometry:
    """A decoder that is linear in the isometric coordinates, so that its distances are Euclidean distances after a
    linear map.
    """

    map_gk: Tensor

    @property
    def vae(self) -> Any:
        """The properties of the network, besides `coordinates`, that the tested code reads."""
        return SimpleNamespace(n_genes=len(self.map_gk), reference_library=torch.tensor(1.0))

    def coordinates(self, z_nk: Tensor) -> Tensor:
        """Compute the isometric coordinates y of some points."""
        return z_nk @ self.map_gk.T.to(z_nk)


def flat(k: int = 2, scale: float = 10.0) -> FlatGeometry:
    """Make a flat decoder with one gene per dimension, in which one latent unit is `scale` standard deviations."""
    return FlatGeometry(scale * torch.eye(k))


def random_vae(
    likelihood: str = "nb",
    *,
    n_layers: int = 1,
    batches: tuple[str, ...] = (),
    k: int = 3,
    g: int = 6,
    seed: int = 0,
    decoder: str = "mlp",
) -> VAE:
    """Make an untrained network in float64, in eval mode, whose dispersions and batches have many sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = ModelConfig(
            likelihood=likelihood,
            decoder=decoder,
            n_latent=k,
            n_hidden=24,
            n_layers=n_layers,
            encoder_dropout=0.5,
            decoder_dropout=0.5,
        )
        vae = VAE(config, g, batches)
        some = [vae.decoder.head.raw_log_theta_g] if likelihood != "poisson" else []
        if batches:
            some += [p for _, p in sorted(vae.decoder.batch.named_parameters())]
            vae.batch_share_b.copy_(torch.arange(1.0, len(batches) + 1) / sum(range(1, len(batches) + 1)))
        for parameter in some:
            torch.nn.init.normal_(parameter)
        vae.reference_library.fill_(60.0)
    return vae.double().eval()


def plain_mean(vae: VAE, z_nk: Tensor, library: float) -> Tensor:
    """Compute mean counts in the average batch with plain formulas, differentiable, shape (n, g)."""
    decoder, g = vae.decoder, vae.n_genes
    layers = [(decoder.first, decoder.first_norm), *decoder.hidden.pairs()]
    total_ng: Tensor | float = 0.0
    for b in range(max(1, len(vae.batches))):
        h_nh = z_nk
        for i, (linear, norm) in enumerate(layers):
            h_nh = linear(h_nh)
            if i == 0 and vae.batches:
                h_nh = h_nh + decoder.batch.hidden_bh[b]
            centered_nh = h_nh - h_nh.mean(-1, keepdim=True)
            variance_n = centered_nh.square().mean(-1, keepdim=True)
            u_nh = centered_nh / (variance_n + norm.norm.eps).sqrt() * norm.norm.weight + norm.norm.bias
            h_nh = u_nh / (1 + (-u_nh).exp())
        h_nh = torch.cat([h_nh, z_nk], dim=-1)
        logits_ng = h_nh @ decoder.head.outputs.weight[:g].T + decoder.head.outputs.bias[:g]
        if vae.batches:
            logits_ng = logits_ng + decoder.batch.gene_bg[b]
        share = float(vae.batch_share_b[b]) if vae.batches else 1.0
        total_ng = total_ng + share * library * torch.softmax(logits_ng, dim=-1)
    assert isinstance(total_ng, Tensor)
    return total_ng


def theta_of(vae: VAE) -> Tensor | None:
    """Return the inverse dispersions of a network, or None for Poisson counts."""
    log_theta_g = vae.decoder.head.log_theta_g
    return None if log_theta_g is None else log_theta_g.detach().exp()


def plain_coordinates(vae: VAE, z_nk: Tensor, library: float) -> Tensor:
    """Compute Fisher–Rao coordinates by their definition: 2√θ·asinh(√(μ/θ)), or 2√μ for Poisson counts."""
    mean_ng, theta_g = plain_mean(vae, z_nk, library), theta_of(vae)
    if theta_g is None:
        return 2 * mean_ng.sqrt()
    return 2 * theta_g.sqrt() * torch.asinh((mean_ng / theta_g).sqrt())


def points(array: np.ndarray) -> Tensor:
    """Make a float32 tensor of some points."""
    return torch.as_tensor(np.asarray(array), dtype=torch.float32)


def clusters(centers: np.ndarray, each: int, sd: float = 0.3, seed: int = 0) -> np.ndarray:
    """Draw points around some centers, center by center."""
    random = np.random.default_rng(seed)
    centers = np.asarray(centers, dtype=float)
    return np.repeat(centers, each, axis=0) + sd * random.standard_normal((each * len(centers), centers.shape[1]))


def ring(n: int, radius: float = 2.0, sd: float = 0.15, seed: int = 0) -> np.ndarray:
    """Draw points on a noisy circle, shape (n, 2), in the order of their angles from −π to π."""
    random = np.random.default_rng(seed)
    angle_n = np.sort(random.uniform(-np.pi, np.pi, n))
    radius_n = radius + sd * random.standard_normal(n)
    return np.stack([radius_n * np.cos(angle_n), radius_n * np.sin(angle_n)], axis=1)


def density_of(x_nk: np.ndarray, seed: int = 0) -> LatentDensity:
    """Fit a density to points with an uncertainty of 0.05; every fifth point is held out."""
    x = points(x_nk)
    sure = torch.full_like(x, 0.05**2)
    out = torch.arange(len(x)) % 5 == 0
    return fit_density((x[~out], sure[~out]), (x[out], sure[out]), seed=seed)


def graph_of(x_nk: np.ndarray, geometry: FlatGeometry | None = None, always: np.ndarray | None = None) -> CellGraph:
    """Make the neighbor graph of some points under a flat decoder."""
    chosen = np.empty(0, dtype=np.int64) if always is None else always
    return cell_graph(geometry or flat(np.shape(x_nk)[1]), points(x_nk), always=chosen)
