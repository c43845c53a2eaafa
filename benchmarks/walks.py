"""Do decoded trajectories from progenitors to erythrocytes and to monocytes show known biology (Paul et al. 2015)?

The benchmark trains with the defaults, computes geodesics from "Multipotent progenitors" to Erythrocyte and to
Monocytes, and checks that known markers rise and fall as expected. Each decoded curve is compared with the means of the
real cells at the same depth, in bins of the position of the cells along the trajectory. Each end is compared with the
mean of the real population.

    python benchmarks/walks.py [paul15_3004.h5ad]

The benchmark writes results/walks.md and results/walks.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from timed import describe_machine

import scvae_cli as scvae

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "paul15_3004.h5ad"
START = "Multipotent progenitors"
# Genes that must rise and genes that must fall on the way to each fate. Hemoglobins, glycophorin, carbonic anhydrases
# and KLF1 rise in erythrocytes; the M-CSF receptor and myeloid effectors rise in monocytes. Markers of stem cells and
# progenitors, and transcription factors of the other lineage, fall.
MARKERS = {
    "Erythrocyte": (["Klf1", "Hba-a2", "Hbb-b1", "Car1", "Car2", "Epor", "Gypa"], ["Cd34", "Flt3", "Sfpi1", "Emb"]),
    "Monocytes": (["Csf1r", "Irf8", "Ly86", "Ctss", "F13a1"], ["Gata2", "Gata1", "Pf4", "Apoe"]),
}
BINS = 12


def main() -> None:
    """Compute the trajectories, draw them and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    adata = anndata.read_h5ad(arguments.data)
    model = scvae.train(adata, seed=arguments.seed)
    library = np.asarray(adata.X.sum(axis=1)).ravel()
    depth = float(model.vae.reference_library)

    facts = f"{model.facts['epochs']} epochs, held-out ELBO {model.facts['heldout_elbo']:.1f} nats per cell"
    lines = [
        "# Markers along trajectories",
        "",
        f"Written by `benchmarks/walks.py`: geodesics from {START} (Paul et al. 2015), with a model of seed "
        f"{arguments.seed} ({facts}). The table gives counts at the median depth: decoded counts at the first and the "
        "last step of the trajectory, and means of the real cells of the first and the last group. The switch step is "
        "the step at which the expression crosses the middle of its range.",
        "",
    ]
    lines += [f"Machine: {describe_machine(torch.get_num_threads())}; torch {torch.__version__}.", ""]
    lines += ["| to | marker | expected | first step | last step | first group | last group | switch step | correct |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    figure, axes = plt.subplots(len(MARKERS), max(sum(map(len, m)) for m in MARKERS.values()), figsize=(24, 5))
    n_right = n_all = 0
    notes = []
    for row, (fate, (rising, falling)) in zip(axes, MARKERS.items(), strict=True):
        walk = scvae.interpolate(adata, model, groupby="cell_type", groups=[START, fate], inplace=False)
        place = {gene: i for i, gene in enumerate(walk.genes)}
        for axis, gene in zip(row, [*rising, *falling], strict=False):
            g = place[gene]
            curve = walk.mean_tg[:, g]
            observed = adata[:, gene].X.toarray().ravel() / library * depth
            real = [observed[(adata.obs["cell_type"] == group).to_numpy()].mean() for group in (START, fate)]
            right = (curve[-1] > curve[0]) == (gene in rising)
            n_right, n_all = n_right + right, n_all + 1
            lines.append(
                f"| {fate} | {gene} | {'up' if gene in rising else 'down'} | {curve[0]:.3g} | {curve[-1]:.3g} "
                f"| {real[0]:.3g} | {real[1]:.3g} | {walk.changes.switch_g[g]} | {'yes' if right else '**no**'} |"
            )
            axis.plot(walk.steps.position_t, curve, color="C3" if gene in rising else "C0")
            axis.plot(*binned(walk.pseudotime_n, observed), "k.", ms=4)
            axis.set_title(gene, fontsize=9)
            axis.set_ylim(bottom=0)
        for axis in row[len(rising) + len(falling) :]:
            axis.set_axis_off()
        row[0].set_ylabel(f"to {fate}\ncounts at median depth")
        near = ~np.isnan(walk.pseudotime_n)
        notes.append(f"To {fate}: {near.sum():,} of {len(near):,} cells belong to the trajectory.")
    lines += ["", f"{n_right} of {n_all} markers change in the expected direction.", *notes]
    figure.suptitle(
        "decoded (line; red expected up, blue down) and means of the cells of the trajectory in bins (dots)"
    )
    figure.tight_layout()
    (HERE / "results").mkdir(exist_ok=True)
    figure.savefig(HERE / "results" / "walks.png", dpi=70)
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "walks.md").write_text(text)
    print(text)


def binned(position: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the means of the values in bins of the positions, for bins that have cells."""
    near = ~np.isnan(position)
    bins = np.minimum((position[near] * BINS).astype(int), BINS - 1)
    sums = np.bincount(bins, weights=value[near], minlength=BINS)
    sizes = np.bincount(bins, minlength=BINS)
    full = sizes > 0
    return (np.arange(BINS)[full] + 0.5) / BINS, sums[full] / sizes[full]


if __name__ == "__main__":
    main()
