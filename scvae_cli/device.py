"""The choice of device and precision for all computations."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scvae_cli.amounts import amount
from scvae_cli.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from scvae_cli.config import ComputeConfig


# Compiling the training steps takes about as long as training on this number of cells.
CELLS_WORTH_COMPILING = 100_000


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The device and the precision of a computation.

    Parameters
    ----------
    device, precision
        The torch device, and the precision of the matrix products: "fp32", "tf32" or "bf16". Likelihoods are computed
        in float32 or better.
    reason
        Text for the user that says which device and precision were chosen, and why.
    compiles
        Whether torch compiles the training steps.
    deterministic
        Whether a GPU uses only algorithms that give identical results in every run. On a CPU, every run gives identical
        results anyway.
    """

    device: torch.device
    precision: str
    reason: str
    compiles: bool = False
    deterministic: bool = False

    def matrix_products(self) -> contextlib.AbstractContextManager[object]:
        """Return a context manager in which matrix products run in the chosen precision."""
        import torch

        if self.precision != "bf16":
            return contextlib.nullcontext()
        return _bf16_products() if self.device.type == "cpu" else torch.autocast(self.device.type, dtype=torch.bfloat16)

    @contextlib.contextmanager
    def repeating(self) -> Iterator[None]:
        """Context manager in which torch uses only reproducible algorithms, if `deterministic` is True."""
        import torch

        if not self.deterministic or torch.are_deterministic_algorithms_enabled():
            yield
            return
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def _bf16_products() -> Iterator[None]:
    """Context manager in which the CPU rounds float32 matrices to bfloat16 (16 bits), multiplies them, and sums the
    products in float32.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Context manager that seeds torch's random generators, and restores their earlier states at the end.

    The generator of the CPU is seeded. If `device` is a GPU, the generator of the GPU is also seeded.
    """
    import torch

    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # `torch.manual_seed` would seed every GPU of the machine.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield


def choose_compute(config: ComputeConfig) -> Compute:
    """Choose the device and the precision for a configuration.

    For the device "auto", CUDA is chosen if torch finds a CUDA device, and the CPU otherwise. Raises a DeviceError if a
    device or precision was requested by name and is not available.
    """
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    _keep_freed_memory()
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        why = "the CUDA device that torch sees" if name == "cuda" else "no CUDA device is visible to torch"
    else:
        why = "as requested"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"{name!r} is not a device", "use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"{name} was requested, but torch sees no CUDA device", "use --device cpu or auto")
        if device.index is not None and device.index >= torch.cuda.device_count():
            message = f"{name} is not available: torch sees {amount(torch.cuda.device_count(), 'device')}"
            raise DeviceError(message, "run nvidia-smi to list the GPUs")
    elif device.type == "mps":
        raise DeviceError("mps has no float64 numbers, which the likelihood needs", "use --device cpu or auto")
    elif device.type != "cpu" or device.index is not None:
        raise DeviceError(f"{name!r} is not a device that scvae runs on", "use auto, cpu, cuda or cuda:N")

    precision, precision_why = _choose_precision(config.precision, device)
    if device.type == "cuda":
        if device.index is not None:
            # CUDA graphs are recorded on the current device, so the chosen GPU is made the current device.
            torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        # cuBLAS, which computes matrix products on the GPU, gives reproducible results only if this environment
        # variable is set before the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return Compute(
        device=device,
        precision=precision,
        reason=f"{device} ({why}), {precision} ({precision_why})",
        deterministic=config.deterministic and device.type == "cuda",
    )


def decide_compiling(compute: Compute, config: ComputeConfig, n_cells: int) -> Compute:
    """Decide whether torch compiles the steps of a training on `n_cells` cells; return `compute` with the decision.

    Raises a DeviceError if compiling was requested and no compiler is installed.
    """
    on_gpu = compute.device.type == "cuda"
    tool = "Triton" if on_gpu else "a C++ compiler"
    available = importlib.util.find_spec("triton") is not None if on_gpu else shutil.which("c++") is not None
    if config.compile and not available:
        raise DeviceError(f"--compile needs {tool}, which is not installed", "install it, or train without --compile")
    if config.compile is None:
        compiles = on_gpu and available and n_cells >= CELLS_WORTH_COMPILING
        why = f"{amount(n_cells, 'cell')}" if available else f"without {tool}"
    else:
        compiles, why = config.compile, "as requested"
    if not (compiles or on_gpu):
        return compute
    how = "compiled" if compiles else "recorded"
    return replace(compute, compiles=compiles, reason=f"{compute.reason}, steps {how} ({why})")


def _multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU has instructions that multiply bfloat16 (16-bit) numbers, which torch does not report.

    Instructions for bfloat16 products belong to AMX or AVX-512 of Intel CPUs, and to AVX-512 of AMD CPUs from Zen 4 on.
    With AMX or AVX-512, the matrix products of a training are four times as fast in bfloat16 as in float32.
    """
    if not cpuinfo.exists():
        return False
    flags = next((line.split() for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), [])
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def bound_spinning() -> None:
    """Limit how long idle CPU threads occupy their core before they sleep. Call this function before torch is imported.

    By default, idle threads of torch (OpenMP) wait in a loop and occupy a CPU core forever. If two trainings run at the
    same time, a training of 10 s takes minutes. On an idle machine, threads wait longer than the pauses between the
    computations of a training, so a training is not slowed down. If other processes are running, threads wait for a
    shorter time.
    """
    loadavg = Path("/proc/loadavg")
    others = int(loadavg.read_text().split()[3].split("/")[0]) - 1 if loadavg.exists() else 0
    os.environ.setdefault("GOMP_SPINCOUNT", "10000" if others > 0 else "100000")


def _keep_freed_memory() -> None:
    """Make the C library keep freed memory for reuse instead of returning the memory to the operating system at once.

    Every training step frees and allocates the same temporary arrays of several megabytes. If freed memory were
    returned, the operating system would provide the memory again in pages of 4 KiB, which takes time.
    """
    import ctypes
    import sys

    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has `mallopt`
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 32 << 20)
        mallopt(m_trim_threshold, 512 << 20)


def _choose_precision(requested: str, device: torch.device) -> tuple[str, str]:
    import torch

    has_tensor_cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if requested == "auto":
        if has_tensor_cores:
            return "tf32", "this GPU multiplies TF32 on its tensor cores"
        if device.type == "cpu" and _multiplies_bf16():
            return "bf16", "this CPU has units for bfloat16 products"
        return "fp32", "plain float32 on this device"
    if requested == "tf32" and not has_tensor_cores:
        message = f"--precision tf32 needs an NVIDIA GPU of the Ampere generation or later, not {device}"
        raise DeviceError(message, "use --precision auto")
    if requested == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise DeviceError(f"--precision bf16 is not supported by {device}", "use --precision auto")
    return requested, "as requested"
