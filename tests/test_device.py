"""The numeric precision is chosen by device, a reason is given, and torch's settings are restored afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scvae_cli.device import Compute, _multiplies_bf16, seeded


@pytest.mark.parametrize(
    ("cpuinfo", "multiplies"),
    [
        ("processor : 0\nflags\t\t: fpu sse2 avx512_bf16 avx512_vnni\n", True),
        ("processor : 0\nflags\t\t: fpu sse2 amx_bf16 amx_tile\n", True),
        ("processor : 0\nflags\t\t: fpu sse2 avx2 avx512f\n", False),
        # The text stands outside the flags of the processor, or is only a part of a flag.
        ("model name : avx512_bf16\nflags : fpu avx512_bf16x\n", False),
        ("", False),
    ],
)
def test_bfloat16_units_are_detected_from_cpu_flags(tmp_path: Path, cpuinfo: str, multiplies: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert _multiplies_bf16(path) is multiplies


def test_missing_cpuinfo_means_no_bfloat16_units(tmp_path: Path) -> None:
    assert not _multiplies_bf16(tmp_path / "absent")


def test_seeded_restores_the_random_state() -> None:
    before = torch.random.get_rng_state()
    with seeded(3):
        drawn = torch.rand(4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("requested", [False, True])
def test_deterministic_algorithms_are_restored_afterwards(requested: bool, before: bool) -> None:
    compute = Compute(device=torch.device("cpu"), precision="fp32", reason="", deterministic=requested)
    try:
        torch.use_deterministic_algorithms(before)
        with compute.repeating():
            assert torch.are_deterministic_algorithms_enabled() == (requested or before)
        assert torch.are_deterministic_algorithms_enabled() == before
    finally:
        torch.use_deterministic_algorithms(False)
