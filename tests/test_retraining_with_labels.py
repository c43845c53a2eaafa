"""A model that was trained with labels is compared with models that are trained with the same labels."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from simulated import TINY, tree

import scvae_cli as scvae
from scvae_cli.api import PythonShell
from scvae_cli.data.known_labels import KnownLabels
from scvae_cli.errors import ScvaeWarning
from scvae_cli.evaluation.retraining import requested_config, train_silently, with_learnable_labels
from scvae_cli.session import Session
from scvae_cli.tools.diagnose.options import DIAGNOSE
from scvae_cli.tools.diagnose.training_command import training_options
from scvae_cli.tools.perturb.design import design
from scvae_cli.tools.perturb.validation import retrained_trials
from scvae_cli.training_counts import with_labels_of_training

QUICK = TINY | {"max_epochs": 2, "genes": "all"}
FEW_TRAININGS = {"n_samples": 2, "refine": 1, "n_trainings": 2, "max_cells": 20, "inplace": False}


@functools.cache
def trained():
    """Cells of a tree, of which two thirds have a label, and a model that was trained with the labels."""
    adata = tree(n_cells=150, n_genes=40)
    known_n = np.arange(adata.n_obs) % 3 > 0
    adata.obs["known"] = adata.obs["cell_type"].astype(str).where(known_n, "?")
    return adata, scvae.train(adata, labels_key="known", unlabeled="?", label_weight=30, **QUICK)


def weights_of(model):
    return torch.cat([p.detach().ravel() for p in model.vae.parameters()])


def labeled_counts(adata, model):
    session = Session.open(adata, model, device="cpu")
    return with_labels_of_training(session, session.counts, PythonShell(DIAGNOSE))


@pytest.fixture
def trainings(monkeypatch):
    """Names and numbers of the labels in every training that `diagnose` makes."""
    from scvae_cli.tools.diagnose import question

    noted, fit = [], question.fit

    def noting(counts, config):
        noted.append(None if counts.labels is None else (counts.labels.names, counts.labels.n_labeled))
        return fit(counts, config)

    monkeypatch.setattr(question, "fit", noting)
    return noted


def test_a_repeated_training_gives_the_same_weights():
    adata, model = trained()
    counts = labeled_counts(adata, model)
    again = train_silently("again", counts, requested_config(model))
    assert torch.equal(weights_of(again), weights_of(model))
    without = train_silently("without", dataclasses.replace(counts, labels=None), requested_config(model))
    assert not torch.equal(weights_of(without), weights_of(model))


def test_every_training_of_a_diagnosis_learns_the_labels(trainings):
    adata, model = trained()
    scvae.diagnose(adata, model, **FEW_TRAININGS)
    assert len(trainings) == 4, "a linear decoder, two trainings on thinned counts, and another random seed"
    assert set(trainings) == {(model.labels.names, 100)}


def test_cells_that_all_have_a_label_are_labels_too():
    """The value that marks cells without a label need not occur in other data."""
    adata, model = trained()
    all_labeled = adata[adata.obs["known"] != "?"].copy()
    assert labeled_counts(all_labeled, model).labels.n_labeled == all_labeled.n_obs


def test_data_without_usable_labels_are_one_warning(trainings):
    adata, model = trained()
    bare = adata.copy()
    bare.obs["known"] = "T cell"
    with pytest.warns(ScvaeWarning, match="the further trainings use no labels: .*only the label 'T cell'"):
        assert labeled_counts(bare, model).labels is None
    del bare.obs["known"]
    with pytest.warns(ScvaeWarning, match="the further trainings use no labels: .*no column 'known'"):
        scvae.diagnose(bare, model, **FEW_TRAININGS)
    assert set(trainings) == {None}


def test_labels_are_not_read_if_the_model_did_not_learn_them():
    adata, model = trained()
    unweighted = dataclasses.replace(model.config, train=dataclasses.replace(model.config.train, label_weight=0.0))
    assert labeled_counts(adata, dataclasses.replace(model, config=unweighted)).labels is None
    assert labeled_counts(adata, scvae.train(adata, **QUICK)).labels is None


def test_the_labels_of_left_out_cells_have_no_influence():
    """A retrained model does not depend on the labels of the cells that it will predict, not even on their names."""
    adata, model = trained()
    group_n = np.where(np.arange(adata.n_obs) % 4 < 2, "ape", "bee").astype(object)
    treated_n = np.where(np.arange(adata.n_obs) % 2 > 0, "B", "ctrl").astype(object)
    left_out_n = (group_n == "ape") & (treated_n == "B")
    asked = design("ape", "ctrl", "B", group_n=group_n, label_n=treated_n, perturbation_key="label")

    def retrained(chosen_n, label):
        labels = adata.obs["known"].astype(object).where(~chosen_n, label)
        changed = adata.copy()
        changed.obs["known"] = labels
        (trial,) = retrained_trials(model, labeled_counts(changed, model), [asked])
        return weights_of(trial.predictor.model)

    expected = retrained(left_out_n, "?")
    for label in ("stem", "0 a label of their own"):
        assert torch.equal(retrained(left_out_n, label), expected)
    assert not torch.equal(retrained(~left_out_n & (group_n == "bee"), "stem"), expected)


def test_too_few_labels_are_one_warning_and_a_training_without_labels():
    adata, model = trained()
    counts = labeled_counts(adata, model)
    one_type = counts.cells(counts.labels.code_n == 0)
    with pytest.warns(ScvaeWarning, match="the training uses no labels: .*fewer than two"):
        assert with_learnable_labels(one_type, model.config).labels is None
    labels = KnownLabels(("a", "b"), np.where(np.arange(counts.n_cells) < 2, np.arange(counts.n_cells), -1))
    with pytest.warns(ScvaeWarning, match="the training uses no labels: 2 labeled cells are too few"):
        assert with_learnable_labels(dataclasses.replace(counts, labels=labels), model.config).labels is None


def test_cells_keep_their_labels_if_labels_without_cells_are_left_out():
    labels = KnownLabels(("a", "b", "c", "d"), np.array([3, -1, 1, 3]), np.array([1, 2, 3, 4]))
    found = labels.present()
    assert found.names == ("b", "d")
    assert [found.names[c] if c >= 0 else None for c in found.code_n] == ["d", None, "b", "d"]
    np.testing.assert_array_equal(found.values, [2, 4])


def test_a_suggested_training_names_the_weight_of_labels_only_if_the_user_chose_it():
    adata, model = trained()
    assert training_options(model)["label_weight"] == 30
    automatic = scvae.train(adata, labels_key="known", unlabeled="?", **QUICK)
    assert training_options(automatic)["labels_key"] == "known"
    assert "label_weight" not in training_options(automatic)
