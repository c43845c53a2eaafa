"""What further trainings add to a diagnosis: sections with their numbers, and what these come to in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.evaluation.retraining import on_some
from scvae_cli.heldout import MIN_HELDOUT
from scvae_cli.model.bundle import Model
from scvae_cli.tools.diagnose.diagnosis import Diagnosis, Section
from scvae_cli.tools.diagnose.stability import Stability, stability
from scvae_cli.tools.diagnose.verdicts import Verdict
from scvae_cli.tools.diagnose.worth import LINEAR, MEAN, NOTHING, VAE, Contender, Worth, worth

# A difference counts when it is so many standard errors wide.
SURE = 3.0
# Two embeddings whose variance is left apart by no more than this look alike in any picture; beyond the second share,
# what one training shows may not be in the next.
ALIKE, UNLIKE = 0.2, 0.5


def with_studies(
    diagnosis: Diagnosis,
    model: Model,
    counts: Counts,
    *,
    n_trainings: int,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Diagnosis, Worth, Stability]:
    """A diagnosis with what further trainings tell: is the VAE worth it, and would another training say the same?

    Parameters
    ----------
    diagnosis
        Of the one model.
    model, counts
        The model, and cells in its genes with the batches of a model that has them; where they are others than it was
        trained on, one trained on them stands in for it.
    n_trainings
        Trainings to compare, the model itself among them, 2 or more.
    say
        Told what is being done.
    """
    model, counts = on_some(model, counts, say=say)
    worthy = worth(model, counts, say=say)
    stable = stability(model, counts, n_trainings=n_trainings, say=say)
    values = asdict(stable) | {"heldout_elbo": np.asarray(stable.heldout_elbo)}
    diagnosis = diagnosis.with_section(
        Section(name="worth", values=_columns(worthy), verdicts=tuple(worth_verdicts(worthy)))
    )
    diagnosis = diagnosis.with_section(Section(name="stability", values=values, verdicts=(stability_verdict(stable),)))
    return diagnosis, worthy, stable


def worth_verdicts(worth: Worth) -> list[Verdict]:
    """Is the VAE worth it here?"""
    likelihood = _likelihood(worth)
    return [likelihood, _denoising(worth)] if worth.n_thinned else [likelihood]


def _columns(worth: Worth) -> dict[str, object]:
    """The contenders as arrays; NaN where one has no such figure."""

    def column(value_of: Callable[[Contender], float | None]) -> np.ndarray:
        return np.asarray([np.nan if (value := value_of(one)) is None else value for one in worth.contenders])

    return {
        "contender": np.asarray([one.name for one in worth.contenders], dtype=object),
        "heldout": column(lambda one: one.heldout),
        "heldout_behind": column(lambda one: one.heldout_behind and one.heldout_behind[0]),
        "heldout_error": column(lambda one: one.heldout_behind and one.heldout_behind[1]),
        "thinned_state": column(lambda one: one.thinned_state),
        "thinned_cell": column(lambda one: one.thinned_cell),
        "thinned_behind": column(lambda one: one.thinned_behind and one.thinned_behind[0]),
        "thinned_error": column(lambda one: one.thinned_behind and one.thinned_behind[1]),
        "n_heldout": worth.n_heldout,
        "n_thinned": worth.n_thinned,
        "n_components": worth.n_components,
    }


def stability_verdict(stability: Stability) -> Verdict:
    """Would another training have said the same?"""
    apart, near = stability.procrustes, stability.neighbours_shared
    level = "good" if apart <= ALIKE else "watch" if apart <= UNLIKE else "poor"
    told = (
        f"{stability.n_trainings} trainings with different seeds leave {apart:.0%} of the variance apart, best aligned "
        f"(unrelated ones {stability.procrustes_by_chance:.0%}), share {near:.0%} of each cell's neighbours, "
        f"and agree on the strong canonical axes with a correlation of {stability.axis_correlation:.2f}"
    )
    remedy = "" if level == "good" else "believe what several seeds show; fewer --n-latent or more cells steady it"
    return Verdict(topic="stability", level=level, sentence=told, remedy=remedy)


def _likelihood(worth: Worth) -> Verdict:
    by_name = {one.name: one for one in worth.contenders}
    vae, mean = by_name[VAE], by_name[MEAN]
    # A VAE that is linear itself has no linear decoder beside it.
    linear_behind = by_name[LINEAR].heldout_behind if LINEAR in by_name else None
    assert vae.heldout is not None
    assert mean.heldout_behind is not None
    told = f"held-out cells: {vae.heldout:.1f} nats a cell; {_against(mean.heldout_behind, MEAN)}"
    if linear_behind is not None:
        told += f", {_against(linear_behind, LINEAR)}"
    if worth.n_heldout < MIN_HELDOUT:
        return Verdict(
            topic="worth: likelihood",
            level="watch",
            sentence=f"{told}: with {worth.n_heldout} held out none of this is sure",
            remedy="train with more cells, or hold out more of them (--validation-fraction)",
        )
    if not _ahead(mean.heldout_behind):
        return Verdict(
            topic="worth: likelihood",
            level="poor",
            sentence=f"{told}: no latent space is needed to explain these cells",
            remedy="check that the cells differ and are deep enough; lower --beta; other genes (--n-top-genes)",
        )
    if linear_behind is None or _ahead(linear_behind):
        return Verdict(topic="worth: likelihood", level="good", sentence=told)
    return Verdict(
        topic="worth: likelihood",
        level="watch",
        sentence=f"{told}: a linear decoder does as well here",
        remedy="--decoder linear gives loadings that can be read gene by gene",
    )


def _denoising(worth: Worth) -> Verdict:
    others = [one for one in worth.contenders if one.name not in (VAE, NOTHING)]
    told = "molecules set aside: " + ", ".join(_against(one.thinned_behind, one.name) for one in others)
    behind = {one.name: one.thinned_behind[0] for one in others if one.thinned_behind and _ahead(_turned(one))}
    if not behind:
        return Verdict(topic="worth: denoising", level="good", sentence=told)
    best = min(behind, key=lambda name: behind[name])
    return Verdict(
        topic="worth: denoising",
        level="watch" if best == LINEAR else "poor",
        sentence=f"{told}: {best} predicts them better",
        remedy="--decoder linear" if best == LINEAR else "scvae sweep finds a better --beta or --n-latent",
    )


def _against(behind: tuple[float, float] | None, name: str) -> str:
    if behind is None:
        return f"{name} gives none"
    difference, error = behind
    word = "ahead of" if difference >= 0 else "behind"
    known = "" if np.isnan(error) else f" ± {error:.2f}"
    return f"{abs(difference):.2f}{known} nats {word} the {name}".replace("the PCA", "PCA")


def _ahead(behind: tuple[float, float]) -> bool:
    return behind[0] > SURE * behind[1]


def _turned(one: Contender) -> tuple[float, float]:
    assert one.thinned_behind is not None
    return -one.thinned_behind[0], one.thinned_behind[1]
