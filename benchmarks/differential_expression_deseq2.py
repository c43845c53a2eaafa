"""DESeq2 (pydeseq2) on the summed counts of replicates; run by `differential_expression_donors.py`.

    python benchmarks/differential_expression_deseq2.py PSEUDOBULK.npz RESULT.npz

PSEUDOBULK.npz holds `counts_sg`, `group_s`, `replicate_s`, `paired` and `threshold`. The script writes two sets of
adjusted p-values to RESULT.npz: for any change, and for a change beyond the threshold (log2). The p-values are 1 for
genes to which DESeq2 gives no p-value.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pandas as pd


def main() -> None:
    """Test both null hypotheses."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    warnings.simplefilter("ignore")
    given = np.load(sys.argv[1], allow_pickle=False)
    names = [f"s{i}" for i in range(len(given["counts_sg"]))]
    counts = pd.DataFrame(given["counts_sg"].astype(int), index=names).add_prefix("g")
    metadata = pd.DataFrame({"group": given["group_s"], "replicate": given["replicate_s"]}, index=names)
    design = "~replicate + group" if given["paired"] else "~group"
    data = DeseqDataSet(counts=counts, metadata=metadata, design=design, quiet=True, n_cpus=1)
    data.deseq2()
    adjusted = []
    for more in ({}, {"lfc_null": float(given["threshold"]), "alt_hypothesis": "greaterAbs"}):
        tested = DeseqStats(data, contrast=["group", "A", "B"], quiet=True, n_cpus=1, **more)
        tested.summary()
        adjusted.append(tested.results_df["padj"].to_numpy())
    np.savez(sys.argv[2], at_all=np.nan_to_num(adjusted[0], nan=1), beyond=np.nan_to_num(adjusted[1], nan=1))


if __name__ == "__main__":
    main()
