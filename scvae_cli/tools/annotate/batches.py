"""Batches without labeled cells, in which predictions may be worse than for held-out labeled cells.

Letters in array shapes: n cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scvae_cli.data.covariates import read_covariates
from scvae_cli.data.known_labels import KnownLabels
from scvae_cli.data.labels import positions_in
from scvae_cli.model.bundle import Model
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
    if known is None:
        return _beside_training(session)
    if reference is None:
        return _beside_labeled(session, known)
    return _beside_reference(session, known, reference)


def _beside_training(session: Session) -> NewBatches:
    """Compare the batches of the cells with those of the training."""
    keys, stored = session.model.config.data.batch_keys, session.store.obs_keys
    lacking = next((key for key in keys if key not in stored), None)
    new = _compared(_batches(session), _batches_of_training(session))
    if new is None:
        # If the model has no column of batches, nobody can name the batches, so no warning is given.
        new = _unknown(session, names=() if lacking is None else None)
    return replace(new, lacking=lacking, unmapped=_lacking_in_model(session.model, new.names or ()))


def _beside_labeled(session: Session, known: KnownLabels) -> NewBatches:
    """Compare the batches of the cells without a label with those of the labeled cells of the same data."""
    other_n, of_n = known.code_n < 0, _batches(session)
    of_others_n = None if of_n is None else np.where(other_n, of_n, np.array(None, dtype=object))
    new = _compared(of_others_n, _batches_of_labeled(of_n, known))
    if new is None:
        new = NewBatches(batch_n=np.full(len(other_n), -1), names=(), n_others=0)
    return replace(new, n_others=int(other_n.sum()))


def _beside_reference(session: Session, known: KnownLabels, reference: Session) -> NewBatches:
    """Compare the batches of the cells with those of the labeled cells of other data."""
    new = _compared(_batches(session), _batches_of_labeled(_batches(reference), known))
    return _unknown(session, names=None) if new is None else new


def _compared(of_n: np.ndarray | None, of_labeled: list[str]) -> NewBatches | None:
    """Find the cells whose batch has no labeled cells; None if no cell or no labeled cell has a known batch.

    `of_n` contains the batch of each cell; None for cells that are not compared.
    """
    if of_n is None or not of_labeled or not (known_n := of_n != None).any():  # noqa: E711  # elementwise
        return None
    new_n = known_n & (positions_in(of_labeled, of_n) < 0)
    names = tuple(sorted(set(of_n[new_n])))
    batch_n = np.where(new_n, positions_in(names, of_n), -1) if names else np.full(len(of_n), -1)
    return NewBatches(batch_n=batch_n, names=names, n_others=len(of_n))


def _unknown(session: Session, *, names: tuple[str, ...] | None) -> NewBatches:
    """Treat all cells as one new batch, because their batches are not known."""
    n = session.counts.n_cells
    return NewBatches(batch_n=np.zeros(n, dtype=np.int64), names=names, n_others=n)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _batches_of_training(session: Session) -> list[str]:
    model = session.model
    return list(model.batches[: len(model.batches) - model.vae.n_mapped])


def _batches_of_labeled(of_n: np.ndarray | None, known: KnownLabels) -> list[str]:
    return [] if of_n is None else sorted(set(of_n[known.code_n >= 0]) - {None})


def _lacking_in_model(model: Model, names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        return ()
    at_b = positions_in(model.batches, np.asarray(names, dtype=object))
    return tuple(name for name, at in zip(names, at_b, strict=True) if at < 0)


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
