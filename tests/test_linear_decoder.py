"""With `--decoder linear`, logits are affine in the latent position, and all commands work with a linear decoder.

Letters in array shapes: n points, m tangents, k latent dimensions, g genes, b batches.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from command_line import run_ok
from handmade import random_vae
from simulated import counts_of, tiny_config, tree
from workbench import USAGE, assert_refused

from scvae_cli.config import ModelConfig, RunConfig
from scvae_cli.model.bundle import load
from scvae_cli.model.geometry import Geometry
from scvae_cli.training.fit import Finished, Stopped, fit
from scvae_cli.training.flatness import flatness_penalty
from scvae_cli.training.recipe import settle

BATCHES = ("a", "b", "c")
with_and_without_batches = pytest.mark.parametrize("batches", [(), BATCHES])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch_of(vae, n: int) -> torch.Tensor | None:
    return torch.arange(n) % len(vae.batches) if vae.batches else None


@torch.no_grad()
@with_and_without_batches
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_logits_are_affine_in_the_position(likelihood, batches):
    vae = random_vae(likelihood, batches=batches, decoder="linear")
    z_nk, batch_n = normal(7, 3), batch_of(vae, 7)
    head, g = vae.decoder.head, vae.n_genes
    output = vae.decoder(z_nk, batch_n)
    expected_ng = z_nk @ head.outputs.weight[:g].T + head.outputs.bias[:g]
    if batches:
        expected_ng = expected_ng + vae.decoder.batch.gene_bg[batch_n]
    # The head returns float32.
    torch.testing.assert_close(output.logits_ng.double(), expected_ng, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vae.decoder.push_logits(z_nk, normal(1, 7, 3), batch_n)[0], expected_ng)
    assert (output.zero_logit_ng is not None) == (likelihood == "zinb")
    # Without curvature, the logits in the middle between two positions are the mean of their logits.
    middle = vae.decoder.push_logits(
        (z_nk + z_nk.flip(0)) / 2, normal(1, 7, 3), None if batch_n is None else 0 * batch_n
    )
    ends = vae.decoder.push_logits(z_nk, normal(1, 7, 3), None if batch_n is None else 0 * batch_n)
    torch.testing.assert_close(middle[0], (ends[0] + ends[0].flip(0)) / 2)


def test_head_is_applied_to_the_latent_position():
    vae = random_vae(decoder="linear", k=3, g=6)
    assert not vae.decoder.pairs()
    shapes = {name: tuple(p.shape) for name, p in vae.decoder.named_parameters()}
    assert shapes == {"head.outputs.weight": (6, 3), "head.outputs.bias": (6,), "head.raw_log_theta_g": (6,)}


@with_and_without_batches
@pytest.mark.parametrize("likelihood", ["zinb", "poisson"])
def test_push_is_the_derivative_of_the_coordinates(likelihood, batches):
    vae = random_vae(likelihood, batches=batches, decoder="linear")
    head, g = vae.decoder.head, vae.n_genes

    def coordinates(z_nk: torch.Tensor) -> torch.Tensor:
        shares = vae.batch_share_b.tolist() if batches else [1.0]
        mean_ng = 0.0
        for b, share in enumerate(shares):
            logits_ng = z_nk @ head.outputs.weight[:g].T + head.outputs.bias[:g]
            if batches:
                logits_ng = logits_ng + vae.decoder.batch.gene_bg[b]
            mean_ng = mean_ng + share * vae.reference_library * torch.softmax(logits_ng, dim=1)
        if head.log_theta_g is None:
            return 2 * mean_ng.sqrt()
        theta_g = head.log_theta_g.exp()
        return 2 * theta_g.sqrt() * torch.asinh((mean_ng / theta_g).sqrt())

    z_nk, v_mnk = normal(5, 3), normal(2, 5, 3, seed=1)
    y_ng, pushed_mng = Geometry(vae).push(z_nk, v_mnk)
    for v_nk, pushed_ng in zip(v_mnk, pushed_mng, strict=True):
        expected, derivative = torch.func.jvp(coordinates, (z_nk,), (v_nk,))
        torch.testing.assert_close(y_ng, expected)
        torch.testing.assert_close(pushed_ng, derivative)


def test_flatness_penalty_works_without_a_hidden_layer():
    vae = random_vae(decoder="linear").float().train()
    penalty = flatness_penalty(vae, normal(10, 3).float(), normal(10, 3, seed=1).float())
    penalty.backward()
    assert torch.isfinite(penalty)
    assert torch.isfinite(vae.decoder.head.outputs.weight.grad).all()


def test_linear_decoder_has_no_dropout():
    linear = settle(RunConfig(model=ModelConfig(decoder="linear")), 100)
    assert linear.model.decoder_dropout == 0
    assert settle(RunConfig(), 100).model.decoder_dropout > 0


def test_training_is_saved_loaded_and_resumed_exactly(tmp_path):
    counts = counts_of(tree(n_cells=200, n_batches=2), "batch")
    config = tiny_config(decoder="linear", batch_key="batch", max_epochs=4, flat=1.0)
    last = list(fit(counts, config))[-1]
    assert isinstance(last, Finished)
    folder = tmp_path / "m.scvae"
    calls = iter(range(1, 100))
    assert list(fit(counts, config, model_folder=folder, stop_requested=lambda: next(calls) == 2))[-1] == Stopped(
        epoch=2
    )
    resumed = list(fit(counts, config, model_folder=folder, resume=True))[-1].model
    resumed.save(folder)
    found, expected = load(folder).vae.state_dict(), last.model.vae.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert load(folder).config.model.decoder == "linear"


def test_linear_decoder_learns_differences_between_cells():
    """The final bound is far above the bound of a decoder that cannot distinguish cells."""
    counts = counts_of(tree(n_cells=400, depth=3000))
    config = tiny_config(decoder="linear", max_epochs=25)
    trained, collapsed = (
        list(fit(counts, c))[-1].model.facts["heldout_elbo"] for c in (config, tiny_config(decoder="linear", beta=1e4))
    )
    assert trained > collapsed + 5


def test_configuration_without_a_decoder_has_hidden_layers():
    values = RunConfig().as_dict()
    del values["model"]["decoder"]
    assert RunConfig.from_dict(values) == RunConfig()
    assert RunConfig().model.decoder == "mlp"


def test_all_commands_work_with_a_linear_decoder(bench):
    folder = bench.folder / "linear.scvae"
    run_ok("train", bench.data, "-m", folder, "--decoder", "linear", "--max-epochs", "3", "--device", "cpu")
    assert "linear decoder" in run_ok("info", folder).out
    groups = ["--groupby", "batch"]
    for verb, *options in (
        ["embed"],
        ["denoise"],
        ["interpolate", *groups, "--from", "batch_1", "--to", "batch_2"],
        ["pseudotime", *groups, "--root", "batch_1", "--to", "batch_2"],
        ["score", "--samples", "2"],
        ["sample", "-n", "20", "-o", bench.folder / "new.h5ad"],
    ):
        values = json.loads(run_ok(verb, bench.data, "-m", folder, *options, "--json").out)
        assert np.isfinite([value for value in values.values() if isinstance(value, float)]).all()


def test_unknown_decoder_is_refused(bench):
    hint = assert_refused(bench.folder, bench.train_args("--decoder", "quadratic"), USAGE, "--decoder is 'quadratic'")
    assert "mlp, linear" in hint
