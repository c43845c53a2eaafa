"""Restoring a training from a saved state, which may come from a source that is not trusted.

Before anything is restored, all parts of the saved state are checked: they must fit the training that will continue.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from scvae_cli.model.folder_checks import check_number, check_shapes, read_tensors
from scvae_cli.training.loop import EpochReport, Trainer
from scvae_cli.training.schedule import Schedule

# Fields of the schedule that change during a training. Fields of the schedule that are not in _CHANGES follow from the
# data and the options.
_CHANGES = ("peak_rate", "epoch", "step", "best_loss", "best_epoch", "noticed_loss", "noticed_epoch", "eased_epoch")


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return a dictionary of all tensors of a training's state; the keys are the names of the tensors."""
    tensors = {f"vae.{name}": tensor for name, tensor in trainer.vae.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in trainer.best_weights.items()}
    for index, state in trainer.optimizer.state_dict().items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    return tensors


def restore_state(trainer: Trainer, content: bytes, numbers: Mapping[str, Any]) -> list[dict[str, float]]:
    """Restore the saved state of a training, and return the history of the training, one row per epoch.

    Parameters
    ----------
    content, numbers
        Bytes of a safetensors file with the tensors of `tensors_of`; a mapping that was read from JSON, with the
        schedule, the number of rollbacks, the seconds of training and the history.

    Raises
    ------
    ValueError
        If the saved state does not fit the training, or a weight is not a finite number. If a ValueError is raised, the
        trainer is unchanged.
    """
    tensors = read_tensors(content)
    check_shapes(tensors, tensors_of(trainer))
    schedule = _schedule(numbers.get("schedule"), trainer.schedule)
    history = _history(numbers.get("history"), schedule.epoch)
    rollbacks, seconds = numbers.get("rollbacks"), numbers.get("seconds")
    check_number("rollbacks", rollbacks, whole=True, least=0)
    check_number("seconds", seconds, least=0)
    trainer.vae.load_state_dict(dict(_part(tensors, "vae.")))
    device = trainer.vae.reference_library.device
    trainer.best_weights = {name: tensor.to(device) for name, tensor in _part(tensors, "best.")}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer."):
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    trainer.optimizer.load_state_dict(state)
    trainer.schedule = schedule
    trainer.rollbacks, trainer.seconds = int(rollbacks or 0), float(seconds or 0)
    return history


def _part(tensors: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), tensor) for name, tensor in tensors.items() if name.startswith(prefix))


def _schedule(saved: Any, planned: Schedule) -> Schedule:
    """Check that a saved schedule belongs to the planned training, and return the saved schedule."""
    if not isinstance(saved, dict):
        raise ValueError("the saved schedule of the training is not a JSON object")
    values = {f.name: saved.get(f.name, getattr(planned, f.name)) for f in fields(Schedule)}
    for name in _CHANGES:
        least = -math.inf if "loss" in name else 0
        check_number(name, values[name], whole=isinstance(getattr(planned, name), int), least=least)
    schedule = Schedule(**values)
    if replace(planned, **{name: values[name] for name in _CHANGES}) != schedule:
        raise ValueError("the saved schedule belongs to a training with other data or options")
    begun = max(schedule.best_epoch, schedule.noticed_epoch, schedule.eased_epoch)
    if begun > schedule.epoch or schedule.step != schedule.epoch * schedule.steps_per_epoch:
        raise ValueError("the saved number of epochs does not agree with the saved number of training steps")
    if schedule.epoch > schedule.max_epochs or schedule.peak_rate > planned.peak_rate:
        raise ValueError("the saved number of epochs or the saved learning rate is above its maximum")
    return schedule


def _history(history: Any, n_epochs: int) -> list[dict[str, float]]:
    """Check and return a history: one row per epoch, with the numbers of an `EpochReport` and the held-out ELBO."""
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise ValueError("the saved history of the training is not a list of rows")
    columns = {field.name for field in fields(EpochReport)} | {"heldout_elbo"}
    if len(history) != n_epochs or any(row.keys() != columns for row in history):
        raise ValueError("the saved history of the training does not have one complete row for each epoch")
    for row in history:
        for name, value in row.items():
            if not isinstance(value, bool):
                check_number(f"{name} of the history", value)
    return history
