"""How close does a training step on a GPU come to the limits of the GPU?

    python benchmarks/roofline.py [--device cuda] [--genes 2000] [--batch-size 128 512] [--precision auto] [--json]

The time of one step is measured over many steps, as `scvae train` takes them. On a GPU, steps are recorded as a CUDA
graph and, if Triton is installed, also compiled; on a CPU, the operations run one after the other. The time of a step
is compared with the least time that the device could take. The least time is the larger of two times: the time for the
arithmetic at the device's rate of matrix products, and the time for the memory traffic at the device's rate of copying.
The rate of matrix products is measured with one large product in the precision of the training, and the rate of copying
with one large copy.

The arithmetic consists of the matrix products (2·m·n·k operations each). The memory traffic is that of a step in which
nothing stays in a cache. The traffic consists of every parameter with its gradient, moments and average (as often as
they are read and written), the dense input, and the outputs over genes with their gradients. The file `--results` is
written after every kind of step.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from throughput import COUNTS_PER_GENE
from timed import describe_machine

from scvae_cli.config import ComputeConfig, ModelConfig
from scvae_cli.data.minibatches import CellTable
from scvae_cli.data.simulation import simulate
from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.device import Compute, choose_compute
from scvae_cli.model.vae import VAE
from scvae_cli.training.device_steps import SEGMENT_STEPS, DeviceSteps, Plan
from scvae_cli.training.optimizer import AveragedAdamW, Factors

HERE = Path(__file__).parent
CELLS = 8_000
FLOAT = 4


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument(
        "--segments", type=int, default=20, help=f"number of timed groups of {SEGMENT_STEPS} steps (20)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "roofline.md")
    args = parser.parse_args()
    compute = choose_compute(ComputeConfig(device=args.device, precision=args.precision))
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    flops, bandwidth = matmul_rate(compute.device, dtype), copy_rate(compute.device)
    rows: list[dict[str, Any]] = []
    result = {
        "compute": compute.reason,
        "matmul_tflops": flops / 1e12,
        "copy_gb_s": bandwidth / 1e9,
        "genes": args.genes,
        "steps": rows,
        "machine": describe_machine(torch.get_num_threads(), gpu=compute.device.type == "cuda"),
        "torch": torch.__version__,
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for batch_size in args.batch_size:
        for compiles in (False, True):
            rows.append(measured(args, compute, batch_size, compiles, flops, bandwidth))
            args.results.write_text(as_text(result))
    print(json.dumps(result) if args.json else as_text(result))


def measured(
    args: argparse.Namespace, compute: Compute, batch_size: int, compiles: bool, flops: float, bandwidth: float
) -> dict[str, Any]:
    """Measure the time of a training step for one batch size, either compiled or not compiled."""
    compute = Compute(device=compute.device, precision=compute.precision, reason="", compiles=compiles)
    simulation = simulate(SimulationConfig(n_cells=CELLS, n_genes=args.genes, depth=COUNTS_PER_GENE * args.genes))
    counts = sp.vstack(list(simulation.blocks()), format="csr")
    vae = (
        VAE(ModelConfig(n_latent=20, n_hidden=256, encoder_dropout=0.1, decoder_dropout=0.1), args.genes)
        .to(compute.device)
        .train()
    )
    table = CellTable(counts, None, compute.device)
    steps = DeviceSteps(vae, AveragedAdamW(vae, 0.1), table, batch_size, compute)
    random = np.random.default_rng(0)

    def segment() -> None:
        batches = random.integers(CELLS, size=(SEGMENT_STEPS, batch_size))
        steps.take([Plan(cells=cells, kl_weight=1.0, factors=Factors.of_step(1e-3, 1)) for cells in batches])

    segment()
    seconds = timed(segment, compute.device, args.segments) / SEGMENT_STEPS
    work = counted(vae, batch_size, args.genes)
    least = max(work["flops"] / flops, work["bytes"] / bandwidth)
    return {
        "batch_size": batch_size,
        "compiled": compiles,
        "step_us": seconds * 1e6,
        "cells_per_s": batch_size / seconds,
        "gflop": work["flops"] / 1e9,
        "mb": work["bytes"] / 1e6,
        "least_us": least * 1e6,
        "bound_by": "arithmetic" if work["flops"] / flops > work["bytes"] / bandwidth else "memory",
        "share": least / seconds,
    }


def counted(vae: VAE, n: int, g: int) -> dict[str, float]:
    """Compute the arithmetic and the memory traffic of one step on n cells."""
    matrices = [p for p in vae.parameters() if p.ndim == 2]
    first, head = vae.encoder.hidden[0].weight, vae.decoder.head.outputs.weight
    # Each matrix has three products: forward, backward to the weights, and backward to the inputs. The input of the
    # encoder needs no gradient.
    products = sum(3 * 2 * n * p.numel() for p in matrices) - 2 * n * first.numel()
    n_parameters = sum(p.numel() for p in vae.parameters())
    # The weights are read in the forward and in the backward pass. The gradient is written and read. The optimizer
    # reads and writes the weights, the two moments and the running average.
    of_parameters = n_parameters * (2 + 2 + 8)
    # The input is written once and read twice. The outputs are written and read once. The gradients of the outputs are
    # written once and read twice.
    of_cells = 3 * n * g + 5 * n * len(head)
    return {"flops": products, "bytes": FLOAT * (of_parameters + of_cells)}


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure floating-point operations per second in a large product."""
    m = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(m, m, device=device).to(dtype) for _ in range(2))
    return 2 * m**3 / timed(lambda: torch.mm(a, b), device, 10)


def copy_rate(device: torch.device) -> float:
    """Measure the bytes that a large copy reads and writes per second."""
    values = torch.zeros(1 << (28 if device.type == "cuda" else 25), device=device)
    other = torch.empty_like(values)
    return 2 * values.nbytes / timed(lambda: other.copy_(values), device, 10)


def timed(do: Callable[[], object], device: torch.device, times: int) -> float:
    """Measure the seconds of one call."""
    do()
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        do()
    _wait(device)
    return (time.perf_counter() - start) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def as_text(result: dict[str, Any]) -> str:
    """Format the result as text."""
    lines = [
        f"Written by `benchmarks/roofline.py`. {result['compute']}; {result['genes']:,} genes, the default network. "
        f"Measured limits of the device: {result['matmul_tflops']:,.1f} TFLOP/s, {result['copy_gb_s']:,.0f} GB/s. The "
        "least time is the time that a step needs at these limits. The last column is the least time divided by the "
        "measured time.",
        "",
        f"Machine: {result['machine']}; torch {result['torch']}.",
        "",
        "| batch size | kind of steps | time of a step | cells/s | arithmetic | memory traffic | least time (limited "
        "by) | least / measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["steps"]:
        lines.append(
            f"| {row['batch_size']:,} | {'compiled' if row['compiled'] else 'not compiled'} | {row['step_us']:,.0f} µs "
            f"| {row['cells_per_s']:,.0f} | {row['gflop']:.2f} GFLOP | {row['mb']:.1f} MB "
            f"| {row['least_us']:,.1f} µs ({row['bound_by']}) | {row['share']:.0%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
