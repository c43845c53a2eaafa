"""A warning about batches without labeled cells, in which predictions may be worse than for held-out cells.

Letters in array shapes: n cells.
"""

from __future__ import annotations

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


def warning_of_new_batches(session: Session, known: KnownLabels, reference: Session | None) -> str | None:
    """Return a warning if some cells may be in batches without labeled cells; otherwise, return None.

    Parameters
    ----------
    known
        Labels of the cells of `reference`, or of `session` if `reference` is None.
    reference
        Session with the labeled cells. If `reference` is None, the labeled cells are in `session`.
    """
    labeled_n = known.code_n >= 0
    of_known_n, of_n = _batches(reference or session), _batches(session)
    of_labeled = [] if of_known_n is None else sorted(set(of_known_n[labeled_n]) - {None})
    if of_n is not None and reference is None:
        of_n = of_n[~labeled_n]
    if of_n is None or not of_labeled or not (of_n != None).any():  # noqa: E711  # elementwise
        if reference is None:
            return None
        why = "the labeled cells come from another file, and it is not known whether both files have the same batches"
        return f"{why}: {_HOLD}"
    new_n = (positions_in(of_labeled, of_n) < 0) & (of_n != None)  # noqa: E711  # elementwise
    if not new_n.any():
        return None
    names = sorted(set(of_n[new_n]))
    which = "a batch" if len(names) == 1 else f"{len(names)} batches"
    cells = f"{int(new_n.sum()):,} of {len(of_n):,} cells without a label"
    return f"{cells} are of {which} without labeled cells ({_listed(names)}): {_HOLD}"


def warning_of_unknown_batches(session: Session) -> str | None:
    """Return a warning if the batches of the cells are not known, or were not in the training of the model."""
    keys = session.model.config.data.batch_keys
    lacking = [key for key in keys if key not in session.store.obs_keys]
    if lacking:
        return f"obs has no column {lacking[0]!r}, so the batches of the cells are not known: {_HOLD}"
    of_n = _batches(session)
    names = np.asarray([] if of_n is None or not keys else sorted(set(of_n) - {None}), dtype=object)
    new = list(names[positions_in(session.model.batches, names) < 0])
    if not new:
        return None
    which = f"some cells are of batches that were not in the training ({_listed(new)})"
    return f"{which}; scvae map adds them to the model: {_HOLD}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


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
