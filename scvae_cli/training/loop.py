"""The training loop: yields what happens, prints nothing, knows none of its listeners.

Every epoch draws its order, noise and dropout from seeds made of the run's seed and the epoch's number, so a training
resumed at any epoch repeats to the bit what an uninterrupted one does.

What is judged on the held-out cells, and kept, is a running average of the weights over about the last hundred steps.
It is what cooling the rate down would reach, at any time and without knowing when to begin.

Shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scvae_cli.config import TrainConfig
from scvae_cli.data.minibatches import CellTable, even_batches
from scvae_cli.device import Compute
from scvae_cli.errors import ModelError
from scvae_cli.model.vae import VAE
from scvae_cli.training.schedule import Schedule

EVALUATION_CELLS = 512
AVERAGED_STEPS = 100
ROLLBACK_FACTOR = 0.3
MAX_ROLLBACKS = 4


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One epoch has ended.

    Parameters
    ----------
    epoch
        Its number, from 1.
    learning_rate, kl_weight
        At its last step.
    train_loss
        Mean NLL + KL weight · KL over its cells, nats.
    heldout_nll, heldout_kl
        Means over the held-out cells, nats.
    heldout_loss
        heldout_nll + β · heldout_kl, which decides.
    is_best
        Whether these averaged weights are the best so far.
    seconds
        Since the training started.
    """

    epoch: int
    learning_rate: float
    kl_weight: float
    train_loss: float
    heldout_nll: float
    heldout_kl: float
    heldout_loss: float
    is_best: bool
    seconds: float

    @property
    def heldout_elbo(self) -> float:
        """The held-out ELBO (at β = 1), nats per cell."""
        return -(self.heldout_nll + self.heldout_kl)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """A step has been taken: number of steps so far and the step's loss, nats per cell."""

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """A loss was not finite: the last good weights are back, the rate is lower.

    Parameters
    ----------
    epoch
        The epoch that is tried again.
    learning_rate
        The new peak rate.
    cells
        Indices (into the training cells) of those whose loss was not finite.
    cell_names
        Their names, filled in by who knows them.
    """

    epoch: int
    learning_rate: float
    cells: np.ndarray
    cell_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Converged:
    """The held-out loss has stopped falling: the training ends here, before its bound on epochs."""

    epoch: int


Event = EpochReport | StepReport | Rollback | Converged


class Trainer:
    """Fits a VAE.

    Parameters
    ----------
    vae
        On the device, started from the data.
    training, heldout
        The cells it learns from; the cells that decide when to stop and which weights to keep.
    config
        β, rates, seed.
    batch_size
        Cells in a step.
    compute
        Device and precision.
    """

    def __init__(
        self,
        vae: VAE,
        training: CellTable,
        heldout: CellTable,
        config: TrainConfig,
        batch_size: int,
        compute: Compute,
    ) -> None:
        self.vae = vae
        self.training, self.heldout = training, heldout
        self._config, self._batch_size, self._compute = config, batch_size, compute
        self.schedule = Schedule.plan(config, len(even_batches(np.arange(training.n_cells), batch_size)))
        groups = _parameter_groups(vae, config.weight_decay)
        # On a CPU the fused step takes a fifth of the time, which for the plain one is a quarter of the training.
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)
        self.best_weights = _copy(vae.state_dict())
        self.rollbacks = 0
        self.seconds = 0.0

    def events(self) -> Iterator[Event]:
        """Train to the end, yielding what happens. The VAE then holds the best weights, in eval mode."""
        schedule = self.schedule
        started = time.perf_counter() - self.seconds
        while not schedule.done:
            before = self._snapshot()
            train_loss = 0.0
            broken: np.ndarray | None = None
            for rows, loss_n in self._epoch():
                loss = float(loss_n.mean())
                if not math.isfinite(loss):
                    broken = rows[~np.isfinite(loss_n.cpu().numpy())]
                    break
                train_loss += loss * len(rows) / self.training.n_cells
                yield StepReport(step=schedule.step, loss=loss)
            if broken is None:
                with self._averaged():
                    nll, kl = self.evaluate()
                    averaged = _copy(self.vae.state_dict())
                if not math.isfinite(nll + kl):
                    broken = np.empty(0, dtype=np.int64)
            if broken is not None:
                self._roll_back(before)
                yield Rollback(epoch=schedule.epoch + 1, learning_rate=schedule.peak_rate, cells=broken)
                continue
            rate, weight = schedule.learning_rate(), schedule.kl_weight()
            heldout_loss = nll + self._config.beta * kl
            is_best = schedule.end_epoch(heldout_loss)
            if is_best:
                self.best_weights = averaged
            self.seconds = time.perf_counter() - started
            yield EpochReport(
                epoch=schedule.epoch,
                learning_rate=rate,
                kl_weight=weight,
                train_loss=train_loss,
                heldout_nll=nll,
                heldout_kl=kl,
                heldout_loss=heldout_loss,
                is_best=is_best,
                seconds=self.seconds,
            )
            if schedule.converged:
                yield Converged(epoch=schedule.epoch)
        self.vae.load_state_dict(self.best_weights)
        self.vae.eval()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Mean NLL and KL of the held-out cells, one sample a cell with the same noise every time, nats."""
        self.vae.eval()
        noise = torch.Generator().manual_seed(self._config.seed)
        nll = kl = 0.0
        for rows, cells in self.heldout.in_order(EVALUATION_CELLS):
            noise_nk = torch.randn(len(rows), self.vae.config.n_latent, generator=noise).to(self._compute.device)
            with self._compute.matrix_products():
                nll_n, kl_nk = self.vae.nll_and_kl(cells, noise_nk)
            nll += float(nll_n.double().sum())
            kl += float(kl_nk.double().sum())
        return nll / self.heldout.n_cells, kl / self.heldout.n_cells

    def _epoch(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Take an epoch's steps, yielding each one's cells and their losses (before the step)."""
        schedule = self.schedule
        self.vae.train()
        # A retried epoch draws anew, or it would meet the same accident.
        seeds = np.random.SeedSequence([self._config.seed, schedule.epoch, self.rollbacks])
        order = np.random.default_rng(seeds).permutation(self.training.n_cells)
        device = self._compute.device
        forked = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=forked):
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
            for rows in even_batches(order, self._batch_size):
                for group in self.optimizer.param_groups:
                    group["lr"] = schedule.learning_rate()
                cells = self.training.take(rows)
                noise_nk = torch.randn(len(rows), self.vae.config.n_latent, device=device)
                with self._compute.matrix_products():
                    nll_n, kl_nk = self.vae.nll_and_kl(cells, noise_nk)
                loss_n = nll_n + schedule.kl_weight() * kl_nk.sum(1)
                self.optimizer.zero_grad(set_to_none=True)
                loss_n.mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                torch.nn.utils.clip_grad_norm_(self.vae.parameters(), max_norm=1000.0)
                yield rows, loss_n.detach()
                self.optimizer.step()
                self._average()
                schedule.step += 1

    def _average(self) -> None:
        """Move the running average of every parameter towards its present value."""
        # The averages lie in the optimiser's state: they are then saved, resumed and rolled back with it.
        states = self.optimizer.state
        for parameter, state in states.items():
            if "average" not in state:
                state["average"] = parameter.detach().clone()
        # Early on over fewer steps, or the random start would linger.
        decay = min(1 - 1 / AVERAGED_STEPS, (1 + self.schedule.step) / (10 + self.schedule.step))
        averages, present = [state["average"] for state in states.values()], list(states)
        get_ema_multi_avg_fn(decay)(averages, present, None)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the running averages in place of the parameters for a while."""
        present = _copy(self.vae.state_dict())
        with torch.no_grad():
            for parameter, state in self.optimizer.state.items():
                parameter.copy_(state["average"])
        try:
            yield
        finally:
            self.vae.load_state_dict(present)

    def _snapshot(self) -> dict[str, Any]:
        return {
            "weights": _copy(self.vae.state_dict()),
            "optimizer": _copy_nested(self.optimizer.state_dict()),
            "step": self.schedule.step,
        }

    def _roll_back(self, before: dict[str, Any]) -> None:
        self.rollbacks += 1
        if self.rollbacks > MAX_ROLLBACKS:
            raise ModelError(
                f"training diverged {self.rollbacks} times, the last time at a rate of {self.schedule.peak_rate:.2g}",
                "lower --learning-rate, or look for cells with extreme counts (scvae check)",
            )
        self.vae.load_state_dict(before["weights"])
        self.optimizer.load_state_dict(before["optimizer"])
        self.schedule.step = before["step"]
        self.schedule.peak_rate *= ROLLBACK_FACTOR


def _parameter_groups(vae: VAE, weight_decay: float) -> list[dict[str, Any]]:
    """Decay acts on weight matrices; biases, norms, dispersions and batch effects of genes are left to the data."""
    matrices = [p for name, p in vae.named_parameters() if p.ndim == 2 and not name.startswith("decoder.batch")]
    chosen = {id(p) for p in matrices}
    others = [p for p in vae.parameters() if id(p) not in chosen]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _copy_nested(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy_nested(item) for key, item in value.items()}
    return [_copy_nested(item) for item in value] if isinstance(value, list) else value
