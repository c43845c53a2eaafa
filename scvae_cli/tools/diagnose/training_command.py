"""The command line of a suggested training: the options of the diagnosed model, and a folder for the new model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scvae_cli.config import RunConfig, TrainConfig
from scvae_cli.evaluation.retraining import requested_config
from scvae_cli.model.bundle import Model
from scvae_cli.model.folder_checks import N_LABELED
from scvae_cli.options import declarations
from scvae_cli.training.recipe import chosen_label_weight

# Options that choose a part of a file, because the diagnosed file may contain only this part.
_PARTS_OF_A_FILE = ("genome", "modality")


def training_options(model: Model) -> dict[str, object]:
    """Return the names and values of the options that the user chose for the training of a model.

    Options with their default value are left out. Options of the computation (such as the device), options that the
    command line lacks, and options that choose a part of a file are left out too.
    """
    requested = requested_config(model)
    parts = {"data": model.config.data, "model": requested.model, "train": _asked(model, requested.train)}
    chosen: dict[str, object] = {}
    for declared in declarations(RunConfig):
        if declared.section in parts and declared.on_command_line and declared.name not in _PARTS_OF_A_FILE:
            value = getattr(parts[declared.section], declared.name)
            if value != declared.default:
                chosen[declared.name] = f"{value:g}" if isinstance(value, float) else value
    return chosen


def _asked(model: Model, train: TrainConfig) -> TrainConfig:
    """Return the options without the weight of the labels if the weight equals the automatic choice."""
    n_labeled = model.facts.get(N_LABELED)
    if n_labeled is None or train.label_weight != chosen_label_weight(n_labeled):
        return train
    return replace(train, label_weight=None)


def unused_folder(folder: Path | str) -> Path:
    """Return a path for a new model folder that does not exist yet, next to an existing model folder."""
    folder = Path(folder)
    number = 2
    while (found := folder.with_name(f"{folder.stem}_{number}.scvae")).exists():
        number += 1
    return found
