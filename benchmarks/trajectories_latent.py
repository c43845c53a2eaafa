"""Is the density calibrated, and do two trainings agree on the canonical axes?

Density: a fifth of the cells is kept out of the training completely. The off-manifold scores of the cells outside the
training should be distributed uniformly, like the scores of the held-out cells on which the score was calibrated.
Holes: for two groups of cells that share no state, the middle of the straight line between them is a position without
cells.

Axes: models of two seeds encode the same cells. Each axis of one model is matched with one axis of the other model (by
the assignment with the largest sum of absolute correlations), before and after the rotation to canonical axes. The
agreement is also given for strong axes alone: canonical axes that explain at least a hundredth of what the first axis
explains, and as many axes of largest variance before the rotation.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from typing import Any

import anndata
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import ks_2samp, kstest

import scvae_cli as scvae
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.session import Session

TEST_SHARE = 0.2


def density_row(name: str, adata: anndata.AnnData, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute the scores of cells that had no part in the training."""
    test = np.random.default_rng(seed).random(adata.n_obs) < TEST_SHARE
    model = scvae.train(adata[~test].copy(), seed=seed, threads=arguments.threads, device="cpu")
    mean_nk = posteriors(model, Session.open(adata[test].copy(), model, drop_empty=True).counts).mean_nk
    score_n = model.density.off_manifold(mean_nk).numpy()
    ks = kstest(score_n, "uniform")
    # Unlike the first test, the two-sample test accounts for the finite number of held-out cells behind the scores.
    both = ks_2samp(-model.density.log_prob(mean_nk).numpy(), model.density.heldout_nll.numpy())
    return {
        "data": name,
        "seed": seed,
        "n_test": int(test.sum()),
        "n_heldout": len(model.heldout_cells),
        "components": len(model.density.log_weight_c),
        "ks": float(ks.statistic),
        "p": float(ks.pvalue),
        "p_two_samples": float(both.pvalue),
        "above_95": float((score_n > 0.95).mean()),
    }


def hole_row(name: str, adata: anndata.AnnData, key: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute the scores in the middle between every two groups that share no state."""
    model = scvae.train(adata, seed=seed, threads=arguments.threads, device="cpu")
    labels = adata.obs[key].astype(str).to_numpy()
    mean_nk = posteriors(model, Session.open(adata, model).counts).mean_nk
    # Medians are used, because a few mislabeled cells hardly change a median.
    centres = {group: mean_nk[torch.as_tensor(labels == group)].median(0).values for group in np.unique(labels)}
    middle = torch.stack([(centres[a] + centres[b]) / 2 for a, b in combinations(centres, 2)])
    score = model.density.off_manifold(middle).numpy()
    return {
        "data": name,
        "seed": seed,
        "holes": len(score),
        "least": float(score.min()),
        "median": float(np.median(score)),
    }


def axes_row(name: str, adata: anndata.AnnData, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute the agreement of two seeds, axis by axis."""
    found = {}
    strong = None
    for seed in (0, 1):
        model = scvae.train(adata, seed=seed, threads=arguments.threads, device="cpu")
        found[seed] = {
            axes: scvae.embed(adata, model, axes=axes, inplace=False).mean_nk for axes in ("training", "canonical")
        }
        kept = model.axes.strength_k > 0.01 * model.axes.strength_k[0]
        strong = int(kept.sum()) if strong is None else min(strong, int(kept.sum()))
    row: dict[str, Any] = {"data": name, "strong": strong}
    for axes in ("training", "canonical"):
        row[axes] = matched(found[0][axes], found[1][axes])
    first = [found[seed]["canonical"][:, :strong] for seed in (0, 1)]
    row["canonical_strong"] = matched(*first)
    by_variance = [z[:, np.argsort(-z.var(0))[:strong]] for z in (found[0]["training"], found[1]["training"])]
    row["training_strong"] = matched(*by_variance)
    return row


def matched(a_nk: np.ndarray, b_nk: np.ndarray) -> float:
    """Compute the mean absolute correlation of axes that are matched one to one."""
    k = a_nk.shape[1]
    correlation_kk = np.abs(np.corrcoef(a_nk.T, b_nk.T)[:k, k:])
    rows, columns = linear_sum_assignment(-correlation_kk)
    return float(correlation_kk[rows, columns].mean())


def density_table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown."""
    lines = [
        "The off-manifold scores of test cells should be uniformly distributed. The scores were calibrated on other "
        "cells, which were held out of the training. The table gives the Kolmogorov–Smirnov distance between the "
        "scores of the test cells and the uniform distribution with its p-value, the p-value of the comparison with "
        "the scores of the cells for calibration, and the share of test cells with a score above 0.95 (expected: "
        "0.05).",
        "",
        "| data | seed | test cells | cells for calibration | components of the density | KS distance | p, uniform "
        "| p, two samples | share above 0.95 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['data']} | {r['seed']} | {r['n_test']} | {r['n_heldout']} | {r['components']} | {r['ks']:.3f} "
        f"| {r['p']:.3f} | {r['p_two_samples']:.3f} | {r['above_95']:.3f} |"
        for r in rows
    ]
    return lines


def hole_table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown."""
    lines = [
        "Off-manifold scores of positions without cells: the middles of the straight lines between two groups that "
        "share no state. A score near 1 is correct.",
        "",
        "| data | seed | number of middles | smallest score | median score |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {r['data']} | {r['seed']} | {r['holes']} | {r['least']:.3f} | {r['median']:.3f} |" for r in rows]
    return lines


def axes_table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown."""
    lines = [
        "Mean absolute correlation between the matched axes of two trainings, before (training axes) and after "
        "(canonical axes) the rotation: for all axes, and for the strong axes alone.",
        "",
        "| data | training axes | canonical axes | number of strong axes | strong training axes | strong canonical "
        "axes |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['data']} | {r['training']:.3f} | {r['canonical']:.3f} | {r['strong']} | {r['training_strong']:.3f} "
        f"| {r['canonical_strong']:.3f} |"
        for r in rows
    ]
    return lines
