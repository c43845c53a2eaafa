"""Options of `scvae interpolate` and `scvae_cli.interpolate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scvae_cli.errors import ConfigError
from scvae_cli.options import OUTPUT, Flag, option
from scvae_cli.shared_options import Drawing, Reading, Subset, Writing, batch_as_option, library_option
from scvae_cli.verb import Verb

TRAJECTORY = "Trajectory"
MAX_PATHS = 1000

PathKind = Literal["geodesic", "graph", "straight"]
Endpoint = Literal["density", "centroid", "extreme"]
Coupling = Literal["none", "ot"]


@dataclass(frozen=True, kw_only=True)
class InterpolateOptions(Reading, Subset, Drawing, Writing):
    """Options that say between which cell states a trajectory runs, and how it is computed."""

    groupby: str | None = option(None, help="Column of obs that names the groups.")
    groups: tuple[str, ...] = option(
        (),
        help="Two or more groups that the trajectory passes in this order.",
        flags=(
            Flag(name="--from", help="Group at which the trajectory starts."),
            Flag(
                name="--via",
                help="Group that the trajectory passes between its ends. This option may be used several times.",
                repeated=True,
            ),
            Flag(name="--to", help="Group at which the trajectory ends."),
        ),
        label=True,
    )
    cells: tuple[str, ...] = option(
        (),
        help="Names (obs_names) of two or more cells that the trajectory passes in this order, instead of groups.",
        flags=(
            Flag(name="--from-cell", metavar="ID", help="Cell at which the trajectory starts, instead of a group."),
            Flag(name="--to-cell", metavar="ID", help="Cell at which the trajectory ends, instead of a group."),
        ),
    )
    time_key: str | None = option(
        None,
        help="Column of obs with the time point of each cell: numbers, labels that contain a number (E7.5, day3), or "
        "an ordered categorical. The trajectory passes the time points in order, instead of groups.",
    )
    name: str | None = option(None, help="Name of the result.", shown_default="FROM_to_TO")
    n_steps: int = option(
        50, flags=("--steps",), help="Number of steps along the trajectory, both ends included.", least=2, most=10_000
    )
    path: PathKind = option(
        "geodesic",
        help="Kind of trajectory. geodesic: the path with the least change in expression among paths through regions "
        "with cells. graph: a path from cell to neighboring cell. straight: a straight line in latent space.",
        panel=TRAJECTORY,
    )
    endpoint: Endpoint = option(
        "extreme",
        help="Position that represents a group. density: the position with the highest density of cells. extreme: "
        "like density, but the last group is represented by its most differentiated cells (the cells farthest from the "
        "start). centroid: the mean of the group's cells.",
        panel=TRAJECTORY,
    )
    couple: Coupling = option(
        "none",
        help="Whether to pair cells. With ot, single cells of the two end groups are paired by optimal transport, and "
        "a trajectory is computed for each pair.",
        panel=TRAJECTORY,
    )
    n_paths: int = option(
        50,
        flags=("--paths",),
        help="Number of pairs of cells with --couple ot. One trajectory is computed for each pair.",
        least=2,
        most=MAX_PATHS,
        panel=TRAJECTORY,
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1, panel=TRAJECTORY)
    library: str | float = library_option("median")
    batch_as: str = batch_as_option()
    path_out: Path | None = option(
        None, help="Also write the steps to an .h5ad file, one row per step.", panel=OUTPUT, metavar="FILE",
        in_record=False,
    )  # fmt: skip

    def check(self) -> None:
        """Require that the ends are named in exactly one way, and that there are at least two ends."""
        given = [bool(self.groups), bool(self.cells), self.time_key is not None]
        if sum(given) > 1:
            raise ConfigError(
                "the ends of the trajectory were given twice",
                "use one of --from and --to, --from-cell and --to-cell, or --time-key",
            )
        if not any(given) or (self.groups and self.groupby is None):
            raise ConfigError(
                "a trajectory needs --groupby with --from and --to (or --from-cell and --to-cell, or --time-key)",
                "scvae check DATA lists the columns that group cells",
            )
        ends = self.groups or self.cells
        if len(ends) == 1:
            raise ConfigError(
                "a trajectory needs two ends", "name the groups or cells between which the trajectory runs"
            )


INTERPOLATE = Verb(
    name="interpolate",
    panel="Trajectories",
    options=InterpolateOptions,
    home="scvae_cli.tools.trajectory.question:Interpolate",
    about="""Compute a trajectory in latent space between two groups or two cells, and decode every step.

    uns["scvae"]["paths"] holds the trajectory, and varm["scvae_path_NAME"] the expression of every gene along the
    trajectory. obs["scvae_pseudotime_NAME"] holds the position of each cell along the trajectory, or NaN for cells that
    do not belong to the trajectory. The groups that the trajectory passes and the genes that change most are printed.
    Warnings name the steps where no cells were observed. Warnings also name groups that the trajectory does not pass
    although many of its cells belong to them.""",
    example='scvae interpolate data.h5ad --groupby cell_type --from HSC --to "CD14+ Monocyte"',
)
