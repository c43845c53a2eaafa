"""Verdicts on a model in comparison with baselines, and with trainings that use other random seeds."""

from __future__ import annotations

import numpy as np

from scvae_cli.evaluation.neighbors import NEIGHBORS
from scvae_cli.heldout import MIN_HELDOUT
from scvae_cli.tools.diagnose.advice import lower_beta
from scvae_cli.tools.diagnose.baselines import LINEAR, MEAN, NO_DENOISING, PCA, VAE, Advantage, BaselineComparison
from scvae_cli.tools.diagnose.stability import Stability
from scvae_cli.tools.diagnose.verdict import Verdict

# Number of standard errors above which a difference counts as significant.
SIGNIFICANT = 3.0
# Limits of the fraction of variance that differs between two aligned embeddings. Up to the fraction ALIKE, two
# embeddings look alike in any plot. Above the fraction UNLIKE, structure in one training may be absent from another.
ALIKE, UNLIKE = 0.2, 0.5


def baseline_verdicts(comparison: BaselineComparison, beta: float) -> list[Verdict]:
    """Judge whether the VAE is better than the baselines; `beta` is the weight of the KL term in training."""
    likelihood = _likelihood_verdict(comparison, beta)
    return [likelihood, _denoising_verdict(comparison)] if comparison.n_thinned else [likelihood]


def stability_verdict(stability: Stability) -> Verdict:
    """Judge whether trainings with other random seeds agree."""
    differs = stability.procrustes
    level = "good" if differs <= ALIKE else "watch" if differs <= UNLIKE else "poor"
    return Verdict(
        topic="stability",
        level=level,
        sentence=f"the embeddings of {stability.n_trainings} trainings with different random seeds were aligned: "
        f"{differs:.0%} of their variance differs ({stability.procrustes_by_chance:.0%} in unrelated embeddings), "
        f"{stability.neighbors_shared:.0%} of each cell's {NEIGHBORS} nearest neighbors are shared "
        f"({stability.pca_neighbors_shared:.0%} between PCAs of bootstrapped genes), and the strong canonical axes "
        f"have a correlation of {stability.axis_correlation:.2f}",
        finding="" if level == "good" else "stability",
    )


def _likelihood_verdict(comparison: BaselineComparison, beta: float) -> Verdict:
    by_name = {model.name: model for model in comparison.models}
    vae, mean = by_name[VAE], by_name[MEAN]
    # If the VAE itself has a linear decoder, there is no separate model with a linear decoder.
    linear = by_name[LINEAR].vae_advantage_heldout if LINEAR in by_name else None
    assert vae.heldout_log_prob is not None
    assert mean.vae_advantage_heldout is not None
    bounds = [_compared(mean.vae_advantage_heldout, "higher than with", "lower than with", MEAN)]
    bounds += [] if linear is None else [_compared(linear, "higher than with", "lower than with", LINEAR)]
    bound = f"{vae.heldout_log_prob:.1f} nats per cell"
    sentence = f"the log-likelihood bound of held-out cells is {bound}, {' and '.join(bounds)}"
    level, finding = "watch", ""
    if comparison.n_heldout < MIN_HELDOUT:
        cells = "held-out cell" if comparison.n_heldout == 1 else "held-out cells"
        sentence += f"; with only {comparison.n_heldout} {cells}, these values are uncertain"
        finding = "few held out"
    elif not _significant(mean.vae_advantage_heldout):
        level = "poor"
        sentence += "; the VAE is not significantly better than the mean model, which has no latent space"
        finding = "like mean model" if beta > 0 else "untrained"
    elif linear is None or _significant(linear):
        level = "good"
    else:
        sentence += "; a linear decoder fits these cells as well"
        finding = "linear decoder"
    values = {"beta": beta, "lower": lower_beta(beta)}
    return Verdict(topic="baselines: likelihood", level=level, sentence=sentence, finding=finding, values=values)


def _denoising_verdict(comparison: BaselineComparison) -> Verdict:
    others = {
        model.name: model.vae_advantage_thinned
        for model in comparison.models
        if model.name not in (VAE, NO_DENOISING) and model.vae_advantage_thinned
    }
    compared = [_compared(advantage, "better than", "worse than", name) for name, advantage in others.items()]
    sentence = f"in nats per cell, the VAE predicts withheld molecules {', '.join(compared)}"
    better = {name: difference for name, (difference, error) in others.items() if _significant((-difference, error))}
    level, finding = "good", ""
    if better:
        best = min(better, key=lambda name: better[name])
        sentence += f"; {_with_article(best)} predicts these molecules best"
        level, finding = ("watch", "linear decoder") if best == LINEAR else ("poor", "denoising")
    return Verdict(topic="baselines: denoising", level=level, sentence=sentence, finding=finding)


def _compared(advantage: Advantage, ahead: str, behind: str, name: str) -> str:
    difference, error = advantage
    size = f"{abs(difference):.2f}" + ("" if np.isnan(error) else f" ± {error:.2f}")
    return f"{size} {ahead if difference >= 0 else behind} {_with_article(name)}"


def _with_article(name: str) -> str:
    return name if name == PCA else f"the {name}"


def _significant(advantage: Advantage) -> bool:
    return advantage[0] > SIGNIFICANT * advantage[1]
