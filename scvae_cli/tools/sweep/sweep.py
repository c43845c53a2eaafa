"""One training after another with one option varied: what does a price of information buy, or a latent dimension?

A β is a price: as it rises, the rate (what the latent space tells about a cell, mean KL) falls and the distortion (how
badly the cell is explained, −E_q[log p(x|z)]) rises; together they trace the rate–distortion curve of the data (Alemi
et al. 2018, "Fixing a broken ELBO", arXiv:1711.00464). Neither says which price is right. Molecules set aside do: a
model that tells too much about a cell repeats the noise of the molecules it saw, one that tells too little blurs cells
together, and both predict the others worse (`scvae_cli.evaluation.thinning`). The cell's own counts are weighed in with
every prediction: without, a latent space that remembers each cell's own deviations, whatever the price, looks best.

So that one chain of trainings serves both, the curve too is traced on the molecules that were not set aside.

Shapes: n cells, g genes, r runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.data.gene_selection import select_genes
from scvae_cli.device import choose_compute
from scvae_cli.errors import DataError
from scvae_cli.evaluation.mean_model import MeanModel
from scvae_cli.evaluation.thinning import KEPT, Thinned, predicted, thin
from scvae_cli.latent.expected_counts import CELL
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.tools.score.scoring import Bounds, bounds
from scvae_cli.tools.sweep.options import SweepOptions
from scvae_cli.tools.sweep.result import MIN_JUDGES, Run, Sweep, compare, find_breaks
from scvae_cli.training.fit import Finished, FitEvent, fit, last_event
from scvae_cli.training.prepare import refuse_empty, refuse_few, split

# Importance samples, and held-out cells that take part: more would cost more than the trainings of small data.
N_SAMPLES, MAX_HELDOUT = 25, 1000
# Share of the gain over a mean model by which two trainings that differ in their seeds alone differ, as a standard
# deviation: 0.4% to 0.7% on two sets at two β, four seeds each.
SEED_NOISE = 0.005


class Training(NamedTuple):
    """A run of a sweep about to begin: its value, and its place among all, from 1."""

    value: float
    number: int
    of: int


def sweep(
    counts: Counts,
    config: RunConfig,
    options: SweepOptions,
    *,
    follow: Callable[[Training, Iterator[FitEvent]], FitEvent | None] = last_event,
    on_model: Callable[[float, Model], None] = lambda _value, _model: None,
) -> Sweep:
    """Train with every value, and say which to take.

    Runs over β start from each other, the largest β first; runs over numbers of latent dimensions start from nothing.

    Parameters
    ----------
    counts
        All cells and genes.
    config
        Of the trainings, but for what is varied.
    options
        What is varied.
    follow
        Walks through a training's events and returns the last.
    on_model
        Called with each value and its model, as they come.

    Raises
    ------
    DataError, ModelError
        As `fit`; and for a single held-out cell where held-out cells judge.
    """
    counts, genes_chosen = _modelled(counts, config)
    judge = options.judge_of(config.model)
    if judge == "bound":
        _refuse_one_judge(counts, config)
    thinned = thin(counts, seed=config.train.seed) if judge == "thinning" else None
    trained_on = counts if thinned is None else thinned.kept
    values = options.values[::-1] if options.varied == "beta" else options.values
    device = choose_compute(config.compute).device
    judged: dict[float, _Judged] = {}
    model: Model | None = None
    for number, value in enumerate(values, 1):
        start_from = model if options.varied == "beta" else None
        events = fit(trained_on, _config_of(config, options, value), start_from=start_from)
        last = follow(Training(value, number, len(values)), events)
        assert isinstance(last, Finished), "nobody asked the training to stop"
        model = last.model
        model.vae.to(device)
        judged[value] = _judge(model, trained_on, thinned, seed=config.train.seed)
        facts = {"genes_chosen": genes_chosen, "kept_molecules": 1.0 if thinned is None else thinned.share}
        recorded = replace(model.config, data=config.data)
        on_model(value, replace(model, config=recorded, facts=model.facts | facts))
    assert model is not None, "there are two values or more"
    baseline = float("nan")
    if thinned is not None:
        mean = MeanModel(thinned.kept, None, config, device)
        baseline = float(thinned.poisson_loss(mean.expected(thinned.kept, of_cell=True)).mean())
    return _put_together([judged[value] for value in options.values], options, judge, baseline, trained_on, model)


class _Judged(NamedTuple):
    """A finished run: its model's settings and facts, bounds of held-out cells, and the loss that judges, a cell."""

    config: RunConfig
    facts: dict[str, float]
    bounds: Bounds
    loss_n: np.ndarray


def _modelled(counts: Counts, config: RunConfig) -> tuple[Counts, str]:
    """The cells and genes that `fit` would take, chosen once and before thinning, and how they were chosen."""
    drop = config.data.drop_empty
    counts = refuse_few(refuse_empty(counts, drop=drop))
    columns, genes_chosen = select_genes(counts, split(counts, config)[0], config.data)
    return refuse_few(refuse_empty(counts.genes(columns), drop=drop)), genes_chosen


def _refuse_one_judge(counts: Counts, config: RunConfig) -> None:
    """One cell cannot say how sure a difference is, and says so before the trainings rather than after them."""
    if len(split(counts, config)[1]) < MIN_JUDGES:
        raise DataError(
            f"of {counts.n_cells} cells one is held out, which cannot judge a sweep by itself",
            "hold out more of them: --validation-fraction 0.3",
        )


def _config_of(config: RunConfig, options: SweepOptions, value: float) -> RunConfig:
    config = config.of_all_genes()
    if options.varied == "beta":
        return replace(config, train=replace(config.train, beta=value))
    return replace(config, model=replace(config.model, n_latent=int(value)))


def _judge(model: Model, trained_on: Counts, thinned: Thinned | None, *, seed: int) -> _Judged:
    some = even(np.flatnonzero(model.held_out(trained_on.cell_names)), MAX_HELDOUT)
    found = bounds(model, trained_on.cells(some), n_samples=N_SAMPLES, seed=seed)
    loss_n = -found.iwae if thinned is None else thinned.poisson_loss(predicted(model, thinned.kept, CELL))
    return _Judged(model.config, model.facts, found, loss_n)


def _put_together(
    judged: list[_Judged], options: SweepOptions, judge: str, baseline: float, counts: Counts, model: Model
) -> Sweep:
    over_beta = options.varied == "beta"
    loss_rn = np.stack([run.loss_n for run in judged])
    possible = baseline - float(loss_rn.mean(1).min())
    noise = SEED_NOISE * possible if possible > 0 else 0.0
    excess_r, error_r, best, suggested = compare(loss_rn, prefer_last=over_beta, noise=noise)
    rate_rn = np.stack([run.bounds.kl for run in judged])
    # Where not even the best predicts better than a mean model does there is nothing to have a share of.
    gain_r = (baseline - loss_rn.mean(1)) / possible if possible > 0 else np.full(len(judged), np.nan)
    distortion_rn = -np.stack([run.bounds.reconstruction for run in judged])
    runs = tuple(
        Run(
            beta=run.config.train.beta,
            n_latent=run.config.model.n_latent,
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
        for r, run in enumerate(judged)
    )
    return Sweep(
        varied=options.varied,
        runs=runs,
        best=options.values[best],
        suggested=options.values[suggested],
        judge=judge,
        kept=KEPT if judge == "thinning" else 1.0,
        n_cells=counts.n_cells,
        n_genes=counts.n_genes,
        n_heldout=rate_rn.shape[1],
        counts_source=counts.source,
        device=str(model.device),
        breaks=find_breaks(options.values, rate_rn, distortion_rn) if over_beta else (),
    )
