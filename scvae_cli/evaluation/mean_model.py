"""A baseline model that uses only the library size and batch of a cell: each gene has a fixed mean and dispersion.

A useful latent space must explain the counts better than the baseline model does. The baseline model is a decoder that
is evaluated only at the latent position 0. The baseline model has the same likelihood as the model with which it is
compared, and is fitted by maximum likelihood.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.data.minibatches import CellTable, Minibatch
from scvae_cli.latent.posteriors import BLOCK_CELLS
from scvae_cli.model.network import CountOutput, Output
from scvae_cli.training.prepare import Conditions, started

_BATCH_CELLS, _STEPS, _RATE = 256, 300, 0.05


class MeanModel:
    """Baseline model with the fitted mean and dispersion of every gene.

    Parameters
    ----------
    counts, training
        Counts of n cells, and indices of the cells to which the baseline is fitted. If `training` is None, the baseline
        is fitted to all cells.
    config
        Configuration of the model that is compared with the baseline. The baseline uses the likelihood and the seed in
        `config`.
    """

    def __init__(self, counts: Counts, training: np.ndarray | None, config: RunConfig, device: torch.device) -> None:
        training = np.arange(counts.n_cells) if training is None else training
        conditions = Conditions.of(counts, training)
        self._batch_n = conditions.batch_n
        smallest = replace(config, model=replace(config.model, decoder="linear", n_latent=1, n_hidden=1))
        self._vae = started(smallest, counts, training, conditions).to(device).eval()
        self._device = device
        learned = [p for name, p in self._vae.decoder.named_parameters() if name != "head.outputs.weight"]
        optimizer = torch.optim.Adam(learned, lr=_RATE)
        # The learning rate decreases to zero, so that the result hardly depends on the last minibatches.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / _STEPS)
        table = CellTable(counts.matrix, self._batch_n, device, cells=training, real=counts.real)
        random = np.random.default_rng(config.train.seed)
        for _ in range(_STEPS):
            cells = table.take(random.choice(table.n_cells, min(_BATCH_CELLS, table.n_cells), replace=False))
            optimizer.zero_grad()
            self._decode(cells).mean_nll(cells).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def log_prob_n(self, counts: Counts, cells: np.ndarray) -> np.ndarray:
        """Compute the log-probability of the cells with the indices `cells`, shape (len(cells),), nats."""
        table = CellTable(counts.matrix, self._batch_n, self._device, cells=cells, real=counts.real)
        parts = [self._decode(some).nll_n(some).cpu().numpy() for _, some in table.in_order(BLOCK_CELLS)]
        return -np.concatenate(parts)

    @torch.no_grad()
    def expected(self, counts: Counts, *, of_cell: bool) -> Iterator[np.ndarray]:
        """Compute expected counts of all cells in blocks, with zero inflation taken into account.

        If `of_cell` is True, the expected counts of each cell also depend on the observed counts of the cell.
        """
        for _, cells in CellTable(counts.matrix, self._batch_n, self._device).in_order(BLOCK_CELLS):
            output = self._decode(cells)
            assert isinstance(output, CountOutput), "this method is only used with counts"
            mean_ng = output.mean_ng(cells.library_n, with_zero_inflation=not of_cell)
            if of_cell:
                mean_ng = mean_ng * output.own_factor_ng(cells, with_zero_inflation=True)
            yield mean_ng.cpu().numpy()

    def _decode(self, cells: Minibatch) -> Output:
        return self._vae.decode(cells.library_n.new_zeros(cells.n_cells, 1), cells.batch_n)
