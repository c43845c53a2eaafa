"""The Python API: each verb of the command line, on an AnnData in memory (or a path).

Data comes first and results go into it, as scanpy's functions do; `inplace=False` returns the result instead.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae_cli.config import Likelihood, ModelConfig, RunConfig
from scvae_cli.data.counts import read_counts
from scvae_cli.data.formats import open_store
from scvae_cli.data.inspection import Inspection, inspect
from scvae_cli.data.slots import DEFAULT_KEY, SlotNames
from scvae_cli.errors import ConfigError, ScvaeWarning
from scvae_cli.latent import posteriors as embedding
from scvae_cli.model.bundle import Model, load
from scvae_cli.session import Session
from scvae_cli.tools.denoise import denoising
from scvae_cli.tools.pseudotime import ordering
from scvae_cli.tools.score import scoring
from scvae_cli.tools.trajectory import interpolation
from scvae_cli.tools.trajectory.result import Path as Walk
from scvae_cli.tools.trajectory.result import PathOptions, default_name
from scvae_cli.training.fit import FitEvent, fit_to_end

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["check", "denoise", "embed", "interpolate", "load", "pseudotime", "score", "train"]


def train(
    data: AnnData | Path | str,
    *,
    config: Path | str | None = None,
    on_event: Callable[[FitEvent], None] | None = None,
    **options: Any,
) -> Model:
    """Train a model on raw counts or, with a normal likelihood, on real numbers.

    Parameters
    ----------
    data
        Cells × genes.
    config
        A TOML file with the sections [data], [model], [train] and [compute].
    on_event
        Called with everything that happens (`scvae_cli.training.fit.FitEvent`).
    **options
        Any field of the four configuration classes in `scvae_cli.config`: `batch_key="donor"`, `likelihood="nb"`,
        `n_latent=10`, `beta=2.0`, `seed=1`, `device="cpu"`, ...

    Returns
    -------
    The model; `model.save("NAME.scvae")` keeps it.

    Raises
    ------
    ScvaeError
        For data or options that cannot be used.
    """
    known = RunConfig.option_names()
    for name in options:
        if name not in known:
            raise ConfigError(f"train() has no option {name!r}", "options: " + ", ".join(sorted(known)))
    run = RunConfig.resolve(None if config is None else Path(config), options)
    counts = read_counts(
        open_store(data), layer=run.data.layer, batch_key=run.data.batch_key, real=not run.model.of_counts
    )
    return fit_to_end(counts, run, on_event=on_event)


def check(
    data: AnnData | Path | str,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    likelihood: Likelihood = "zinb",
) -> Inspection:
    """Say what is in the data, and what training with a likelihood would refuse or warn about."""
    real = not ModelConfig(likelihood=likelihood).of_counts
    return inspect(open_store(data), layer=layer, batch_key=batch_key, real=real)


def embed(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    axes: str = "canonical",
    refine: int = 0,
    key_added: str = DEFAULT_KEY,
    inplace: bool = True,
    layer: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    output: Path | str | None = None,
    force: bool = False,
    device: str = "auto",
) -> embedding.Embedding | None:
    """Place cells in latent space: `obsm["X_scvae"]` and `obsm["scvae_latent_var"]`.

    Parameters
    ----------
    data, model
        Cells × genes, and a model or its folder.
    axes
        "canonical" (those that explain most of the expression come first) or "training".
    refine
        Steps by gradient from the encoder's posterior towards the best one of each cell; needs the batches that the
        model knows.
    key_added
        Replaces "scvae" in every slot.
    inplace
        Write into the data and return None; else return the result and write nothing.
    layer, allow_missing_genes, drop_empty, device
        As for `Session.open`.
    output, force
        For a path as data: write a copy there; replace what is not scvae's.
    """
    session = Session.open(
        data,
        model,
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
        needs_batch=refine > 0,
    )
    names = SlotNames(key_added=key_added)
    if inplace:
        session.check_destination(names.written_by("embed"), names=names, output=_path(output), force=force)
    result = embedding.embed(session.model, session.counts, axes=axes, refine=refine)
    if not inplace:
        return result
    told = {"axes": axes, "refine": refine}
    session.write(result.slots(names), names=names, run="embed", options=told, output=_path(output), force=force)
    return None


def denoise(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    estimate: str = "state",
    n_samples: int = 10,
    library: str | float = "observed",
    genes: Sequence[str] | None = None,
    batch_as: str = "average",
    with_zero_inflation: bool = False,
    seed: int = 0,
    key_added: str = DEFAULT_KEY,
    inplace: bool = True,
    layer: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    output: Path | str | None = None,
    force: bool = False,
    device: str = "auto",
) -> denoising.Denoised | None:
    """Expected counts of every cell: `layers["scvae_denoised"]`, NaN for genes outside the model.

    Parameters
    ----------
    estimate, n_samples, library, genes, batch_as, with_zero_inflation, seed
        As for `DenoisingOptions`.
    data, model, key_added, inplace, layer, allow_missing_genes, drop_empty, output, force, device
        As for `embed`. With `inplace=False` the result's blocks are computed as they are walked through;
        `result.rows.whole()` is the matrix.
    """
    options = denoising.DenoisingOptions(
        estimate=estimate,
        n_samples=n_samples,
        library=library,
        genes=None if genes is None else tuple(genes),
        batch_as=batch_as,
        with_zero_inflation=with_zero_inflation,
        seed=seed,
    )
    session = Session.open(
        data,
        model,
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
        needs_batch=options.needs_batch,
    )
    names = SlotNames(key_added=key_added)
    if inplace:
        session.check_destination(names.written_by("denoise"), names=names, output=_path(output), force=force)
    result = denoising.denoise(session.model, session.counts, session.store.gene_names, options)
    if not inplace:
        return result
    told = dataclasses.asdict(options)
    session.write(result.slots(names), names=names, run="denoise", options=told, output=_path(output), force=force)
    return None


def interpolate(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    groupby: str | None = None,
    groups: Sequence[str] | None = None,
    cells: Sequence[str] | None = None,
    time_key: str | None = None,
    name: str | None = None,
    n_steps: int = 50,
    path: str = "geodesic",
    endpoint: str = "density",
    couple: str = "none",
    n_paths: int = 50,
    seed: int = 0,
    library: str | float = "median",
    batch_as: str = "average",
    key_added: str = DEFAULT_KEY,
    inplace: bool = True,
    layer: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    output: Path | str | None = None,
    force: bool = False,
    device: str = "auto",
) -> Walk | None:
    """Walk through latent space from one population or cell to another, and decode the walk.

    Parameters
    ----------
    groupby, groups
        A column of obs, and the groups to walk through, in order: two or more.
    cells
        Or the cells to walk through; `groupby` then only names the groups that are passed.
    time_key
        Or a column of obs with time points, all of which are walked through in order.
    name
        Of the path; by default made of its ends.
    n_steps, path, endpoint, couple, n_paths, seed, library, batch_as
        As for `PathOptions`.
    data, model, key_added, inplace, layer, allow_missing_genes, drop_empty, output, force, device
        As for `embed`.
    """
    session = Session.open(
        data, model, layer=layer, device=device, allow_missing_genes=allow_missing_genes, drop_empty=drop_empty
    )
    if sum(way is not None for way in (groups, cells, time_key)) > 1:
        raise ConfigError("the way was given twice", "use one of groups, cells and time_key")
    labels = session.time_points(time_key) if time_key is not None else list(groups or cells or ())
    key = time_key or groupby
    waypoints = session.waypoints(labels, groupby=None if cells else key)
    options = PathOptions(
        name=name or default_name(labels),
        n_steps=n_steps,
        path=path,
        endpoint=endpoint,
        couple=couple,
        n_paths=n_paths,
        seed=seed,
        library=library,
        batch_as=batch_as,
    )
    names, run = SlotNames(key_added=key_added), f"interpolate_{options.name}"
    if inplace:
        planned = names.written_by("interpolate", options.name)
        made_of = None if name else {"waypoints": labels}
        session.check_destination(planned, names=names, output=_path(output), force=force, run=run, made_of=made_of)
    told_groups = None if key is None else session.labels(groupby or key)
    result = interpolation.interpolate(session.model, session.counts, waypoints, options, groups=told_groups)
    if (warning := result.warning()) is not None:
        warnings.warn(ScvaeWarning(warning), stacklevel=2)
    if not inplace:
        return result
    slots = result.slots(names, session.store.gene_names)
    told = dataclasses.asdict(options) | {"waypoints": labels, "groupby": groupby, "time_key": time_key}
    session.write(slots, names=names, run=run, options=told, output=_path(output), force=force)
    return None


def pseudotime(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    root: str,
    ends: Sequence[str] = (),
    groupby: str | None = None,
    name: str | None = None,
    seed: int = 0,
    key_added: str = DEFAULT_KEY,
    inplace: bool = True,
    layer: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    output: Path | str | None = None,
    force: bool = False,
    device: str = "auto",
) -> ordering.Pseudotime | None:
    """Order cells by geodesic distance from a root, and share them out among ends.

    Parameters
    ----------
    root, ends
        Groups of `obs[groupby]`; without `groupby`, names of cells.
    name
        Of the ordering; by default made of its root.
    seed
        Of the selections made among very many cells.
    data, model, key_added, inplace, layer, allow_missing_genes, drop_empty, output, force, device
        As for `embed`.
    """
    session = Session.open(
        data, model, layer=layer, device=device, allow_missing_genes=allow_missing_genes, drop_empty=drop_empty
    )
    start, *places = session.places([root, *ends], groupby=groupby)
    chosen = name or ordering.default_name(start.label)
    names, run = SlotNames(key_added=key_added), f"pseudotime_{chosen}"
    if inplace:
        planned = names.written_by("pseudotime", chosen)[: None if ends else 2]
        made_of = None if name else {"root": start.label}
        session.check_destination(planned, names=names, output=_path(output), force=force, run=run, made_of=made_of)
    result = ordering.pseudotime(session.model, session.counts, start, places, name=chosen, seed=seed)
    if (warning := result.warning()) is not None:
        warnings.warn(ScvaeWarning(warning), stacklevel=2)
    if not inplace:
        return result
    told = {
        "groupby": groupby,
        "root": start.label,
        "ends": [place.label for place in places],
        "seed": seed,
        "name": chosen,
    }
    session.write(result.slots(names), names=names, run=run, options=told, output=_path(output), force=force)
    return None


def score(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    n_samples: int = 100,
    n_simulated: int = scoring.N_SIMULATED,
    seed: int = 0,
    key_added: str = DEFAULT_KEY,
    inplace: bool = True,
    layer: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    output: Path | str | None = None,
    force: bool = False,
    device: str = "auto",
) -> scoring.Scores | None:
    """How likely each cell is, in nats, and whether it is unlike the model's own cells.

    `obs["scvae_elbo"]`, its parts `obs["scvae_reconstruction"]` and `obs["scvae_kl"]`, the tighter `obs["scvae_iwae"]`,
    `obs["scvae_iwae_density"]` (with the density of where cells are in place of the prior); and
    `obs["scvae_anomaly_score"]`, `obs["scvae_anomaly_p"]`, `obs["scvae_anomaly_p_adjusted"]`.

    Parameters
    ----------
    n_samples, n_simulated, seed
        Importance samples a cell, cells drawn from the model to compare with, and the seed of both.
    data, model, key_added, inplace, layer, allow_missing_genes, drop_empty, output, force, device
        As for `embed`.
    """
    session = Session.open(
        data,
        model,
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
        needs_batch=True,
    )
    names = SlotNames(key_added=key_added)
    if inplace:
        session.check_destination(names.written_by("score"), names=names, output=_path(output), force=force)
    result = scoring.score(session.model, session.counts, n_samples=n_samples, n_simulated=n_simulated, seed=seed)
    if not inplace:
        return result
    told = {"n_samples": n_samples, "n_simulated": n_simulated, "seed": seed}
    session.write(result.slots(names), names=names, run="score", options=told, output=_path(output), force=force)
    return None


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)
