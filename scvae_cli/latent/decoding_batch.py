"""The batch in which latent positions are decoded, which the option `--batch-as` chooses.

Letters in array shapes: b batches, r effects.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scvae_cli.data.covariates import quoted
from scvae_cli.data.labels import matching
from scvae_cli.errors import DataError
from scvae_cli.model.bundle import Model
from scvae_cli.model.design import Design, nested_keys
from scvae_cli.model.vae import Mixture

AVERAGE = "average"


def decoding_mixture(model: Model, batch_as: str, *, usual: str = AVERAGE) -> Mixture | None:
    """Return the batches over which decoded counts are averaged, or None if `batch_as` equals the default `usual`.

    For a model with one batch key, `batch_as` is the name of a batch. For a model with several covariates, `batch_as`
    fixes some covariates (see `fixed_covariates`). For a batch key that is not fixed, decoded counts are averaged over
    the categories of the key. Each category is weighted by the number of training cells in the category. Continuous
    keys that are not fixed have their mean values.

    Raises
    ------
    DataError
        If the model has no batch with the name `batch_as`.
    """
    if batch_as == usual:
        return None
    if model.vae.design is None:
        index = model.batches.index(one_batch(model, batch_as, usual=usual))
        return Mixture(torch.tensor([index], device=model.device), (1.0,))
    fixed = fixed_covariates(model, batch_as, usual=usual)
    row_br, first_b = np.unique(fixed.rows(np.arange(len(model.batches))), axis=0, return_inverse=True)
    share_b = (
        np.bincount(first_b.ravel(), weights=model.vae.batch_share_b.double().cpu().numpy()) if model.batches else [1.0]
    )
    present = [b for b, share in enumerate(share_b) if share > 0]
    batch_br = torch.as_tensor(row_br[present], device=model.device)
    return Mixture(batch_br, tuple(float(share_b[b]) for b in present))


def one_batch(model: Model, batch_as: str, *, usual: str) -> str:
    """Return the batch of a model that `batch_as` names. `batch_as` is the name of a batch, or KEY=BATCH.

    Raises
    ------
    DataError
        If the model has no batch that `batch_as` names.
    """
    batch = matching(batch_as, model.batches)
    for key in model.config.data.batch_keys:
        if batch is None and batch_as.startswith(f"{key}="):
            batch = matching(batch_as.removeprefix(f"{key}="), model.batches)
    if batch is None:
        known = f"--batch-as takes {usual} or one of: {', '.join(model.batches)}"
        none = "leave out --batch-as: the model was trained without --batch-key"
        raise DataError(f"the model has no batch {batch_as!r}", known if model.batches else none)
    return batch


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Covariates that `--batch-as` fixes: a category of each batch key, and a value of each continuous key.

    The category or value of a key that is not fixed is None.
    """

    design: Design
    categories: tuple[str | None, ...]
    values: tuple[float | None, ...]

    def combination(self, b: int) -> tuple[str, ...]:
        """Return the combination of categories with index `b`; fixed categories replace the original categories."""
        own = self.design.combinations[b]
        return tuple(one if one is not None else mine for one, mine in zip(self.categories, own, strict=True))

    def rows(self, index_n: np.ndarray) -> np.ndarray:
        """Return the rows of the design matrix for the combinations of categories with the given indices, shape (n, r).

        Fixed categories replace the original categories of a combination. Continuous keys that are not fixed have their
        mean values. For a model without batch keys, the result has one row.
        """
        design = self.design
        if not design.batch_keys:
            row_br = np.zeros((1, design.n_effects), dtype=np.float32)
        else:
            position = [{name: i for i, name in enumerate(names)} for names in design.categories]
            row_br = np.zeros((len(design.combinations), design.n_effects), dtype=np.float32)
            for b in range(len(row_br)):
                for q, category in enumerate(self.combination(b)):
                    row_br[b, design.blocks[q].start + position[q][category]] = 1
            row_br = row_br[index_n]
        for v, (one, value) in enumerate(zip(design.continuous, self.values, strict=True)):
            if value is not None:
                row_br[:, design.n_effects - len(design.continuous) + v] = (value - one.mean) / one.sd
        return row_br

    @property
    def name(self) -> str:
        """The fixed covariates as text, in the form that `--batch-as` takes."""
        keys = (*self.design.batch_keys, *(one.key for one in self.design.continuous))
        given = [
            (key, quoted(value) if isinstance(value, str) else repr(value).removesuffix(".0"))
            for key, value in zip(keys, (*self.categories, *self.values), strict=True)
            if value is not None
        ]
        return ",".join(f"{key}={value}" for key, value in given)


def fixed_covariates(model: Model, batch_as: str, *, usual: str) -> Fixed:
    """Read from the text KEY=VALUE[,KEY=VALUE…] which covariates of a model with several covariates are fixed.

    If all training cells of a donor come from one site, fixing the donor also fixes the site. `batch_as` may also be
    the name of a combination of categories, as `scvae info` lists it. The name of a combination fixes all batch keys.

    Raises
    ------
    DataError
        If the model does not have a key or category that `batch_as` names, or if the value of a
        continuous key is not a finite number.
    """
    design = model.vae.design
    assert design is not None, "models with one batch key have batches"
    numbers = {one.key: v for v, one in enumerate(design.continuous)}
    keys = [*design.batch_keys, *numbers]
    hint = f"--batch-as takes {usual}, or KEY=VALUE[,KEY=VALUE…] for: {', '.join(keys)}"
    categories: list[str | None] = [None] * len(design.batch_keys)
    values: list[float | None] = [None] * len(numbers)
    if batch_as in design.names:
        categories = list(design.combinations[design.names.index(batch_as)])
        return Fixed(design=design, categories=tuple(categories), values=tuple(values))
    for key, text in _pairs(batch_as, keys, dict(zip(design.batch_keys, design.categories, strict=True)), hint):
        if key in numbers:
            values[numbers[key]] = value = _number(key, text)
            design.continuous[numbers[key]].refuse_beyond(np.asarray([value]))
            continue
        q = design.batch_keys.index(key)
        categories[q] = matching(text, design.categories[q])
        if categories[q] is None:
            known = ", ".join(design.categories[q])
            raise DataError(f"the model has no {key} {text!r}", f"--batch-as {key}=VALUE takes one of: {known}")
    for inner, outer in nested_keys(design.combinations):
        if categories[inner] is not None and categories[outer] is None:
            categories[outer] = next(one[outer] for one in design.combinations if one[inner] == categories[inner])
    return Fixed(design=design, categories=tuple(categories), values=tuple(values))


def far_values(model: Model, batch_as: str | None) -> list[str]:
    """Return a warning for each continuous key that `--batch-as` fixes far outside the range of the training values.

    Raises
    ------
    DataError
        If `batch_as` is not valid for the model.
    """
    if model.vae.design is None or batch_as in (None, AVERAGE, "observed", "drawn"):
        return []
    fixed = fixed_covariates(model, batch_as, usual=AVERAGE)
    found = []
    for one, value in zip(fixed.design.continuous, fixed.values, strict=True):
        if value is not None and not one.far[0] <= value <= one.far[1]:
            found.append(
                f"--batch-as fixes {one.key} at {value:g}, far outside of the training values ({one.least:g} to "
                f"{one.most:g}): the effect of {one.key} is extrapolated"
            )
    return found


def _pairs(text: str, keys: Sequence[str], categories: dict[str, Sequence[str]], hint: str) -> list[tuple[str, str]]:
    """Split KEY=VALUE[,KEY=VALUE…] at the given keys. A value, such as the name of a batch, may contain commas and may
    be put in quotes.
    """
    either = "|".join(re.escape(key) for key in sorted(keys, key=len, reverse=True))
    next_key, literal = (
        re.compile(rf",\s*(?=(?:{either})=)"),
        re.compile(r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")(?=,|$)"),
    )
    pairs: list[tuple[str, str]] = []
    at = 0
    while at < len(text) or not pairs:
        key = re.compile(rf"\s*({either})=").match(text, at)
        if key is None:
            raise DataError(f"--batch-as is {text!r}, which names none of the covariates", hint)
        name, start = key.group(1), key.end()
        quotes = literal.match(text, start)
        if quotes is not None:
            value, at = str(ast.literal_eval(quotes.group())), quotes.end() + 1
        else:
            ends = [found.start() for found in next_key.finditer(text, start)] + [len(text)]
            value, at = text[start : ends[0]], ends[0] + 1
            longer = [text[start:end] for end in ends[1:] if text[start:end] in categories.get(name, ())]
            if longer:
                raise DataError(
                    f"--batch-as is {text!r}, in which {name} may be {value!r} or {longer[0]!r}",
                    f"put the value in quotes: {name}={longer[0]!r}",
                )
        if name in [other for other, _ in pairs]:
            raise DataError(f"--batch-as is {text!r}, which fixes {name} twice", f"give one value for {name}")
        pairs.append((name, value))
    return pairs


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"--batch-as fixes {key} at {text!r}, which is not a number", f"give a number for {key}")
    return value
