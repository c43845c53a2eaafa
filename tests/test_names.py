"""File names that cause problems in shells or file systems: names that begin with "-", and names that are too long."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Annotated

import pytest
import typer
from command_line import TINY, run_cli, run_ok
from conftest import cells
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from scvae_cli.shell_line import shell_line

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00/"), min_size=1, max_size=12)
DASHED = st.one_of(NAMES, NAMES.map(lambda text: f"-{text}"), NAMES.map(lambda text: f"--{text}"))


def parsed(line: str) -> dict[str, str]:
    """Parse a command line as a shell and Typer do."""
    found: dict[str, str] = {}
    app = typer.Typer()

    @app.command()
    def embed(
        data: str,
        model: Annotated[str | None, typer.Option("-m")] = None,
        output: Annotated[str | None, typer.Option("-o")] = None,
        group: str | None = None,
        layer: str | None = None,
    ):
        found.update(data=data, model=model, output=output, group=group, layer=layer)

    words = shlex.split(line)
    assert words[:2] == ["scvae", "embed"]
    result = CliRunner().invoke(app, words[2:])
    assert result.exit_code == 0, result.output
    return found


@settings(max_examples=40, deadline=None)
@given(data=DASHED, model=DASHED, output=DASHED, group=DASHED, layer=DASHED)
def test_suggested_command_line_is_parsed_to_the_same_values(data, model, output, group, layer):
    found = parsed(shell_line("embed", data, m=model, o=output, group=group, layer=layer))
    assert found["group"] == group
    assert found["layer"] == layer
    for name, path in (("data", data), ("model", model), ("output", output)):
        assert os.path.normpath(found[name]) == os.path.normpath(path)


@pytest.mark.parametrize("name", ["-cells.h5ad", "--help.h5ad", "-m"])
def test_name_of_data_may_begin_with_a_dash(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    cells().write_h5ad(Path(name).absolute())
    outcome = run_ok("train", f"./{name}", "-m", "./-model.scvae", *TINY)
    line = next(line for line in outcome.err.splitlines() if line.startswith("next: "))
    words = shlex.split(line.removeprefix("next: scvae "))
    run_ok(*words)


@pytest.mark.parametrize("excess", [1, 5, 60])
@pytest.mark.parametrize("option", ["output", "plot", "model", "new"])
def test_name_that_is_too_long_is_refused_before_the_computation(copied, monkeypatch, option, excess):
    most = os.pathconf(copied.data.parent, "PC_NAME_MAX")
    ending = {"output": ".h5ad", "plot": ".png", "model": ".scvae", "new": ".h5ad"}[option]
    long = copied.data.with_name("x" * (most + excess - len(ending)) + ending)

    def fail(*_args, **_kwargs):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("scvae_cli.tools.train.training.fit", fail)
    monkeypatch.setattr("scvae_cli.session.posteriors", fail)
    commands = {
        "output": ("embed", copied.data, "-o", long),
        "plot": ("embed", copied.data, "--plot", long),
        "model": ("train", copied.data, "-m", long),
        "new": ("simulate", long),
    }
    outcome = run_cli(*commands[option])
    assert outcome.code == 2, outcome.err
    assert "bytes" in outcome.err
    assert len(outcome.err.splitlines()) == 2


def test_model_whose_temporary_names_are_too_long_is_refused(copied):
    most = os.pathconf(copied.data.parent, "PC_NAME_MAX")
    data = copied.data.with_name("x" * (most - 20 - len(".h5ad")) + ".h5ad")
    shutil.copyfile(copied.data, data)
    outcome = run_cli("train", data, *TINY)
    assert outcome.code == 2
    assert "choose a shorter name" in outcome.err


@pytest.mark.parametrize("verb", ["check", "train", "embed", "info"])
def test_name_of_data_that_is_too_long_is_refused(tmp_path, verb):
    outcome = run_cli(verb, tmp_path / ("x" * 400 + ".h5ad"))
    assert outcome.code in (2, 3)
    assert len(outcome.err.splitlines()) == 2
