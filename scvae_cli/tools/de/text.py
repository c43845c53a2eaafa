"""Text that the command line prints about a comparison of two groups of cells."""

from __future__ import annotations

from typing import Any

from scvae_cli.amounts import amount
from scvae_cli.data.gene_names import listed
from scvae_cli.text_table import table_lines
from scvae_cli.tools.de.result import DifferentialExpression

SHOWN_GENES = 20
# Smaller false discovery rates are printed as "<1e-06", because they depend on the far tails of normal distributions
# and say little about real data.
_LEAST_SHOWN = 1e-6
# Number of replicates in a group below which a warning is given.
_FEW_REPLICATES = 3


def text_of(result: DifferentialExpression, facts: dict[str, Any]) -> str:
    """Return the result as text: the groups, the numbers of tested genes, and the first called genes."""
    lines = [_groups(result, facts)]
    if result.replicates is not None:
        lines.append(_replicates(result))
    elif result.n_left_out:
        lines.append(
            f"left out: {amount(result.n_left_out, 'cell')} in batches with fewer than two cells of one of the groups"
        )
    use = (
        "the common change was subtracted from the changes below"
        if result.centre == "bulk"
        else "the common change was not subtracted: the changes below are those of each gene's share of the counts"
    )
    lines.append(
        f"common change of the genes: {result.common_change:+.2f} (log2), with {result.near_common_share:.0%} of the "
        f"genes within 0.25 of this change; {use}"
    )
    if facts["n_counted"]:
        lines.append(f"tested by their counts alone: {amount(facts['n_counted'], 'gene')} that the model lacks")
    if not_tested := facts["n_genes"] - facts["n_tested"]:
        lines.append(f"not tested: {amount(not_tested, 'gene')} without counts in these cells")
    called = [row for row in facts["genes"] if row["called"]]
    if not called:
        return "\n".join([*lines, _nothing_called(result)])
    lines += _gene_lines(called[:SHOWN_GENES])
    if len(called) > SHOWN_GENES:
        lines.append(f"... and {len(called) - SHOWN_GENES:,} more; --table FILE.csv lists all genes")
    lines.append(
        "(change and raw are log2 ratios; raw uses no model and no shrinkage; means are counts at the median library "
        "size)"
    )
    return "\n".join(lines)


def warnings_of_replicates(result: DifferentialExpression) -> list[str]:
    """Return warnings if replicates were left out, or if a group has too few replicates."""
    replicates, warned = result.replicates, []
    if replicates is None:
        return []
    if replicates.left_out:
        warned.append(
            f"left out: {amount(len(replicates.left_out), 'replicate')} of obs[{replicates.key!r}] in only one "
            f"group ({listed(replicates.left_out)}); the groups are compared within each of the other replicates"
        )
    fewest = min(replicates.n_group, replicates.n_reference)
    if fewest < _FEW_REPLICATES:
        warned.append(
            f"a group has only {fewest} replicates: a gene that varies unusually strongly between replicates can "
            "then be mistaken for a gene that differs between the groups; use 3 or more replicates per group"
        )
    return warned


def _groups(result: DifferentialExpression, facts: dict[str, Any]) -> str:
    replicates, contrast = result.replicates, result.contrast
    of = ("", "")
    if replicates is not None:
        of = (f" of {replicates.n_group} replicates", f" of {replicates.n_reference} replicates")
    inside = "".join(f", {key} {value}" for key, value in facts["within"].items())
    return (
        f"{contrast.group} ({amount(result.n_group, 'cell')}{of[0]}) against {contrast.reference} "
        f"({amount(result.n_reference, 'cell')}{of[1]}){inside}: {facts['called']:,} of {facts['n_tested']:,} "
        f"genes changed by more than {facts['threshold']:g} (log2), {facts['up']:,} up and {facts['down']:,} "
        f"down, at an expected FDR of {facts['fdr']:g}"
    )


def _replicates(result: DifferentialExpression) -> str:
    replicates = result.replicates
    assert replicates is not None
    how = "groups compared within each replicate (paired)" if replicates.paired else "not paired"
    spread = "the changes of the replicates differ" if replicates.paired else "replicates differ"
    batches = "; differences between batches are accounted for" if replicates.batches else ""
    return (
        f"replicates: obs[{replicates.key!r}], {how}{batches}; in most genes, {spread} by a standard deviation of "
        f"{replicates.spread:.2f} (log2) beyond the sampling of cells"
    )


def _nothing_called(result: DifferentialExpression) -> str:
    g = result.order[0]
    return (
        f"no gene is called; the most certain is {result.genes[g]}: change {result.change_g[g]:+.2f} (90% interval "
        f"{result.low_g[g]:.2f} to {result.high_g[g]:.2f}), P(changed) {result.probability_g[g]:.2g}"
    )


def _gene_lines(rows: list[dict[str, Any]]) -> list[str]:
    cells = [("gene", "change", "90% interval", "P(changed)", "exp. FDR", "raw", "mean", "reference", "tested by")]
    for row in rows:
        fdr = f"{row['expected_fdr']:.2g}" if row["expected_fdr"] >= _LEAST_SHOWN else f"<{_LEAST_SHOWN:g}"
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        numbers = (f"{row['change']:.2f}", interval, f"{row['probability']:.4f}", fdr, f"{row['raw']:.2f}")
        means = (f"{row['mean']:.3g}", f"{row['reference_mean']:.3g}")
        cells.append((row["gene"], *numbers, *means, row["source"]))
    return table_lines(cells, left=(0, 8))
