"""New cells: latent positions from the prior, from where the cells are or from a group's cells, decoded and drawn.

A group is sampled by way of its own cells, since a mixture says little of a small one: one of them is picked at random,
and its posterior sampled. That is a draw from the group's aggregated posterior.

Everything is drawn in the frame of the training; the result is in the canonical one.

Shapes: n sampled cells, m proposed ones, c cells of the data, k latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.data.labels import matching, positions_in
from scvae_cli.errors import DataError
from scvae_cli.heldout import MIN_HELDOUT, OFF_MANIFOLD
from scvae_cli.latent.count_draws import drawn_counts, expected_blocks
from scvae_cli.latent.expected_counts import library_size
from scvae_cli.latent.neighbor_graph import nearest
from scvae_cli.latent.populations import Population
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.model.density import LatentDensity
from scvae_cli.tools.sample.result import Sampled, SamplingOptions, SourceScores

# Streams of random numbers, each of its own.
_POSITIONS, _SCORES, _LIBRARIES, _BATCHES, _COUNTS = range(5)
# More cells than these, evenly chosen, make a comparison, a group or a depth no surer.
_MAX_SCORED, _MAX_MEMBERS, _MAX_ANCHORS = 10_000, 20_000, 5_000
# Fewer held-out cells than this say nothing.
# A new cell's depth is that of one of so many real cells nearest to it: depth goes with the kind of cell.
NEIGHBOURS = 20
# Posterior samples of each cell that draws are judged by.
_SAMPLES = 5
# Draws are scored so many at a time.
_BLOCK = 4096
# Once so many were drawn, a share of accepted ones below the second number is hopeless.
_ENOUGH, _HOPELESS = 5_000, 0.01

# A number of draws → positions (m, k), and the index of the real cell each comes from, if it comes from one.
Propose = Callable[[int], tuple[Tensor, np.ndarray | None]]


def sample(
    model: Model,
    counts: Counts,
    options: SamplingOptions,
    *,
    group: Population | None = None,
    groupby: str | None = None,
) -> Sampled:
    """Draw new cells.

    Parameters
    ----------
    model
        Decodes.
    counts
        Real cells in the model's genes: they tell which source is better, library sizes, and what a group is. Their
        `batch` may be None.
    options
        What is asked for.
    group, groupby
        Cells to sample the posteriors of, whatever the options' source, and the column of obs they come from.

    Raises
    ------
    DataError
        For an unknown batch or library size, or when nearly all draws fall in holes.
    """
    fixed_library = library_size(model, options.library)
    batch_of_c = _known_batches(model, counts)
    z_ck, heldout = reference_draws(model, counts, seed=options.seed)
    density = for_draws(model.density.to(torch.device("cpu")), z_ck)
    scores = None if group is not None else source_scores(density, z_ck, heldout=heldout)
    generator = torch.Generator().manual_seed(_stream(options.seed, _POSITIONS))
    if group is not None:
        source, propose = "group", _of_group(model, counts, group, generator)
    else:
        assert scores is not None, "sources were compared"
        source = scores.better if options.source == "auto" else options.source
        propose = _of_source(model, source, generator)
    z_nk, cell_n, score_n, n_proposed = _accepted(density, propose, options)

    batch_n = _batches(model, options, None if cell_n is None else batch_of_c[cell_n])
    if fixed_library is not None:
        library_n = np.full(len(z_nk), fixed_library)
    elif not model.of_counts:
        library_n = np.ones(len(z_nk))
    elif cell_n is not None:
        library_n = counts.library_n[cell_n]
    else:
        library_n = _near_libraries(model, counts, z_nk, batch_n, batch_of_c, options)
    if options.mean:
        blocks = expected_blocks(model, z_nk, library_n, batch_n)
    else:
        blocks = drawn_counts(model, z_nk, library_n, batch_n, np.random.SeedSequence(_stream(options.seed, _COUNTS)))
    return Sampled(
        options=options,
        genes=model.genes,
        source=source,
        scores=scores,
        group=None if group is None or groupby is None else (groupby, group.label),
        z_nk=model.axes.position(z_nk).numpy(),
        library_n=library_n if model.of_counts else None,
        batch_n=None if batch_n is None else np.asarray(model.batches, dtype=object)[batch_n],
        batch_key=model.config.data.batch_key if model.batches else None,
        off_manifold_n=score_n,
        n_proposed=n_proposed,
        blocks=blocks,
    )


def reference_draws(model: Model, counts: Counts, *, seed: int) -> tuple[Tensor, bool]:
    """What draws are judged by: some posterior samples of each held-out cell that is in the data.

    Where there are fewer than ten of these cells, all cells stand in.

    Returns
    -------
    Samples in the frame of the training, shape (c × samples, k), and whether the cells were held out.
    """
    rows = np.flatnonzero(model.held_out(counts.cell_names))
    heldout = len(rows) >= MIN_HELDOUT
    rows = even(rows if heldout else np.arange(counts.n_cells), _MAX_SCORED)
    posterior = posteriors(model, counts.cells(rows))
    noise = torch.Generator().manual_seed(_stream(seed, _SCORES))
    draws = [posterior.sample(torch.randn(posterior.mean_nk.shape, generator=noise)) for _ in range(_SAMPLES)]
    return torch.cat(draws), heldout


def for_draws(density: LatentDensity, z_ck: Tensor) -> LatentDensity:
    """The density with its off-manifold score calibrated anew: on posterior samples, where it was on posterior means.

    A sample lies farther out than a mean, along every axis that the cells don't use by a standard deviation of the
    prior; by the calibration for means, every draw would be in a hole.
    """
    return replace(density, heldout_nll=(-_log_prob(density, z_ck)).sort().values)


def source_scores(density: LatentDensity, z_ck: Tensor, *, heldout: bool) -> SourceScores:
    """Which density real cells' posterior samples are likelier under: the prior, or the mixture of training cells."""
    under_prior = -0.5 * (z_ck.double().square() + math.log(2 * math.pi)).sum(1).mean()
    under_mixture = _log_prob(density, z_ck).double().mean()
    return SourceScores(
        prior=float(under_prior), density=float(under_mixture), n_cells=len(z_ck) // _SAMPLES, heldout=heldout
    )


def _log_prob(density: LatentDensity, z_nk: Tensor) -> Tensor:
    # In blocks: of every point and component there is one more vector.
    return torch.cat([density.log_prob(block_nk) for block_nk in torch.split(z_nk, _BLOCK)])


def _of_source(model: Model, source: str, generator: torch.Generator) -> Propose:
    n_latent = model.density.mean_ck.shape[1]

    def propose(m: int) -> tuple[Tensor, np.ndarray | None]:
        if source == "prior":
            return torch.randn(m, n_latent, generator=generator), None
        return model.density.sample(m, generator).float(), None

    return propose


def _of_group(model: Model, counts: Counts, group: Population, generator: torch.Generator) -> Propose:
    members = even(group.cells, _MAX_MEMBERS)
    posterior = posteriors(model, counts.cells(members))

    def propose(m: int) -> tuple[Tensor, np.ndarray | None]:
        picked_m = torch.randint(len(members), (m,), generator=generator)
        noise_mk = torch.randn(m, posterior.mean_nk.shape[1], generator=generator)
        z_mk = posterior.mean_nk[picked_m] + posterior.var_nk[picked_m].sqrt() * noise_mk
        return z_mk, members[picked_m.numpy()]

    return propose


def _accepted(
    density: LatentDensity, propose: Propose, options: SamplingOptions
) -> tuple[Tensor, np.ndarray | None, np.ndarray, int]:
    """Positions (n, k), the real cells they come from, their off-manifold scores, and the number of draws made."""
    kept: list[tuple[Tensor, np.ndarray | None, Tensor]] = []
    n_kept = n_proposed = 0
    while n_kept < options.n:
        z_mk, cell_m = propose(max(options.n - n_kept, 1000) if options.avoid_holes else options.n)
        score_m = torch.cat([density.off_manifold(block_mk) for block_mk in torch.split(z_mk, _BLOCK)])
        good = torch.arange(len(z_mk))
        if options.avoid_holes:
            good = torch.nonzero(score_m <= OFF_MANIFOLD).flatten()
        # Draws after the last one needed were not made, as far as anybody can tell.
        enough = len(good) >= options.n - n_kept
        good = good[: options.n - n_kept]
        n_proposed += int(good[-1]) + 1 if enough else len(z_mk)
        kept.append((z_mk[good], None if cell_m is None else cell_m[good.numpy()], score_m[good]))
        n_kept += len(good)
        if not enough and n_proposed >= _ENOUGH and n_kept < _HOPELESS * n_proposed:
            raise DataError(
                f"{1 - n_kept / n_proposed:.1%} of the draws fall in holes (off-manifold score above {OFF_MANIFOLD})",
                "leave out --avoid-holes and look at their scores, or draw from elsewhere: --from density, --group",
            )
    z_nk, score_n = (torch.cat(parts) for parts in (tuple(k[0] for k in kept), tuple(k[2] for k in kept)))
    from_cells = [k[1] for k in kept if k[1] is not None]
    return z_nk, np.concatenate(from_cells) if from_cells else None, score_n.numpy(), n_proposed


def _known_batches(model: Model, counts: Counts) -> np.ndarray:
    """Index of each cell's batch in the model, −1 for one that is not known, shape (c,)."""
    if counts.batch is None:
        return np.full(counts.n_cells, -1)
    return positions_in(model.batches, counts.batch)


def _batches(model: Model, options: SamplingOptions, own_n: np.ndarray | None) -> np.ndarray | None:
    """Index of the batch to decode each cell in: the one named; that of the real cell it comes from; by shares."""
    batch = None if options.batch_as == "drawn" else matching(options.batch_as, model.batches)
    if options.batch_as != "drawn" and batch is None:
        known = ", ".join(model.batches) or "none: it was trained without --batch-key"
        raise DataError(f"the model knows no batch {options.batch_as!r}", f"--batch-as takes drawn or one of: {known}")
    if not model.batches:
        return None
    if batch is not None:
        return np.full(options.n, model.batches.index(batch))
    share_b = model.vae.batch_share_b.double().cpu().numpy()
    random = np.random.default_rng(_stream(options.seed, _BATCHES))
    drawn_n: np.ndarray = random.choice(len(share_b), size=options.n, p=share_b / share_b.sum())
    return drawn_n if own_n is None else np.where(own_n >= 0, own_n, drawn_n)


def _near_libraries(
    model: Model,
    counts: Counts,
    z_nk: Tensor,
    batch_n: np.ndarray | None,
    batch_of_c: np.ndarray,
    options: SamplingOptions,
) -> np.ndarray:
    """The library size of a real cell near each new one, and of its batch where the data has cells of it."""
    random = np.random.default_rng(_stream(options.seed, _LIBRARIES))
    library_n = np.empty(len(z_nk))
    batch_n = np.full(len(z_nk), -1) if batch_n is None else batch_n
    for batch in np.unique(batch_n):
        of_batch = np.flatnonzero(batch_of_c == batch)
        rows = even(of_batch if len(of_batch) else np.arange(counts.n_cells), _MAX_ANCHORS)
        anchors = counts.cells(rows)
        mine = np.flatnonzero(batch_n == batch)
        mean_ck = posteriors(model, anchors).mean_nk
        anchor_library_c = anchors.library_n
        for start in range(0, len(mine), _BLOCK):
            some = mine[start : start + _BLOCK]
            near, _ = nearest(z_nk[torch.as_tensor(some)], mean_ck, NEIGHBOURS)
            picked = near[np.arange(len(some)), random.integers(near.shape[1], size=len(some))]
            library_n[some] = anchor_library_c[picked]
    return library_n


def _stream(seed: int, stream: int) -> int:
    """A seed of its own for each kind of thing drawn."""
    return int(np.random.SeedSequence(seed, spawn_key=(stream,)).generate_state(1)[0])
