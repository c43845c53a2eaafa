"""`scvae perturb` predicts simulated perturbations that change the log expression of all groups equally."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from command_line import run_cli, run_ok
from scipy.stats import ttest_ind
from simulated import TINY, counts_of
from workbench import DATA, USAGE

import scvae_cli as scvae
from scvae_cli.api import PythonShell
from scvae_cli.errors import ConfigError, DataError, ModelError, ScvaeWarning
from scvae_cli.session import Session
from scvae_cli.tools.perturb.design import Design, design
from scvae_cli.tools.perturb.figure import perturbation_figure
from scvae_cli.tools.perturb.label_permutation import permutation_test
from scvae_cli.tools.perturb.observed_change import Observed, accuracy
from scvae_cli.tools.perturb.options import PERTURB, PerturbOptions
from scvae_cli.tools.perturb.perturbation import perturb
from scvae_cli.tools.perturb.prediction import Predictor
from scvae_cli.tools.perturb.question import Perturb
from scvae_cli.tools.perturb.result import Perturbation, Recipe
from scvae_cli.tools.perturb.tested_change import LEVEL, any_changed
from scvae_cli.tools.perturb.validation import Trial, choose, relative_agreement
from scvae_cli.verb import Request

LABELS = ("ctrl", "B", "C", "B+C")
GROUPS = ("ape", "bee", "cat", "dog", "elk")
OPTIONS = {"perturbation_key": "label", "control": "ctrl", "groupby": "kind"}
FLAGS = ("--perturbation-key", "label", "--control", "ctrl", "--groupby", "kind")
N_GENES, EACH = 60, 40


def simulated_cells() -> anndata.AnnData:
    """Five groups with four labels; B and C change the log expression of all groups equally, and their effects add."""
    rng = np.random.default_rng(0)
    base_sg = rng.normal(0, 1, N_GENES) + rng.normal(0, 0.7, (len(GROUPS), N_GENES))
    effects = np.zeros((2, N_GENES))
    effects[0, :30], effects[1, 20:50] = rng.normal(0, 1, 30), rng.normal(0, 1, 30)
    of_label = dict(zip(LABELS, (0 * effects[0], effects[0], effects[1], effects.sum(0)), strict=True))
    blocks, obs = [], []
    for label in LABELS:
        for s, group in enumerate(GROUPS):
            rate_g = np.exp(base_sg[s] + of_label[label])
            blocks.append(rng.poisson(3000 * rate_g / rate_g.sum() * rng.gamma(8, 1 / 8, (EACH, N_GENES))))
            obs += [(group, label)] * EACH
    frame = pd.DataFrame(obs, columns=["kind", "label"], index=[f"c{i}" for i in range(len(obs))])
    frame["depth"] = np.concatenate([block.sum(1) for block in blocks]).astype(float)
    matrix = sp.csr_matrix(np.concatenate(blocks), dtype=np.float32)
    return anndata.AnnData(matrix, obs=frame, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


def without(adata: anndata.AnnData, *pairs: tuple[str, str]) -> anndata.AnnData:
    """Leave out the cells of given pairs of a group and a label."""
    left_out = np.zeros(len(adata), dtype=bool)
    for group, label in pairs:
        left_out |= ((adata.obs["kind"] == group) & (adata.obs["label"] == label)).to_numpy()
    return adata[~left_out].copy()


@pytest.fixture(scope="module")
def everything() -> anndata.AnnData:
    return simulated_cells()


@pytest.fixture(scope="module")
def known(everything) -> anndata.AnnData:
    """All cells except those of group "ape" with the labels B and B+C, and of group "cat" with the label B+C."""
    return without(everything, ("ape", "B"), ("ape", "B+C"), ("cat", "B+C"))


@pytest.fixture(scope="module")
def model(known):
    """A model with a linear decoder, in which the logs of all groups change equally along a direction."""
    return scvae.train(known, **TINY | {"max_epochs": 40, "n_latent": 6}, decoder="linear", genes="all")


def question(cells: anndata.AnnData, model, group: str, treated: str, **options) -> Perturb:
    """Prepare `scvae perturb` for a group and a perturbation, without computing the prediction."""
    asked_options = PerturbOptions(**OPTIONS, treated=treated, group=group, **({"method": "centroid"} | options))
    request = Request(verb=PERTURB, data=cells, model=model, options=asked_options)
    return Perturb(Session.open(cells, model, device="cpu"), request, PythonShell(request.verb))


def truth(everything: anndata.AnnData, model, group: str, treated: str):
    """Compute the true change of a group, and the most significant genes."""
    prepared = question(everything, model, group, treated)
    observed = Observed(prepared.session.counts)
    return observed.change(prepared.design), observed.most_significant(prepared.design)


class Predicted(NamedTuple):
    """A predicted perturbation, and the predictor and the design from which it was computed."""

    result: Perturbation
    predictor: Predictor
    design: Design


def predicted(cells: anndata.AnnData, model, group: str, treated: str, **options) -> Predicted:
    prepared = question(cells, model, group, treated, **options)
    return Predicted(prepared.answer(), Predictor.of(model, prepared.counts), prepared.design)


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["centroid", "ot"])
def test_change_shared_by_all_groups_is_recovered(everything, known, model, method):
    true_g, top = truth(everything, model, "ape", "B")
    prediction = predicted(known, model, "ape", "B", method=method)
    result = prediction.result
    for share in (0.0, result.recipe.mean_shift_share, 1.0):
        found = accuracy(prediction.predictor.changes(prediction.design, method, (share,))[0], true_g, top)
        assert found.correlation > 0.9
        assert found.explained > 0.8  # the prediction "no change" has the value 0
    nothing = accuracy(0 * true_g, true_g, top)
    assert nothing[:-1] == (0, 0, 0, 0)
    assert nothing.rmse == pytest.approx(np.sqrt((true_g**2).mean()))
    assert result.recipe.method == method
    assert result.model_agreement == pytest.approx(1, abs=0.05)
    assert result.sources == {"B": ("bee", "cat", "dog", "elk")}
    assert result.group_check is None
    assert result.changes.observed_g is None


def test_reported_accuracy_equals_that_of_the_predicted_group(everything, known, model):
    true_g, top = truth(everything, model, "ape", "B")
    result = predicted(known, model, "ape", "B").result
    assert [check.group for check in result.checks] == ["bee", "cat", "dog", "elk"]
    assert not any(check.held_out for check in result.checks)
    found = accuracy(result.changes.change_g, true_g, top)
    assert result.mean_accuracy().correlation == pytest.approx(found.correlation, abs=0.08)
    assert result.mean_accuracy("mean_change") is not None
    assert result.mean_accuracy("additive") is None


def test_fold_changes_equal_those_of_the_simulation(everything, known, model):
    result = predicted(known, model, "ape", "B").result
    rng = np.random.default_rng(0)
    rng.normal(0, 1, N_GENES), rng.normal(0, 0.7, (len(GROUPS), N_GENES))
    true_g = np.zeros(N_GENES)
    true_g[:30] = rng.normal(0, 1, 30) / np.log(2)
    # Normalization shifts all log proportions by a constant, which leaves the correlation unchanged.
    assert np.corrcoef(result.changes.log2_fold_g, true_g)[0, 1] > 0.9


def test_combination_adds_the_interaction_of_other_groups_to_the_changes_of_the_group(everything, known, model):
    true_g, top = truth(everything, model, "cat", "B+C")
    result = predicted(known, model, "cat", "B+C").result
    singles = {"B": ("cat", "bee", "dog", "elk"), "C": ("cat", "ape", "bee", "dog", "elk")}
    assert result.sources == singles | {"B+C": ("bee", "dog", "elk")}
    assert result.tested
    assert accuracy(result.changes.change_g, true_g, top).correlation > 0.9
    assert result.changes.additive_g is not None
    assert result.mean_accuracy("additive") is not None
    # The group "ape" has undergone C, but not B, so the prediction is the change of the other groups under B+C.
    assert predicted(known, model, "ape", "B+C").result.sources == {"B+C": ("bee", "dog", "elk")}


def test_unseen_combination_is_predicted_from_its_parts(everything, known, model):
    unseen = without(known, *((group, "B+C") for group in GROUPS))
    prediction = predicted(unseen, model, "cat", "B+C")
    true_g, top = truth(everything, model, "cat", "B+C")
    assert accuracy(prediction.result.changes.change_g, true_g, top).correlation > 0.9
    assert prediction.result.sources == {"B": ("cat", "bee", "dog", "elk"), "C": ("cat", "ape", "bee", "dog", "elk")}
    # The group "cat" has undergone B and C, so the model has no change to transfer from other groups.
    assert prediction.result.recipe.mean_shift_share == 1
    assert prediction.result.model_agreement is None
    # The group "ape" has not undergone B, so the model transfers the change under B from other groups.
    assert predicted(unseen, model, "ape", "B+C").result.model_agreement is not None
    assert not prediction.result.tested
    assert {check.treated for check in prediction.result.checks} == {"B", "C"}
    assert prediction.result.changes.mean_change_g is None
    shift_mk = prediction.predictor.latent.shift(prediction.design, "centroid")
    parts = [
        prediction.predictor.latent.mean_nk[prediction.design.rows("cat", label)].mean(0)
        - prediction.predictor.latent.mean_nk[prediction.design.rows("cat", "ctrl")].mean(0)
        for label in ("B", "C")
    ]
    torch.testing.assert_close(shift_mk[0], parts[0] + parts[1])


def test_order_of_cells_does_not_matter(known, model):
    first = predicted(known, model, "ape", "B").result
    order = np.random.default_rng(1).permutation(len(known))
    second = predicted(known[order].copy(), model, "ape", "B").result
    assert [check.group for check in first.checks] == [check.group for check in second.checks]
    np.testing.assert_allclose(first.changes.change_g, second.changes.change_g, atol=1e-3)


def test_treated_cells_of_the_group_are_used_only_for_the_check(everything, known, model):
    hidden, seen = (predicted(cells, model, "ape", "B", method="ot") for cells in (known, everything))
    change_g, seen_change_g = (
        prediction.predictor.changes(prediction.design, "ot", (0.25,))[0] for prediction in (hidden, seen)
    )
    np.testing.assert_allclose(seen_change_g, change_g, rtol=1e-6)
    assert hidden.result.group_check is None
    assert seen.result.group_check.group == "ape"
    np.testing.assert_allclose(seen.result.changes.observed_g, truth(everything, model, "ape", "B")[0])


def test_retrained_models_are_trained_without_the_predicted_cells(known, model):
    two = without(known, ("dog", "B"), ("elk", "B"), *((group, label) for group in GROUPS for label in ("C", "B+C")))
    titles = []

    def follow(title, events):
        titles.append(title)
        return list(events)[-1]

    short = dataclasses.replace(model.config, train=dataclasses.replace(model.config.train, max_epochs=4))
    prepared = question(two, dataclasses.replace(model, config=short), "ape", "B", retrain=True, method="auto")
    result = perturb(prepared.session.model, prepared.counts, prepared.design, prepared.options, follow=follow)
    assert titles == ["without B bee", "without B cat"]
    assert all(check.held_out for check in result.checks)


def test_most_significant_genes_equal_those_of_welchs_t_test(everything, model):
    session = Session.open(everything, model, device="cpu")
    tested_design = question(everything, model, "ape", "B").design
    log_ng = np.log1p(1e4 * everything.X.toarray() / everything.X.sum(1).A1[:, None])
    rows = [tested_design.rows("ape", label) for label in ("B", "ctrl")]
    t_g = np.abs(ttest_ind(log_ng[rows[0]], log_ng[rows[1]], equal_var=False).statistic)
    assert set(Observed(session.counts).most_significant(tested_design)[:10]) == set(np.argsort(-t_g)[:10])
    np.testing.assert_allclose(
        Observed(session.counts).change(tested_design), log_ng[rows[0]].mean(0) - log_ng[rows[1]].mean(0), atol=1e-4
    )


def test_mean_shift_is_used_if_the_model_disagrees(everything, known, model, monkeypatch):
    true_g, top = truth(everything, model, "ape", "B")
    session = Session.open(known, model, device="cpu")
    tested_design = question(known, model, "ape", "B").design
    agrees = {"ape": 0.2, "bee": 0.9, "cat": 1.0, "dog": 0.8, "elk": 0.9}
    monkeypatch.setattr(Predictor, "agreement", lambda self, design, method: agrees[design.group])
    predictor = Predictor.of(model, session.counts)
    assert relative_agreement(predictor, tested_design, tested_design.checks, "ot") == pytest.approx(0.2 / 0.9)
    assert relative_agreement(predictor, tested_design, (), "ot") == pytest.approx(0.2)
    result = predicted(known, model, "ape", "B").result
    assert result.recipe.mean_shift_share == 1
    assert result.model_agreement == pytest.approx(0.2 / 0.9)
    assert accuracy(result.changes.change_g, true_g, top).correlation > 0.9


# --- cells ------------------------------------------------------------------------------------------------------------


def test_predicted_cells_are_an_anndata(known, model):
    new = scvae.perturb(known, model, **OPTIONS, treated="B", group="ape", device="cpu")
    control = known[(known.obs["kind"] == "ape") & (known.obs["label"] == "ctrl")]
    assert list(new.obs_names) == [f"{name}_B" for name in control.obs_names]
    assert set(new.obs["label"]) == {"B"}
    assert set(new.obs["kind"]) == {"ape"}
    np.testing.assert_array_equal(new.obs["depth"], control.obs["depth"])
    assert new.obsm["scvae_latent"].shape == (EACH, 6)
    assert new.obs["scvae_off_manifold"].between(0, 1).all()
    recorded = new.uns["scvae"]["perturbations"]["ape_B"]
    assert list(recorded["checks"]["group"]) == ["bee", "cat", "dog", "elk"]
    # The counts of the predicted cells show the reported fold changes.
    before = np.asarray(control.X.mean(0)).ravel()
    frequent_g = before > 10
    rise_g = np.log2(np.asarray(new.X.mean(0)).ravel() / np.maximum(before, 1e-3))
    assert np.corrcoef(rise_g[frequent_g], new.var["scvae_log2_fold_change"][frequent_g])[0, 1] > 0.95


def test_mean_of_drawn_cells_equals_the_expected_counts(known, model):
    prediction = predicted(known, model, "ape", "B")

    def blocks(drawn: bool, seed: int = 0):
        return next(prediction.predictor.blocks(prediction.design, prediction.result.recipe, drawn=drawn, seed=seed))

    drawn = [blocks(True, seed) for seed in range(20)]
    assert all((part.data == np.rint(part.data)).all() for part in drawn)
    assert (drawn[0] != drawn[1]).nnz
    assert (drawn[0] != blocks(True, 0)).nnz == 0
    mean_g = np.mean([np.asarray(part.mean(0)).ravel() for part in drawn], axis=0)
    np.testing.assert_allclose(mean_g, blocks(False).mean(0), rtol=0.1, atol=0.2)


def test_real_numbers_are_changed_by_differences(everything, known):
    def normalized(cells):
        return anndata.AnnData(np.log1p(1e4 * cells.X.toarray() / cells.X.sum(1).A1[:, None]), cells.obs, cells.var)

    real = scvae.train(normalized(known), **TINY | {"max_epochs": 30}, likelihood="normal", decoder="linear")
    true_g, top = truth(normalized(everything), real, "ape", "B")
    result = predicted(normalized(known), real, "ape", "B").result
    assert accuracy(result.changes.change_g, true_g, top).correlation > 0.9
    assert result.changes.log2_fold_g is None
    new = scvae.perturb(normalized(known), real, **OPTIONS, treated="B", group="ape", device="cpu")
    assert new.X.shape == (EACH, N_GENES)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, known, model) -> tuple[Path, Path]:
    known.write_h5ad(tmp_path / "cells.h5ad")
    model.save(tmp_path / "cells.scvae")
    return tmp_path / "cells.h5ad", tmp_path / "cells.scvae"


def test_command_writes_a_file_and_a_figure(files, known, model):
    data, _ = files
    output, plot = data.with_name("new.h5ad"), data.with_name("new.svg")
    command = ("perturb", data, *FLAGS, "--treated", "B", "--group", "ape", "-o", output, "--plot", plot, "--json")
    outcome = run_ok(*command)
    values = json.loads(outcome.out)
    assert values["genes"][0]["observed"] is None
    assert values["mean_accuracy"]["additive"] is None
    assert "--retrain measures the accuracy for such a group" in outcome.err
    new = anndata.read_h5ad(output)
    memory = scvae.perturb(known, model, **OPTIONS, treated="B", group="ape", device="cpu")
    np.testing.assert_allclose(new.X, memory.X, rtol=1e-5)
    assert set(new.var.columns) == set(memory.var.columns)
    assert "perturb_ape_B" in new.uns["scvae"]["runs"]
    assert plot.read_text().startswith("<?xml")


def test_figure_shows_the_result(known, everything, model):
    result, predictor, design = predicted(everything, model, "ape", "B")
    figure = perturbation_figure(result, predictor.latent.mean_nk.numpy(), design)
    axes = {part.get_label(): part for part in figure.axes}
    assert list(axes) == ["genes", "plane", "correlation", "top_correlation"]
    dots = next(part for part in axes["genes"].collections if part.get_gid() == "genes").get_offsets()
    np.testing.assert_allclose(dots, np.stack([result.changes.observed_g, result.changes.change_g], 1))
    sizes = {part.get_gid(): len(part.get_offsets()) for part in axes["plane"].collections}
    assert sizes["ape, B: observed"] == sizes["ape, B: predicted"] == EACH
    assert sizes["other groups, B"] == 4 * EACH
    bars = [bar.get_width() for bar in axes["correlation"].patches if bar.get_gid() == "predicted"]
    fits = [check.predicted for check in (*result.checks, result.group_check)] + [result.mean_accuracy()]
    np.testing.assert_allclose(bars, [found.correlation for found in fits])
    names = {text.get_text() for text in axes["genes"].texts}
    assert names == {result.genes[g] for g in result.top_genes(12)}


def test_accuracy_is_unknown_with_a_single_other_group(files, known, monkeypatch):
    data, _ = files
    without(known, *((group, "B") for group in ("cat", "dog", "elk"))).write_h5ad(data)
    monkeypatch.setattr(Predictor, "agreement", lambda self, design, method: 0.2)
    outcome = run_ok("perturb", data, *FLAGS, "--treated", "B", "--group", "ape", "--plot", data.with_name("a.png"))
    assert "accuracy: unknown" in outcome.out
    assert "(their correlation is 0.20)" in outcome.err
    values = json.loads(run_ok("perturb", data, *FLAGS, "--treated", "B", "--group", "ape", "--json").out)
    assert values["checks"] == []
    assert values["mean_accuracy"]["predicted"] is None


def test_no_agreement_in_other_groups_gives_a_warning(files, monkeypatch):
    monkeypatch.setattr(Predictor, "agreement", lambda self, design, method: 0.9 if design.group == "ape" else -0.1)
    outcome = run_ok("perturb", files[0], *FLAGS, "--treated", "B", "--group", "ape")
    assert "they do not correlate" in outcome.err


@pytest.mark.parametrize(
    ("code", "fragment", "options"),
    [
        (USAGE, "are both 'ctrl'", {"treated": "ctrl"}),
        (USAGE, "--method is 'magic'", {"method": "magic"}),
        (USAGE, "--seed is -1", {"seed": "-1"}),
        (USAGE, "are both 'label'", {"groupby": "label"}),
        (USAGE, "different perturbations", {"treated": "B+B"}),
        (USAGE, "does not have the extension of a figure", {"plot": "new.doc"}),
        (DATA, "no cells with obs['label'] == 'D'", {"treated": "D"}),
        (DATA, "no cells with obs['label'] == 'D+B'", {"treated": "D+B"}),
        (DATA, "no cells with obs['label'] == 'none'", {"control": "none"}),
        (DATA, "no cells with obs['kind'] == 'eel'", {"group": "eel"}),
        (DATA, "no column 'what'", {"perturbation-key": "what"}),
    ],
)
def test_invalid_perturbations_are_refused(files, code, fragment, options):
    defaults = {"perturbation-key": "label", "control": "ctrl", "groupby": "kind", "treated": "B", "group": "ape"}
    flags = [part for name, value in (defaults | options).items() for part in (f"--{name}", value)]
    outcome = run_cli("perturb", files[0], *flags)
    assert outcome.code == code, outcome
    assert fragment in outcome.err
    assert "hint: " in outcome.err
    assert outcome.out == ""


def test_invalid_options_are_refused_before_a_file_is_opened():
    for options, message in (({"treated": "ctrl"}, "treated and control are both"), ({"method": "magic"}, "method is")):
        with pytest.raises(ConfigError, match=message):
            scvae.perturb("nowhere.h5ad", "nowhere.scvae", **OPTIONS | {"treated": "B", "group": "ape"} | options)


def test_labels_may_be_numbers_and_disagreement_gives_a_warning(known, model, monkeypatch):
    cells = known.copy()
    cells.obs["dose"] = cells.obs["label"].astype(str).map({"ctrl": 0, "B": 1, "C": 2, "B+C": 3}).astype(int)
    monkeypatch.setattr(Predictor, "agreement", lambda self, design, method: 0.2 if design.group == "ape" else 1.0)
    options = {"perturbation_key": "dose", "control": 0, "treated": 1, "groupby": "kind", "group": "ape"}
    with pytest.warns(
        ScvaeWarning, match=r"for ape and the average shift .* in the other groups disagree \(their .* is 20% of"
    ):
        new = scvae.perturb(cells, model, **options, device="cpu")
    assert set(new.obs["dose"]) == {"1"}
    assert new.uns["scvae"]["perturbations"]["ape_1"]["mean_shift_share"] == 1


def test_other_groups_with_treated_cells_are_required(known, model):
    no_treated = without(known, *((group, "B") for group in GROUPS), ("dog", "ctrl"))
    with pytest.raises(DataError, match="no cells with"):
        predicted(no_treated, model, "ape", "B")
    with pytest.raises(DataError, match="'dog' has 0 cell"):
        predicted(no_treated, model, "dog", "C")
    one_group = without(known, *((group, "B") for group in ("cat", "dog", "elk")))
    with pytest.raises(DataError, match="no other group has at least 5 cells"):
        predicted(one_group, model, "bee", "B")


def test_model_with_the_perturbation_as_batch_is_refused(known):
    short = TINY | {"max_epochs": 1}
    with pytest.raises(ModelError, match="--batch-key label"):
        predicted(known, scvae.train(known, **short, batch_key="label"), "ape", "B")
    known = known.copy()
    known.obs["chip"] = "chip of " + known.obs["label"].astype(str)
    with pytest.warns(ScvaeWarning, match="'label' divides the cells in the same way as batch key 'chip'"):
        removed = scvae.train(known, **short, batch_key="chip")
    with pytest.raises(ModelError, match="no batch"):
        predicted(known, removed, "ape", "B")
    known.obs["chip"] = np.tile(["left", "right"], len(known))[: len(known)]
    mixed = scvae.train(known, **short, batch_key="chip")
    assert np.isfinite(predicted(known, mixed, "ape", "B").result.changes.change_g).all()
    # Cells of unknown batches are decoded in the average of the model's batches.
    known.obs["chip"] = np.where(np.arange(len(known)) < 5, "new", known.obs["chip"])
    with pytest.warns(ScvaeWarning, match="batch"):
        assert np.isfinite(predicted(known, mixed, "ape", "B").result.changes.change_g).all()


def test_output_must_not_be_the_input_file(files):
    data, _ = files
    with pytest.raises(ConfigError, match="the file of the input cells"):
        scvae.perturb(data, data.with_name("cells.scvae"), **OPTIONS, treated="B", group="ape", output=data, force=True)


# --- the test of no change --------------------------------------------------------------------------------------------


def permutation_result(cells: anndata.AnnData, label_n: np.ndarray, treated: str = "B", seed: int = 0):
    """The test by permuted labels in all groups."""
    group_n, label_n = (np.asarray(values, dtype=object) for values in (cells.obs["kind"].astype(str), label_n))
    found = design("ape", "ctrl", treated, group_n=group_n, label_n=label_n, perturbation_key="label")
    return permutation_test(Observed(counts_of(cells)), found, treated, GROUPS, batch_n=None, seed=seed)


def test_permuted_labels_show_no_change_and_true_labels_do(everything):
    rng = np.random.default_rng(0)
    control = everything[everything.obs["label"] == "ctrl"].copy()
    found = [
        permutation_result(control, rng.permutation(np.resize(["ctrl", "B"], len(control))), seed=i) for i in range(12)
    ]
    p = np.asarray([each.p for each in found])
    assert (p > LEVEL).all()
    assert 0.2 < p.mean() < 0.8
    true = permutation_result(everything, everything.obs["label"].astype(str))
    assert true.p <= LEVEL
    assert true.n_changed > 15
    assert max(true.group_p.values()) <= LEVEL
    assert not any_changed([found[0]])
    assert any_changed([found[0], true])


def test_difference_in_library_size_is_not_a_change(everything):
    rng = np.random.default_rng(1)
    control = everything[everything.obs["label"] == "ctrl"].copy()
    for seed in range(4):
        label_n = rng.permutation(np.resize(["ctrl", "B"], len(control)))
        halved = control.copy()
        rate_n = np.where(label_n == "B", 0.3, 1.0)
        halved.X = sp.csr_matrix(rng.binomial(control.X.toarray().astype(int), rate_n[:, None]), dtype=np.float32)
        assert permutation_result(halved, label_n, seed=seed).p > LEVEL


def test_no_change_is_predicted_if_none_is_detected(everything, model, tmp_path):
    cells = everything[everything.obs["label"].isin(["ctrl", "B"])].copy()
    rng = np.random.default_rng(2)
    cells.obs["label"] = cells.obs.groupby("kind", observed=True)["label"].transform(
        lambda labels: rng.permutation(labels.to_numpy())
    )
    prepared = question(cells, model, "ape", "B")
    result = prepared.answer()
    assert "no change detected" in prepared.warnings(result)[0]
    assert not result.changed
    assert result.recipe == Recipe(method="none", mean_shift_share=0, scale=0)
    np.testing.assert_allclose(result.changes.change_g, 0, atol=1e-12)
    assert prepared.facts(result)["genes"] == []
    cells.write_h5ad(tmp_path / "cells.h5ad")
    model.save(tmp_path / "cells.scvae")
    outcome = run_ok("perturb", tmp_path / "cells.h5ad", *FLAGS, "--treated", "B", "--group", "ape")
    assert "no change is predicted" in outcome.err
    assert "the prediction is no change" in outcome.out


# --- the size of the changes, and the mean of the other groups --------------------------------------------------------


def test_predicted_cells_have_the_mean_change_of_the_other_groups(known, model):
    prediction = predicted(known, model, "ape", "B")
    mean_g = prediction.predictor.observed.mean_change(prediction.design)
    found_g = prediction.predictor.change(prediction.design, Recipe(method="mean", mean_shift_share=1.0))
    assert np.corrcoef(found_g, mean_g)[0, 1] > 0.99
    assert float(found_g @ mean_g / (mean_g @ mean_g)) == pytest.approx(1, abs=0.1)


def test_scale_corrects_changes_that_are_predicted_too_small(known, model):
    prediction = predicted(known, model, "ape", "B")
    trials = [Trial(predictor=prediction.predictor, design=one, held_out=True) for one in prediction.design.checks]
    recipe = Recipe(method="centroid", mean_shift_share=0.5)
    for trial in trials:
        # The observed change is 1.5 times as large as the predicted change.
        trial.__dict__["true_g"] = 1.5 * trial.changes([recipe])[0]
    assert choose(trials, [recipe]).scale == pytest.approx((4 * 1.5 + 1) / 5)
    seen = [dataclasses.replace(trial, held_out=False) for trial in trials]
    assert choose(seen, [recipe]).scale == 1


def test_mean_of_other_groups_is_used_if_it_predicts_better(known, model, monkeypatch):
    assert predicted(known, model, "ape", "B", method="centroid").result.recipe.method != "mean"
    monkeypatch.setattr("scvae_cli.tools.perturb.perturbation.mean_is_better", lambda checks: True)
    result = predicted(known, model, "ape", "B", method="auto").result
    assert result.recipe.method == "mean"
    assert result.model_accuracy is not None
    assert result.no_better_than_mean
