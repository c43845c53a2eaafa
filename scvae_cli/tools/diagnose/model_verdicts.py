"""Verdicts on a trained model that need no further trainings.

The level of a verdict is "good", "watch" or "poor". The limits at which the level changes are defined in this module,
each with its reason. The limits are matters of judgment, so every verdict also reports the measured number.
"""

from __future__ import annotations

from collections.abc import Sequence

from scvae_cli.tools.diagnose.advice import lower_beta
from scvae_cli.tools.diagnose.distortion import Distortion
from scvae_cli.tools.diagnose.gaps import Gaps
from scvae_cli.tools.diagnose.latent_use import AggregatedPosterior, LatentUse
from scvae_cli.tools.diagnose.predictive import GeneStatistic, PredictiveCheck
from scvae_cli.tools.diagnose.verdict import LEVELS, Verdict

# Number of active axes below which the latent space is of little use: a single axis can only order the cells.
FEW_ACTIVE = 2
# Two axes with a correlation of 0.3 share a tenth of their variance; two axes with a correlation of 0.6 carry much the
# same information.
CORRELATIONS = 0.3, 0.6
# Fraction of prior samples in holes, which are regions with almost no cells; 1% is expected. If more than 5% of the
# samples are in holes, sampling needs --avoid-holes. If more than 50% of the samples are in holes, the prior does not
# describe the cells. In models trained with the default options, about 25% of the prior samples are in holes.
HOLES = 0.05, 0.50
# Amortization and variational gaps, in percent of the bound on log p(x). A change of the training procedure changes the
# bound by about 0.5%; the bounds of good and bad models differ by 2%.
AMORTIZATION, VARIATIONAL = (0.5, 2.0), (0.5, 2.0)
# Fraction of genes outside the 99% band of simulated cells; 1% is expected. More than 5% of genes outside the band are
# more than expected by chance. More than 20% of genes outside the band mean that the likelihood does not fit.
OUTSIDE = 0.05, 0.20
# Spearman's ρ between Euclidean and Fisher–Rao distances. Latent spaces of models trained with --flat 1 reach a ρ of
# 0.95. If ρ is below 0.7, Euclidean distances explain less than half of the variance of the ranks.
RANKS = 0.95, 0.70


def use_verdict(use: LatentUse, gaps: Gaps, beta: float) -> Verdict:
    """Judge whether the latent dimensions contain information about the cells."""
    k = len(use.active_k)
    numbers = f"KL {gaps.rate:.2f} and reconstruction loss {gaps.distortion:.2f} nats per cell at β = {beta:g}"
    # If β is 0, the weight of the KL term cannot be lowered.
    level, finding = "good", "unused" if beta > 0 else "untrained"
    if use.collapse == "all":
        level = "poor"
        sentence = f"all {k} dimensions have collapsed to the prior: the latent space contains no information "
        sentence += f"(posterior collapse; {numbers})"
    elif use.n_active < min(FEW_ACTIVE, k):
        level, sentence = "watch", f"only {use.n_active} of {k} dimensions is active ({numbers})"
    else:
        finding = ""
        others = "one model does not show whether more dimensions (--n-latent) would help"
        if use.collapse == "some":
            others = "the other dimensions have collapsed to the prior, which is harmless"
        sentence = f"{use.n_active} of {k} dimensions are active ({numbers}); {others}"
    values = {"beta": beta, "lower": lower_beta(beta)}
    return Verdict(topic="latent use", level=level, sentence=sentence, finding=finding, values=values)


def axes_verdict(aggregate: AggregatedPosterior) -> Verdict:
    """Judge whether different latent axes carry different information, that is, whether they are uncorrelated."""
    total = f"total correlation {aggregate.total_correlation:.2f} nats"
    if aggregate.most_correlated is None or aggregate.correlation is None:
        sentence = f"fewer than two axes are active, so there is no correlation between axes; {total}"
        return Verdict(topic="axes", level="good", sentence=sentence)
    first, second = aggregate.most_correlated
    level = _level(abs(aggregate.correlation), CORRELATIONS)
    return Verdict(
        topic="axes",
        level=level,
        sentence=f"the largest correlation of two active axes is {aggregate.correlation:+.2f} (training axes "
        f"{first + 1} and {second + 1}); {total}",
        finding="" if level == "good" else "axes",
    )


def prior_verdict(aggregate: AggregatedPosterior) -> Verdict:
    """Judge whether the prior matches the cells."""
    level = _level(aggregate.holes, HOLES)
    return Verdict(
        topic="prior",
        level=level,
        sentence=f"{aggregate.holes:.1%} of prior samples lie in holes, regions with almost no cells (1% is expected "
        f"if the prior matches the cells); the mixture of all cells' posteriors has a KL of "
        f"{aggregate.kl_to_prior:.2f} nats to the prior; cells and latent positions share "
        f"{aggregate.mutual_information:.2f} nats of mutual information",
        finding="" if level == "good" else "holes",
    )


def gap_verdicts(gaps: Gaps) -> list[Verdict]:
    """Judge how well the encoder, and a diagonal Gaussian, approximate the posterior of a cell."""
    amortization, variational = gaps.amortization, gaps.variational
    by_encoder, by_family = _level(amortization.percent, AMORTIZATION), _level(variational.percent, VARIATIONAL)
    of_scale = "of the bound" if gaps.scale is None else "of the loss expected for standard normal features"
    return [
        Verdict(
            topic="encoder",
            level=by_encoder,
            sentence=f"refining the posteriors of the encoder raises the ELBO by {amortization.mean:.2f} ± "
            f"{amortization.error:.2f} nats per cell (the amortization gap, {amortization.percent:.2f}% {of_scale})",
            finding="" if by_encoder == "good" else "encoder",
        ),
        Verdict(
            topic="posterior",
            level=by_family,
            sentence=f"the ELBO of refined posteriors is lower than log p(x) by at least {variational.mean:.2f} ± "
            f"{variational.error:.2f} nats per cell (the variational gap, {variational.percent:.2f}% {of_scale}; "
            f"effective importance samples: {gaps.effective_samples:.0f} of {gaps.n_samples})",
            finding="" if by_family == "good" else "posterior",
        ),
    ]


def likelihood_verdicts(
    check: PredictiveCheck, likelihood: str, genes: Sequence[str] | None = None, *, decoder: str = "mlp"
) -> list[Verdict]:
    """Judge whether the likelihood reproduces the zeros and variances of the genes; `genes` are the names to show."""
    names = check.genes if genes is None else genes
    verdicts = []
    if (zeros := check.zeros) is not None:
        more = bool((zeros.score_g[zeros.outside_g] > 0).mean() > 0.5) if zeros.outside_g.any() else False
        sentence = (
            f"{zeros.outside:.1%} of {zeros.n_evaluated:,} genes have a fraction of zeros outside the 99% band of "
            f"simulated cells; the mean error of this fraction is {zeros.error:.4f} ({zeros.error_expected:.4f} "
            "expected)"
        )
        too_few = ("is detected in enough cells", "few detected")
        finding = _gene_finding(likelihood, decoder, more)
        verdicts.append(_gene_verdict("zeros", zeros, names, sentence, finding, *too_few))
    else:
        too_few = ("varies enough", "few varying")
    variances = check.variances
    sentence = (
        f"{variances.outside:.1%} of {variances.n_evaluated:,} genes have a variance outside the 99% band of "
        f"simulated cells; the median ratio of observed to predicted variance is {variances.median_ratio:.2f}"
    )
    finding = _gene_finding(likelihood, decoder, variances.median_ratio > 1)
    verdicts.append(_gene_verdict("variances", variances, names, sentence, finding, *too_few))
    return verdicts


def distance_verdicts(distortion: Distortion) -> list[Verdict]:
    """Judge distances in the embedding, and distances in the latent space, which interpolation uses."""
    condition = f"{float(distortion.condition_n.mean()):,.0f} over all axes"
    if distortion.active_condition_n is not None:
        condition = f"{float(distortion.active_condition_n.mean()):,.0f} over the active axes, {condition}"
    condition = f"the mean condition number of the decoder's metric is {condition} (1 in a flat latent space)"
    of_embedding, of_latent = distortion.embedding_rank_correlation, distortion.rank_correlation
    if of_embedding is None or of_latent is None:
        sentence = "there are too few cells to compare distances"
        return [
            Verdict(topic="distances", level="watch", sentence=sentence, finding="few cells"),
            Verdict(topic="latent space", level="watch", sentence=f"{sentence}; {condition}", finding="few cells"),
        ]
    by_embedding, by_latent = (LEVELS[sum(rho < limit for limit in RANKS)] for rho in (of_embedding, of_latent))
    return [
        Verdict(
            topic="distances",
            level=by_embedding,
            sentence="distances between cells in the embedding have a rank correlation of "
            f"{of_embedding:.2f} with distances in expression (Fisher–Rao)",
            finding="" if by_embedding == "good" else "distances",
        ),
        Verdict(
            topic="latent space",
            level=by_latent,
            sentence=f"distances between cells in latent space have a rank correlation of {of_latent:.2f} with "
            f"distances in expression; {condition}",
            finding="" if by_latent == "good" else "latent distances",
        ),
    ]


def _level(value: float, limits: tuple[float, float]) -> str:
    return LEVELS[sum(value > limit for limit in limits)]


def _gene_verdict(
    topic: str, genes: GeneStatistic, names: Sequence[str], sentence: str, finding: str, needed: str, too_few: str
) -> Verdict:
    """Judge how many genes deviate from the simulated cells; if no gene can be evaluated, the level is "watch"."""
    if genes.n_evaluated == 0:
        sentence = f"the {topic} cannot be evaluated: none of {len(genes.evaluated_g):,} genes {needed}"
        return Verdict(topic=topic, level="watch", sentence=sentence, finding=too_few)
    worst = [f"{names[g]} ({genes.score_g[g]:+.1f})" for g in genes.worst(3) if genes.outside_g[g]]
    sentence += f"; largest deviations in standard errors: {', '.join(worst)}" if worst else ""
    level = _level(genes.outside, OUTSIDE)
    return Verdict(topic=topic, level=level, sentence=sentence, finding="" if level == "good" else finding)


def _gene_finding(likelihood: str, decoder: str, more: bool) -> str:
    """Return the key in `ADVICE` for genes whose observed values differ from the simulated values.

    `more` is True if most observed values are larger than the simulated values.
    """
    if likelihood == "poisson":
        return "poisson"
    if likelihood == "nb" and more:
        return "more zeros"
    return "genes of linear decoder" if decoder == "linear" else "genes"
