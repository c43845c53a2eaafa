"""Comparison of a VAE with a mean model, PCA and a linear decoder on the same cells.

The mean model gives every gene a fixed mean and dispersion. The linear decoder is part of a second VAE, which is
trained for the comparison.

The models are compared by two quantities. The first quantity is the log-probability of held-out cells, which is exact
for the mean model and a lower bound for the two VAEs; PCA defines no probability. The second quantity is the Poisson
loss of molecules that were withheld from the counts (`scvae_cli.evaluation.thinning`) and are predicted from the other
molecules. Each model makes two predictions of the withheld molecules. The first prediction uses only the cell's state
in the model, and the second prediction also uses the cell's own counts. The weight of the cell's own counts depends on
the dispersion of the gene (`scvae_cli.latent.expected_counts`). One more baseline, "no denoising", predicts the
withheld molecules from the cell's own counts alone. A latent space is useful if its predictions are better than those
of "no denoising".

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.evaluation.mean_model import MeanModel
from scvae_cli.evaluation.pca_model import PcaModel
from scvae_cli.evaluation.retraining import Train, requested_config, train_silently, with_linear_decoder
from scvae_cli.evaluation.thinning import Thinned, predicted, thin
from scvae_cli.latent.expected_counts import CELL, STATE
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.progress import Progress, silent, tracked
from scvae_cli.tools.score.scoring import bounds

VAE, LINEAR, PCA, MEAN, NO_DENOISING = "VAE", "linear decoder", "PCA", "mean model", "no denoising"
# Largest number of held-out cells that are evaluated, and number of importance samples per cell.
MAX_HELDOUT, N_SAMPLES = 1000, 50

# Mean advantage of the VAE over another model, and standard error of this mean over cells (NaN for a single cell).
Advantage = tuple[float, float]
# Poisson losses of every cell, shape (n,): predicted from the state alone, and with the cell's own counts.
Losses = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """One model of the comparison.

    Parameters
    ----------
    heldout_log_prob, vae_advantage_heldout
        Mean log-probability of a held-out cell, nats; and how much higher the mean log-probability is for the VAE. For
        a VAE, `heldout_log_prob` is a lower bound on the log-probability. `heldout_log_prob` and
        `vae_advantage_heldout` are None for a model that defines no probability.
    thinned_loss_state, thinned_loss_cell
        Poisson loss of the withheld counts, nats per cell up to a constant. `thinned_loss_state` is the loss of
        predictions from the cell's state alone, and `thinned_loss_cell` is the loss of predictions that also use the
        cell's own counts. A loss is None if the model makes no prediction of this kind.
    vae_advantage_thinned
        The smaller loss of this model minus the smaller loss of the VAE, nats per cell. `vae_advantage_thinned` is
        positive if the VAE predicts better, and None if no counts were withheld.
    """

    name: str
    heldout_log_prob: float | None
    vae_advantage_heldout: Advantage | None
    thinned_loss_state: float | None
    thinned_loss_cell: float | None
    vae_advantage_thinned: Advantage | None


@dataclass(frozen=True, kw_only=True)
class BaselineComparison:
    """The compared models, the VAE first.

    Parameters
    ----------
    models
        The compared models. A VAE whose own decoder is linear is not compared with a second VAE with a linear decoder.
    n_heldout, n_thinned
        Number of held-out cells that were evaluated, and number of cells from which molecules were withheld.
        `n_thinned` is 0 for real numbers, from which no molecules can be withheld.
    n_components
        Number of principal components with the best prediction. The number of components is chosen on the withheld
        counts themselves, which favors PCA.
    """

    models: tuple[ComparedModel, ...]
    n_heldout: int
    n_thinned: int
    n_components: int

    def values(self) -> dict[str, Any]:
        """Return the comparison as a dictionary. Each array has one value for each model; NaN means a missing value."""

        columns: dict[str, Any] = {"model": np.asarray([model.name for model in self.models], dtype=object)}
        losses = ("thinned_loss_state", "thinned_loss_cell")
        for name in ("heldout_log_prob", "vae_advantage_heldout", *losses, "vae_advantage_thinned"):
            column = [getattr(model, name) for model in self.models]
            if name.startswith("vae_advantage"):
                pairs = np.asarray([pair or (np.nan, np.nan) for pair in column])
                columns |= {name: pairs[:, 0].copy(), f"{name}_error": pairs[:, 1].copy()}
            else:
                columns[name] = np.asarray(column, dtype=np.float64)
        return columns | {name: getattr(self, name) for name in ("n_heldout", "n_thinned", "n_components")}


def compare_with_baselines(
    model: Model, counts: Counts, *, train: Train = train_silently, progress: Progress = silent
) -> BaselineComparison:
    """Compare a VAE with the baselines.

    Parameters
    ----------
    model, counts
        A VAE, and the n cells on which it was trained (`scvae_cli.evaluation.retraining.model_trained_on`), with
        batches if the VAE has batches. All further trainings use the options of the given VAE; the trainings of the VAE
        with a linear decoder also use `--decoder linear`.

    Raises
    ------
    ScvaeError
        If a training fails. The errors are those of `scvae_cli.training.fit.fit`.
    """
    config = requested_config(model)
    runs, models = {VAE: config}, {VAE: model}
    # If the VAE has a linear decoder, a second training with a linear decoder would give the same model.
    if config.model.decoder != "linear":
        runs[LINEAR] = with_linear_decoder(config)
        models[LINEAR] = train("Training with a linear decoder", counts, runs[LINEAR])
    heldout, n_heldout = _heldout(models, counts, config, progress)
    losses: dict[str, Losses] = {}
    n_thinned = n_components = 0
    if model.of_counts:
        thinned = thin(counts, seed=config.train.seed)
        losses, n_components = _thinned_losses(thinned, runs, model, train, progress)
        n_thinned = thinned.kept.n_cells
    names = [name for name in (VAE, LINEAR, PCA, MEAN, NO_DENOISING) if name in heldout or name in losses]
    compared = tuple(_compared(name, heldout, losses) for name in names)
    return BaselineComparison(models=compared, n_heldout=n_heldout, n_thinned=n_thinned, n_components=n_components)


def _heldout(
    models: dict[str, Model], counts: Counts, config: RunConfig, progress: Progress
) -> tuple[dict[str, np.ndarray], int]:
    """Return the log-probability of each held-out cell under every probabilistic model, and the number of cells."""
    device = models[VAE].device
    out = models[VAE].held_out(counts.cell_names)
    rows = even(np.flatnonzero(out), MAX_HELDOUT)
    evaluated = counts.cells(rows)
    log_prob = {}
    for name, model in tracked(list(models.items()), progress, "Evaluating held-out cells", len(models)):
        model.vae.to(device)
        log_prob[name] = bounds(model, evaluated, n_samples=N_SAMPLES, seed=config.train.seed).iwae
    log_prob[MEAN] = MeanModel(counts, np.flatnonzero(~out), config, device).log_prob_n(counts, rows)
    return log_prob, len(rows)


def _thinned_losses(
    thinned: Thinned, runs: dict[str, RunConfig], model: Model, train: Train, progress: Progress
) -> tuple[dict[str, Losses], int]:
    """Return the Poisson losses of the withheld counts for every model, and the best number of principal components."""
    kept = thinned.kept
    mean = MeanModel(kept, None, runs[VAE], model.device)
    rows = (kept.matrix[start : start + 512].toarray() for start in range(0, kept.n_cells, 512))
    losses: dict[str, Losses] = {NO_DENOISING: (thinned.poisson_loss(rows), None)}
    state_n, cell_n = (thinned.poisson_loss(mean.expected(kept, of_cell=of_cell)) for of_cell in (False, True))
    losses[MEAN] = state_n, cell_n
    pca = PcaModel(kept)
    pca_state, pca_cell = {}, {}
    for c in tracked(pca.components, progress, "Evaluating PCA", len(pca.components)):
        pca_state[c] = thinned.poisson_loss(pca.expected(c))
        pca_cell[c] = thinned.poisson_loss(pca.expected_of_cells(c))
    n_components = min(pca_cell, key=lambda c: min(pca_cell[c].mean(), pca_state[c].mean()))
    losses[PCA] = (min(pca_state.values(), key=np.mean), min(pca_cell.values(), key=np.mean))
    for name, run in runs.items():
        trained = train(f"Training on thinned counts ({name})", kept, run)
        trained.vae.to(model.device)
        state_n, cell_n = (thinned.poisson_loss(predicted(trained, kept, estimate)) for estimate in (STATE, CELL))
        losses[name] = state_n, cell_n
    return losses, n_components


def _compared(name: str, heldout: dict[str, np.ndarray], losses: dict[str, Losses]) -> ComparedModel:
    log_prob_n = heldout.get(name)
    state_n, cell_n = losses.get(name, (None, None))
    return ComparedModel(
        name=name,
        heldout_log_prob=None if log_prob_n is None else float(log_prob_n.mean()),
        vae_advantage_heldout=None if log_prob_n is None else _mean_and_error(heldout[VAE] - log_prob_n),
        thinned_loss_state=None if state_n is None else float(state_n.mean()),
        thinned_loss_cell=None if cell_n is None else float(cell_n.mean()),
        vae_advantage_thinned=_mean_and_error(_best(losses[name]) - _best(losses[VAE])) if name in losses else None,
    )


def _best(losses: Losses) -> np.ndarray:
    state_n, cell_n = losses
    return state_n if cell_n is None else min(state_n, cell_n, key=np.mean)


def _mean_and_error(difference_n: np.ndarray) -> Advantage:
    n = len(difference_n)
    return float(difference_n.mean()), float(difference_n.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
