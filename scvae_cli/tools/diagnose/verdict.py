"""The verdicts of a diagnosis. Each verdict has a level and advice."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scvae_cli.config import RunConfig
from scvae_cli.tools.diagnose.advice import ADVICE, IMPORTANCE, Command

LEVELS = ("good", "watch", "poor")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One finding of a diagnosis.

    Parameters
    ----------
    topic
        Topic in a few words; no two verdicts of a diagnosis have the same topic.
    level
        "good", "watch" or "poor".
    sentence
        The finding, with the measured number.
    finding
        Key of the advice in `ADVICE`; empty if nothing needs to be done.
    values
        Values that are inserted into the text of the advice.
    """

    topic: str
    level: str
    sentence: str
    finding: str = ""
    values: Mapping[str, object] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        """The advice; empty if nothing needs to be done."""
        return ADVICE[self.finding].text.format(**self.values) if self.finding else ""

    def summary(self) -> dict[str, str]:
        """Return topic, level, sentence, finding and advice."""
        own = {name: str(getattr(self, name)) for name in ("topic", "level", "sentence", "finding")}
        return own | {"remedy": self.remedy}


def next_command(verdicts: Sequence[Verdict], config: RunConfig) -> Command:
    """Return the command that follows from the most important verdict.

    The most important verdict is the one with the worst level. If several verdicts have the worst level, the most
    important verdict is the one whose finding comes first in `ADVICE`. Verdicts whose advice has no command are
    ignored. If no advice has a command, the result is the command `embed`.

    Parameters
    ----------
    config
        Options with which the diagnosed model was trained.
    """
    commands = [
        (-LEVELS.index(verdict.level), IMPORTANCE[verdict.finding], command)
        for verdict in verdicts
        if verdict.finding and (command := ADVICE[verdict.finding].command) is not None
    ]
    if not commands:
        return Command(verb="embed")
    return min(commands, key=lambda ranked: ranked[:2])[2](config)


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
