"""The advice for every finding of a diagnosis, in one table.

Each verdict names a finding. For each finding, the table has the text that is shown below the verdict, and for some
findings a command that may help. A diagnosis recommends only the command of the most important verdict, so recommended
commands never contradict each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scvae_cli.config import RunConfig
from scvae_cli.model.network import sizes

# Values of β for a sweep.
_BETAS = "0.1,0.3,1,3,10"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command to run next.

    Parameters
    ----------
    verb
        "embed", "train" or "sweep". "train" and "sweep" use the training options of the diagnosed model.
    options
        Options of the command, by their names without leading dashes.
    """

    verb: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Advice on a finding.

    Parameters
    ----------
    text
        The advice, without the name of a command. Names in braces are replaced by values of the verdict.
    command
        Function that makes the command from the options of the diagnosed model; None for advice on how to use results,
        which needs no command.
    """

    text: str
    command: Callable[[RunConfig], Command] | None = None


def lower_beta(beta: float) -> float:
    """Return a lower weight β of the KL term, so that the latent space keeps more information.

    >>> lower_beta(20), lower_beta(1), lower_beta(0.03)
    (1.0, 0.1, 0.003)
    """
    return 1.0 if beta > 1 else float(f"{beta / 10:.6g}")


def _with_lower_beta(config: RunConfig) -> Command:
    return Command(verb="train", options={"beta": f"{lower_beta(config.train.beta):g}"})


def _with_wider_network(config: RunConfig) -> Command:
    return Command(verb="train", options={"n_hidden": 2 * sizes(config.model)[1]})


def _train(**options: object) -> Callable[[RunConfig], Command]:
    return lambda _config: Command(verb="train", options=options)


def _sweep(_config: RunConfig) -> Command:
    return Command(verb="sweep", options={"beta": _BETAS})


def _refine(_config: RunConfig) -> Command:
    return Command(verb="embed", options={"refine": 100})


# Findings with advice that changes the model come first, because a new model replaces all results. Among verdicts of
# the same level, an earlier finding is more important than a later one.
ADVICE: dict[str, Advice] = {
    "unused": Advice(
        text="train with a lower --beta (now {beta:g}), such as {lower:g}, or longer (--patience, --max-epochs)",
        command=_with_lower_beta,
    ),
    "untrained": Advice(text="train longer (--patience, --max-epochs)"),
    "like mean model": Advice(
        text="check that the cells differ and have enough counts; train with a lower --beta (now {beta:g}), such as "
        "{lower:g}, or other genes (--n-top-genes)",
        command=_with_lower_beta,
    ),
    "poisson": Advice(
        text="use a likelihood with overdispersion: --likelihood nb or zinb", command=_train(likelihood="nb")
    ),
    "more zeros": Advice(text="use --likelihood zinb, or train longer (--patience)", command=_train(likelihood="zinb")),
    "genes": Advice(
        text="train with a larger --n-hidden, or longer (--patience); inspect the listed genes",
        command=_with_wider_network,
    ),
    "genes of linear decoder": Advice(
        text="train with --decoder mlp, or longer (--patience); inspect the listed genes", command=_train(decoder="mlp")
    ),
    "denoising": Advice(text="compare values of --beta or --n-latent in a sweep", command=_sweep),
    "labels": Advice(
        text="use {best} for clusters of these labels ({worse} better in {best}), or compare values of --beta or "
        "--n-latent in a sweep",
        command=_sweep,
    ),
    "labels in most measures": Advice(
        text="use {best} for clusters of these labels ({worse} better in {best}, and only {better} better in the "
        "embedding), or compare values of --beta or --n-latent in a sweep",
        command=_sweep,
    ),
    "encoder": Advice(
        text="refine the positions of the cells when you embed them (--refine 100); with more training cells or a "
        "wider encoder (--n-hidden), the amortization gap is smaller",
        command=_refine,
    ),
    # The advice for the following findings says how to use results, so it needs no command.
    "labels unclear": Advice(
        text="compare clusters of the embedding and of {best}, because the measures disagree: {worse} better in "
        "{best}, and {better} better in the embedding"
    ),
    "batches": Advice(
        text="check whether the batches contain the same kinds of cells; if they do, train with a larger "
        "--mix-batches (the default is 30), or use clusters of {best}"
    ),
    "batches apart": Advice(
        text="check whether the batches contain the same kinds of cells; if they do, train with a larger "
        "--mix-batches (the default is 30)"
    ),
    "neighbors": Advice(
        text="compute clusters, UMAP and trajectories from PCA too, and compare the results, because they depend on "
        "neighbors"
    ),
    "distances": Advice(
        text="compare only nearby cells by their distance in the embedding; compare distant groups by the length of "
        "the trajectory between them"
    ),
    "few cells": Advice(text="diagnose data with more cells"),
    "latent distances": Advice(
        text="interpolate along geodesics, which is the default; train with --flat 1 only for straight lines or "
        "arithmetic in latent space"
    ),
    "stability": Advice(text="rely only on results in which trainings with several seeds agree; train with more cells"),
    "linear decoder": Advice(text="consider --decoder linear: each gene then has one loading per latent dimension"),
    "few held out": Advice(
        text="train with more cells, or hold out a larger fraction of the cells (--validation-fraction)"
    ),
    "axes": Advice(text="do not interpret single axes on their own"),
    "holes": Advice(
        text="sample new cells from the density of the cells (--from density), or without the holes (--avoid-holes)"
    ),
    "posterior": Advice(
        text="compare models by the importance-weighted bound, which does not include the variational gap"
    ),
    "few detected": Advice(text="diagnose more cells (--cells), or cells with more counts"),
    "few varying": Advice(text="diagnose cells that differ more"),
}
IMPORTANCE = {finding: position for position, finding in enumerate(ADVICE)}
