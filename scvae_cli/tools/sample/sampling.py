"""Drawing new cells: first latent positions, then counts.

Latent positions are drawn from one of three sources: the prior, a density fitted to the training cells, or a group of
real cells. A hole is a region of latent space where no cells were observed. The off-manifold score of a position is the
share of the held-out cells' posterior samples that lie at a higher density. A position with an off-manifold score above
0.95 lies in a hole of latent space.

A group is sampled from its own cells, because the density describes small groups badly. A cell of the group is picked
at random, and a position is drawn from the posterior of that cell. The positions of a group are therefore draws from
the aggregated posterior of the group.

Positions are drawn in the latent coordinates that the encoder and the decoder use. In the result, positions are along
the canonical axes, which are ordered by the variance of expression that they explain.

Letters in array shapes: n sampled cells, m proposed cells, c cells of the data, k latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.data.labels import positions_in
from scvae_cli.errors import DataError
from scvae_cli.heldout import MIN_HELDOUT, OFF_MANIFOLD
from scvae_cli.latent.count_draws import drawn_counts
from scvae_cli.latent.expected_counts import library_size
from scvae_cli.latent.neighbor_graph import nearest
from scvae_cli.latent.populations import Population
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.latent.selection import even
from scvae_cli.memory_limit import refuse_too_large
from scvae_cli.model.bundle import Model
from scvae_cli.model.density import LatentDensity
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.sample.batches import decoding_batch, new_batches
from scvae_cli.tools.sample.options import SampleOptions
from scvae_cli.tools.sample.result import Sampled, SourceScores

# Independent streams of random numbers.
_POSITIONS, _SCORES, _LIBRARIES, _BATCHES, _COUNTS = range(5)
# At most this many evenly spaced cells are used to compare the sources, to represent a group, and to provide library
# sizes; more cells would not make the result more precise.
_MAX_SCORED, _MAX_MEMBERS, _MAX_ANCHORS = 10_000, 20_000, 5_000
# A new cell gets the library size of one of this many nearest real cells, because library sizes depend on the cell
# type.
_NEIGHBORS = 20
# Number of posterior samples per real cell with which draws are compared.
_SAMPLES = 5
# Number of draws whose density is evaluated at once.
_BLOCK = 4096
# After `_MIN_PROPOSED` draws, sampling stops if less than the share `_MIN_ACCEPTED` of the draws was accepted.
_MIN_PROPOSED, _MIN_ACCEPTED = 5_000, 0.01

# A function that makes m draws. The function returns the positions, shape (m, k), and the indices of the real cells
# from which the positions are drawn, shape (m,). The indices are None if the positions are not drawn from real cells.
Propose = Callable[[int], tuple[Tensor, np.ndarray | None]]


def sample(
    model: Model,
    counts: Counts,
    options: SampleOptions,
    *,
    group: Population | None = None,
    progress: Progress = silent,
) -> Sampled:
    """Draw new cells.

    Parameters
    ----------
    model, counts
        The model that decodes, and c real cells with the genes of the model. The real cells are used to choose between
        the prior and the fitted density. The real cells also provide the library sizes of the new cells, and the
        posteriors from which a group is sampled. `counts.batch` may be None.
    options
        `n` must be given. `source` "auto" takes the prior or the fitted density, whichever makes held-out cells more
        likely. `library` "observed" takes the library size of a real cell near each new cell; this real cell is of the
        same batch if the data has cells of this batch. `batch_as` "drawn" draws batches in proportion to their numbers
        of training cells; KEY=VALUE fixes one of several covariates, and all other covariates are drawn. If a group is
        sampled, "observed" and "drawn" take the library size and the batch of the real cell whose posterior was
        sampled.
    group
        The cells of `options.group`, whose posteriors are sampled.

    Raises
    ------
    DataError
        If the batch is unknown, or if holes are avoided and nearly all draws lie in holes.
    ConfigError
        If a library size is requested from a model of real-valued data.
    """
    assert options.n is not None, "only the prototype needs no number of cells"
    # Memory per cell: positions in double precision and their copies, names, scores and library sizes. Counts need
    # little memory, because they are drawn in blocks.
    per_cell = 32 * model.vae.n_latent + 300
    refuse_too_large(
        options.n * per_cell,
        f"--cells {options.n}",
        lambda free: f"--cells {free // per_cell} would fit; for more cells, use several values of --seed",
    )
    batch_as = decoding_batch(model, options)
    fixed_library = library_size(model, options.library_or_default)
    # The index is −1 for a batch that the model does not have.
    batch_of_c = np.full(counts.n_cells, -1) if counts.batch is None else positions_in(model.batches, counts.batch)
    z_ck, heldout = reference_draws(model, counts, seed=options.seed, progress=progress)
    density = calibrated_for_samples(model.density.to(torch.device("cpu")), z_ck)
    generator = torch.Generator().manual_seed(_stream(options.seed, _POSITIONS))
    scores = None
    if group is not None:
        source, propose = "group", _from_group(model, counts, group, generator, progress)
    else:
        scores = source_scores(density, z_ck, heldout=heldout)
        source = scores.better if options.source == "auto" else options.source
        propose = _from_source(model, source, generator)
    z_nk, cell_n, off_manifold_n, n_proposed = accepted(density, propose, options.n, avoid_holes=options.avoid_holes)

    random = np.random.default_rng(_stream(options.seed, _BATCHES))
    batches = new_batches(model, batch_as, len(z_nk), random, None if cell_n is None else batch_of_c[cell_n])
    if fixed_library is not None:
        library_n = np.full(len(z_nk), fixed_library)
    elif not model.of_counts:
        library_n = np.ones(len(z_nk))
    elif cell_n is not None:
        library_n = counts.library_n[cell_n]
    else:
        library_n = _nearby_libraries(model, counts, z_nk, batches.name_n, options.seed, progress)
    seeds = None if options.mean else np.random.SeedSequence(_stream(options.seed, _COUNTS))
    return Sampled(
        source=source,
        scores=scores,
        group=None if group is None or options.groupby is None else (options.groupby, group.label),
        z_nk=model.axes.position(z_nk).numpy(),
        library_n=library_n if model.of_counts else None,
        covariates=batches.columns,
        batch_as=batch_as if model.conditioned else None,
        off_manifold_n=off_manifold_n,
        n_proposed=n_proposed,
        blocks=drawn_counts(model, z_nk, library_n, batches.decoded_n, seeds),
    )


def reference_draws(model: Model, counts: Counts, *, seed: int, progress: Progress = silent) -> tuple[Tensor, bool]:
    """Sample the posteriors of the cells in the data that were held out of training.

    If the data has fewer than ten held-out cells, all cells are used instead. Returns the samples, and whether the
    cells were held out. The samples are in the latent coordinates that the encoder and the decoder use. Each of c cells
    is sampled five times, so the shape is (5c, k).
    """
    rows = np.flatnonzero(model.held_out(counts.cell_names))
    heldout = len(rows) >= MIN_HELDOUT
    rows = even(rows if heldout else np.arange(counts.n_cells), _MAX_SCORED)
    posterior = posteriors(model, counts.cells(rows), progress=progress)
    noise = torch.Generator().manual_seed(_stream(seed, _SCORES))
    draws = [posterior.sample(torch.randn(posterior.mean_nk.shape, generator=noise)) for _ in range(_SAMPLES)]
    return torch.cat(draws), heldout


def calibrated_for_samples(density: LatentDensity, z_ck: Tensor) -> LatentDensity:
    """Return the density with the off-manifold score calibrated on posterior samples instead of posterior means.

    A posterior sample lies farther from the center than a posterior mean. Along a latent axis that carries no
    information about the cells, posterior means lie near 0, and posterior samples vary as much as the prior. If the
    score were calibrated on posterior means, nearly every draw would seem to lie in a hole.
    """
    return replace(density, heldout_nll=(-_log_prob(density, z_ck)).sort().values)


def source_scores(density: LatentDensity, z_ck: Tensor, *, heldout: bool) -> SourceScores:
    """Compute the mean log density of posterior samples under the prior and under the fitted density."""
    under_prior = -0.5 * (z_ck.double().square() + math.log(2 * math.pi)).sum(1).mean()
    under_mixture = _log_prob(density, z_ck).double().mean()
    return SourceScores(
        prior=float(under_prior), density=float(under_mixture), n_cells=len(z_ck) // _SAMPLES, heldout=heldout
    )


def accepted(
    density: LatentDensity, propose: Propose, n: int, *, avoid_holes: bool
) -> tuple[Tensor, np.ndarray | None, np.ndarray, int]:
    """Draw until n positions are accepted; with `avoid_holes`, draws in holes are rejected.

    Returns
    -------
    Positions, shape (n, k); indices of the real cells from which the positions are drawn, shape (n,); off-manifold
    scores of the positions, shape (n,); and the number of draws made. The indices are None if the positions are not
    drawn from real cells.

    Raises
    ------
    DataError
        If holes are avoided and nearly all draws lie in holes.
    """
    parts: list[tuple[Tensor, np.ndarray | None, Tensor]] = []
    n_accepted = n_proposed = 0
    while n_accepted < n:
        z_mk, cell_m = propose(max(n - n_accepted, 1000) if avoid_holes else n)
        score_m = torch.cat([density.off_manifold(block_mk) for block_mk in torch.split(z_mk, _BLOCK)])
        good = torch.nonzero(score_m <= OFF_MANIFOLD).flatten() if avoid_holes else torch.arange(len(z_mk))
        # Draws after the last draw that was needed are not counted.
        enough = len(good) >= n - n_accepted
        good = good[: n - n_accepted]
        n_proposed += int(good[-1]) + 1 if enough else len(z_mk)
        parts.append((z_mk[good], None if cell_m is None else cell_m[good.numpy()], score_m[good]))
        n_accepted += len(good)
        if not enough and n_proposed >= _MIN_PROPOSED and n_accepted < _MIN_ACCEPTED * n_proposed:
            raise DataError(
                f"{1 - n_accepted / n_proposed:.1%} of the draws lie in holes, where no cells were observed "
                f"(off-manifold score above {OFF_MANIFOLD})",
                "leave out --avoid-holes and look at the off-manifold scores, or use --from density or --group",
            )
    positions, cells, scores = zip(*parts, strict=True)
    from_cells = [cell_m for cell_m in cells if cell_m is not None]
    cell_n = np.concatenate(from_cells) if from_cells else None
    return torch.cat(positions), cell_n, torch.cat(scores).numpy(), n_proposed


def _log_prob(density: LatentDensity, z_nk: Tensor) -> Tensor:
    # Blocks limit the memory: the computation holds a vector for every pair of a position and a component.
    return torch.cat([density.log_prob(block_nk) for block_nk in torch.split(z_nk, _BLOCK)])


def _from_source(model: Model, source: str, generator: torch.Generator) -> Propose:
    def propose(m: int) -> tuple[Tensor, np.ndarray | None]:
        if source == "prior":
            return torch.randn(m, model.density.mean_ck.shape[1], generator=generator), None
        return model.density.sample(m, generator).float(), None

    return propose


def _from_group(
    model: Model, counts: Counts, group: Population, generator: torch.Generator, progress: Progress
) -> Propose:
    members = even(group.cells, _MAX_MEMBERS)
    posterior = posteriors(model, counts.cells(members), progress=progress)

    def propose(m: int) -> tuple[Tensor, np.ndarray | None]:
        picked_m = torch.randint(len(members), (m,), generator=generator)
        noise_mk = torch.randn(m, posterior.mean_nk.shape[1], generator=generator)
        z_mk = posterior.mean_nk[picked_m] + posterior.var_nk[picked_m].sqrt() * noise_mk
        return z_mk, members[picked_m.numpy()]

    return propose


def _nearby_libraries(
    model: Model,
    counts: Counts,
    z_nk: Tensor,
    name_n: np.ndarray | None,
    seed: int,
    progress: Progress,
) -> np.ndarray:
    """Return the library size of a real cell near each new cell, shape (n,).

    The real cell is of the same batch as the new cell if the data has cells of this batch.
    """
    random = np.random.default_rng(_stream(seed, _LIBRARIES))
    library_n = np.empty(len(z_nk))
    batch_n, batch_of_c = np.full(len(z_nk), -1), np.full(counts.n_cells, -1)
    if name_n is not None:
        known = [*model.batches, *sorted(set(name_n) - set(model.batches))]
        batch_n = positions_in(known, name_n)
        batch_of_c = batch_of_c if counts.batch is None else positions_in(known, counts.batch)
    for batch in np.unique(batch_n):
        of_batch = np.flatnonzero(batch_of_c == batch)
        anchors = counts.cells(even(of_batch if len(of_batch) else np.arange(counts.n_cells), _MAX_ANCHORS))
        new = np.flatnonzero(batch_n == batch)
        mean_ck = posteriors(model, anchors, progress=progress).mean_nk
        near, _ = nearest(z_nk[torch.as_tensor(new)], mean_ck, _NEIGHBORS)
        picked = near[np.arange(len(new)), random.integers(near.shape[1], size=len(new))]
        library_n[new] = anchors.library_n[picked]
    return library_n


def _stream(seed: int, stream: int) -> int:
    """Derive a seed from `seed`, so that positions, batches and counts are drawn with different random numbers."""
    return int(np.random.SeedSequence(seed, spawn_key=(stream,)).generate_state(1)[0])
