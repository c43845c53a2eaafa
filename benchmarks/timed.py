"""Run a command in a separate process, and measure its time and the load of the machine during the command."""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The JSON object that a process printed, its wall time, and the number of cores that other processes kept busy.

    `other_cores` is read from /proc/stat on Linux, and is None on other systems.
    """

    result: dict[str, Any]
    seconds: float
    other_cores: float | None


def run_json(command: list[str], threads: int, *, gpu: bool = False) -> Timed:
    """Run a command, which must print one JSON object, with a number of CPU threads, and with or without GPUs."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = os.environ | limits | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})
    others_before, start = _cpu_seconds_of_others(), time.perf_counter()
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds, others_after = time.perf_counter() - start, _cpu_seconds_of_others()
    if finished.returncode:
        raise SystemExit(f"{shlex.join(command)}\nended with {finished.returncode}:\n{finished.stderr[-3000:]}")
    known = others_before is not None and others_after is not None
    other_cores = round(max(0.0, (others_after - others_before) / seconds), 2) if known else None
    return Timed(result=json.loads(finished.stdout), seconds=seconds, other_cores=other_cores)


def describe_machine(threads: int, *, gpu: bool = False) -> str:
    """Describe the machine: CPU model, cores, threads used, and the GPU if there is one."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = f"{os.cpu_count()} cores, {threads} threads used"
    return f"{model}, {cores}, {_gpu_name() if gpu else 'no GPU'}, Python {platform.python_version()}"


def _gpu_name() -> str:
    answer = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return answer.stdout.strip().splitlines()[0]


def _cpu_seconds_of_others() -> float | None:
    """Return the CPU time used so far on this machine, except by our finished child processes."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    # user nice system idle iowait irq softirq steal
    ticks = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    return busy / os.sysconf("SC_CLK_TCK") - ours.ru_utime - ours.ru_stime
