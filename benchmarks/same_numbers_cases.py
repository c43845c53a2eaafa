"""The commands that `same_numbers.py` runs: data set → model → name of a command → the command.

A command runs as `scvae VERB cells.h5ad OPTIONS --json` in a folder that holds the data as cells.h5ad and the model as
cells.scvae; "{first}" and "{last}" are names of cells. The command `train` makes the model and comes first. If two
commits spell an option differently, "SPELLING || OTHER SPELLING" runs the second command if the first command is
refused as wrong usage (exit code 2).
"""

from __future__ import annotations

PBMC_WALK = "interpolate --groupby bulk_labels --from CD34+ --to 'CD14+ Monocyte'"
PBMC_CLIMB = "optimize --groupby bulk_labels --group CD34+"
TREE_WALK = "interpolate --groupby cell_type --from stem --to mature_1"
PAUL_WALK = "interpolate --groupby cell_type --from 'Multipotent progenitors' --to Erythrocyte"
PAUL_ORDER = "pseudotime --groupby cell_type --root 'Multipotent progenitors'"
STIMULATED = "perturb --perturbation-key condition --control ctrl --treated stim --groupby cell_type --group 'B cells'"
CASES: dict[str, dict[str, dict[str, str]]] = {
    "pbmc68k_700": {
        "default": {
            "train": "train",
            "check": "check",
            "embed": "embed",
            "embed_refined": "embed --refine 20",
            "embed_training_axes": "embed --axes training",
            "denoise": "denoise",
            "denoise_cell": "denoise --estimate cell",
            "denoise_samples": "denoise --samples 3 --library median --with-zero-inflation --seed 1",
            "walk": f"{PBMC_WALK} --path-out path.h5ad",
            "walk_graph": f"{PBMC_WALK} --path graph --endpoint centroid",
            "walk_straight": f"{PBMC_WALK} --path straight --steps 20 --library 1000",
            "walk_bundle": f"{PBMC_WALK} --couple ot --paths 10",
            "walk_via": f"{PBMC_WALK} --via Dendritic --name 'by dendritic cells'",
            "walk_cells": "interpolate --from-cell {first} --to-cell {last}",
            "pseudotime": "pseudotime --groupby bulk_labels --root CD34+",
            "pseudotime_ends": "pseudotime --groupby bulk_labels --root CD34+ --to 'CD14+ Monocyte' --to 'CD19+ B'",
            "pseudotime_cell": "pseudotime --root-cell {first}",
            "score": "score",
            "de": "de --groupby bulk_labels --group Dendritic --reference 'CD14+ Monocyte' --table genes.csv",
            "de_rest": "de --groupby bulk_labels --group 'CD56+ NK' --threshold 0 --centre bulk",
            "optimize": f"{PBMC_CLIMB} --toward LYZ,CST3 --away CD3D --path-out path.h5ad",
            "optimize_cell": "optimize --toward GNLY --from-cell {first} --unconstrained --steps 20",
            "sample": "sample -n 200 -o new.h5ad",
            "sample_prior": "sample -n 100 --from prior --avoid-holes --library 1000 -o new.h5ad",
            "sample_density": "sample -n 100 --from density --mean --seed 1 -o new.h5ad",
            "sample_group": "sample -n 100 --groupby bulk_labels --group 'CD19+ B' -o new.h5ad",
            "sample_prototype": "sample --prototype -o new.h5ad",
            "diagnose": "diagnose --quick",
        },
        "short": {
            "train": "train --max-epochs 20 --n-top-genes 300 --n-latent 8 --n-layers 2 --seed 1",
            "diagnose": "diagnose --trainings 2 --samples 50 --refine 20",
            "sweep_beta": "sweep --beta 0.3,1,3 --max-epochs 12 --models runs",
            "sweep_latent": "sweep --n-latent 4,8 --max-epochs 8",
        },
        "linear": {
            "train": "train --decoder linear --max-epochs 30",
            "embed": "embed",
            "denoise": "denoise",
            "walk": PBMC_WALK,
        },
        "normal": {
            "train": "train --likelihood normal --max-epochs 30",
            "check": "check --likelihood normal",
            "embed": "embed --refine 10",
            "denoise": "denoise",
            "walk": f"{PBMC_WALK} --path-out path.h5ad",
            "pseudotime": "pseudotime --groupby bulk_labels --root CD34+",
            "score": "score --simulated 500",
            "optimize": f"{PBMC_CLIMB} --toward LYZ",
            "sample": "sample -n 50 -o new.h5ad",
            "diagnose": "diagnose --quick",
        },
        "nb": {"train": "train --likelihood nb --max-epochs 15", "score": "score --samples 20"},
        "poisson": {"train": "train --likelihood poisson --max-epochs 15", "score": "score --samples 20"},
        "flat": {"train": "train --flat 1 --max-epochs 15", "embed": "embed"},
    },
    "differentiation": {
        "batches": {
            "train": "train --batch-key batch --max-epochs 40",
            "check": "check --batch-key batch",
            "embed": "embed --key-added other",
            "denoise": "denoise",
            "denoise_observed": "denoise --batch-as observed --genes gene_001,gene_002",
            "denoise_as": "denoise --batch-as batch_2 --estimate cell",
            "walk": f"{TREE_WALK} --batch-as batch_1",
            "walk_via": f"{TREE_WALK} --via intermediate_1 --path graph",
            "pseudotime": "pseudotime --groupby cell_type --root stem --to mature_1 --to mature_2",
            "score": "score --samples 20 --simulated 1000",
            "de": "de --groupby cell_type --group mature_1 --reference mature_2 --within batch=batch_1",
            "optimize": "optimize --toward gene_001,gene_002 --groupby cell_type --group stem",
            "sample": "sample -n 100 -o new.h5ad",
            "sample_as": "sample -n 50 --batch-as batch_2 -o new.h5ad",
            "diagnose": "diagnose --quick",
            "sweep": "sweep --beta 1,3 --batch-key batch --max-epochs 8",
            "simulate": "simulate --cells 300 --genes 200 --branches 3 --batches 2 --true-mean --force",
        },
    },
    "paul15_3004": {
        "default": {
            "train": "train",
            "embed": "embed",
            "denoise": "denoise",
            "walk": PAUL_WALK,
            "walk_times": "interpolate --time-key Plate_ID --path graph",
            "pseudotime": f"{PAUL_ORDER} --to Erythrocyte --to Monocytes",
            "score": "score --samples 20",
            "optimize": "optimize --toward Klf1,Car1 --groupby cell_type --group 'Multipotent progenitors'",
        },
    },
    "kang_muscat_2donors": {
        "default": {
            "train": "train",
            "embed": "embed",
            "de": "de --groupby condition --group stim --reference ctrl --within cell_type='B cells' --table genes.csv",
            "perturb": f"{STIMULATED} -o new.h5ad",
            "perturb_ot": f"{STIMULATED} --method ot --counts -o new.h5ad",
            "perturb_centroid": f"{STIMULATED} --method centroid",
            "sample_group": "sample -n 100 --groupby cell_type --group 'B cells' -o new.h5ad",
        },
        "short": {
            "train": "train --max-epochs 12 --batch-key donor",
            "perturb_retrained": f"{STIMULATED} --retrain -o new.h5ad",
        },
    },
}
