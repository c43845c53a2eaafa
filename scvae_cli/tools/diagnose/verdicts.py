"""What a diagnosis comes to, in words: each verdict a level, a sentence with the number in it, and what to do.

Limits stand here once, with their reasons; they are judgements, and the numbers are always told beside them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scvae_cli.errors import ConfigError
from scvae_cli.tools.diagnose.distortion import Distortion
from scvae_cli.tools.diagnose.gaps import Gaps
from scvae_cli.tools.diagnose.health import Shape, Usage
from scvae_cli.tools.diagnose.predictive import GeneStatistic, PredictiveCheck

LEVELS = ("good", "watch", "poor")
# An axis alone orders cells and nothing more; with fewer active ones than this there is no space to speak of.
FEW_ACTIVE = 2
# A correlation of 0.3 is a tenth of the variance shared; at 0.6 two axes tell much the same of a cell.
CORRELATIONS = 0.3, 0.6
# Perfect is 1%. Where one prior sample in twenty falls where no cell is, draws need --avoid-holes; where half of them
# do, the prior does not describe the cells. Trainings with the defaults come to about a quarter.
HOLES = 0.05, 0.50
# Percent of the bound. A change of recipe moves the bound by half a percent; two tell a good model from a bad one.
AMORTIZATION, VARIATIONAL = (0.5, 2.0), (0.5, 2.0)
# Perfect is 1% of the genes; one in twenty is more than chance, one in five is the likelihood's fault.
OUTSIDE = 0.05, 0.20
# Spearman's ρ between latent distance and length: 0.95 is what --flat 1 reaches; below 0.7, not half of the order is
# explained.
RANKS = 0.95, 0.70


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One sentence of a diagnosis.

    Parameters
    ----------
    topic
        What is judged, in few words; no two verdicts of a diagnosis share it.
    level
        "good", "watch" or "poor".
    sentence
        What was found, with the number.
    remedy
        What to do about it; empty where nothing need be done.
    """

    topic: str
    level: str
    sentence: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ConfigError(f"a verdict's level is {self.level!r}", f"it takes one of: {', '.join(LEVELS)}")

    def values(self) -> dict[str, str]:
        """Plain texts."""
        return asdict(self)


def worst_level(verdicts: Sequence[Verdict]) -> str:
    """The worst level of some verdicts.

    >>> worst_level([Verdict(topic="a", level="watch", sentence="."), Verdict(topic="b", level="good", sentence=".")])
    'watch'
    """
    return LEVELS[max((LEVELS.index(verdict.level) for verdict in verdicts), default=0)]


def page(verdicts: Sequence[Verdict], *, width: int = 100) -> str:
    """Verdicts as text, each with its remedy beneath it."""
    wide = max((len(verdict.topic) for verdict in verdicts), default=0)
    lines: list[str] = []
    for verdict in verdicts:
        lead = f"{verdict.level:<5}  {verdict.topic:<{wide}}  "
        for start, text in ((lead, verdict.sentence), (" " * len(lead) + "→ ", verdict.remedy)):
            if text:
                lines += textwrap.wrap(
                    text, width, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
                )
    return "\n".join(lines)


def of_use(usage: Usage, gaps: Gaps, beta: float) -> Verdict:
    """Is the latent space used?"""
    k = len(usage.active_k)
    told = f"rate {gaps.rate:.2f}, distortion {gaps.distortion:.2f} nats a cell, β {beta:g}"
    lower = f"a lower --beta (now {beta:g})" + (", such as 1" if beta > 1 else "")
    longer = "longer training (--patience, --max-epochs)"
    if usage.collapse == "all":
        return Verdict(
            topic="latent use",
            level="poor",
            sentence=f"all {k} dimensions have collapsed to the prior: a cell's place says nothing of it ({told})",
            remedy=f"{lower}, or {longer}",
        )
    if usage.n_active < min(FEW_ACTIVE, k):
        return Verdict(
            topic="latent use",
            level="watch",
            sentence=f"only {usage.n_active} of {k} dimensions is active ({told})",
            remedy=f"{lower}, or {longer}",
        )
    rest = "; the others are at the prior and cost nothing" if usage.collapse == "some" else ""
    # What more dimensions would hold is not known from here.
    more = "all are used: a larger --n-latent may hold more" if usage.collapse == "none" else ""
    return Verdict(
        topic="latent use",
        level="good",
        sentence=f"{usage.n_active} of {k} dimensions are active ({told}){rest}",
        remedy=more,
    )


def of_axes(shape: Shape) -> Verdict:
    """Do the axes tell different things?"""
    told = f"total correlation {shape.total_correlation:.2f} nats"
    if shape.most_correlated is None or shape.correlation is None:
        return Verdict(topic="axes", level="good", sentence=f"fewer than two active axes to be correlated ({told})")
    first, second = shape.most_correlated
    level = _level(abs(shape.correlation), CORRELATIONS)
    named = f"between training axes {first + 1} and {second + 1}"
    return Verdict(
        topic="axes",
        level=level,
        sentence=f"largest correlation of two active axes {shape.correlation:+.2f}, {named}; {told}",
        remedy="" if level == "good" else "read no single axis by itself; a higher --beta draws the axes apart",
    )


def of_prior(shape: Shape) -> Verdict:
    """Is the prior where the cells are?"""
    level = _level(shape.holes, HOLES)
    return Verdict(
        topic="prior",
        level=level,
        sentence=f"{shape.holes:.1%} of prior samples fall where no cells are (1% would be even); the aggregated "
        f"posterior is {shape.kl_to_prior:.2f} nats from the prior, and a cell's place tells "
        f"{shape.mutual_information:.2f} nats of it",
        remedy=""
        if level == "good"
        else "draw cells with scvae sample --from density, or --avoid-holes; a higher --beta fills holes",
    )


def of_gaps(gaps: Gaps) -> list[Verdict]:
    """Does the encoder place cells as well as can be, and is a diagonal Gaussian enough?"""
    amortization, variational = gaps.amortization, gaps.variational
    by_encoder = _level(amortization.percent, AMORTIZATION)
    by_family = _level(variational.percent, VARIATIONAL)
    few = float(gaps.values()["effective_samples"])
    of_it = "of the bound" if gaps.yardstick is None else "of what as many standard normal features cost"
    return [
        Verdict(
            topic="encoder",
            level=by_encoder,
            sentence=f"amortization gap {amortization.mean:.2f} ± {amortization.error:.2f} nats a cell "
            f"({amortization.percent:.2f}% {of_it})",
            remedy=""
            if by_encoder == "good"
            else "place cells with scvae embed --refine 100; train with more cells, or a wider encoder (--n-hidden)",
        ),
        Verdict(
            topic="posterior",
            level=by_family,
            sentence=f"variational gap at least {variational.mean:.2f} ± {variational.error:.2f} nats a cell "
            f"({variational.percent:.2f}% {of_it}; {few:.0f} of {gaps.n_samples} importance samples carry it)",
            remedy=""
            if by_family == "good"
            else "compare models by the importance bound of scvae score, which does not pay for it",
        ),
    ]


def of_counts(check: PredictiveCheck, likelihood: str) -> list[Verdict]:
    """Is the likelihood calibrated?"""
    verdicts = []
    if (zeros := check.zeros) is not None:
        more = bool((zeros.score_g[zeros.outside_g] > 0).mean() > 0.5) if zeros.outside_g.any() else False
        told = (
            f"{zeros.outside:.1%} of {int(zeros.judged_g.sum()):,} genes have more or fewer zeros than 99% of "
            f"replicates; mean error {zeros.error:.4f}, of replicates {zeros.error_expected:.4f}"
        )
        verdicts.append(_of_genes("zeros", check, zeros, told, _other_likelihood(likelihood, more)))
    variances = check.variances
    told = (
        f"{variances.outside:.1%} of {int(variances.judged_g.sum()):,} genes vary more or less than 99% of replicates; "
        f"median ratio {variances.median_ratio:.2f} to what was predicted"
    )
    remedy = _other_likelihood(likelihood, variances.median_ratio > 1)
    verdicts.append(_of_genes("variances", check, variances, told, remedy))
    return verdicts


def of_distances(distortion: Distortion) -> Verdict:
    """Do latent distances mean what they seem to?"""
    if distortion.rank_correlation is None:
        return Verdict(topic="distances", level="watch", sentence="there are too few cells to compare distances of")
    level = LEVELS[sum(distortion.rank_correlation < limit for limit in RANKS)]
    condition = f"{float(distortion.condition_n.mean()):,.0f} over all axes"
    if distortion.active_condition_n is not None:
        condition = f"{float(distortion.active_condition_n.mean()):,.0f} over the active axes, {condition}"
    return Verdict(
        topic="distances",
        level=level,
        sentence="latent distances of cells rank like Fisher–Rao lengths with ρ = "
        f"{distortion.rank_correlation:.2f}; condition number of the decoder's metric {condition}",
        remedy="" if level == "good" else "train with --flat 1 where distances matter",
    )


def _level(value: float, limits: tuple[float, float]) -> str:
    return LEVELS[sum(value > limit for limit in limits)]


def _of_genes(topic: str, check: PredictiveCheck, statistic: GeneStatistic, told: str, remedy: str) -> Verdict:
    """How many genes are outside their band; where none can be judged, nothing is known to be good."""
    if not statistic.judged_g.any():
        of_counts = check.zeros is not None
        which = "is seen in enough cells" if of_counts else "varies enough"
        return Verdict(
            topic=topic,
            level="watch",
            sentence=f"none of {len(statistic.judged_g):,} genes {which} to be judged by its {topic}",
            remedy="diagnose more cells (--cells), or deeper ones" if of_counts else "diagnose cells that differ",
        )
    level = _level(statistic.outside, OUTSIDE)
    return Verdict(
        topic=topic,
        level=level,
        sentence=told + _worst(check, statistic),
        remedy="" if level == "good" else remedy,
    )


def _worst(check: PredictiveCheck, statistic: GeneStatistic) -> str:
    """The genes that are farthest off, where any is outside its band."""
    worst = [g for g in statistic.worst(3) if statistic.outside_g[g]]
    named = ", ".join(f"{check.genes[g]} ({statistic.score_g[g]:+.1f})" for g in worst)
    return f"; farthest, in standard errors: {named}" if named else ""


def _other_likelihood(likelihood: str, more: bool) -> str:
    if likelihood == "poisson":
        return "a likelihood with dispersion: --likelihood nb or zinb"
    if likelihood == "nb" and more:
        return "--likelihood zinb, longer training or a larger --n-latent"
    return "longer training (--patience), a larger --n-latent or --n-hidden; look at the genes named"
