"""A verdict, which is one finding of a diagnosis with a level and advice; and a page of verdicts as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

LEVELS = ("good", "watch", "poor")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One finding of a diagnosis.

    Parameters
    ----------
    topic
        Topic in a few words; no two verdicts of a diagnosis have the same topic.
    level
        One of `LEVELS`.
    sentence, remedy
        The finding, with the measured number; and advice. The advice is empty if nothing needs to be done.
    """

    topic: str
    level: str
    sentence: str
    remedy: str = ""


def page(verdicts: Sequence[Verdict], *, width: int = 100) -> str:
    """Format verdicts as text, with the advice below each verdict."""
    topic_width = max((len(verdict.topic) for verdict in verdicts), default=0)
    lines: list[str] = []
    for verdict in verdicts:
        lead = f"{verdict.level:<5}  {verdict.topic:<{topic_width}}  "
        for start, text in ((lead, verdict.sentence), (" " * len(lead) + "→ ", verdict.remedy)):
            if text:
                lines += textwrap.wrap(
                    text, width, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
                )
    return "\n".join(lines)
