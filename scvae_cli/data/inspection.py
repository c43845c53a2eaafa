"""Inspection of data before training: what the data contain, and which errors and warnings training would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from scvae_cli.amounts import amount, noun
from scvae_cli.data.confounded_keys import covariate_warnings
from scvae_cli.data.confounding import HINT, Confounded, confounded_columns, confounding_message
from scvae_cli.data.counts import Counts, counts_whatever_names, faults_of_names, what_is_wrong
from scvae_cli.data.covariates import CellCovariates, CovariateSummary, read_covariates
from scvae_cli.data.gene_selection import DEFAULT_TOP_GENES, MAX_ALL_GENES, MIN_CELLS
from scvae_cli.data.labels import are_measurements, labels_of
from scvae_cli.data.moments import moments
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError
from scvae_cli.shared_options import Rounding

MIN_TRAINING_CELLS = 10
FEW_CELLS = 500
# Rough estimates for two CPU cores: the number of values (cells × genes) per second, and the number of cells in all
# steps of a training. Training takes _PASSES passes over the cells, but processes at least _CELLS_AT_LEAST cells (about
# 1,400 steps) and at most _CELLS_AT_MOST cells.
_CPU_VALUES_PER_SECOND = 2e7
_CELLS_AT_LEAST = 90_000
_PASSES = 40
_CELLS_AT_MOST = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem of the data. A problem of level "refuse" prevents training; a problem of level "warn" does not."""

    level: str
    message: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Result of an inspection.

    Parameters
    ----------
    n_cells, n_genes, n_genes_modelled
        Numbers of cells and genes in the file, and of genes that training would model by default.
    matrices, counts_source
        Names of all matrices that may contain counts, and the name of the matrix that was read. `counts_source` is None
        if no matrix could be read.
    rounding, notes
        How fractions of counts were rounded, or None; and remarks on what was rounded or left out.
    zero_share, median_library
        Fraction of zeros in the matrix, and median library size of the cells. `median_library` is None for real
        numbers.
    covariates
        Categories of each batch key; `least`, `mean` and `most` of each continuous key.
    obs
        Columns of obs that may define groups of cells: a mapping of their names to their numbers of different values.
    confounded
        Columns that are confounded with the batch, the most confounded first.
    memory_gib, cpu_minutes
        Rough estimates of the memory and time of a training.
    findings
        Problems of the data, beginning with those of the level "refuse".
    """

    title: str
    n_cells: int
    n_genes: int
    matrices: list[str]
    counts_source: str | None = None
    rounding: str | None = None
    notes: list[str] = field(default_factory=list)
    zero_share: float | None = None
    median_library: float | None = None
    n_genes_modelled: int | None = None
    memory_gib: float | None = None
    cpu_minutes: float | None = None
    covariates: CovariateSummary = field(default_factory=dict)
    obs: dict[str, int] = field(default_factory=dict)
    confounded: list[Confounded] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether training would start."""
        return not any(finding.level == "refuse" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self) | {"ok": self.ok}


def inspect(
    store: CellStore,
    *,
    layer: str | None = None,
    batch_key: str | Sequence[str] | None = None,
    continuous_key: Sequence[str] | None = None,
    real: bool = False,
    rounding: Rounding | None = None,
) -> Inspection:
    """Check data as a training does, but without stopping at the first problem.

    The parameters have the same meaning as in `read_counts`. Raises a DataError if the file cannot be read.
    """
    findings: list[Finding] = []
    seen: dict[str, Any] = {
        "title": store.title,
        "n_cells": len(store.cell_names),
        "n_genes": len(store.gene_names),
        "matrices": list(store.matrix_names),
        "obs": groupings(store),
    }
    counts: Counts | None = None
    findings += [_refuse(fault.message, fault.hint) for fault in faults_of_names(store)]
    try:
        counts = counts_whatever_names(store, layer=layer, real=real, rounding=rounding)
    except DataError as error:
        findings.append(_refuse(error.message, error.hint))
    if counts is not None:
        seen |= _figures(counts)
        findings += _cell_findings(counts) + (_feature_findings(counts) if real else _gene_findings(counts))
    batch_keys = (batch_key,) if isinstance(batch_key, str) else tuple(batch_key or ())
    continuous_keys = tuple(continuous_key or ())
    if batch_keys or continuous_keys:
        try:
            covariates = read_covariates(store, batch_keys, continuous_keys)
        except DataError as error:
            findings.append(_refuse(error.message, error.hint))
        else:
            seen["covariates"] = covariates.summary()
            findings += _constant_findings(covariates)
            findings += [_warn(*message_and_hint) for message_and_hint in covariate_warnings(covariates)]
            library_n = None if counts is None or counts.real else counts.library_n
            seen["confounded"] = []
            for key, batch in zip(batch_keys, covariates.category_nq.T, strict=True):
                others = (*batch_keys, *continuous_keys)
                found = confounded_columns(store, batch, key, library_n=library_n, without=others)
                seen["confounded"] += found
                if found:
                    findings.append(_warn(confounding_message(key, found), HINT))
    findings.sort(key=lambda finding: finding.level != "refuse")
    return Inspection(**seen, findings=findings)


def _refuse(message: str, hint: str) -> Finding:
    return Finding(level="refuse", message=message, hint=hint)


def _warn(message: str, hint: str) -> Finding:
    return Finding(level="warn", message=message, hint=hint)


def groupings(store: CellStore) -> dict[str, int]:
    """Return the columns of obs with only a few different values, as a mapping of name to number of values."""
    found = {}
    for key in store.obs_keys:
        try:
            values = store.obs_column(key)
        except DataError:  # a column that anndata cannot read is no reason to refuse the counts
            continue
        if are_measurements(values):
            continue
        n_values = len(set(labels_of(values)) - {None})
        if 1 <= n_values <= max(2, min(200, len(values) // 2)):
            found[key] = n_values
    return found


def _figures(counts: Counts) -> dict[str, Any]:
    expressed = _varying(counts) if counts.real else int((counts.seen_in_g() >= MIN_CELLS).sum())
    modelled = expressed if expressed <= MAX_ALL_GENES else DEFAULT_TOP_GENES
    stored = counts.matrix.nnz
    # Memory for the counts (8 bytes for each value and its column), for a second copy if genes are selected, and for
    # Python and torch (0.6 GiB).
    memory = 8 * stored * (1 if modelled == counts.n_genes else 2) + 0.6 * 2**30
    cells = max(min(max(_PASSES * counts.n_cells, _CELLS_AT_LEAST), _CELLS_AT_MOST), counts.n_cells)
    return {
        "counts_source": counts.source,
        "rounding": counts.rounding,
        "notes": list(counts.notes),
        "zero_share": 1 - stored / (counts.n_cells * counts.n_genes),
        "median_library": None if counts.real else float(np.median(counts.library_n)),
        "n_genes_modelled": modelled,
        "memory_gib": round(memory / 2**30, 2),
        "cpu_minutes": round(cells * modelled / _CPU_VALUES_PER_SECOND / 60, 2),
    }


def _cell_findings(counts: Counts) -> list[Finding]:
    findings = []
    empty = np.flatnonzero(~counts.filled)
    n_left = counts.n_cells - len(empty)
    if n_left < MIN_TRAINING_CELLS:
        message = f"{amount(n_left, 'cell')} with counts {noun(n_left, 'is', 'are')} too few for training"
        findings.append(_refuse(message, f"training needs at least {MIN_TRAINING_CELLS} cells with counts"))
    elif counts.n_cells < FEW_CELLS:
        message = f"{amount(counts.n_cells, 'cell')} are few, so rare populations may be missed"
        findings.append(_warn(message, "training uses a small network, unless --n-latent and --n-hidden are given"))
    if len(empty):
        message = (
            f"{amount(len(empty), 'cell has', 'cells have')} no counts; the first is {counts.cell_names[empty[0]]!r}"
        )
        findings.append(_refuse(message, "use --drop-empty to drop empty cells"))
    return findings


def _gene_findings(counts: Counts) -> list[Finding]:
    rare = int((counts.seen_in_g() < MIN_CELLS).sum())
    if counts.n_genes - rare < 2:
        message = f"only {amount(counts.n_genes - rare, 'gene is', 'genes are')} seen in at least {MIN_CELLS} cells"
        return [_refuse(message, f"a model needs at least two genes that are seen in {MIN_CELLS} cells")]
    if rare:
        message = f"{amount(rare, 'gene is', 'genes are')} seen in fewer than {MIN_CELLS} cells and will not be modeled"
        return [_warn(message, "use --genes all to model these genes too")]
    return []


def _feature_findings(counts: Counts) -> list[Finding]:
    findings = []
    varying = _varying(counts)
    if varying < 2:
        findings.append(
            _refuse(
                f"only {amount(varying, 'feature varies', 'features vary')} between cells",
                "a model needs at least two features that vary",
            )
        )
    elif varying < counts.n_genes:
        message = (
            f"{amount(counts.n_genes - varying, 'feature is', 'features are')} the same in every cell and will not be "
            "modeled"
        )
        findings.append(_warn(message, "use --genes all to model these features too"))
    if what_is_wrong(counts.matrix.data) is None:
        message = f"{counts.source} holds raw counts"
        findings.append(_warn(message, "a likelihood for counts, zinb or nb, fits raw counts better"))
    return findings


def _varying(counts: Counts) -> int:
    return int((moments(counts.matrix, np.arange(counts.n_cells))[1] > 0).sum())


def _constant_findings(covariates: CellCovariates) -> list[Finding]:
    """Find continuous keys that have the same value in all cells."""
    findings = []
    for key, value_n in zip(covariates.continuous_keys, covariates.value_nv.T, strict=True):
        if value_n.min() == value_n.max():
            message = f"obs[{key!r}] has the same value ({value_n[0]:g}) in all {len(value_n)} cells"
            findings.append(_refuse(message, f"remove --continuous-key {key}: a constant has no effect"))
    return findings
