"""What a sweep found: a row for every run, the value to take, and where the curve is not to be trusted.

Shapes: r runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from scvae_cli.data.slots import Slot, SlotNames

# Standard errors, and nats, by which a curve must go wrong before it is told.
_SURE, _VISIBLE = 2.0, 0.05
# A standard error takes two cells.
MIN_JUDGES = 2


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and what came of it.

    Parameters
    ----------
    beta, n_latent
        What it was trained with.
    rate, distortion
        Mean KL(q(z|x) ‖ N(0, I)) and mean −E_q[log p(x|z)] of held-out cells, nats.
    elbo, bound
        Mean evidence lower bound (at β = 1) and importance-weighted bound of the same cells, nats.
    active_units
        Latent dimensions that say something about the cells.
    loss
        Mean of what judges: Poisson loss of the molecules set aside, or −bound; nats a cell, up to a constant.
    gain
        Share of what the best run predicts better than a mean model does; NaN when held-out cells judge.
    excess, excess_se
        Mean of what it is more than the best run's, and the standard error of that over the cells, paired.
    epochs, seconds
        Length of the training.
    """

    beta: float
    n_latent: int
    rate: float
    distortion: float
    elbo: float
    bound: float
    active_units: int
    loss: float
    gain: float
    excess: float
    excess_se: float
    epochs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Break:
    """Two neighbouring runs between which the curve goes the wrong way.

    Parameters
    ----------
    lower, upper
        Their β.
    what
        "rate", which should fall from the lower to the upper, or "distortion", which should rise.
    by
        How far it went the other way, nats.
    """

    lower: float
    upper: float
    what: str
    by: float


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All runs of a sweep.

    Parameters
    ----------
    varied
        "beta" or "n_latent".
    runs
        By ascending value, r of them.
    best, suggested
        Value of the run with the least loss; and the value to take: of the runs within one standard error of the best,
        or within what another seed would change, the one with the largest β, or the fewest dimensions.
    judge
        "thinning" or "bound".
    kept
        Share of the molecules that the runs were trained on.
    n_cells, n_genes, n_heldout
        Cells and genes of the data that were used; held-out cells behind rate, distortion and bounds.
    counts_source
        Where the counts were read from.
    device
        Where it was trained.
    breaks
        Where a rate–distortion curve does not do what it should.
    """

    varied: str
    runs: tuple[Run, ...]
    best: float
    suggested: float
    judge: str
    kept: float
    n_cells: int
    n_genes: int
    n_heldout: int
    counts_source: str
    device: str
    breaks: tuple[Break, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """What was varied, ascending."""
        return tuple(getattr(run, self.varied) for run in self.runs)

    @property
    def suggested_run(self) -> Run:
        """The run with the suggested value."""
        return self.runs[self.values.index(self.suggested)]

    def column(self, name: str) -> np.ndarray:
        """One field of all runs, shape (r,)."""
        return np.asarray([getattr(run, name) for run in self.runs])

    def warnings(self) -> list[str]:
        """What a user should know before trusting the curve."""
        told = []
        for broken in self.breaks:
            wrong = "rises" if broken.what == "rate" else "falls"
            told.append(
                f"from β = {broken.lower:g} to {broken.upper:g} the {broken.what} {wrong} by {broken.by:.2f} nats, "
                "the wrong way: one of the two has not converged, or at the lower β the model has learned its cells by "
                "heart. Try a larger --patience, or leave the lower β out"
            )
        if self.suggested_run.active_units == 0:
            told.append(
                "no run predicts better than one that knows nothing about the cells: sweep lower β, or check that the "
                "cells differ at all"
            )
        return told

    def at_the_edge(self) -> str | None:
        """Which way to sweep on, "lower" or "higher"; None when the best lies between others, or may be spared."""
        values = self.values
        return {values[0]: "lower", values[-1]: "higher"}.get(self.best) if self.best == self.suggested else None

    def slots(self, names: SlotNames) -> list[Slot]:
        """Where the result goes."""
        facts = {
            name: getattr(self, name)
            for name in ("best", "suggested", "judge", "kept", "n_cells", "n_genes", "n_heldout")
        }
        table = {f.name: self.column(f.name) for f in fields(Run)}
        return [Slot(group="uns", key=names.sweep(self.varied), value=table | facts)]

    def rows(self) -> list[dict[str, float]]:
        """The runs as plain values."""
        return [asdict(run) for run in self.runs]


def compare(loss_rn: np.ndarray, *, prefer_last: bool, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Compare runs cell by cell.

    Parameters
    ----------
    loss_rn
        Losses of r runs on the same n cells, two or more.
    prefer_last
        Which run to take among those no worse than the best by more than one standard error, or by more than the
        noise: the last, or the first.
    noise
        What another seed would change.

    Returns
    -------
    Mean excess over the best run and its standard error, each of shape (r,); the best run and the one to take.
    """
    best = int(np.argmin(loss_rn.mean(1)))
    more_rn = loss_rn - loss_rn[best]
    excess_r = more_rn.mean(1)
    error_r = more_rn.std(1, ddof=1) / np.sqrt(loss_rn.shape[1])
    as_good = np.flatnonzero(excess_r <= np.maximum(error_r, noise))
    return excess_r, error_r, best, int(as_good[-1 if prefer_last else 0])


def find_breaks(beta_r: Sequence[float], rate_rn: np.ndarray, distortion_rn: np.ndarray) -> tuple[Break, ...]:
    """Neighbours between which the rate rises or the distortion falls, by more than two standard errors over the cells.

    Parameters
    ----------
    beta_r
        Ascending.
    rate_rn, distortion_rn
        Of n held-out cells under each run; a single one can show nothing that is sure.
    """
    found: list[Break] = []
    if rate_rn.shape[1] < MIN_JUDGES:
        return ()
    for i in range(len(beta_r) - 1):
        for what, wrong_n in (
            ("rate", rate_rn[i + 1] - rate_rn[i]),
            ("distortion", distortion_rn[i] - distortion_rn[i + 1]),
        ):
            if wrong_n.mean() > _SURE * wrong_n.std(ddof=1) / np.sqrt(len(wrong_n)) and wrong_n.mean() > _VISIBLE:
                found.append(Break(lower=beta_r[i], upper=beta_r[i + 1], what=what, by=float(wrong_n.mean())))
    return tuple(found)
