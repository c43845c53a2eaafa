"""The counts on which a model is trained, and what the user should know about them."""

from __future__ import annotations

from scvae_cli.amounts import amount
from scvae_cli.config import RunConfig
from scvae_cli.data.confounded_keys import warn_of_confounding
from scvae_cli.data.counts import Counts, read_counts
from scvae_cli.data.store import CellStore
from scvae_cli.question import Shell


def counts_for_training(store: CellStore, run: RunConfig, shell: Shell) -> Counts:
    """Read counts (or real numbers) with their covariates, describe them, and warn if covariates are confounded.

    Raises a DataError if the data cannot be used.
    """
    data, real = run.data, not run.model.of_counts
    counts = read_counts(
        store,
        layer=data.layer,
        batch_key=data.batch_keys,
        continuous_key=data.continuous_keys,
        real=real,
        rounding=data.round,
    )
    size = f"{amount(counts.n_cells, 'cell')} × {amount(counts.n_genes, 'gene')}"
    shell.info(f"{'values' if real else 'counts'}: {counts.source} of {store.title}, {size}")
    for note in counts.notes:
        shell.info(note)
    warn_of_confounding(store, counts, data, shell.warn)
    return counts
