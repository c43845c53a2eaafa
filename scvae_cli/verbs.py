"""All verbs (commands of scvae), in the order of `scvae --help`.

To add a verb, add a folder in `tools` and a line to VERBS.
"""

from __future__ import annotations

from scvae_cli.tools.annotate.options import ANNOTATE
from scvae_cli.tools.check.options import CHECK
from scvae_cli.tools.de.options import DE
from scvae_cli.tools.denoise.options import DENOISE
from scvae_cli.tools.diagnose.options import DIAGNOSE
from scvae_cli.tools.embed.options import EMBED
from scvae_cli.tools.info.options import INFO
from scvae_cli.tools.map.options import MAP
from scvae_cli.tools.optimize.options import OPTIMIZE
from scvae_cli.tools.perturb.options import PERTURB
from scvae_cli.tools.pseudotime.options import PSEUDOTIME
from scvae_cli.tools.sample.options import SAMPLE
from scvae_cli.tools.score.options import SCORE
from scvae_cli.tools.simulate.options import SIMULATE
from scvae_cli.tools.sweep.options import SWEEP
from scvae_cli.tools.train.options import TRAIN
from scvae_cli.tools.trajectory.options import INTERPOLATE
from scvae_cli.verb import Verb

VERBS: tuple[Verb, ...] = (
    CHECK,
    TRAIN,
    SWEEP,
    MAP,
    EMBED,
    ANNOTATE,
    DENOISE,
    INTERPOLATE,
    OPTIMIZE,
    PSEUDOTIME,
    SCORE,
    DE,
    SAMPLE,
    PERTURB,
    DIAGNOSE,
    INFO,
    SIMULATE,
)
