"""Where the arithmetic runs, in which precision, and why."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scvae_cli.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from scvae_cli.config import ComputeConfig


# Compiling takes about as long as a training on so many cells.
CELLS_WORTH_COMPILING = 100_000


@dataclass(frozen=True, kw_only=True)
class Compute:
    """A device and precision that are there.

    Parameters
    ----------
    device
        The torch device.
    precision
        "fp32", "tf32" or "bf16", of the matrix products; likelihoods are computed in float32 or better.
    reason
        Why these, in words, for the user.
    compiles
        Whether training steps are compiled by torch.
    deterministic
        Whether a GPU takes only algorithms that repeat to the bit; a CPU always does.
    """

    device: torch.device
    precision: str
    reason: str
    compiles: bool = False
    deterministic: bool = False

    def matrix_products(self) -> contextlib.AbstractContextManager[object]:
        """Context in which matrix products run in the chosen precision."""
        import torch

        if self.precision != "bf16":
            return contextlib.nullcontext()
        return _bf16_products() if self.device.type == "cpu" else torch.autocast(self.device.type, dtype=torch.bfloat16)

    @contextlib.contextmanager
    def repeating(self) -> Iterator[None]:
        """Context in which torch takes algorithms that repeat to the bit, where that was asked for."""
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
    """Multiply float32 matrices on the CPU's bfloat16 units, adding up in float32; everything else stays as it is."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Context in which torch draws from a seed, on the CPU and perhaps a GPU; all generators are then as they were."""
    import torch

    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not `torch.manual_seed`, which seeds every GPU there is.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield


def choose_compute(config: ComputeConfig) -> Compute:
    """Turn what was asked for into what is there.

    "auto" takes CUDA when there is one and otherwise the CPU.

    Raises
    ------
    DeviceError
        When a device or precision was asked for by name and is not there.
    """
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    _keep_freed_memory()
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        why = "the CUDA device torch sees" if name == "cuda" else "no CUDA device is visible to torch"
    else:
        why = "as asked"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"{name!r} is not a device", "use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"{name} was asked for, but torch sees no CUDA device", "use --device cpu or auto")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise DeviceError(
                f"{name} is not there: torch sees {torch.cuda.device_count()} device(s)", "see nvidia-smi"
            )
    elif device.type == "mps":
        raise DeviceError("mps has no float64, in which likelihoods are summed", "use --device cpu or auto")
    elif device.type != "cpu":
        raise DeviceError(f"{name!r} is not a device scvae runs on", "use auto, cpu, cuda or cuda:N")

    precision, precision_why = _choose_precision(config.precision, device)
    if device.type == "cuda":
        if device.index is not None:
            # What is recorded is recorded on the current one.
            torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        # cuBLAS repeats only with this, and reads it once: at a process's first product, whatever that is for.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return Compute(
        device=device,
        precision=precision,
        reason=f"{device} ({why}), {precision} ({precision_why})",
        deterministic=config.deterministic and device.type == "cuda",
    )


def decide_compiling(compute: Compute, config: ComputeConfig, n_cells: int) -> Compute:
    """Decide whether torch compiles the steps of a training on so many cells.

    Raises
    ------
    DeviceError
        When it was asked for and there is nothing to compile with.
    """
    on_gpu = compute.device.type == "cuda"
    tool = "Triton" if on_gpu else "a C++ compiler"
    there = importlib.util.find_spec("triton") is not None if on_gpu else shutil.which("c++") is not None
    if config.compile and not there:
        raise DeviceError(f"--compile needs {tool}, which is not there", "install it, or train without --compile")
    if config.compile is None:
        compiles = on_gpu and there and n_cells >= CELLS_WORTH_COMPILING
        why = f"{n_cells:,} cells" if there else f"without {tool}"
    else:
        compiles, why = config.compile, "as asked"
    if not (compiles or on_gpu):
        return compute
    how = "compiled" if compiles else "recorded"
    return replace(compute, compiles=compiles, reason=f"{compute.reason}, steps {how} ({why})")


def _multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16; torch does not tell.

    Intel's AMX does, and AVX-512's dot products, which AMD has from Zen 4 on. Either is four times as fast as
    float32 at the products of a training.
    """
    if not cpuinfo.exists():
        return False
    flags = next((line.split() for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), [])
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def bound_spinning() -> None:
    """Limit how long OpenMP's threads wait in a loop for their next piece of work; call it before torch is imported.

    The default, for ever, makes a training that takes 10 s alone take minutes beside another one. A bound that outlasts
    the gaps between the pieces costs nothing on a calm machine; where others already run, a shorter one is faster.
    """
    loadavg = Path("/proc/loadavg")
    others = int(loadavg.read_text().split()[3].split("/")[0]) - 1 if loadavg.exists() else 0
    os.environ.setdefault("GOMP_SPINCOUNT", "10000" if others > 0 else "100000")


def _keep_freed_memory() -> None:
    """Have glibc reuse freed blocks instead of returning them to the system at once.

    A step frees and takes the same megabyte-sized temporaries again and again; each return costs a page fault for
    every 4 KiB taken again.
    """
    import ctypes
    import sys

    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have no such function
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 32 << 20)
        mallopt(m_trim_threshold, 512 << 20)


def _choose_precision(asked: str, device: torch.device) -> tuple[str, str]:
    import torch

    has_tensor_cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if asked == "auto":
        if has_tensor_cores:
            return "tf32", "this GPU multiplies TF32 on its tensor cores"
        if device.type == "cpu" and _multiplies_bf16():
            return "bf16", "this CPU has units for bfloat16 products"
        return "fp32", "plain float32 on this device"
    if asked == "tf32" and not has_tensor_cores:
        raise DeviceError(f"--precision tf32 needs an NVIDIA GPU of the Ampere generation or later, not {device}",
                          "use --precision auto")  # fmt: skip
    if asked == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise DeviceError(f"--precision bf16 is not supported by {device}", "use --precision auto")
    return asked, "as asked"
