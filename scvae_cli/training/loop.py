"""The training loop: yields what happens, prints nothing, knows none of its listeners.

Every epoch draws its order, noise and dropout from seeds made of the run's seed and the epoch's number, so a training
resumed at any epoch repeats to the bit what an uninterrupted one does.

What is judged on the held-out cells, and kept, is the optimiser's running average of the weights.

Shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvae_cli.config import TrainConfig
from scvae_cli.data.minibatches import CellTable, Minibatch, even_batches
from scvae_cli.device import Compute, seeded
from scvae_cli.errors import ModelError
from scvae_cli.model.manual_backward import ElboGradients, can_train
from scvae_cli.model.vae import VAE
from scvae_cli.training.device_steps import STRETCH_STEPS, DeviceSteps, Losses, Plan
from scvae_cli.training.flatness import PENALTY_EVERY, PRICE, flatness_penalty
from scvae_cli.training.optimizer import AveragedAdamW, Factors
from scvae_cli.training.schedule import Schedule

EVALUATION_CELLS = 512
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
        Mean NLL + KL weight · KL over its cells, plus what `--flat` adds, nats.
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
    kl_warmup_share
        As `Schedule` has it.
    """

    def __init__(
        self,
        vae: VAE,
        training: CellTable,
        heldout: CellTable,
        config: TrainConfig,
        batch_size: int,
        compute: Compute,
        *,
        kl_warmup_share: float = 1.0,
    ) -> None:
        self.vae = vae
        self.training, self.heldout = training, heldout
        self._config, self._batch_size, self._compute = config, batch_size, compute
        steps_per_epoch = len(even_batches(np.arange(training.n_cells), batch_size))
        self.schedule = Schedule.plan(config, steps_per_epoch, kl_warmup_share=kl_warmup_share)
        assert config.weight_decay is not None, "settled before the training starts"
        assert config.eased_dropout is not None, "settled before the training starts"
        self._eased_dropout = config.eased_dropout
        self.optimizer = AveragedAdamW(vae, config.weight_decay)
        self._by_hand = can_train(vae)
        self._device_steps: DeviceSteps | None = None
        if self._by_hand and config.flat == 0 and (compute.device.type != "cpu" or compute.compiles):
            largest = -(-training.n_cells // steps_per_epoch)
            self._device_steps = DeviceSteps(vae, self.optimizer, training, largest, compute)
        self.best_weights = _copy(vae.state_dict())
        self.rollbacks = 0
        self.seconds = 0.0

    def events(self) -> Iterator[Event]:
        """Train to the end, yielding what happens. The VAE then holds the best weights, in eval mode."""
        with self._compute.repeating():
            yield from self._events()

    def _events(self) -> Iterator[Event]:
        schedule = self.schedule
        started = time.perf_counter() - self.seconds
        while not schedule.done:
            if schedule.due_to_ease:
                self._ease()
            before = self._snapshot()
            train_loss = 0.0
            broken: np.ndarray | None = None
            for step, (rows, loss) in enumerate(self._epoch(), schedule.step):
                if not math.isfinite(loss):
                    broken = self._not_finite(rows, before)
                    break
                train_loss += loss * len(rows) / self.training.n_cells
                yield StepReport(step=step, loss=loss)
            if broken is None:
                with self.optimizer.averaged():
                    nll, kl = self.evaluate()
                    averaged = _copy(self.vae.state_dict())
                if not math.isfinite(nll + kl):
                    broken = np.empty(0, dtype=np.int64)
            if broken is not None:
                self._roll_back(before)
                yield Rollback(epoch=schedule.epoch + 1, learning_rate=schedule.peak_rate, cells=broken)
                continue
            rate, weight = schedule.learning_rate(), schedule.kl_weight()
            # Without what `--flat` adds: its draws would make the verdict noisy, and the bound is what it may not cost.
            # So the end of a training, and what is kept of it, mean the same with and without.
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

    def _ease(self) -> None:
        """Go on from the best weights, with less dropout."""
        self.schedule.ease()
        self.vae.load_state_dict(self.best_weights)
        if self._device_steps is not None:
            self._device_steps.forget()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Mean NLL and KL of the held-out cells, one sample a cell with the same noise every time, nats."""
        self.vae.eval()
        noise = torch.Generator().manual_seed(self._config.seed)
        nll = kl = 0.0
        for rows, cells in self.heldout.in_order(EVALUATION_CELLS):
            noise_nk = torch.randn(len(rows), self.vae.config.n_latent, generator=noise).to(self._compute.device)
            # Never in bfloat16: as the model will be used.
            mean_nll, mean_kl = self.vae.mean_nll_and_kl(cells, noise_nk)
            share = len(rows) / self.heldout.n_cells
            nll += share * float(mean_nll)
            kl += share * float(mean_kl)
        return nll, kl

    @torch.no_grad()
    def _not_finite(self, rows: np.ndarray, before: dict[str, Any]) -> np.ndarray:
        """Those of some training cells whose likelihood at their posterior mean is not finite."""
        if self._device_steps is not None:
            # Steps that were queued behind the broken one have spoilt the weights for every cell.
            self.vae.load_state_dict(before["weights"])
        self.vae.eval()
        cells = self.training.take(rows)
        output = self.vae.decode(self.vae.encode(cells).mean_nk, cells.batch_n)
        broken: np.ndarray = rows[~np.isfinite(output.nll_n(cells).cpu().numpy())]
        return broken

    def _epoch(self) -> Iterator[tuple[np.ndarray, float]]:
        """Take an epoch's steps, yielding each one's cells and their mean loss (before the step)."""
        schedule = self.schedule
        self.vae.train()
        self.vae.scale_dropout(self._eased_dropout if schedule.eased else 1.0)
        # A retried epoch draws anew, or it would meet the same accident.
        seeds = np.random.SeedSequence([self._config.seed, schedule.epoch, self.rollbacks])
        order = np.random.default_rng(seeds).permutation(self.training.n_cells)
        with seeded(int(seeds.generate_state(1, np.uint64)[0]), self._compute.device):
            if self._device_steps is not None:
                yield from self._on_device(self._device_steps, even_batches(order, self._batch_size))
            else:
                yield from self._one_by_one(order)

    def _one_by_one(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        """An epoch's steps, each told before the next."""
        schedule = self.schedule
        for rows, cells in self.training.in_batches(order, self._batch_size):
            noise_nk = torch.randn(len(rows), self.vae.config.n_latent, device=self._compute.device)
            flat = self._config.flat > 0 and schedule.step % PENALTY_EVERY == 0
            kl_weight = schedule.kl_weight()
            if self._by_hand and self._compute.device.type == "cpu" and not flat:
                total, gradients = self._compiled(cells, noise_nk, kl_weight)
            else:
                total, gradients = self._by_autograd(cells, noise_nk, kl_weight, flat=flat)
            yield rows, total
            self.optimizer.advance(gradients, schedule.learning_rate(), schedule.step)
            schedule.step += 1

    def _on_device(self, steps: DeviceSteps, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, float]]:
        """An epoch's steps, told a stretch after they were queued."""
        schedule = self.schedule
        queued: list[tuple[list[np.ndarray], Losses]] = []
        for first in range(0, len(batches), STRETCH_STEPS):
            stretch, plans = batches[first : first + STRETCH_STEPS], []
            for rows in stretch:
                factors = Factors.of_step(schedule.learning_rate(), schedule.step)
                plans.append(Plan(cells=rows, kl_weight=schedule.kl_weight(), factors=factors))
                schedule.step += 1
            queued.append((stretch, steps.take(plans)))
            if len(queued) > 1:
                told, losses = queued.pop(0)
                yield from zip(told, losses.read(), strict=True)
        for told, losses in queued:
            yield from zip(told, losses.read(), strict=True)

    @torch.no_grad()
    def _compiled(self, cells: Minibatch, noise_nk: Tensor, kl_weight: float) -> tuple[float, dict[Tensor, Tensor]]:
        """The loss of some cells on the CPU and its gradients."""
        # Here, not above: a GPU needs no compiler for the CPU.
        from scvae_cli.model.compiled.operations import CompiledOperations

        narrow, operations = self._compute.precision == "bf16", CompiledOperations(cells)
        terms = ElboGradients(self.vae, cells.batch_n, noise_nk, kl_weight, operations, narrow=narrow)
        return float(terms.nll) + kl_weight * float(terms.kl), terms.of

    def _by_autograd(
        self, cells: Minibatch, noise_nk: Tensor, kl_weight: float, *, flat: bool
    ) -> tuple[float, dict[Tensor, Tensor]]:
        """The loss of some cells, with or without what `--flat` adds, and its gradients."""
        parameters = list(self.vae.parameters())
        with self._compute.matrix_products():
            terms = self.vae.elbo_terms(cells, noise_nk)
            loss = terms.nll + kl_weight * terms.kl
            found = torch.autograd.grad(loss, parameters, retain_graph=flat)
        if not flat:
            return loss.item(), dict(zip(parameters, found, strict=True))
        # Never in bfloat16: log det M asks for its smallest eigenvalues.
        weight = self._config.flat * PRICE * PENALTY_EVERY * self.vae.decoder.head.typical_loss(terms.nll.detach())
        penalty = weight * flatness_penalty(self.vae, terms.mean_nk, terms.z_nk)
        added = torch.autograd.grad(penalty, parameters, materialize_grads=True)
        both = (a + b for a, b in zip(found, added, strict=True))
        return (loss + penalty).item(), dict(zip(parameters, both, strict=True))

    def _snapshot(self) -> dict[str, Any]:
        return {
            "weights": _copy(self.vae.state_dict()),
            "optimizer": {index: _copy(state) for index, state in self.optimizer.state_dict().items()},
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


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
