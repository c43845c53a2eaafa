"""A model that was trained with labels separates the labels, and `annotate` then needs no labeled cells."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from command_line import TINY as TINY_ARGUMENTS
from command_line import run_cli, run_ok
from simulated import TINY, counts_of, tiny_config, tree
from sklearn.metrics import silhouette_score

import scvae_cli as scvae
from scvae_cli.data.known_labels import KnownLabels, hidden_from_training
from scvae_cli.errors import ConfigError, DataError, ModelError, ScvaeWarning
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.bundle import load
from scvae_cli.model.stored_labels import StoredLabels
from scvae_cli.tools.annotate.learned_file import learned_of
from scvae_cli.tools.annotate.views import GENES
from scvae_cli.training.fit import fit, fit_to_end


@functools.cache
def trained():
    """Cells of a tree, of which half have a label, and a model that was trained with the labels."""
    adata = tree(n_cells=600, n_branches=2)
    known_n = np.random.default_rng(0).random(adata.n_obs) < 0.5
    adata.obs["known"] = adata.obs["cell_type"].astype(object).where(known_n)
    return adata, scvae.train(adata, labels_key="known", label_weight=10, **TINY), known_n


def with_labels(counts, code_n, n_labels=3):
    names = tuple(f"type {c}" for c in range(n_labels))
    return dataclasses.replace(counts, labels=KnownLabels(names, np.asarray(code_n)))


def weights_of(model):
    return torch.cat([p.detach().ravel() for p in model.vae.parameters()])


@pytest.fixture(scope="module")
def counts():
    return counts_of(tree(n_cells=200, n_genes=60))


def test_labels_also_separate_cells_with_unknown_labels():
    adata, model, known_n = trained()
    without_labels = scvae.train(adata, **TINY)
    silhouettes = []
    for one in (without_labels, model):
        mean_nk = np.asarray(
            posteriors(one, counts_of(adata).genes(np.flatnonzero(np.isin(adata.var_names, one.genes)))).mean_nk
        )
        silhouettes.append(silhouette_score(mean_nk[~known_n], adata.obs["cell_type"][~known_n]))
    assert silhouettes[1] > silhouettes[0] + 0.02


def test_hidden_labels_do_not_change_the_weights(counts):
    """Labels by which predictions are tested have no influence on the weights."""
    code_n = np.arange(counts.n_cells) % 3
    other_n = np.where(hidden_from_training(counts.cell_names, 0), (code_n + 1) % 3, code_n)
    assert 0.1 < np.mean(other_n != code_n) < 0.3
    config = tiny_config(max_epochs=2, labels_key="label", label_weight=10)
    same, other = (weights_of(fit_to_end(with_labels(counts, c), config)) for c in (code_n, other_n))
    assert torch.equal(same, other)
    third = weights_of(fit_to_end(with_labels(counts, (code_n + counts.n_cells // 100) % 3), config))
    assert not torch.equal(same, third)


def test_label_weight_of_zero_equals_training_without_labels(counts):
    labeled = with_labels(counts, np.arange(counts.n_cells) % 3)
    config = tiny_config(max_epochs=2)
    ignored = fit_to_end(labeled, tiny_config(max_epochs=2, labels_key="label", label_weight=0))
    assert torch.equal(weights_of(fit_to_end(counts, config)), weights_of(ignored))


def test_resumed_training_with_labels_gives_the_same_weights(counts, tmp_path):
    labeled, config = (
        with_labels(counts, np.arange(counts.n_cells) % 4 - 1),
        tiny_config(labels_key="label", label_weight=10),
    )
    uninterrupted = fit_to_end(labeled, config)
    folder = tmp_path / "cells.scvae"
    stops = iter([False, False, True])
    list(fit(labeled, config, model_folder=folder, stop_requested=lambda: next(stops)))
    *_, last = fit(labeled, config, model_folder=folder, resume=True)
    assert torch.equal(weights_of(uninterrupted), weights_of(last.model))
    list(fit(labeled, config, model_folder=folder, stop_requested=lambda: True))
    changed = with_labels(counts, np.arange(counts.n_cells) % 3)
    with pytest.raises(ModelError, match="other data"):
        list(fit(changed, config, model_folder=folder, resume=True))


def test_saved_classifiers_predict_like_classifiers_of_the_labeled_cells(tmp_path):
    adata, model, known_n = trained()
    model.save(tmp_path / "cells.scvae")
    adata[known_n].write_h5ad(tmp_path / "reference.h5ad")
    query = adata[~known_n].copy()
    del query.obs["known"]
    with pytest.warns(ScvaeWarning, match="contain training cells"):
        from_model = scvae.annotate(query, tmp_path / "cells.scvae", inplace=False)
    arguments = {"labels_key": "known", "reference": tmp_path / "reference.h5ad"}
    with pytest.warns(ScvaeWarning, match="come from another file"):
        from_cells = scvae.annotate(query, tmp_path / "cells.scvae", **arguments, inplace=False)
    assert from_model.labels == from_cells.labels
    np.testing.assert_array_equal(from_model.labeled_c, from_cells.labeled_c)
    np.testing.assert_allclose(from_model.probability_nc, from_cells.probability_nc, atol=2e-3)
    assert from_model.difference.auc == pytest.approx(from_cells.difference.auc, abs=0.02)
    # For stored classifiers, the held-out cells represent all labeled cells, so p-values of "unknown" differ a little.
    assert np.corrcoef(from_model.p_n, from_cells.p_n)[0, 1] > 0.7
    assert from_model.quality.labels.accuracy == pytest.approx(from_cells.quality.labels.accuracy, abs=1e-6)


def test_missing_genes_count_as_average():
    _, model, _ = trained()
    learned = learned_of(model)
    n_genes, random = len(model.genes), np.random.default_rng(0)
    missing_g = random.permutation(n_genes)[:20]
    x_ng = random.random((5, n_genes))
    x_ng[:, missing_g] = 0
    at_mean_ng = x_ng.copy()
    at_mean_ng[:, missing_g] = learned.scaling.gene_center_g[missing_g]
    got = learned.with_mean_of(missing_g).regressions_kv[0][GENES].log_probabilities(x_ng)
    np.testing.assert_allclose(got, learned.regressions_kv[0][GENES].log_probabilities(at_mean_ng), atol=1e-5)


def test_quality_is_measured_on_cells_that_were_not_trained_with_labels():
    """Accuracy is not measured on cells whose labels were used in the training, because it would be too high."""
    adata, model, known_n = trained()
    quality = scvae.annotate(adata, model, labels_key="known", inplace=False).quality
    unseen_n = known_n & (hidden_from_training(adata.obs_names, 0) | model.held_out(adata.obs_names))
    assert quality.n_cells == unseen_n.sum()
    with pytest.warns(ScvaeWarning, match="contain training cells"):
        result = scvae.annotate(adata, model, inplace=False)
    right_n = np.asarray(result.labels)[result.probability_nc.argmax(1)] == adata.obs["cell_type"].astype(str)
    assert right_n[~known_n].mean() == pytest.approx(quality.labels.accuracy, abs=0.1)


@pytest.mark.parametrize(
    ("values", "kind"), [([1, 20240101], "integer"), ([2.0, 1e15 + 1], "number"), ([True, False], "boolean")]
)
def test_labels_keep_their_type(values, kind, tmp_path):
    adata = tree(n_cells=120, n_genes=40)
    adata.obs["known"] = np.asarray(values)[np.arange(120) % 2]
    scvae.train(adata, labels_key="known", **TINY | {"max_epochs": 1}).save(tmp_path / "cells.scvae")
    adata.obs_names = "new_" + adata.obs_names
    scvae.annotate(adata, tmp_path / "cells.scvae")
    assert list(adata.obs["scvae_label"].cat.categories) == sorted(values)
    assert load(tmp_path / "cells.scvae").labels.kind == kind


def test_training_accepts_many_labels_and_rare_labels():
    adata = tree(n_cells=500, n_genes=40)
    adata.obs["known"] = ["alone"] + [f"type {i % 200}" for i in range(499)]
    model = scvae.train(adata, labels_key="known", **TINY | {"max_epochs": 2})
    assert len(model.labels.names) == 201
    adata.obs_names = "new_" + adata.obs_names
    with (
        pytest.warns(ScvaeWarning, match="one labeled cell"),
        pytest.warns(ScvaeWarning, match="fewer than 10 labeled cells"),
    ):
        assert scvae.annotate(adata, model, inplace=False).probability_nc.shape == (500, 201)


@pytest.mark.parametrize(
    ("column", "fragment"),
    [
        ([None] * 60, "no label"),
        (["T cell"] * 60, "only the label 'T cell'"),
        (["T cell", "B cell"] + [None] * 58, "single cell of each label"),
        (list(np.linspace(0, 1, 60)), "measurements"),
    ],
)
def test_unsuitable_labels_are_refused_before_the_training(column, fragment):
    adata = tree(n_cells=60, n_genes=40)
    adata.obs["known"] = column
    with pytest.raises(DataError, match=fragment):
        scvae.train(adata, labels_key="known", **TINY)


def test_few_labels_do_not_change_the_latent_space():
    """With few labels, only the classifiers are trained with labels, and are then tested on all labeled cells."""
    adata = tree(n_cells=200, n_genes=60)
    adata.obs["known"] = adata.obs["cell_type"].astype(object).where(np.arange(200) % 10 == 0)
    model = scvae.train(adata, labels_key="known", **TINY | {"max_epochs": 2})
    assert model.config.train.label_weight == 0
    assert torch.equal(weights_of(model), weights_of(scvae.train(adata, **TINY | {"max_epochs": 2})))
    n_alone = (adata.obs["known"].value_counts() == 1).sum()
    with pytest.warns(ScvaeWarning, match="contain training cells"):
        assert scvae.annotate(adata, model, inplace=False).quality.n_cells == 20 - n_alone
    adata.obs["known"] = ["T cell", "T cell", "B cell"] + [None] * 197
    with pytest.raises(DataError, match="too few"):
        scvae.train(adata, labels_key="known", label_weight=10, **TINY)


def test_options_that_need_labels_are_refused_without_labels(tmp_path):
    adata, model, _ = trained()
    with pytest.raises(ConfigError, match="without labels_key"):
        scvae.train(adata, unlabeled="x", **TINY)
    with pytest.raises(ConfigError, match="without"):
        scvae.annotate(adata, model, coarse_key="cell_type")
    with pytest.raises(ConfigError, match="label_weight was given without"):
        scvae.train(adata, label_weight=3, **TINY)
    with pytest.raises(ConfigError, match="both batch_key and labels_key"):
        scvae.train(adata, labels_key="known", batch_key="known", **TINY)
    without_classifiers = dataclasses.replace(model, labels=None)
    with pytest.raises(ConfigError, match="has no classifiers of labels") as error:
        scvae.annotate(adata, without_classifiers)
    assert "obs['known']" in error.value.hint
    with pytest.raises(ConfigError, match="trained without labels"):
        scvae.annotate(adata, dataclasses.replace(without_classifiers, config=tiny_config()))


def test_labels_of_empty_cells_are_ignored():
    """If labels of empty cells counted, a training of many hours could end without classifiers."""
    adata = tree(n_cells=60, n_genes=40)
    adata.obs["known"] = np.where(np.arange(60) < 3, "rare", "usual")
    adata.X = adata.X.multiply((np.arange(60) >= 3)[:, None]).tocsr()
    with pytest.raises(DataError, match="only the label 'usual'"):
        scvae.train(adata, labels_key="known", drop_empty=True, **TINY)


def test_cells_of_unknown_batches_are_reported():
    adata = tree(n_cells=150, n_genes=40, n_batches=2)
    model = scvae.train(adata, labels_key="cell_type", batch_key="batch", **TINY | {"max_epochs": 2})
    query = adata.copy()
    query.obs_names = "new_" + query.obs_names
    # The seed changes only the comparison with the labeled cells.
    found, with_other_seed = (scvae.annotate(query, model, seed=seed, inplace=False) for seed in (0, 1))
    assert found.difference.auc != with_other_seed.difference.auc
    np.testing.assert_array_equal(found.probability_nc, with_other_seed.probability_nc)
    query.obs["batch"] = "another"
    query.X = query.X.multiply(np.arange(40) >= 10).tocsr()
    with pytest.warns(ScvaeWarning) as warned:
        scvae.annotate(query, model, inplace=False)
    assert any("not in the training (another); scvae map adds them" in str(one.message) for one in warned)
    assert any("differ from labeled cells" in str(one.message) for one in warned)
    query.X = adata.X
    del query.obs["batch"]
    with pytest.warns(ScvaeWarning, match="no column 'batch'"):
        scvae.annotate(query, model, inplace=False)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("a", "b | c"), "text"), (("a", "unknown"), "text"), (("a", " "), "text"), (("a", "a\0b"), "text"),
        (("a", "a"), "text"), (("a",), "text"), (("a", "b"), "letters"),
    ],
)  # fmt: skip
def test_models_with_invalid_labels_are_refused(names, kind, tmp_path):
    _, model, _ = trained()
    tensors = model.labels.tensors
    dataclasses.replace(model, labels=StoredLabels(names, kind, tensors)).save(tmp_path / "cells.scvae")
    with pytest.raises(ModelError, match="damaged"):
        load(tmp_path / "cells.scvae")


@pytest.mark.parametrize(
    ("names", "kind"),
    [(["1", "1.5"], "integer"), (["a", "2"], "number"), (["True", "no"], "boolean"), (["1", "01"], "integer")],
)
def test_names_of_labels_of_the_wrong_type_are_refused(names, kind):
    _, model, _ = trained()
    n_labels = len(model.labels.names)
    all_names = (*names, *(str(10 + c) for c in range(n_labels - 2)))
    damaged = dataclasses.replace(model, labels=dataclasses.replace(model.labels, names=all_names, kind=kind))
    with pytest.raises(ModelError, match="damaged"):
        learned_of(damaged)


def _damages(names):
    """Yield names of tensors of the classifiers, and functions that damage these tensors."""
    for name in names:
        yield name, lambda tensors, name: tensors.pop(name)
        yield name, lambda tensors, name: tensors.update({name: tensors[name][None]})
    for name in ("rank_c", "code_h", "part_h", "size_c"):
        yield name, lambda tensors, name: tensors.update({name: tensors[name] + 0.5})
        yield name, lambda tensors, name: tensors.update({name: tensors[name] - 1e6})
    for name in ("scale", "state_scale", "deviation_g", "weight_h"):
        yield name, lambda tensors, name: tensors.update({name: tensors[name] * 0})
    for name, value in (("size_c", 4e8), ("n_trained", 1e6), ("weight_h", 1e9), ("weight_h", 0.01)):
        yield name, lambda tensors, name, value=value: tensors.update({name: torch.full_like(tensors[name], value)})
    # Finite numbers that no training gives: no cell would be far from a known type, and none would be near.
    for factor in (0.0, 0.1, 1e20):
        yield "factor_kjj", lambda tensors, name, factor=factor: tensors.update({name: tensors[name] * factor})
    yield "nearest_h", lambda tensors, name: tensors.update({name: tensors[name] + 10})
    yield "state_hj", lambda tensors, name: tensors.update({name: tensors[name] * 1e30})
    yield "state_intercept_kc", lambda tensors, name: tensors.update({name: tensors[name].flip(1) + 5})
    yield "log_p_vhc", lambda tensors, name: tensors.update({name: _certain(tensors[name])})
    yield "another", lambda tensors, name: tensors.update({name: tensors["size_c"]})
    yield "log_p_vhc", lambda tensors, name: tensors.update({name: tensors[name] + 1})


def _certain(log_p_vhc):
    """Probabilities of which one is 1 and the others are as small as float32 allows."""
    certain_vhc = torch.full_like(log_p_vhc, -1e38)
    certain_vhc[..., 0] = 0.0
    return certain_vhc


def test_positions_that_are_not_finite_give_one_error():
    adata, model, _ = trained()
    tensors = model.labels.tensors
    far = {"state_scale": torch.tensor(1e-38), "state_center_j": torch.full_like(tensors["state_center_j"], 1e38)}
    for changed in (far, {"component_gp": torch.full_like(tensors["component_gp"], 3e38)}):
        labels = dataclasses.replace(model.labels, tensors=tensors | changed)
        with pytest.raises(ModelError, match="not finite"):
            scvae.annotate(adata, dataclasses.replace(model, labels=labels), inplace=False)


def test_damaged_classifiers_are_refused():
    _, model, _ = trained()
    for name, damage in _damages(sorted(model.labels.tensors)):
        tensors = dict(model.labels.tensors)
        damage(tensors, name)
        damaged = dataclasses.replace(model, labels=dataclasses.replace(model.labels, tensors=tensors))
        with pytest.raises(ModelError, match="damaged"):
            learned_of(damaged)


def test_commands_train_with_labels_and_annotate_without_labels(tmp_path):
    adata = tree(n_cells=150, n_genes=40)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata.obs["cell_type"] = "?"
    adata.write_h5ad(tmp_path / "query.h5ad")
    query, model = tmp_path / "query.h5ad", tmp_path / "cells.scvae"
    done = run_ok("train", tmp_path / "cells.h5ad", "--labels-key", "cell_type", *TINY_ARGUMENTS)
    assert "known for 150 of 150 cells" in done.err
    assert f"next: scvae annotate QUERY.h5ad -m {model}" in done.err
    text = run_ok("info", model).out
    assert "labels (cell_type): " + ", ".join(load(model).labels.names) in text
    assert "labels known for 150 cells; label weight 0: the labels did not change the latent space" in text
    done = run_ok("annotate", query, "-m", model, "--plot", tmp_path / "labels.png")
    assert "labeled training cells" in done.out
    assert (tmp_path / "labels.png").exists()
    outcome = run_cli("annotate", query, "-m", model, "--unlabeled", "?", "--force")
    assert outcome.code == 2
    assert "--unlabeled was given without --labels-key" in outcome.err
    adata.obs["cell_type"] = tree(n_cells=150, n_genes=40).obs["cell_type"].astype(str).where(np.arange(150) > 50, "?")
    adata.write_h5ad(tmp_path / "some.h5ad")
    known = ("--labels-key", "cell_type", "--unlabeled", "?")
    done = run_ok("train", tmp_path / "some.h5ad", *known, *TINY_ARGUMENTS)
    assert f"next: scvae annotate {tmp_path / 'some.h5ad'} --labels-key cell_type --unlabeled '?'" in done.err
    extreme = ("--label-weight", "1000000", "--learning-rate", "10", "-m", tmp_path / "other.scvae")
    diverged = run_cli("train", tmp_path / "cells.h5ad", "--labels-key", "cell_type", *extreme, *TINY_ARGUMENTS)
    assert diverged.code == 4
    assert "hint: lower --label-weight or --learning-rate" in diverged.err
