"""Diagnosing a model, for the Python API."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from scvae_cli.data.slots import DEFAULT_KEY, SlotNames
from scvae_cli.model.bundle import Model
from scvae_cli.session import Session
from scvae_cli.tools.diagnose import diagnosis
from scvae_cli.tools.diagnose.trained_verdicts import with_studies

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["diagnose"]


def diagnose(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    n_samples: int = 200,
    refine: int = 100,
    max_cells: int = 1000,
    quick: bool = False,
    n_trainings: int = 3,
    seed: int = 0,
    key_added: str = DEFAULT_KEY,
    inplace: bool = True,
    layer: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    output: Path | str | None = None,
    force: bool = False,
    device: str = "auto",
) -> diagnosis.Diagnosis | None:
    """Say how healthy a model is, in numbers and verdicts: `uns["scvae"]["diagnosis"]`.

    Use of the latent space, shape of the aggregated posterior, gaps of inference, calibration of the likelihood and
    what distances mean; measured on the cells that training held out, where the data has ten of them. Then further
    trainings: is the VAE worth it beside simpler models, and do other seeds agree?

    Parameters
    ----------
    n_samples, refine, max_cells, seed
        Importance samples a cell, steps of refinement, most cells that are decoded, and the seed of all that is drawn.
    quick, n_trainings
        Leave the further trainings out; how many seeds to compare, this model among them.
    data, model, key_added, inplace, layer, allow_missing_genes, drop_empty, output, force, device
        As for `embed`.

    Returns
    -------
    Without `inplace` the diagnosis; `diagnosis.verdicts` are its sentences.

    Raises
    ------
    ScvaeError
        For data or options that cannot be used.
    """
    options = diagnosis.DiagnosisOptions(n_samples=n_samples, n_steps=refine, max_cells=max_cells, seed=seed)
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
    target = None if output is None else Path(output)
    if inplace:
        session.check_destination(names.written_by("diagnose"), names=names, output=target, force=force)
    result = diagnosis.diagnose(session.model, session.counts, options)
    if not quick:
        result, _, _ = with_studies(result, session.model, session.counts, n_trainings=n_trainings)
    if not inplace:
        return result
    told = asdict(options) | {"quick": quick, "trainings": n_trainings}
    session.write(result.slots(names), names=names, run="diagnose", options=told, output=target, force=force)
    return None
