"""The figure of an annotation: the confusion table of the labels, and the reliability diagram of the probabilities.

Letters in array shapes: c labels, d bins of probability.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scvae_cli.errors import one_line
from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import OFF, WIDTH, fitted, head, legend_names, place, text_width, write
from scvae_cli.tools.annotate.result import Annotation

_GRAY, _BLUE = "#8C8C8C", "#0072B2"
# Sizes in inches: range of the width of a square in the confusion table, height of the reliability diagram, and desired
# largest width of the confusion table.
_CELL_RANGE, _DIAGRAM, _MOST_SIDE = (0.05, 0.4), 2.0, 4.5
# Sizes in inches: width of an axis title, and smallest width of a square for a number in it, or for a name beside it.
_AXIS, _NUMBER, _LINE = 0.2, 0.22, 0.095
_SIZE = 6.0
_NAME_RANGE = (24, 60)
# The confusion table shows names for at most _MOST_NAMES labels, and numbers for at most _MOST_NUMBERS labels.
_MOST_NAMES, _MOST_NUMBERS = 150, 15
# With more labels than _MOST_NAMES, a list names the most frequent confusions: largest number of confusions, and in
# inches, height of a line, distance of the list from the reliability diagram, and width of the list.
_MOST_LISTED, _LISTED_LINE, _LIST_BELOW, _LIST_WIDTH = 15, 0.13, 0.65, 2.4


def annotation_figure(result: Annotation) -> Figure:
    """Draw the confusion table and the reliability diagram of the held-out labeled cells.

    The figure is not registered with pyplot; `save_figure` writes it to a file.
    """
    n_labels = len(result.labels)
    names = _fitting_names(result) if n_labels <= _MOST_NAMES else []
    margin = _margin(_with_sizes(names, result))
    room = _room(margin)
    cell = float(np.clip(min(room, _MOST_SIDE) / n_labels, *_CELL_RANGE))
    # The page is wider than usual if the names need more space.
    side = max(min(cell * n_labels, room), _LINE * len(names))
    top = 0.35
    title = f"Held-out labeled cells ({result.quality.n_cells:,}): share of each true label"
    # The title may be wider than a small table.
    left = max(margin + 0.25 + side, text_width([title], 7) - 0.1) + 0.85
    listed = [] if names else _confusions(result)
    below = top + _DIAGRAM + _LIST_BELOW
    # The names below the table are upright and have no sizes.
    height = max(
        top + side + _margin(names) + 0.3, below + (len(listed) + 1.5) * _LISTED_LINE if listed else below - 0.1
    )
    with house_style():
        figure = Figure((max(WIDTH, left + _DIAGRAM + 0.15), height))
        head(figure, 0.1, 0.16, "a", title)
        table = place(figure, margin + 0.25, top, side, side)
        table.set_label("confusion")
        _draw_confusion(table, result, names)
        head(figure, left - 0.4, 0.16, "b", "Reliability")
        diagram = place(figure, left, top, _DIAGRAM, _DIAGRAM)
        diagram.set_label("reliability")
        _draw_reliability(diagram, result)
        for i, text in enumerate(listed):
            write(figure, left - 0.24, below + (i + 1) * _LISTED_LINE, text, size=_SIZE)
        if listed:
            head(figure, left - 0.4, below - 0.05, "c", "Most frequent confusions (true → predicted)")
    return figure


def _confusions(result: Annotation) -> list[str]:
    """List the most frequent confusions of two labels, with the numbers of cells."""
    table_cc = result.quality.confusion_cc.copy()
    n_c = table_cc.sum(1)
    np.fill_diagonal(table_cc, 0)
    order = np.argsort(-table_cc, axis=None, kind="stable")[:_MOST_LISTED]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, table_cc.shape), strict=True)]
    lines = []
    for i, j in pairs:
        if table_cc[i, j] >= 0.5:
            share = f": {table_cc[i, j]:,.0f} of {n_c[i]:,.0f} cells"
            wide = (_LIST_WIDTH - text_width([f" → {share}"], _SIZE)) / 2
            lines.append(" → ".join(fitted(one_line(result.labels[k]), wide, _SIZE) for k in (i, j)) + share)
    return lines


def _fitting_names(result: Annotation) -> list[str]:
    """Shorten the names of the labels only if longer names would leave too little space for the confusion table."""
    shortest, longest = _NAME_RANGE
    labels = [one_line(label) for label in result.labels]
    needed = max(_NUMBER * min(len(labels), _MOST_NUMBERS), _LINE * len(labels))
    for length in range(longest, shortest, -4):
        names = legend_names(labels, length)
        if _room(_margin(_with_sizes(names, result))) >= needed:
            return names
    return legend_names(labels, shortest)


def _with_sizes(names: list[str], result: Annotation) -> list[str]:
    """Add the number of labeled cells to the name of each label."""
    return [f"{name} (n = {n:,.0f})" for name, n in zip(names, result.quality.confusion_cc.sum(1), strict=False)]


def _margin(names: list[str]) -> float:
    """Return the width of the space to the left of the confusion table, in inches."""
    return _AXIS + (text_width(names, _SIZE) + 0.12 if names else 0.05)


def _room(margin: float) -> float:
    """Return the width that is left for the confusion table, in inches."""
    return WIDTH - _DIAGRAM - 1.25 - margin - 0.1


def _draw_confusion(axes: Axes, result: Annotation, names: list[str]) -> None:
    table_cc, n_labels = result.quality.confusion_cc, len(result.labels)
    share_cc = table_cc / np.maximum(table_cc.sum(1, keepdims=True), 1e-300)
    axes.imshow(share_cc, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    unnamed = "" if names else f" ({n_labels} labels, too many to name; --json has the table)"
    axes.set(xlabel=f"predicted{unnamed}", ylabel="true", xticks=[], yticks=[])
    if names:
        axes.set_xticks(range(n_labels), names, rotation=90, fontsize=_SIZE)
        axes.set_yticks(range(n_labels), _with_sizes(names, result), fontsize=_SIZE)
        axes.tick_params(length=0)
    if n_labels > _MOST_NUMBERS:
        return
    for i, row in enumerate(share_cc):
        for j, share in enumerate(row):
            if share >= 0.005:
                color = "white" if share > 0.5 else "black"
                axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=5.5, color=color)


def _draw_reliability(axes: Axes, result: Annotation) -> None:
    found = result.quality.reliability
    axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=0.8, linestyle="--", label="calibrated")
    axes.scatter(
        found.probability_d, found.right_d, s=4 + 90 * found.share_d, color=_BLUE, linewidth=0, zorder=3,
        label="bins; area: cells", clip_on=False,
    )  # fmt: skip
    axes.plot(found.probability_d, found.right_d, color=_BLUE, linewidth=0.8, zorder=2)
    quality = result.quality.labels
    axes.text(
        0.97, 0.05,
        f"calibration error {quality.calibration_error:.3f}\n({quality.calibration_error_by_chance:.3f} by chance)",
        transform=axes.transAxes, ha="right", va="bottom", color=OFF if _is_off(result) else "black",
    )  # fmt: skip
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability of the predicted label", ylabel="share right")
    axes.legend(frameon=False, loc="upper left", handlelength=1.4, borderaxespad=0.1)


def _is_off(result: Annotation) -> bool:
    quality = result.quality.labels
    return quality.calibration_error > 2 * quality.calibration_error_by_chance
