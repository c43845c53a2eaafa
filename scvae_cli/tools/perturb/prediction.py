"""Expression of cells under a perturbation, learned from cells of other groups that have undergone the perturbation.

The target is the group whose response is predicted; source groups are the groups from which the response is learned. A
control cell of the target shifts in latent space (`latent_shift.py`). The decoder gives the log ratio of each gene's
expression rate after the shift to the rate before. A decoder predicts smoothed changes, so the decoded log ratio is
mixed with the mean shift. The mean shift is the mean log ratio of treated to control expression that was observed in
the source groups. The share of the mean shift in the mixture is chosen by predicting groups whose treated cells are
left out. The mixed log ratio is applied to the target's own expression profile. The profile consists of the decoded
rates of each gene, scaled so that the mean over the control cells equals the observed mean. For real-valued data,
differences are used instead of log ratios.

Models underestimate the change of cells that they were not trained on. The mixed log ratio is therefore multiplied by a
scale, which is learned from predictions of left-out treated cells. The scale is 1 if no models were trained without
these cells. If the plain mean change of the other groups predicts the left-out groups better than the mixture, this
mean is the prediction.

Letters in array shapes: n cells, m cells of the target, g genes, k latent dimensions, s source groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.data.zinb_draws import draw_zinb
from scvae_cli.latent.posteriors import BLOCK_CELLS, batches_if_known, posteriors
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.model.network import CountOutput
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.perturb.design import Design, Term
from scvae_cli.tools.perturb.expected_log import TARGET_SUM, mean_log1p
from scvae_cli.tools.perturb.latent_shift import LatentShifts
from scvae_cli.tools.perturb.observed_change import Observed, pearson
from scvae_cli.tools.perturb.pooling import combined, pooled
from scvae_cli.tools.perturb.result import MEAN, NONE, Accuracy, Changes, Check, Perturbation, Recipe
from scvae_cli.tools.perturb.tested_change import Tested

# Means are taken over at most this many cells; more cells would hardly reduce the error of the means.
_MEAN_CELLS = 1000
# The log ratio that causes a given change is found by bisection: number of cells that are used, largest log ratio, and
# number of bisections.
_SOLVED_CELLS, _LARGEST_LOG_RATIO, _HALVINGS = 100, 8.0, 14
# Pseudo-count that is added to expression rates before their ratio is taken, in counts per cell of the reference
# library size.
_PSEUDO_COUNT = 0.05


class Decoded(NamedTuple):
    """Expected counts and the probability that a count is not a technical zero, both (m, g), float64, on the CPU."""

    mean_mg: Tensor
    keep_mg: Tensor


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """Some control cells of a target, decoded before and after the latent shift, and the observed mean shift."""

    before: Decoded
    after: Decoded
    mean_shift_g: Tensor
    library_m: Tensor

    def mixed(self, share: float, *, scale: float, of_counts: bool) -> Tensor:
        """Compute expected counts after the shift, shape (m, g), without zero inflation.

        The log ratio of expression after and before the shift is a weighted mean. The observed mean shift of the source
        groups has the weight `share`, and the log ratio decoded by the model has the weight 1 − `share`. The weighted
        mean is multiplied by `scale`.
        """
        before_mg, after_mg = self.before.mean_mg, self.after.mean_mg
        if not of_counts:
            return before_mg + scale * ((1 - share) * (after_mg - before_mg) + share * self.mean_shift_g)
        log_ratio_mg = (1 - share) * torch.log(after_mg / before_mg) + share * self.mean_shift_g
        return _at_library(before_mg * torch.exp(scale * log_ratio_mg), self.after.keep_mg, self.library_m)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model, and cells with their observed expression and latent positions.

    `batch_n` holds the batch of each cell, as `known_batches` returns it. For a model without batches, `batch_n` is
    None. If the batch of some cell is unknown, `batch_n` is also None, and the decoded means are averaged over the
    model's batches.
    """

    model: Model
    observed: Observed
    latent: LatentShifts
    batch_n: np.ndarray | None

    @classmethod
    def of(
        cls, model: Model, counts: Counts, *, cells: Posterior | None = None, progress: Progress = silent
    ) -> Predictor:
        """Encode the cells, unless their posteriors are given."""
        batch_n = batches_if_known(model, counts)
        cells = posteriors(model, counts, progress=progress) if cells is None else cells
        return cls(model=model, observed=Observed(counts), latent=LatentShifts(cells.mean_nk), batch_n=batch_n)

    def changes(self, design: Design, method: str, shares: Sequence[float], *, scale: float = 1.0) -> list[np.ndarray]:
        """Predict the change of mean log expression, shape (g,), once for each given share of the mean shift."""
        shifted = next(self._shifted(design, method, most=_MEAN_CELLS, at_once=_MEAN_CELLS))
        start_g = self._mean_log(*shifted.before, shifted.library_m)
        means = (shifted.mixed(share, scale=scale, of_counts=self.model.of_counts) for share in shares)
        return [self._mean_log(mean_mg, shifted.after.keep_mg, shifted.library_m) - start_g for mean_mg in means]

    def change(self, design: Design, recipe: Recipe) -> np.ndarray:
        """Predict the change of mean log expression by a recipe: a method, a share of the mean shift, and a scale."""
        return self.changes(design, recipe.method, (recipe.mean_shift_share,), scale=recipe.scale)[0]

    def agreement(self, design: Design, method: str) -> float:
        """Correlate the change predicted by the model alone with the change predicted by the mean shift alone."""
        return pearson(*self.changes(design, method, (0.0, 1.0)))

    def log2_fold(self, design: Design, recipe: Recipe) -> np.ndarray | None:
        """Compute the log2 ratio of the expected counts of predicted cells to those of control cells, shape (g,).

        Expected counts include zero inflation and are divided by the library size. For a model of real-valued data, the
        result is None.
        """
        if not self.model.of_counts:
            return None
        shifted = next(self._shifted(design, recipe.method, most=_MEAN_CELLS, at_once=_MEAN_CELLS))
        after_mg = shifted.mixed(recipe.mean_shift_share, scale=recipe.scale, of_counts=True)
        after_g, before_g = (
            (mean_mg * keep_mg / shifted.library_m[:, None]).mean(0) + self._pseudo
            for mean_mg, keep_mg in ((after_mg, shifted.after.keep_mg), shifted.before)
        )
        result: np.ndarray = torch.log2(after_g / before_g).numpy()
        return result

    def blocks(
        self, design: Design, recipe: Recipe, *, drawn: bool, seed: int
    ) -> Iterator[np.ndarray] | Iterator[sp.csr_matrix]:
        """Compute the counts of the predicted cells, as blocks of rows.

        The counts are drawn at random if `drawn` is True. If `drawn` is False, the result is the expected counts,
        lowered by zero inflation.
        """
        streams = np.random.SeedSequence(seed)
        for shifted in self._shifted(design, recipe.method, at_once=BLOCK_CELLS):
            mean_mg = shifted.mixed(recipe.mean_shift_share, scale=recipe.scale, of_counts=self.model.of_counts)
            if drawn:
                yield self._drawn(mean_mg, shifted.after.keep_mg, np.random.default_rng(streams.spawn(1)[0]))
            else:
                yield (mean_mg * shifted.after.keep_mg).numpy().astype(np.float32)

    def _shifted(self, design: Design, method: str, *, at_once: int, most: int | None = None) -> Iterator[Shifted]:
        """Shift the target's control cells, and decode them before and after the shift, in blocks of `at_once` cells.

        If `most` is given, at most `most` cells are shifted, chosen at regular intervals of the rows.
        """
        # With the method "mean", the mean change of the other groups is applied to cells that are not shifted.
        shift_mk = self.latent.shift(design, NONE if method == MEAN else method)
        rows = design.rows(design.group, design.control)
        some = even(np.arange(len(rows)), most or len(rows))
        library_n, profile_g = self.observed.library_n, self._profile(design)
        mean_shift_g = self._plain_shift(design, profile_g) if method == MEAN else self._mean_shift(design)
        for start in range(0, len(some), at_once):
            part = some[start : start + at_once]
            z_mk = self.latent.mean_nk[torch.as_tensor(rows[part])]
            library_m = torch.as_tensor(library_n[rows[part]])
            batch_m = None if self.batch_n is None else torch.as_tensor(self.batch_n[rows[part]])
            after_mk = z_mk + shift_mk[torch.as_tensor(part)]
            before, after = (
                self._of_target(self._decoded(position_mk, library_m, batch_m), profile_g, library_m)
                for position_mk in (z_mk, after_mk)
            )
            yield Shifted(before=before, after=after, mean_shift_g=mean_shift_g, library_m=library_m)

    def _profile(self, design: Design) -> Tensor:
        """Compute the log ratio of the observed to the decoded mean of the control cells, shape (g,).

        For real-valued data, the result is the observed mean minus the decoded mean.
        """
        rows = even(design.rows(design.group, design.control), _MEAN_CELLS)
        library_m = torch.as_tensor(self.observed.library_n[rows])
        batch_m = None if self.batch_n is None else torch.as_tensor(self.batch_n[rows])
        decoded = self._decoded(self.latent.mean_nk[torch.as_tensor(rows)], library_m, batch_m)
        decoded_g = (decoded.mean_mg * decoded.keep_mg / library_m[:, None]).mean(0)
        observed_g = torch.as_tensor(self.observed.shares(design, design.group, design.control)[0])
        if not self.model.of_counts:
            return observed_g - decoded_g
        return torch.log((observed_g + self._pseudo) / (decoded_g + self._pseudo))

    def _of_target(self, decoded: Decoded, profile_g: Tensor, library_m: Tensor) -> Decoded:
        if not self.model.of_counts:
            return decoded._replace(mean_mg=decoded.mean_mg + profile_g)
        own_mg = decoded.mean_mg * torch.exp(profile_g)
        return decoded._replace(mean_mg=_at_library(own_mg, decoded.keep_mg, library_m))

    @torch.inference_mode()
    def _decoded(self, z_mk: Tensor, library_m: Tensor, batch_m: Tensor | None) -> Decoded:
        vae, device = self.model.vae, self.model.device
        means, keeps = [], []
        for start in range(0, len(z_mk), BLOCK_CELLS):
            part = slice(start, start + BLOCK_CELLS)
            z, library = z_mk[part].to(device), library_m[part].float().to(device)
            in_batches: list[tuple[float, Tensor | None]]
            if batch_m is not None:
                in_batches = [(1.0, batch_m[part].to(device))]
            elif vae.batches:
                shares = enumerate(vae.trained_share_b.tolist())
                in_batches = [(share, torch.full((len(z),), b, device=device)) for b, share in shares]
            else:
                in_batches = [(1.0, None)]
            mean: Tensor | float = 0.0
            kept: Tensor | float = 0.0
            inflated = False
            for share, batch in in_batches:
                output = vae.decode(z, batch)
                inflated = isinstance(output, CountOutput) and output.zero_logit_ng is not None
                mean_mg = output.mean_ng(library)
                mean = mean + share * mean_mg
                kept = kept + share * (output.mean_ng(library, with_zero_inflation=True) if inflated else mean_mg)
            assert isinstance(mean, Tensor)
            assert isinstance(kept, Tensor)
            means.append(mean.cpu().double())
            # Raising a mean of 0 to the smallest positive number avoids the division 0/0.
            least = means[-1].clamp(min=torch.finfo(torch.float32).tiny)
            keeps.append((kept.cpu().double() / least).clamp(0, 1) if inflated else torch.ones_like(least))
        return Decoded(torch.cat(means), torch.cat(keeps))

    def _mean_shift(self, design: Design) -> Tensor:
        """Compute the observed mean shift from control to treated cells, shape (g,).

        The mean shift of a gene is a log ratio. For real-valued data, the mean shift is a difference.
        """
        changes = [self._shift_of(design, term) for term in design.terms]
        if not design.sources:
            return torch.as_tensor(combined(np.stack(changes)))
        return torch.as_tensor(
            sum(term.weight * change_g for term, change_g in zip(design.terms, changes, strict=True))
        )

    def _plain_shift(self, design: Design, profile_g: Tensor) -> Tensor:
        """Compute the log ratio of each gene, shape (g,), that yields the mean change of the other groups.

        The change is a difference of mean log expression, which increases with the log ratio. The log ratio is
        therefore found by bisection. To save time, only some of the cells are used. For a model of real-valued data,
        the function returns the mean change instead of a log ratio.
        """
        change_g = self.observed.mean_change(design)
        assert change_g is not None, "the mean of the other groups is a recipe only if other groups have treated cells"
        if not self.model.of_counts:
            return torch.as_tensor(change_g)
        rows = even(design.rows(design.group, design.control), _SOLVED_CELLS)
        library_m = torch.as_tensor(self.observed.library_n[rows])
        batch_m = None if self.batch_n is None else torch.as_tensor(self.batch_n[rows])
        decoded = self._decoded(self.latent.mean_nk[torch.as_tensor(rows)], library_m, batch_m)
        mean_mg, keep_mg = self._of_target(decoded, profile_g, library_m)
        aim_g = self._mean_log(mean_mg, keep_mg, library_m) + change_g
        low_g = torch.full((len(change_g),), -_LARGEST_LOG_RATIO, dtype=torch.float64)
        high_g = -low_g
        for _ in range(_HALVINGS):
            middle_g = (low_g + high_g) / 2
            found_g = self._mean_log(mean_mg * torch.exp(middle_g), keep_mg, library_m)
            below_g = torch.as_tensor(found_g < aim_g)
            low_g, high_g = torch.where(below_g, middle_g, low_g), torch.where(below_g, high_g, middle_g)
        return (low_g + high_g) / 2

    def _shift_of(self, design: Design, term: Term) -> np.ndarray:
        """Compute the observed mean shift of one term of the predicted change, shape (g,).

        If the term is the change of the target group alone, the shift of the target is pooled with the shifts of the
        other groups. If the term has other groups, the result is the mean over these groups, with more weight on groups
        near the target.
        """
        groups = design.contributors(term)
        effects = [self.observed.effect(design, group, term.label, pseudo=self._pseudo) for group in groups]
        change_sg, error_sg = (np.stack(parts) for parts in zip(*effects, strict=True))
        if term.groups == (design.group,):
            return pooled(change_sg, error_sg)
        change_g: np.ndarray = self.latent.weights(design, groups) @ change_sg
        return change_g

    def _mean_log(self, mean_mg: Tensor, keep_mg: Tensor, library_m: Tensor) -> np.ndarray:
        """Compute the mean of the expected log-normalized counts over cells, shape (g,)."""
        if self.model.of_counts:
            mean_mg = mean_log1p(mean_mg, self._theta_g, keep_mg, TARGET_SUM / library_m)
        result: np.ndarray = mean_mg.mean(0).numpy()
        return result

    def _drawn(self, mean_mg: Tensor, keep_mg: Tensor, random: np.random.Generator) -> np.ndarray | sp.csr_matrix:
        if not self.model.of_counts:
            sd_g = self._head.log_sd_g.detach().cpu().double().exp().numpy()
            drawn_mg: np.ndarray = (mean_mg.numpy() + sd_g * random.standard_normal(mean_mg.shape)).astype(np.float32)
            return drawn_mg
        theta_g = self._theta_g
        if theta_g is None:
            return sp.csr_matrix(random.poisson(mean_mg.numpy()).astype(np.float32))
        return draw_zinb(mean_mg.numpy(), theta_g.numpy(), 1 - keep_mg.numpy(), random)

    @property
    def _head(self) -> Any:
        return self.model.vae.decoder.head

    @property
    def _pseudo(self) -> float:
        return _PSEUDO_COUNT / float(self.model.vae.reference_library)

    @property
    def _theta_g(self) -> Tensor | None:
        log_theta_g = self._head.log_theta_g
        return None if log_theta_g is None else log_theta_g.detach().cpu().double().exp()


def _at_library(mean_mg: Tensor, keep_mg: Tensor, library_m: Tensor) -> Tensor:
    """Scale the expected counts of each cell so that, after zero inflation, the sum is the library size."""
    return mean_mg * (library_m / (mean_mg * keep_mg).sum(1))[:, None]


def predict(
    predictor: Predictor,
    design: Design,
    recipe: Recipe,
    *,
    checks: tuple[Check, ...],
    group_check: Check | None,
    tests: tuple[Tested, ...],
    group_test: Tested | None,
    model_accuracy: Accuracy | None,
    model_agreement: float | None,
    drawn: bool,
    seed: int,
) -> Perturbation:
    """Predict the target's control cells under the perturbation; the counts are drawn at random if `drawn` is True.

    The checks, the tests, and the accuracy and agreement of the model are copied from the arguments to the result.
    """
    model, observed = predictor.model, predictor.observed
    rows = design.rows(design.group, design.control)
    shifted_mk = predictor.latent.mean_nk[torch.as_tensor(rows)] + predictor.latent.shift(design, recipe.method)
    density = model.density.to(torch.device("cpu"))
    off_m = torch.cat([density.off_manifold(block_mk) for block_mk in torch.split(shifted_mk, 8 * BLOCK_CELLS)])
    return Perturbation(
        group=design.group,
        control=design.control,
        treated=design.treated,
        recipe=recipe,
        sources=design.learned_from,
        genes=model.genes,
        changes=Changes(
            change_g=predictor.change(design, recipe),
            log2_fold_g=predictor.log2_fold(design, recipe),
            mean_change_g=observed.mean_change(design),
            additive_g=observed.additive(design),
            observed_g=observed.change(design) if design.observed else None,
        ),
        cells=rows,
        z_mk=model.axes.position(shifted_mk).numpy(),
        off_manifold_m=off_m.numpy(),
        checks=checks,
        group_check=group_check,
        tests=tests,
        group_test=group_test,
        model_accuracy=model_accuracy,
        model_agreement=model_agreement,
        blocks=predictor.blocks(design, recipe, drawn=drawn, seed=seed),
    )
