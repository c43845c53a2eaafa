"""Code that is compiled for the CPU gives the same results as plain torch."""

from dataclasses import replace

import numba
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scvae_cli import parallel as shared_work
from scvae_cli.data.minibatches import CellTable
from scvae_cli.model.compiled import vector_math
from scvae_cli.model.compiled.count_nll import fused_nll
from scvae_cli.model.compiled.encoder_input import fused_log1p
from scvae_cli.model.compiled.hidden import normalized_hidden
from scvae_cli.model.compiled.vector_math import compiled
from scvae_cli.training.optimizer import (
    AVERAGE_EVERY,
    AVERAGED_STEPS,
    BETA_1,
    BETA_2,
    MAX_GRADIENT_NORM,
    AveragedAdamW,
)


@compiled()
def apply_to_all(function, values, results):
    for i in range(len(values)):
        results[i] = function(values[i])


@pytest.mark.parametrize(
    ("ours", "reference", "values"),
    [
        (vector_math.exp, np.exp, np.linspace(-86, 87, 100_001)),
        (vector_math.log, np.log, np.exp(np.linspace(-80, 80, 100_001))),
        (vector_math.log1p, np.log1p, np.exp(np.linspace(-60, 60, 100_001))),
    ],
)
def test_functions_are_within_two_units_in_the_last_place(ours, reference, values):
    values = values.astype(np.float32)
    results = np.empty_like(values)
    apply_to_all(ours, values, results)
    expected = reference(values.astype(np.float64))
    assert (np.abs(results - expected) <= 2 * np.spacing(np.abs(expected).astype(np.float32))).all()


def test_exp_limits_its_argument():
    results = np.empty(4, np.float32)
    apply_to_all(vector_math.exp, np.array([-1e30, -200.0, 200.0, 1e30], np.float32), results)
    np.testing.assert_allclose(results, np.exp([-87.0, -87.0, 88.0, 88.0]), rtol=1e-6)


def test_functions_compile_if_no_cache_folder_is_writable(monkeypatch):
    from numba.core.caching import FunctionCache

    def refuse(self, function):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(FunctionCache, "__init__", refuse)

    @compiled()
    def twice(x):
        return 2 * x

    assert twice(4) == 8


@pytest.mark.parametrize("n", [0, 1, 7, 8, 1001])
def test_sums_and_maxima_equal_numpy(n):
    a, b = np.random.default_rng(n).normal(size=(2, n)).astype(np.float32)
    assert vector_math.total(a) == pytest.approx(a.sum(), abs=1e-4)
    assert vector_math.dot(a, b) == pytest.approx(a @ b, abs=1e-4)
    assert vector_math.largest(a) == (a.max() if n else -np.inf)


@pytest.mark.parametrize("n", [1, 2, 101, 300])
def test_sum_of_logs_equals_numpy(n):
    values = np.exp2(np.random.default_rng(n).uniform(-1, 1, size=n * vector_math.LANES)).astype(np.float32)
    expected = np.log(values.astype(np.float64)).sum()
    assert vector_math.sum_of_logs(values) == pytest.approx(expected, abs=1e-5 * len(values) ** 0.5)
    # Values of 2 give the largest possible products.
    values[:] = 2
    assert vector_math.sum_of_logs(values) == pytest.approx(len(values) * np.log(2), rel=1e-5)


def test_use_threads_returns_the_number_of_threads_of_torch():
    before = torch.get_num_threads()
    try:
        for n in (1, 2, 1):
            torch.set_num_threads(n)
            assert shared_work.use_threads() == n
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(before)


@compiled()
def add_to_part(part, n_parts, values, sums):
    for i in range(part * len(values) // n_parts, (part + 1) * len(values) // n_parts):
        sums[part] += values[i]


add_to_part_at, call_add_to_part = shared_work.by_address(
    add_to_part,
    *((numba.int64, numba.int64, number[::1], numba.float64[::1]) for number in (numba.float32, numba.float64)),
)


@compiled(parallel=True)
def add_up(part_at, n_parts, values, sums):
    for part in numba.prange(n_parts):
        call_add_to_part(part_at, np.int64(part), n_parts, values, sums)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_function_can_be_called_by_its_address(dtype):
    values, sums = np.arange(1000, dtype=dtype), np.zeros(3)
    add_up(add_to_part_at(dtype == np.float64), 3, values, sums)
    np.testing.assert_array_equal(sums, [part.sum() for part in (values[:333], values[333:666], values[666:])])


def test_wrong_argument_types_for_a_function_address_are_refused():
    with pytest.raises(numba.TypingError, match="add_to_part takes"):
        add_up(add_to_part_at(), 2, np.arange(4), np.zeros(2))


def test_indices_of_32_and_64_bits_give_equal_results():
    counts = sp.random(6, 40, density=0.4, format="csr", random_state=0, dtype=np.float32)
    counts.data = np.ceil(9 * counts.data)
    cells = CellTable(counts, None, torch.device("cpu")).take(np.arange(6))
    narrow = cells.nonzeros
    wide = replace(narrow, row_start=narrow.row_start.long(), gene=narrow.gene.long())
    raw, bias, log_theta, center = torch.randn(6, 80), torch.randn(80), torch.randn(40), torch.rand(40)
    results = [
        (fused_log1p(replace(cells, nonzeros=nonzeros), torch.ones(6), center),
         fused_nll(raw, bias, log_theta, cells.library_n, nonzeros, with_gradient=False)[0])
        for nonzeros in (narrow, wide)
    ]  # fmt: skip
    torch.testing.assert_close(*results, rtol=0, atol=0)
    torch.testing.assert_close(results[0][0], cells.x_ng.log1p() - center)


def hidden_inputs():
    rng = torch.Generator().manual_seed(0)
    a, upstream = torch.randn(64, 48, generator=rng) * 3, torch.randn(64, 48, generator=rng)
    weight, bias = torch.rand(48, generator=rng) + 0.5, torch.randn(48, generator=rng) * 0.3
    return [t.requires_grad_() for t in (a, weight, bias)], upstream


def test_hidden_layer_and_its_gradients_equal_torch():
    results = []
    for fused in (False, True):
        (a, weight, bias), upstream = hidden_inputs()
        if fused:
            hidden = normalized_hidden(a, weight, bias, 0.0)
        else:
            hidden = nn.functional.silu(nn.functional.layer_norm(a, (48,), weight, bias))
        (hidden * upstream).sum().backward()
        results.append([hidden.detach(), a.grad, weight.grad, bias.grad])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_dropout_scales_kept_units_and_zeroes_gradients_of_dropped_units():
    (a, weight, bias), upstream = hidden_inputs()
    torch.manual_seed(1)
    full = normalized_hidden(a, weight, bias + 20.0, 0.0)  # all values are above zero, where the slope is 1
    dropped = normalized_hidden(a, weight, bias + 20.0, 0.3)
    is_kept = dropped > 0
    assert is_kept.float().mean() == pytest.approx(0.7, abs=0.03)
    torch.testing.assert_close(dropped[is_kept], full[is_kept] / 0.7)
    # Rows and columns are dropped equally often, and no two rows have the same mask.
    assert is_kept.float().mean(0).std() < 0.1
    assert len({tuple(row.tolist()) for row in is_kept}) == len(is_kept)
    (dropped * upstream).sum().backward()
    torch.testing.assert_close(bias.grad, (upstream * is_kept / 0.7).sum(0), rtol=1e-4, atol=1e-4)
    torch.manual_seed(1)
    assert torch.equal(normalized_hidden(a, weight, bias + 20.0, 0.0), full)
    assert torch.equal(normalized_hidden(a, weight, bias + 20.0, 0.3), dropped)


@pytest.mark.parametrize("compiled_step", [True, False])
@pytest.mark.parametrize("gradient_scale", [1.0, 1e5])
def test_optimizer_equals_clipped_and_averaged_adamw_of_torch(gradient_scale, compiled_step):
    ours, theirs = (nn.Sequential(nn.Linear(70, 90), nn.LayerNorm(90)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = AveragedAdamW(ours, weight_decay=0.1)
    optimizer._compiled = compiled_step
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    rest = [p for p in theirs.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=(BETA_1, BETA_2))
    averages = [p.detach().clone() for p in theirs.parameters()]
    rng = torch.Generator().manual_seed(0)
    for step in range(3 * AVERAGE_EVERY):
        gradients = {}
        for mine, p in zip(ours.parameters(), theirs.parameters(), strict=True):
            gradients[mine] = p.grad = torch.randn(p.shape, generator=rng) * gradient_scale
            gradients[mine] = gradients[mine].clone()
        rate = 1e-2 / (1 + step)
        optimizer.advance(gradients, rate=rate, n_before=step)
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), MAX_GRADIENT_NORM)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        if step % AVERAGE_EVERY == 0:
            decay = min(1 - 1 / AVERAGED_STEPS, (1 + step) / (10 + step)) ** AVERAGE_EVERY
            get_ema_multi_avg_fn(decay)(averages, list(theirs.parameters()), None)
    assert (norm > MAX_GRADIENT_NORM) == (gradient_scale > 1)
    for mine, p, average in zip(ours.parameters(), theirs.parameters(), averages, strict=True):
        torch.testing.assert_close(mine, p, rtol=1e-5, atol=1e-6)
        expected = reference.state[p] | {"average": average}
        for name in ("exp_avg", "exp_avg_sq", "average"):
            torch.testing.assert_close(optimizer.state[mine][name], expected[name], rtol=1e-4, atol=1e-5)
    with optimizer.averaged():
        for mine in ours.parameters():
            assert torch.equal(mine, optimizer.state[mine]["average"])


def test_optimizer_accepts_bfloat16_gradients():
    models = [nn.Linear(300, 100) for _ in range(2)]  # the weights need several threads, the biases one
    models[1].load_state_dict(models[0].state_dict())
    for model, dtype in zip(models, (torch.float32, torch.bfloat16), strict=True):
        torch.manual_seed(0)
        gradients = {p: torch.randn(p.shape).bfloat16().to(dtype) for p in model.parameters()}
        AveragedAdamW(model, weight_decay=0.1).advance(gradients, rate=1e-2, n_before=0)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(ours, theirs)
