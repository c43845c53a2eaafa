"""The design matrix of a decoder with several covariates, which selects the effects for each cell.

The decoder's output for a cell is shifted by a sum of effects. The sum of effects contains one effect for the cell's
category in each batch key. For each continuous key, the sum contains an effect times the cell's standardized value:

    shift = Σ_q effect[category of the cell in batch key q] + Σ_v (value_v − mean_v) / sd_v · effect_v.

The shifts of all cells are the product of the design matrix D (cells × effects) with the effects. A row of D holds 1
for each category of the cell, 0 for other categories, and the standardized values of the continuous keys. Combinations
of categories have no additional effects (interactions). The shift for a new combination of categories is therefore
known if each of its categories occurred in the training.

If batch keys are nested, for example donors in sites, the data determine the sum of the effects of donor and site, but
not each effect separately.

A decoder with a single batch key and no continuous key has no design matrix, because the shift of a cell is simply the
effect of its batch.

Letters in array shapes: n cells, b combinations, q batch keys, v continuous keys, r effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from scvae_cli.data.covariates import CellCovariates, combination_name
from scvae_cli.data.labels import positions_in
from scvae_cli.errors import DataError

# Largest absolute value of a continuous key. The squares of larger values would overflow.
MOST_VALUE = 1e150


@dataclass(frozen=True, kw_only=True)
class Continuous:
    """Name of a continuous key, and mean, standard deviation, minimum and maximum of its values in training cells."""

    key: str
    mean: float
    sd: float
    least: float
    most: float

    @property
    def far(self) -> tuple[float, float]:
        """Lower and upper limit beyond which a value is far outside the range of the training values.

        The limits are minimum − width/2 and maximum + width/2, where width = maximum − minimum of the training values.
        """
        margin = (self.most - self.least) / 2
        return self.least - margin, self.most + margin

    def refuse_beyond(self, value_n: np.ndarray) -> None:
        """Raise a DataError if a value lies too far outside the range of the training values.

        A value may lie outside the range of the training values by at most ten times the width of this range.

        A missing value (NaN) is accepted.
        """
        margin = 10 * (self.most - self.least)
        beyond_n = (value_n < self.least - margin) | (value_n > self.most + margin)
        if beyond_n.any():
            raise DataError(
                f"{self.key} is {value_n[beyond_n][0]:g}, too far from the values of the training ({self.least:g} to "
                f"{self.most:g}) to extrapolate the effect of {self.key}",
                f"correct the values of {self.key}, for example their unit",
            )


@dataclass(frozen=True, kw_only=True)
class Design:
    """The covariates of a decoder, from which the design matrix is made.

    Parameters
    ----------
    batch_keys
        Names of the batch keys.
    combinations
        The combinations of categories in the training, sorted. Each combination has one category for each batch key.
        Without batch keys, the tuple is empty.
    continuous
        The continuous keys.
    """

    batch_keys: tuple[str, ...]
    combinations: tuple[tuple[str, ...], ...]
    continuous: tuple[Continuous, ...] = ()

    @classmethod
    def of(cls, covariates: CellCovariates, training: np.ndarray) -> Design:
        """Return the design for a model that is trained on cells with the given covariates.

        `training` contains the indices of the training cells.

        Raises
        ------
        DataError
            If a continuous key has the same value in all training cells.
        """
        keys = covariates.batch_keys
        combinations = tuple(sorted(set(map(tuple, covariates.category_nq)))) if keys else ()
        values = covariates.value_nv[training].T
        continuous = tuple(
            _continuous(key, value_n) for key, value_n in zip(covariates.continuous_keys, values, strict=True)
        )
        return cls(batch_keys=keys, combinations=combinations, continuous=continuous)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the combinations of categories."""
        return tuple(combination_name(self.batch_keys, combination) for combination in self.combinations)

    @cached_property
    def categories(self) -> tuple[tuple[str, ...], ...]:
        """The categories of each batch key, sorted."""
        return tuple(tuple(sorted(set(of_key))) for of_key in zip(*self.combinations, strict=True))

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """The columns of the design matrix that contain the effects of each batch key, as one slice per key."""
        ends = np.cumsum([0, *map(len, self.categories)]).tolist()
        return tuple(slice(start, end) for start, end in pairwise(ends))

    @property
    def n_effects(self) -> int:
        """Number of effects r: one effect for each category of each batch key, and one for each continuous key."""
        return sum(map(len, self.categories)) + len(self.continuous)

    @cached_property
    def combination_br(self) -> np.ndarray:
        """The design matrix with one row for each combination of categories, float32, shape (b, r)."""
        row_br = np.zeros((len(self.combinations), self.n_effects), dtype=np.float32)
        for q, (names, block) in enumerate(zip(self.categories, self.blocks, strict=True)):
            position = {name: i for i, name in enumerate(names)}
            for b, combination in enumerate(self.combinations):
                row_br[b, block.start + position[combination[q]]] = 1
        return row_br

    def code_nq(self, covariates: CellCovariates) -> np.ndarray:
        """Return the index of each cell's category in each batch key, shape (n, q). Unknown categories have −1."""
        columns = [positions_in(names, covariates.category_nq[:, q]) for q, names in enumerate(self.categories)]
        return np.column_stack(columns) if columns else np.empty((len(covariates.value_nv), 0), dtype=np.int64)

    def rows(self, covariates: CellCovariates, share_b: np.ndarray | None = None) -> np.ndarray:
        """Return the design matrix of the cells with the given covariates, float32, shape (n, r).

        For a cell with an unknown category of a batch key, the row contains the proportions of all categories of this
        key. These proportions follow from the proportions `share_b` of the combinations. A missing value of a
        continuous key is replaced by the mean of the key. A DataError is raised if a value of a continuous key lies too
        far outside the range of the training values.
        """
        row_nr = np.zeros((len(covariates.value_nv), self.n_effects), dtype=np.float32)
        average_r = None if share_b is None else share_b @ self.combination_br
        for code_n, block in zip(self.code_nq(covariates).T, self.blocks, strict=True):
            known = np.flatnonzero(code_n >= 0)
            if len(known) < len(code_n):
                assert average_r is not None, "unknown categories were refused before"
                row_nr[code_n < 0, block] = average_r[block]
            row_nr[known, block.start + code_n[known]] = 1
        for v, one in enumerate(self.continuous):
            one.refuse_beyond(covariates.value_nv[:, v])
            standardized_n = (covariates.value_nv[:, v] - one.mean) / one.sd
            row_nr[:, self.n_effects - len(self.continuous) + v] = np.nan_to_num(standardized_n, nan=0.0)
        return row_nr


def _continuous(key: str, value_n: np.ndarray) -> Continuous:
    """Return mean, standard deviation and range of a continuous key over the training cells."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, sd = float(value_n.mean()), float(value_n.std())
    if not (np.isfinite(sd) and np.abs(value_n).max(initial=0.0) < MOST_VALUE):
        raise DataError(f"obs[{key!r}] has values too large to compute with", "divide the values by a constant")
    # The standard deviation of a constant is not exactly 0, because of rounding errors.
    if sd <= 1e-9 * np.abs(value_n).max(initial=0.0):
        constant = f"has the same value ({value_n[0]:g}) in all {len(value_n)} training cells"
        nearly = f"hardly varies around {mean:g} in the {len(value_n)} training cells"
        raise DataError(
            f"obs[{key!r}] {constant if (value_n == value_n[0]).all() else nearly}",
            f"remove --continuous-key {key}: a constant has no effect",
        )
    return Continuous(key=key, mean=mean, sd=sd, least=float(value_n.min()), most=float(value_n.max()))


def nested_keys(combinations: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Return the pairs (inner, outer) of batch keys in which the inner category determines the outer category.

    >>> nested_keys([("d1", "Berlin"), ("d2", "Berlin"), ("d3", "Oslo")])
    [(0, 1)]
    """
    n_keys = len(combinations[0]) if combinations else 0
    pairs = [(i, j) for i in range(n_keys) for j in range(n_keys) if i != j]
    return [
        (i, j)
        for i, j in pairs
        if len({(one[i], one[j]) for one in combinations}) == len({one[i] for one in combinations})
    ]
