"""Parts of figures. Positions are given in inches from the upper left corner of a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

WIDTH = 7.5
# Color of the parts of a trajectory where there are no cells. No group has a similar color.
OFF = "#D4002A"
# Each color is as different as possible from all previous colors, and from OFF, black and gray, both for normal vision
# and for red-, green- and blue-blindness. The colors were found by greedy search in CIELAB with Machado's simulations
# of color blindness.
# fmt: off
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#A6DE85", "#0B5959", "#7A90FF", "#374EBC", "#598543",
    "#90DEA6", "#4E4E7A", "#64DEF4", "#D39B43", "#375900", "#853737", "#85B16F", "#FFC859", "#BC6400", "#008585",
    "#A60B59", "#599BE9", "#9085BC", "#DE9BA6", "#D3A6D3", "#D3644E", "#646FD3", "#852190", "#C86F6F", "#B14E7A",
)
# fmt: on
NO_GROUP, OTHER_GROUPS = "#CFCFCF", "#8C8C8C"


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes to a figure, in a rectangle given in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def write(figure: Figure, left: float, middle: float, text: str, **font: Any) -> None:
    """Write text that starts at `left` and is vertically centered at `middle`, in inches."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - middle / down, text, **({"ha": "left", "va": "center_baseline"} | font))


def head(figure: Figure, left: float, middle: float, letter: str, text: str) -> None:
    """Write the letter and the title of a panel."""
    write(figure, left, middle, letter, size=9, weight="bold")
    write(figure, left + 0.16, middle, text, size=7)


def text_width(texts: Iterable[str], size: float) -> float:
    """Return the width of the widest text, in inches."""
    # The width is computed from the control points of the outlines, because the exact width of the curves takes ten
    # times as long to compute.
    widths = (TextPath((0, 0), text, size=size).vertices[:, 0].max() / 72 for text in texts if text.strip())
    return float(max(widths, default=0.0))


def shortened(text: str, length: int, *, tail: int | None = None) -> str:
    """Shorten a long name to its beginning and its end, because names often differ at their ends.

    `tail` is the number of characters that are kept at the end, by default a third of `length`.

    >>> shortened("CD4 T", 20), shortened("CD4+, alpha-beta memory T cell, type 12", 20)
    ('CD4 T', 'CD4+, alpha-b…ype 12')
    """
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    tail = length // 3 if tail is None else tail
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def legend_names(names: Sequence[str], length: int) -> list[str]:
    """Shorten the names of a legend. If two shortened names are equal, a number is added to the second name.

    >>> legend_names(["a long name, no 1, of cells", "a long name, no 2, of cells"], 12)
    ['a long …ells', 'a long …ells (2)']
    """
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        short = shortened(name, length)
        seen[short] += 1
        # Matplotlib omits names that start with an underscore from a legend.
        short = f" {short}" if short.startswith("_") else short
        result.append(short if seen[short.strip()] == 1 else f"{short} ({seen[short.strip()]})")
    return result


def group_colors(
    groups_n: np.ndarray | None, passed: Sequence[str], colors: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Assign colors to groups until no colors are left.

    Groups that the trajectory passes (`passed`) get colors first, and then all other groups in descending order of
    size. `colors` holds the color of every group, as returned by `column_colors`. If `colors` is None, the colors
    depend on the names of all groups with a color.
    """
    sizes = Counter(group for group in (() if groups_n is None else groups_n) if group is not None)
    by_size = sorted(sizes, key=lambda group: (-sizes[group], group))
    colored = list(dict.fromkeys([*passed, *by_size]))[: len(PALETTE)]
    color = dict(zip(sorted(colored), PALETTE, strict=False)) if colors is None else colors
    return {group: color[group] for group in colored}


def segments(mask_t: np.ndarray) -> list[tuple[int, int]]:
    """Return the first and the last step of every run of consecutive True values in a mask over steps.

    >>> segments(np.array([True, False, True, True]))
    [(0, 0), (2, 3)]
    """
    steps = np.flatnonzero(mask_t)
    if len(steps) == 0:
        return []
    return [(int(part[0]), int(part[-1])) for part in np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)]


def hatch_off(axes: Axes, off_t: np.ndarray, *, above: bool) -> None:
    """Hatch the steps of a trajectory at which there are no cells, as given by the mask `off_t`.

    The x axis shows the position along the trajectory. If `above` is True, the hatching covers the drawing and makes
    the drawing paler. If `above` is False, the hatching is behind the drawing.
    """
    half = 0.5 / (len(off_t) - 1)
    looks: list[dict[str, Any]] = [{"facecolor": "none", "edgecolor": OFF, "hatch": "////", "alpha": 0.55}]
    looks += [{"facecolor": "white", "alpha": 0.4}] if above else []
    for first, last in segments(off_t):
        begin, end = 2 * half * first - half, 2 * half * last + half
        for look in looks[::-1]:
            look = {"linewidth": 0, "zorder": 2 if above else 0, "transform": axes.get_xaxis_transform()} | look
            axes.add_patch(Rectangle((begin, 0), end - begin, 1, gid="hatched", **look))
