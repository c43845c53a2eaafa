"""Continuous keys of a model, for which `de` does not adjust the groups.

Groups are compared within combinations of the batch keys, but not within values of a continuous key. If a continuous
key has another mean in the group than in the reference, the changes of the genes include the effect of the key.

Letters in array shapes: n cells, v continuous keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.amounts import noun
from scvae_cli.data.covariates import CellCovariates
from scvae_cli.tools.de.contrast import Contrast

# Smallest difference of two means, in standard deviations, of which a warning is given. Differences below 0.1 are
# usually considered negligible (Austin, Statistics in Medicine 28:3083, 2009).
_NEGLIGIBLE = 0.1
# Smallest standard deviation by which a difference is divided, as a share of the difference.
_LEAST_SCALE = 1e-6


@dataclass(frozen=True, kw_only=True)
class UnadjustedKey:
    """Mean of a continuous key in the cells of the group and of the reference.

    `difference` is the difference of the two means, divided by the root mean square of the two standard deviations. The
    difference is 0 if all values are equal.
    """

    key: str
    group: float
    reference: float
    difference: float


def unadjusted_keys(covariates: CellCovariates | None, contrast: Contrast) -> list[UnadjustedKey]:
    """Compare the continuous keys of a model between the two groups."""
    if covariates is None:
        return []
    found = []
    sides = (contrast.group_cells, contrast.reference_cells)
    for key, value_n in zip(covariates.continuous_keys, covariates.value_nv.T, strict=True):
        (group, reference), variances = ([of(value_n[cells]) for cells in sides] for of in (np.mean, np.var))
        apart = float(group - reference)
        # Two constant groups with different values differ by infinitely many standard deviations.
        scale = max(float(np.sqrt(np.mean(variances))), _LEAST_SCALE * abs(apart))
        difference = apart / scale if apart else 0.0
        found.append(UnadjustedKey(key=key, group=float(group), reference=float(reference), difference=difference))
    return found


def warnings_of_unadjusted_keys(keys: Sequence[UnadjustedKey], contrast: Contrast) -> list[str]:
    """Return a warning of the continuous keys that differ between the groups; the list is empty if there are none."""
    differing = [one for one in keys if abs(one.difference) >= _NEGLIGIBLE]
    if not differing:
        return []
    means = "; ".join(
        f"mean {one.key} {one.group:.4g} in {contrast.group}, {one.reference:.4g} in {contrast.reference}"
        for one in differing
    )
    names = ", ".join(one.key for one in differing)
    return [
        f"the groups are not adjusted for {names} ({means}), so the changes of the genes include "
        f"{noun(len(differing), 'its effect', 'their effects')}"
    ]
