"""Extreme sizes are refused by the limits of options, or by a comparison with free memory before computing."""

from __future__ import annotations

import math
import resource
import sys

import numpy as np
import pytest
import torch
from command_line import TINY, run_cli, run_elsewhere
from conftest import cells
from hypothesis import given
from hypothesis import strategies as st

from scvae_cli import memory_limit
from scvae_cli.errors import DeviceError, ScvaeError
from scvae_cli.memory_limit import free_bytes, out_of_memory, refuse_too_large, shown_bytes
from scvae_cli.options import declarations
from scvae_cli.verbs import VERBS

# Options whose value determines time or memory need an upper limit; seeds and largest numbers of cells do not.
WITHOUT_LIMIT = {"seed", "max_cells", "n_top_genes"}
WITH_LIMIT = sorted(
    {
        (verb.name, declared.name)
        for verb in VERBS
        for declared in declarations(verb.options, hidden=True)
        if int in declared.alternatives and declared.name not in WITHOUT_LIMIT
    }
)


@pytest.mark.parametrize(("verb", "name"), WITH_LIMIT)
def test_every_whole_number_has_an_upper_limit(verb, name):
    [options] = [one.options for one in VERBS if one.name == verb]
    numbers = [one for one in declarations(options, hidden=True) if int in one.alternatives]
    [declared] = [one for one in numbers if one.name == name]
    assert declared.most is not None
    for too_large in (10**10, 10**12, 2**63 - 1):
        with pytest.raises(ScvaeError, match="it takes|" + declared.name):
            declared.checked(too_large)


@pytest.mark.parametrize(
    "verb", [verb.name for verb in VERBS if "library" in {d.name for d in declarations(verb.options)}]
)
def test_library_size_has_an_upper_limit(verb):
    [options] = [one.options for one in VERBS if one.name == verb]
    [declared] = [one for one in declarations(options) if one.name == "library"]
    for too_large in (1e10, 1e300):
        with pytest.raises(ScvaeError):
            declared.checked(too_large)


@pytest.fixture
def little_memory(monkeypatch) -> int:
    """A machine with one MiB of memory."""
    monkeypatch.setattr(memory_limit, "free_bytes", lambda: 2**20)
    return 2**20


# For each option, a value that needs too much memory, and the value that the hint suggests.
LARGE = {
    "train": (("--n-hidden", "20000"), "--n-hidden "),
    "sample": (("-n", "1000000"), "--cells "),
    "interpolate": (("--groupby", "cell_type", "--from", "{0}", "--to", "{1}", "--steps", "9999"), "--steps "),
    "optimize": (("--groupby", "cell_type", "--group", "{0}", "--toward", "{2}", "--steps", "9999"), "--steps "),
}


@pytest.mark.parametrize("verb", LARGE)
def test_size_that_does_not_fit_is_refused_with_a_size_that_fits(copied, little_memory, verb):
    options, fitting = LARGE[verb]
    labels = sorted(set(cells().obs["cell_type"]))[:2]
    arguments = [option.format(*labels, cells().var_names[0]) for option in options]
    extra = ("--force", *TINY[:2], *TINY[4:]) if verb == "train" else ()
    out = ("-o", copied.data.with_name("new.h5ad")) if verb == "sample" else ()
    outcome = run_cli(verb, copied.data, *arguments, *extra, *out)
    assert outcome.code == 2, outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith(("error", "hint"))]
    assert "of memory, but only 1.0 MiB are free" in lines[0]
    assert fitting in lines[1]
    assert "would fit" in lines[1]
    # The suggested value does fit.
    number = int(lines[1].split(fitting)[1].split()[0])
    assert number >= 1
    smaller = [*arguments[:-1], str(number)]
    second = run_cli(verb, copied.data, *smaller, *extra, *out)
    assert second.code == 0, second.err


def test_simulation_that_does_not_fit_is_refused(tmp_path, little_memory):
    outcome = run_cli("simulate", tmp_path / "new.h5ad", "--cells", "1000000000")
    assert outcome.code == 2
    assert "would fit" in outcome.err
    assert not (tmp_path / "new.h5ad").exists()


@given(n_bytes=st.floats(0, 1e24))
def test_sizes_are_shown_with_units(n_bytes):
    text = shown_bytes(n_bytes)
    number, unit = text.split()
    factor = {unit: 1024**i for i, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))}[unit]
    assert math.isclose(float(number.replace(",", "")) * factor, n_bytes, rel_tol=0.06, abs_tol=0.06 * factor)


ALLOCATIONS = {
    "numpy": lambda: np.empty(10**17),
    "torch": lambda: torch.empty(10**17),
    "python": lambda: bytearray(10**17),
    "list": lambda: [None] * 10**17,
}


@pytest.mark.parametrize("kind", ALLOCATIONS)
def test_memory_errors_of_libraries_become_one_line(kind):
    try:
        ALLOCATIONS[kind]()
    except (MemoryError, RuntimeError) as error:
        shown = out_of_memory(error)
    assert isinstance(shown, DeviceError)
    assert "not enough memory" in shown.message
    assert "\n" not in shown.message
    assert shown.hint


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), OSError(2, "No such file"), ValueError("x"), KeyError("out of memory")]
)
def test_other_errors_are_not_memory_errors(error):
    assert out_of_memory(error) is None


def test_memory_error_as_context_is_recognized():
    """Under `ulimit -v`, a library may report that it was not found; the underlying error gives the reason."""
    cause, shown = OSError("libfast.so: failed to map segment"), OSError("could not find libfast.so")
    shown.__context__ = cause
    assert out_of_memory(shown) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of address space")
@pytest.mark.parametrize("megabytes", [300, 700])
def test_command_under_ulimit_ends_with_one_line(copied, megabytes):
    limit = megabytes * 10**6
    script = (
        "import resource, sys; from scvae_cli.cli.app import run\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit})); sys.exit(run(sys.argv[1:]))"
    )
    done = run_elsewhere(script, "train", copied.data, "--force")
    assert done.returncode == DeviceError.exit_code
    assert done.stderr.startswith("error: not enough memory")
    assert len(done.stderr.splitlines()) == 2


def test_failed_allocation_in_a_command_ends_with_one_line(copied, monkeypatch):
    def failing(*_args, **_kwargs):
        return np.empty(10**17)

    monkeypatch.setattr("scvae_cli.session.read_counts", failing)
    outcome = run_cli("embed", copied.data)
    assert outcome.code == DeviceError.exit_code
    assert outcome.err.startswith("error: not enough memory")
    assert len(outcome.err.splitlines()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of address space")
def test_ulimit_reduces_the_free_memory():
    script = (
        "import resource; from scvae_cli.memory_limit import free_bytes\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({2**29}, {2**29})); print(free_bytes())"
    )
    free = int(run_elsewhere(script).stdout)
    assert 0 < free < 2**29


def test_free_memory_is_measured():
    free = free_bytes()
    assert free is not None
    assert free > 2**20
    refuse_too_large(2**20, "a mebibyte", "")
    assert resource.getpagesize() > 0
