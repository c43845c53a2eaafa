"""The figure of an annotation: the confusion table of the labels, and the reliability diagram of the probabilities.

Letters in array shapes: c labels, d bins of probability.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scvae_cli.errors import one_line
from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import OFF, WIDTH, head, legend_names, place, text_width
from scvae_cli.tools.annotate.result import Annotation

_GRAY, _BLUE = "#8C8C8C", "#0072B2"
# Sizes in inches: range of the width of a square in the confusion table, height of the reliability diagram, and desired
# largest width of the confusion table.
_CELL_RANGE, _DIAGRAM, _MOST_SIDE = (0.05, 0.4), 2.0, 4.5
# Sizes in inches: width of an axis title, and smallest width of a square for a number in it, or for a name beside it.
_AXIS, _NUMBER, _LINE = 0.2, 0.22, 0.1
_SIZE = 6.0
_NAME_RANGE = (24, 60)
# The confusion table shows names for at most _MOST_NAMES labels, and numbers for at most _MOST_NUMBERS labels.
_MOST_NAMES, _MOST_NUMBERS = 60, 15


def annotation_figure(result: Annotation) -> Figure:
    """Draw the confusion table and the reliability diagram of the held-out labeled cells.

    The figure is not registered with pyplot; `save_figure` writes it to a file.
    """
    n_labels = len(result.labels)
    names = _fitting_names(result) if n_labels <= _MOST_NAMES else []
    margin = _margin(_with_sizes(names, result))
    room = _room(margin)
    cell = float(np.clip(min(room, _MOST_SIDE) / n_labels, *_CELL_RANGE))
    side = min(cell * n_labels, room)
    top = 0.35
    height = top + max(side + margin + 0.3, _DIAGRAM + 0.55)
    with house_style():
        figure = Figure((WIDTH, height))
        head(figure, 0.1, 0.16, "a", f"Held-out labeled cells ({result.quality.n_cells:,}): share of each true label")
        table = place(figure, margin + 0.25, top, side, side)
        table.set_label("confusion")
        _draw_confusion(table, result, names)
        left = margin + 0.25 + side + 0.85
        head(figure, left - 0.4, 0.16, "b", "Reliability")
        diagram = place(figure, left, top, _DIAGRAM, _DIAGRAM)
        diagram.set_label("reliability")
        _draw_reliability(diagram, result)
    return figure


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
    axes.set(xlabel="predicted", ylabel="true", xticks=[], yticks=[])
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
