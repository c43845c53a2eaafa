"""A small part of the attacks of `attack.py`, with cases of every kind: no case may fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import damaged_files
import hostile_models
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits of child processes work only on Linux"),
]
# The cases contain every kind.
N_CASES = 10 * len(hostile_models.KINDS)
KINDS = [
    *(("file", kind) for kind in damaged_files.KINDS),
    *(("model", kind) for kind in hostile_models.MODEL_KINDS),
    *(("saved state", kind) for kind in hostile_models.KINDS),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[dict[str, Any]]:
    """Cases with the first seeds, tried in child processes of one server; other tests use the other cores."""
    results = tmp_path_factory.mktemp("attack") / "cases.jsonl"
    script = Path(__file__).with_name("attack.py")
    command = [sys.executable, "-W", "ignore", script, "--cases", N_CASES, "--jobs", 1, "--no-report"]
    paths = os.pathsep.join([str(script.parent), str(script.parents[1])])
    subprocess.run([*map(str, command), "--results", str(results)], check=True, env=os.environ | {"PYTHONPATH": paths})
    return [json.loads(line) for line in results.read_text().splitlines()]


@pytest.mark.parametrize(("family", "kind"), KINDS, ids=[": ".join(names) for names in KINDS])
def test_no_attack_fails(cases, family, kind):
    tried = [case for case in cases if (case["family"], case["kind"]) == (family, kind)]
    assert tried
    assert [case for case in tried if case["outcome"] == "failed"] == []
