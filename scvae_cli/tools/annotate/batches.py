"""Batches without labeled cells, in which predictions may be worse than for held-out labeled cells.

Letters in array shapes: n cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.data.covariates import read_covariates
from scvae_cli.data.known_labels import KnownLabels
from scvae_cli.data.labels import positions_in
from scvae_cli.session import Session

_SHOWN = 3
_HOLD = (
    "accuracy, coverage and the share of unknown cells were measured on held-out labeled cells. In batches without "
    "labeled cells, accuracy and coverage may be lower, and more cells may be called unknown by mistake"
)


@dataclass(frozen=True, kw_only=True)
class NewBatches:
    """The batches of the cells without a label that have no labeled cells.

    Parameters
    ----------
    batch_n
        Index of the new batch of each cell, shape (n,); −1 for labeled cells, and for cells of other batches.
    names
        Names of the new batches; None if it is not known whether the cells are in the batches of the labeled cells. If
        the batches of the cells are not known, all cells are treated as one new batch.
    n_others
        Number of cells without a label.
    unmapped
        Names of the batches that the model lacks, if the labeled cells are those of its training.
    lacking
        Column of batches that the model needs and the data lack; None if the data lack no column.
    """

    batch_n: np.ndarray
    names: tuple[str, ...] | None
    n_others: int
    unmapped: tuple[str, ...] = ()
    lacking: str | None = None

    def warning(self) -> str | None:
        """Return a warning if some cells are, or may be, in batches without labeled cells; otherwise, return None."""
        if self.lacking is not None:
            return f"obs has no column {self.lacking!r}, so the batches of the cells are not known: {_HOLD}"
        if self.names is None:
            return (
                "the labeled cells come from another file, and it is not known whether both files have the same "
                f"batches: {_HOLD}"
            )
        if self.unmapped:
            which = f"some cells are of batches that were not in the training ({_listed(self.unmapped)})"
            return f"{which}; scvae map adds them to the model: {_HOLD}"
        if not self.names:
            return None
        n_new = int((self.batch_n >= 0).sum())
        which = "a batch" if len(self.names) == 1 else f"{len(self.names)} batches"
        cells = f"{n_new:,} of {self.n_others:,} cells without a label"
        return f"{cells} are of {which} without labeled cells ({_listed(self.names)}): {_HOLD}"


def new_batches(session: Session, known: KnownLabels | None, reference: Session | None) -> NewBatches:
    """Find the cells of a session that are in batches without labeled cells.

    Parameters
    ----------
    known
        Labels of the cells of `reference`, or of `session` if `reference` is None. If `known` is None, the labeled
        cells are those of the training of the model.
    reference
        Session with the labeled cells. If `reference` is None, the labeled cells are in `session`.
    """
    n, of_n = session.counts.n_cells, _batches(session)
    other_n = np.ones(n, dtype=bool)
    if known is None:
        of_labeled = _batches_of_training(session)
        lacking = next((key for key in session.model.config.data.batch_keys if key not in session.store.obs_keys), None)
    else:
        labeled_n, of_known_n, lacking = known.code_n >= 0, _batches(reference or session), None
        of_labeled = [] if of_known_n is None else sorted(set(of_known_n[labeled_n]) - {None})
        if reference is None:
            other_n = ~labeled_n
    some_n = np.zeros(n, dtype=bool) if of_n is None else other_n & (of_n != None)  # noqa: E711  # elementwise
    n_others = int(other_n.sum())
    if of_n is None or not of_labeled or not some_n.any():
        if known is not None and reference is None:
            return NewBatches(batch_n=np.full(n, -1), names=(), n_others=n_others)
        # Cells without a known batch may be of a new batch.
        names = () if known is None and lacking is None else None
        return NewBatches(batch_n=np.zeros(n, dtype=np.int64), names=names, n_others=n_others, lacking=lacking)
    new_n = some_n & (positions_in(of_labeled, of_n) < 0)
    names = tuple(sorted(set(of_n[new_n])))
    batch_n = np.where(new_n, positions_in(names, of_n), -1) if names else np.full(n, -1)
    unmapped: tuple[str, ...] = ()
    if known is None and names:
        of_model_n = positions_in(session.model.batches, np.asarray(names, dtype=object))
        unmapped = tuple(name for name, at in zip(names, of_model_n, strict=True) if at < 0)
    return NewBatches(batch_n=batch_n, names=names, n_others=n_others, unmapped=unmapped, lacking=lacking)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _batches_of_training(session: Session) -> list[str]:
    model = session.model
    return list(model.batches[: len(model.batches) - model.vae.n_mapped])


def _batches(session: Session) -> np.ndarray | None:
    """Return the batch of each cell, shape (n,).

    A cell with a missing value in the column of batches has the batch None. If the data have no column of batches, the
    result is None.
    """
    if session.counts.batch is not None:
        return np.asarray(session.counts.batch, dtype=object)
    keys = session.model.config.data.batch_keys
    if not any(key in session.store.obs_keys for key in keys):
        return None
    return read_covariates(session.store, keys, partly=True).cells(session.kept).batch_n
