"""A GPU gives the same results as the CPU. Without a GPU, the tests are skipped.

With SCVAE_TEST_DEVICE=cpu, the tests run on the CPU.
"""

from __future__ import annotations

import importlib.util
import os

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from command_line import run_ok
from simulated import TINY, tree

import scvae_cli as scvae

DEVICE = os.environ.get("SCVAE_TEST_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")

pytestmark = pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="there is no CUDA device")
needs_triton = pytest.mark.skipif(
    ON_GPU and importlib.util.find_spec("triton") is None,
    reason="torch needs Triton to compile for a GPU, and Triton is not installed",
)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return tree(n_batches=2)


def trained(cells, **options):
    return scvae.train(cells, **TINY | {"device": DEVICE, "batch_key": "batch", "max_epochs": 40} | options)


def same_weights(one, other) -> bool:
    pairs = zip(one.vae.state_dict().values(), other.vae.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def on_cpu(cells):
    """A model that was trained on the CPU."""
    return trained(cells, device="cpu", precision="fp32")


# On a GPU a step that cannot be recorded or compiled warns, and the warning fails the test.
@pytest.mark.parametrize(
    ("precision", "compile"),
    [("fp32", False), ("auto", False), ("bf16", False), pytest.param("auto", True, marks=needs_triton)],
)
def test_training_is_as_good_as_on_the_cpu(cells, on_cpu, precision, compile):
    model = trained(cells, compile=compile, precision=precision)
    assert DEVICE in model.facts["compute"]
    assert model.facts["heldout_elbo"] == pytest.approx(on_cpu.facts["heldout_elbo"], rel=5e-3)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_triton)], ids=["recorded", "compiled"])
def test_deterministic_trainings_are_identical(cells, compile):
    options = {"deterministic": True, "compile": compile, "max_epochs": 5}
    assert same_weights(trained(cells, **options), trained(cells, **options))


def test_counts_that_do_not_fit_in_gpu_memory_give_the_same_model(cells, monkeypatch):
    options = {"deterministic": True, "max_epochs": 5}
    resident = trained(cells, **options)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 0))
    assert same_weights(trained(cells, **options), resident)


@pytest.mark.parametrize(
    "options", [{"likelihood": "nb", "decoder": "linear"}, {"likelihood": "poisson"}, {"flat": 1.0}]
)
def test_other_models_train_as_well_as_on_the_cpu(cells, options):
    on_cpu = trained(cells, **options, device="cpu", precision="fp32", max_epochs=10)
    model = trained(cells, **options, max_epochs=10)
    assert model.facts["heldout_elbo"] == pytest.approx(on_cpu.facts["heldout_elbo"], rel=1e-2)


def test_real_numbers_train_as_well_as_on_the_cpu(cells):
    values = ad.AnnData(np.log1p(cells.X.toarray() if sp.issparse(cells.X) else cells.X), obs=cells.obs, var=cells.var)
    options = {"likelihood": "normal", "max_epochs": 10}
    on_cpu, model = trained(values, **options, device="cpu", precision="fp32"), trained(values, **options)
    assert model.facts["heldout_elbo"] == pytest.approx(on_cpu.facts["heldout_elbo"], rel=1e-2)


def test_random_state_of_the_caller_does_not_change(cells):
    states = [torch.random.get_rng_state] + [torch.cuda.get_rng_state] * ON_GPU
    before = [state() for state in states]
    trained(cells, max_epochs=2)
    assert all(torch.equal(state(), value) for state, value in zip(states, before, strict=True))


def test_commands_give_the_same_results_as_on_the_cpu(cells, on_cpu, tmp_path):
    """The tolerance is a hundredth of the spread, because a GPU multiplies in TF32."""
    model = tmp_path / "cells.scvae"
    on_cpu.save(model)
    found = {}
    for device in ("cpu", DEVICE):
        data = tmp_path / f"{device.replace(':', '')}_cells.h5ad"
        cells.write_h5ad(data)
        arguments = [data, "-m", model, "--device", device]
        run_ok("embed", *arguments)
        run_ok("denoise", *arguments)
        run_ok("score", *arguments, "--samples", "10", "--simulated", "100")
        run_ok(
            "interpolate",
            *arguments,
            "--groupby",
            "cell_type",
            "--from",
            "stem",
            "--to",
            "mature_1",
            "--path",
            "straight",
        )
        found[device] = ad.read_h5ad(data)
    theirs, ours = found["cpu"], found[DEVICE]
    for name, a, b in (
        ("embedding", theirs.obsm["X_scvae"], ours.obsm["X_scvae"]),
        ("denoised", theirs.layers["scvae_denoised"], ours.layers["scvae_denoised"]),
        ("elbo", theirs.obs["scvae_elbo"], ours.obs["scvae_elbo"]),
    ):
        a, b = np.asarray(a), np.asarray(b)
        kept = np.isfinite(a)
        assert np.array_equal(kept, np.isfinite(b)), name
        assert np.abs(a[kept] - b[kept]).max() <= 0.01 * a[kept].std(), name
