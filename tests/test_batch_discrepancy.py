"""The penalty on differences between batches is the unbiased maximum mean discrepancy, and its gradient is correct."""

import copy

import numpy as np
import pytest
import torch
from simulated import TINY, tree
from test_manual_backward import KL_WEIGHT, random_network

import scvae_cli as scvae
from scvae_cli.errors import ConfigError
from scvae_cli.model.batch_discrepancy import LEAST_SQUARE, SQUARED_WIDTHS, batch_discrepancy
from scvae_cli.model.compiled.operations import CompiledOperations
from scvae_cli.model.manual_backward import ElboGradients
from scvae_cli.model.network import indicator
from scvae_cli.model.torch_operations import TorchOperations


def cells(sizes, seed=0):
    """Draw positions of cells in batches of given sizes, and make the indicator matrix of the batches, in float64."""
    position_nk = torch.as_tensor(np.random.default_rng(seed).normal(size=(sum(sizes), 3)))
    batch_n = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return position_nk, indicator(batch_n, torch.zeros(len(sizes), 1, dtype=torch.float64))


def plain_discrepancy(position_nk, member_nb):
    """Compute the maximum mean discrepancy by its definition, pair by pair; differentiable."""
    n = len(position_nk)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    square = {(i, j): (position_nk[i] - position_nk[j]).square().sum() for i, j in pairs}
    mean_square = (sum(square.values()).detach() / len(pairs)).clamp(min=LEAST_SQUARE)
    kernel = {p: sum(torch.exp(-s / (w * mean_square)) for w in SQUARED_WIDTHS) / 4 for p, s in square.items()}

    def mean(first, second):
        return sum(kernel[i, j] for i in first for j in second if i != j) / sum(i != j for i in first for j in second)

    total = torch.zeros(())
    for member_n in member_nb.T:
        inside, outside = (torch.where(member_n == value)[0].tolist() for value in (1, 0))
        if min(len(inside), len(outside)) > 1:
            own = mean(inside, inside) + mean(outside, outside) - 2 * mean(inside, outside)
            total = total + len(inside) / n * own
    return total


@pytest.mark.parametrize("sizes", [(5, 7), (4, 1, 6), (3, 2, 2, 5), (1, 8), (9,), (1, 1)])
def test_discrepancy_equals_the_plain_formula_and_its_autograd(sizes):
    position_nk, member_nb = cells(sizes)
    value, gradient_nk = batch_discrepancy(position_nk, member_nb)
    position_nk.requires_grad_()
    expected = plain_discrepancy(position_nk, member_nb)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    if expected.requires_grad:
        (expected_nk,) = torch.autograd.grad(expected, position_nk)
        assert torch.allclose(gradient_nk, expected_nk, atol=1e-10)
    else:
        assert not gradient_nk.any()


def test_padding_has_no_effect():
    position_nk, member_nb = cells((5, 6))
    value, gradient_nk = batch_discrepancy(position_nk, member_nb)
    padded_nk = torch.cat([position_nk, 100 * torch.ones(4, 3, dtype=torch.float64)])
    padded = batch_discrepancy(padded_nk, torch.cat([member_nb, torch.zeros(4, 2, dtype=torch.float64)]))
    assert padded[0].item() == pytest.approx(value.item(), abs=1e-12)
    assert torch.allclose(padded[1], torch.cat([gradient_nk, torch.zeros(4, 3, dtype=torch.float64)]), atol=1e-10)


def test_discrepancy_is_zero_on_average_for_equal_batches_and_positive_for_different_ones():
    same = np.array([batch_discrepancy(*cells((20, 12), seed))[0].item() for seed in range(200)])
    assert abs(same.mean()) < 4 * same.std() / np.sqrt(len(same))
    position_nk, member_nb = cells((20, 12))
    assert batch_discrepancy(position_nk + 3 * member_nb[:, :1], member_nb)[0] > 0.3


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-2])
def test_gradient_vanishes_for_a_collapsed_posterior(spread):
    position_nk, member_nb = cells((30, 40))
    value, gradient_nk = batch_discrepancy(spread * position_nk, member_nb)
    assert value.item() == pytest.approx(0, abs=spread**2 + 1e-12)
    assert gradient_nk.norm() <= 3 * spread + 1e-12, "it vanishes with the spread"


@pytest.mark.parametrize("form", ["compiled", "torch"])
def test_training_step_has_the_gradients_of_float64_autograd(form):
    vae, minibatch, noise_nk = random_network(likelihood="zinb", n_batches=3)
    exact = copy.deepcopy(vae).double()
    library_n1 = minibatch.x_ng.double().sum(1, keepdim=True)
    exact.encoder.seen = lambda cells, depth: torch.log1p(cells.x_ng.double() * depth / library_n1)
    terms = exact.elbo_terms(minibatch, noise_nk.double())
    penalty = 50 * plain_discrepancy(terms.mean_nk, indicator(minibatch.batch_n, exact.decoder.batch.gene_bg))
    found = torch.autograd.grad(terms.nll + KL_WEIGHT * terms.kl + penalty, list(exact.parameters()))
    if form == "compiled":
        operations = CompiledOperations(minibatch)
    else:
        share_n = torch.full_like(minibatch.library_n, 1 / minibatch.n_cells)
        operations = TorchOperations(minibatch.x_ng, minibatch.library_n, share_n, torch.zeros(2, dtype=torch.long))
    with torch.no_grad():
        step = ElboGradients(vae, minibatch.batch_n, noise_nk, KL_WEIGHT, operations, narrow=False, mixing=50.0)
    assert float(step.penalty) == pytest.approx(penalty.item(), rel=1e-4)
    for parameter, expected in zip(vae.parameters(), found, strict=True):
        assert (step.gradients[parameter].double() - expected).norm() < 2e-4 * expected.norm()


@pytest.mark.parametrize("options", [{}, {"flat": 1.0}, {"likelihood": "normal", "variance": 1.0}], ids=str)
def test_larger_weight_of_mix_batches_reduces_the_discrepancy(options):
    adata = tree(n_cells=300, n_genes=60, n_batches=2, batch_sd=0.8, seed=1)
    if "likelihood" in options:
        adata.X = adata.X.log1p()

    def discrepancy(weight):
        model = scvae.train(adata, batch_key="batch", mix_batches=weight, **TINY | options)
        mean_nk = scvae.embed(adata, model, inplace=False).mean_nk
        batch_n = torch.as_tensor(adata.obs["batch"].astype("category").cat.codes.to_numpy(dtype=np.int64))
        return float(batch_discrepancy(torch.as_tensor(mean_nk), indicator(batch_n, torch.zeros(2, 1)))[0])

    assert discrepancy(300.0) < discrepancy(0.0)


def test_mix_batches_without_batch_key_is_refused():
    with pytest.raises(ConfigError, match="mix_batches was given without batch_key"):
        scvae.train(tree(n_cells=60, n_genes=30), mix_batches=1.0)
