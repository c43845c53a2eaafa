"""The script `benchmarks/gpu.sh`: its commands, their time limits, and its message if there is no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from scvae_cli.cli.app import app

ROOT = Path(__file__).parents[1]
NINE_MINUTES = 540
PARTS = ["install", "check", "tests", "deterministic", "roofline", "throughput", "simulate", "quality"]

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("timeout") is None, reason="the script needs bash and GNU timeout"
)


def script(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments]
    environment = os.environ | {"PYTHON": sys.executable} | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def planned(*arguments: str, **variables: str) -> dict[str, str]:
    """Return the command of each part of a dry run."""
    done = script("--dry-run", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^(\w+), at most \d+ s: (.*)$", done.stdout, re.MULTILINE))


def test_all_parts_together_take_at_most_nine_minutes():
    output = script("--dry-run").stdout
    limits = re.findall(r"^(\w+), at most (\d+) s", output, re.MULTILINE)
    assert [part for part, _ in limits] == PARTS
    total = re.search(r"^in all at most (\d+) s", output, re.MULTILINE)
    assert total is not None
    # Besides the limits of the parts, the sum contains the time in which a stopped part may end.
    assert sum(int(limit) for _, limit in limits) < int(total[1]) <= NINE_MINUTES


@pytest.mark.parametrize("where", [(), ("--cpu",)], ids=["gpu", "cpu"])
def test_every_command_uses_existing_options(where):
    for part, command in planned(*where, SCVI_PYTHON="python").items():
        words = command.split()
        options = {word for word in words if word.startswith("--")}
        files = [ROOT / word for word in words if word.endswith(".py")]
        assert all(file.exists() for file in files), part
        if part == "simulate":
            known = {name for p in typer.main.get_command(app).commands[part].params for name in p.opts}
        else:
            sources = [*files, ROOT / "benchmarks" / "heldout_runs.py"]
            known = set(re.findall(r'"(--[\w-]+)"', "".join(source.read_text() for source in sources)))
        assert options <= known, part


def test_only_the_gpu_run_uses_the_gpu():
    assert "--gpu" in planned()["throughput"]
    assert "--device cuda" in planned()["roofline"]
    assert not [command for command in planned("--cpu").values() if "--gpu" in command or "cuda" in command]


def test_parts_can_be_chosen():
    assert list(planned("quality", "tests")) == ["install", "check", "simulate", "quality", "tests"]


def test_unknown_part_is_a_usage_error():
    done = script("speed")
    assert done.returncode == 2
    assert "no part or option 'speed'" in done.stderr


def test_script_without_a_gpu_fails_and_writes_nothing(tmp_path):
    out = tmp_path / "out"
    done = script(OUT=str(out), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("error: there is no CUDA device: torch ")
    assert done.stdout == ""
    assert not out.exists()
