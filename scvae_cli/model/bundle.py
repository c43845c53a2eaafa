"""A trained model and the folder that stores it.

`NAME.scvae/` contains config.json, genes.txt, heldout_cells.txt, weights.safetensors, latent.safetensors (the density
of the cells in latent space, the canonical axes, and the map to expression space) and history.csv. A model that was
trained with labels also has labels.safetensors. No file in a model folder contains code, so loading a model from an
untrusted source runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from scvae_cli._version import __version__
from scvae_cli.amounts import amount
from scvae_cli.config import RunConfig
from scvae_cli.data.atomic import (
    may_write,
    orphans,
    remove_folder,
    resolved,
    sync_folder,
    temporary_name,
    warn_of_lost,
)
from scvae_cli.data.exchange import exchange
from scvae_cli.data.file_metadata import keep_metadata, new_file_mode
from scvae_cli.data.writers_lock import only_writer
from scvae_cli.errors import ConfigError, DataError, ModelError
from scvae_cli.interruption import deferred, note_written
from scvae_cli.labels import is_reserved
from scvae_cli.model.axes import CanonicalAxes
from scvae_cli.model.density import LatentDensity
from scvae_cli.model.design import Design
from scvae_cli.model.expression_space import ExpressionSpace
from scvae_cli.model.folder_checks import (
    check_combinations,
    check_design,
    check_facts,
    check_latent,
    check_mapped,
    check_names,
    check_shapes,
    empty_network,
    most_bytes,
    most_latent_bytes,
    read_tensors,
)
from scvae_cli.model.probe import check_network
from scvae_cli.model.stored_labels import KINDS, StoredLabels
from scvae_cli.model.vae import VAE
from scvae_cli.regular_file import read_regular, refuse_irregular
from scvae_cli.strict_json import parse_json

# Models of format 3 lack the map to expression space. Models of format 5 have batches that were mapped onto them,
# models of format 6 have several covariates, and models of format 7 were trained with labels. A model is written in the
# oldest format that can hold it. All formats from 3 to 7 can be read.
FORMAT, WITHOUT_LABELS, WITHOUT_COVARIATES, WITHOUT_MAPPED, OLDEST_FORMAT = 7, 6, 5, 4, 3
CONFIG, WEIGHTS, LATENT, LABELS = "config.json", "weights.safetensors", "latent.safetensors", "labels.safetensors"
GENES, HELDOUT, HISTORY = "genes.txt", "heldout_cells.txt", "history.csv"
# Largest sizes, in bytes, of the configuration, of any other text file, and of the classifiers of labels. The names of
# a hundred million cells take 2 GiB.
_MOST_CONFIG, _MOST_TEXT, _MOST_LABELS = 1 << 26, 1 << 31, 1 << 32
# Names of all files of a model folder. scvae never removes a file with another name from a model folder.
FILES = (CONFIG, GENES, HELDOUT, WEIGHTS, LATENT, LABELS, HISTORY)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained VAE and all information that is needed to use it.

    Parameters
    ----------
    vae, density, axes, expression
        The networks, in eval mode; the density of the training cells in latent space; the canonical axes; the map to
        expression space, which is None for a model of an earlier version of scvae.
    genes, heldout_cells
        Names of the modeled genes, in the order of the decoder's outputs; names of the cells held out from training.
    config
        Complete training configuration, including the values that were chosen automatically.
    facts
        Results of the training (held-out ELBO, number of epochs, source of the counts and so on), as plain values.
    labels
        Classifiers of labels; None for a model that was trained without labels.
    history, hash
        Training history as CSV text, with one row per epoch; hash of the saved model, which is empty for a model that
        was not saved.
    """

    vae: VAE
    density: LatentDensity
    axes: CanonicalAxes
    expression: ExpressionSpace | None
    genes: tuple[str, ...]
    heldout_cells: tuple[str, ...]
    config: RunConfig
    facts: dict[str, Any]
    history: str
    labels: StoredLabels | None = None
    hash: str = ""

    def __repr__(self) -> str:
        """Return the text that a notebook shows for a model: likelihood, numbers of genes and dimensions, ELBO."""
        shape, elbo = self.config.model, self.facts.get("heldout_elbo", float("nan"))
        size = f"{amount(len(self.genes), 'gene')}, {amount(self.vae.n_latent, 'latent dimension')}"
        return (
            f"Model({shape.likelihood}, {size}, held-out ELBO {elbo:.2f} nats per cell, hash {self.hash or 'unsaved'})"
        )

    @property
    def batches(self) -> tuple[str, ...]:
        """Names of the batches on which the decoder is conditioned."""
        return self.vae.batches

    @property
    def conditioned(self) -> bool:
        """Whether the decoder is conditioned on batches or continuous keys."""
        return self.vae.decoder.batch is not None

    @property
    def of_counts(self) -> bool:
        """Whether the model describes counts (True) or real numbers (False)."""
        return self.config.model.of_counts

    @property
    def device(self) -> torch.device:
        """The device (CPU or GPU) on which the weights of the networks are stored."""
        return self.vae.reference_library.device

    def held_out(self, cell_names: Iterable[str]) -> np.ndarray:
        """Return a boolean mask over the given cell names, which is True for cells that were held out from training."""
        known = set(self.heldout_cells)
        return np.asarray([name in known for name in cell_names], dtype=bool)

    def save(self, folder: Path | str, *, force: bool = False) -> None:
        """Write the model folder. The model folder is either written completely or not changed.

        Raises
        ------
        ModelError
            If the folder exists and `force` is False, if the path exists and is not a model folder, if the model
            folder contains files that scvae did not write, or if the folder cannot be written.
        """
        check_new_model(Path(folder), force=force)
        place = _place(Path(folder))
        lost: list[str] = []
        try:
            with deferred(), only_writer(place, error=ModelError) as locked:
                # The folder is checked again, because another training may have written to the folder since the first
                # check.
                _check_place(place, force=force)
                if locked:
                    for orphan in orphans(place):
                        remove_folder(orphan, FILES)
                new = temporary_name(place)
                new.mkdir(mode=0o700)
                try:
                    lost = self._write_to(new, place)
                    _swap(new, place)
                finally:
                    remove_folder(new, FILES)
        except OSError as error:
            reason = error.strerror or error
            raise ModelError(f"cannot write {folder}: {reason}", "choose another folder with -m") from error
        warn_of_lost(place, lost)

    def _write_to(self, new: Path, place: Path) -> list[str]:
        """Write the files of the model to the new folder `new`, which will replace the folder `place`.

        The function returns the properties (such as permissions) of the old folder that could not be kept.
        """
        lost: list[str] = []
        for name, content in self._files().items():
            descriptor = os.open(new / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                lost += keep_metadata(descriptor, place / name) if (place / name).exists() else []
                os.fsync(descriptor)
        descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if place.exists():
                lost += keep_metadata(descriptor, place)
            else:
                mode = new_file_mode()
                os.fchmod(descriptor, mode | (mode & 0o444) >> 2)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return lost

    @property
    def _format(self) -> int:
        if self.config.data.labels_key is not None:
            return FORMAT
        if self.vae.design is not None:
            return WITHOUT_LABELS
        if self.vae.n_mapped:
            return WITHOUT_COVARIATES
        return OLDEST_FORMAT if self.expression is None else WITHOUT_MAPPED

    def _latent_tensors(self) -> dict[str, torch.Tensor]:
        expression = {} if self.expression is None else vars(self.expression)
        tensors = vars(self.density) | vars(self.axes) | expression
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def _files(self) -> dict[str, bytes]:
        files = {
            GENES: _lines(self.genes),
            HELDOUT: _lines(self.heldout_cells),
            WEIGHTS: _tensors(self.vae.state_dict()),
            LATENT: _tensors(self._latent_tensors()),
            HISTORY: self.history.encode(),
        }
        if self.labels is not None:
            files[LABELS] = _tensors(self.labels.tensors)
        config: dict[str, Any] = {
            "format": self._format,
            "scvae_version": __version__,
            "run": self.config.as_dict(),
            **_covariates(self.vae),
            **({"n_mapped": self.vae.n_mapped} if self.vae.n_mapped else {}),
            **({} if self.labels is None else {"labels": list(self.labels.names), "labels_kind": self.labels.kind}),
            "facts": self.facts,
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
        config["sha256"][CONFIG] = _own_sha256(config)
        files[CONFIG] = json.dumps(config, indent=1, sort_keys=True).encode()
        return files


def _covariates(vae: VAE) -> dict[str, Any]:
    """Return the names of the batches, and the statistics of the continuous keys, as config.json stores them."""
    design = vae.design
    if design is None:
        return {"batches": list(vae.batches)}
    numbers = [{"mean": one.mean, "sd": one.sd, "least": one.least, "most": one.most} for one in design.continuous]
    return {"batches": [list(one) for one in design.combinations], "continuous": numbers}


def check_new_model(folder: Path, *, force: bool, spelled: str = "-m") -> None:
    """Check that a model folder can be written and that no other file or model would be replaced by accident.

    The hints of errors mention `spelled`, the option that names the folder.

    Raises
    ------
    ModelError
        If the folder contains a model and `force` is False, if the path exists and is not a model folder, if the
        model folder contains files that scvae did not write, or if the folder or its parent cannot be written to.
    """
    place = _place(folder)
    _recover(place)
    _check_place(place, force=force, spelled=spelled)


def _check_place(folder: Path, *, force: bool, spelled: str = "-m") -> None:
    if not folder.parent.is_dir() or not may_write(folder.parent):
        unwritable = f"{folder.parent} is not a folder that can be written to"
        raise ModelError(unwritable, f"choose another folder for the model with {spelled}")
    if not folder.exists():
        return
    if not _is_model(folder):
        raise ModelError(
            f"{folder} exists and is not a model folder", f"choose another name for the model with {spelled}"
        )
    if not force:
        raise ModelError(
            f"the model {folder} already exists", f"use --force to replace it, or choose another name with {spelled}"
        )
    if not may_write(folder):
        raise ModelError(f"the model {folder} is read-only", f"choose another name for the model with {spelled}")
    _refuse_others(folder, spelled=spelled)


def load(folder: Path | str, *, device: torch.device | str = "cpu") -> Model:
    """Read a model folder.

    Raises
    ------
    ModelError
        If the folder is missing, incomplete or damaged, if a file was changed after the model was saved, or if the
        format of the folder is too new or too old to be read.
    """
    folder = Path(folder)
    _recover(_place(folder))
    if not folder.is_dir():
        raise ModelError(
            f"there is no model folder {folder}", "train a model (scvae train DATA.h5ad), or name its folder with -m"
        )
    config = _read_config(folder)
    _check_hash(folder, CONFIG, config, _own_sha256(config))
    texts = {name: _read_checked(folder, name, config, most=_MOST_TEXT) for name in (GENES, HELDOUT, HISTORY)}
    try:
        genes, heldout_cells, history = _names(texts[GENES]), _names(texts[HELDOUT]), texts[HISTORY].decode()
        check_names("genes", genes)
        check_names("held-out cells", heldout_cells)
        check_facts(config["facts"])
        run = RunConfig.from_dict(config["run"])
        design: Design | None = None
        batches: tuple[str, ...] = ()
        # Models of format 6 have several covariates; models of format 7 may have several.
        if config["format"] == WITHOUT_LABELS or (config["format"] == FORMAT and "continuous" in config):
            design = check_design(config["batches"], config.get("continuous"), run.data)
        elif len(run.data.batch_keys) > 1 or run.data.continuous_keys:
            raise ValueError("config.json lacks the combinations of categories of a model with several covariates")
        else:
            batches = tuple(check_names("batches", config["batches"]))
        n_mapped = check_mapped(config.get("n_mapped", 0), batches)
        if n_mapped and not run.data.batch_keys:
            raise ValueError("batches were mapped onto the model, but the model has no batch key")
        n_bytes = _size(folder, WEIGHTS)
        vae = empty_network(run.model, len(genes), batches, n_mapped=n_mapped, design=design, n_bytes=n_bytes)
        weights = read_tensors(_read_checked(folder, WEIGHTS, config, most=most_bytes(vae.state_dict().values())))
        check_shapes(weights, vae.state_dict())
        # The tensors are copied, because the memory of the copies is aligned as torch needs it to compute fast.
        vae.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
        check_combinations(vae)
        most = most_latent_bytes(vae.n_latent, len(genes))
        latent = read_tensors(_read_checked(folder, LATENT, config, most=most))
        check_latent(latent, n_latent=vae.n_latent, n_genes=len(genes))
        check_network(vae, latent["mean_ck"])
        density = LatentDensity(*(latent[f.name] for f in fields(LatentDensity)))
        axes = CanonicalAxes(*(latent[f.name] for f in fields(CanonicalAxes)))
        lacking = config["format"] == OLDEST_FORMAT or "component_jg" not in latent
        expression = None if lacking else _expression_space(latent)
        labels = _labels(folder, config) if "labels" in config and config["format"] == FORMAT else None
    except (LookupError, TypeError, ValueError, AttributeError, ConfigError) as error:
        reason = error.message if isinstance(error, ConfigError) else str(error)
        raise ModelError(f"{folder} is damaged: {reason}", "train again") from error
    return Model(
        vae=vae.to(device).eval(),
        density=density,
        axes=axes,
        expression=expression,
        genes=genes,
        heldout_cells=heldout_cells,
        config=run,
        facts=config["facts"],
        history=history,
        labels=labels,
        # The hash of config.json identifies the whole model, because config.json contains the hashes of all other
        # files.
        hash=hashlib.sha256(_read(folder, CONFIG, most=_MOST_CONFIG)).hexdigest()[:12],
    )


def _labels(folder: Path, config: dict[str, Any]) -> StoredLabels:
    """Read the classifiers of labels. The classifiers are checked when they are first used."""
    names = tuple(check_names("labels", config["labels"]))
    if len(names) < 2 or config["labels_kind"] not in KINDS or any(map(is_reserved, names)):
        raise ValueError("config.json has fewer than two labels, labels of an unknown type, or reserved label names")
    # The size of this file does not follow from the other files.
    most = min(_size(folder, LABELS), _MOST_LABELS)
    return StoredLabels(names, config["labels_kind"], read_tensors(_read_checked(folder, LABELS, config, most=most)))


def _expression_space(latent: dict[str, torch.Tensor]) -> ExpressionSpace:
    """Make the map to expression space from the tensors of latent.safetensors.

    Optional tensors that are not in the file become None.
    """
    given = {f.name: latent[f.name] for f in fields(ExpressionSpace) if f.default is MISSING or f.name in latent}
    return ExpressionSpace(**given)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = parse_json(_read(folder, CONFIG, most=_MOST_CONFIG))
        version = config["format"]
        complete = all(key in config for key in ("run", "batches", "facts", "sha256", "scvae_version"))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG} is damaged", "restore the file, or train again") from error
    if not isinstance(version, int) or version > FORMAT:
        made_by = config.get("scvae_version", "a later version")
        raise ModelError(f"{folder} was written by scvae {made_by}, in a newer format", "update scvae-cli")
    if version < OLDEST_FORMAT:
        made_by = config.get("scvae_version", "an earlier version")
        older = f"{folder} was written by scvae {made_by}, in an older format"
        raise ModelError(older, "train again: scvae train --force")
    if not complete or not isinstance(config["sha256"], dict):
        raise ModelError(f"{folder / CONFIG} is incomplete", "restore the file, or train again")
    result: dict[str, Any] = config
    return result


def _check_hash(folder: Path, name: str, config: dict[str, Any], found: str) -> None:
    if found != config["sha256"].get(name):
        changed = f"{folder / name} is not the file that was saved with this model"
        raise ModelError(changed, "restore the file, or train again")


def _own_sha256(config: dict[str, Any]) -> str:
    """Compute the hash of the content of config.json, without the entry in which the hash itself is stored."""
    others = {name: value for name, value in config["sha256"].items() if name != CONFIG}
    return hashlib.sha256(json.dumps(config | {"sha256": others}, sort_keys=True).encode()).hexdigest()


def _tensors(named: dict[str, torch.Tensor]) -> bytes:
    return save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()})


def _lines(names: tuple[str, ...]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def _names(content: bytes) -> tuple[str, ...]:
    # The text is not split by splitlines(), which also splits at characters that may occur within a name.
    return tuple(content.decode().split("\n")[:-1])


def _read_checked(folder: Path, name: str, config: dict[str, Any], *, most: int) -> bytes:
    """Read a file of a model folder, and compare the hash of the file with the hash that config.json contains."""
    content = _read(folder, name, most=most)
    _check_hash(folder, name, config, hashlib.sha256(content).hexdigest())
    return content


def _read(folder: Path, name: str, *, most: int) -> bytes:
    with _reading(folder, name):
        return read_regular(folder / name, most=most)


def _size(folder: Path, name: str) -> int:
    with _reading(folder, name):
        refuse_irregular(folder / name)
        return (folder / name).stat().st_size


@contextlib.contextmanager
def _reading(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is incomplete: it has no {name}", "restore the file, or train again") from error
    except OSError as error:
        raise ModelError(
            f"cannot read {folder / name}: {error.strerror}", "restore the file, or train again"
        ) from error


def _place(folder: Path) -> Path:
    """Return the path of a model folder without symbolic links and "..".

    The path without links makes it possible to replace the folder to which a link points, and to keep the link.
    """
    try:
        return resolved(folder)
    except DataError as error:
        raise ModelError(error.message, error.hint) from error


def _is_model(folder: Path) -> bool:
    """Return whether scvae wrote a folder: its config.json must have the entries that models of all versions have."""
    try:
        config = json.loads((folder / CONFIG).read_bytes()) if (folder / CONFIG).is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"format", "scvae_version", "run", "sha256"} <= config.keys()


def _refuse_others(folder: Path, stored_in: Path | None = None, *, spelled: str = "-m") -> None:
    """Raise a ModelError if a model folder contains anything that scvae did not write.

    `stored_in` is the current path of the folder if the folder was renamed, and otherwise None.
    """
    for entry in sorted((stored_in or folder).iterdir()):
        if entry.name not in FILES or entry.is_symlink() or not entry.is_file():
            raise ModelError(
                f"the model {folder} contains {entry.name!r}, which scvae did not write and which would be lost",
                f"move {entry.name!r} elsewhere, or choose another name for the model with {spelled}",
            )


def _previous(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.previous"


def _swap(new: Path, folder: Path) -> None:
    """Give the folder `new` the name `folder`, and remove the old folder of that name."""
    old = None
    if not folder.exists():
        new.rename(folder)
    elif exchange(new, folder):
        old = new
        try:
            _refuse_others(folder, stored_in=old)
        except ModelError:
            exchange(new, folder)
            raise
    else:
        # If a crash interrupts the replacement of a folder between its two renames, `_recover` restores the old folder.
        old = _previous(folder)
        folder.rename(old)
        new.rename(folder)
    note_written(folder)
    sync_folder(folder.parent)
    if old is not None:
        remove_folder(old, FILES)


def _recover(folder: Path) -> None:
    """Finish or undo the replacement of a model folder, if a crash interrupted the replacement."""
    previous = _previous(folder)
    if not previous.is_dir():
        return
    # If the parent folder is read-only, errors are ignored, because nothing can be recovered.
    with contextlib.suppress(OSError), deferred(), only_writer(folder, error=ModelError):
        if folder.exists():
            remove_folder(previous, FILES)
        else:
            previous.rename(folder)
