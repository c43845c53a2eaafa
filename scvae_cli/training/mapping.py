"""Training of the parameters of new batches: their effects on the decoder, and shifts of the encoder.

All parameters of the model that do not belong to new batches remain unchanged. An effect of a new batch is described by
its difference δ from the mean effect of the batches on which the model was trained. The differences δ are shrunk toward
0, because new batches may have few cells. The training of new batches minimizes the loss

    mean over cells of [−log p(x|z) + β·KL(q(z|x) ‖ N(c, I))] + Σ δ²/(2τ²) / n + λ·discrepancy.

In the loss, c is the mean position that the cells of the batch are expected to have, given the populations of the
batch. With the prior N(0, I), a batch in which one population prevails could be moved to the center of the latent
space, because the effects of the batch can replace the latent position of this population. Further, τ is the typical
size of the differences δ, n is the number of new cells, and λ is the weight of the discrepancy. For effects on genes, τ
is the typical difference of a gene's log proportion between batches. Before the training, the function
`typical_difference` estimates τ from the differences between observed and expected counts of the genes, without the
variance that is due to chance. If observed and expected counts differ only by chance, τ is 0, and the effects of the
new batch are not trained.

The effects of a batch may differ between populations of cells (`model/mapped_batches.py`). The likelihood alone cannot
distinguish the effect of a batch on one population from a change of the latent positions of this population. The loss
therefore contains a discrepancy, like the loss of `train` with batches. The discrepancy is the maximum mean discrepancy
(a distance between distributions) between the posterior means of the new cells and of the training cells. A model
contains no training cells, so the model simulates cells that replace the training cells. Simulated cells of each
population are used as frequently as the population occurs in the new batch (`composition.py`). Otherwise, a batch that
lacks some populations would be moved to the cells of these populations. The weight λ of the discrepancy grows with the
number of new cells, because a small number of cells may not represent all populations.

Each new batch shifts the first hidden layer of the encoder. A shift of the hidden layer can correct any change of the
encoder's input that is equal for all cells of a batch. A shift of the hidden layer needs far fewer parameters than a
change of the input. An affine map of the posterior mean corrects differences between batches that depend on the cell
population.

Letters in array shapes: n cells, g genes, k latent dimensions, h hidden units, b new batches, s simulated cells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from scvae_cli.data.counts import Counts
from scvae_cli.data.labels import positions_in
from scvae_cli.data.minibatches import CellTable, Minibatch
from scvae_cli.device import seeded
from scvae_cli.model.batch_discrepancy import batch_discrepancy
from scvae_cli.model.bundle import Model
from scvae_cli.model.mapped_batches import EncoderShifts, Responses
from scvae_cli.model.network import CountHead, CountOutput, indicator
from scvae_cli.model.new_batches import with_new_batches
from scvae_cli.model.posterior import Posterior, sample_and_kl
from scvae_cli.model.shifted_nll import shifted_nll
from scvae_cli.model.vae import VAE
from scvae_cli.progress import Progress, silent
from scvae_cli.training.composition import composition_weights
from scvae_cli.training.optimizer import AveragedAdamW

# Number of training steps, number of additional steps for each new batch, and number of cells per step. Batch effects
# have few parameters, so more steps or cells would hardly change the effects. The duration of the training steps does
# not depend on the number of cells in the data.
STEPS, STEPS_PER_BATCH, STEP_CELLS = 80, 20, 128
# Largest number of cells of a new batch that are used to train its effects.
MOST_CELLS = 5000
RATE = 0.05
# Prior standard deviations of the shifts of the decoder's hidden layer, of the shifts of the encoder's hidden layer,
# and of the affine map of the posterior mean.
HIDDEN_SD, SHIFT_SD, TURN_SD = 0.1, 1.0, 0.3
# Prior standard deviation of the change of a gene's batch effect along a latent axis, as a fraction of τ.
SLOPE_SHARE = 0.3
# Weight λ of the discrepancy for very many new cells, in nats. The weight is ten times that of a training, because a
# mapping takes far fewer steps, and only the new cells can move.
MIXING = 300.0
# Number of new cells for which the discrepancy has half of this weight.
HALF_MIXING_CELLS = 500
# Number of simulated cells that replace the training cells.
SIMULATED = 1000
_BLOCK_CELLS = 512


class NewEffects(nn.Module):
    """Effects of new batches, as differences from the initial effects that `with_new_batches` sets.

    Parameters
    ----------
    gene_bg, sd_b
        Initial shifts of the genes' log proportions in each batch; typical size τ of these shifts in each batch. The
        effects of a batch with τ = 0 are not trained.
    present_g
        Mask of the genes that are in the data. Shifts of genes that the data lack have no prior, because all counts of
        these genes are 0.
    n_hidden, n_latent
        Number of hidden units of the encoder, and also of the decoder if `in_decoder` is True; number of latent
        dimensions.
    """

    sd_b: Tensor
    present_g: Tensor

    def __init__(
        self, gene_bg: Tensor, sd_b: Tensor, present_g: Tensor, n_hidden: int, n_latent: int, *, in_decoder: bool
    ) -> None:
        super().__init__()
        n_batches = len(gene_bg)
        self.gene_bg = nn.Parameter(gene_bg.clone())
        self.hidden_bh = nn.Parameter(torch.zeros(n_batches, n_hidden)) if in_decoder else None
        self.responses = Responses(n_batches, n_latent, gene_bg.shape[1])
        self.encoder = EncoderShifts(n_batches, n_hidden, n_latent)
        self.register_buffer("sd_b", sd_b)
        self.register_buffer("present_g", present_g)

    def penalty(self) -> Tensor:
        """Compute the negative log prior density of all effects of new batches, in nats and up to a constant."""
        judged_bg = (self.sd_b > 0)[:, None] & self.present_g
        sd_b1 = self.sd_b.clamp(min=1e-6)[:, None]
        scaled_bg = torch.where(judged_bg, self.gene_bg / sd_b1, 0.0)
        of_encoder = self.encoder
        parts = [scaled_bg, self.responses.slope_dkg / (SLOPE_SHARE * sd_b1[:, None])]
        parts += [of_encoder.hidden_bh / SHIFT_SD, of_encoder.turn_bkk / TURN_SD, of_encoder.move_bk / TURN_SD]
        parts += [] if self.hidden_bh is None else [self.hidden_bh / HIDDEN_SD]
        return torch.stack([0.5 * part.square().sum() for part in parts]).sum()


def typical_difference(
    observed_g: np.ndarray, expected_g: np.ndarray, information_g: np.ndarray
) -> tuple[float, np.ndarray]:
    """Estimate how much the log proportions of the genes differ between two batches, beyond chance.

    The log ratio of observed to expected counts of a gene varies by chance with the variance 1/I, where I is the Fisher
    information of the counts on their log mean. The estimated variance τ² of the true differences is the value for
    which r² / (τ² + 1/I) has the mean 1 over the genes, where r is a gene's log ratio and I is the Fisher information
    of the gene's counts (Paule & Mandel 1982, doi:10.6028/jres.087.022).

    Parameters
    ----------
    observed_g, expected_g, information_g
        Counts of each gene, summed over cells; expected values of these sums; Fisher information I of each gene.

    Returns
    -------
    The typical difference τ, and the posterior mean of each gene's difference given τ, shape (g,).
    """
    variance_g = 1 / np.maximum(information_g, 1e-6)
    ratio_g = np.log((observed_g + 0.5) / (expected_g + 0.5))

    def centered(tau: float) -> np.ndarray:
        # Proportions add up to one, so log ratios of genes are known only up to a common constant.
        weight_g = 1 / (variance_g + tau**2)
        result: np.ndarray = ratio_g - (weight_g * ratio_g).sum() / weight_g.sum()
        return result

    def excess(tau: float) -> float:
        return float((centered(tau) ** 2 / (variance_g + tau**2)).mean()) - 1

    low, high = 0.0, 20.0
    if excess(low) <= 0:
        return 0.0, np.zeros_like(ratio_g)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high, centered(high) * high**2 / (high**2 + variance_g)


@dataclass(frozen=True, kw_only=True)
class MappedBatches:
    """A network after mapping, with the effects of new batches.

    Parameters
    ----------
    vae
        The network with the new batches, in eval mode.
    difference_b, n_cells_b, seconds
        Typical difference of a gene's log proportion between a new batch and the batches of the training; number of
        cells of each new batch; duration of the mapping in seconds.
    """

    vae: VAE
    difference_b: tuple[float, ...]
    n_cells_b: tuple[int, ...]
    seconds: float


def map_batches(
    model: Model,
    counts: Counts,
    new: Sequence[str],
    *,
    reference: str,
    seed: int,
    missing: Sequence[str] = (),
    progress: Progress = silent,
) -> MappedBatches:
    """Add new batches to a model and train their effects.

    Parameters
    ----------
    counts
        Cells of the new batches, with the genes of the model and the batch of each cell.
    new
        Names of the new batches.
    reference
        Batch name of the training cells, if the model was trained without batches.
    missing
        Names of the model's genes that the data lack.
    """
    started = time.perf_counter()
    assert counts.batch is not None, "the new batches"
    vae = with_new_batches(model.vae, new, reference=reference)
    n_known = len(vae.batches) - len(new)
    batch_n = positions_in(new, counts.batch)
    chosen = np.sort(np.concatenate([_evenly(np.flatnonzero(batch_n == b)) for b in range(len(new))]))
    table = CellTable(counts.matrix, batch_n + n_known, model.device, cells=chosen)
    first_nh, sums = _before(vae, table, n_known)
    present_g = ~np.isin(np.asarray(model.genes, dtype=object), list(missing))
    differences = [_differences(sums_3g, present_g) for sums_3g in sums]
    initial_bg = torch.as_tensor(np.stack([gene_g for _, gene_g in differences]), dtype=torch.float32)
    sd_b = torch.tensor([tau for tau, _ in differences])
    n_hidden = first_nh.shape[1]
    in_decoder = vae.decoder.n_hidden > 0
    effects = NewEffects(
        initial_bg, sd_b, torch.as_tensor(present_g), n_hidden, vae.n_latent, in_decoder=in_decoder
    ).to(model.device)
    if (sd_b > 0).any():
        simulated_sk = simulated_positions(model, seed=seed)
        mean_nk = vae.encoder.after_first(first_nh)[0].detach()
        own_bn = torch.as_tensor(batch_n[chosen] == np.arange(len(new))[:, None]).to(model.device)
        weight_bs = composition_weights(mean_nk, own_bn, simulated_sk, seed=seed)
        beta = model.config.train.beta
        _train(
            vae, effects, table, first_nh, (simulated_sk, weight_bs), n_known,
            beta=beta, seed=seed, progress=progress,
        )  # fmt: skip
    _add(vae, effects, n_known)
    n_cells_b = tuple(int(n) for n in np.bincount(batch_n, minlength=len(new)))
    seconds = time.perf_counter() - started
    return MappedBatches(vae=vae, difference_b=tuple(sd_b.tolist()), n_cells_b=n_cells_b, seconds=seconds)


@torch.no_grad()
def simulated_positions(model: Model, *, seed: int) -> Tensor:
    """Compute the posterior means of cells that a model simulates in the batches of its training, shape (s, k)."""
    vae, generator = model.vae, torch.Generator().manual_seed(seed)
    z_sk = model.density.sample(SIMULATED, generator).to(model.device)
    batch_s = None
    if vae.batches:
        share_b = vae.trained_share_b.cpu()
        batch_s = torch.multinomial(share_b, SIMULATED, replacement=True, generator=generator)
    output = vae.decode(z_sk, None if batch_s is None else batch_s.to(model.device))
    assert isinstance(output, CountOutput), "only models of counts are mapped onto"
    counts = output.draw(vae.reference_library.expand(SIMULATED), np.random.default_rng(seed))
    some = np.flatnonzero(np.asarray(counts.sum(axis=1)).ravel() > 0)
    batches = None if batch_s is None else batch_s.numpy()
    table = CellTable(counts, batches, model.device, cells=some)
    return torch.cat([vae.encode(cells).mean_nk for _, cells in table.in_order(_BLOCK_CELLS)])


def _differences(sums_3g: np.ndarray, present_g: np.ndarray) -> tuple[float, np.ndarray]:
    """Estimate the difference δ of each gene for one new batch, and the typical size τ of the differences."""
    tau, present_difference_g = typical_difference(*sums_3g[:, present_g])
    difference_g = np.log(0.5 / (sums_3g[1] + 0.5))
    difference_g[present_g] = present_difference_g
    return (tau, difference_g) if tau else (0.0, np.zeros_like(difference_g))


def _evenly(cells: np.ndarray) -> np.ndarray:
    return cells[:: -(-len(cells) // MOST_CELLS)]


@torch.no_grad()
def _before(vae: VAE, table: CellTable, n_known: int) -> tuple[Tensor, list[np.ndarray]]:
    """Compute the data that the training of the new effects needs.

    Returns the output of the encoder's first linear map, shape (n, h), and for each new batch the three arguments of
    `typical_difference`, shape (3, g).
    """
    n_new, g = len(vae.batches) - n_known, vae.n_genes
    sums_3bg = torch.zeros(3, n_new, g, dtype=torch.float64, device=table.device)
    parts = []
    for _, cells in table.in_order(_BLOCK_CELLS):
        assert cells.batch_n is not None, "the new batches"
        parts.append(vae.encoder.first_nh(cells, vae.reference_library))
        posterior = Posterior.from_network(*vae.encoder.after_first(parts[-1]))
        output = vae.decode(posterior.mean_nk, cells.batch_n)
        assert isinstance(output, CountOutput), "only models of counts are mapped onto"
        mean_ng = output.mean_ng(cells.library_n, with_zero_inflation=True)
        log_theta_g = output.log_theta_g
        overdispersion_g = 0.0 if log_theta_g is None else (-log_theta_g).exp()
        member_nb = indicator(cells.batch_n - n_known, mean_ng.new_zeros(n_new, 1))
        for i, part_ng in enumerate((cells.x_ng, mean_ng, mean_ng / (1 + mean_ng * overdispersion_g))):
            sums_3bg[i] += (member_nb.T @ part_ng).double()
    return torch.cat(parts), [sums_3bg[:, b].cpu().numpy() for b in range(n_new)]


def _train(
    vae: VAE, effects: NewEffects, table: CellTable, first_nh: Tensor, simulated: tuple[Tensor, np.ndarray],
    n_known: int, *, beta: float, seed: int, progress: Progress,
) -> None:  # fmt: skip
    """Train the effects of the new batches, and no other parameters."""
    for parameter in vae.parameters():
        parameter.requires_grad_(False)
    optimizer = AveragedAdamW(effects, weight_decay=0.0)
    parameters: list[Tensor] = list(effects.parameters())
    trained_b = (effects.sd_b > 0).float()
    simulated_sk, weight_bs = simulated
    center_bk = torch.as_tensor(weight_bs).to(simulated_sk) @ simulated_sk
    mixing = MIXING * table.n_cells / (table.n_cells + HALF_MIXING_CELLS)
    n_steps = STEPS + STEPS_PER_BATCH * len(effects.sd_b)
    random = np.random.default_rng(seed)
    with seeded(seed, table.device), progress("Mapping", n_steps) as advance:
        for step, rows in enumerate(_minibatches(random, table.n_cells, n_steps)):
            cells = table.take(rows)
            assert cells.batch_n is not None, "the new batches"
            nll, kl, mean_nk = _elbo_terms(vae, effects, cells, first_nh[torch.as_tensor(rows)], center_bk, n_known)
            discrepancy = _discrepancy(mean_nk, cells.batch_n - n_known, simulated, random)
            loss = nll + beta * kl + effects.penalty() / table.n_cells + mixing * discrepancy
            gradients = torch.autograd.grad(loss, parameters)
            masked = {
                p: g * trained_b.view(-1, *[1] * (g.dim() - 1)) for p, g in zip(parameters, gradients, strict=True)
            }
            # The learning rate falls to 0, so the weights need not be averaged over steps.
            optimizer.advance(masked, RATE * 0.5 * (1 + math.cos(math.pi * step / n_steps)), step)
            advance()
    for parameter in vae.parameters():
        parameter.requires_grad_(True)


def _minibatches(random: np.random.Generator, n_cells: int, n_steps: int) -> Iterator[np.ndarray]:
    """Yield the indices of the cells of each step, from successive random orders of all cells."""
    queue = np.empty(0, dtype=np.int64)
    size = min(STEP_CELLS, n_cells)
    for _ in range(n_steps):
        if len(queue) < size:
            queue = np.concatenate([queue, random.permutation(n_cells)])
        yield queue[:size]
        queue = queue[size:]


def _elbo_terms(
    vae: VAE, effects: NewEffects, cells: Minibatch, first_nh: Tensor, center_bk: Tensor, n_known: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the two terms of the negative ELBO, and the posterior means, shape (n, k).

    The second term is the KL of the posterior to N(c, I), where c is the center of the cell's batch in `center_bk`.
    """
    assert cells.batch_n is not None, "the new batches"
    assert vae.decoder.batch is not None, "the decoder of a model with batches has batch effects"
    member_nb = indicator(cells.batch_n - n_known, effects.gene_bg)
    noise_nk = torch.randn(cells.n_cells, vae.n_latent, device=first_nh.device)
    mean_nk, log_var_nk = vae.encoder.after_first(effects.encoder.first_nh(first_nh, member_nb))
    mean_nk = effects.encoder.mean_nk(mean_nk, member_nb)
    center_nk = member_nb @ center_bk
    z_nk, kl = sample_and_kl(mean_nk - center_nk, log_var_nk, noise_nk)
    z_nk = z_nk + center_nk
    assert isinstance(vae.decoder.head, CountHead), "only models of counts are mapped onto"
    of_batch, shift_nh = vae.decoder.batch, None
    if of_batch.hidden_bh is not None and effects.hidden_bh is not None:
        shift_nh = member_nb @ (of_batch.hidden_bh[n_known:] + effects.hidden_bh)
    gene_bg = of_batch.gene_bg[n_known:] + effects.gene_bg
    inputs_ni = vae.decoder.before_head(z_nk, shift_nh)
    slope_bkg = effects.responses.slope_dkg
    nll = shifted_nll(vae.decoder.head, inputs_ni, z_nk, gene_bg, slope_bkg, cells, cells.batch_n - n_known)
    return nll, kl, mean_nk


def _discrepancy(
    mean_nk: Tensor, batch_n: Tensor, simulated: tuple[Tensor, np.ndarray], random: np.random.Generator
) -> Tensor:
    """Compute the discrepancy between new batches and simulated cells, a differentiable scalar.

    Each new batch is compared with simulated cells that are drawn with the composition of the batch.
    """
    (simulated_sk, weight_bs), parts = simulated, []
    for b in range(len(weight_bs)):
        own = (batch_n == b).nonzero()[:, 0]
        if len(own) < 2:
            continue
        drawn_sk = simulated_sk[torch.as_tensor(random.choice(len(simulated_sk), STEP_CELLS, p=weight_bs[b]))]
        member_nb = nn.functional.one_hot(torch.arange(len(own) + len(drawn_sk)).ge(len(own)).long(), 2).to(mean_nk)
        value, gradient_nk = batch_discrepancy(torch.cat([mean_nk[own].detach(), drawn_sk]), member_nb)
        change = ((mean_nk[own] - mean_nk[own].detach()) * gradient_nk[: len(own)]).sum()
        parts.append((value + change) * len(own) / len(batch_n))
    return torch.stack(parts).sum() if parts else mean_nk.sum() * 0


@torch.no_grad()
def _add(vae: VAE, effects: NewEffects, n_known: int) -> None:
    """Add the trained differences to the effects of the new batches in the network."""
    batch, responses, shifts = vae.decoder.batch, vae.decoder.responses, vae.encoder.shifts
    assert batch is not None, "the decoder of a model with batches has batch effects"
    assert responses is not None, "mapped batches have responses"
    assert shifts is not None, "new batches shift the encoder"
    batch.gene_bg[n_known:] += effects.gene_bg
    if batch.hidden_bh is not None and effects.hidden_bh is not None:
        batch.hidden_bh[n_known:] += effects.hidden_bh
    responses.slope_dkg[-len(effects.gene_bg) :] += effects.responses.slope_dkg
    for name, new in effects.encoder.named_parameters():
        shifts.get_parameter(name)[n_known:] += new
