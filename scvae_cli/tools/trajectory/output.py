"""What the commands that walk through latent space print and write alike."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvae_cli.cli import options as o

if TYPE_CHECKING:
    import numpy as np

    from scvae_cli.data.slots import SlotNames
    from scvae_cli.tools.trajectory.result import Path as Walk

WALK = "Walk"
_SHOWN_GENES = 20


def gene_table(walk: Walk) -> list[dict[str, Any]]:
    """The genes that change most along a walk, a row each."""
    rows = []
    for g in walk.top_genes(_SHOWN_GENES):
        rows.append(
            {
                "gene": walk.genes[g],
                "start": float(walk.mean_tg[0, g]),
                "end": float(walk.mean_tg[-1, g]),
                "change": float(walk.changes.effect_g[g]),
                "direction": str(walk.changes.direction_g[g]),
                "monotonicity": float(walk.changes.monotonicity_g[g]),
                "switch_step": int(walk.changes.switch_g[g]),
            }
        )
    return rows


def gene_lines(rows: list[dict[str, Any]], library: str, *, of_counts: bool) -> list[str]:
    """The same as text."""
    lines = [f"{'gene':<16}{'start':>10}{'end':>10}{'change':>9}{'direction':>11}{'switch step':>13}"]
    for row in rows:
        lines.append(
            f"{row['gene']:<16}{row['start']:>10.3g}{row['end']:>10.3g}{row['change']:>9.2f}{row['direction']:>11}"
            f"{row['switch_step']:>13}"
        )
    depth = "the median depth" if library == "median" else f"a depth of {library}"
    expected = f"expected counts at {depth}" if of_counts else "expected values"
    return [*lines, f"({expected}; change in {o.noise_unit(of_counts=of_counts)})"]


def places(values: dict[str, Any]) -> list[str]:
    """Where the results went."""
    lines = [f"→ {place}" for place in (values["path_out"], values["plot"]) if place]
    return [*lines, f"→ {', '.join(values['slots'])} of {values['output']}"]


def check_path_out(path_out: Path, others: tuple[Path, ...], *, force: bool) -> None:
    """Refuse early a file for the steps that could not or should not be written."""
    from scvae_cli.data.atomic import check_new_file, check_writable
    from scvae_cli.errors import ConfigError

    if path_out.resolve() in {other.resolve() for other in others}:
        raise ConfigError(f"--path-out is {path_out}, which holds the cells", "give the steps a file of their own")
    check_new_file(path_out, force=force)
    check_writable(path_out)


def steps_file(
    walk: Walk, path_out: Path | None, names: SlotNames, *, force: bool, score_t: np.ndarray | None = None
) -> contextlib.AbstractContextManager[None]:
    """The steps as cells of an AnnData of their own; the file appears when the block, writing the results, is done."""
    if path_out is None:
        return contextlib.nullcontext()
    import anndata
    import pandas as pd

    from scvae_cli.data.h5ad_create import new_h5ad

    told = walk.steps
    steps = pd.DataFrame(
        {"position": told.position_t, "speed": told.speed_t, "off_manifold": told.off_manifold_t},
        index=pd.Index([f"step_{t}" for t in range(len(told.position_t))], dtype=object),
    )
    if score_t is not None:
        steps["score"] = score_t
    if told.groups_passed():
        steps["nearest_group"] = pd.Categorical(told.group_t)
    changes = walk.changes
    genes = pd.DataFrame(
        {
            "change": changes.effect_g,
            "net_change": changes.net_g,
            "direction": pd.Categorical(changes.direction_g),
            "monotonicity": changes.monotonicity_g,
            "switch_step": changes.switch_g,
        },
        index=pd.Index(walk.genes, dtype=object),
    )
    adata = anndata.AnnData(walk.mean_tg, obs=steps, var=genes, obsm={names.embedding: walk.z_tk})
    return new_h5ad(path_out, adata, force=force)
