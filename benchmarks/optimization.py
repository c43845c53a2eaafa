"""Do optimizations of the markers of a lineage end among the cells of this lineage, in regions with cells?

The benchmark trains on the cells of Paul et al. 2015 with the defaults. Then the benchmark optimizes the markers of
five lineages, starting at "Multipotent progenitors", with and without the constraint to regions with cells. The raw
counts decide where an optimization should end: in the group of cells in which the mean of the standardized markers is
highest. The names of the groups are those in the file, although two names are questionable: in the group "Basophils" of
the file, monocyte markers are highest, and basophil markers are high in 22 cells of the group "Neutrophils".

    python benchmarks/optimization.py [paul15_3004.h5ad] [--seeds 3]

The benchmark writes results/optimization.md.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import anndata
import numpy as np
import torch
from timed import describe_machine

import scvae_cli as scvae

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "paul15_3004.h5ad"
START = "Multipotent progenitors"
MARKERS = {
    "red cells": ["Klf1", "Hba-a2", "Hbb-b1", "Car1", "Car2", "Epor", "Gypa"],
    "megakaryocytes": ["Pf4", "Sdpr", "Gata2", "Cd9", "Rab27b"],
    "monocytes": ["Csf1r", "Irf8", "Ly86", "Ctss", "F13a1"],
    "neutrophils": ["Elane", "Mpo", "Prtn3", "Ctsg", "Gfi1", "Cebpe", "Gstm1", "S100a8"],
    "basophils": ["Prss34", "Mcpt8", "Ifitm1", "Cpa3"],
}


def main() -> None:
    """Optimize and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    adata = anndata.read_h5ad(arguments.data)
    groups = adata.obs["cell_type"].astype(str).to_numpy()
    lines = [
        "# Optimization of marker genes",
        "",
        f"Written by `benchmarks/optimization.py`: `scvae optimize` with default options, from {START} toward markers "
        "of lineages. An optimization should end among the cells of the group in which the markers are highest. The "
        "group at the end is that of most of the 15 cells nearest to the last step (in brackets: their share). The "
        "score is the mean of the standardized markers in the raw counts. The off-manifold score is the highest one of "
        "all steps, with the constraint to regions with cells and without this constraint (`--unconstrained`). "
        "Extrapolation begins at the step from which on the score exceeds the scores of all cells.",
        "",
        f"Machine: {describe_machine(torch.get_num_threads())}; torch {torch.__version__}.",
        "",
        "| markers of | seed | markers highest in | group at the end | correct | score: cells at the end, group with "
        "the highest markers, start | off-manifold score | off-manifold score, unconstrained | extrapolation begins at "
        "step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    right = kept = left = total = 0
    for seed in range(arguments.seeds):
        model = scvae.train(adata, seed=seed, device="cpu")
        for lineage, markers in MARKERS.items():
            genes = [gene for gene in markers if gene in model.genes]
            raw_n = raw_score(adata, genes)
            mean = {group: raw_n[groups == group].mean() for group in np.unique(groups)}
            home = max(mean, key=lambda group: mean[group])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", scvae.ScvaeWarning)
                held, free = (
                    scvae.optimize(
                        adata, model, toward=genes, groupby="cell_type", group=START, unconstrained=off, inplace=False
                    )
                    for off in (False, True)
                )
            end, off, far = (
                held.trajectory.steps,
                *(float(x.trajectory.steps.off_manifold_t.max()) for x in (held, free)),
            )
            among = str(end.group_t[-1]) == home
            right, kept, left, total = right + among, kept + (off <= 0.95), left + (far > 0.95), total + 1
            lines.append(
                f"| {lineage} | {seed} | {home} | {end.group_t[-1]} ({end.group_share_t[-1]:.2f}) "
                f"| {'yes' if among else '**no**'} | {raw_n[end.nearest_tj[-1]].mean():.2f}, {mean[home]:.2f}, "
                f"{mean[START]:.2f} | {off:.3f} | {far:.3f} "
                f"| {shown(held.extrapolated_from)}; unconstrained {shown(free.extrapolated_from)} |"
            )
            print(lines[-1], flush=True)
    lines += [
        "",
        f"{right} of {total} optimizations end in the correct group. With the constraint, all off-manifold scores of "
        f"{kept} of {total} optimizations are at most 0.95. Without the constraint, {left} of {total} optimizations "
        "exceed 0.95.",
    ]
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "optimization.md").write_text(text)
    print(text)


def raw_score(adata: anndata.AnnData, genes: list[str]) -> np.ndarray:
    """Compute the mean over genes of standardized square roots of counts at the median depth, shape (n,)."""
    library = np.asarray(adata.X.sum(axis=1)).ravel()
    root = np.sqrt(adata[:, genes].X.toarray() / library[:, None] * np.median(library))
    return ((root - root.mean(0)) / root.std(0)).mean(1)


def shown(step: int | None) -> str:
    return "never" if step is None else str(step)


if __name__ == "__main__":
    main()
