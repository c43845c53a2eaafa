"""A sweep has a decreasing curve and a sensible suggestion, and its trainings can start from other models."""

from __future__ import annotations

import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch
from command_line import TINY as TINY_FLAGS
from command_line import run_cli, run_ok
from simulated import TINY, counts_of, tiny_config, tree
from workbench import DATA, MODEL, USAGE, assert_refused

import scvae_cli as scvae
from scvae_cli.data.counts import Counts
from scvae_cli.errors import ConfigError, DataError, ModelError, ScvaeWarning
from scvae_cli.report.figure_file import save_figure
from scvae_cli.tools.sweep.figure import sweep_figure
from scvae_cli.tools.sweep.options import SweepOptions
from scvae_cli.tools.sweep.result import compare, find_reversals
from scvae_cli.tools.sweep.sweep import sweep
from scvae_cli.training.fit import fit, fit_to_end
from scvae_cli.training.loop import EpochReport

WITHOUT_LATENT = {name: value for name, value in TINY.items() if name != "n_latent"}
BETAS = (0.1, 1.0, 10.0, 1000.0)


@pytest.fixture(scope="module")
def counts():
    return counts_of(tree(n_cells=240, n_genes=80, depth=2000))


@pytest.fixture(scope="module")
def kept_models():
    return {}


@pytest.fixture(scope="module")
def swept(counts, kept_models):
    config = tiny_config(max_epochs=40)
    return sweep(counts, config, SweepOptions(beta=BETAS[::-1]), on_model=kept_models.__setitem__)


# --- the curve --------------------------------------------------------------------------------------------------------


def test_rate_decreases_and_distortion_increases_with_beta(swept):
    assert swept.values == BETAS
    assert (np.diff(swept.column("rate")) < 0).all()
    assert (np.diff(swept.column("distortion")) > 0).all()
    assert swept.reversals == ()
    assert swept.warnings() == []
    np.testing.assert_allclose(swept.column("elbo"), -swept.column("rate") - swept.column("distortion"))
    assert (swept.column("bound") >= swept.column("elbo")).all()


def test_collapsed_run_is_not_suggested(swept):
    collapsed = swept.runs[-1]
    assert collapsed.rate < 0.01
    assert collapsed.active_units == 0
    assert swept.suggested < 1000
    assert collapsed.excess > 4 * collapsed.excess_se
    assert swept.suggested_run.active_units > 0
    # The model contains no more information than the mean model.
    assert collapsed.gain < 0.2
    assert swept.column("gain").max() == 1


def test_rows_agree_with_the_models(swept, kept_models, counts):
    for value, run in zip(swept.values, swept.runs, strict=True):
        model = kept_models[value]
        assert run.beta == model.config.train.beta == value
        assert run.n_latent == model.config.model.n_latent == TINY["n_latent"]
        assert run.epochs == model.facts["epochs"]
        assert model.facts["kept_molecules"] == 0.9
        # The training estimates the distortion of the same cells from one sample per cell, the sweep from 25 samples.
        assert run.rate == pytest.approx(model.facts["heldout_kl"], rel=1e-3, abs=1e-4)
        assert run.distortion == pytest.approx(model.facts["heldout_nll"], rel=0.02)
        assert model.config.data.genes is None
    assert swept.n_cells == counts.n_cells
    assert swept.n_heldout == 24


def test_genes_equal_those_of_a_training(kept_models, counts):
    model = fit_to_end(counts, tiny_config(max_epochs=1))
    assert all(kept.genes == model.genes for kept in kept_models.values())


def linear_counts(n_dimensions: int, n_cells: int = 240, n_genes: int = 80, depth: float = 2000) -> Counts:
    """Counts whose log proportions lie in a space with this number of dimensions."""
    random = np.random.default_rng(0)
    logit_ng = random.standard_normal((n_cells, n_dimensions)) @ random.normal(0, 0.6, (n_dimensions, n_genes))
    share_ng = np.exp(logit_ng) / np.exp(logit_ng).sum(1, keepdims=True)
    return counts_of(ad.AnnData(random.poisson(depth * share_ng).astype(np.float32)))


def test_sweep_of_latent_dimensions():
    found = sweep(linear_counts(3), tiny_config(max_epochs=40), SweepOptions(n_latent=(8, 1, 3)))
    assert found.varied == "n_latent"
    assert [run.n_latent for run in found.runs] == list(found.values) == [1, 3, 8]
    assert all(run.beta == 1 and run.active_units <= run.n_latent for run in found.runs)
    assert found.suggested >= 3
    assert found.runs[0].excess > 4 * found.runs[0].excess_se
    # The loss increases much less with five dimensions too many than with two dimensions too few.
    one, three, eight = found.column("loss")
    assert three - eight < 0.5 * (one - three)


def test_bound_is_used_if_no_molecules_can_be_withheld(counts):
    found = sweep(counts, tiny_config(max_epochs=12), SweepOptions(beta=(1, 100), judge="bound"))
    assert found.criterion == "bound"
    assert found.kept_molecules == 1
    assert found.suggested == 1
    np.testing.assert_allclose(found.column("loss"), -found.column("bound"))
    assert np.isnan(found.column("gain")).all()


def test_sweep_with_batches_and_few_counts():
    """Cells that lose all their molecules are removed; each remaining cell is predicted in its batch."""
    adata = tree(n_cells=200, n_genes=60, n_batches=2, depth=40)
    some = counts_of(adata, "batch")
    some = some.cells(some.library_n > 0)
    found = sweep(some, tiny_config(max_epochs=3, batch_key="batch", genes="all"), SweepOptions(beta=(1, 10)))
    assert found.n_cells <= some.n_cells
    assert np.isfinite(found.column("loss")).all()


# --- the suggestion ---------------------------------------------------------------------------------------------------


def test_one_standard_error_rule():
    random = np.random.default_rng(0)
    cells_n = 100 * random.standard_normal(400)  # differences between cells that all runs share
    more_r = np.array([1.0, 0.0, 0.0, 0.5])
    own_rn = random.standard_normal((4, 400))
    # The losses are equal up to half a standard error of their difference.
    own_rn -= own_rn.mean(1, keepdims=True)
    own_rn[2] += 0.5 * (own_rn[2] - own_rn[1]).std() / 20
    loss_rn = cells_n + more_r[:, None] + own_rn
    excess_r, error_r, best, last = compare(loss_rn, prefer_last=True)
    assert best == 1
    assert last == 2
    assert compare(loss_rn, prefer_last=False)[3] == 1
    assert excess_r[best] == error_r[best] == 0
    # The standard error is computed from paired differences, and not from the losses of the single runs.
    assert (error_r[[0, 3]] < 0.1).all()
    assert error_r[0] == pytest.approx(np.std(loss_rn[0] - loss_rn[best], ddof=1) / 20)


def test_significant_reversals_are_found():
    random = np.random.default_rng(0)
    noise_rn = 0.1 * random.standard_normal((3, 100))
    rate_rn = np.array([[5.0], [7.0], [1.0]]) + noise_rn
    distortion_rn = np.array([[10.0], [9.0], [20.0]]) + noise_rn
    found = find_reversals((0.1, 1, 10), rate_rn, distortion_rn)
    assert [(one.lower, one.upper, one.what) for one in found] == [(0.1, 1, "rate"), (0.1, 1, "distortion")]
    assert found[0].by == pytest.approx(2, abs=0.1)
    unsure_rn = np.array([[5.0], [5.05], [1.0]]) + 3 * random.standard_normal((3, 100))
    assert find_reversals((0.1, 1, 10), unsure_rn, -unsure_rn) == ()


def test_reversals_give_warnings(swept):
    found = find_reversals((0.1, 1), np.array([[1.0, 1.1], [2, 2]]), np.array([[1.0, 1.1], [2, 2]]))
    (warning,) = replace(swept, reversals=found).warnings()
    assert "from β = 0.1 to 1 the rate increases by 0.95 nats" in warning


def test_single_heldout_cell_is_refused_for_real_numbers():
    random = np.random.default_rng(0)
    adata = ad.AnnData(random.standard_normal((12, 5)).astype(np.float32))
    options = WITHOUT_LATENT | {"max_epochs": 2, "likelihood": "normal"}
    with pytest.raises(DataError, match="of 12 cells only one is held out") as error:
        scvae.sweep(adata, beta=[1, 2], **options)
    assert "validation_fraction" in error.value.hint
    found = scvae.sweep(adata, beta=[1, 2], inplace=False, **options, validation_fraction=0.3)
    assert found.n_heldout == 4
    assert np.isfinite(found.column("excess_se")).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_single_heldout_cell_shows_no_reversal():
    assert find_reversals((0.1, 1), np.array([[1.0], [5.0]]), np.array([[5.0], [1.0]])) == ()
    adata = tree(n_cells=12, n_genes=30, depth=300)
    found = scvae.sweep(adata, beta=[1, 2], inplace=False, **WITHOUT_LATENT | {"max_epochs": 2})
    assert (found.n_heldout, found.criterion, found.reversals) == (1, "thinning", ())


# --- starting from a finished model -----------------------------------------------------------------------------------


def heldout_losses(counts, config, model):
    events = [event for event in fit(counts, config, start_from=model) if isinstance(event, EpochReport)]
    return [event.heldout_loss for event in events]


def test_training_starts_from_the_weights_of_another_model(counts):
    config = tiny_config(max_epochs=40)
    *events, finished = fit(counts, config)
    cold = [event.heldout_loss for event in events if isinstance(event, EpochReport)]
    model = finished.model
    before = {name: tensor.clone() for name, tensor in model.vae.state_dict().items()}
    warm = heldout_losses(counts, config, model)
    reached = model.facts["heldout_nll"] + model.facts["heldout_kl"]
    assert abs(warm[0] - reached) < 0.1 * (cold[0] - reached)
    assert min(warm) < reached + 0.02 * (cold[0] - reached)
    # The model whose weights started the training has not changed.
    assert all(torch.equal(before[name], tensor) for name, tensor in model.vae.state_dict().items())


def test_unsuitable_start_models_are_refused(counts):
    model = fit_to_end(counts, tiny_config(max_epochs=1))
    for other, config, fragment in (
        (counts.genes(np.arange(50)), tiny_config(), "other genes"),
        (counts, tiny_config(n_latent=5), "another network"),
        (counts, tiny_config(seed=1), "other held-out cells"),
        (replace(counts, batch=np.resize(["a", "b"], counts.n_cells)), tiny_config(), "other batches"),
    ):
        with pytest.raises(ModelError, match=fragment):
            list(fit(other, config, start_from=model))


def test_default_is_suggested_if_it_is_as_good_as_the_best():
    loss_rn = np.asarray([[1.0], [0.5], [0.5], [0.6]]) + np.random.default_rng(0).normal(size=(4, 50))[:1]
    for default, noise, selected in ((1, 0.2, 1), (3, 0.2, 3), (0, 0.2, 3), (None, 0.2, 3), (0, 0.6, 0)):
        assert compare(loss_rn, prefer_last=True, noise=noise, default=default)[-1] == selected


# --- the command ------------------------------------------------------------------------------------------------------


def test_slots_in_the_file_equal_the_json_report(bench):
    figure = bench.folder / "sweep.png"
    command = [
        "sweep",
        bench.data,
        *TINY_FLAGS[:4],
        *TINY_FLAGS[6:],
        "--plot",
        figure,
        "--models",
        bench.folder / "kept",
    ]
    values = json.loads(run_ok(*command, "--beta", "10,0.1", "--json").out)
    read = ad.read_h5ad(bench.data).uns["scvae"]
    table = read["sweep"]["beta"]
    assert list(table["beta"]) == [0.1, 10]
    for name in ("rate", "distortion", "elbo", "bound", "active_units", "loss", "excess", "excess_se", "epochs"):
        np.testing.assert_allclose(table[name], [run[name] for run in values["runs"]])
    assert table["suggested"] == values["suggested"]
    assert table["criterion"] == "thinning"
    assert values["slots"] == ["uns/scvae/sweep/beta"]
    record = json.loads(read["runs"]["sweep_beta"])
    assert record["slots"] == values["slots"]
    assert figure.stat().st_size > 10_000
    kept = scvae.load(bench.folder / "kept" / "beta_0.1.scvae")
    assert kept.config.train.beta == 0.1
    assert "sweep_beta" in run_ok("info", bench.data).out
    # Results that scvae wrote are replaced without --force; models need --force.
    run_ok("sweep", bench.data, *TINY_FLAGS[:4], *TINY_FLAGS[6:], "--beta", "1,2")
    kept = ["--models", bench.folder / "kept"]
    assert "the model" in run_cli("sweep", bench.data, *kept, "--beta", "10,0.1").err


def test_text_contains_the_suggestion_and_the_next_command(bench):
    done = run_ok("sweep", bench.data, *TINY_FLAGS[:2], *TINY_FLAGS[6:], "--n-latent", "2,3", "--likelihood", "nb")
    assert "latent dimensions, " in done.out.split("* suggested: ")[1]
    # There is one recommendation, and no text contradicts it.
    assert len(done.out.split("* suggested: ")[1].split("→")[0].strip().splitlines()) == 1
    assert "90% of the molecules" in done.out
    assert f"next: scvae train {bench.data} --n-latent " in done.err
    assert "--likelihood nb" in done.err
    assert "--max-epochs 3" in done.err


@pytest.mark.parametrize(
    ("code", "fragment", "options"),
    [
        (USAGE, "no values to sweep", []),
        (USAGE, "both given", ["--beta", "1,2", "--n-latent", "2,3"]),
        (USAGE, "--beta is '0.1,x'", ["--beta", "0.1,x"]),
        (USAGE, "--beta is ''", ["--beta", ""]),
        (USAGE, "--beta is '1,'", ["--beta", "1,"]),
        (USAGE, "--beta is -1 in", ["--beta", "-1,1"]),
        (USAGE, "--beta is 0 in", ["--beta", "0,1"]),
        (USAGE, "--beta is nan in", ["--beta", "nan,1"]),
        (USAGE, "--beta is inf in", ["--beta", "1,inf"]),
        (USAGE, "--beta is '1,0.5,1'", ["--beta", "1,0.5,1.0"]),
        (USAGE, "--beta is '1'", ["--beta", "1"]),
        (USAGE, "--n-latent is 2.5 in", ["--n-latent", "2.5,3"]),
        (USAGE, "--n-latent is 0 in", ["--n-latent", "0,3"]),
        (USAGE, "--max-epochs is 0", ["--beta", "1,2", "--max-epochs", "0"]),
        (USAGE, "does not have the extension of a figure", ["--beta", "1,2", "--plot", "new.doc"]),
        (MODEL, "exists and is not a model folder", ["--beta", "1,2", "--models", "FILE"]),
        (MODEL, "is not a folder that can be written to", ["--beta", "1,2", "--models", "FOLDER/none/kept"]),
        (DATA, "no layer", ["--beta", "1,2", "--layer", "none"]),
    ],
)
def test_invalid_sweeps_are_refused(bench, code, fragment, options):
    existing = bench.file("mine.txt", "mine")
    places = {"FILE": existing, "FOLDER/none/kept": bench.folder / "none" / "kept"}
    assert_refused(
        bench.folder, ["sweep", bench.data, *[places.get(option, option) for option in options]], code, fragment
    )


def test_slot_of_the_user_is_overwritten_only_with_force(bench):
    def add_slot(adata):
        adata.uns["scvae"] = {"sweep": {"beta": 3}}

    bench.change(add_slot)
    assert "--force" in assert_refused(
        bench.folder, ["sweep", bench.data, "--beta", "1,2"], DATA, "not written by scvae"
    )


# --- in Python --------------------------------------------------------------------------------------------------------


def test_python_function_writes_or_returns_the_sweep():
    adata = tree(n_cells=120, n_genes=40, depth=300)
    options = WITHOUT_LATENT | {"max_epochs": 3}
    before = set(adata.uns)
    found = scvae.sweep(adata, n_latent=[2, 3], inplace=False, **options)
    assert set(adata.uns) == before
    assert scvae.sweep(adata, n_latent=[2, 3], **options) is None
    assert adata.uns["scvae"]["sweep"]["n_latent"]["suggested"] == found.suggested
    with pytest.raises(TypeError, match="unexpected keyword argument 'gamma'"):
        scvae.sweep(adata, beta=[1, 2], gamma=3)
    with pytest.raises(ConfigError, match="both given"):
        scvae.sweep(adata, beta=[1, 2], n_latent=[2, 3])


def test_cells_without_structure_give_a_warning():
    random = np.random.default_rng(0)
    adata = ad.AnnData(random.poisson(2.0, (150, 30)).astype(np.float32))
    with pytest.warns(ScvaeWarning, match="no run predicts better"):
        scvae.sweep(adata, beta=[30, 300], **WITHOUT_LATENT | {"max_epochs": 12})


# --- the figure -------------------------------------------------------------------------------------------------------


def test_figure_shows_every_run(swept, tmp_path):
    figure = sweep_figure(swept)
    curve, loss, active = figure.axes
    drawn = curve.lines[0].get_xydata()
    np.testing.assert_allclose(drawn, np.column_stack([swept.column("rate"), swept.column("distortion")]))
    assert {text.get_text() for text in curve.texts} == {"0.1", "1", "10", "1000"}
    assert loss.get_xscale() == active.get_xscale() == "log"
    save_figure(figure, tmp_path / "sweep.svg")
    assert (tmp_path / "sweep.svg").stat().st_size > 10_000
