"""Trainings are repeatable, can be resumed, end after a limited number of epochs, and report correct numbers."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from simulated import TINY, counts_of, tiny_config, tree

import scvae_cli as scvae
from scvae_cli.config import ModelConfig, RunConfig, TrainConfig
from scvae_cli.data.minibatches import CellTable
from scvae_cli.errors import DataError, ModelError
from scvae_cli.model.network import CountOutput
from scvae_cli.training import loop
from scvae_cli.training.fit import Finished, Prepared, Stopped, fit
from scvae_cli.training.loop import EpochReport, Rollback
from scvae_cli.training.prepare import Conditions, split, started
from scvae_cli.training.recipe import settle
from scvae_cli.training.schedule import Schedule


@pytest.fixture(scope="module")
def counts():
    return counts_of(tree())


def run(counts, config, **options):
    events = list(fit(counts, config, **options))
    assert isinstance(events[-1], Finished)
    return events, events[-1].model


@pytest.fixture(scope="module")
def uninterrupted(counts):
    """A model of a training without interruption."""
    return run(counts, tiny_config())[1]


@pytest.fixture(scope="module")
def trained_until_less_dropout(counts):
    """Return the events and the model of a training whose dropout decreases at the end."""
    return run(counts, tiny_config(max_epochs=200, patience=1))


def same_weights(a, b):
    ours, theirs = a.vae.state_dict(), b.vae.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_same_seed_gives_the_same_weights(counts):
    _, first = run(counts, tiny_config(seed=7))
    torch.rand(3)  # the caller's random state does not matter
    _, second = run(counts, tiny_config(seed=7))
    _, other = run(counts, tiny_config(seed=8))
    assert same_weights(first, second)
    assert not same_weights(first, other)


def test_training_with_two_threads_and_batches_is_reproducible():
    """The network is so wide that torch divides the work among its threads."""
    adata = tree(n_batches=2, n_cells=300, n_genes=2000)
    config = tiny_config(threads=2, batch_size=128, max_epochs=3, n_hidden=128, batch_key="batch", genes="all")
    first, second = (run(counts_of(adata, "batch"), config)[1] for _ in range(2))
    assert same_weights(first, second)


def test_training_does_not_change_the_random_state_of_the_caller(counts):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    run(counts, tiny_config(max_epochs=2))
    assert torch.equal(torch.rand(2), expected)


def test_new_training_keeps_the_saved_state_of_an_interrupted_one_at_first(counts, tmp_path):
    """A user who forgets --resume can still stop the new training and resume the interrupted training."""
    folder = tmp_path / "m.scvae"
    list(fit(counts, tiny_config(), model_folder=folder, stop_requested=lambda: True))
    saved_state = tmp_path / ".m.scvae.partial"
    before = saved_state.read_bytes()
    events = fit(counts, tiny_config(), model_folder=folder)
    while not isinstance(next(events), EpochReport):
        pass
    assert saved_state.read_bytes() == before


@pytest.mark.parametrize("stop_after", [1, 5, 11])
def test_resumed_training_equals_an_uninterrupted_one(counts, uninterrupted, tmp_path, stop_after):
    calls = iter(range(1, 100))
    folder = tmp_path / "m.scvae"
    events = list(fit(counts, tiny_config(), model_folder=folder, stop_requested=lambda: next(calls) == stop_after))
    assert events[-1] == Stopped(epoch=stop_after)
    assert not folder.exists()
    events, resumed = run(counts, tiny_config(), model_folder=folder, resume=True)
    assert events[0].resumed_epoch == stop_after
    assert same_weights(uninterrupted, resumed)
    rows = [line.rsplit(",", 1)[0].split(",")[:7] for line in resumed.history.splitlines()]
    assert rows == [line.rsplit(",", 1)[0].split(",")[:7] for line in uninterrupted.history.splitlines()]


@pytest.mark.parametrize("later", [0, 1])
def test_training_interrupted_at_the_change_of_dropout_is_resumed_exactly(
    counts, trained_until_less_dropout, tmp_path, later
):
    config = tiny_config(max_epochs=200, patience=1)
    events, uninterrupted = trained_until_less_dropout
    stop_after = eased_after(events) + later
    folder = tmp_path / "m.scvae"
    reports = iter(range(1, 100))
    list(fit(counts, config, model_folder=folder, stop_requested=lambda: next(reports) == stop_after))
    assert same_weights(uninterrupted, run(counts, config, model_folder=folder, resume=True)[1])


def eased_after(events):
    """Return the number of epochs after which the learning rate falls to less than half within one epoch."""
    rates = [event.learning_rate for event in events if isinstance(event, EpochReport)]
    (epoch,) = (i for i in range(1, len(rates)) if rates[i] < rates[i - 1] / 2)
    return epoch


def test_dropout_is_lowered_from_the_best_weights(counts, monkeypatch):
    seen = []

    def ease(trainer):
        original(trainer)
        best = all(torch.equal(t, trainer.best_weights[name]) for name, t in trainer.vae.state_dict().items())
        seen.append((best, trainer.vae.encoder, trainer.vae.decoder))

    original = loop.Trainer._ease
    monkeypatch.setattr(loop.Trainer, "_ease", ease)
    _, model = run(counts, tiny_config(max_epochs=200, patience=1, eased_dropout=0.5))
    ((on_best_weights, encoder, decoder),) = seen
    assert on_best_weights
    assert [norm.dropout for _, norm in encoder.hidden.pairs()] == [TINY["encoder_dropout"] / 2]
    assert decoder.first_norm.dropout == TINY["decoder_dropout"] / 2
    # The recorded options equal the requested options.
    assert model.config.model.encoder_dropout == TINY["encoder_dropout"]
    seen.clear()
    run(counts, tiny_config(max_epochs=200, patience=1, eased_dropout=1.0))
    assert not seen


def test_resuming_another_training_is_refused(counts, tmp_path):
    folder = tmp_path / "m.scvae"
    with pytest.raises(ModelError, match="no interrupted training"):
        list(fit(counts, tiny_config(), model_folder=folder, resume=True))
    list(fit(counts, tiny_config(), model_folder=folder, stop_requested=lambda: True))
    with pytest.raises(ModelError, match="other data or other options"):
        list(fit(counts, tiny_config(seed=3), model_folder=folder, resume=True))
    with pytest.raises(ModelError, match="other data or other options"):
        list(fit(counts.cells(np.arange(300)), tiny_config(), model_folder=folder, resume=True))
    state = folder.parent / f".{folder.name}.partial"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match="damaged"):
        list(fit(counts, tiny_config(), model_folder=folder, resume=True))


def test_kept_weights_are_the_best_after_the_warm_up(counts):
    events, model = run(counts, tiny_config(max_epochs=30, patience=3))
    reports = [event for event in events if isinstance(event, EpochReport)]
    warm = [report for report in reports if report.kl_weight == 1.0]
    best = min(warm, key=lambda report: report.heldout_loss)
    assert model.facts["best_epoch"] == best.epoch
    assert model.facts["heldout_elbo"] == pytest.approx(best.heldout_elbo, rel=1e-6)


def planned(steps_per_epoch, **options):
    options = {"learning_rate": 8e-3, "eased_dropout": 1.0} | options
    return Schedule.plan(TrainConfig(**options), steps_per_epoch)


@pytest.mark.parametrize("n_epochs", [1, 2, 3, 10, 200])
@pytest.mark.parametrize("steps_per_epoch", [1, 7, 500])
def test_beta_is_reached_and_max_epochs_is_kept(n_epochs, steps_per_epoch):
    schedule = planned(steps_per_epoch, max_epochs=n_epochs, beta=2.5)
    weights, rates = [], []
    while not schedule.done:
        for _ in range(steps_per_epoch):
            weights.append(schedule.kl_weight())
            rates.append(schedule.learning_rate())
            schedule.step += 1
        schedule.end_epoch(heldout_loss=100.0 / (schedule.epoch + 1))
    assert schedule.epoch == n_epochs  # the loss keeps improving, so only the limit ends the training
    assert weights == sorted(weights)
    if len(weights) > 3:
        assert weights[-1] == 2.5
    assert all(0 < rate < 1.01 * schedule.peak_rate for rate in rates)
    if n_epochs > 3:
        assert rates[-1] < 0.5 * schedule.peak_rate  # falls towards the end


def test_training_ends_after_a_plateau():
    schedule = planned(50)
    while not schedule.done:
        schedule.step += 50
        schedule.end_epoch(heldout_loss=max(1.0, 20.0 - schedule.epoch))
    assert schedule.best_epoch == 20
    assert schedule.epoch < 100


def test_dropout_is_lowered_once_after_the_patience():
    schedule = planned(50, eased_dropout=0.7, patience=5)
    eased = []
    while not schedule.done:
        before = schedule.learning_rate()
        if schedule.due_to_ease:
            schedule.ease()
            eased.append((schedule.epoch, schedule.learning_rate() / before))
        schedule.step += 50
        schedule.end_epoch(heldout_loss=max(1.0, 20.0 - schedule.epoch))
    ((epoch, share),) = eased
    assert epoch == schedule.noticed_epoch + 5
    assert schedule.epoch == epoch + 5
    assert 0 < share < 1


def test_training_with_flat_has_a_longer_patience():
    """A patience that the user gives is not changed by --flat."""

    def patience(**options):
        return planned(20, **options).patience

    assert patience(flat=1.0) > patience()
    assert patience(flat=1.0, patience=4) == patience(patience=4) == 4


def test_many_cells_reduce_the_default_number_of_epochs():
    assert planned(8000).max_epochs < 20
    assert planned(10).max_epochs > 100


def test_loss_that_is_not_finite_causes_a_rollback_and_names_the_cells(counts, monkeypatch):
    """Once, in the third epoch, a loss is not finite, and neither is the likelihood of one cell."""
    bad_cell = 5
    seen = []
    original, original_nll = loop.Trainer._epoch, CountOutput.nll_n

    def broken(self):
        for rows, loss in original(self):
            if self.schedule.epoch == 2 and bad_cell in rows and not seen:
                seen.append(rows)
                loss = math.nan
            yield rows, loss

    def broken_nll(self, cells):
        return torch.where(torch.as_tensor(seen[0] == bad_cell), torch.nan, original_nll(self, cells))

    monkeypatch.setattr(loop.Trainer, "_epoch", broken)
    monkeypatch.setattr(CountOutput, "nll_n", broken_nll)
    config = tiny_config()
    events, model = run(counts, config)
    (rollback,) = [event for event in events if isinstance(event, Rollback)]
    training, _ = split(counts, config)
    assert rollback.cell_names == (counts.cell_names[training[bad_cell]],)
    assert rollback.learning_rate < settle(config, len(training)).train.learning_rate
    assert model.facts["rollbacks"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in model.vae.state_dict().values())
    assert [e.epoch for e in events if isinstance(e, EpochReport)] == list(range(1, model.facts["epochs"] + 1))


def test_diverging_training_ends_with_one_line(counts, monkeypatch):
    monkeypatch.setattr(loop.Trainer, "evaluate", lambda self: (math.nan, 0.0))
    with pytest.raises(ModelError, match="diverged") as caught:
        list(fit(counts, tiny_config()))
    assert "--learning-rate" in caught.value.hint


def test_unset_options_depend_on_the_number_of_cells_and_given_options_stay():
    few, many = (settle(RunConfig(), n) for n in (500, 5000))
    assert few.model.decoder_dropout > many.model.decoder_dropout > 0
    assert few.train.batch_size < many.train.batch_size
    assert few.train.learning_rate < many.train.learning_rate
    shape = ModelConfig(n_latent=7, n_hidden=9, encoder_dropout=0.2, decoder_dropout=0.0)
    train = TrainConfig(batch_size=7, learning_rate=1e-4, weight_decay=0.0, eased_dropout=0.5, mix_batches=0.0)
    given = RunConfig(model=shape, train=train)
    assert settle(given, 500) == given
    assert settle(few, 500) == few


def test_learning_rate_depends_on_the_number_of_cells_of_a_step():
    larger, all_cells = (settle(RunConfig(train=TrainConfig(batch_size=size)), 630).train for size in (4096, 630))
    assert larger.learning_rate == all_cells.learning_rate
    few = settle(RunConfig(), 20).train
    assert few.learning_rate == settle(RunConfig(), 500).train.learning_rate


def test_dropout_and_weight_decay_are_larger_for_fewer_cells():
    shapes = [settle(RunConfig(), n) for n in (300, 3000, 300_000)]
    for part in ("encoder_dropout", "decoder_dropout"):
        assert [getattr(shape.model, part) for shape in shapes] == sorted(
            (getattr(shape.model, part) for shape in shapes), reverse=True
        )
    assert shapes[0].train.weight_decay > shapes[1].train.weight_decay > shapes[2].train.weight_decay > 0
    linear = settle(RunConfig(model=ModelConfig(decoder="linear")), 300)
    assert linear.model.decoder_dropout == 0
    assert linear.train.weight_decay < shapes[0].train.weight_decay


def test_encoder_input_is_centered_on_the_training_cells(counts):
    config = tiny_config()
    training, _ = split(counts, config)
    vae = started(config, counts, training, Conditions.of(counts, training))
    x_ng = counts.matrix[training].toarray().astype(np.float64)
    library_n = x_ng.sum(1, keepdims=True)
    log_ng = np.log1p(x_ng * np.median(library_n) / library_n)
    np.testing.assert_allclose(vae.encoder.centre_g.numpy(), log_ng.mean(0), rtol=1e-5, atol=1e-7)
    cells = CellTable(counts.matrix, None, torch.device("cpu"), cells=training).take(np.arange(len(training)))
    seen_ng = vae.eval().encoder.seen(cells, vae.reference_library)
    np.testing.assert_allclose(seen_ng.numpy(), log_ng - log_ng.mean(0), atol=1e-4)


def test_huge_learning_rate_gives_a_finite_elbo(counts):
    _, model = run(counts, tiny_config(learning_rate=5.0))
    assert math.isfinite(model.facts["heldout_elbo"])


def test_heldout_cells_do_not_change_the_weights(counts):
    """The weights after a given number of epochs do not depend on the held-out cells."""
    config = tiny_config(max_epochs=1, genes="all")
    _, heldout = split(counts, config)
    matrix = counts.matrix.tolil(copy=True)
    matrix[heldout] = matrix[heldout[::-1]]
    changed = dataclasses.replace(counts, matrix=matrix.tocsr())
    last_weights = []
    for data in (counts, changed):
        _, model = run(data, config)
        last_weights.append(model)
    assert same_weights(*last_weights)


def test_collapse_is_reported_as_zero_active_units(counts):
    _, model = run(counts, tiny_config(beta=1e4))
    assert model.facts["active_units"] == 0
    _, model = run(counts, tiny_config(max_epochs=40, beta=0.5))
    assert model.facts["active_units"] > 0


def test_all_likelihoods_train_with_batches():
    adata = tree(n_batches=2)
    for likelihood in ("zinb", "nb", "poisson"):
        _, model = run(counts_of(adata, "batch"), tiny_config(likelihood=likelihood, batch_key="batch"))
        assert model.batches == ("batch_1", "batch_2")
        assert model.vae.batch_share_b.sum() == pytest.approx(1.0)
        assert (model.vae.decoder.head.log_theta_g is None) == (likelihood == "poisson")


@pytest.mark.parametrize("n_cells", [10, 65 + 7, 130])
def test_any_number_of_cells_can_be_divided_into_minibatches(n_cells):
    counts = counts_of(tree(n_cells=n_cells))
    _, model = run(counts, tiny_config(batch_size=64, max_epochs=2))
    assert math.isfinite(model.facts["heldout_elbo"])


def test_too_few_and_empty_cells_are_refused(counts):
    with pytest.raises(DataError, match="too few"):
        list(fit(counts.cells(np.arange(9)), tiny_config()))
    emptied = dataclasses.replace(counts, matrix=counts.matrix.multiply(np.arange(400)[:, None] != 17).tocsr())
    emptied.matrix.eliminate_zeros()
    with pytest.raises(DataError, match=str(counts.cell_names[17])):
        list(fit(emptied, tiny_config()))
    events, _ = run(emptied, tiny_config(drop_empty=True))
    assert isinstance(events[0], Prepared)
    assert events[0].n_dropped == 1


def test_model_is_better_than_the_gene_means():
    """The held-out likelihood is much higher than that of the best model without a latent space."""
    adata = tree(n_cells=800, n_genes=150, depth=800)
    model = scvae.train(adata, **TINY | {"max_epochs": 40, "n_hidden": 64})
    heldout = adata[list(model.heldout_cells)]
    with pytest.warns(scvae.ScvaeWarning, match="posterior collapse"):
        flat = scvae.train(adata, **TINY | {"max_epochs": 40, "n_hidden": 64, "beta": 1e4})
    assert flat.facts["active_units"] == 0
    gain = scvae.score(heldout, model, inplace=False, n_samples=20).iwae
    gain = gain - scvae.score(heldout, flat, inplace=False, n_samples=20).iwae
    assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain))
