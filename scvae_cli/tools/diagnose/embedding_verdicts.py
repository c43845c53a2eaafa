"""Verdicts on the quality of the embedding: neighbors, known labels, and mixing of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scvae_cli.evaluation.log_pca import COMPONENTS
from scvae_cli.evaluation.neighbors import NEIGHBORS
from scvae_cli.tools.diagnose.embedding_quality import EMBEDDING, EmbeddingQuality, Scores
from scvae_cli.tools.diagnose.verdict import LEVELS, Verdict

# Neighbors that the embedding shares with PCA, as a fraction of the neighbors that two PCAs of bootstrapped genes
# share. In four data sets, three of them with batch effects in the PCA, the embedding shared 0.6 to 1.3 times as many
# neighbors with PCA as two PCAs of bootstrapped genes.
NEIGHBORS_KEPT = 0.5, 0.25
# Number of standard errors above which a lower accuracy of the vote counts as worse. If the accuracy differs by more
# than five percentage points, clusters would differ visibly.
SIGNIFICANT, MUCH_WORSE = 3.0, 0.05
# Difference in ARI above which the clusters of the embedding count as worse. In four data sets, other weights of the
# same neighbor graph changed the ARI of the embedding by 0.04 to 0.15.
WORSE_CLUSTERS = 0.15
# Smaller differences of ARI, NMI and silhouette count neither for nor against the embedding. In four data sets, other
# seeds and weights of the neighbor graph changed the NMI of a PCA by 0.009 to 0.035.
SAME = 0.03
# iLISI of the embedding as a fraction of the best iLISI of PCA and Harmony, and a difference in iLISI that is always
# ignored.
MIXING, ALIKE = (0.9, 0.5), 0.02
# Value of iLISI up to which hardly any cell has a neighbor of another batch.
APART = 0.05


def embedding_verdicts(quality: EmbeddingQuality) -> list[Verdict]:
    """Judge the embedding by neighbors, and by labels and batches if the data have labels and batches."""
    verdicts = [_neighbor_verdict(quality)]
    verdicts += [_label_verdict(quality)] if quality.by_labels else []
    return verdicts + ([_batch_verdict(quality)] if quality.by_batches else [])


def _neighbor_verdict(quality: EmbeddingQuality) -> Verdict:
    with_pca, between_pcas = quality.neighbors_shared_with_pca, quality.pca_neighbors_shared
    kept = with_pca / between_pcas if between_pcas else 1.0
    level = LEVELS[sum(kept < limit for limit in NEIGHBORS_KEPT)]
    return Verdict(
        topic="neighbors",
        level=level,
        sentence=f"{with_pca:.0%} of a cell's {NEIGHBORS} nearest neighbors in the embedding are also among its "
        f"{NEIGHBORS} nearest neighbors in a PCA of {COMPONENTS} components; two PCAs of bootstrapped genes share "
        f"{between_pcas:.0%} of a cell's neighbors, and unrelated embeddings share "
        f"{quality.neighbors_shared_by_chance:.1%}",
        finding="" if level == "good" else "neighbors",
    )


def _label_verdict(quality: EmbeddingQuality) -> Verdict:
    own, *others = quality.scores
    sentence = (
        f"a vote of {NEIGHBORS} neighbors finds the labels in obs[{quality.labels!r}] with an accuracy of "
        f"{_beside(quality, lambda scores: scores.vote_accuracy, '.1%')}"
    )
    if own.ari is not None:
        sentence += (
            f"; Leiden clusters agree with the labels with an ARI of {_beside(quality, lambda s: s.ari, '.2f')} and an "
            f"NMI of {_beside(quality, lambda s: s.nmi, '.2f')}"
        )
    sentence += f"; the mean silhouette of the labels is {_beside(quality, lambda s: s.silhouette, '.2f')}"
    level, best = _worse_vote(others)
    if level == "good" and own.ari is not None:
        clusters = max(others, key=lambda scores: scores.ari or 0.0)
        if (clusters.ari or 0.0) - own.ari > WORSE_CLUSTERS:
            level, best = "watch", clusters
    if level == "good":
        return Verdict(topic="labels", level=level, sentence=sentence)
    better, worse = _compared(own, best)
    values = {"best": best.name, "worse": _listed(worse), "better": _listed(better)}
    if better and len(better) >= len(worse):
        level, finding = "watch", "labels unclear"
    else:
        finding = "labels in most measures" if better else "labels"
    return Verdict(topic="labels", level=level, sentence=sentence, finding=finding, values=values)


def _compared(own: Scores, other: Scores) -> tuple[list[str], list[str]]:
    """Return the measures by which the embedding separates the labels better and worse than PCA or Harmony."""
    assert other.vote_advantage is not None
    advantage, error = other.vote_advantage
    differences = {"vote": 0.0 if abs(advantage) <= SIGNIFICANT * error else advantage}
    for measure, title in (("ari", "ARI"), ("nmi", "NMI"), ("silhouette", "silhouette")):
        values = getattr(own, measure), getattr(other, measure)
        if None not in values:
            difference = values[0] - values[1]
            differences[title] = 0.0 if abs(difference) < SAME else difference
    return [name for name, d in differences.items() if d > 0], [name for name, d in differences.items() if d < 0]


def _listed(names: Sequence[str]) -> str:
    """Join names of measures, as the subject of a sentence.

    >>> _listed(["vote"]), _listed(["ARI", "NMI", "silhouette"])
    ('the vote is', 'ARI, NMI and silhouette are')
    """
    first, *rest = [f"the {name}" if name == "vote" else name for name in names] or [""]
    return f"{', '.join([first, *rest[:-1]])} and {rest[-1]} are" if rest else f"{first} is"


def _worse_vote(others: Sequence[Scores]) -> tuple[str, Scores]:
    """Return the level of the embedding's vote accuracy, and the scores of PCA or Harmony, whichever is better."""
    best = max(others, key=lambda scores: scores.vote_accuracy or 0.0)
    assert best.vote_advantage is not None
    advantage, error = best.vote_advantage
    if -advantage <= SIGNIFICANT * error:
        return "good", best
    return "poor" if -advantage > MUCH_WORSE else "watch", best


def _batch_verdict(quality: EmbeddingQuality) -> Verdict:
    own, *others = quality.scores
    by_name = {scores.name: scores.ilisi or 0.0 for scores in others}
    best = max(by_name, key=lambda name: by_name[name])
    mixing = own.ilisi or 0.0
    within = " within labels" if quality.by_labels else ""
    sentence = (
        f"the mixing of {quality.n_batches} batches, from 0 (separate) to 1 (well mixed), is "
        f"{_beside(quality, lambda s: s.ilisi, '.2f', ' by iLISI')}"
    )
    if own.kbet is not None:
        by = f" by the acceptance rate of kBET{within}"
        sentence += f" and {_beside(quality, lambda s: s.kbet, '.2f', by)}"
    level, finding = LEVELS[sum(mixing < limit * by_name[best] - ALIKE for limit in MIXING)], "batches"
    if max(mixing, by_name[best]) < APART:
        level, finding = "watch", "batches apart"
    finding = "" if level == "good" else finding
    return Verdict(topic="batches", level=level, sentence=sentence, finding=finding, values={"best": best})


def _beside(quality: EmbeddingQuality, score: Callable[[Scores], float | None], form: str, by: str = "") -> str:
    """Format the score of the embedding, the text `by` and, in parentheses, the scores of PCA and Harmony."""
    shown = {scores.name: format(value, form) for scores in quality.scores if (value := score(scores)) is not None}
    others = ", ".join(f"{name} {text}" for name, text in shown.items() if name != EMBEDDING)
    return f"{shown[EMBEDDING]}{by} ({others})"
