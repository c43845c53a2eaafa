"""Options that several commands share, and the panels of their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

INPUT, OUTPUT, COMPUTE, DECODE = "Input", "Output", "Compute", "Decoding"

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="Cells: an .h5ad file; a 10x .h5 or mtx folder where the output goes elsewhere."
    ),
]
ModelFolder = Annotated[
    Path | None,
    typer.Option(
        "--model", "-m", help="Model folder.", show_default="DATA.scvae beside the data", rich_help_panel=INPUT
    ),
]
Layer = Annotated[
    str | None,
    typer.Option(
        help="Layer to model.", show_default="counts, else X, else raw; X for real numbers", rich_help_panel=INPUT
    ),
]
AllowMissingGenes = Annotated[
    bool,
    typer.Option("--allow-missing-genes", help="Count any number of missing genes as zero.", rich_help_panel=INPUT),
]
DropEmpty = Annotated[
    bool,
    typer.Option("--drop-empty", help="Accept cells without counts and leave them out.", rich_help_panel=INPUT),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write to this .h5ad.", show_default="back into DATA", rich_help_panel=OUTPUT),
]
KeyAdded = Annotated[str, typer.Option(help="Name used in place of scvae in every slot.", rich_help_panel=OUTPUT)]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Replace what is there: an output, slots not written by scvae, another walk.",
        rich_help_panel=OUTPUT,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also draw it: .png, .svg or .pdf.", rich_help_panel=OUTPUT),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=OUTPUT)]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the result, warnings and errors.", rich_help_panel=OUTPUT)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=COMPUTE)]
Library = Annotated[
    str, typer.Option(help="Depth to decode at: observed, median, or a number of counts.", rich_help_panel=DECODE)
]
BatchAs = Annotated[
    str,
    typer.Option(
        help="Batch to decode in: a category, or average (over all, by their share of the training cells).",
        rich_help_panel=DECODE,
    ),
]


def noise_unit(*, of_counts: bool) -> str:
    """What Fisher–Rao distances are told in."""
    return f"standard deviations of {'a count' if of_counts else 'the noise'}"


def model_folder(model: Path | None, data: Path) -> Path:
    """The model folder meant: the one named, else DATA.scvae beside the data.

    >>> model_folder(None, Path("runs/blood.h5ad")).as_posix()
    'runs/blood.scvae'
    """
    return model if model is not None else data.parent / f"{data.stem}.scvae"


def gene_list(option: str, text: str) -> tuple[str, ...]:
    """The genes named by A,B,C or @FILE, one gene a line; each once.

    Raises
    ------
    ConfigError
        For a file that cannot be read, or no gene.

    >>> gene_list("--genes", "Klf1, Car1,Klf1")
    ('Klf1', 'Car1')
    """
    from scvae_cli.errors import ConfigError

    hint = f"{option} takes A,B,C or @FILE, one gene a line"
    try:
        in_file = text.startswith("@")
        named = Path(text[1:]).read_text(encoding="utf-8-sig").splitlines() if in_file else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the gene list {text[1:]}", hint) from error
    genes = tuple(dict.fromkeys(gene.strip() for gene in named if gene.strip()))
    if not genes:
        raise ConfigError(f"{option} {text!r} names no gene", hint)
    return genes
