"""The colors of the groups in a column of obs, which are the same in all figures of the same data.

If scanpy has stored colors for the column, these colors are used. Otherwise, the colors depend only on the groups in
the column, and not on the cells or on the groups that a figure shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import is_color_like, to_hex, to_rgb

from scvae_cli.data.labels import group_order, labels_of
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError
from scvae_cli.report.page import PALETTE

# Weights of red, green and blue in the luminance of a color, and the largest luminance of a group's color.
_LUMINANCE, _LIGHTEST = (0.2126, 0.7152, 0.0722), 0.8


def column_colors(store: CellStore, key: str) -> dict[str, str]:
    """Return the color of every group in a column of obs.

    Colors that scanpy stored in uns["COLUMN_colors"] are used if there is a valid color for every category. Otherwise,
    the groups get the colors of `palette_colors` in the order of the legend.

    Raises
    ------
    DataError
        If the column does not exist or cannot be read.
    """
    categories = store.obs_categories(key)
    stored = _stored(store, key)
    if categories is not None and len(stored) >= len(categories) and all(map(is_color_like, stored)):
        return {group: to_hex(color) for group, color in zip(categories, stored, strict=False)}
    return palette_colors(group_order(set(labels_of(store.obs_column(key))) - {None}, categories))


def palette_colors(groups: Sequence[str]) -> dict[str, str]:
    """Assign colors to groups, in their order. Colors repeat only if there are more than about a hundred groups."""
    palette = list(PALETTE)
    if len(groups) > len(palette):
        from scanpy.plotting.palettes import default_102

        # Nearly white colors are left out, because they cannot be seen on paper.
        palette += [color for color in default_102 if np.dot(to_rgb(color), _LUMINANCE) < _LIGHTEST]
    return {group: palette[i % len(palette)] for i, group in enumerate(groups)}


def _stored(store: CellStore, key: str) -> list[str]:
    try:
        return store.uns_texts(f"{key}_colors") or []
    except DataError:  # results do not depend on colors, so colors that cannot be read are ignored
        return []
