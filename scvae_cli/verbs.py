"""All verbs, in the order in which `scvae --help` lists them: a new one is a folder in `tools` and a line here."""

from __future__ import annotations

from scvae_cli.tools.check.options import CHECK
from scvae_cli.tools.embed.options import EMBED
from scvae_cli.tools.info.options import INFO
from scvae_cli.tools.simulate.options import SIMULATE
from scvae_cli.tools.sweep.options import SWEEP
from scvae_cli.tools.train.options import TRAIN
from scvae_cli.tools.trajectory.options import INTERPOLATE
from scvae_cli.verb import Verb

VERBS: tuple[Verb, ...] = (
    CHECK,
    TRAIN,
    SWEEP,
    EMBED,
    INTERPOLATE,
    INFO,
    SIMULATE,
)
