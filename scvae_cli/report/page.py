"""Laying out a page by hand, in inches from its upper left, so that nothing moves but for what there is to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

WIDTH = 7.5
# Of what the walk shows where there are no cells; no group has a colour near it.
OFF = "#D4002A"
# Each as far as can be from those before it, from OFF, black and grey, for normal, red-blind, green-blind and
# blue-blind eyes alike; found by greedy search in CIELAB under Machado's simulations.
# fmt: off
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#A6DE85", "#0B5959", "#7A90FF", "#374EBC", "#598543",
    "#90DEA6", "#4E4E7A", "#64DEF4", "#D39B43", "#375900", "#853737", "#85B16F", "#FFC859", "#BC6400", "#008585",
    "#A60B59", "#599BE9", "#9085BC", "#DE9BA6", "#D3A6D3", "#D3644E", "#646FD3", "#852190", "#C86F6F", "#B14E7A",
)
# fmt: on
NO_GROUP, OTHER_GROUPS = "#CFCFCF", "#8C8C8C"


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes in a box."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def write(figure: Figure, left: float, middle: float, text: str, **font: Any) -> None:
    """Text beginning at a place, its middle on a height."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - middle / down, text, **({"ha": "left", "va": "center_baseline"} | font))


def head(figure: Figure, left: float, middle: float, letter: str, text: str) -> None:
    """Letter and title of a part."""
    write(figure, left, middle, letter, size=9, weight="bold")
    write(figure, left + 0.16, middle, text, size=7)


def text_width(texts: Iterable[str], size: float) -> float:
    """Of the widest of some texts, in inches."""
    # Read off the outlines' points: the exact extents of curves take ten times as long.
    widths = (TextPath((0, 0), text, size=size).vertices[:, 0].max() / 72 for text in texts if text.strip())
    return float(max(widths, default=0.0))


def shortened(text: str, length: int, *, tail: int | None = None) -> str:
    """A name that fits: of a long one its beginning and, since names often differ there, its end.

    The end is a third of it unless told.

    >>> shortened("CD4 T", 20), shortened("CD4+, alpha-beta memory T cell, type 12", 20)
    ('CD4 T', 'CD4+, alpha-b…ype 12')
    """
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    tail = length // 3 if tail is None else tail
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def legend_names(names: Sequence[str], length: int) -> list[str]:
    """Short names, all different.

    >>> legend_names(["a long name, no 1, of cells", "a long name, no 2, of cells"], 12)
    ['a long …ells', 'a long …ells (2)']
    """
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        short = shortened(name, length)
        seen[short] += 1
        # Matplotlib leaves names out of a legend that begin with an underscore.
        short = f" {short}" if short.startswith("_") else short
        result.append(short if seen[short.strip()] == 1 else f"{short} ({seen[short.strip()]})")
    return result


def group_colours(groups_n: np.ndarray | None, passed: Sequence[str]) -> dict[str, str]:
    """Colours of groups; those a walk passes first, then the larger ones, up to the colours there are.

    A group's colour depends on the names of all groups, not on the walk: it is the same in every figure of the cells.
    """
    sizes = Counter(group for group in (() if groups_n is None else groups_n) if group is not None)
    by_size = sorted(sizes, key=lambda group: (-sizes[group], group))
    told = list(dict.fromkeys([*passed, *by_size]))[: len(PALETTE)]
    colour = dict(zip(sorted(told), PALETTE, strict=False))
    return {group: colour[group] for group in told}


def stretches(mask_t: np.ndarray) -> list[tuple[int, int]]:
    """First and last step of every stretch of steps in a mask.

    >>> stretches(np.array([True, False, True, True]))
    [(0, 0), (2, 3)]
    """
    steps = np.flatnonzero(mask_t)
    if len(steps) == 0:
        return []
    return [(int(part[0]), int(part[-1])) for part in np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)]


def hatch_off(axes: Axes, off_t: np.ndarray, *, above: bool) -> None:
    """Hatch the steps off the manifold in axes whose x is the position along the walk.

    Above what is drawn there, which then pales, or beneath it.
    """
    half = 0.5 / (len(off_t) - 1)
    looks: list[dict[str, Any]] = [{"facecolor": "none", "edgecolor": OFF, "hatch": "////", "alpha": 0.55}]
    looks += [{"facecolor": "white", "alpha": 0.4}] if above else []
    for first, last in stretches(off_t):
        begin, end = 2 * half * first - half, 2 * half * last + half
        for look in looks[::-1]:
            look = {"linewidth": 0, "zorder": 2 if above else 0, "transform": axes.get_xaxis_transform()} | look
            axes.add_patch(Rectangle((begin, 0), end - begin, 1, gid="hatched", **look))
