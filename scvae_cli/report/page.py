"""Parts of figures. Positions are given in inches from the upper left corner of a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scvae_cli.report.fonts import widths_in_em

WIDTH = 7.5
# Inches between the letter of a panel and its title, between a title and the next letter, and between text and the edge
# of the page.
_HEAD, _BETWEEN, _EDGE = 0.16, 0.08, 0.05
# Size of text in points, and width of a usual letter as a fraction of the size.
_TEXT, _LETTER = 7.0, 0.65
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


def write(figure: Figure, left: float, middle: float, text: str, wide: float | None = None, **font: Any) -> None:
    """Write text that starts at `left` and is vertically centered at `middle`, in inches.

    Text that is wider than `wide` inches is shortened. If `wide` is None, the text may reach to the edge of the page.
    """
    across, down = figure.get_size_inches()
    look: dict[str, Any] = {"ha": "left", "va": "center_baseline", "size": _TEXT, "weight": "normal"} | font
    if wide is None and look["ha"] == "left" and not font.get("rotation"):
        wide = across - left - _EDGE
    shown = text if wide is None else fitted(text, wide, look["size"], look["weight"])
    figure.text(left / across, 1 - middle / down, shown, **look)


def head(figure: Figure, left: float, middle: float, letter: str, text: str) -> None:
    """Write the letter and the title of a panel. A title is shortened if it would reach the next panel to the right."""
    across = figure.get_size_inches()[0]
    write(figure, left, middle, letter, size=9, weight="bold", gid="letter")
    write(figure, left + _HEAD, middle, text, gid="title")
    line = figure.texts[-1].get_position()[1]
    beside = [one for one in figure.texts if one.get_position()[1] == line]
    letters = [one.get_position()[0] * across for one in beside if one.get_gid() == "letter"]
    for title in beside:
        if title.get_gid() == "title":
            start = title.get_position()[0] * across
            until = min((x for x in letters if x > start), default=across) - _BETWEEN
            title.set_text(fitted(title.get_text(), until - start, _TEXT))


def text_width(texts: Iterable[str], size: float, weight: str = "normal") -> float:
    """Return the width of the widest text, in inches."""
    return max((sum(widths_in_em(text, weight)) * size / 72 for text in texts), default=0.0)


def fitted(text: str, wide: float, size: float, weight: str = "normal", *, tail: int | None = None) -> str:
    """Shorten a text to its beginning and its end, so that it is at most `wide` inches wide.

    `tail` is the number of characters that are kept at the end, by default a third of those that are kept.

    >>> fitted("T cells", 1, 7), fitted("T cells of the small intestine", 1, 7)
    ('T cells', 'T cells of th…estine')
    """
    text = " ".join(text.split())
    widths = widths_in_em(text, weight)
    # matplotlib moves letters to whole pixels, which makes text up to 1.5% wider.
    wide /= 1.015
    if sum(widths) * size / 72 <= wide:
        return text
    [dots] = widths_in_em("…", weight)
    for kept in range(len(text) - 1, 0, -1):
        end = min(kept // 3 if tail is None else tail, kept - 1)
        begin = kept - end
        if (sum(widths[:begin]) + dots + sum(widths[len(text) - end :])) * size / 72 <= wide:
            return f"{text[:begin]}…{text[len(text) - end :]}"
    return "…"


def shortened(text: str, length: int, *, tail: int | None = None) -> str:
    """Shorten a long name to its beginning and its end, because names often differ at their ends.

    A name has at most `length` characters, and is at most as wide as `length` usual letters. A name of wide characters,
    such as W and the characters of Chinese, therefore has fewer characters. `tail` is the number of characters that are
    kept at the end, by default a third of `length`.

    >>> shortened("CD4 T", 20), shortened("CD4+, alpha-beta memory T cell, type 12", 20)
    ('CD4 T', 'CD4+, alpha-b…ype 12')
    >>> len(shortened("W" * 30, 20)) < 20
    True
    """
    text = " ".join(text.split())
    end = length // 3 if tail is None else tail
    short = text if len(text) <= length else f"{text[: length - 1 - end]}…{text[len(text) - end :]}"
    if sum(widths_in_em(short)) <= length * _LETTER:
        return short
    return fitted(text, length * _LETTER, 72, tail=tail)


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
