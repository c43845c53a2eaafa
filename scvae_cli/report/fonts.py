"""The fonts of figures: DejaVu Sans, and installed fonts for the characters that DejaVu Sans lacks.

DejaVu Sans is a part of matplotlib, so figures look the same on all computers. It has no characters of Chinese,
Japanese, Korean and many other scripts. For these characters, matplotlib uses the next font of the list.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import warnings
from collections.abc import Iterator, Sequence

import matplotlib
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

_FIRST = "DejaVu Sans"
# Fonts of Linux, macOS and Windows. The fonts of the first line have the characters of Chinese, Japanese and Korean.
_OTHERS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK TC", "Noto Sans CJK KR", "Source Han Sans"),
    *("Source Han Sans SC", "Source Han Sans CN", "Noto Sans SC", "Noto Sans JP", "Noto Sans TC", "Noto Sans KR"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Arial Unicode MS", "Unifont"),
    *("PingFang SC", "Hiragino Sans GB", "Heiti TC", "Hiragino Sans", "Apple SD Gothic Neo", "AppleGothic"),
    *("Microsoft YaHei", "SimHei", "SimSun", "Yu Gothic", "MS Gothic", "Meiryo", "Malgun Gothic", "Gulim"),
    *("IPAGothic", "IPAexGothic", "TakaoGothic", "VL Gothic", "NanumGothic", "UnDotum", "Baekmuk Gulim"),
    *("AR PL UMing CN", "AR PL UKai CN", "Noto Sans Thai", "Noto Sans Devanagari", "Noto Sans", "FreeSans", "Arial"),
)
# Size of the characters in the paths that are measured, in points.
_MEASURED = 100.0
# Largest number of missing characters that a warning names.
_SHOWN = 8


@functools.cache
def families() -> list[str]:
    """Return the names of the fonts of figures. matplotlib takes each character from the first font that has it."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [_FIRST, *(name for name in _OTHERS if name in installed)]


def widths_in_em(text: str, weight: str = "normal") -> list[float]:
    """Return the width of each character of a text, as a fraction of the size of the font.

    >>> [round(width, 2) for width in widths_in_em("nW ")]
    [0.63, 0.99, 0.32]
    """
    return [_width(character, weight) for character in text]


@functools.cache
def _width(character: str, weight: str) -> float:
    # A character on its own has no width if it is a space, and its path does not show the space beside it.
    return _path_width(f"|{character}|", weight) - _path_width("||", weight)


def _path_width(text: str, weight: str) -> float:
    prop = FontProperties(family=families(), weight=weight)
    with quiet(), missing_characters():  # a figure with characters that no font has gives a warning when it is saved
        return float(TextPath((0, 0), text, size=_MEASURED, prop=prop).vertices[:, 0].max() / _MEASURED)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context manager that hides messages of matplotlib about fonts that have no bold or no regular weight."""
    log = logging.getLogger("matplotlib.font_manager")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def missing_characters() -> Iterator[list[str]]:
    """Context manager that yields a list of the characters that matplotlib finds in no font.

    The list is filled when the `with` block ends. matplotlib's own warnings of these characters, one for each
    character, are not shown.
    """
    missing: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield missing
    for warning in caught:
        glyph = re.match(r"Glyph (\d+) .*missing from", str(warning.message))
        if glyph is None:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif chr(int(glyph[1])) not in missing:
            missing.append(chr(int(glyph[1])))


def advice_on_missing(characters: Sequence[str]) -> str:
    """Say which characters of a figure are shown as boxes, and how to install a font that has them."""
    names = [character if character.isprintable() else f"U+{ord(character):X}" for character in characters[:_SHOWN]]
    shown = " ".join(names) + (" …" if len(characters) > _SHOWN else "")
    return (
        f"no installed font has the characters {shown}, so the figure shows boxes in their place: install a font that "
        f"has them, such as Noto Sans CJK for Chinese, Japanese and Korean (on Debian and Ubuntu: apt install "
        f"fonts-noto-cjk), then delete {matplotlib.get_cachedir()}, where matplotlib lists the installed fonts, and "
        "draw the figure again"
    )
