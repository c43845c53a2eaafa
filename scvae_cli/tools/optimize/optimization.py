"""A walk up a programme's score, held where cells are: which state would show more of it, and is there such a cell?

It climbs from where it starts. Where that leads to a lower top than climbing from the cell that scores highest does, a
way to that top is looked for, over the lowest pass between the two; there the score need not rise all the way.

Shapes: n cells, k latent dimensions, t steps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.heldout import OFF_MANIFOLD
from scvae_cli.latent.neighbor_graph import CellGraph, cell_graph, coordinates, nearest
from scvae_cli.latent.populations import Population
from scvae_cli.latent.posteriors import BLOCK_CELLS, posteriors
from scvae_cli.model.bundle import Model
from scvae_cli.model.geometry import Geometry
from scvae_cli.tools.optimize.gene_program import Programme, scorer
from scvae_cli.tools.optimize.gradient_ascent import LENGTH, TOP, Ascent, Region, Score, ascend, kept_inside
from scvae_cli.tools.optimize.saddle_points import over_the_pass
from scvae_cli.tools.trajectory.curves import at_constant_speed, step_lengths
from scvae_cli.tools.trajectory.interpolation import NEIGHBOURS, described
from scvae_cli.tools.trajectory.result import ASCENT, Trajectory
from scvae_cli.tools.trajectory.waypoints import places

# A walk may be so many times as long as the way to the cell that is farthest from its start.
_LONGER_THAN_THE_CELLS = 5.0
# An unconstrained walk, too, starts where no more than this share of held-out cells lies in denser places.
_USUAL = 0.9
# Walks get equally high when their ends differ by so many standard deviations of the cells' scores, or less.
_ALIKE = 0.1
# A top on the border may lie outside by what is lost in rounding, nats.
_ROUNDING = 1e-3
# A walk that falls by more than this share of its rise goes over a pass.
_FALLS = 0.05
# A top below so large a share of the cells' scores is worth a word: it is not the highest there is.
_HIGH = 0.99


@dataclass(frozen=True, kw_only=True)
class AscentOptions:
    """What is asked for.

    Parameters
    ----------
    name
        Of the walk, in slots.
    n_steps
        Points on it, both ends included.
    within
        The walk stays where it is as dense as around the densest so many of the held-out cells; None: anywhere.
    n_starts
        Where a population's densest place leads no higher than the best cell, so many places of it are tried, the
        others cells far from there and from each other, and last the top above the best cell; of walks that get about
        as high as any the first is kept.
    max_length
        Fisher–Rao length after which it ends; None for five times the distance of the cell farthest from its start.
    library, batch_as
        Depth and batch to decode at, as for denoising.
    seed
        Of its bands.
    """

    name: str
    n_steps: int = 50
    within: float | None = 0.9
    n_starts: int = 8
    max_length: float | None = None
    library: str | float = "median"
    batch_as: str = "average"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_steps < 2:
            raise ConfigError(f"--steps is {self.n_steps}", "it takes a whole number, 2 or more")
        if self.n_starts < 1:
            raise ConfigError(f"--starts is {self.n_starts}", "it takes a whole number, 1 or more")
        if self.within is not None and not 0 < self.within <= OFF_MANIFOLD:
            raise ConfigError(
                f"--within is {self.within:g}", f"it takes a share above 0, up to {OFF_MANIFOLD}; or --unconstrained"
            )
        if self.max_length is not None and not 0 < self.max_length < math.inf:
            raise ConfigError(f"--max-length is {self.max_length:g}", "it takes a number above 0")

    @property
    def path(self) -> str:
        """Kind of walk."""
        return ASCENT

    @property
    def endpoint(self) -> str:
        """A population stands at the densest place of its core."""
        return "density"

    @property
    def couple(self) -> str:
        """There is one walk."""
        return "none"


@dataclass(frozen=True, kw_only=True)
class Optimized:
    """A walk uphill, and how high it got.

    Parameters
    ----------
    walk
        The walk, decoded, and what lies along it.
    programme
        What was to rise and to fall.
    score_t
        Score of every step: of genes, standard deviations of the cells; of a function, its own value.
    best_score, best_cell
        Highest score of a cell, at its posterior mean, and whose it is.
    below
        Share of the cells whose score is lower than the last step's.
    stopped
        Why the walk ends, one of `scvae_cli.tools.optimize.gradient_ascent.STOPPED`.
    """

    walk: Trajectory
    programme: Programme
    score_t: np.ndarray
    best_score: float
    best_cell: str
    below: float
    stopped: str

    @property
    def beyond(self) -> int | None:
        """The step from which on every score is higher than any cell's; None where the walk ends among the cells'."""
        lower_t = np.flatnonzero(self.score_t <= self.best_score)
        first = int(lower_t[-1]) + 1 if len(lower_t) else 0
        return first if first < len(self.score_t) else None

    @property
    def fall(self) -> float:
        """By how much the score is below a higher one that it had before, at most."""
        return float((np.maximum.accumulate(self.score_t) - self.score_t).max())

    def warnings(self) -> list[str]:
        """What not to take the walk for."""
        said = []
        if self.beyond is not None:
            said.append(
                f"extrapolated: from step {self.beyond} of 0 to {len(self.score_t) - 1} on, the score is higher than "
                f"in every cell (at the end {self.score_t[-1]:.3g}, in the best cell {self.best_score:.3g}): no cell "
                "shows what is decoded there"
            )
        if (off := self.walk.warning()) is not None:
            said.append(off)
        return said

    def advice(self) -> list[str]:
        """What would lead higher."""
        said = []
        if self.fall > _FALLS * (self.score_t[-1] - self.score_t[0]):
            said.append(
                f"the walk goes over a pass: on the way the score falls by up to {self.fall:.3g}; uphill all the way "
                "(--starts 1) it ends on a lower top"
            )
        if self.stopped == TOP and self.below < _HIGH:
            said.append(
                f"the walk ends on a lower top: {1 - self.below:.1%} of the cells score higher ({self.best_cell!r} "
                f"highest, {self.best_score:.3g}; the walk {self.score_t[-1]:.3g}): begin elsewhere, or walk there "
                f"with scvae interpolate --to-cell {self.best_cell}"
            )
        if self.stopped == LENGTH:
            said.append("the walk ends at the length it was allowed, still rising: --max-length lets it go on")
        return said

    def slots(self, names: SlotNames, file_genes: np.ndarray) -> list[Slot]:
        """Where the result goes: the slots of any walk, with the scores beside its steps."""
        facts = {
            **{side: np.asarray(genes, dtype=object) for side, genes in self.programme.told().items() if genes},
            "score": self.score_t,
            "best_score": self.best_score,
            "best_cell": self.best_cell,
            "share_below": self.below,
            "stopped": self.stopped,
        }
        if self.beyond is not None:
            facts["beyond_step"] = self.beyond
        walk, *rest = self.walk.slots(names, file_genes)
        return [replace(walk, value=walk.value | facts), *rest]


def optimize(
    model: Model,
    counts: Counts,
    start: Population,
    programme: Programme,
    options: AscentOptions,
    *,
    groups: np.ndarray | None = None,
) -> Optimized:
    """Climb from a population, or a cell, up a programme's score, and decode every step.

    Parameters
    ----------
    model
        Encodes the cells and decodes the walk.
    counts
        n cells in the model's genes.
    start
        A population, or one cell.
    groups
        Group of each cell, None for a cell in none, by which the steps are told.

    Raises
    ------
    DataError
        For a gene that the model does not know, or a start from which the score does not rise.
    ConfigError
        For a function that gives no score.
    """
    geometry = Geometry(model.vae)
    cells = posteriors(model, counts)
    mean_nk = cells.mean_nk
    score, cell_score_n = scorer(model, programme, mean_nk, library=options.library, batch_as=options.batch_as)

    @functools.cache
    def graph() -> CellGraph:
        return cell_graph(geometry, mean_nk, always=start.candidates(), seed=options.seed)

    starts_sk = _starts(model, graph, mean_nk, start, options)
    density = model.density.to(model.device)
    region = None if options.within is None else Region(log_prob=density.log_prob, limit=density.nll_at(options.within))

    def length(a_k: Tensor, b_k: Tensor) -> float:
        with torch.no_grad():
            y_2g = geometry.coordinates(torch.stack([a_k, b_k]))
        return float((y_2g[1] - y_2g[0]).norm())

    farthest = options.max_length or _LONGER_THAN_THE_CELLS * _farthest(geometry, starts_sk[0], mean_nk)
    first, *others = (each.to(model.device) for each in starts_sk)
    ways = [ascend(score, first, region=region, length=length, max_length=farthest)]
    if ways[0].score_t[-1] < cell_score_n.max():
        ways += [ascend(score, each, region=region, length=length, max_length=farthest) for each in others]
    alike = _ALIKE * cell_score_n.std()
    if region is not None and options.n_starts > 1:
        highest = max(each.score_t[-1] for each in ways)
        way = _to_the_best(graph, score, cell_score_n, mean_nk, first, region, above=highest + alike)
        if way is not None and step_lengths(geometry, way.z_tk).sum() <= farthest:
            ways.append(way)
    enough = max(each.score_t[-1] for each in ways) - alike
    way = next(each for each in ways if each.score_t[-1] >= enough)
    if len(way.z_tk) < 2:
        raise DataError(
            f"from {start.label!r} the score rises in no direction that cells allow",
            "it is a top already: begin elsewhere, or let the walk go farther out (--within 0.95, --unconstrained)",
        )
    z_tk = at_constant_speed(geometry, way.z_tk.astype(np.float64), options.n_steps)
    points_tk = torch.as_tensor(z_tk, dtype=torch.float32, device=model.device)
    if region is not None:
        points_tk = kept_inside(region, points_tk)
    with torch.no_grad():
        score_t = score(points_tk).double().cpu().numpy()
    points_tk = points_tk.cpu()
    around_ends = nearest(points_tk[[0, -1]], mean_nk, NEIGHBOURS)[0]
    walk = described(
        model,
        counts,
        cells,
        points_tk.numpy(),
        options,
        labels=(start.label, programme.label()),
        population=np.unique(around_ends),
        groups=groups,
    )
    best = int(cell_score_n.argmax())
    return Optimized(
        walk=walk,
        programme=programme,
        score_t=score_t,
        best_score=float(cell_score_n[best]),
        best_cell=str(counts.cell_names[best]),
        below=float((cell_score_n < score_t[-1]).mean()),
        stopped=way.stopped,
    )


def _starts(
    model: Model, graph: Callable[[], CellGraph], mean_nk: Tensor, start: Population, options: AscentOptions
) -> Tensor:
    """Where walks start, shape (s, k): at the cell, or at the densest place of a population and far from it."""
    if len(start.cells) == 1:
        return mean_nk[torch.as_tensor(start.cells)]
    density = model.density.to(torch.device("cpu"))
    starts = [torch.as_tensor(places(graph(), density, mean_nk, [start], options.endpoint).ends_pwk[0, 0])]
    usual_mk = mean_nk[torch.as_tensor(start.cells)]
    usual_mk = usual_mk[-density.log_prob(usual_mk) <= density.nll_at(options.within or _USUAL)]
    distance_m = (usual_mk - starts[0]).norm(dim=1)
    while len(starts) < options.n_starts and (distance_m > 0).any():
        starts.append(usual_mk[distance_m.argmax()])
        distance_m = torch.minimum(distance_m, (usual_mk - starts[-1]).norm(dim=1))
    return torch.stack(starts)


def _to_the_best(
    graph: Callable[[], CellGraph],
    score: Score,
    cell_score_n: np.ndarray,
    mean_nk: Tensor,
    start_k: Tensor,
    region: Region,
    *,
    above: float,
) -> Ascent | None:
    """A way to the top that lies above the best of the region's cells; None if that is no higher, or out of reach."""
    with torch.no_grad():
        blocks = torch.split(mean_nk, BLOCK_CELLS)
        nll_n = torch.cat([-region.log_prob(block_nk.to(start_k)).cpu() for block_nk in blocks])
        limit = max(region.limit, float(-region.log_prob(start_k[None])))
    inside = np.flatnonzero(nll_n.numpy() <= region.limit)
    if not len(inside):
        return None
    best_k = mean_nk[int(inside[cell_score_n[inside].argmax()])].to(start_k)
    top = ascend(score, best_k, region=region, length=lambda *_: 0.0, max_length=math.inf)
    if top.score_t[-1] <= above:
        return None
    end_k = torch.as_tensor(top.z_tk[-1]).to(start_k)
    z_tk = over_the_pass(graph(), region.log_prob, start_k, end_k, limit=limit + _ROUNDING)
    if z_tk is None:
        return None
    with torch.no_grad():
        score_t = score(z_tk).double().cpu().numpy()
    return Ascent(z_tk=z_tk.cpu().numpy(), score_t=score_t, stopped=top.stopped)


def _farthest(geometry: Geometry, start_k: Tensor, mean_nk: Tensor) -> float:
    """Fisher–Rao distance to the cell that is farthest from a place."""
    y_1g = coordinates(geometry, start_k[None])
    return max(
        float((coordinates(geometry, block_nk) - y_1g).norm(dim=1).max())
        for block_nk in torch.split(mean_nk, BLOCK_CELLS)
    )
