"""The result of a sweep: one row per run, the suggested value, and where the rate–distortion curve is unreliable.

Letters in array shapes: r runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames

# With larger β, the rate should not increase, and the distortion should not decrease. A change in the wrong direction
# is reported if it exceeds both this number of standard errors and this number of nats.
_SIGNIFICANT, _RELEVANT = 2.0, 0.05
# A standard error is computed from at least two cells.
MIN_CELLS = 2
# Names of the varied options in figures and texts.
NAMES = {"beta": "β", "n_latent": "latent dimensions"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, and the evaluation of the trained model.

    Parameters
    ----------
    rate, distortion
        Mean KL(q(z|x) ‖ N(0, I)) and mean −E_q[log p(x|z)] of held-out cells, nats.
    elbo, bound
        Mean evidence lower bound (at β = 1) and mean importance-weighted bound of the held-out cells, nats.
    loss
        Mean of the criterion by which runs are compared, nats per cell, up to a constant: the Poisson loss of the
        withheld molecules, or the importance-weighted bound with the opposite sign.
    gain
        Difference between the loss of a mean model and `loss`, as a fraction of this difference for the best run. The
        mean model gives every gene a fixed mean and dispersion. The gain is NaN if the criterion is the bound, or if no
        run predicts better than the mean model.
    excess, excess_se
        Mean difference between the losses of this run and of the best run, and the standard error of this difference,
        paired by cell.
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


class Reversal(NamedTuple):
    """Two neighboring values of β between which the rate–distortion curve changes in the wrong direction.

    `lower` and `upper` are the two values of β. `what` is the quantity that changes in the wrong direction: the "rate",
    which increases, or the "distortion", which decreases. `by` is the size of this change, in nats.
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
    varied, runs
        Name of the varied option, "beta" or "n_latent"; and the r runs, in ascending order of the value.
    best, suggested
        Value of the run with the smallest loss; and the suggested value. A run is as good as the best run if its loss
        is larger by at most one standard error or by at most the variation between random seeds. The default is
        suggested if its run is as good as the best run. Otherwise, the suggestion is the largest β, or the smallest
        number of dimensions, whose run is as good as the best run.
    default
        The default of the varied option for the number of training cells.
    criterion
        Criterion by which runs are compared: "thinning" (prediction of withheld molecules) or "bound"
        (importance-weighted bound of held-out cells).
    kept_molecules
        Fraction of the molecules that the runs were trained on.
    n_cells, n_genes, n_heldout
        Number of cells and of genes, and number of held-out cells on which rate, distortion and bounds were evaluated.
    counts_source, device
        Matrix from which the counts were read, and device of the trainings.
    reversals
        Neighboring values of β between which the rate–distortion curve is not monotonic.
    """

    __repr__ = brief

    varied: str
    runs: tuple[Run, ...]
    best: float
    suggested: float
    default: float
    criterion: str
    kept_molecules: float
    n_cells: int
    n_genes: int
    n_heldout: int
    counts_source: str
    device: str
    reversals: tuple[Reversal, ...]

    @property
    def values(self) -> tuple[float, ...]:
        """The values of the varied option, ascending."""
        return tuple(getattr(run, self.varied) for run in self.runs)

    @property
    def suggested_run(self) -> Run:
        """The run with the suggested value."""
        return self.runs[self.values.index(self.suggested)]

    def column(self, name: str) -> np.ndarray:
        """Return the field `name` of every run, shape (r,)."""
        return np.asarray([getattr(run, name) for run in self.runs])

    def warnings(self) -> list[str]:
        """List reasons to doubt the rate–distortion curve or the suggested run."""
        messages = []
        for lower, upper, what, by in self.reversals:
            change = "increases" if what == "rate" else "decreases"
            messages.append(
                f"from β = {lower:g} to {upper:g} the {what} {change} by {by:.2f} nats, which is the wrong direction: "
                "one of the two trainings has not converged, or the model with the lower β overfits. Try a larger "
                "--patience, or leave out the lower β"
            )
        if self.suggested_run.active_units == 0:
            messages.append(
                "the suggested run has no active latent dimension (posterior collapse), and no run predicts better: "
                "sweep lower values of β, or check that the cells differ"
            )
        return messages

    def at_the_edge(self) -> str | None:
        """Return "lower" if the lowest value of the sweep is best, and "higher" if the highest value is best.

        The result is None if the best value lies between the lowest and the highest. The result is also None if the
        best value is not the suggested value.
        """
        values = self.values
        return {values[0]: "lower", values[-1]: "higher"}.get(self.best) if self.best == self.suggested else None

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the data to which the result is written."""
        facts = ("best", "suggested", "criterion", "kept_molecules", "n_cells", "n_genes", "n_heldout")
        table = {f.name: self.column(f.name) for f in fields(Run)} | {name: getattr(self, name) for name in facts}
        return [Slot(group="uns", key=names.sweep(self.varied), value=table)]


def compare(
    loss_rn: np.ndarray, *, prefer_last: bool, noise: float = 0.0, default: int | None = None
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Compare the losses of runs, paired by cell.

    Parameters
    ----------
    loss_rn
        Losses of r runs on the same n cells; n is 2 or more.
    prefer_last
        Whether the last run (True) or the first run (False) is selected among the runs that are as good as the best
        run. A run is as good as the best run if its excess loss over the best run is at most one standard error, or at
        most `noise`.
    noise
        Variation of the loss between random seeds.
    default
        Index of the run with the default value, which is selected if it is as good as the best run; None if no run has
        the default value.

    Returns
    -------
    Mean excess over the best run and its standard error, each of shape (r,); indices of the best and the selected run.
    """
    best = int(np.argmin(loss_rn.mean(1)))
    excess_rn = loss_rn - loss_rn[best]
    excess_r = excess_rn.mean(1)
    error_r = excess_rn.std(1, ddof=1) / np.sqrt(loss_rn.shape[1])
    as_good = np.flatnonzero(excess_r <= np.maximum(error_r, noise))
    selected = default if default is not None and default in as_good else int(as_good[-1 if prefer_last else 0])
    return excess_r, error_r, best, selected


def find_reversals(beta_r: Sequence[float], rate_rn: np.ndarray, distortion_rn: np.ndarray) -> tuple[Reversal, ...]:
    """Find steps from one β to the next larger β where the rate increases or the distortion decreases.

    The runs are in ascending order of β. A change of rate or distortion is ignored if it is at most 0.05 nats or at
    most two standard errors. With a single held-out cell there is no standard error, so the result is empty.
    """
    found: list[Reversal] = []
    if rate_rn.shape[1] < MIN_CELLS:
        return ()
    for i in range(len(beta_r) - 1):
        wrong = {"rate": rate_rn[i + 1] - rate_rn[i], "distortion": distortion_rn[i] - distortion_rn[i + 1]}
        for what, wrong_n in wrong.items():
            error = wrong_n.std(ddof=1) / np.sqrt(len(wrong_n))
            if wrong_n.mean() > max(_SIGNIFICANT * error, _RELEVANT):
                found.append(Reversal(beta_r[i], beta_r[i + 1], what, float(wrong_n.mean())))
    return tuple(found)
