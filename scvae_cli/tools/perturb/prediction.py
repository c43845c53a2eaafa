"""What cells would express if something were done to them, learned from cells of other groups it was done to.

A control cell moves in latent space (`latent_shift.py`), and what counts is by how much the decoded
expression rates change on the way, gene by gene. As a decoder smooths, this ratio is mixed with a plain one, the mean
log ratio of the source groups' expression; how much of it, leaving groups out says. What is changed is the target's own
profile: decoded rates are scaled, gene by gene, so that control cells show on average what they were observed to show.
Of real numbers, differences take the place of ratios.

Shapes: n cells, m cells of the target, g genes, k latent dimensions.
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
from scvae_cli.data.labels import positions_in
from scvae_cli.data.zinb_draws import draw_zinb
from scvae_cli.latent.posteriors import BLOCK_CELLS, known_batches, posteriors
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.model.network import CountOutput
from scvae_cli.tools.perturb.combined import combined
from scvae_cli.tools.perturb.design import Design, Term
from scvae_cli.tools.perturb.expected_log import TARGET, mean_log1p
from scvae_cli.tools.perturb.latent_shift import Moves
from scvae_cli.tools.perturb.observed_change import Observed, pearson
from scvae_cli.tools.perturb.pooling import pooled
from scvae_cli.tools.perturb.result import Changes, Check, Perturbation, Recipe

# A mean over more cells than this is no surer.
_MEAN_CELLS = 1000
# Counts a cell that are added to a rate before a ratio is taken, at the reference library.
_PSEUDO = 0.05


class Decoded(NamedTuple):
    """Expected counts, and the probability that one is no technical zero, both (m, g), float64, on the CPU."""

    mean_mg: Tensor
    keep_mg: Tensor


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Some control cells of a target before and after, and what the source groups' plain expression says.

    Parameters
    ----------
    before, after
        As decoded where they lie, and moved.
    plain_g
        Log ratio of expression, as the groups themselves show it; of real numbers, a difference.
    library_m
        Depth of each cell.
    """

    before: Decoded
    after: Decoded
    plain_g: Tensor
    library_m: Tensor

    def mixed(self, plain: float, *, of_counts: bool) -> Tensor:
        """Expected counts after all, with a share of the plain change, without zero inflation, shape (m, g)."""
        before_mg, after_mg = self.before.mean_mg, self.after.mean_mg
        if not of_counts:
            return before_mg + (1 - plain) * (after_mg - before_mg) + plain * self.plain_g
        mixed_mg = before_mg * torch.exp((1 - plain) * torch.log(after_mg / before_mg) + plain * self.plain_g)
        return _at_depth(mixed_mg, self.after.keep_mg, self.library_m)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model, cells, and where they lie.

    Parameters
    ----------
    model
        Decodes.
    observed
        What n cells show, in the model's genes.
    moves
        Where they lie, and how they move.
    batch_n
        Index of each cell's batch; None for a model without, or where not all are known: then batches are averaged.
    """

    model: Model
    observed: Observed
    moves: Moves
    batch_n: np.ndarray | None

    @classmethod
    def of(cls, model: Model, counts: Counts) -> Predictor:
        """Encode cells."""
        known = counts.batch is not None and bool((positions_in(model.batches, counts.batch) >= 0).all())
        batch_n = known_batches(model, counts) if known else None
        moves = Moves(posteriors(model, counts).mean_nk)
        return cls(model=model, observed=Observed(counts), moves=moves, batch_n=batch_n)

    def changes(self, design: Design, method: str, shares: Sequence[float]) -> list[np.ndarray]:
        """Predicted change of the mean log expression, one for each share of the plain change, each of shape (g,)."""
        moved = next(self._moved(design, method, most=_MEAN_CELLS, at_once=_MEAN_CELLS))
        start_g = self._mean_log(*moved.before, moved.library_m)
        means = (moved.mixed(plain, of_counts=self.model.of_counts) for plain in shares)
        return [self._mean_log(mean_mg, moved.after.keep_mg, moved.library_m) - start_g for mean_mg in means]

    def agreement(self, design: Design, method: str) -> float:
        """Correlation of the change that the model alone predicts with the plain one."""
        return pearson(*self.changes(design, method, (0.0, 1.0)))

    def log2_fold(self, design: Design, recipe: Recipe) -> np.ndarray | None:
        """log2 of the predicted rates' ratio to what they were, shape (g,); None for real numbers."""
        if not self.model.of_counts:
            return None
        moved = next(self._moved(design, recipe.method, most=_MEAN_CELLS, at_once=_MEAN_CELLS))
        after_g, before_g = (
            (mean_mg / moved.library_m[:, None]).mean(0) + self._pseudo
            for mean_mg in (moved.mixed(recipe.plain, of_counts=True), moved.before.mean_mg)
        )
        result: np.ndarray = torch.log2(after_g / before_g).numpy()
        return result

    def blocks(
        self, design: Design, recipe: Recipe, *, drawn: bool, seed: int
    ) -> Iterator[np.ndarray] | Iterator[sp.csr_matrix]:
        """The predicted cells' counts, expected (zero inflation counted in) or drawn, as blocks of rows."""
        streams = np.random.SeedSequence(seed)
        for moved in self._moved(design, recipe.method, at_once=BLOCK_CELLS):
            mean_mg = moved.mixed(recipe.plain, of_counts=self.model.of_counts)
            if drawn:
                yield self._drawn(mean_mg, moved.after.keep_mg, np.random.default_rng(streams.spawn(1)[0]))
            else:
                yield (mean_mg * moved.after.keep_mg).numpy().astype(np.float32)

    def _moved(self, design: Design, method: str, *, at_once: int, most: int | None = None) -> Iterator[Moved]:
        """The target's control cells, or an even selection of at most so many, in blocks."""
        shift_mk = self.moves.shift(design, method)
        rows = design.rows(design.group, design.control)
        some = even(np.arange(len(rows)), most or len(rows))
        library_n, plain_g, profile_g = self.observed.library_n, self._plain(design), self._profile(design)
        for start in range(0, len(some), at_once):
            part = some[start : start + at_once]
            z_mk = self.moves.mean_nk[torch.as_tensor(rows[part])]
            library_m = torch.as_tensor(library_n[rows[part]])
            batch_m = None if self.batch_n is None else torch.as_tensor(self.batch_n[rows[part]])
            moved_mk = z_mk + shift_mk[torch.as_tensor(part)]
            before, after = (
                self._of_target(self._decoded(where_mk, library_m, batch_m), profile_g, library_m)
                for where_mk in (z_mk, moved_mk)
            )
            yield Moved(before=before, after=after, plain_g=plain_g, library_m=library_m)

    def _profile(self, design: Design) -> Tensor:
        """What brings decoded control cells to the mean observed, shape (g,): log ratios; of real numbers, shifts."""
        rows = even(design.rows(design.group, design.control), _MEAN_CELLS)
        library_m = torch.as_tensor(self.observed.library_n[rows])
        batch_m = None if self.batch_n is None else torch.as_tensor(self.batch_n[rows])
        decoded = self._decoded(self.moves.mean_nk[torch.as_tensor(rows)], library_m, batch_m)
        decoded_g = (decoded.mean_mg * decoded.keep_mg / library_m[:, None]).mean(0)
        observed_g = torch.as_tensor(self.observed.proportions(design, design.group, design.control))
        if not self.model.of_counts:
            return observed_g - decoded_g
        return torch.log((observed_g + self._pseudo) / (decoded_g + self._pseudo))

    def _of_target(self, decoded: Decoded, profile_g: Tensor, library_m: Tensor) -> Decoded:
        if not self.model.of_counts:
            return decoded._replace(mean_mg=decoded.mean_mg + profile_g)
        own_mg = decoded.mean_mg * torch.exp(profile_g)
        return decoded._replace(mean_mg=_at_depth(own_mg, decoded.keep_mg, library_m))

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
                shares = enumerate(vae.batch_share_b.tolist())
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
            keeps.append(_ratio(kept.cpu().double(), means[-1]) if inflated else torch.ones_like(means[-1]))
        return Decoded(torch.cat(means), torch.cat(keeps))

    def _plain(self, design: Design) -> Tensor:
        """What the groups' expression itself says, shape (g,): log ratios, or differences of real numbers."""
        changes = [(self._own if term.groups == (design.group,) else self._of)(design, term) for term in design.terms]
        if not design.sources:
            return torch.as_tensor(combined(np.stack(changes)))
        return torch.as_tensor(
            sum(term.weight * change_g for term, change_g in zip(design.terms, changes, strict=True))
        )

    def _of(self, design: Design, term: Term) -> np.ndarray:
        """A term's change, the mean over the groups that it is learned from, near ones first, shape (g,)."""
        weights_s = self.moves.weights(design, term.groups)
        effects = [self.observed.effect(design, group, term.label, pseudo=self._pseudo)[0] for group in term.groups]
        change_g: np.ndarray = weights_s @ np.stack(effects)
        return change_g

    def _own(self, design: Design, term: Term) -> np.ndarray:
        """A change that the group itself shows, given what the others show of it, shape (g,)."""
        groups = design.heard(term)
        effects = [self.observed.effect(design, group, term.label, pseudo=self._pseudo) for group in groups]
        return pooled(*(np.stack(parts) for parts in zip(*effects, strict=True)))

    def _mean_log(self, mean_mg: Tensor, keep_mg: Tensor, library_m: Tensor) -> np.ndarray:
        """Mean over cells of what their log-normalised counts average to, shape (g,)."""
        if self.model.of_counts:
            mean_mg = mean_log1p(mean_mg, self._theta_g, keep_mg, TARGET / library_m)
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
        return _PSEUDO / float(self.model.vae.reference_library)

    @property
    def _theta_g(self) -> Tensor | None:
        log_theta_g = self._head.log_theta_g
        return None if log_theta_g is None else log_theta_g.detach().cpu().double().exp()


def _at_depth(mean_mg: Tensor, keep_mg: Tensor, library_m: Tensor) -> Tensor:
    """Scaled so that what is shown, zero inflation counted in, adds up to the depth."""
    return mean_mg * (library_m / (mean_mg * keep_mg).sum(1))[:, None]


def _ratio(kept_mg: Tensor, mean_mg: Tensor) -> Tensor:
    return (kept_mg / mean_mg.clamp(min=torch.finfo(torch.float32).tiny)).clamp(0, 1)


def predict(
    predictor: Predictor,
    design: Design,
    recipe: Recipe,
    *,
    checks: Sequence[Check] = (),
    own: Check | None = None,
    carried: float | None = None,
    drawn: bool = False,
    seed: int = 0,
) -> Perturbation:
    """The target's control cells as they would be.

    Parameters
    ----------
    predictor
        Model and cells.
    design
        What is done to which group, and what it is learned from.
    recipe
        How.
    checks, own, carried
        How well that does where the answer is known, and how far the model carries it over
        (`scvae_cli.tools.perturb.validation`).
    drawn, seed
        Draw the counts instead of telling what they average to.
    """
    model, observed = predictor.model, predictor.observed
    rows = design.rows(design.group, design.control)
    moved_mk = predictor.moves.mean_nk[torch.as_tensor(rows)] + predictor.moves.shift(design, recipe.method)
    density = model.density.to(torch.device("cpu"))
    off_m = torch.cat([density.off_manifold(block_mk) for block_mk in torch.split(moved_mk, 8 * BLOCK_CELLS)])
    return Perturbation(
        group=design.group,
        control=design.control,
        treated=design.treated,
        recipe=recipe,
        sources=design.learned_from,
        genes=model.genes,
        changes=Changes(
            change_g=predictor.changes(design, recipe.method, (recipe.plain,))[0],
            log2_fold_g=predictor.log2_fold(design, recipe),
            mean_change_g=observed.mean_change(design),
            additive_g=observed.additive(design),
            observed_g=observed.change(design) if design.observed else None,
        ),
        cells=rows,
        z_mk=model.axes.position(moved_mk).numpy(),
        off_manifold_m=off_m.numpy(),
        checks=tuple(checks),
        own=own,
        carried=carried,
        blocks=predictor.blocks(design, recipe, drawn=drawn, seed=seed),
    )
