"""Positions of the texts of a figure, measured in inches from its lower left corner."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

# Dots per inch of a PNG that scvae saves. The widths of texts depend a little on the dots per inch.
DPI = 200
# Boxes contain the space above and below letters, in which other letters may be.
_ASIDE, _ABOVE = 0.015, 0.03


def text_boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Draw a figure, and return every text that is drawn with its box."""
    figure.set_dpi(DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn: list[Text] = []
    draw = Text.draw

    def watch(text: Text, *arguments: object, **options: object) -> object:
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        return draw(text, *arguments, **options)

    with patch.object(Text, "draw", watch):
        figure.draw(renderer)
    to_inches = figure.dpi_scale_trans.inverted()
    # `Text.get_window_extent` of an annotation is the box of its text without its arrow.
    return [(text.get_text(), Text.get_window_extent(text, renderer).transformed(to_inches)) for text in drawn]


def collisions(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of texts that overlap."""
    texts, boxes = zip(*text_boxes(figure), strict=True)
    low_n2, high_n2 = (np.asarray([getattr(box, corner) for box in boxes]) for corner in ("min", "max"))
    shared_nn2 = np.minimum(high_n2[:, None], high_n2) - np.maximum(low_n2[:, None], low_n2)
    overlap_nn = (shared_nn2[..., 0] > _ASIDE) & (shared_nn2[..., 1] > _ABOVE)
    return [(texts[i], texts[j]) for i, j in np.argwhere(np.triu(overlap_nn, 1))]


def cut_off(figure: Figure) -> list[str]:
    """Return the texts that leave the page."""
    width, height = figure.get_size_inches()
    return [
        text
        for text, box in text_boxes(figure)
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width + _ASIDE or box.y1 > height + _ASIDE
    ]
