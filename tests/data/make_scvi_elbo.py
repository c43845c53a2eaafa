"""Make scvi_elbo.json: scvi-tools' ELBO terms for fixed decoder outputs and posteriors.

Run with an interpreter that has scvi-tools (1.4.2 made the file in the repository):

    python tests/data/make_scvi_elbo.py
"""

import json
from pathlib import Path

import scvi
import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from scvi.module import VAE
from torch.distributions import Normal

torch.manual_seed(0)
n, g, k = 6, 15, 4
counts = torch.poisson(torch.rand(n, g) * 4) * (torch.rand(n, g) < 0.4)
counts[:, 0] += 1
counts[2, 3] = 700
library = counts.sum(1)
logits = torch.randn(n, g) * 2
log_theta = torch.randn(g) * 2
zero_logit = torch.randn(n, g) * 3
mean, var, z = torch.randn(n, k), torch.rand(n, k) + 0.05, torch.randn(n, k)

mu = library[:, None] * torch.softmax(logits, dim=1)
theta = log_theta.exp()
likelihoods = {
    "zinb": ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zero_logit),
    "nb": NegativeBinomial(mu=mu, theta=theta),
    "poisson": Poisson(mu),
}
result = {
    "scvi_tools": scvi.__version__,
    "counts": counts.tolist(),
    "logits": logits.tolist(),
    "log_theta": log_theta.tolist(),
    "zero_logit": zero_logit.tolist(),
    "mean": mean.tolist(),
    "var": var.tolist(),
    "elbo": {},
}
for name, px in likelihoods.items():
    module = VAE(n_input=g, n_latent=k, gene_likelihood=name)
    loss = module.loss(
        tensors={"X": counts},
        inference_outputs={"qz": Normal(mean, var.sqrt()), "ql": None, "z": z},
        generative_outputs={"px": px, "pz": Normal(torch.zeros(n, k), torch.ones(n, k)), "pl": None},
        kl_weight=1.0,
    )
    kl = sum(loss.kl_local.values())
    result["elbo"][name] = (-(loss.reconstruction_loss["reconstruction_loss"] + kl)).tolist()
Path(__file__).with_name("scvi_elbo.json").write_text(json.dumps(result) + "\n")
