"""Labels that are probably mistakes are named in a warning, wherever a command reads labels."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from command_line import TINY, run_cli
from hypothesis import given
from hypothesis import strategies as st

import scvae_cli as scvae
from scvae_cli.data.doubtful_labels import alike, warn_of_doubtful
from scvae_cli.errors import ScvaeWarning

TREATED = ["--perturbation-key", "batch", "--control", "batch_1", "--treated", "batch_2"]
COMMANDS = {
    "train with labels": ["train", "--labels-key", "cell_type", *TINY],
    "train with batches": ["train", "--batch-key", "cell_type", *TINY],
    "annotate": ["annotate", "--labels-key", "cell_type"],
    "de": ["de", "--groupby", "cell_type", "--group", "stem"],
    "de in replicates": ["de", "--groupby", "batch", "--group", "batch_1", "--replicate-key", "cell_type"],
    "interpolate": ["interpolate", "--groupby", "cell_type", "--from", "stem", "--to", "progenitor"],
    "perturb": ["perturb", *TREATED, "--groupby", "cell_type", "--group", "stem"],
    "pseudotime": ["pseudotime", "--groupby", "cell_type", "--root", "stem"],
    "subset": ["annotate", "--labels-key", "batch", "--subset", "cell_type=stem"],
    "diagnose": ["diagnose", "--quick", "--labels", "cell_type"],
    "sample": ["sample", "-n", "5", "--groupby", "cell_type", "--group", "stem"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("odd", "named"), [("stem ", "'stem ' (9 cells)"), ("Stem", "'Stem' (9 cells)"), ("inf",) * 2])
def test_every_command_names_doubtful_labels_once(copied, command, odd, named):
    adata = ad.read_h5ad(copied.data)
    label_n = adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    label_n[np.flatnonzero(label_n == "stem")[:9]] = odd
    adata.obs["cell_type"] = pd.Categorical(label_n)
    adata.write_h5ad(copied.data)
    verb, *options = COMMANDS[command]
    model = copied.model.with_name("new.scvae") if verb == "train" else copied.model
    output = ["-o", copied.data.with_name("new.h5ad")] if verb in ("sample", "perturb") else []
    outcome = run_cli(verb, copied.data, "-m", model, *output, *options)
    found = [line for line in outcome.err.splitlines() if line.startswith("warning: ") and named in line]
    assert len(found) == 1, outcome
    assert "cell_type" in found[0]


def test_python_functions_warn(copied):
    adata = ad.read_h5ad(copied.data)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace("progenitor", "STEM")
    with pytest.warns(ScvaeWarning, match=r"differ only by case or spaces.*'STEM' .* and 'stem'"):
        scvae.de(adata, copied.model, groupby="cell_type", group="stem")


@given(st.lists(st.text("aB ß-1\u00a0", max_size=4), max_size=9))
def test_labels_are_alike_if_and_only_if_they_differ_by_case_or_spaces(labels):
    groups = alike(labels)
    assert sorted(label for same in groups for label in same) == sorted({label for same in groups for label in same})

    def plain(label):
        return " ".join(label.replace("\u00a0", " ").casefold().split())

    for one in set(labels):
        same = {other for other in labels if plain(other) == plain(one)}
        assert (tuple(sorted(same)) in groups) == (len(same) > 1)


@pytest.mark.parametrize("labels", [["a", "b"], ["T cell", "T-cell"], [None, "x"], ["", " ", "a"], ["1", "1.0"], []])
def test_other_labels_give_no_warning(labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_doubtful("cells.h5ad", "cell_type", labels)
