"""The file of `--path-out`: an AnnData with one row for each step of a trajectory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from scvae_cli.data.h5ad_create import new_h5ad
from scvae_cli.data.slots import SlotNames
from scvae_cli.tools.trajectory.result import Trajectory


def steps_file(
    trajectory: Trajectory, file: Path, names: SlotNames, *, force: bool, score_t: np.ndarray | None
) -> AbstractContextManager[None]:
    """Write one row for each step, with expected counts as X. The file appears at the end of the `with` block.

    `score_t` contains the score of each step, which is written to obs["score"]. Without scores, `score_t` is None.
    """
    along, changes = trajectory.steps, trajectory.changes
    steps = pd.DataFrame(
        {"position": along.position_t, "speed": along.speed_t, "off_manifold": along.off_manifold_t},
        index=pd.Index([f"step_{t}" for t in range(len(along.position_t))], dtype=object),
    )
    if score_t is not None:
        steps["score"] = score_t
    if along.groups_passed():
        steps["nearest_group"] = pd.Categorical(along.group_t)
    genes = pd.DataFrame(
        {
            "change": changes.effect_g,
            "net_change": changes.net_g,
            "direction": pd.Categorical(changes.direction_g),
            "monotonicity": changes.monotonicity_g,
            "switch_step": changes.switch_g,
        },
        index=pd.Index(trajectory.genes, dtype=object),
    )
    adata = anndata.AnnData(trajectory.mean_tg, obs=steps, var=genes, obsm={names.latent: trajectory.z_tk})
    return new_h5ad(file, adata, force=force)
