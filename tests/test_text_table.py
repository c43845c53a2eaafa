"""Columns of printed tables are at least two spaces apart, however long names and numbers are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import run_ok
from hypothesis import given
from hypothesis import strategies as st
from simulated import TINY
from test_figure_layout import data, questions

import scvae_cli as scvae
from scvae_cli.text_table import shown_width, table_lines

TOOLS = Path(scvae.__file__).parent / "tools"
# Files of tools that align text without `table_lines`: verdicts are wrapped into paragraphs.
ALIGNED_OTHERWISE = {"diagnose/verdict.py"}

names = st.one_of(st.text("aB1-_.W细é", min_size=1, max_size=200), st.text("ab ", min_size=1).map("x".join))
numbers = st.floats(-1e12, 1e12).map("{:+.2f}".format)


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.tuples(names, *[numbers] * n), min_size=1, max_size=8)))
def test_cells_can_be_told_apart(rows):
    lines = table_lines([("gene", *("a title" for _ in rows[0][1:])), *rows], indent="  ")
    assert len(lines) == len(rows) + 1
    for row, line in zip(rows, lines[1:], strict=True):
        rest = line.removeprefix("  ")
        assert rest.startswith(row[0])
        assert re.split(r" {2,}", rest[len(row[0]) :])[1:] == list(row[1:])
    assert len({shown_width(line) for line in lines}) == 1, "numbers are aligned on the right"


@given(st.integers(60, 200))
def test_tables_of_any_width_are_aligned(width):
    lines = table_lines([("n" * (width - 8), "123456"), ("m", "1")])
    assert lines == ["n" * (width - 8) + "  123456", "m" + " " * (width - 2) + "1"]


def test_all_tools_use_the_same_tables():
    padded = re.compile(r"\{[^{}]*:[<>^][\d{]|\.[lr]just\(")
    found = {str(path.relative_to(TOOLS)) for path in TOOLS.rglob("*.py") if padded.search(path.read_text())}
    assert found <= ALIGNED_OTHERWISE


@pytest.mark.parametrize("kind", ["short", "unbroken", "long", "Chinese"])
def test_columns_of_commands_do_not_touch(tmp_path, kind):
    adata = data(kind)
    path, model = tmp_path / "cells.h5ad", tmp_path / "cells.scvae"
    scvae.train(adata, **TINY, genes="all").save(model)
    adata.write_h5ad(path)
    asked = questions(kind)
    treated = asked["perturb"][0]
    flags = [word for name, value in treated.items() for word in ("--" + name.replace("_", "-"), value)]
    groups = asked["de"][0]
    for title, command in {
        "gene  ": ["perturb", *flags, "-o", tmp_path / "perturbed.h5ad"],
        "group ": ["perturb", *flags, "-o", tmp_path / "again.h5ad"],
        "gene   ": ["de", "--groupby", "group", "--group", groups["group"], "--reference", groups["reference"]],
        "gene    ": ["sample", "--prototype", "-o", tmp_path / "prototype.h5ad"],
        "  label ": ["annotate", "--labels-key", "group"],
    }.items():
        verb, *options = command
        lines = run_ok(verb, path, "-m", model, *options).out.splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith(title.rstrip() + "  "))
        n_columns = len(re.split(r" {2,}", lines[first].strip()))
        for line in lines[first + 1 : first + 6]:
            assert len(re.split(r" {2,}", line.strip())) == n_columns, "\n".join(lines)
