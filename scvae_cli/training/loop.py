"""The training loop, which yields events and prints nothing.

In every epoch, the order of the cells, the noise and the dropout are drawn with a new seed. The seed of an epoch is
derived from three numbers: the seed of the training, the number of the epoch, and the number of rollbacks. A rollback
repeats an epoch in which a loss was not finite. A training that is resumed after any epoch therefore gives the same
results, bit for bit, as an uninterrupted training.

The held-out cells are evaluated with the optimizer's running average of the weights. The saved model contains the
averaged weights of the best epoch.

Letters in array shapes: n cells, k latent dimensions.
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
from scvae_cli.model.batch_discrepancy import batch_discrepancy
from scvae_cli.model.label_loss import label_loss
from scvae_cli.model.manual_backward import ElboGradients, can_train
from scvae_cli.model.network import indicator
from scvae_cli.model.vae import VAE
from scvae_cli.training.device_steps import SEGMENT_STEPS, DeviceSteps, Losses, Plan
from scvae_cli.training.flatness import PENALTY_EVERY, PRICE, flatness_penalty
from scvae_cli.training.optimizer import AveragedAdamW, Factors
from scvae_cli.training.schedule import Schedule

EVALUATION_CELLS = 512
ROLLBACK_FACTOR = 0.3
MAX_ROLLBACKS = 4


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """Event: an epoch has ended. Epochs are numbered from 1.

    Parameters
    ----------
    learning_rate, kl_weight
        Learning rate and KL weight at the last step of the epoch.
    train_loss
        Mean training loss, nats: NLL + KL weight · KL, averaged over the training cells, where NLL is −log p(x|z). The
        training loss also includes the penalties of `--mix-batches` and `--flat`, and the weighted cross-entropy of the
        labels.
    heldout_nll, heldout_kl, heldout_loss
        Means of NLL and KL over the held-out cells, and the held-out loss heldout_nll + β · heldout_kl, nats. The
        held-out loss decides which weights are best and when training ends.
    is_best
        Whether the averaged weights of this epoch are the best so far.
    seconds
        Seconds since the training started.
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
    """Event: a training step. `step` is the number of earlier steps; `loss` is in nats per cell."""

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """Event: a loss was not finite, so the weights from before the epoch are restored and the learning rate is lowered.

    Parameters
    ----------
    epoch, learning_rate
        Number of the epoch that is repeated, and the new peak learning rate.
    cells, cell_names
        Cells whose loss was not finite: their indices among the training cells, and their names. `fit` fills in the
        names, because the training loop does not know the names of cells.
    """

    epoch: int
    learning_rate: float
    cells: np.ndarray
    cell_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Converged:
    """Event: the held-out loss has stopped decreasing, so training ends before the maximum number of epochs."""

    epoch: int


Event = EpochReport | StepReport | Rollback | Converged


class Trainer:
    """The training of a VAE.

    Parameters
    ----------
    vae
        Model on the device, initialized from the data.
    training, heldout
        Cells on which the model is trained; held-out cells, which decide when training ends and which weights are best.
    config, batch_size
        Options of the training, such as β, learning rate and seed; number of cells per step.
    kl_warmup_share
        Length of the KL warm-up as a fraction of its usual length; see `Schedule`.
    """

    def __init__(
        self, vae: VAE, training: CellTable, heldout: CellTable, config: TrainConfig, batch_size: int, compute: Compute,
        *, kl_warmup_share: float = 1.0,
    ) -> None:  # fmt: skip
        self.vae = vae
        self.training, self.heldout = training, heldout
        self._config, self._batch_size, self._compute = config, batch_size, compute
        steps_per_epoch = len(even_batches(np.arange(training.n_cells), batch_size))
        self.schedule = Schedule.plan(config, steps_per_epoch, kl_warmup_share=kl_warmup_share)
        assert config.weight_decay is not None, "`settle` replaces None before the training"
        assert config.eased_dropout is not None, "`settle` replaces None before the training"
        assert config.mix_batches is not None, "`settle` replaces None before the training"
        self._eased_dropout, self._mixing = config.eased_dropout, config.mix_batches
        self._labeling = 0.0 if vae.label_classifier is None else config.label_weight or 0.0
        self.optimizer = AveragedAdamW(vae, config.weight_decay)
        self._manual_backward = can_train(vae)
        self._device_steps: DeviceSteps | None = None
        if self._manual_backward and config.flat == 0 and (compute.device.type != "cpu" or compute.compiles):
            largest = -(-training.n_cells // steps_per_epoch)
            self._device_steps = DeviceSteps(
                vae, self.optimizer, training, largest, compute, mixing=self._mixing, labeling=self._labeling
            )
        self.best_weights = _copy(vae.state_dict())
        self.rollbacks = 0
        self.seconds = 0.0

    def events(self) -> Iterator[Event]:
        """Train the VAE until training ends, and yield events such as `StepReport` and `EpochReport`.

        After the last event, the VAE has the weights with the lowest held-out loss and is in eval mode.
        """
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
            # The held-out loss excludes the penalty of `--flat` for two reasons. The random draws of the penalty would
            # make the loss noisy, and a smaller penalty must not outweigh a worse ELBO. The criteria for the best
            # weights and for the end of the training are therefore the same with and without `--flat`.
            heldout_loss = nll + self._config.beta * kl
            is_best = schedule.end_epoch(heldout_loss)
            if is_best:
                self.best_weights = averaged
            self.seconds = time.perf_counter() - started
            yield EpochReport(
                epoch=schedule.epoch, learning_rate=rate, kl_weight=weight, train_loss=train_loss, heldout_nll=nll,
                heldout_kl=kl, heldout_loss=heldout_loss, is_best=is_best, seconds=self.seconds,
            )  # fmt: skip
            if schedule.converged:
                yield Converged(epoch=schedule.epoch)
        self.vae.load_state_dict(self.best_weights)
        self.vae.eval()

    def _ease(self) -> None:
        """Continue the training from the best weights so far, with lower dropout rates."""
        self.schedule.ease()
        self.vae.load_state_dict(self.best_weights)
        if self._device_steps is not None:
            self._device_steps.forget()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Compute the mean negative log-likelihood and the mean KL of the held-out cells, both in nats.

        One posterior sample per cell is used, and all evaluations use the same random numbers.
        """
        self.vae.eval()
        noise = torch.Generator().manual_seed(self._config.seed)
        nll = kl = 0.0
        for rows, cells in self.heldout.in_order(EVALUATION_CELLS):
            noise_nk = torch.randn(len(rows), self.vae.n_latent, generator=noise).to(self._compute.device)
            # Held-out cells are never evaluated in bfloat16, because a finished model never computes in bfloat16.
            mean_nll, mean_kl, *_ = self.vae.elbo_terms(cells, noise_nk)
            share = len(rows) / self.heldout.n_cells
            nll += share * float(mean_nll)
            kl += share * float(mean_kl)
        return nll, kl

    @torch.no_grad()
    def _not_finite(self, rows: np.ndarray, before: dict[str, Any]) -> np.ndarray:
        """Return the training cells in `rows` whose likelihood at the posterior mean is not finite."""
        if self._device_steps is not None:
            # Steps that were queued after the failed step have made the weights unusable for every cell.
            self.vae.load_state_dict(before["weights"])
        self.vae.eval()
        cells = self.training.take(rows)
        output = self.vae.decode(self.vae.encode(cells).mean_nk, cells.batch_n)
        broken: np.ndarray = rows[~np.isfinite(output.nll_n(cells).cpu().numpy())]
        return broken

    def _epoch(self) -> Iterator[tuple[np.ndarray, float]]:
        """Take the steps of an epoch, and yield the cells and the loss of each step."""
        schedule = self.schedule
        self.vae.train()
        self.vae.scale_dropout(self._eased_dropout if schedule.eased else 1.0)
        # A repeated epoch gets other random numbers; with the same random numbers it might fail again.
        seeds = np.random.SeedSequence([self._config.seed, schedule.epoch, self.rollbacks])
        order = np.random.default_rng(seeds).permutation(self.training.n_cells)
        with seeded(int(seeds.generate_state(1, np.uint64)[0]), self._compute.device):
            if self._device_steps is not None:
                yield from self._on_device(self._device_steps, even_batches(order, self._batch_size))
            else:
                yield from self._one_by_one(order)

    def _one_by_one(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        """Take the steps of an epoch one by one, and yield each loss before the weights are updated."""
        schedule = self.schedule
        for rows, cells in self.training.in_batches(order, self._batch_size):
            noise_nk = torch.randn(len(rows), self.vae.n_latent, device=self._compute.device)
            flat = self._config.flat > 0 and schedule.step % PENALTY_EVERY == 0
            kl_weight = schedule.kl_weight()
            if self._manual_backward and self._compute.device.type == "cpu" and not flat:
                total, gradients = self._compiled(cells, noise_nk, kl_weight)
            else:
                total, gradients = self._by_autograd(cells, noise_nk, kl_weight, flat=flat)
            yield rows, total
            self.optimizer.advance(gradients, schedule.learning_rate(), schedule.step)
            schedule.step += 1

    def _on_device(self, steps: DeviceSteps, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, float]]:
        """Take the steps of an epoch on the device, and yield the cells and the loss of each step.

        The training steps are queued on the device in segments, that is, in groups of steps. The losses of a segment
        are read after the next segment has been queued.
        """
        schedule = self.schedule
        queued: list[tuple[list[np.ndarray], Losses]] = []
        for first in range(0, len(batches), SEGMENT_STEPS):
            segment, plans = batches[first : first + SEGMENT_STEPS], []
            for rows in segment:
                factors = Factors.of_step(schedule.learning_rate(), schedule.step)
                plans.append(Plan(cells=rows, kl_weight=schedule.kl_weight(), factors=factors))
                schedule.step += 1
            queued.append((segment, steps.take(plans)))
            if len(queued) > 1:
                reported, losses = queued.pop(0)
                yield from zip(reported, losses.read(), strict=True)
        for reported, losses in queued:
            yield from zip(reported, losses.read(), strict=True)

    @torch.no_grad()
    def _compiled(self, cells: Minibatch, noise_nk: Tensor, kl_weight: float) -> tuple[float, dict[Tensor, Tensor]]:
        """Compute the loss of a minibatch and its gradients on the CPU, with compiled code."""
        # `CompiledOperations` is imported only here, because a training on a GPU does not need the compiler for the
        # CPU.
        from scvae_cli.model.compiled.operations import CompiledOperations

        narrow, operations = self._compute.precision == "bf16", CompiledOperations(cells)
        terms = ElboGradients(
            self.vae, cells.batch_n, noise_nk, kl_weight, operations, narrow=narrow, mixing=self._mixing,
            label_n=cells.label_n, labeling=self._labeling,
        )  # fmt: skip
        return float(terms.nll) + kl_weight * float(terms.kl) + float(terms.penalty), terms.gradients

    def _by_autograd(
        self, cells: Minibatch, noise_nk: Tensor, kl_weight: float, *, flat: bool
    ) -> tuple[float, dict[Tensor, Tensor]]:
        """Compute the loss of a minibatch, and the gradients of the loss; `flat` adds the penalty of `--flat`."""
        parameters = list(self.vae.parameters())
        with self._compute.matrix_products():
            terms = self.vae.elbo_terms(cells, noise_nk)
            loss = terms.nll + kl_weight * terms.kl + self._discrepancy(terms.mean_nk, cells)
            if self._labeling:
                loss = loss + self._labeling * self._label_loss(terms.z_nk, cells)
            found = torch.autograd.grad(loss, parameters, retain_graph=flat)
        if not flat:
            return loss.item(), dict(zip(parameters, found, strict=True))
        # The penalty of `--flat` is never computed in bfloat16, because log det M depends on the smallest eigenvalues
        # of the metric M.
        weight = self._config.flat * PRICE * PENALTY_EVERY * self.vae.decoder.head.typical_loss(terms.nll.detach())
        penalty = weight * flatness_penalty(self.vae, terms.mean_nk, terms.z_nk)
        added = torch.autograd.grad(penalty, parameters, materialize_grads=True)
        both = (a + b for a, b in zip(found, added, strict=True))
        return (loss + penalty).item(), dict(zip(parameters, both, strict=True))

    def _discrepancy(self, mean_nk: Tensor, cells: Minibatch) -> Tensor:
        """Compute the penalty of `--mix-batches` times its weight, in nats (`model/batch_discrepancy.py`)."""
        effect = self.vae.decoder.batch
        if not self._mixing or effect is None or cells.batch_n is None:
            return mean_nk.new_zeros(())
        value, gradient_nk = batch_discrepancy(mean_nk.detach(), *effect.members(effect.weights(cells.batch_n)))
        # The sum with `gradient_nk` has the value 0, and its gradient with respect to the posterior means is
        # `gradient_nk`.
        return self._mixing * (value + ((mean_nk - mean_nk.detach()) * gradient_nk).sum())

    def _label_loss(self, z_nk: Tensor, cells: Minibatch) -> Tensor:
        """Compute the cross-entropy of the labels, a differentiable scalar in nats per cell."""
        classifier = self.vae.label_classifier
        assert classifier is not None, "labels have a weight only if there is a classifier"
        assert cells.label_n is not None, "cells have labels if there is a classifier"
        return label_loss(z_nk, indicator(cells.label_n, classifier.weight), cells.n_cells, classifier).value

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
                f"training diverged {self.rollbacks} times; the last learning rate was {self.schedule.peak_rate:.2g}",
                f"lower {'--label-weight or ' if self._labeling else ''}--learning-rate, or look for cells with "
                "extreme counts (scvae check)",
            )
        self.vae.load_state_dict(before["weights"])
        self.optimizer.load_state_dict(before["optimizer"])
        self.schedule.step = before["step"]
        self.schedule.peak_rate *= ROLLBACK_FACTOR


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
