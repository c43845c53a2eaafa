"""A walk through latent space from one population of cells to another, decoded.

Shapes: n cells, k latent dimensions, g genes, t steps, w way-points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import Slot, SlotNames, slug
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.latent.denoising import batch_index, library_size
from scvae_cli.latent.embedding import BLOCK_CELLS, Embedding, embed
from scvae_cli.model.bundle import Model

# A cell belongs to a path when it is no farther from it than this share of the cells the path was drawn through.
NEAR_SHARE = 0.75
# Around a single cell, this many nearest cells stand for its population.
NEIGHBOURS = 50


@dataclass(frozen=True, kw_only=True)
class Waypoint:
    """A place a path goes through: a population, or one cell.

    Parameters
    ----------
    label
        Its name, as the user gave it.
    cells
        Indices of its cells; one index for a single cell.
    """

    label: str
    cells: np.ndarray


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """What is asked for.

    Parameters
    ----------
    name
        Of the path, in slots.
    n_steps
        Points on it, both ends included.
    path
        Kind of path, a key of `PATHS`.
    library, batch_as
        Depth and batch to decode at, as for denoising.
    """

    name: str
    n_steps: int = 50
    path: str = "straight"
    library: str | float = "median"
    batch_as: str = "average"

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise ConfigError(f"--path is {self.path!r}", f"it takes one of: {', '.join(PATHS)}")
        if self.n_steps < 2:
            raise ConfigError(f"--steps is {self.n_steps}", "it takes a whole number, 2 or more")


@dataclass(frozen=True, kw_only=True)
class Path:
    """A walk and what lies along it.

    Parameters
    ----------
    options
        What was asked for.
    labels
        Of the way-points.
    genes
        g modelled genes.
    z_tk
        Latent points, equally spaced along the walk.
    position_t
        0 to 1.
    mean_tg
        Expected counts at the reference depth and batch.
    change_g
        Range of each gene's variance-stabilised mean along the walk, in standard deviations of a count there.
    switch_g
        Step at which each gene has made half its change.
    pseudotime_n
        Where each cell lies along the walk, 0 to 1; NaN for cells far from it.
    """

    options: PathOptions
    labels: tuple[str, ...]
    genes: tuple[str, ...]
    z_tk: np.ndarray
    position_t: np.ndarray
    mean_tg: np.ndarray
    change_g: np.ndarray
    switch_g: np.ndarray
    pseudotime_n: np.ndarray

    def top_genes(self, n: int) -> np.ndarray:
        """Indices of the n genes that change most, most first."""
        return np.argsort(-self.change_g, kind="stable")[:n]

    def slots(self, names: SlotNames, file_genes: np.ndarray) -> list[Slot]:
        """Where the result goes; genes of the file that are not modelled get NaN."""
        name = self.options.name
        position = {gene: i for i, gene in enumerate(self.genes)}
        columns_f = np.asarray([position.get(gene, -1) for gene in file_genes])
        path_ft = np.full((len(file_genes), len(self.position_t)), np.nan, dtype=np.float32)
        path_ft[columns_f >= 0] = self.mean_tg.T[columns_f[columns_f >= 0]]
        facts = {
            "name": name,
            "kind": self.options.path,
            "waypoints": np.asarray(self.labels, dtype=object),
            "latent": self.z_tk,
            "position": self.position_t,
            "library": str(self.options.library),
            "batch_as": self.options.batch_as,
        }
        return [
            Slot(group="uns", key=names.path_latent(name), value=facts),
            Slot(group="varm", key=names.path_genes(name), value=path_ft),
            Slot(group="obs", key=names.pseudotime(name), value=self.pseudotime_n),
        ]


def straight(ends_wk: np.ndarray, n_steps: int) -> np.ndarray:
    """Straight lines from way-point to way-point, walked at constant speed, shape (t, k).

    >>> straight(np.array([[0.0], [3.0], [4.0]]), 5).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    length_w = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(ends_wk, axis=0), axis=1))])
    at_t = np.linspace(0, length_w[-1], n_steps)
    return np.stack([np.interp(at_t, length_w, ends_wk[:, d]) for d in range(ends_wk.shape[1])], axis=1)


# Another kind of path is one more function: way-points (w, k) and a number of steps → points (t, k).
PATHS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"straight": straight}


def interpolate(model: Model, counts: Counts, waypoints: Sequence[Waypoint], options: PathOptions) -> Path:
    """Walk from the first way-point to the last and decode every step.

    A population stands at the mean of its cells' posterior means.

    Parameters
    ----------
    model
        Encodes the cells and decodes the walk.
    counts
        n cells in the model's genes.
    waypoints
        Two or more.

    Raises
    ------
    DataError
        When two neighbouring way-points are at the same place.
    """
    embedding = embed(model, counts)
    ends_wk = np.stack([embedding.mean_nk[point.cells].mean(0) for point in waypoints]).astype(np.float64)
    for before, after, gap in zip(waypoints, waypoints[1:], np.diff(ends_wk, axis=0), strict=False):
        if not np.linalg.norm(gap) > 0:
            raise DataError(f"{before.label!r} and {after.label!r} are at the same place", "choose two different ends")
    z_tk = PATHS[options.path](ends_wk, options.n_steps)
    mean_tg = _decode(model, z_tk, options)
    change_g, switch_g = _changes(mean_tg, _theta(model))
    position_n, distance_n = _project(embedding.mean_nk, z_tk)
    limit = np.quantile(distance_n[_population(embedding, waypoints)], NEAR_SHARE)
    return Path(
        options=options,
        labels=tuple(point.label for point in waypoints),
        genes=model.genes,
        z_tk=z_tk.astype(np.float32),
        position_t=np.linspace(0, 1, options.n_steps),
        mean_tg=mean_tg,
        change_g=change_g,
        switch_g=switch_g,
        pseudotime_n=np.where(distance_n <= limit, position_n, np.nan),
    )


def default_name(labels: Sequence[str]) -> str:
    """A path's name made of its way-points.

    >>> default_name(["HSC", "CD4+ T"])
    'HSC_to_CD4_T'
    """
    return "_to_".join(slug(label) for label in labels)


@torch.inference_mode()
def _decode(model: Model, z_tk: np.ndarray, options: PathOptions) -> np.ndarray:
    """Expected counts along a walk, shape (t, g)."""
    library = library_size(model, options.library)
    if library is None:
        raise DataError("a walk has no observed library size", "--library takes median or a number")
    batch = batch_index(model, options.batch_as)
    z = torch.as_tensor(z_tk, dtype=torch.float32, device=model.device)
    library_t = torch.full((len(z),), library, device=model.device)
    batch_t = None if batch is None else torch.full((len(z),), batch, device=model.device)
    result: np.ndarray = model.vae.expected_counts(z, library_t, batch_t).cpu().numpy()
    return result


def _theta(model: Model) -> np.ndarray:
    """Inverse dispersion, shape (g,); infinite for a Poisson."""
    log_theta_g = model.vae.decoder.head.log_theta_g
    if log_theta_g is None:
        return np.full(len(model.genes), np.inf)
    theta_g: np.ndarray = log_theta_g.detach().exp().cpu().numpy()
    return theta_g


def _changes(mean_tg: np.ndarray, theta_g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much each gene changes along a walk, and the step at which half of it is done.

    y = 2√θ·asinh(√(μ/θ)) is the negative binomial's variance-stabilising (Fisher–Rao) coordinate, 2√μ for a Poisson.
    """
    with np.errstate(invalid="ignore"):
        y_tg = 2 * np.sqrt(theta_g) * np.arcsinh(np.sqrt(mean_tg / theta_g))
    y_tg = np.where(np.isfinite(theta_g), y_tg, 2 * np.sqrt(mean_tg))
    low_g, high_g = y_tg.min(0), y_tg.max(0)
    # The crossing of the half-way level nearest the start is the switch, whichever way the gene goes.
    above_tg = y_tg > (low_g + high_g) / 2
    switch_g = (above_tg != above_tg[0]).argmax(0)
    return high_g - low_g, switch_g


def _project(z_nk: np.ndarray, z_tk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest point of a walk to each cell: its position in 0..1 and its distance, each of shape (n,)."""
    start_sk, step_sk = z_tk[:-1], np.diff(z_tk, axis=0)
    squared_s = np.maximum((step_sk**2).sum(1), 1e-30)
    position_n = np.empty(len(z_nk))
    distance_n = np.empty(len(z_nk))
    for begin in range(0, len(z_nk), BLOCK_CELLS):
        rows = slice(begin, begin + BLOCK_CELLS)
        from_start_nsk = z_nk[rows, None, :] - start_sk
        share_ns = np.clip((from_start_nsk * step_sk).sum(2) / squared_s, 0, 1)
        distance_ns = np.linalg.norm(from_start_nsk - share_ns[..., None] * step_sk, axis=2)
        nearest = distance_ns.argmin(1)
        each = np.arange(len(nearest))
        position_n[rows] = (nearest + share_ns[each, nearest]) / len(step_sk)
        distance_n[rows] = distance_ns[each, nearest]
    return position_n, distance_n


def _population(embedding: Embedding, waypoints: Sequence[Waypoint]) -> np.ndarray:
    """Cells the walk was drawn through: the way-points' own, or the neighbours of a single cell."""
    members = []
    for point in waypoints:
        if len(point.cells) > 1:
            members.append(point.cells)
            continue
        distance_n = np.linalg.norm(embedding.mean_nk - embedding.mean_nk[point.cells[0]], axis=1)
        members.append(np.argsort(distance_n, kind="stable")[:NEIGHBOURS])
    return np.unique(np.concatenate(members))
