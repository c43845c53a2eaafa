"""Train models with different β, or different numbers of latent dimensions, and compare the models.

The rate is the mean KL: the information that the latent space carries about a cell. The distortion is the error of the
reconstruction, −E_q[log p(x|z)]. As β increases, the rate decreases and the distortion increases. Plotted against each
other, rate and distortion trace the rate–distortion curve of the data (Alemi et al. 2018, "Fixing a broken ELBO",
arXiv:1711.00464). The rate–distortion curve does not show which β to use, but the prediction of withheld molecules does
(`scvae_cli.evaluation.thinning`). If the rate is too high, a model reproduces the noise of the training molecules,
which does not predict the withheld molecules. If the rate is too low, a model averages over different cells. Every
prediction combines the latent position of a cell with the cell's own counts. Without the cell's own counts, the
comparison would prefer a latent space that memorizes the noise of every cell.

The models are trained without the withheld molecules, so the rate–distortion curve does not describe all molecules.

Letters in array shapes: n cells, g genes, r runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.data.gene_names import GeneNames
from scvae_cli.data.gene_selection import select_genes
from scvae_cli.device import choose_compute
from scvae_cli.errors import DataError
from scvae_cli.evaluation.mean_model import MeanModel
from scvae_cli.evaluation.thinning import KEPT, Thinned, predicted, thin
from scvae_cli.latent.expected_counts import CELL
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.model.network import sizes
from scvae_cli.tools.score.scoring import Bounds, bounds
from scvae_cli.tools.sweep.options import SweepOptions
from scvae_cli.tools.sweep.result import MIN_CELLS, Run, Sweep, compare, find_reversals
from scvae_cli.training.fit import Finished, FitEvent, Prepared, fit, last_event
from scvae_cli.training.prepare import refuse_empty, refuse_few, split
from scvae_cli.training.recipe import settle

# Number of importance samples, and largest number of held-out cells that are evaluated. With larger numbers, the
# evaluation of small data would take longer than the trainings.
N_SAMPLES, MAX_HELDOUT = 25, 1000
# Standard deviation of the loss between trainings with different random seeds, as a fraction of the advantage over a
# mean model. The fraction was 0.4% to 0.7% on two data sets at two values of β, with four seeds each.
SEED_NOISE = 0.005


class Training(NamedTuple):
    """A training that is about to start: value of the varied option, number of the run (from 1), and number of runs."""

    value: float
    number: int
    of: int


def sweep(
    counts: Counts,
    config: RunConfig,
    options: SweepOptions,
    *,
    names: GeneNames | None = None,
    follow: Callable[[Training, Iterator[FitEvent]], FitEvent | None] = last_event,
    on_model: Callable[[float, Model], None] = lambda _value, _model: None,
) -> Sweep:
    """Train a model with every value of the varied option, and suggest one of the values.

    If β is varied, the model with the largest β is trained first, and each later training starts from the weights of
    the previous model. If the number of latent dimensions is varied, every training starts from random weights.

    Parameters
    ----------
    counts, config
        Counts of all cells and genes, and the options of the trainings; the value of the varied option is replaced.
    names
        Gene names that `--genes @FILE` may use; None for the gene names of the counts.
    follow
        Function that runs a training to its end by reading its events, and returns the last event.
    on_model
        Function that is called after each training with the value and the trained model.

    Raises
    ------
    DataError, ModelError
        The errors of `fit`; and a DataError if the criterion is the bound and only one cell is held out.
    """
    # The cells and genes that `fit` would use are selected once, before thinning.
    counts = refuse_few(refuse_empty(counts, drop=config.data.drop_empty))
    columns, genes_chosen = select_genes(counts, split(counts, config)[0], config.data, names=names)
    counts = refuse_few(refuse_empty(counts.genes(columns), drop=config.data.drop_empty))
    criterion = options.judge_of(config.model)
    if criterion == "bound" and len(split(counts, config)[1]) < MIN_CELLS:
        raise DataError(
            f"of {counts.n_cells} cells only one is held out, which is too few to compare runs",
            "hold out a larger fraction, such as --validation-fraction 0.3",
        )
    thinned = thin(counts, seed=config.train.seed) if criterion == "thinning" else None
    trained_on = counts if thinned is None else thinned.kept
    values = options.values[::-1] if options.varied == "beta" else options.values
    device = choose_compute(config.compute).device
    evaluated: dict[float, _Evaluated] = {}
    model: Model | None = None
    for number, value in enumerate(values, 1):
        start_from = model if options.varied == "beta" else None
        # The training receives only the chosen genes, so it would record that all genes were chosen.
        events = (
            replace(event, genes_chosen=genes_chosen) if isinstance(event, Prepared) else event
            for event in fit(trained_on, _config_of(config, options, value), start_from=start_from)
        )
        last = follow(Training(value, number, len(values)), events)
        assert isinstance(last, Finished), "nobody asked the training to stop"
        model = last.model
        model.vae.to(device)
        evaluated[value] = _evaluate(model, trained_on, thinned, seed=config.train.seed)
        facts = {"genes_chosen": genes_chosen, "kept_molecules": 1.0 if thinned is None else thinned.share}
        recorded = replace(model.config, data=config.data)
        on_model(value, replace(model, config=recorded, facts=model.facts | facts))
    baseline = float("nan")
    if thinned is not None:
        mean = MeanModel(thinned.kept, None, config, device)
        baseline = float(thinned.poisson_loss(mean.expected(thinned.kept, of_cell=True)).mean())
    assert model is not None, "there are two values or more"
    runs = [evaluated[value] for value in options.values]
    return _put_together(runs, options, criterion, baseline, trained_on, str(model.device))


class _Evaluated(NamedTuple):
    """The evaluation of a trained model, with the loss of each held-out cell."""

    config: RunConfig
    facts: dict[str, float]
    bounds: Bounds
    loss_n: np.ndarray


def _config_of(config: RunConfig, options: SweepOptions, value: float) -> RunConfig:
    config = config.of_all_genes()
    if options.varied == "beta":
        return replace(config, train=replace(config.train, beta=value))
    return replace(config, model=replace(config.model, n_latent=int(value)))


def _evaluate(model: Model, trained_on: Counts, thinned: Thinned | None, *, seed: int) -> _Evaluated:
    some = even(np.flatnonzero(model.held_out(trained_on.cell_names)), MAX_HELDOUT)
    found = bounds(model, trained_on.cells(some), n_samples=N_SAMPLES, seed=seed)
    loss_n = -found.iwae if thinned is None else thinned.poisson_loss(predicted(model, thinned.kept, CELL))
    return _Evaluated(model.config, model.facts, found, loss_n)


def _put_together(
    evaluated: list[_Evaluated], options: SweepOptions, criterion: str, baseline: float, counts: Counts, device: str
) -> Sweep:
    over_beta = options.varied == "beta"
    loss_rn = np.stack([run.loss_n for run in evaluated])
    possible = baseline - float(loss_rn.mean(1).min())
    noise = SEED_NOISE * possible if possible > 0 else 0.0
    default = _default(options, evaluated[0])
    usual = options.values.index(default) if default in options.values else None
    excess_r, error_r, best, suggested = compare(loss_rn, prefer_last=over_beta, noise=noise, default=usual)
    rate_rn = np.stack([run.bounds.kl for run in evaluated])
    # If no run predicts better than a mean model, the gain is not defined.
    gain_r = (baseline - loss_rn.mean(1)) / possible if possible > 0 else np.full(len(evaluated), np.nan)
    distortion_rn = -np.stack([run.bounds.reconstruction for run in evaluated])
    runs = tuple(
        Run(
            beta=run.config.train.beta,
            n_latent=sizes(run.config.model)[0],
            rate=float(rate_rn[r].mean()),
            distortion=float(distortion_rn[r].mean()),
            elbo=-float(rate_rn[r].mean() + distortion_rn[r].mean()),
            bound=float(run.bounds.iwae.mean()),
            active_units=int(run.facts["active_units"]),
            loss=float(loss_rn[r].mean()),
            gain=float(gain_r[r]),
            excess=float(excess_r[r]),
            excess_se=float(error_r[r]),
            epochs=int(run.facts["epochs"]),
            seconds=float(run.facts["seconds"]),
        )
        for r, run in enumerate(evaluated)
    )
    return Sweep(
        varied=options.varied,
        runs=runs,
        best=options.values[best],
        suggested=options.values[suggested],
        default=default,
        criterion=criterion,
        kept_molecules=KEPT if criterion == "thinning" else 1.0,
        n_cells=counts.n_cells,
        n_genes=counts.n_genes,
        n_heldout=rate_rn.shape[1],
        counts_source=counts.source,
        device=device,
        reversals=find_reversals(options.values, rate_rn, distortion_rn) if over_beta else (),
    )


def _default(options: SweepOptions, run: _Evaluated) -> float:
    """Return the default of the varied option, which may depend on the number of training cells."""
    if options.varied == "beta":
        return RunConfig().train.beta
    unset = replace(run.config, model=replace(run.config.model, n_latent=None))
    return float(sizes(settle(unset, int(run.facts["n_training"])).model)[0])
