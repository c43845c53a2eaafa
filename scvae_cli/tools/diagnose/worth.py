"""Is the VAE worth it here? Beside a mean model, principal components and a linear decoder, on the same cells.

Two questions. How probable are cells that nobody learned from? The mean model and the two decoders give a probability
(a bound, for these); principal components give none. And, counts being thinned, who predicts the molecules set aside?
There each predictor is asked twice: as it is, and with the cell's own counts weighed in as far as the gene's dispersion
says (`latent.denoising`); a latent space is worth what it adds to that.

Shapes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.evaluation.mean_model import MeanModel
from scvae_cli.evaluation.pca_model import PcaModel
from scvae_cli.evaluation.retraining import as_asked, with_linear_decoder
from scvae_cli.evaluation.thinning import Thinned, predicted, thin
from scvae_cli.latent.expected_counts import CELL, STATE
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.tools.score.scoring import bounds
from scvae_cli.training.fit import fit_to_end

VAE, LINEAR, PCA, MEAN, NOTHING = "VAE", "linear decoder", "PCA", "mean model", "no denoising"
# Held-out cells judged at most, and importance samples for each.
MAX_HELDOUT, N_SAMPLES = 1000, 50


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to model the cells.

    Parameters
    ----------
    name
        Which.
    heldout, heldout_behind
        Mean log-probability of a held-out cell, nats (a bound where there is a latent space); how much less than the
        VAE's, with its standard error over cells, NaN of a single one. None for one that gives no probability.
    thinned_state, thinned_cell
        Poisson loss of the counts set aside, nats a cell up to a constant, as predicted and with the cell's own counts
        weighed in; None where there is no such thing.
    thinned_behind
        How much higher the better of its two losses is than the VAE's better one, with the standard error over cells;
        None where nothing could be set aside.
    """

    name: str
    heldout: float | None
    heldout_behind: tuple[float, float] | None
    thinned_state: float | None
    thinned_cell: float | None
    thinned_behind: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Worth:
    """Contenders, the VAE first.

    Parameters
    ----------
    contenders
        Each with its figures; no linear decoder beside a VAE that has one itself.
    n_heldout, n_thinned
        Cells judged; real numbers cannot be thinned, and 0 were.
    n_components
        Principal components that served the prediction best, of those tried: chosen on the counts set aside, which
        favours them.
    """

    contenders: tuple[Contender, ...]
    n_heldout: int
    n_thinned: int
    n_components: int


def worth(model: Model, counts: Counts, *, say: Callable[[str], None] = lambda _: None) -> Worth:
    """Compare.

    Parameters
    ----------
    model
        From a training on these cells (`again.on_some`). What was asked of it is what the other trainings are told, the
        linear decoder's as `--decoder linear` would have it.
    counts
        n cells in the model's genes, with batches if the model has them.
    say
        Told what is being done.

    Raises
    ------
    ScvaeError
        As for a training.
    """
    config = as_asked(model)
    runs = {VAE: config}
    # A model that is linear itself would be trained, and beaten or not, by itself.
    if config.model.decoder != "linear":
        runs[LINEAR] = with_linear_decoder(config)
    models = {VAE: model}
    if LINEAR in runs:
        say("training a linear decoder")
        models[LINEAR] = fit_to_end(counts, runs[LINEAR])
    heldout, n_heldout = _heldout(models, counts, config)
    losses: dict[str, Losses] = {}
    n_thinned = n_components = 0
    if model.of_counts:
        say("training on thinned counts")
        thinned = thin(counts, seed=config.train.seed)
        losses, n_components = _thinned_losses(thinned, runs, model)
        n_thinned = thinned.kept.n_cells
    return Worth(
        contenders=tuple(
            _contender(name, heldout, losses)
            for name in (VAE, LINEAR, PCA, MEAN, NOTHING)
            if name in heldout or name in losses
        ),
        n_heldout=n_heldout,
        n_thinned=n_thinned,
        n_components=n_components,
    )


Losses = tuple[np.ndarray, np.ndarray | None]


def _heldout(models: dict[str, Model], counts: Counts, config: RunConfig) -> tuple[dict[str, np.ndarray], int]:
    """Log-probability of held-out cells under each that gives one."""
    device = models[VAE].device
    out = models[VAE].held_out(counts.cell_names)
    rows = even(np.flatnonzero(out), MAX_HELDOUT)
    judged = counts.cells(rows)
    log_prob = {}
    for name, model in models.items():
        model.vae.to(device)
        log_prob[name] = bounds(model, judged, n_samples=N_SAMPLES, seed=config.train.seed).iwae
    log_prob[MEAN] = MeanModel(counts, np.flatnonzero(~out), config, device).log_prob_n(counts, rows)
    return log_prob, len(rows)


def _thinned_losses(thinned: Thinned, runs: dict[str, RunConfig], model: Model) -> tuple[dict[str, Losses], int]:
    """Poisson losses of every contender, each cell's, and the number of principal components that served best."""
    kept = thinned.kept
    mean = MeanModel(kept, None, runs[VAE], model.device)
    losses: dict[str, Losses] = {NOTHING: (thinned.poisson_loss(_rows(kept)), None)}
    losses[MEAN] = (
        thinned.poisson_loss(mean.expected(kept, of_cell=False)),
        thinned.poisson_loss(mean.expected(kept, of_cell=True)),
    )
    pca = PcaModel(kept)
    of_pca = {c: thinned.poisson_loss(pca.expected(c)) for c in pca.components}
    own_of_pca = {c: thinned.poisson_loss(pca.expected_of_cells(c)) for c in pca.components}
    n_components = min(own_of_pca, key=lambda c: min(own_of_pca[c].mean(), of_pca[c].mean()))
    losses[PCA] = (min(of_pca.values(), key=np.mean), min(own_of_pca.values(), key=np.mean))
    for name, run in runs.items():
        trained = fit_to_end(kept, run)
        trained.vae.to(model.device)
        losses[name] = (
            thinned.poisson_loss(predicted(trained, kept, STATE)),
            thinned.poisson_loss(predicted(trained, kept, CELL)),
        )
    return losses, n_components


def _contender(name: str, heldout: dict[str, np.ndarray], losses: dict[str, Losses]) -> Contender:
    log_prob_n = heldout.get(name)
    state_n, cell_n = losses.get(name, (None, None))
    return Contender(
        name=name,
        heldout=None if log_prob_n is None else float(log_prob_n.mean()),
        heldout_behind=None if log_prob_n is None else _mean_and_error(heldout[VAE] - log_prob_n),
        thinned_state=None if state_n is None else float(state_n.mean()),
        thinned_cell=None if cell_n is None else float(cell_n.mean()),
        thinned_behind=_mean_and_error(_best(losses[name]) - _best(losses[VAE])) if name in losses else None,
    )


def _rows(counts: Counts, size: int = 512) -> Iterator[np.ndarray]:
    return (counts.matrix[start : start + size].toarray() for start in range(0, counts.n_cells, size))


def _best(losses: Losses) -> np.ndarray:
    state_n, cell_n = losses
    return state_n if cell_n is None else min(state_n, cell_n, key=np.mean)


def _mean_and_error(difference_n: np.ndarray) -> tuple[float, float]:
    n = len(difference_n)
    return float(difference_n.mean()), float(difference_n.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
