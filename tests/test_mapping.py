"""New batches are mapped onto a trained model: results of known batches do not change."""

from __future__ import annotations

import functools
import json

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from command_line import run_cli, run_ok
from simulated import TINY, counts_of, tree
from sklearn.metrics import roc_auc_score
from workbench import DATA, USAGE, assert_refused, contents

import scvae_cli as scvae
from scvae_cli.data.minibatches import CellTable
from scvae_cli.errors import DataError, ModelError, ScvaeWarning
from scvae_cli.evaluation.log_pca import principal_components
from scvae_cli.evaluation.neighbors import nearest_neighbors
from scvae_cli.model.mapped_batches import Responses
from scvae_cli.model.shifted_nll import shifted_nll
from scvae_cli.tools.map.lacking_signs import _moments, _nearest
from scvae_cli.tools.map.mapped_counterparts import combined
from scvae_cli.training.mapping import map_batches, simulated_positions, typical_difference

LEARNING = TINY | {"n_hidden": 64, "max_epochs": 30, "precision": "fp32", "genes": "all"}
QUIET = pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")


@functools.cache
def sides(n_batches: int = 3) -> tuple[ad.AnnData, ad.AnnData, scvae.Model]:
    """A reference with all batches except the last, a query with the last batch, and a model of the reference."""
    adata = tree(n_cells=900, n_genes=150, n_batches=n_batches, batch_sd=0.6, depth=3000)
    new = (adata.obs["batch"] == f"batch_{n_batches}").to_numpy()
    reference = adata[~new].copy()
    key = "batch" if n_batches > 2 else None
    return reference, adata[new].copy(), scvae.train(reference, **LEARNING, batch_key=key)


@functools.cache
def joint(n_batches: int = 3) -> scvae.Model:
    _, query, model = sides(n_batches)
    return scvae.map(query, model, batch_key="batch", inplace=False)


@pytest.mark.parametrize("n_batches", [2, 3])
@QUIET
def test_results_of_reference_cells_do_not_change(n_batches):
    reference, _, model = sides(n_batches)
    adata = reference.copy()
    del adata.obs["batch"]
    adata = reference if n_batches > 2 else adata
    before, after = (scvae.embed(adata, one, inplace=False) for one in (model, joint(n_batches)))
    for name in ("position_nj", "mean_nk", "var_nk"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    before, after = (scvae.denoise(adata, one, inplace=False).rows.whole() for one in (model, joint(n_batches)))
    assert np.array_equal(before, after)


def test_denoising_of_a_mapped_batch_warns_that_its_differences_are_removed():
    _, query, _ = sides()
    with pytest.warns(ScvaeWarning, match="batch_as observed keeps these differences"):
        scvae.denoise(query, joint(), inplace=False)
    scvae.denoise(query, joint(), batch_as="observed", inplace=False)


def test_weights_of_the_reference_model_do_not_change():
    _, _, model = sides()
    old, new = model.vae.state_dict(), joint().vae.state_dict()
    for name, tensor in old.items():
        assert np.array_equal(tensor, new[name][: len(tensor)] if tensor.ndim else new[name]), name


def test_gene_effects_of_a_new_batch_are_recovered():
    _, query, _ = sides(2)
    true_bg = np.asarray(query.varm["true_batch_log_effect"]).T
    effect_bg = joint(2).vae.decoder.batch.gene_bg.detach().numpy()
    assert np.allclose(effect_bg[0], 0)
    seen = np.asarray(query.X.sum(0)).ravel() > 50
    assert np.corrcoef(effect_bg[1][seen], (true_bg[1] - true_bg[0])[seen])[0, 1] > 0.9


def test_responses_are_linear_and_belong_to_mapped_batches():
    torch.manual_seed(0)
    responses = Responses(2, 3, 5)
    torch.nn.init.normal_(responses.slope_dkg)
    z_nk, v_mnk, batch_n = torch.randn(4, 3), torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 3])
    shift_ng = responses(z_nk, batch_n, 4)
    assert (shift_ng[:2] == 0).all()
    torch.testing.assert_close(shift_ng[2], z_nk[2] @ responses.slope_dkg[0])
    torch.testing.assert_close(responses(z_nk, torch.eye(4), 4), shift_ng)
    assert (responses(z_nk, torch.ones(4, 2), 4) == 0).all()
    moved_mng = torch.stack([responses(z_nk + v_nk, batch_n, 4) for v_nk in v_mnk])
    torch.testing.assert_close(responses.push(v_mnk, batch_n, 4), moved_mng - shift_ng)


def test_shifted_loss_and_gradients_equal_autograd():
    _, query, model = sides()
    table = CellTable(counts_of(query, "batch").matrix, np.arange(query.n_obs) % 2, model.device)
    cells, vae, (k, g) = table.take(np.arange(40)), model.vae, (model.vae.n_latent, model.vae.n_genes)
    torch.manual_seed(0)
    inputs = [torch.randn(40, vae.decoder.n_hidden + k), torch.randn(40, k), torch.randn(2, g), torch.randn(2, k, g)]
    inputs = [(0.3 * x).requires_grad_() for x in inputs]
    h_ni, z_nk, gene_bg, slope_bkg = inputs
    fast = shifted_nll(vae.decoder.head, *inputs, cells, cells.batch_n)
    shift_ng = gene_bg[cells.batch_n] + torch.einsum("nk,nkg->ng", z_nk, slope_bkg[cells.batch_n])
    plain = vae.decoder.head(h_ni).shifted(shift_ng).mean_nll(cells)
    torch.testing.assert_close(fast, plain)
    of_fast, of_plain = torch.autograd.grad(3 * fast, inputs), torch.autograd.grad(3 * plain, inputs)
    for found, expected in zip(of_fast, of_plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_pushed_logits_equal_the_derivative_in_a_mapped_batch():
    decoder = joint().vae.decoder
    z_nk, v_nk = torch.randn(4, joint().vae.n_latent), torch.randn(4, joint().vae.n_latent)
    batch_n = torch.full((4,), len(joint().batches) - 1)
    assert decoder.responses is not None
    assert (decoder.responses.slope_dkg != 0).any()
    with torch.no_grad():
        logits_ng, change_mng = decoder.push_logits(z_nk, v_nk[None], batch_n)
        torch.testing.assert_close(logits_ng, decoder(z_nk, batch_n).logits_ng, atol=1e-4, rtol=1e-4)
        ahead_ng = decoder(z_nk + 1e-2 * v_nk, batch_n).logits_ng
        behind_ng = decoder(z_nk - 1e-2 * v_nk, batch_n).logits_ng
    torch.testing.assert_close(change_mng[0], (ahead_ng - behind_ng) / 2e-2, atol=2e-2, rtol=2e-2)


@QUIET
def test_effect_on_one_population_is_learned():
    _, query, model = sides(2)
    treated, rng = query.copy(), np.random.default_rng(0)
    mature_n = treated.obs["cell_type"].str.endswith("_1").to_numpy()
    genes = np.argsort(np.asarray(treated.X.sum(0)).ravel())[-40::4]
    x_ng = treated.X.toarray()
    x_ng[np.ix_(mature_n, genes)] = rng.binomial(x_ng[np.ix_(mature_n, genes)].astype(int), 0.2)
    treated.X = sp.csr_matrix(x_ng)
    mapped = scvae.map(treated, model, batch_key="batch", inplace=False)
    after, before = (
        scvae.denoise(treated, one, batch_as="observed", inplace=False).rows.whole() for one in (mapped, joint(2))
    )
    change_ng = np.log(after / before)
    assert change_ng[np.ix_(mature_n, genes)].mean() < change_ng[np.ix_(~mature_n, genes)].mean() - 0.4
    rest = np.setdiff1d(np.arange(treated.n_vars), genes)
    assert np.abs(change_ng[:, rest]).mean() < 0.15


def test_simulated_positions_resemble_training_cells():
    reference, _, model = sides()
    simulated_sk = simulated_positions(model, seed=0)
    mean_nk = scvae.embed(reference, model, space="latent", inplace=False).mean_nk
    # Canonical axes are rotated relative to the axes of the networks, so only lengths of positions can be compared.
    assert simulated_sk.norm(dim=1).mean() == pytest.approx(np.linalg.norm(mean_nk, axis=1).mean(), rel=0.15)


def test_new_batch_increases_the_elbo_of_its_cells():
    _, query, model = sides()
    mapped = joint()
    options = {"inplace": False, "n_samples": 5, "n_simulated": 100}
    own = scvae.score(query, mapped, **options).elbo.mean()
    as_known = query.copy()
    as_known.obs["batch"] = "batch_1"
    assert own > scvae.score(as_known, model, **options).elbo.mean() + 5


@QUIET
def test_reference_cells_under_a_new_batch_name_do_not_move():
    reference, _, model = sides(2)
    renamed = reference.copy()
    renamed.obs["batch"] = "again"
    mapped = scvae.map(renamed, model, batch_key="batch", inplace=False)
    moved, unmapped = (scvae.embed(renamed, one, inplace=False).position_nj for one in (mapped, model))
    spread = np.linalg.norm(unmapped - unmapped.mean(0), axis=1).mean()
    assert np.linalg.norm(moved - unmapped, axis=1).mean() < 0.05 * spread


def test_cells_without_a_new_batch_are_refused():
    reference, _, model = sides()
    with pytest.raises(DataError, match="already has all batches") as caught:
        scvae.map(reference, model, inplace=False)
    assert "embed" in caught.value.hint


def test_effects_of_known_batches_do_not_change():
    reference, query, model = sides()
    both = ad.concat([reference, query])
    with pytest.warns(ScvaeWarning, match="not trained again"):
        mapped = scvae.map(both, model, inplace=False)
    for name, tensor in joint().vae.state_dict().items():
        assert np.array_equal(tensor, mapped.vae.state_dict()[name]), name


@QUIET
def test_twenty_cells_can_be_mapped():
    _, query, model = sides()
    few = query[:20].copy()
    with pytest.warns(ScvaeWarning, match="fewer than 50 cells"):
        mapped = scvae.map(few, model, inplace=False)
    assert np.isfinite(scvae.embed(query, mapped, inplace=False).position_nj).all()


@QUIET
def test_order_of_genes_does_not_matter_and_missing_genes_give_a_warning():
    _, query, model = sides()
    reordered = query[:, ::-1].copy()
    mapped = scvae.map(reordered, model, inplace=False)
    assert np.allclose(mapped.vae.encoder.shifts.hidden_bh.detach(), joint().vae.encoder.shifts.hidden_bh.detach())
    with pytest.warns(ScvaeWarning, match="genes are missing"):
        scvae.map(query[:, 10:].copy(), model, inplace=False)
    with pytest.raises(DataError, match="genes"):
        scvae.map(query[:, 100:].copy(), model, inplace=False)


@QUIET
def test_heldout_cells_lack_a_counterpart_at_the_requested_rate():
    reference, query, model = sides()
    adata = ad.concat([reference, query])
    scvae.map(adata, model, false_alarms=0.2)
    heldout = model.held_out(adata.obs_names)
    assert adata.obs["scvae_no_counterpart"][heldout].mean() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("n_cells", [20, 300])
@QUIET
def test_few_cells_of_known_types_lack_a_counterpart(n_cells):
    _, query, model = sides()
    few = query[:n_cells].copy()
    scvae.map(few, model)
    assert few.obs["scvae_no_counterpart"].mean() <= 0.1


@QUIET
def test_cells_of_a_type_that_the_reference_lacks_are_found():
    reference, query, _ = sides()
    lacking = reference[~reference.obs["cell_type"].str.endswith("_1")].copy()
    model = scvae.train(lacking, **LEARNING, batch_key="batch")
    adata = query.copy()
    scvae.map(adata, model)
    new_n = adata.obs["cell_type"].str.endswith("_1").to_numpy()
    p_n = adata.obs["scvae_counterpart_p"].to_numpy()
    assert roc_auc_score(new_n, -p_n) > 0.7
    assert (p_n[new_n] <= 0.05).mean() > 3 * (p_n[~new_n] <= 0.05).mean()


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_common_factor_of_the_signs_causes_no_false_alarms(factor):
    random = np.random.default_rng(0)
    real_3n, simulated_3s = (random.chisquare(8, (3, n)) for n in (2000, 2000))
    score_n, score_s = combined(factor * real_3n, simulated_3s)
    reported = (score_n > np.quantile(score_s, 0.95)).mean()
    assert reported == pytest.approx(0.05, abs=0.02) if factor >= 1 else reported < 0.05


@pytest.mark.parametrize(("n_cells", "n_genes"), [(5, 3), (20, 100), (60, 12), (60, 1), (300, 40)])
def test_neighbors_from_scalar_products_equal_those_of_principal_components(n_cells, n_genes):
    random = np.random.default_rng(n_cells + n_genes)
    logged = sp.csr_matrix(random.gamma(1.0, 1.0, (n_cells, n_genes)))
    n_neighbors = min(15, n_cells // 5)
    expected_nm = nearest_neighbors(principal_components(logged), n_neighbors)
    assert np.array_equal(_nearest(logged, n_neighbors), expected_nm)


def test_moments_of_counts_equal_those_of_draws():
    model = joint()
    with torch.no_grad():
        output = model.vae.decode(torch.zeros(4000, model.vae.n_latent), torch.zeros(4000, dtype=torch.long))
        drawn_ng = output.draw(torch.full((4000,), 3000.0), np.random.default_rng(0)).toarray()
        expected_ng, variance_ng = _moments(output, torch.tensor(drawn_ng.sum(1).mean()).expand(4000))
    mean_g, variance_g = drawn_ng.mean(0), variance_ng[0].numpy()
    seen = mean_g > 0.5
    assert np.allclose(mean_g[seen], expected_ng[0].numpy()[seen], rtol=0.1)
    assert np.median(drawn_ng.var(0)[seen] / variance_g[seen]) == pytest.approx(1, abs=0.1)


@QUIET
def test_cells_of_another_tissue_lack_a_counterpart():
    _, query, model = sides()
    foreign = query.copy()
    foreign.X = foreign.X[:, np.random.default_rng(0).permutation(foreign.n_vars)]
    with pytest.warns(ScvaeWarning, match="another tissue"):
        scvae.map(foreign, model)


def test_differences_by_chance_are_estimated_as_zero():
    random = np.random.default_rng(0)
    expected_g = random.gamma(1.0, 200.0, 3000)
    found = []
    for true in (0.0, 0.3):
        difference_g = true * random.standard_normal(3000)
        observed_g = random.poisson(expected_g * np.exp(difference_g))
        found.append((*typical_difference(observed_g, expected_g, expected_g), difference_g))
    assert found[0][0] < 0.02
    assert found[1][0] == pytest.approx(0.3, rel=0.1)
    shrunk_g, true_g = found[1][1:]
    raw_g = np.log((observed_g + 0.5) / (expected_g + 0.5))
    assert ((shrunk_g - true_g) ** 2).mean() < ((raw_g - true_g) ** 2).mean()


@QUIET
def test_mapping_is_reproducible_and_accepts_a_mapped_model():
    _, query, model = sides()
    counts = counts_of(query, "batch")
    one, two = (map_batches(model, counts, ["batch_3"], reference="reference", seed=3) for _ in range(2))
    for name, tensor in one.vae.state_dict().items():
        assert np.array_equal(tensor, two.vae.state_dict()[name]), name
    more = query[:60].copy()
    more.obs["batch"] = "batch_4"
    twice = scvae.map(more, joint(), inplace=False)
    assert twice.batches == ("batch_1", "batch_2", "batch_3", "batch_4")
    assert [run["batches"] for run in twice.facts["mapped"]] == [{"batch_3": query.n_obs}, {"batch_4": 60}]
    before, after = (scvae.embed(query, one, inplace=False).position_nj for one in (joint(), twice))
    assert np.array_equal(before, after)


@QUIET
def test_command_and_function_map_equally(copied):
    folder = copied.data.parent
    new, second = folder / "new.scvae", folder / "again.scvae"
    command = ["map", copied.data, "-m", copied.model, "--batch-key", "batch", "-o"]
    facts = json.loads(run_ok(*command, new, "--json").out)
    reference = scvae.load(copied.model)
    mapped = scvae.map(ad.read_h5ad(copied.data), copied.model, batch_key="batch", inplace=False)
    saved = scvae.load(new)
    assert saved.batches == mapped.batches == ("reference", "batch_1", "batch_2")
    for name, tensor in saved.vae.state_dict().items():
        assert np.array_equal(tensor, mapped.vae.state_dict()[name]), name
    assert saved.facts["mapped"][0]["reference"] == reference.hash
    assert saved.hash != reference.hash
    assert facts["new_batches"] == {"batch_1": 60, "batch_2": 60} or sum(facts["new_batches"].values()) == 120
    adata = ad.read_h5ad(copied.data)
    record = json.loads(adata.uns["scvae"]["runs"]["map"])
    assert record["model_hash"] == saved.hash
    # Other commands work with the mapped model.
    told = json.loads(run_ok("info", new, "--json").out)
    assert (told["batches"], told["mapped_batches"]) == (list(saved.batches), ["batch_1", "batch_2"])
    assert "\nmapped after the training (scvae map): batch_1, batch_2\n" in run_ok("info", new).out
    for verb in ("embed", "denoise", "score", "info"):
        options = ("--samples", "2", "--simulated", "100") if verb == "score" else ()
        run_ok(verb, *([new] if verb == "info" else [copied.data, "-m", new]), *options)
    run_ok(*command, second, "--quiet")
    assert contents(second)["weights.safetensors"] == contents(new)["weights.safetensors"]


@pytest.mark.parametrize(
    ("options", "code", "fragment"),
    [
        (["-o", "new.scvae"], USAGE, "batches of the cells are not named"),
        (["--batch-key", "batch"], USAGE, "needs a folder"),
        (["--batch-key", "nowhere", "-o", "new.scvae"], DATA, "no column 'nowhere'"),
        (["--batch", "one", "-o", "new.scvae"], DATA, "already has a column 'batch'"),
        (["--batch", "one", "--batch-key", "batch", "-o", "new.scvae"], USAGE, "both given"),
        (["--batch-key", "batch", "-o", "cells.scvae"], USAGE, "the model to map onto"),
        (["--batch", "", "-o", "new.scvae"], USAGE, "--batch is an empty text"),
        (["--batch", "one\nerror: two", "-o", "new.scvae"], USAGE, "control characters"),
        (["--batch", "b" * 201, "-o", "new.scvae"], USAGE, "201 characters"),
        (["--batch-key", "batch", "--cells", "new.scvae/x.h5ad", "-o", "new.scvae"], USAGE, "in the model folder"),
        (["--batch-key", "batch", "--cells", "cells.scvae/x.h5ad", "-o", "new.scvae"], USAGE, "in the model folder"),
        (["--batch-key", "batch", "--cells", "new.h5ad", "-o", "new.h5ad"], USAGE, "in the model folder"),
    ],
)
def test_invalid_mappings_are_refused(bench, monkeypatch, options, code, fragment):
    monkeypatch.chdir(bench.folder)
    assert_refused(bench.folder, bench.args("map", *options), code, fragment)


def test_control_characters_in_names_of_batches_are_escaped(copied):
    adata = ad.read_h5ad(copied.data)
    adata.obs["batch"] = np.where(adata.obs["batch"] == "batch_1", "one\nmapped 9 new batches", "two\x1b[2K")
    adata.write_h5ad(copied.data)
    new = copied.data.with_name("new.scvae")
    command = ["map", copied.data, "-m", copied.model, "--batch-key", "batch", "-o", new]
    out = run_ok(*command).out
    assert [row[:20] for row in out.splitlines() if row.startswith("mapped")] == ["mapped 2 new batches"]
    assert "  two\\x1b[2K: " in out
    assert "are expected even if all types are known" in out
    assert "gene proportions" in out
    second = run_cli(*command)
    assert "choose another name with -o" in second.err
    adata.obs = adata.obs.drop(columns="batch")
    adata.write_h5ad(copied.data)
    assert f"warning: {copied.data.name}: obs has no column 'batch'" in run_cli("embed", copied.data, "-m", new).err


def test_models_of_real_numbers_are_refused():
    adata = tree(60, 20)
    adata.X = adata.X.toarray() - 1.5
    adata.obs["batch"] = "one"
    model = scvae.train(adata, **TINY | {"max_epochs": 1}, likelihood="normal")
    with pytest.raises(ModelError, match="real numbers"):
        scvae.map(adata, model, batch_key="batch", inplace=False)


@QUIET
def test_batches_of_the_query_may_be_in_another_column():
    _, query, model = sides()
    adata = query.copy()
    adata.obs["lane"] = adata.obs.pop("batch")
    mapped = scvae.map(adata, model, batch_key="lane")
    assert mapped.batches == joint().batches
    assert list(adata.obs["batch"]) == list(adata.obs["lane"])
    adata.obs["batch"] = "mine"
    with pytest.raises(DataError, match="already has a column 'batch'"):
        scvae.map(adata, model, batch_key="lane", inplace=False)


@QUIET
def test_batches_are_not_overwritten_by_the_result():
    _, query, _ = sides()
    adata = query.copy()
    adata.obs["scvae_no_counterpart"] = adata.obs.pop("batch")
    other = scvae.train(query[:, :40].copy(), **LEARNING)
    with pytest.raises(DataError, match="map writes its result to the column 'scvae_no_counterpart'"):
        scvae.map(adata[:, :40].copy(), other, batch_key="scvae_no_counterpart", force=True)


@QUIET
def test_labels_of_cells_without_a_counterpart_give_a_warning():
    reference, query, _ = sides()
    lacking = reference[~reference.obs["cell_type"].str.endswith("_1")].copy()
    model = scvae.train(lacking, **LEARNING, batch_key="batch", labels_key="cell_type")
    adata = query.copy()
    mapped = scvae.map(adata, model)
    with pytest.warns(ScvaeWarning, match="cells without a counterpart in the training"):
        scvae.annotate(adata, mapped)


@QUIET
def test_known_types_get_their_labels_also_if_mapping_moves_the_cells_away():
    reference, query, _ = sides()
    model = scvae.train(reference, **LEARNING, batch_key="batch", labels_key="cell_type")
    mapped = scvae.map(query, model, inplace=False)
    with torch.no_grad():
        mapped.vae.encoder.shifts.move_bk[-1] += 20.0
    found = scvae.annotate(query, mapped, inplace=False)
    unmapped = scvae.annotate(query, model, inplace=False)
    assert found.unknown_n.mean() <= unmapped.unknown_n.mean() + 0.05


@QUIET
def test_name_of_a_single_new_batch_can_be_given(copied):
    adata = ad.read_h5ad(copied.data)
    del adata.obs["batch"]
    adata.write_h5ad(copied.data)
    new = copied.data.with_name("new.scvae")
    run_ok("map", copied.data, "-m", copied.model, "--batch", "monday", "-o", new)
    assert set(ad.read_h5ad(copied.data).obs["batch"]) == {"monday"}
    assert run_cli("embed", copied.data, "-m", new).code == 0
