"""The steps of `score`, and what the command line prints about the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvae_cli.amounts import amount
from scvae_cli.question import Question
from scvae_cli.tools.score.options import ScoreOptions
from scvae_cli.tools.score.result import BOUNDS, NOMINAL_LEVEL, Scores
from scvae_cli.tools.score.scoring import score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Significance level for the comparison of the observed with the expected share of held-out cells.
_CHANCE = 0.01


class Score(Question[ScoreOptions, Scores]):
    """Score the cells."""

    def planned(self) -> list[str]:
        names = self.names
        bounds = (names.elbo, names.iwae, names.iwae_density, names.reconstruction, names.kl)
        anomalies = (names.anomaly_score, names.anomaly_p, names.anomaly_p_adjusted)
        return [f"obs/{key}" for key in (*bounds, *anomalies)]

    def answer(self) -> Scores:
        return score(self.session.model, self.session.counts, self.options, progress=self.shell.progress)

    def figure(self, result: Scores) -> Figure:
        from scvae_cli.tools.score.figure import score_figure

        axes = ("latent axis 1", "latent axis 2")
        return score_figure(result, self.session.position_n2, axes, self.options.fdr)

    def facts(self, result: Scores) -> dict[str, Any]:
        return {
            "n_cells": len(result.elbo),
            **{f"mean_{name}": float(getattr(result, name).mean()) for name in BOUNDS},
            "anomalies": int(result.anomalies(self.options.fdr).sum()),
            "fdr": self.options.fdr,
            "heldout_below_05": result.heldout_below_05,
            "n_heldout": int(result.heldout.sum()),
            "samples": self.options.n_samples,
            "simulated": len(result.simulated_score),
        }

    def text(self, result: Scores, facts: dict[str, Any]) -> str:  # noqa: ARG002  # the text needs only the facts
        lines = [
            f"scored {amount(facts['n_cells'], 'cell')}; means in nats per cell:",
            f"  ELBO {facts['mean_elbo']:.2f} (reconstruction {facts['mean_reconstruction']:.2f}, KL "
            f"{facts['mean_kl']:.2f})",
            f"  importance-weighted bound {facts['mean_iwae']:.2f}; with the density of the training cells as prior "
            f"{facts['mean_iwae_density']:.2f}",
            (
                f"{amount(facts['anomalies'], 'cell is an anomaly', 'cells are anomalies')} at a false discovery rate "
                f"of {facts['fdr']:g}, judged against {amount(facts['simulated'], 'simulated cell')}"
            ),
        ]
        if facts["heldout_below_05"] is not None:
            lines.append(p_value_sentence(facts["heldout_below_05"], facts["n_heldout"], facts["anomalies"]))
        return "\n".join(lines)

    def next_step(self, result: Scores) -> str:  # noqa: ARG002  # an argument of every `Question`
        return f'adata.obs["{self.names.anomaly_score}"].nlargest(20)'


def p_value_sentence(share: float, n_heldout: int, n_anomalies: int) -> str:
    """Say whether held-out cells have small p-values as often as expected, and what follows for the anomalies."""
    from scipy.stats import binomtest

    found = f"{share:.1%} of the {n_heldout:,} held-out cells have p ≤ {NOMINAL_LEVEL:g}"
    expected = f"{NOMINAL_LEVEL:.0%}"
    if binomtest(round(share * n_heldout), n_heldout, NOMINAL_LEVEL).pvalue > _CHANCE:
        return f"{found}, and about {expected} are expected: the p-values are well calibrated"
    if share < NOMINAL_LEVEL:
        return f"{found}, fewer than the expected {expected}: the p-values are too large, so anomalies may be missed"
    many = f"{found}, more than the expected {expected}: real cells vary more than simulated cells"
    if n_anomalies:
        return f"{many}, so some of the anomalies may be ordinary cells"
    return f"{many}, but no cell has a p-value small enough to be an anomaly among so many cells"
