"""Training steps for GPUs equal plain steps, never wait for the host, and compile as a whole; tested on the CPU."""

import copy
import shutil

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from simulated import TINY, counts_of, tiny_config, tree

from scvae_cli.config import ComputeConfig, ModelConfig
from scvae_cli.data.minibatches import CellTable
from scvae_cli.data.segments import Segment
from scvae_cli.device import Compute, choose_compute, decide_compiling
from scvae_cli.errors import DeviceError, ScvaeWarning
from scvae_cli.model.vae import VAE
from scvae_cli.training import device_steps, loop
from scvae_cli.training.device_steps import DeviceSteps, Plan
from scvae_cli.training.fit import fit_to_end
from scvae_cli.training.optimizer import AVERAGE_EVERY, AveragedAdamW, Factors

pytestmark = pytest.mark.slow

CPU, META = torch.device("cpu"), torch.device("meta")
CELLS, GENES, LATENT, BATCH, LABELING = 90, 40, 3, 16, 5.0
NETWORK = ModelConfig(n_hidden=12, n_latent=LATENT, n_layers=1, encoder_dropout=0.0, decoder_dropout=0.0)


def matrix():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.4, 3.0, size=(CELLS, GENES))).astype(np.float32)
    counts[:, 0] += 1
    return sp.csr_matrix(counts)


def table(device=CPU, **options):
    label_n = np.arange(CELLS) % 4 - 1
    return CellTable(matrix(), np.arange(CELLS) % 2, device, cells=np.arange(5, 85), label_n=label_n, **options)


def vae_of(config=NETWORK, device=CPU):
    torch.manual_seed(1)
    vae = VAE(config, GENES, ("a", "b"), n_labels=3)
    vae.reference_library.fill_(50.0)
    return vae.to(device).train()


def steps_of(vae, cells, precision="fp32", *, compiles=False):
    compute = Compute(device=cells.device, precision=precision, reason="", compiles=compiles)
    return DeviceSteps(vae, AveragedAdamW(vae, 0.5), cells, BATCH, compute, labeling=LABELING)


def plans(n, first_step=0):
    rng = np.random.default_rng(first_step)
    # Every second minibatch is short.
    cells = [rng.choice(80, BATCH - i % 2, replace=False) for i in range(n)]
    return [
        Plan(cells=some, kl_weight=0.1 * i, factors=Factors.of_step(0.01, first_step + i))
        for i, some in enumerate(cells)
    ]


@pytest.mark.parametrize("resident", [False, True])
def test_segment_contains_the_counts_of_its_minibatches(resident):
    cells, dense = table(resident=resident), matrix().toarray()[5:85]
    segment = Segment(cells, 4, BATCH)
    for n in (4, 2):
        batches = [plan.cells for plan in plans(n, first_step=n)]
        segment.fill(batches)
        for i, some in enumerate(batches):
            x_ng, library_n, share_n, batch_n, label_n = segment.cells(torch.tensor([i]))
            real = len(some)
            np.testing.assert_array_equal(x_ng[:real].numpy(), dense[some])
            np.testing.assert_allclose(library_n[:real].numpy(), dense[some].sum(1))
            np.testing.assert_array_equal(batch_n[:real].numpy(), (some + 5) % 2)
            np.testing.assert_array_equal(label_n[:real].numpy(), (some + 5) % 4 - 1)
            np.testing.assert_allclose(share_n.numpy(), [1 / real] * real + [0] * (BATCH - real), rtol=1e-6)
            # The padding is a real cell, whose numbers are finite.
            np.testing.assert_array_equal(x_ng[real:].numpy(), dense[some[:1]].repeat(BATCH - real, 0))


def test_steps_equal_autograd_and_adamw_of_torch():
    cells, vae = table(), vae_of()
    reference = copy.deepcopy(vae)
    torch.manual_seed(3)
    losses = steps_of(vae, cells).take(planned := plans(AVERAGE_EVERY + 2)).read()
    torch.manual_seed(3)
    torch.randint(2**31, (device_steps.SEGMENT_STEPS, 2))  # a step also draws seeds for dropout
    noise_snk = torch.randn(device_steps.SEGMENT_STEPS, BATCH, LATENT)
    decaying = {p for name, p in reference.named_parameters() if p.ndim == 2 and not name.startswith("decoder.batch")}
    parameters = list(reference.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p in decaying], "weight_decay": 0.5},
            {"params": [p for p in parameters if p not in decaying], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.99),
    )
    for i, plan in enumerate(planned):
        taken = cells.take(plan.cells)
        terms = reference.elbo_terms(taken, noise_snk[i, : len(plan.cells)])
        log_p_nc = torch.log_softmax(reference.label_classifier(terms.z_nk), dim=1)
        labeled = torch.nn.functional.nll_loss(log_p_nc, taken.label_n, ignore_index=-1, reduction="sum")
        loss = terms.nll + plan.kl_weight * terms.kl + LABELING * labeled / taken.n_cells
        assert losses[i] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, ours), theirs in zip(vae.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [{}, {"likelihood": "poisson"}, {"likelihood": "nb", "decoder": "linear"}], ids=str)
@pytest.mark.parametrize("resident", [False, True])
def test_step_never_waits_for_a_value(resident, config, precision):
    """On torch's device "meta", tensors have no values, so an operation that waits for a value raises an error."""
    network = ModelConfig(n_hidden=12, n_latent=LATENT, encoder_dropout=0.1, decoder_dropout=0.1, **config)
    vae, cells = vae_of(network, META), table(META, resident=resident)
    steps = steps_of(vae, cells, precision)
    steps.segment.fill([plan.cells for plan in plans(2)])
    with torch.no_grad():
        steps.step()
    assert all(p.device == META for p in vae.parameters())


def test_steps_compile_as_one_graph():
    vae, cells = vae_of(), table()
    other = copy.deepcopy(vae)
    plain, compiled = steps_of(vae, cells), steps_of(other, cells)
    torch._dynamo.utils.counters.clear()
    compiled.play = torch.compile(compiled.step, dynamic=False, fullgraph=True, backend="aot_eager")
    for steps in (plain, compiled):
        torch.manual_seed(5)
        for first in (0, 3):  # short and full segments use the same compiled code
            steps.take(plans(3, first_step=first))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for (name, ours), theirs in zip(vae.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def counts():
    return counts_of(tree(n_batches=2), batch_key="batch")


@pytest.fixture
def on_device(monkeypatch):
    """The steps of a GPU, without compiling or recording."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    monkeypatch.setattr(device_steps, "SEGMENT_STEPS", 8)
    monkeypatch.setattr(loop, "SEGMENT_STEPS", 8)


def test_training_with_compiled_steps_is_as_good_as_on_the_cpu(counts, on_device):
    options = {"max_epochs": 40, "batch_key": "batch"}
    plain, compiled = (fit_to_end(counts, tiny_config(**options, compile=compiles)) for compiles in (False, True))
    assert "steps compiled" in compiled.facts["compute"]
    assert compiled.facts["heldout_elbo"] == pytest.approx(plain.facts["heldout_elbo"], rel=5e-3)


def test_training_with_compiled_steps_repeats_to_the_bit(counts, on_device):
    config = tiny_config(max_epochs=4, batch_key="batch", compile=True)
    first, second = (fit_to_end(counts, config).vae.parameters() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch needs a C++ compiler to compile, and none is installed")
def test_compiled_steps_equal_plain_steps():
    vae, cells = vae_of(), table()
    other = copy.deepcopy(vae)
    for steps in (steps_of(vae, cells), steps_of(other, cells, compiles=True)):
        torch.manual_seed(5)
        steps.take(plans(4))
    for (name, ours), theirs in zip(vae.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)


def test_steps_are_prepared_again_when_dropout_is_lowered(counts, on_device, monkeypatch):
    """A step that was recorded before the dropout is lowered would still apply the old dropout."""
    prepared, original = [], device_steps.DeviceSteps._prepared

    def prepare(steps):
        prepared.append(steps.vae.decoder.first_norm.dropout)
        return original(steps)

    monkeypatch.setattr(device_steps.DeviceSteps, "_prepared", prepare)
    fit_to_end(counts, tiny_config(max_epochs=200, patience=1, batch_key="batch", compile=True, eased_dropout=0.5))
    assert prepared == [TINY["decoder_dropout"], TINY["decoder_dropout"] / 2]


def test_loss_that_is_not_finite_causes_a_rollback(counts, on_device, monkeypatch):
    config = tiny_config(max_epochs=3, batch_key="batch", compile=True)
    read, broken = device_steps.Losses.read, iter([True])
    monkeypatch.setattr(
        device_steps.Losses, "read", lambda self: [float("nan") if next(broken, False) else x for x in read(self)]
    )
    seen = []
    model = fit_to_end(counts, config, on_event=seen.append)
    assert model.facts["rollbacks"] == 1
    assert [event.learning_rate < 0.01 for event in seen if isinstance(event, loop.Rollback)] == [True]


def test_rollback_names_no_cells_if_the_weights_are_not_finite(counts, on_device, monkeypatch):
    take, first = device_steps.DeviceSteps.take, iter([True])

    def take_with_nan(self, plans):
        losses = take(self, plans)
        if next(first, False):
            next(self.vae.parameters()).data.fill_(float("nan"))
            losses._loss_s.fill_(float("nan"))
        return losses

    monkeypatch.setattr(device_steps.DeviceSteps, "take", take_with_nan)
    seen = []
    fit_to_end(counts, tiny_config(max_epochs=3, batch_key="batch", compile=True), on_event=seen.append)
    assert [len(event.cells) for event in seen if isinstance(event, loop.Rollback)] == [0]


def test_compiling_requires_a_compiler(monkeypatch):
    config = ComputeConfig(device="cpu", compile=True)
    compute = choose_compute(config)
    assert not decide_compiling(compute, ComputeConfig(), 10**6).compiles  # a CPU has a single generator
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DeviceError, match="C\\+\\+ compiler"):
        decide_compiling(compute, config, 1000)


def test_compile_without_effect_gives_a_warning(counts):
    with pytest.warns(ScvaeWarning, match="no effect"):
        fit_to_end(counts, tiny_config(max_epochs=1, flat=1.0, compile=True))


def test_steps_that_do_not_compile_run_uncompiled(monkeypatch):
    def broken(step, **_):
        def fail():
            vae.decoder.head.outputs.bias.data.zero_()  # the recording had begun
            raise RuntimeError("no such compiler\nand much else")

        return fail

    vae, cells = vae_of(), table()
    other = copy.deepcopy(vae)
    torch.manual_seed(5)
    steps_of(other, cells).take(plans(4))
    monkeypatch.setattr(torch, "compile", broken)
    torch.manual_seed(5)
    with pytest.warns(ScvaeWarning, match="could not be compiled, so training takes longer: no such compiler$"):
        steps_of(vae, cells, compiles=True).take(plans(4))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(vae.parameters(), other.parameters(), strict=True))
