"""All verbs, in the order in which `scvae --help` lists them: a new one is a folder in `tools` and a line here."""

from __future__ import annotations

from scvae_cli.tools.de.options import DE
from scvae_cli.tools.embed.options import EMBED
from scvae_cli.tools.trajectory.options import INTERPOLATE
from scvae_cli.verb import Verb

VERBS: tuple[Verb, ...] = (
    EMBED,
    INTERPOLATE,
    DE,
)
