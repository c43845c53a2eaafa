"""Models with several covariates: several batch keys, whose effects are added, and continuous keys."""

import copy
import json
import re
import warnings
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from command_line import TINY as COMMAND_LINE
from command_line import run_cli
from hostile_models import sign
from simulated import TINY, counts_of, tiny_config, tree
from test_manual_backward import CPU, GENES, KL_WEIGHT, LATENT, distance

import scvae_cli as scvae
from scvae_cli.config import ModelConfig
from scvae_cli.data.covariates import CellCovariates, combination_name, quoted
from scvae_cli.data.minibatches import CellTable
from scvae_cli.data.segments import Segment
from scvae_cli.errors import ConfigError, DataError, ModelError, ScvaeWarning
from scvae_cli.latent.decoding_batch import decoding_mixture, fixed_covariates
from scvae_cli.latent.posteriors import known_batches
from scvae_cli.model.batch_discrepancy import batch_discrepancy
from scvae_cli.model.compiled.operations import CompiledOperations
from scvae_cli.model.design import Continuous, Design
from scvae_cli.model.manual_backward import ElboGradients
from scvae_cli.model.torch_operations import TorchOperations
from scvae_cli.model.vae import VAE
from scvae_cli.session import Session
from scvae_cli.training.fit import fit_to_end

KEYS = ("donor", "lane")
BOTH = {"batch_key": list(KEYS), "continuous_key": ["age"]}


def covariates(donor, lane, age=None) -> CellCovariates:
    return CellCovariates(
        batch_keys=KEYS,
        continuous_keys=() if age is None else ("age",),
        category_nq=np.column_stack([np.asarray(donor, dtype=object), np.asarray(lane, dtype=object)]),
        value_nv=np.empty((len(donor), 0)) if age is None else np.asarray(age, dtype=float)[:, None],
    )


@pytest.fixture(scope="module")
def cells():
    """Cells of two donors on three lanes; no cell of the second donor is on the third lane."""
    adata = tree(n_cells=420, n_genes=60, n_batches=2, batch_sd=0.3, seed=1)
    random = np.random.default_rng(0)
    adata.obs["donor"] = adata.obs["batch"].astype(str).str.replace("batch_", "d").to_numpy()
    adata.obs["lane"] = random.choice(["1", "2", "3"], adata.n_obs)
    adata.obs["age"] = random.normal(50, 10, adata.n_obs)
    # A further column with the same information as the donor would be reported as confounded with the donor.
    adata.obs = adata.obs[["cell_type", "donor", "lane", "age"]]
    return adata[~((adata.obs["donor"] == "d2") & (adata.obs["lane"] == "3"))].copy()


@pytest.fixture(scope="module")
def model(cells):
    return scvae.train(cells, **TINY, **BOTH, genes="all")


# --- design matrix ----------------------------------------------------------------------------------------------------


def test_row_of_the_design_matrix_adds_the_effects_of_the_categories():
    random = np.random.default_rng(0)
    given = covariates(random.choice(["a", "b", "c"], 30), random.choice(["x", "y"], 30), random.normal(5, 2, 30))
    design = Design.of(given, np.arange(20))
    effect_rg = random.normal(size=(design.n_effects, 4))
    shift_ng = design.rows(given) @ effect_rg
    of_donor = dict(zip("abc", effect_rg[:3], strict=True))
    of_lane = dict(zip("xy", effect_rg[3:5], strict=True))
    training = given.value_nv[:20, 0]
    for i, (donor, lane) in enumerate(given.category_nq):
        age = (given.value_nv[i, 0] - training.mean()) / training.std()
        np.testing.assert_allclose(shift_ng[i], of_donor[donor] + of_lane[lane] + age * effect_rg[5], atol=1e-5)


def test_unknown_category_gets_the_average_effect_and_missing_value_the_mean():
    given = covariates(["a", "a", "b", "b"], ["x", "y", "y", "y"], [1, 2, 3, 4])
    design = Design.of(given, np.arange(4))
    share_b = np.array([0.25, 0.25, 0.5])
    new = covariates(["new", "b"], ["x", None], [np.nan, 4])
    row_nr = design.rows(new, share_b)
    np.testing.assert_allclose(row_nr[0], [0.5, 0.5, 1, 0, 0])
    np.testing.assert_allclose(row_nr[1], [0, 1, 0.25, 0.75, (4 - 2.5) / np.std([1, 2, 3, 4])], atol=1e-6)


def test_names_of_combinations_are_unique():
    pairs = [("a, lane=b", "c"), ("a", "b, lane=c"), ("'a'", "b"), ("a", "b"), ("a=b", "c")]
    assert len({combination_name(KEYS, pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("form", ["compiled", "torch"])
@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_training_step_has_the_gradients_of_float64_autograd(form, decoder):
    random, n = np.random.default_rng(0), 24
    counts = random.poisson(random.gamma(0.4, 3.0, size=(n, GENES))).astype(np.float32)
    counts[:, 0] += 1
    given = covariates(random.choice(["a", "b", "c"], n), random.choice(["x", "y"], n), random.normal(size=n))
    design = Design.of(given, np.arange(n))
    config = ModelConfig(
        n_hidden=24, n_latent=LATENT, n_layers=1, encoder_dropout=0.0, decoder_dropout=0.0, decoder=decoder
    )
    torch.manual_seed(1)
    vae = VAE(config, GENES, design=design).train()
    vae.reference_library.fill_(200.0)
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    cells = CellTable(sp.csr_matrix(counts), design.rows(given), CPU).take(np.arange(n))
    noise_nk = torch.randn(n, LATENT)

    # The expected values do not use the design matrix: each effect is picked by its name.
    exact = copy.deepcopy(vae).double()
    library_n1 = cells.x_ng.double().sum(1, keepdim=True)
    exact.encoder.seen = lambda cells, depth: torch.log1p(cells.x_ng.double() * depth / library_n1)
    effect = exact.decoder.batch
    age_n1 = torch.as_tensor((given.value_nv - given.value_nv.mean()) / given.value_nv.std())
    donor_n = torch.as_tensor(["abc".index(one) for one in given.category_nq[:, 0]])
    lane_n = torch.as_tensor(["xy".index(one) for one in given.category_nq[:, 1]])

    def picked(of_br):
        return None if of_br is None else of_br[donor_n] + of_br[3 + lane_n] + age_n1 * of_br[5]

    effect.forward = lambda batch: (picked(effect.hidden_bh), picked(effect.gene_bg))
    terms = exact.elbo_terms(cells, noise_nk.double())
    members = [torch.eye(3, dtype=torch.float64)[donor_n], torch.eye(2, dtype=torch.float64)[lane_n]]
    penalty = sum(batch_discrepancy(terms.mean_nk.detach(), one)[0] for one in members)
    gradient_nk = sum(batch_discrepancy(terms.mean_nk.detach(), one)[1] for one in members)
    loss = terms.nll + KL_WEIGHT * terms.kl + 50 * (terms.mean_nk * gradient_nk).sum()
    expected = torch.autograd.grad(loss, list(exact.parameters()))

    if form == "compiled":
        operations = CompiledOperations(cells)
    else:
        share_n = torch.full_like(cells.library_n, 1 / n)
        operations = TorchOperations(cells.x_ng, cells.library_n, share_n, torch.zeros(2, dtype=torch.long))
    with torch.no_grad():
        step = ElboGradients(vae, cells.batch_n, noise_nk, KL_WEIGHT, operations, narrow=False, mixing=50.0)
    assert float(step.penalty) == pytest.approx(50 * float(penalty), rel=1e-3, abs=1e-4)
    assert float(step.nll) == pytest.approx(terms.nll.item(), rel=1e-5)
    for parameter, gradient in zip(vae.parameters(), expected, strict=True):
        assert distance(step.gradients[parameter], gradient) < 3e-4


def test_segments_contain_rows_of_the_design_matrix():
    row_nr = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    table = CellTable(sp.csr_matrix(np.ones((6, 3), dtype=np.float32)), row_nr, CPU)
    segment = Segment(table, 2, 3)
    segment.fill([np.array([4, 1, 0]), np.array([2, 5])])
    np.testing.assert_array_equal(segment.cells(torch.tensor([0])).batch_n, row_nr[[4, 1, 0]])
    np.testing.assert_array_equal(segment.cells(torch.tensor([1])).batch_n, row_nr[[2, 5, 2]])


def test_design_of_one_key_gives_identical_weights():
    counts = counts_of(tree(n_cells=200, n_genes=40, n_batches=3, seed=1), "batch")
    plain = fit_to_end(counts, tiny_config(batch_key="batch", max_epochs=3))
    one_key = CellCovariates(
        batch_keys=("batch",),
        continuous_keys=(),
        category_nq=np.asarray(counts.batch)[:, None],
        value_nv=np.empty((counts.n_cells, 0)),
    )
    with_design = fit_to_end(replace(counts, covariates=one_key), tiny_config(batch_key="batch", max_epochs=3))
    assert with_design.vae.design is not None
    assert plain.vae.design is None
    assert plain.batches == with_design.batches
    state = with_design.vae.state_dict()
    np.testing.assert_array_equal(state.pop("decoder.batch.combination_br"), np.eye(3))
    assert plain.vae.state_dict().keys() == state.keys()
    for name, tensor in plain.vae.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(plain.expression.component_jg, with_design.expression.component_jg)
    for field in ("heldout_elbo", "heldout_nll"):
        assert plain.facts[field] == with_design.facts[field]


# --- a trained model --------------------------------------------------------------------------------------------------


def test_unseen_combination_is_decoded_with_the_sum_of_its_effects(cells, model):
    assert "donor=d2, lane=3" not in model.batches
    effect, g = model.vae.decoder.batch, model.vae.n_genes
    assert effect.gene_bg.shape == (2 + 3 + 1, g)
    z_nk = torch.randn(1, model.vae.n_latent)
    mixture = decoding_mixture(model, "donor=d2,lane=3")
    assert mixture.share_b == pytest.approx((1.0,))
    row_r = torch.tensor([0.0, 1, 0, 0, 1, 0])
    shift_nh, shift_ng = row_r[None] @ effect.hidden_bh, row_r[None] @ effect.gene_bg
    expected = model.vae.decoder.shifted(z_nk, shift_nh, shift_ng).mean_ng(torch.tensor([1000.0]))
    found = model.vae.expected_counts(z_nk, torch.tensor([1000.0]), mixture)
    torch.testing.assert_close(found, expected)

    new = cells[cells.obs["donor"] == "d2"].copy()
    new.obs["lane"] = "3"
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScvaeWarning)
        scores = scvae.score(new, model, n_samples=2, n_simulated=100, inplace=False)
        scvae.embed(new, model)
    assert np.isfinite(scores.elbo).all()
    assert np.isfinite(new.obsm["X_scvae"]).all()


def test_fixing_one_key_averages_over_the_other_keys(model):
    z_nk, library_n = torch.randn(3, model.vae.n_latent), torch.full((3,), 500.0)
    share = dict(zip(model.vae.design.combinations, model.vae.batch_share_b.tolist(), strict=True))
    expected = torch.zeros(3, model.vae.n_genes)
    for (_, lane), weight in share.items():
        expected += weight * model.vae.expected_counts(
            z_nk, library_n, decoding_mixture(model, f"donor=d2,lane={lane}")
        )
    found = model.vae.expected_counts(z_nk, library_n, decoding_mixture(model, "donor=d2"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    older = model.vae.expected_counts(z_nk, library_n, decoding_mixture(model, "age=70"))
    assert not torch.allclose(older, model.vae.expected_counts(z_nk, library_n, None))


def test_fixing_a_nested_key_also_fixes_the_outer_key():
    design = Design(batch_keys=("donor", "site"), combinations=(("d1", "Oslo"), ("d2", "Oslo"), ("d3", "Rome")))
    vae = VAE(ModelConfig(n_latent=2, n_hidden=4), 5, design=design)

    class FakeModel:
        pass

    fake = FakeModel()
    fake.vae = vae
    assert fixed_covariates(fake, "donor=d3", usual="average").categories == ("d3", "Rome")
    assert fixed_covariates(fake, "site=Rome", usual="average").categories == (None, "Rome")


@pytest.mark.parametrize(
    ("batch_as", "message"),
    [
        ("d2", "--batch-as is 'd2'"),
        ("donor=d7", "the model has no donor 'd7'"),
        ("donor=d1,donor=d2", "fixes donor twice"),
        ("age=old", "fixes age at 'old'"),
        ("age=nan", "fixes age at 'nan'"),
        ("age=1e39", "age is 1e+39, too far from the values of the training"),
        ("age=-1000", "age is -1000, too far from the values of the training"),
        ("lane=a,", "the model has no lane 'a,'"),
        (",lane=a", "--batch-as is ',lane=a'"),
        ("site=a", "--batch-as is 'site=a'"),
    ],
)
def test_invalid_batch_as_is_refused(model, batch_as, message):
    with pytest.raises(DataError, match=re.escape(message)):
        decoding_mixture(model, batch_as)


def test_batch_as_values_may_contain_commas_and_equals_signs():
    design = Design(
        batch_keys=KEYS,
        combinations=(("a, b", "x=1"), ("c", "y")),
        continuous=(Continuous(key="age", mean=0, sd=1, least=-1, most=1),),
    )

    class FakeModel:
        vae = VAE(ModelConfig(n_latent=2, n_hidden=4), 5, design=design)

    fixed = fixed_covariates(FakeModel(), "donor=a, b,lane=x=1,age=0.5", usual="average")
    assert fixed.categories == ("a, b", "x=1")
    assert fixed.values == (0.5,)
    assert fixed_covariates(FakeModel(), fixed.name, usual="average") == fixed


def test_batch_as_can_name_every_category():
    """The name of a category may contain KEY=VALUE of another key, commas and quotes."""
    names = ("a", "a,lane=u", "x=1", "it's", 'say "a", or b', "u,age=3")
    design = Design(
        batch_keys=KEYS,
        combinations=tuple((name, lane) for name in names for lane in ("u", "v")),
        continuous=(Continuous(key="age", mean=0.1, sd=1, least=-1, most=1),),
    )

    class FakeModel:
        vae = VAE(ModelConfig(n_latent=2, n_hidden=4), 5, design=design)

    for name in names:
        batch_as = f"donor={quoted(name)},age={1 / 3!r}"
        fixed = fixed_covariates(FakeModel(), batch_as, usual="average")
        assert (fixed.categories, fixed.values) == ((name, None), (1 / 3,))
        assert fixed_covariates(FakeModel(), fixed.name, usual="average") == fixed
    with pytest.raises(DataError, match="donor may be 'a' or 'a,lane=u'"):
        fixed_covariates(FakeModel(), "donor=a,lane=u", usual="average")


def test_values_far_outside_the_training_are_refused(model, cells):
    adata = cells.copy()
    adata.obs.loc[adata.obs_names[:3], "age"] = 1e39
    with pytest.warns(ScvaeWarning), pytest.raises(DataError, match=r"age is 1e\+39, too far"):
        scvae.embed(adata, model)
    # An extreme value of a single cell is refused, whether the cell is held out or not.
    for first in range(0, 40, 8):
        adata.obs["age"] = np.random.default_rng(0).normal(size=adata.n_obs)
        adata.obs.iloc[first, adata.obs.columns.get_loc("age")] = 1e160
        with pytest.raises(DataError, match=r"too far from|too large"):
            scvae.train(adata, **TINY, continuous_key="age")


def test_measurements_as_batch_key_are_refused(cells):
    adata = cells.copy()
    adata.obs["number"] = np.random.default_rng(0).normal(size=adata.n_obs)
    with pytest.raises(DataError, match="holds measurements, not batches"):
        scvae.train(adata, **TINY, batch_key="number")


def test_model_with_several_covariates_is_saved_and_loaded(model, cells, tmp_path):
    model.save(tmp_path / "m.scvae")
    assert json.loads((tmp_path / "m.scvae" / "config.json").read_text())["format"] == 6
    loaded = scvae.load(tmp_path / "m.scvae")
    assert loaded.vae.design == model.vae.design
    assert loaded.batches == model.batches
    counts = Session.open(cells, loaded, needs_batch=True, device="cpu").counts
    np.testing.assert_array_equal(known_batches(loaded, counts), known_batches(model, counts))


def test_model_with_one_key_is_saved_in_the_older_format(tmp_path):
    adata = tree(n_cells=120, n_genes=30, n_batches=2)
    scvae.train(adata, **TINY | {"max_epochs": 1}, batch_key="batch").save(tmp_path / "m.scvae")
    config = json.loads((tmp_path / "m.scvae" / "config.json").read_text())
    assert config["format"] == 4
    assert config["batches"] == ["batch_1", "batch_2"]
    assert config["run"]["data"]["batch_key"] == "batch"
    assert "continuous_key" not in config["run"]["data"]


FORGERIES = {
    "a combination is too short": lambda c: c["batches"][0].pop(),
    "a combination twice": lambda c: c["batches"].append(c["batches"][0]),
    "a category is a number": lambda c: c["batches"][0].__setitem__(0, 3),
    "combinations as texts": lambda c: c.__setitem__("batches", ["a", "b"]),
    "no combinations": lambda c: c.__setitem__("batches", []),
    "many categories": lambda c: c.__setitem__("batches", [[f"d{i}", "1"] for i in range(10**5)]),
    "no continuous keys": lambda c: c.pop("continuous"),
    "a standard deviation of 0": lambda c: c["continuous"][0].__setitem__("sd", 0.0),
    "a mean out of range": lambda c: c["continuous"][0].__setitem__("mean", 1e9),
    "a mean beyond float": lambda c: c["continuous"][0].update(mean=1e300, most=1e300),
    "a text for a number": lambda c: c["continuous"][0].__setitem__("sd", "1"),
    "an older format": lambda c: c.__setitem__("format", 5),
    "another key": lambda c: c["run"]["data"].__setitem__("batch_key", ["donor"]),
    "a key twice": lambda c: c["run"]["data"].__setitem__("batch_key", ["donor", "donor"]),
    "mapped batches": lambda c: c.__setitem__("n_mapped", 1),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_model_is_refused(model, tmp_path, forgery):
    model.save(tmp_path / "m.scvae")
    file = tmp_path / "m.scvae" / "config.json"
    config = json.loads(file.read_text())
    FORGERIES[forgery](config)
    file.write_text(json.dumps(config))
    sign(tmp_path / "m.scvae")
    with pytest.raises(ModelError):
        scvae.load(tmp_path / "m.scvae")


def test_weights_with_another_design_matrix_are_refused(model, tmp_path):
    forged = replace(model, vae=copy.deepcopy(model.vae))
    forged.vae.decoder.batch.combination_br[0, 0] = 0.5
    forged.save(tmp_path / "m.scvae")
    with pytest.raises(ModelError, match="design matrix in the weights"):
        scvae.load(tmp_path / "m.scvae")


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")  # warnings of few cells and of no change
def test_every_command_accepts_a_model_with_several_covariates(model, cells):
    adata = cells.copy()
    adata.obs["stim"] = np.random.default_rng(0).choice(["ctrl", "stim"], adata.n_obs)
    types = list(adata.obs["cell_type"].cat.categories[:2])
    scvae.embed(adata, model, refine=2)
    scvae.denoise(adata, model, batch_as="donor=d2,lane=3,age=60")
    scvae.denoise(adata, model, estimate="cell", batch_as="observed", groupby="cell_type", key_added="own")
    scvae.interpolate(adata, model, groupby="cell_type", groups=types, n_steps=3, batch_as="lane=3")
    scvae.pseudotime(adata, model, groupby="cell_type", root=types[0])
    scvae.optimize(adata, model, toward=[model.genes[0]], groupby="cell_type", group=types[0], batch_as="age=60")
    scvae.de(adata, model, groupby="cell_type", group=types[0])
    scvae.perturb(
        adata, model, perturbation_key="stim", control="ctrl", treated="stim", groupby="cell_type", group=types[0]
    )
    scvae.annotate(adata, model, labels_key="cell_type")
    scvae.diagnose(adata, model, quick=True, max_cells=20)
    drawn = scvae.sample(adata, model, 40, batch_as="donor=d2,age=70")
    assert set(drawn.obs["donor"]) == {"d2"}
    assert set(drawn.obs["lane"]) == {"1", "2", "3"}
    assert (drawn.obs["age"] == 70).all()
    of_group = scvae.sample(adata, model, 20, groupby="lane", group="2")
    assert set(of_group.obs["lane"]) == {"2"}
    prototype = scvae.sample(adata, model, prototype=True, batch_as="lane=1")
    assert prototype.obs[["donor", "lane"]].to_numpy().tolist() == [["average", "1"]]
    with pytest.raises(ModelError, match="several covariates"):
        scvae.map(adata, model, batch="new")


def test_model_with_only_continuous_keys(cells, tmp_path):
    trained = scvae.train(cells, **TINY | {"max_epochs": 2}, continuous_key="age", genes="all")
    trained.save(tmp_path / "m.scvae")
    trained = scvae.load(tmp_path / "m.scvae")
    assert trained.batches == ()
    adata = cells.copy()
    scvae.embed(adata, trained)
    scvae.score(adata, trained, n_samples=2, n_simulated=100)
    scvae.denoise(adata, trained, batch_as="age=60")
    scvae.de(adata, trained, groupby="donor", group="d1")
    assert "age" in scvae.sample(adata, trained, 5).obs
    adata.obs["age"] = np.nan
    with pytest.raises(DataError, match=r"missing or not finite for \d+ cell"):
        scvae.score(adata, trained, inplace=False)


def test_new_categories_and_extreme_values_give_warnings(model, cells):
    adata = cells.copy()
    adata.obs["donor"] = "d9"
    adata.obs.loc[adata.obs_names[:3], "age"] = 500.0
    with pytest.warns(ScvaeWarning) as warned:
        scvae.embed(adata, model)
    text = " ".join(str(one.message) for one in warned)
    assert "1 value of donor was not in the training data (d9)" in text
    assert "3 cells have values of obs['age'] far outside of the training" in text
    with pytest.warns(ScvaeWarning), pytest.raises(DataError, match="not trained on donor 'd9'"):
        scvae.score(adata, model, inplace=False)
    with pytest.warns(ScvaeWarning, match="batch_as fixes age at 300, far outside of the training"):
        scvae.denoise(cells.copy(), model, batch_as="age=300")
    del adata.obs["age"]
    with pytest.warns(ScvaeWarning) as warned:
        scvae.embed(adata, model, inplace=False)
    assert any("no column 'age', which holds a covariate of the training" in str(one.message) for one in warned)


def test_keys_on_command_line_and_in_config_file_are_equivalent(cells, tmp_path):
    file = tmp_path / "c.h5ad"
    cells[:150].copy().write_h5ad(file)
    keys = ["--batch-key", "donor", "--batch-key", "lane", "--continuous-key", "age"]
    config = tmp_path / "run.toml"
    config.write_text('[data]\nbatch_key = ["donor", "lane"]\ncontinuous_key = "age"\n')
    for name, options in (("a.scvae", keys), ("b.scvae", ["--config", config])):
        assert run_cli("train", file, "-m", tmp_path / name, *options, *COMMAND_LINE).code == 0
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("a.scvae", "b.scvae")]
    assert weights[0] == weights[1]
    facts = json.loads(run_cli("info", tmp_path / "a.scvae", "--json").out)
    assert facts["covariates"]["lane"] == ["1", "2", "3"]
    assert facts["covariates"]["age"].keys() == {"least", "mean", "most"}
    # Every command that reads the covariates lists them.
    shown = ("batch key donor: 2 categories", "batch key lane: 3 categories", "continuous key age: ")
    trained = run_cli("train", file, "-m", tmp_path / "c.scvae", *keys, *COMMAND_LINE, "--json")
    assert json.loads(trained.out)["covariates"].keys() == {"donor", "lane", "age"}
    checked = json.loads(run_cli("check", file, *keys, "--json").out)["covariates"]
    assert checked["donor"] == ["d1", "d2"]
    assert checked["age"]["least"] == cells[:150].obs["age"].min()
    for text in (trained.err, run_cli("check", file, *keys).out, run_cli("info", tmp_path / "a.scvae").out):
        assert all(line in text for line in shown)
    assert "batch key donor: 2 categories (d1, d2)\n" in run_cli("info", tmp_path / "a.scvae").out


def test_reports_list_fixed_and_averaged_covariates(model, cells, tmp_path):
    cells.copy().write_h5ad(tmp_path / "c.h5ad")
    model.save(tmp_path / "c.scvae")

    def report_of(verb, *options):
        arguments = (verb, tmp_path / "c.h5ad", *options, "--force")
        decoded = json.loads(run_cli(*arguments, "--json").out)["decoded_with"]
        return {how: keys for how, keys in decoded.items() if keys}, run_cli(*arguments).out

    found, text = report_of("denoise", "--batch-as", "donor=d1,age=60")
    assert found == {"fixed": {"donor": "d1", "age": 60.0}, "averaged": ["lane"]}
    assert "decoded with donor = d1, age = 60; averaged over lane\n" in text
    found, text = report_of("denoise", "--batch-as", "observed")
    assert found == {"observed": ["donor", "lane", "age"]}
    assert "decoded with each cell's own donor, lane, age\n" in text
    ends = ("--groupby", "cell_type", "--from", "stem", "--to", "mature_1", "--steps", "3")
    for verb, options in (("denoise", ()), ("interpolate", ends)):
        found, text = report_of(verb, *options)
        assert found == {"averaged": ["donor", "lane"], "at_mean": ["age"]}
        assert "decoded at the mean of age; averaged over donor, lane\n" in text
    new = ("-n", "20", "-o", tmp_path / "new.h5ad")
    found, text = report_of("sample", "--batch-as", "lane=3", *new)
    assert found == {"fixed": {"lane": "3"}, "drawn": ["donor"], "at_mean": ["age"]}
    assert "decoded with lane = 3; with donor drawn for each cell; at the mean of age\n" in text
    assert report_of("sample", "--prototype", *new[2:])[0] == {"averaged": ["donor", "lane"], "at_mean": ["age"]}


def test_de_reports_keys_that_it_does_not_adjust_for(model, cells, tmp_path):
    adata = cells.copy()
    stem_n = (adata.obs["cell_type"] == "stem").to_numpy()
    adata.obs["age"] = np.where(stem_n, 60.0, 50.0) + np.random.default_rng(0).choice([-5.0, 5.0], adata.n_obs)
    adata.write_h5ad(tmp_path / "c.h5ad")
    model.save(tmp_path / "c.scvae")
    done = run_cli("de", tmp_path / "c.h5ad", "--groupby", "cell_type", "--group", "stem", "--json")
    (age,) = json.loads(done.out)["not_adjusted"]
    assert age["key"] == "age"
    assert (age["group"], age["reference"]) == pytest.approx((60, 50), abs=1.5)
    assert age["difference"] == pytest.approx(2, abs=0.4)
    assert "the groups are not adjusted for age (mean age " in done.err
    # The values differ within the groups, but not between them.
    adata.obs["age"] = 50.0 + np.where(np.arange(adata.n_obs) % 2, 5.0, -5.0)
    adata.obs["half"] = np.where(np.arange(adata.n_obs) // 2 % 2, "a", "b")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        scvae.de(adata, model, groupby="half", group="a")
    assert not any("not adjusted" in str(one.message) for one in warned)


# --- refusals and warnings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_key": ["donor", "donor"]}, "batch_key donor was given twice"),
        ({"batch_key": "donor", "continuous_key": "donor"}, "given as both batch_key and continuous_key"),
        ({"continuous_key": ["age", "age"]}, "continuous_key age was given twice"),
        ({"continuous_key": "age", "mix_batches": 1.0}, "without batch_key"),
    ],
)
def test_conflicting_options_are_refused(cells, options, message):
    with pytest.raises(ConfigError, match=message):
        scvae.train(cells, **TINY, **options)
    if "mix_batches" not in options:
        with pytest.raises(ConfigError, match=message):
            scvae.check(cells, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["old"] * 3, "is not a column of numbers"),
        ([True, False, True], "is not a column of numbers"),
        ([1.0, np.nan, np.inf], r"missing or not finite for 2 cells"),
        ([3.0, 3.0, 3.0], r"has the same value \(3\) in all 3"),
        ([1e300, -1e300, 1e308], "too large"),
        (pd.Categorical(["1", "2", "1"]), "is not a column of numbers"),
    ],
    ids=["text", "booleans", "missing", "constant", "large", "categories"],
)
def test_continuous_key_that_is_not_numeric_is_refused(cells, values, message):
    adata = cells.copy()
    adata.obs["number"] = 5.0 if "same" not in message else 3.0
    column = np.resize(np.asarray(values), adata.n_obs) if len(set(map(str, values))) < 3 else None
    if column is None:
        column = np.concatenate([np.asarray(values), np.random.default_rng(0).normal(size=adata.n_obs - 3)])
    adata.obs["number"] = pd.Categorical(column) if isinstance(values, pd.Categorical) else column
    with pytest.raises(DataError, match=message):
        scvae.train(adata, **TINY, continuous_key="number")
    assert not scvae.check(adata, continuous_key="number").ok or "too large" in message


def test_nullable_integers_are_accepted_as_continuous_key(cells):
    adata = cells[:80].copy()
    adata.obs["number"] = pd.array(np.arange(80), dtype="Int64")
    scvae.train(adata, **TINY | {"max_epochs": 1}, continuous_key="number")


@pytest.mark.parametrize("column", ["site", "sample", "nothing", "years"])
def test_confounded_keys_are_reported(cells, column):
    adata = cells.copy()
    adata.obs["site"] = np.where(adata.obs["lane"] == "1", "Oslo", "Rome")
    adata.obs["sample"] = "s" + adata.obs["lane"].astype(str)
    adata.obs["nothing"] = "same"
    adata.obs["years"] = adata.obs["lane"].astype(int) + 0.01 * adata.obs["age"]
    expected = {
        "site": "batch key 'lane' is nested in 'site': all cells of a lane have the same site",
        "sample": "batch keys 'lane' and 'sample' divide the cells in the same way",
        "nothing": "obs['nothing'] has only one value",
        "years": "of the variance of continuous key 'years' is between the categories of batch key 'lane'",
    }[column]
    keys = {"batch_key": "lane", "continuous_key": column} if column == "years" else {"batch_key": ["lane", column]}
    messages = [finding.message for finding in scvae.check(adata, **keys).findings]
    assert sum(expected in message for message in messages) == 1
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        scvae.train(adata, **TINY | {"max_epochs": 1}, **keys)
    assert sum(expected in str(one.message) for one in warned) == 1


def test_crossed_keys_are_not_reported(cells):
    found = scvae.check(cells[:, :], batch_key=["donor", "lane"], continuous_key="age")
    assert not any("nested" in one.message or "distinguished" in one.hint for one in found.findings)


# --- recovery of known effects ----------------------------------------------------------------------------------------


def test_effects_of_a_simulation_are_recovered():
    """Effects of two crossed keys and of age are added to the log rates; the mean age differs between cell types."""
    random, n, g = np.random.default_rng(0), 700, 40
    kind_n = random.integers(0, 2, n)
    donor_n, lane_n = random.integers(0, 2, n), random.integers(0, 2, n)
    age_n = random.normal(0.4 * kind_n, 1.0)
    log_kg, donor_g, lane_g, age_g = (
        random.normal(1.5, 0.8, (2, g)),
        *random.normal(0, 0.5, (2, g)),
        random.normal(0, 0.3, g),
    )
    log_ng = log_kg[kind_n] + donor_n[:, None] * donor_g + lane_n[:, None] * lane_g + age_n[:, None] * age_g
    adata = anndata.AnnData(sp.csr_matrix(random.poisson(np.exp(log_ng)).astype(np.float32)))
    adata.obs["donor"] = pd.Categorical([f"d{i}" for i in donor_n])
    adata.obs["lane"] = pd.Categorical([f"l{i}" for i in lane_n])
    adata.obs["age"] = 50 + 10 * age_n
    options = TINY | {"max_epochs": 30, "likelihood": "nb"}
    trained = scvae.train(adata, **options, batch_key=["donor", "lane"], continuous_key="age", genes="all")

    def decoded(batch_as):
        expected = scvae.denoise(adata, trained, batch_as=batch_as, library=1000, inplace=False)
        return np.log(np.concatenate(list(expected.rows.blocks))).mean(0)

    for low, high, truth_g in (
        ("donor=d0", "donor=d1", donor_g), ("lane=l0", "lane=l1", lane_g), ("age=45", "age=55", age_g)
    ):  # fmt: skip
        found_g = decoded(high) - decoded(low)
        assert np.corrcoef(found_g, truth_g)[0, 1] > 0.95, high
        slope = np.polyfit(truth_g, found_g, 1)[0]
        assert 0.75 < slope < 1.25, (high, slope)
