"""The options of `scvae map` and `scvae_cli.map`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scvae_cli.errors import ConfigError, one_line
from scvae_cli.options import INPUT, OUTPUT, option
from scvae_cli.shared_options import Reading
from scvae_cli.verb import Verb

# Largest number of characters in the name of a batch.
_LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class MapOptions(Reading):
    """Options that name the new batches, and the folder of the new model."""

    batch_key: str | None = option(
        None,
        help="Column of obs with the batch of each cell. Only batches that the model lacks are added to the model.",
        panel=INPUT,
        shown_default="the batch key of the model",
    )
    batch: str | None = option(
        None,
        help="Name of the new batch, if all cells belong to one batch and obs has no column of batches. The name "
        "of the batch is also written to obs.",
        panel=INPUT,
        metavar="NAME",
        label=True,
    )
    reference_batch: str = option(
        "reference",
        help="Name to give to the batch of the training cells, if the model was trained without batches.",
        panel=INPUT,
        metavar="NAME",
        label=True,
    )
    false_alarms: float = option(
        0.05,
        help="Rate of false alarms: the share of cells that are reported to have no counterpart, among cells of the "
        "same populations as the training cells. The rate is calibrated on held-out cells.",
        above=0,
        below=1,
    )
    output: Path | None = option(
        None,
        flags=("--output", "-o"),
        help="Model folder to which the model with the new batches is written.",
        panel=OUTPUT,
        metavar="NEW.scvae",
        in_python=False,
        in_record=False,
    )
    cells: Path | None = option(
        None,
        help="The .h5ad file to which the cells and their new columns are written.",
        panel=OUTPUT,
        metavar="FILE.h5ad",
        shown_default="back into DATA",
        in_record=False,
        in_python=False,
    )
    key_added: str = option(
        "scvae",
        help='Text that replaces "scvae" in the names of the new columns of obs.',
        panel=OUTPUT,
        in_record=False,
    )
    force: bool = option(
        False,
        help="Overwrite an existing model or file, and columns that scvae did not write.",
        panel=OUTPUT,
        in_record=False,
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1)

    @property
    def maps_batches(self) -> bool:
        """Always True, because `map` expects batches that the model lacks."""
        return True

    def check(self) -> None:
        """Refuse --batch together with --batch-key, and invalid names of batches."""
        if self.batch is not None and self.batch_key is not None:
            raise ConfigError(
                "--batch and --batch-key were both given",
                "use --batch-key for a column of obs, or --batch if all cells belong to one batch",
            )
        _check_name("--batch", self.batch)
        _check_name("--reference-batch", self.reference_batch)


def _check_name(spelled: str, name: str | None) -> None:
    if name is None:
        return
    if not name.strip():
        raise ConfigError(f"{spelled} is an empty text", "give the batch a name")
    if len(name) > _LONGEST_NAME:
        short = f"{name[:20]}..."
        raise ConfigError(
            f"{spelled} has {len(name):,} characters ({short})", f"use at most {_LONGEST_NAME} characters"
        )
    if one_line(name) != name:
        raise ConfigError(f"{spelled} is {name!r}, with control characters", "use a name without line breaks and tabs")


MAP = Verb(
    name="map",
    panel="Model",
    options=MapOptions,
    home="scvae_cli.tools.map.question:Map",
    about="""Add new batches to a trained model, without training the model again.

    Only parameters of the new batches are trained: effects on the decoder and shifts of the encoder. The effects of a
    new batch may differ between cell populations. The shifts of the encoder place new cells near training cells of the
    same kind. The fewer cells a new batch has, the more its effects are shrunk toward the effects of the model's own
    batches. All other parameters of the model stay unchanged, so the embedding of the training cells stays identical.
    The new model can be used like any other model, for the training cells and for the new cells.

    For each cell, obs["scvae_counterpart_p"] is the share of held-out cells whose states are at least
    as rare as the state of this cell. obs["scvae_no_counterpart"] is True for cells with a small share, which have no
    counterpart among the training cells.""",
    python_about="""Add new batches to a trained model, without training the model again.

    Only parameters of the new batches are trained: effects on the decoder and shifts of the encoder. The effects of a
    new batch may differ between cell populations. The shifts of the encoder place new cells near training cells of the
    same kind. The fewer cells a new batch has, the more its effects are shrunk toward the effects of the model's own
    batches. All other parameters of the model stay unchanged, so the embedding of the training cells stays identical.

    For each cell, obs["scvae_counterpart_p"] is the share of held-out cells whose states are at least
    as rare as the state of this cell. obs["scvae_no_counterpart"] is True for cells with a small share, which have no
    counterpart among the training cells.""",
    example="scvae map query.h5ad -m reference.scvae --batch-key donor -o both.scvae",
    argument="QUERY",
    argument_help="Cells of new batches: an .h5ad file; with --cells, also a 10x .h5 file or an mtx folder.",
    returns='The model with the new batches; `model.save("NAME.scvae")` writes its folder.',
)
