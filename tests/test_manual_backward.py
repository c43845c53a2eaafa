"""Training steps without autograd: the ELBO and its gradients equal those of float64 autograd through plain torch."""

import copy

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvae_cli.config import ModelConfig
from scvae_cli.data.minibatches import CellTable
from scvae_cli.model.compiled.operations import CompiledOperations
from scvae_cli.model.manual_backward import ElboGradients, can_train
from scvae_cli.model.network import LOG_THETA_MAX
from scvae_cli.model.torch_operations import TorchOperations
from scvae_cli.model.vae import VAE

CPU = torch.device("cpu")
GENES, LATENT, KL_WEIGHT, LABELING = 70, 4, 0.6, 7.0
# Operations for the CPU, and for any device.
FORMS = ["compiled", "torch"]


def random_network(dropout=0.0, n_batches=0, n_cells=24, n_labels=0, **config):
    """A VAE in training mode whose parameters differ from their initial values, cells, and noise."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.4, 3.0, size=(n_cells, GENES))).astype(np.float32)
    counts[:, 0] += 1
    batch_n = rng.integers(n_batches, size=n_cells) if n_batches else None
    network = ModelConfig(
        n_hidden=24, n_latent=LATENT, encoder_dropout=dropout, decoder_dropout=dropout, **({"n_layers": 1} | config)
    )
    torch.manual_seed(1)
    vae = VAE(network, GENES, tuple("abc"[:n_batches]), n_labels=n_labels)
    label_n = rng.integers(-1, n_labels, size=n_cells) if n_labels else None
    vae.reference_library.fill_(200.0)
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(torch.randn_like(p) * 0.3)
        if vae.decoder.head.raw_log_theta_g is not None:
            vae.decoder.head.raw_log_theta_g[0] = LOG_THETA_MAX + 1  # held at its bound
    cells = CellTable(sp.csr_matrix(counts), batch_n, CPU, label_n=label_n).take(np.arange(n_cells))
    return vae.train(), cells, torch.randn(n_cells, LATENT)


def by_autograd(vae, cells, noise_nk):
    terms = vae.elbo_terms(cells, noise_nk.to(next(vae.parameters()).dtype))
    loss = terms.nll + KL_WEIGHT * terms.kl
    if cells.label_n is not None:
        # The mean in torch would be over the labeled cells, but the loss is divided by the number of all cells.
        logits_nc = vae.label_classifier(terms.z_nk)
        labeled = torch.nn.functional.cross_entropy(logits_nc, cells.label_n, ignore_index=-1, reduction="sum")
        loss = loss + LABELING * labeled / cells.n_cells
    found = torch.autograd.grad(loss, list(vae.parameters()))
    return terms.nll.item(), terms.kl.item(), dict(zip(dict(vae.named_parameters()), found, strict=True))


@torch.no_grad()
def without_autograd(vae, cells, noise_nk, form="compiled", *, narrow=False, n_padding=0):
    """Compute the terms of the loss and the gradients without autograd; the last cells may be padding."""
    if form == "compiled":
        operations = CompiledOperations(cells)
    else:
        seed_l = torch.stack([torch.randint(2**31, ()) for _ in range(2 * vae.config.n_layers)])
        share_n = torch.full_like(cells.library_n, 1 / (cells.n_cells - n_padding))
        share_n[cells.n_cells - n_padding :] = 0
        operations = TorchOperations(cells.x_ng, cells.library_n, share_n, seed_l)
    labels = {} if cells.label_n is None else {"label_n": cells.label_n, "labeling": LABELING}
    found = ElboGradients(vae, cells.batch_n, noise_nk, KL_WEIGHT, operations, narrow=narrow, **labels)
    assert set(found.gradients) == set(vae.parameters())
    return float(found.nll), float(found.kl), {name: found.gradients[p] for name, p in vae.named_parameters()}


def distance(got, expected):
    """Compute the distance between gradients, as a share of their length."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "config",
    [
        {"likelihood": "zinb"},
        {"likelihood": "nb", "n_layers": 3},
        {"likelihood": "poisson", "n_layers": 2, "n_batches": 3},
        {"likelihood": "zinb", "n_batches": 2},
        {"likelihood": "nb", "decoder": "linear"},
        {"likelihood": "zinb", "decoder": "linear", "n_batches": 3},
        {"likelihood": "zinb", "n_labels": 3},
    ],
    ids=str,
)
def test_gradients_equal_float64_autograd(config, form):
    vae, cells, noise_nk = random_network(**config)
    assert can_train(vae)
    exact = copy.deepcopy(vae).double()
    library_n1 = cells.x_ng.double().sum(1, keepdim=True)
    exact.encoder.seen = lambda cells, depth: torch.log1p(cells.x_ng.double() * depth / library_n1)
    assert not can_train(exact)
    nll, kl, expected = by_autograd(exact, cells, noise_nk)
    got = without_autograd(vae, cells, noise_nk, form)
    assert got[:2] == pytest.approx((nll, kl), rel=1e-5)
    for name, gradient in got[2].items():
        assert distance(gradient, expected[name]) < 2e-4, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_layers", [1, 2])
def test_dropout_equals_that_of_autograd(n_layers, form):
    vae, cells, noise_nk = random_network(likelihood="zinb", dropout=0.4, n_layers=n_layers)
    torch.manual_seed(5)
    nll, kl, expected = by_autograd(vae, cells, noise_nk)
    torch.manual_seed(5)
    got = without_autograd(vae, cells, noise_nk, form)
    assert got[:2] == pytest.approx((nll, kl), rel=1e-6)
    for name, gradient in got[2].items():
        assert distance(gradient, expected[name]) < 1e-5, name


def test_padding_cells_have_no_effect():
    vae, cells, noise_nk = random_network(likelihood="zinb", n_batches=2, n_labels=3)
    rows = np.arange(20)
    label_n = cells.label_n.numpy()
    table = CellTable(sp.csr_matrix(cells.x_ng.numpy()), cells.batch_n.numpy(), CPU, label_n=label_n)
    expected = without_autograd(vae, table.take(rows), noise_nk[:20], "torch")
    padded = table.take(np.concatenate([rows, [0, 0, 0]]))
    got = without_autograd(vae, padded, noise_nk[:23], "torch", n_padding=3)
    assert got[:2] == pytest.approx(expected[:2], rel=1e-6)
    for name, gradient in got[2].items():
        assert distance(gradient, expected[2][name]) < 1e-5, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_bfloat16_changes_gradients_only_by_rounding(likelihood, form):
    vae, cells, noise_nk = random_network(likelihood=likelihood, n_batches=2, n_cells=96)
    nll, kl, expected = without_autograd(vae, cells, noise_nk)
    got = without_autograd(vae, cells, noise_nk, form, narrow=True)
    assert got[:2] == pytest.approx((nll, kl), rel=5e-3)
    assert got[2]["decoder.head.outputs.weight"].dtype == torch.bfloat16
    for name, gradient in got[2].items():
        # The terms of a product are rounded to 8 bits.
        assert distance(gradient, expected[name]) < 0.06, name


def test_normal_likelihood_is_trained_with_autograd():
    assert not can_train(VAE(ModelConfig(likelihood="normal", n_latent=2, n_hidden=8), GENES))
