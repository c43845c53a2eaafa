"""Functions that select the genes to model, and that find the genes of a model in other data.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from scvae_cli.amounts import amount
from scvae_cli.config import DataConfig
from scvae_cli.data.counts import Counts
from scvae_cli.data.gene_names import GeneNames, listed
from scvae_cli.data.moments import moments
from scvae_cli.data.variable_genes import most_variable
from scvae_cli.errors import DataError
from scvae_cli.gene_list import MOST_BYTES
from scvae_cli.regular_file import read_regular

# A gene that is expressed in fewer training cells than this number is not modeled, because a model could not learn
# anything about the gene.
MIN_CELLS = 3
# If at most this number of genes are expressed, all expressed genes are modeled; otherwise, only the most variable
# genes.
MAX_ALL_GENES = 5000
DEFAULT_TOP_GENES = 4000


def select_genes(
    counts: Counts, training: np.ndarray, config: DataConfig, names: GeneNames | None = None
) -> tuple[np.ndarray, str]:
    """Choose the genes to model, based on the training cells only.

    Parameters
    ----------
    counts, training
        All cells and all genes, and the indices of the training cells.
    config
        Options of the data, of which only `genes` and `n_top_genes` are used.
    names
        Ids and symbols that a gene list may contain; None if the list may contain only ids.

    Returns
    -------
    tuple
        Column indices in the order of the data, and a description of how the genes were chosen.

    Raises
    ------
    DataError
        If the gene list cannot be read or contains genes that are not in the data, or if fewer than two genes remain.
    """
    if config.genes == "all":
        columns, how = np.arange(counts.n_genes), "all genes"
    elif config.genes is not None:
        columns, how = _listed(counts, Path(config.genes[1:]), names), f"the genes listed in {config.genes[1:]}"
    elif counts.real:
        columns, how = _varying(counts, training, config.n_top_genes)
    else:
        columns = np.flatnonzero(counts.seen_in_g(training) >= MIN_CELLS)
        how = f"all genes seen in at least {MIN_CELLS} training cells"
        n_top = config.n_top_genes
        if n_top is None and len(columns) > MAX_ALL_GENES:
            n_top = DEFAULT_TOP_GENES
        if n_top is not None and n_top < len(columns):
            batch = None if counts.batch is None else counts.batch[training]
            columns = most_variable(counts.matrix, training, columns, n_top, batch)
            how = f"the {n_top} highly variable genes (seurat_v3)"
    if len(columns) < 2:
        raise DataError(
            f"{amount(len(columns), 'gene is', 'genes are')} left to model",
            "a model needs at least two genes; check the counts or --genes",
        )
    return columns, how


def match_genes(
    counts: Counts, genes: Sequence[str], *, max_missing: float, absent_g: np.ndarray | None = None
) -> tuple[Counts, list[str]]:
    """Select the genes of a model from counts, by name. Genes that are missing in the data get the values `absent_g`.

    Parameters
    ----------
    genes
        Genes of the model, in the order of the model.
    max_missing
        Largest fraction of the model's genes that may be missing in the data; a larger fraction raises a DataError.
    absent_g
        Values that missing genes get in every cell, one per gene of the model, shape (len(genes),). If `absent_g` is
        None, missing genes get zero counts.

    Returns
    -------
    tuple
        Counts with the genes of the model, shape (n, len(genes)), and the names of the missing genes.
    """
    position = {gene: i for i, gene in enumerate(counts.gene_names)}
    columns = np.asarray([position.get(gene, -1) for gene in genes])
    missing = [gene for gene, column in zip(genes, columns, strict=True) if column < 0]
    if len(missing) > max_missing * len(genes):
        raise DataError(
            f"{len(missing):,} of the model's {len(genes):,} genes are not in the data ({listed(missing)})",
            "use the same kind of gene names (symbols or Ensembl ids) as the model"
            + (", or accept missing genes with --allow-missing-genes" if len(missing) < len(genes) else ""),
        )
    if not missing:
        return counts.genes(columns), missing
    present = np.flatnonzero(columns >= 0)
    found = counts.matrix[:, columns[present]]
    # A missing gene is an empty column, so only the column indices of the other genes change.
    parts = (found.data, present.astype(found.indices.dtype)[found.indices], found.indptr)
    matrix = sp.csr_matrix(parts, shape=(counts.n_cells, len(genes)))
    if absent_g is not None:
        row_g = sp.csr_matrix(np.where(columns < 0, absent_g, 0.0).astype(np.float32))
        matrix = matrix + sp.csr_matrix(np.ones((counts.n_cells, 1), dtype=np.float32)) @ row_g
    matrix.sort_indices()
    return replace(counts, matrix=matrix, gene_names=np.asarray(genes, dtype=object)), missing


def _varying(counts: Counts, training: np.ndarray, n_top: int | None) -> tuple[np.ndarray, str]:
    """Choose the real-valued features that vary between training cells.

    If many features vary, only the most variable features are chosen.

    Returns the column indices of the chosen features, and a text that says how the features were chosen.
    """
    _, variance_g = moments(counts.matrix, training)
    columns = np.flatnonzero(variance_g > 0)
    if n_top is None and len(columns) > MAX_ALL_GENES:
        n_top = DEFAULT_TOP_GENES
    if n_top is None or n_top >= len(columns):
        return columns, "all features that vary between training cells"
    most = columns[np.argsort(-variance_g[columns], kind="stable")[:n_top]]
    return np.sort(most), f"the {n_top} features of highest variance"


def _listed(counts: Counts, path: Path, names: GeneNames | None) -> np.ndarray:
    try:
        lines = read_regular(path, most=MOST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the gene list {path}", "use --genes @FILE with a text file that has one gene per line"
        ) from error
    names = names or GeneNames(ids=tuple(counts.gene_names))
    try:
        wanted = set(names.ids_of(line.strip() for line in lines if line.strip()))
    except DataError as error:
        raise DataError(f"{path}: {error.message}", error.hint) from None
    return np.flatnonzero([gene in wanted for gene in counts.gene_names])
