"""The style of figures, and a function that saves a figure.

A figure is saved completely or not at all. Saving the same figure twice gives identical files.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from scvae_cli.data.atomic import check_writable, replacing
from scvae_cli.errors import ConfigError, DataError, ScvaeWarning
from scvae_cli.report.fonts import advice_on_missing, families, missing_characters, quiet

# Dots per inch of a PNG, and of rasterized points and images in a PDF or SVG.
_DPI = {".png": 200, ".pdf": 300, ".svg": 300}
# Metadata without the date, so that saving a figure twice gives identical files.
_NO_DATE = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
_STYLE = {
    "font.size": 7.0,
    "axes.labelsize": 7.0,
    "axes.titlesize": 7.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.5,
    # Names of groups and genes may contain a $, which matplotlib would otherwise interpret as the start of a formula.
    "text.parse_math": False,
    # Text in a PDF is stored as text, which can be edited. Text in an SVG is stored as outlines, which look the same on
    # every computer.
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "scvae",
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Context manager that applies the matplotlib settings of scvae and restores the caller's settings afterwards."""
    with matplotlib.rc_context(), quiet():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"font.family": families()})
        yield


def check_figure_file(path: Path | str, *, force: bool) -> None:
    """Check before a computation that `save_figure` will be able to write a file.

    Raises
    ------
    ConfigError
        If the file format is not supported.
    DataError
        If the file cannot be written, or if the file exists and `force` is False.
    """
    target = Path(path)
    _kind(target)
    check_writable(target)
    if target.exists() and not force:
        raise DataError(f"{target} exists", "use --force to replace the file, or choose another name")


def save_figure(figure: Figure, path: Path | str, *, force: bool = True) -> None:
    """Save a figure as PNG, SVG or PDF, depending on the extension of the file.

    An existing file is replaced if `force` is True. If `force` is False, an existing file causes an error, even if the
    file was written during the computation.

    The figure must have been created without pyplot, so that no window opens and pyplot's current figure is kept.

    Raises
    ------
    ConfigError
        If the file format is not supported.
    DataError
        If the file cannot be written, or if the file exists and `force` is False. If an error is raised, an existing
        file is not changed.

    A warning names characters that no installed font has.
    """
    target = Path(path)
    kind = _kind(target)
    with house_style(), replacing(target, force=force) as sibling, missing_characters() as missing:
        figure.savefig(sibling, format=kind[1:], dpi=_DPI[kind], metadata=_NO_DATE[kind])
    if missing:
        warnings.warn(ScvaeWarning(f"{target}: {advice_on_missing(missing)}"), stacklevel=2)


def _kind(target: Path) -> str:
    kind = target.suffix.lower()
    if kind not in _DPI:
        raise ConfigError(
            f"{target} does not have the extension of a figure file",
            f"use --plot with a file that ends in {', '.join(_DPI)}",
        )
    return kind
