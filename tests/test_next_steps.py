"""The command that scvae suggests as the next step works on the same cells and with the same model."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from command_line import TINY, run_well
from conftest import cells
from tenx import write_10x_mtx

from scvae_cli.tools.diagnose import question
from scvae_cli.tools.diagnose.advice import ADVICE
from scvae_cli.tools.diagnose.verdict import Verdict, next_command


def next_line(*arguments: object) -> list[str]:
    """Return the suggested command, split as by a shell."""
    steps = [line for line in run_well(*arguments).err.splitlines() if line.startswith("next: scvae ")]
    return shlex.split(steps[0].removeprefix("next: scvae "))


def test_what_is_said_to_run_next_runs_on_the_same(tmp_path, monkeypatch):
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
    run_well(*embed)
    quick = ["--quick", "--samples", "4", "--refine", "2", *kept]
    # The recommended command depends on the model, but always uses the same cells.
    advised = next_line("diagnose", data, "-m", model, *quick, "--key-added", "mine")
    assert {str(data), *kept} < set(advised)
    run_well(*advised)


def test_what_is_said_to_run_next_goes_on_with_the_output(tmp_path, trained):
    """Results cannot be written into a 10x folder, and the folder of the output contains no model."""
    sample, out = tmp_path / "sample", tmp_path / "out.h5ad"
    write_10x_mtx(sample, cells())
    quick = ["--quick", "--samples", "4", "--refine", "2"]
    refined = next_line("diagnose", sample, "-m", trained.model, *quick, "-o", out)
    assert [word for word in refined if word not in ("--refine", "100")] == [
        *("embed", str(out), "-m", str(trained.model))
    ]
    run_well(*refined)


@pytest.mark.parametrize("finding", [name for name, advice in ADVICE.items() if advice.command is not None])
def test_whatever_a_diagnosis_says_to_run_next_runs(copied, monkeypatch, finding):
    """A recommended training keeps the options of the diagnosed model, and writes another model."""
    poor = Verdict(topic="one", level="poor", sentence="found", finding=finding, values={"beta": 1, "lower": 0.1})
    monkeypatch.setattr(question, "next_command", lambda _verdicts, config: next_command([poor], config))
    following = next_line("diagnose", copied.data, "-m", copied.model, "--quick", "--samples", "4", "--refine", "2")
    if following[0] == "embed":
        assert following == ["embed", str(copied.data), "-m", str(copied.model), "--refine", "100"]
    else:
        options = dict(zip(following[2::2], following[3::2], strict=True))
        typed = dict(zip(TINY[::2], TINY[1::2], strict=True))
        kept = {"--max-epochs", "--batch-size"} & typed.keys()
        assert kept
        assert {name: options[name] for name in kept} == {name: typed[name] for name in kept}
        assert options.get("-m", "") != str(copied.model)
    run_well(*following)
