"""Saving the state of a training between epochs, and resuming the training from this state.

A resumed training gives the same result as an uninterrupted one, bit for bit. The state of the training is saved in one
file next to the future model folder: a line of JSON, and then the tensors in the safetensors format. The file is always
the state of one epoch, because it is replaced in one step. It is removed when the model is saved.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from scvae_cli.config import RunConfig
from scvae_cli.data.atomic import discard, remove_folder, replacing, resolved
from scvae_cli.data.counts import Counts
from scvae_cli.errors import DataError, ModelError
from scvae_cli.model.bundle import Model
from scvae_cli.training.loop import Trainer
from scvae_cli.training.schedule import Schedule

_OLD_FILES = ("state.safetensors", "state.json")


class Checkpoint:
    """The saved state of one training, next to the folder in which the finished model will be saved.

    A saved state can be restored only for the same data and configuration, that is, with the same `run_hash`.
    """

    def __init__(self, model_folder: Path, run_hash: str) -> None:
        place = resolved(model_folder)
        self.file = place.parent / f".{place.name}.partial"
        self._run_hash = run_hash

    def save(self, trainer: Trainer, history: list[dict[str, float]]) -> None:
        """Replace the saved state by the current state. Raises a ModelError if it cannot be written."""
        tensors = {f"vae.{name}": tensor for name, tensor in trainer.vae.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in trainer.best_weights.items()}
        for index, state in trainer.optimizer.state_dict().items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        numbers: dict[str, Any] = {
            "run_hash": self._run_hash,
            "schedule": asdict(trainer.schedule),
            "rollbacks": trainer.rollbacks,
            "seconds": trainer.seconds,
            "history": history,
        }
        numbers["sha256"] = _sha256(numbers, content)
        self._remove_old_format()
        try:
            with replacing(self.file, result=False) as sibling:
                sibling.write_bytes(json.dumps(numbers).encode() + b"\n" + content)
        except DataError as error:
            raise ModelError(error.message, error.hint) from error

    def restore(self, trainer: Trainer) -> list[dict[str, float]]:
        """Restore the saved state of a trainer, and return the history so far, one row per epoch.

        Raises a ModelError if there is no saved state, if the saved state is damaged, or if it belongs to other data or
        to another configuration.
        """
        try:
            first, _, content = self.file.read_bytes().partition(b"\n")
            numbers: dict[str, Any] = json.loads(first)
        except FileNotFoundError as error:
            raise ModelError("there is no interrupted training to resume", "train without --resume") from error
        except (OSError, ValueError) as error:
            raise ModelError(f"the saved state {self.file} cannot be read", "train again without --resume") from error
        if not isinstance(numbers, dict):
            raise ModelError(f"the saved state {self.file} is damaged", "train again without --resume")
        if numbers.get("run_hash") != self._run_hash:
            raise ModelError(
                "the interrupted training used other data or other options",
                "repeat the command of the interrupted training with --resume added, or train without --resume",
            )
        if numbers.get("sha256") != _sha256(numbers, content):
            raise ModelError(f"the saved state {self.file} is damaged", "train again without --resume")
        tensors = load_tensors(content)
        trainer.vae.load_state_dict(_part(tensors, "vae."))
        device = trainer.vae.reference_library.device
        trainer.best_weights = {name: t.to(device) for name, t in _part(tensors, "best.").items()}
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        trainer.optimizer.load_state_dict(state)
        saved = numbers["schedule"]
        trainer.schedule = Schedule(**{f.name: saved[f.name] for f in fields(Schedule) if f.name in saved})
        trainer.rollbacks, trainer.seconds = numbers["rollbacks"], numbers["seconds"]
        history: list[dict[str, float]] = numbers["history"]
        return history

    def discard(self) -> None:
        """Remove the saved state, because the model has been saved or a new training begins."""
        self._remove_old_format()
        discard(self.file)

    def _remove_old_format(self) -> None:
        """Remove the folder in which versions up to 0.2 saved the state."""
        if self.file.is_dir():
            remove_folder(self.file, [f"{name}{end}" for name in _OLD_FILES for end in ("", ".tmp")])


def run_hash(counts: Counts, config: RunConfig, start_from: Model | None = None) -> str:
    """Hash all inputs that determine the weights: data, configuration and the model to start from.

    Device and compilation are excluded. The number of CPU threads is included, because it determines the order in which
    sums are computed.
    """
    settings = config.as_dict()
    settings["compute"] = {"threads": torch.get_num_threads(), "precision": config.compute.precision}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    named = [counts.cell_names, counts.gene_names] + ([] if counts.batch is None else [counts.batch])
    for names in named:
        digest.update("\n".join(names).encode() + b"\0")
    for values in (counts.matrix.data, counts.matrix.indices):
        digest.update(np.ascontiguousarray(values).data)
    if start_from is not None:
        digest.update(str(start_from.config.train.beta).encode())
        digest.update(save_tensors({name: t.cpu().contiguous() for name, t in start_from.vae.state_dict().items()}))
    return digest.hexdigest()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sha256(numbers: dict[str, Any], content: bytes) -> str:
    """Hash a saved state, without the entry that stores this hash."""
    others = {name: value for name, value in numbers.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode() + content).hexdigest()
