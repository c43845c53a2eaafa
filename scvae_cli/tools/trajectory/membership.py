"""The cells that belong to a trajectory, and the position of each of these cells along the trajectory.

A trajectory is the center of a tube. The tube contains most cells in the states through which the trajectory passes.
Distances are Fisher–Rao distances between decoded states. Distances in latent space are not used, because unrelated
cells are hardly farther apart in latent space than cells of the same population.

A cell belongs to the trajectory if it lies in the tube, or in the cloud around an end of the trajectory. The width of
the tube at a step is computed from the covariance of posterior means around the step, in the metric of the decoder. To
find the cloud around an end, a normal distribution is fitted to those cells of the end's population that lie in the
tube. The cloud contains all cells of the population within the distribution. Most populations extend beyond the point
where a trajectory ends.

A cell outside the tube and the clouds also belongs to the trajectory if at least half of its nearest cells lie in the
tube or the clouds. If groups are known, most neighbors of the cell must also belong to groups that occur along the
nearby part of the trajectory. The condition on groups leaves out the cells of a sister fate that borders on the
trajectory.

Letters in array shapes: n cells, t steps, k latent dimensions, g genes, d directions of expression, j nearest cells, r
reference cells, c components or groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from scvae_cli.latent.neighbor_graph import MAX_NODES, coordinates, nearest
from scvae_cli.latent.populations import Population
from scvae_cli.latent.posteriors import BLOCK_CELLS
from scvae_cli.model.density import LatentDensity
from scvae_cli.model.geometry import Geometry
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.trajectory.end_clouds import cloud

# The tube holds this fraction of the cells whose states are those of the trajectory.
HELD = 0.95
# Number of nearest cells that decide whether a cell belongs to the trajectory, and the fraction of them that must
# belong.
_NEIGHBORS, _MAJORITY = 15, 0.5
# Nearest cells are looked up only for cells within this multiple of the width of the tube; cells farther away cannot
# belong to the trajectory.
_CANDIDATES = 2.0
# Number of directions of expression in which distances are measured. The directions keep all but a hundredth of a
# percent of the variance of expression, and are computed from at most `_DIRECTION_CELLS` cells.
_DIRECTIONS, _DIRECTION_CELLS = 64, 1000
# Two steps are nearby if the part of the trajectory between them is at most this fraction of the trajectory.
_NEARBY = 0.1


def members(
    geometry: Geometry,
    density: LatentDensity,
    cells: Posterior,
    z_tk: np.ndarray,
    nearest_tj: np.ndarray,
    *,
    ends: Sequence[Population | None],
    groups_n: np.ndarray | None,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the cells that belong to a trajectory.

    Parameters
    ----------
    geometry, density
        Fisher–Rao geometry of the decoder, and latent density of the cells (on the CPU).
    cells
        Posteriors of the cells, in the coordinates of the networks.
    z_tk, nearest_tj
        Steps of the trajectory in the coordinates of the networks, and the indices of the cells nearest to each step.
    ends
        Populations at the start and at the end; None for an end that has no population, such as a single cell.
    groups_n
        Group of each cell, None for a cell without a group. `groups_n` itself is None without groups.
    seed
        Random seed of the choice of reference cells if there are very many cells.

    Returns
    -------
    The position of each cell along the trajectory, from 0 at the start to 1 at the end, and the mask of the cells that
    belong to the trajectory. Positions and mask have shape (n,).
    """
    points_tk = torch.as_tensor(z_tk, dtype=torch.float32)
    state_nd, state_td = _states(geometry, cells.mean_nk, points_tk, progress)
    position_n, distance_n = project(state_nd, state_td)
    last = len(z_tk) - 1
    step_n = np.rint(position_n * last).astype(int)
    around_tk = cells.var_nk[torch.as_tensor(nearest_tj)].mean(1)
    beside_t, beyond_t = _widths(geometry, density, points_tk, around_tk)
    width_n = np.where((position_n > 0) & (position_n < 1), beside_t[step_n], beyond_t[step_n])
    inside_n = distance_n <= width_n
    candidate_n = distance_n <= _CANDIDATES * width_n
    nearby = max(1, round(_NEARBY * last))
    for step, population in zip((0, last), ends, strict=True):
        if population is not None:
            chosen = cloud(cells, population.cells, inside_n & (abs(step_n - step) <= nearby))
            inside_n[chosen] = candidate_n[chosen] = True
    rows = np.flatnonzero(candidate_n)
    neighbors_nj = _nearest_cells(state_nd, rows, seed)
    belongs_n = np.zeros(len(inside_n), dtype=bool)
    belongs_n[rows] = inside_n[rows] | (inside_n[neighbors_nj].mean(1) >= _MAJORITY)
    if groups_n is not None:
        belongs_n[rows] &= _shared_groups(groups_n, neighbors_nj, nearest_tj, step_n[rows], nearby) >= _MAJORITY
    return position_n, belongs_n


def project(points_nd: Tensor, path_td: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Project points on a path of straight steps, by Euclidean distance.

    Returns the position of each point along the path (0 at the start, 1 at the end), and its distance from the path.
    Positions and distances have shape (n,).
    """
    center_d = path_td.mean(0)
    path_td = path_td - center_d
    length_s = (path_td[1:] - path_td[:-1]).norm(dim=1).square().clamp_min(1e-30)
    position, distance = [], []
    for block_nd in torch.split(points_nd, BLOCK_CELLS):
        squared_nt = torch.cdist(block_nd - center_d, path_td, compute_mode="donot_use_mm_for_euclid_dist").square()
        before_ns, after_ns = squared_nt[:, :-1], squared_nt[:, 1:]
        # The foot of the perpendicular on a step follows from the distances to both ends of the step.
        share_ns = ((before_ns - after_ns + length_s) / (2 * length_s)).clamp(0, 1)
        squared_ns = before_ns - share_ns * (before_ns - after_ns + length_s) + share_ns.square() * length_s
        least_n, step_n = squared_ns.min(1)
        position.append((step_n + share_ns.gather(1, step_n[:, None])[:, 0]) / len(length_s))
        distance.append(least_n.clamp_min(0).sqrt())
    return torch.cat(position).double().numpy(), torch.cat(distance).double().numpy()


def _states(geometry: Geometry, mean_nk: Tensor, points_tk: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
    """Project the decoded states of cells and steps on the directions of largest variance, shapes (n, d) and (t, d)."""
    some_sk = mean_nk[:: -(-len(mean_nk) // _DIRECTION_CELLS)]
    step_tg = coordinates(geometry, points_tk)
    some_sg = torch.cat([coordinates(geometry, some_sk), step_tg])
    center_g = some_sg.mean(0)
    axes_dg = torch.linalg.svd(some_sg - center_g, full_matrices=False).Vh[:_DIRECTIONS]
    states = []
    with progress("Projecting the cells", len(mean_nk)) as advance:
        for block_nk in torch.split(mean_nk, BLOCK_CELLS):
            states.append((coordinates(geometry, block_nk) - center_g) @ axes_dg.T)
            advance(len(block_nk))
    return torch.cat(states), (step_tg - center_g) @ axes_dg.T


def _widths(
    geometry: Geometry, density: LatentDensity, points_tk: Tensor, var_tk: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the width of the tube beside the trajectory, and the width beyond its ends, for every step, shape (t,).

    The matrix C is the covariance of posterior means around a step. To compute C, the covariances of the components of
    the density are averaged, weighted by how likely each component is at the step. The posterior variance `var_tk` of
    the cells around the step is then subtracted. In the metric M = LLᵀ of the decoder, the squared distance of
    posterior means from the step is a quadratic form with the matrix A = LᵀCL. The distribution of the squared distance
    is close to a gamma distribution with the same mean tr A and variance 2 tr A² (Satterthwaite 1946). The width beside
    the trajectory is computed only from the part of A that is perpendicular to the trajectory.
    """
    device = geometry.vae.reference_library.device
    metric_tkk = geometry.metric(points_tk.to(device)).cpu().double()
    value_tk, vector_tkk = torch.linalg.eigh(metric_tkk)
    root_tkk = vector_tkk * value_tk.clamp_min(0).sqrt()[:, None, :]
    spread_tkk = root_tkk.transpose(1, 2) @ _of_means(density.covariance(points_tk), var_tk) @ root_tkk
    (tangent_tk,) = torch.gradient(points_tk.double(), dim=0)
    along_tk1 = root_tkk.transpose(1, 2) @ tangent_tk[:, :, None]
    along_tk1 = along_tk1 / along_tk1.norm(dim=1, keepdim=True).clamp_min(1e-30)
    across_tkk = torch.eye(along_tk1.shape[1], dtype=torch.float64) - along_tk1 @ along_tk1.transpose(1, 2)
    return _quantile(across_tkk @ spread_tkk @ across_tkk), _quantile(spread_tkk)


def _of_means(covariance_tkk: Tensor, var_tk: Tensor) -> Tensor:
    """Compute the covariance of posterior means: the covariance of samples minus the mean posterior variance."""
    value_tk, vector_tkk = torch.linalg.eigh(covariance_tkk.double() - torch.diag_embed(var_tk.double()))
    result: Tensor = (vector_tkk * value_tk.clamp_min(0)[:, None, :]) @ vector_tkk.transpose(1, 2)
    return result


def _quantile(form_tkk: Tensor) -> np.ndarray:
    """Compute the distance from each step within which the fraction HELD of posterior means lies, shape (t,).

    The squared distances are quadratic forms of normal variables.
    """
    mean_t = torch.diagonal(form_tkk, dim1=1, dim2=2).sum(1).clamp_min(1e-30).numpy()
    square_t = form_tkk.square().sum((1, 2)).clamp_min(1e-60).numpy()
    freedom_t = mean_t**2 / square_t
    width_t: np.ndarray = np.sqrt(2 * gammaincinv(freedom_t / 2, HELD) * mean_t / freedom_t)
    return width_t


def _nearest_cells(state_nd: Tensor, rows: np.ndarray, seed: int) -> np.ndarray:
    """Find the nearest cells of each given cell, by distances between decoded states, shape (rows, j).

    If there are very many cells, the nearest cells are looked up among a random subset.
    """
    reference = np.arange(len(state_nd))
    if len(reference) > MAX_NODES:
        reference = np.sort(np.random.default_rng(seed).choice(len(reference), MAX_NODES, replace=False))
    j = min(_NEIGHBORS, len(reference) - 1)
    found_nj = reference[nearest(state_nd[torch.as_tensor(rows)], state_nd[torch.as_tensor(reference)], j + 1)[0]]
    itself_nj = found_nj == rows[:, None]
    # If a cell is not among its own nearest cells, the farthest of these is left out instead.
    itself_nj[~itself_nj.any(1), -1] = True
    others: np.ndarray = found_nj[~itself_nj].reshape(len(rows), j)
    return others


def _shared_groups(
    groups_n: np.ndarray, neighbors_nj: np.ndarray, nearest_tj: np.ndarray, step_n: np.ndarray, nearby: int
) -> np.ndarray:
    """Compare the groups around each cell with the groups around the nearby steps of the trajectory, shape (n,).

    Two fractions are computed for each group: the fraction among the cell's neighbors, and the largest fraction around
    any nearby step. The result is the sum, over groups, of the smaller fraction. The sum is at most 1, and it is 0 if
    the neighbors share no group with the cells around the nearby steps. Cells without a group count as one group.
    """
    names, code_n = np.unique(np.asarray([str(g) if g is not None else "" for g in groups_n]), return_inverse=True)
    step_tc, around_nc = (_fractions(code_n[rows], len(names)) for rows in (nearest_tj, neighbors_nj))
    last = len(step_tc) - 1
    most_tc = np.stack([step_tc[max(0, t - nearby) : t + nearby + 1].max(0) for t in range(last + 1)])
    shared_n: np.ndarray = np.minimum(around_nc, most_tc[step_n]).sum(1)
    return shared_n


def _fractions(code_nj: np.ndarray, n_groups: int) -> np.ndarray:
    """Compute the fraction of the codes in each row of `code_nj` that equal the code of each group, shape (n, c)."""
    count_nc = np.zeros((len(code_nj), n_groups))
    for code_n in code_nj.T:
        count_nc[np.arange(len(code_nj)), code_n] += 1
    fractions: np.ndarray = count_nc / code_nj.shape[1]
    return fractions
