"""The command that scvae suggests as the next step works on the same cells and with the same model."""

from __future__ import annotations

import shlex

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from command_line import TINY, run_ok
from conftest import cells
from tenx import write_10x_mtx

from scvae_cli.tools.diagnose import question
from scvae_cli.tools.diagnose.advice import ADVICE
from scvae_cli.tools.diagnose.verdict import Verdict, next_command


def next_line(*arguments: object) -> list[str]:
    """Return the suggested command, split as by a shell."""
    steps = [line for line in run_ok(*arguments).err.splitlines() if line.startswith("next: scvae ")]
    return shlex.split(steps[0].removeprefix("next: scvae "))


def test_suggested_commands_use_the_same_data_and_model(tmp_path, monkeypatch):
    """The names of data and model contain a space, the counts are in a layer, and one cell is empty."""
    monkeypatch.chdir(tmp_path)
    data, model, config = tmp_path / "my cells.h5ad", tmp_path / "my model.scvae", tmp_path / "its config.toml"
    adata = cells()
    adata.layers["spliced"] = adata.X.copy()
    adata.write_h5ad(data)
    config.write_text("[train]\nmax_epochs = 1\nseed = 3\n")
    assert next_line("check", data, "--layer", "spliced", "--batch-key", "batch") == [
        *("train", str(data), "--layer", "spliced", "--batch-key", "batch")
    ]
    adata.layers["spliced"] = adata.X.multiply(np.arange(adata.n_obs)[:, None] > 0).tocsr()
    adata.write_h5ad(data)
    kept = ("--layer", "spliced", "--drop-empty")
    sweep = next_line("sweep", data, "--beta", "1,2", *TINY[2:4], *TINY[6:], *kept, "--config", config)
    assert set(kept) < set(sweep)
    assert sweep[sweep.index("--config") + 1] == str(config)
    embed = next_line(*sweep, "-m", model)
    assert embed == ["embed", str(data), "-m", str(model), "--drop-empty"]
    run_ok(*embed)
    options = ["--quick", "--samples", "4", "--refine", "2", *kept]
    # The recommended command depends on the model, but always uses the same cells.
    suggested = next_line("diagnose", data, "-m", model, *options, "--key-added", "mine")
    assert {str(data), *kept} < set(suggested)
    run_ok(*suggested)


def test_suggested_command_continues_with_the_output(tmp_path, trained):
    """Results cannot be written into a 10x folder, and the folder of the output contains no model."""
    sample, out = tmp_path / "sample", tmp_path / "out.h5ad"
    write_10x_mtx(sample, cells())
    options = ["--quick", "--samples", "4", "--refine", "2"]
    refined = next_line("diagnose", sample, "-m", trained.model, *options, "-o", out)
    assert [word for word in refined if word not in ("--refine", "100")] == [
        *("embed", str(out), "-m", str(trained.model))
    ]
    run_ok(*refined)


@pytest.mark.parametrize("few_genes", [False, True])
def test_suggested_python_lines_run_as_printed(tmp_path, trained, few_genes):
    """The names of groups and files contain quotes, and no name is a placeholder."""
    data = tmp_path / 'its "cells".h5ad'
    adata = ad.read_h5ad(trained.data)
    adata.obs["kind"] = ('a "' + adata.obs["cell_type"].astype(str) + '" cell').astype("category")
    adata.write_h5ad(data)
    inputs, group = (data, "-m", trained.model), adata.obs["kind"].cat.categories[0]
    new = tmp_path / 'new "cells".h5ad'
    genes = ("--genes", ",".join(adata.var_names[:9])) if few_genes else ("--groupby", "kind")
    for words in (
        ("denoise", *inputs, *genes),
        ("score", *inputs, "--samples", "2"),
        ("de", *inputs, "--groupby", "kind", "--group", group),
        ("sample", *inputs, "-n", "60", "-o", new),
        ("embed", *inputs),
    ):
        (line,) = [line for line in run_ok(*words).err.splitlines() if line.startswith("next: ")]
        names = {"adata": ad.read_h5ad(data), "sc": sc, "anndata": ad}
        try:
            exec(line.removeprefix("next: "), names)
        finally:
            plt.close("all")
        if few_genes:
            return


def test_no_plot_is_suggested_without_a_column_of_groups(copied):
    """Without a column that groups the cells, there is no plot of denoised counts by group."""
    adata = ad.read_h5ad(copied.data)
    del adata.obs["cell_type"], adata.obs["batch"]
    adata.write_h5ad(copied.data)
    assert "next: " not in run_ok("denoise", copied.data, "-m", copied.model).err


@pytest.mark.parametrize("finding", [name for name, advice in ADVICE.items() if advice.command is not None])
def test_every_suggestion_of_diagnose_runs(copied, monkeypatch, finding):
    """A recommended training keeps the options of the diagnosed model, and writes another model."""
    poor = Verdict(topic="one", level="poor", sentence="found", finding=finding, values={"beta": 1, "lower": 0.1})
    monkeypatch.setattr(question, "next_command", lambda _verdicts, config: next_command([poor], config))
    suggested = next_line("diagnose", copied.data, "-m", copied.model, "--quick", "--samples", "4", "--refine", "2")
    if suggested[0] == "embed":
        assert suggested == ["embed", str(copied.data), "-m", str(copied.model), "--refine", "100"]
    else:
        options = dict(zip(suggested[2::2], suggested[3::2], strict=True))
        typed = dict(zip(TINY[::2], TINY[1::2], strict=True))
        kept = {"--max-epochs", "--batch-size"} & typed.keys()
        assert kept
        assert {name: options[name] for name in kept} == {name: typed[name] for name in kept}
        assert options.get("-m", "") != str(copied.model)
    run_ok(*suggested)
