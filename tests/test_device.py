"""Which precision is chosen, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from scvae_cli.device import _multiplies_bf16


@pytest.mark.parametrize(
    ("cpuinfo", "multiplies"),
    [
        ("processor : 0\nflags\t\t: fpu sse2 avx512_bf16 avx512_vnni\n", True),
        ("processor : 0\nflags\t\t: fpu sse2 amx_bf16 amx_tile\n", True),
        ("processor : 0\nflags\t\t: fpu sse2 avx2 avx512f\n", False),
        # Not a flag of the processor, and not a whole flag.
        ("model name : avx512_bf16\nflags : fpu avx512_bf16x\n", False),
        ("", False),
    ],
)
def test_units_for_bfloat16_are_read_off_the_flags(tmp_path: Path, cpuinfo: str, multiplies: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert _multiplies_bf16(path) is multiplies


def test_without_a_list_of_flags_there_are_none(tmp_path: Path) -> None:
    assert not _multiplies_bf16(tmp_path / "absent")
