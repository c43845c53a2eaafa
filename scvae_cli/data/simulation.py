"""Simulated counts of a branching differentiation with known ground truth.

Cells differentiate along a trunk that splits into branches. The expression of every gene follows a curve over
pseudotime. Every batch shifts the expression of the genes, and every cell has a library size. The counts x_ng follow a
zero-inflated negative binomial (NB) distribution:

    μ_ng = ℓ_n · ρ_g(t_n, lineage_n) · exp(e_{g, batch_n}),
    x_ng = 0 with probability π_g, otherwise NB(mean μ_ng, inverse dispersion θ_g).

In the formulas, t_n, lineage_n, batch_n and ℓ_n are the pseudotime, the lineage, the batch and the library size of cell
n. The proportion of gene g at a pseudotime along a lineage is ρ_g, the batch effect is e, and the probability of zero
inflation is π_g. The expected count of gene g in cell n is (1 − π_g) μ_ng. The proportions ρ_g are defined on a grid of
pseudotimes and are linear between grid points. The piecewise linear ρ_g is the exact ground truth, not an
approximation. The proportions of all genes sum to 1, so ℓ_n is the expected library size before batch effects and zero
inflation.

Letters in array shapes: n cells, g genes, b batches, s grid steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scvae_cli.amounts import amount
from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.data.zinb_draws import FloatArray, IntArray, draw_zinb
from scvae_cli.memory_limit import refuse_too_large

# Moment estimates from six public UMI data sets (10x PBMC 4k, ECCITE-seq PBMC, Kang 2018 IFN-β PBMC, Paul 2015 myeloid
# progenitors, CellBench single-cell and RNA-mixture CEL-seq2): the median over the data sets, with the range in
# brackets. θ is estimated by moments within the largest annotated group of each data set, over genes with a mean above
# 0.5 counts per cell.
LOG_LIBRARY_SD = 0.55  # [0.43, 0.74]
LOG_PROPORTION_SD = 1.6  # [1.1, 2.1]; the skewness is near 0, so proportions are log-normal
LOG_THETA_MEAN = 1.5  # [0.8, 2.3]
LOG_THETA_SD = 1.0  # [1.0, 1.5] as measured, which includes the noise of each estimate
THETA_MEAN_CORRELATION = 0.33  # [0.09, 0.57], between log θ and the log mean
THETA_RANGE = (0.2, 100.0)  # moment estimates outside of this range are mostly noise

PATTERNS = {"constant": 0.55, "rise": 0.10, "fall": 0.10, "transient": 0.08, "switch": 0.05, "branch": 0.12}
SPLIT = 0.4  # pseudotime at which the trunk ends; a grid point, so that all lineages are exactly equal on the trunk
GRID_STEPS = 51
# Names of the stages, and the pseudotime at which each stage ends. The number of the branch is added to the names of
# the last two stages.
STAGES = (("stem", 0.2), ("progenitor", SPLIT), ("intermediate", 0.7), ("mature", 1.0))

# Numbers of the random streams. Counts are drawn in chunks of fixed size, each with its own stream, so that the result
# does not depend on the block size that the caller requests. 256 cells × 2,000 genes in float32 fit in the cache.
_GENES, _CELLS, _COUNTS, _BATCHES = range(4)
_CHUNK_CELLS = 256


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Simulated cells and genes with their ground truth; counts are drawn by `blocks`.

    Parameters
    ----------
    obs
        A row per cell: `cell_type`, `batch` and `true_branch` (trunk, branch_1, …) as categoricals,
        `true_pseudotime` in [0, 1] and `true_library` (ℓ).
    var
        A row per gene: `true_pattern`, `true_branch` (the only branch in which the gene changes, or "all"),
        `true_theta` (θ) and `true_zero_inflation` (π).
    varm
        `true_rho_<branch>` (g × s): proportions ρ at the pseudotimes `uns["simulation"]["pseudotime_grid"]`, along the
        lineage from pseudotime 0 through the trunk to the tip of that branch. `true_batch_log_effect` (g × b): batch
        effects e, with one column for each of batch_1, batch_2, ….
    uns
        `simulation`: a dict with `pseudotime_grid`, and with `config`, the configuration as JSON text.
    """

    config: SimulationConfig
    obs: pd.DataFrame
    var: pd.DataFrame
    varm: dict[str, FloatArray]
    uns: dict[str, Any]

    def blocks(self, rows: int = 4096) -> Iterator[sp.csr_matrix]:
        """Draw the counts in the order of the cells, as CSR blocks of `rows` cells; the last block may be smaller.

        The counts (float32) do not depend on `rows` and are the same in each call. The column indices of each block are
        sorted, and no zeros are stored.
        """
        waiting: list[sp.csr_matrix] = []
        n_waiting = 0
        for chunk in self._chunks():
            waiting.append(chunk)
            n_waiting += chunk.shape[0]
            if n_waiting >= rows:
                stacked = sp.vstack(waiting, format="csr")
                whole = n_waiting - n_waiting % rows
                yield from (stacked[start : start + rows] for start in range(0, whole, rows))
                waiting, n_waiting = [stacked[whole:]], n_waiting - whole
        if n_waiting:
            yield sp.vstack(waiting, format="csr")

    def true_mean_blocks(self, rows: int = 4096) -> Iterator[FloatArray]:
        """Compute the true means μ as dense float32 blocks of shape (rows, g), in the same order as `blocks`."""
        curves = _Curves(self.varm)
        for start in range(0, self.config.n_cells, rows):
            yield curves.mean(self.obs.iloc[start : start + rows])

    def _chunks(self) -> Iterator[sp.csr_matrix]:
        theta_g, zero_inflation_g = self.var["true_theta"].to_numpy(), self.var["true_zero_inflation"].to_numpy()
        for chunk, mu_ng in enumerate(self.true_mean_blocks(_CHUNK_CELLS)):
            yield draw_zinb(mu_ng, theta_g, zero_inflation_g, _stream(self.config.seed, _COUNTS, chunk))


def simulate(config: SimulationConfig) -> Simulation:
    """Create the cells, the genes and their ground truth.

    The counts are drawn later, by `Simulation.blocks`. The memory needed therefore grows with the number of cells plus
    the number of genes, not with the product of the two numbers.

    >>> simulation = simulate(SimulationConfig(n_cells=5, n_genes=20, seed=1))
    >>> next(simulation.blocks()).shape
    (5, 20)

    Raises
    ------
    ConfigError
        If the cells and the curves of the genes do not fit into memory.
    """
    _refuse_too_large(config)
    var, rho = _genes(config)
    log_effect_gb = _stream(config.seed, _BATCHES).normal(0, config.batch_sd, (config.n_genes, config.n_batches))
    # Effects are centered per gene, so that a single batch has no effect and log ρ is the mean over batches.
    log_effect_gb -= log_effect_gb.mean(1, keepdims=True)
    varm = {f"true_rho_{branch}": rho_gs for branch, rho_gs in rho.items()}
    varm["true_batch_log_effect"] = log_effect_gb.astype(np.float32)
    facts = {"config": json.dumps(asdict(config), sort_keys=True), "pseudotime_grid": np.linspace(0, 1, GRID_STEPS)}
    return Simulation(config=config, obs=_cells(config), var=var, varm=varm, uns={"simulation": facts})


def _refuse_too_large(config: SimulationConfig) -> None:
    # Memory per cell: columns of obs, names, and the random numbers from which they are made.
    per_cell = 300
    # Memory per gene: the curves while they are drawn, in double precision, and a table of the curves in every batch.
    per_gene = GRID_STEPS * (40 + config.n_branches * (16 + 8 * config.n_batches))
    refuse_too_large(
        config.n_cells * per_cell + config.n_genes * per_gene,
        f"a simulation of {config.n_cells:,} cells and {amount(config.n_genes, 'gene')}, with "
        f"{amount(config.n_branches, 'branch')} and {amount(config.n_batches, 'batch')},",
        lambda free: (
            f"--cells {min(free // (2 * per_cell), config.n_cells)} with --genes "
            f"{min(free // (2 * per_gene), config.n_genes)} would fit; genes need memory for "
            "every branch and batch"
        ),
    )


def true_mean(obs: pd.DataFrame, varm: Mapping[str, Any]) -> FloatArray:
    """Compute the true means μ from which the counts of simulated cells are drawn.

    Parameters
    ----------
    obs
        Cells (all, a subset, or new ones) with `true_pseudotime`, `true_branch`, `batch` and `true_library`.
    varm
        The varm of a `Simulation`, or of an AnnData that was read from a file. The means of a gene do not depend on the
        other genes in `varm`.

    Returns
    -------
    numpy.ndarray
        μ, the mean counts before zero inflation, n × g, float32. With zero inflation, the mean counts are
        μ (1 − `var["true_zero_inflation"]`).
    """
    return _Curves(varm).mean(obs)


def _number(labels: pd.Series) -> npt.NDArray[np.int64]:
    """Convert names such as "batch_3" to numbers from 0, such as 2.

    The codes of a pandas Categorical are not used, because the codes change if a subset of the cells lacks categories.
    """
    values = pd.Categorical(labels)
    # On the trunk all lineages are equal, so the first lineage is used.
    numbers = [0 if name == "trunk" else int(str(name).rsplit("_", 1)[1]) - 1 for name in values.categories]
    return np.take(np.asarray(numbers, np.int64), np.asarray(values.codes))


class _Curves:
    """A table of the proportions ρ, each multiplied by exp(batch effect).

    Each row of the table belongs to a lineage, a batch and a grid step, and each column belongs to a gene.
    """

    def __init__(self, varm: Mapping[str, Any]) -> None:
        factor_bg = np.exp(np.asarray(varm["true_batch_log_effect"])).T
        n_lineages = sum(str(key).startswith("true_rho_branch_") for key in varm)
        rho = np.stack([np.asarray(varm[f"true_rho_branch_{k + 1}"]).T for k in range(n_lineages)])
        self.n_batches, self.n_steps = factor_bg.shape[0], rho.shape[1]
        table = rho[:, None] * factor_bg[None, :, None, :]
        self.table = np.ascontiguousarray(table.reshape(-1, rho.shape[2]), np.float32)

    def mean(self, obs: pd.DataFrame) -> FloatArray:
        """Compute the true means μ, n × g: the library size times a linear interpolation between rows of the table."""
        position_n = obs["true_pseudotime"].to_numpy(np.float64) * (self.n_steps - 1)
        library_n = obs["true_library"].to_numpy(np.float64)
        step_n = np.clip(position_n.astype(np.int64), 0, self.n_steps - 2)
        right_n = position_n - step_n
        curve_n = _number(obs["true_branch"]) * self.n_batches + _number(obs["batch"])
        row_n = curve_n * self.n_steps + step_n
        mu_ng: FloatArray = self.table[row_n]
        mu_ng *= (library_n * (1 - right_n)).astype(np.float32)[:, None]
        after_ng = self.table[row_n + 1]
        after_ng *= (library_n * right_n).astype(np.float32)[:, None]
        mu_ng += after_ng
        return mu_ng


def _stream(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator of one part of the simulation (SFC64, the fastest generator of numpy)."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key)))


def _cells(config: SimulationConfig) -> pd.DataFrame:
    """Draw cells with uniform pseudotimes, branches and batches, and with log-normal library sizes."""
    rng, n = _stream(config.seed, _CELLS), config.n_cells
    time_n = rng.random(n)
    branch_n, batch_n = rng.integers(config.n_branches, size=n), rng.integers(config.n_batches, size=n)
    library_n = config.depth * np.exp(rng.normal(0, LOG_LIBRARY_SD, n))

    trunk = [name for name, end in STAGES if end <= SPLIT]
    later = [name for name, end in STAGES if end > SPLIT]
    stage_n = np.searchsorted([end for _, end in STAGES[:-1]], time_n, side="right")
    on_trunk_n = stage_n < len(trunk)
    labels = trunk + [f"{name}_{k + 1}" for k in range(config.n_branches) for name in later]
    columns = {
        "cell_type": _categorical(np.where(on_trunk_n, stage_n, stage_n + branch_n * len(later)), labels),
        "batch": _categorical(batch_n, [f"batch_{b + 1}" for b in range(config.n_batches)]),
        "true_branch": _categorical(np.where(on_trunk_n, 0, branch_n + 1), ["trunk", *config.branches]),
        "true_pseudotime": time_n,
        "true_library": library_n,
    }
    return pd.DataFrame(columns, index=_names("cell", n))


def _categorical(code: IntArray, names: list[str]) -> pd.Categorical:
    return pd.Categorical.from_codes(code, names).remove_unused_categories()


def _genes(config: SimulationConfig) -> tuple[pd.DataFrame, dict[str, FloatArray]]:
    """Draw for each gene an expression level, θ, π, and a curve of proportions along each lineage (g × s)."""
    rng, g = _stream(config.seed, _GENES), config.n_genes
    level_g = rng.standard_normal(g)
    mixed_g = THETA_MEAN_CORRELATION * level_g + math.sqrt(1 - THETA_MEAN_CORRELATION**2) * rng.standard_normal(g)
    theta_g = np.clip(np.exp(LOG_THETA_MEAN + LOG_THETA_SD * mixed_g), *THETA_RANGE)
    zero_inflation_g = rng.beta(1, 1 / config.zero_inflation - 1, g) if config.zero_inflation else np.zeros(g)

    pattern_g = rng.permutation(np.searchsorted(np.cumsum(list(PATTERNS.values())), (np.arange(g) + 0.5) / g))
    branch_g = np.zeros(g, np.int64)
    branch_genes = np.flatnonzero(pattern_g == list(PATTERNS).index("branch"))
    branch_g[branch_genes] = 1 + np.arange(branch_genes.size) % config.n_branches

    shape_gs, branch_shape_gs = _shapes(rng, pattern_g)
    rho = {}
    for number, branch in enumerate(config.branches, start=1):
        change_gs = shape_gs + branch_shape_gs * (branch_g == number)[:, None]
        weight_gs = np.exp(LOG_PROPORTION_SD * level_g[:, None] + change_gs)
        rho[branch] = (weight_gs / weight_gs.sum(0)).astype(np.float32)
    var = pd.DataFrame(
        {
            "true_pattern": _categorical(pattern_g, list(PATTERNS)),
            "true_branch": _categorical(branch_g, ["all", *config.branches]),
            "true_theta": theta_g,
            "true_zero_inflation": zero_inflation_g,
        },
        index=_names("gene", g),
    )
    return var, rho


def _shapes(rng: np.random.Generator, pattern_g: IntArray) -> tuple[FloatArray, FloatArray]:
    """Draw the change in log expression of each gene over pseudotime, as two arrays of shape (g, s).

    The first array has the changes in all lineages; the second array has the changes that occur in only one branch.
    """
    g = pattern_g.size
    grid_s = np.linspace(0, 1, GRID_STEPS)[None, :]
    is_a = {name: (pattern_g == number)[:, None] for number, name in enumerate(PATTERNS)}
    # Most changes are 2- to 10-fold.
    size_g = np.maximum(rng.normal(1.6, 0.6, (g, 1)), 0.5)
    centre_g = rng.uniform(0.15, 0.85, (g, 1))
    width_g = rng.uniform(0.06, 0.15, (g, 1))

    slope_gs = 1 / (1 + np.exp(-(grid_s - centre_g) / width_g))
    step_gs = 1 / (1 + np.exp(-(grid_s - centre_g) / 0.01))
    bump_gs = np.exp(-0.5 * ((grid_s - centre_g) / width_g) ** 2)
    up_g = rng.choice([1, -1], (g, 1))
    shape_gs = is_a["rise"] * slope_gs - is_a["fall"] * slope_gs + is_a["transient"] * bump_gs
    shape_gs += is_a["switch"] * up_g * step_gs
    # Branch genes mostly increase, along a cubic with zero slope at both ends that starts at or after the split.
    onset_g = SPLIT + rng.uniform(0, 0.25, (g, 1))
    part_gs = np.clip((grid_s - onset_g) / rng.uniform(0.15, 0.35, (g, 1)), 0, 1)
    sign_g = np.where(rng.random((g, 1)) < 0.75, 1, -1)
    branch_shape_gs = is_a["branch"] * sign_g * part_gs**2 * (3 - 2 * part_gs)
    return size_g * shape_gs, size_g * branch_shape_gs


def _names(kind: str, count: int) -> pd.Index:
    width = len(str(count))
    return pd.Index([f"{kind}_{number:0{width}d}" for number in range(1, count + 1)], dtype=object)
