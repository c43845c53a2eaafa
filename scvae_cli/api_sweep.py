"""Sweeps for the Python API and the command line: data opened, places checked, the answer written beside the cells."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae_cli._version import __version__
from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts, read_counts
from scvae_cli.data.formats import open_store
from scvae_cli.data.provenance import provenance, refuse_foreign
from scvae_cli.data.slots import DEFAULT_KEY, SlotNames
from scvae_cli.data.store import CellStore
from scvae_cli.errors import ConfigError, ScvaeWarning
from scvae_cli.model.bundle import Model, check_new_model
from scvae_cli.tools.sweep.result import Sweep, SweepOptions
from scvae_cli.tools.sweep.sweep import Training
from scvae_cli.tools.sweep.sweep import sweep as run_sweep
from scvae_cli.training.fit import FitEvent, last_event

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["SweepRequest", "sweep"]


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What is asked for, of which cells, and where the answer goes.

    Parameters
    ----------
    store
        The cells.
    config
        Of the trainings.
    options
        What is varied.
    names
        Of the slots.
    models
        Folder that keeps every run's model; None keeps none.
    output, force
        Another .h5ad to write; replace what is there.
    """

    store: CellStore
    config: RunConfig
    options: SweepOptions
    names: SlotNames
    models: Path | None = None
    output: Path | None = None
    force: bool = False

    def check(self) -> None:
        """Refuse before the trainings what would be refused after them.

        Raises
        ------
        DataError, ModelError
            When a slot or a model is there and may not be replaced, or a place cannot be written to.
        """
        paths = self.names.written_by("sweep", self.options.varied)
        self.store.check_destination(paths, output=self.output, force=self.force)
        if not self.force:
            refuse_foreign(self.store, paths, self.names)

    def check_models(self) -> None:
        """The same for the models' folder.

        Raises
        ------
        ModelError
            As above.
        """
        if self.models is None:
            return
        if not self.models.is_dir():
            check_new_model(self.models, force=self.force)
            return
        for value in self.options.values:
            check_new_model(self._model_folder(value), force=self.force)

    def counts(self) -> Counts:
        """The raw counts, or real numbers; whoever asks holds them alone."""
        data, real = self.config.data, not self.config.model.of_counts
        return read_counts(self.store, layer=data.layer, batch_key=data.batch_key, real=real)

    def answer(
        self, counts: Counts, *, follow: Callable[[Training, Iterator[FitEvent]], FitEvent | None] = last_event
    ) -> Sweep:
        """Run the sweep, keeping the models that are to be kept as they come."""
        return run_sweep(counts, self.config, self.options, follow=follow, on_model=self._keep)

    def write(self, result: Sweep) -> list[str]:
        """Write the result and where it came from; returns the paths of its slots."""
        slots = result.slots(self.names)
        run = f"sweep_{result.varied}"
        facts = {
            "command": "sweep",
            "scvae_version": __version__,
            "model_hash": f"{len(result.runs)} models, trained for it",
            "counts_source": result.counts_source,
            "device": result.device,
            "missing_genes": 0,
            "options": {result.varied: list(result.values), "judge": result.judge, "config": self.config.as_dict()},
        }
        record = provenance(self.store, self.names, run, slots, facts)
        self.store.write([*slots, record], output=self.output, force=self.force)
        return [slot.path for slot in slots]

    def _model_folder(self, value: float) -> Path:
        assert self.models is not None, "asked for only when models are kept"
        return self.models / f"{self.options.varied}_{value:g}.scvae"

    def _keep(self, value: float, model: Model) -> None:
        if self.models is None:
            return
        self.models.mkdir(exist_ok=True)
        model.save(self._model_folder(value), force=self.force)


def sweep(
    data: AnnData | Path | str,
    *,
    beta: Sequence[float] | None = None,
    n_latent: Sequence[float] | None = None,
    judge: str | None = None,
    models: Path | str | None = None,
    config: Path | str | None = None,
    key_added: str = DEFAULT_KEY,
    inplace: bool = True,
    output: Path | str | None = None,
    force: bool = False,
    **options: Any,
) -> Sweep | None:
    """Train once for every β, or number of latent dimensions, and say which to take: `uns["scvae"]["sweep"]`.

    The runs learn from nine tenths of every cell's molecules; the rest judges them.

    Parameters
    ----------
    data
        Cells × genes.
    beta, n_latent
        Values to train with, of one of the two.
    judge
        As for `scvae_cli.tools.sweep.result.SweepOptions`.
    models
        Folder that keeps every run's model, as `beta_0.3.scvae`.
    config, **options
        As for `train`, but for what is varied; the other of the two may stand in the config file.
    key_added, inplace, output, force
        As for `embed`.

    Returns
    -------
    With `inplace=False` a `scvae_cli.tools.sweep.result.Sweep`.

    Raises
    ------
    ScvaeError
        For data or options that cannot be used.
    """
    known = RunConfig.option_names()
    for name in options:
        if name not in known:
            raise ConfigError(f"sweep() has no option {name!r}", "options: " + ", ".join(sorted(known)))
    request = SweepRequest(
        store=open_store(data),
        config=RunConfig.resolve(None if config is None else Path(config), options),
        options=SweepOptions(beta=beta, n_latent=n_latent, judge=judge),
        names=SlotNames(key_added=key_added),
        models=None if models is None else Path(models),
        output=None if output is None else Path(output),
        force=force,
    )
    if inplace:
        request.check()
    request.check_models()
    result = request.answer(request.counts())
    for warning in result.warnings():
        warnings.warn(ScvaeWarning(warning), stacklevel=2)
    if not inplace:
        return result
    request.write(result)
    return None
