"""How figures look and how they become files: whole or not at all, and the same bytes for the same figure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from scvae_cli.data.atomic import check_writable, replacing
from scvae_cli.errors import ConfigError, DataError

# Dots per inch: of a PNG, and of the points and images inside a PDF or SVG.
_DPI = {".png": 200, ".pdf": 300, ".svg": 300}
# What tells two files of one figure apart, and how to leave it out.
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
    # Names of groups and genes are names, also with a $ in them.
    "text.parse_math": False,
    # Text stays text in a PDF, and looks the same everywhere in an SVG.
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "scvae",
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw and save under settings of our own; the caller's are back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def check_figure_file(path: Path | str, *, force: bool) -> None:
    """Refuse early what `save_figure` could not or should not write.

    Parameters
    ----------
    path
        Where the figure shall go.
    force
        Whether a file there may be replaced.

    Raises
    ------
    ConfigError
        For a kind of file that is not offered.
    DataError
        For a place that cannot be written to, or an existing file without `force`.
    """
    target = Path(path)
    _kind(target)
    check_writable(target)
    if target.exists() and not force:
        raise DataError(f"{target} exists", "use --force to replace it, or another name")


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, SVG or PDF, by the name's ending; what is there is replaced.

    Parameters
    ----------
    figure
        Not pyplot's: nothing here knows of windows or of a current figure.
    path
        Where it goes.

    Raises
    ------
    ConfigError
        For a kind of file that is not offered.
    DataError
        When it cannot be written; then nothing is changed.
    """
    target = Path(path)
    kind = _kind(target)
    with house_style(), replacing(target) as sibling:
        figure.savefig(sibling, format=kind[1:], dpi=_DPI[kind], metadata=_NO_DATE[kind])


def _kind(target: Path) -> str:
    kind = target.suffix.lower()
    if kind not in _DPI:
        raise ConfigError(f"{target} is no picture by its name", f"--plot takes a file that ends in {', '.join(_DPI)}")
    return kind
