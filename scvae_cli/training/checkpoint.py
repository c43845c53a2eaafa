"""Saving the state of a training between epochs, and resuming the training from this state.

A resumed training gives the same result as an uninterrupted training, bit for bit. The state of a training is saved in
one file, next to the folder in which the model will be saved. The file begins with a line of JSON; weights and
optimizer state follow in the safetensors format. The file with the saved state is replaced in one step, so that it
always contains the complete state of one epoch. The saved state of a training is removed when the trained model is
saved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from scvae_cli.config import RunConfig
from scvae_cli.data.atomic import discard, remove_folder, replacing, resolved
from scvae_cli.data.counts import Counts
from scvae_cli.data.writers_lock import only_writer
from scvae_cli.errors import DataError, ModelError
from scvae_cli.model.bundle import Model
from scvae_cli.model.folder_checks import most_bytes
from scvae_cli.regular_file import read_regular
from scvae_cli.strict_json import parse_json
from scvae_cli.training.loop import Trainer
from scvae_cli.training.saved_state import restore_state, tensors_of

_OLD_FILES = ("state.safetensors", "state.json")
_MOST_NUMBERS = 1 << 26


class Checkpoint:
    """The saved state of one training, next to the folder in which the finished model will be saved.

    A training can continue from a saved state only if data and configuration are unchanged; `run_hash` is a hash of
    both.
    """

    def __init__(self, model_folder: Path, run_hash: str) -> None:
        place = resolved(model_folder)
        self.file = place.parent / f".{place.name}.partial"
        self._run_hash = run_hash

    def save(self, trainer: Trainer, history: list[dict[str, float]]) -> None:
        """Save the current state of a training, replacing the state that was saved before.

        Raises a ModelError if the file of the saved state cannot be written.
        """
        content = save_tensors(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors_of(trainer).items()}
        )
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
        """Restore the saved state of a training, and return the history of the training, one row per epoch.

        Raises a ModelError if the saved state is missing or damaged. A ModelError is also raised if the saved training
        had other data or other options.
        """
        most = most_bytes(tensors_of(trainer).values())
        try:
            saved = read_regular(self.file, most=most + _MOST_NUMBERS)
            first, _, content = saved.partition(b"\n")
            numbers = parse_json(first)
        except FileNotFoundError as error:
            raise ModelError("there is no interrupted training to resume", "train without --resume") from error
        except (OSError, ValueError) as error:
            raise ModelError(f"the saved state {self.file} cannot be read", "train again without --resume") from error
        if not isinstance(numbers, dict) or numbers.get("run_hash") != self._run_hash:
            raise ModelError(
                "the interrupted training used other data or other options",
                "repeat the command of the interrupted training with --resume added, or train without --resume",
            )
        if numbers.get("sha256") != _sha256(numbers, content):
            raise ModelError(f"the saved state {self.file} is damaged", "train again without --resume")
        try:
            return restore_state(trainer, content, numbers)
        except ValueError as error:
            message = f"the saved state {self.file} is damaged: {error}"
            raise ModelError(message, "train again without --resume") from error

    def discard(self) -> None:
        """Remove the saved state of a training after the trained model has been saved."""
        self._remove_old_format()
        discard(self.file)

    def _remove_old_format(self) -> None:
        """Remove the folder in which scvae up to version 0.2 saved the state of a training."""
        if self.file.is_dir():
            remove_folder(self.file, [f"{name}{end}" for name in _OLD_FILES for end in ("", ".tmp")])


@contextlib.contextmanager
def only_training(model_folder: Path) -> Iterator[None]:
    """Context manager that prevents other processes from training the same model and replacing its saved state.

    Raises a ModelError if another process trains the model, or if the model folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_writer(resolved(model_folder), wait=0, error=ModelError, work="training"))
            # The folder is tested before the training, so that a model that cannot be written is noticed early.
            with only_writer(resolved(model_folder), error=ModelError):
                pass
        except OSError as error:
            reason = error.strerror or error
            raise ModelError(f"cannot write {model_folder}: {reason}", "choose another folder with -m") from error
        yield


def run_hash(counts: Counts, config: RunConfig, start_from: Model | None = None) -> str:
    """Hash all inputs of a training that determine the trained weights.

    The hash is computed from the data, the configuration, and the weights from which the training starts. The hash does
    not depend on the device. The hash depends on the number of CPU threads, because the number of threads determines
    the order in which numbers are added, and therefore the rounding errors.
    """
    settings = config.as_dict()
    settings["compute"] = {"threads": torch.get_num_threads(), "precision": config.compute.precision}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if counts.covariates is not None:
        digest.update(np.ascontiguousarray(counts.covariates.value_nv).data)
    named = [counts.cell_names, counts.gene_names] + ([] if counts.batch is None else [counts.batch])
    for names in named:
        digest.update("\n".join(names).encode() + b"\0")
    if counts.labels is not None:
        digest.update("\n".join(counts.labels.names).encode() + b"\0")
        digest.update(np.ascontiguousarray(counts.labels.code_n).data)
    for values in (counts.matrix.data, counts.matrix.indices):
        digest.update(np.ascontiguousarray(values).data)
    if start_from is not None:
        digest.update(str(start_from.config.train.beta).encode())
        digest.update(save_tensors({name: t.cpu().contiguous() for name, t in start_from.vae.state_dict().items()}))
    return digest.hexdigest()


def _sha256(numbers: dict[str, Any], content: bytes) -> str:
    """Hash a saved state, without the entry that stores this hash."""
    others = {name: value for name, value in numbers.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode() + content).hexdigest()
