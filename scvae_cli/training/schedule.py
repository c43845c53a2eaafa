"""The schedule of a training: learning rate and KL weight per step, when dropout is lowered, and when training ends.

The learning rate first rises (warm-up) and then decreases in proportion to 1/√n, where n is the number of steps so far.
The schedule of the learning rate therefore needs no planned length of the training. The KL weight rises from 0 to β in
at most 400 steps; in a short training, it rises during the first third of the training. When the held-out loss has
nearly stopped decreasing, dropout and the learning rate are lowered. When the held-out loss stops decreasing for the
second time, training ends. If the configuration keeps dropout constant, training ends when the held-out loss stops
decreasing for the first time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scvae_cli.config import TrainConfig

# Durations of the schedule are given in training steps, so that the schedule is the same for small and large data sets.
RATE_WARMUP_STEPS = 100
# The KL warm-up must be short, because networks overfit small data sets within a few hundred steps. A finished model
# never has weights from before the end of the KL warm-up.
KL_WARMUP_EPOCHS = 10
MIN_KL_WARMUP_STEPS, MAX_KL_WARMUP_STEPS = 100, 400
PATIENCE_STEPS = 120
MIN_PATIENCE_EPOCHS = 3
# Factor on the learning rate after dropout is lowered, so that the weights converge.
EASED_RATE = 0.3
# Factor on the patience in trainings with `--flat`. Without the factor, trainings with `--flat` would often end too
# early, with a loss about 0.1% above the lowest possible loss.
PATIENCE_IF_FLAT = 3
# A decrease of the held-out loss is noticeable if it is at least the fraction NOTICEABLE of the loss. A noticeable
# decrease restarts the count of epochs after which training ends.
NOTICEABLE = 2e-4
MAX_STEPS = 60_000
MAX_EPOCHS = 400


@dataclass(kw_only=True)
class Schedule:
    """Schedule and progress of a training. All fields are plain numbers, so that a schedule can be saved and restored.

    Parameters
    ----------
    max_epochs, patience
        Largest number of epochs; number of epochs without a noticeable improvement after which training ends.
    beta, peak_rate
        Final KL weight; learning rate at the end of its warm-up.
    eases
        Whether dropout is lowered before training ends.
    epoch, step
        Numbers of completed epochs and steps.
    best_loss, best_epoch
        Lowest held-out loss after the KL warm-up, and the epoch in which it was reached (0: none yet).
    noticed_loss, noticed_epoch
        Held-out loss at the last noticeable improvement, and the epoch of that improvement (0: none yet).
    eased_epoch
        Number of completed epochs when dropout was lowered (0: not yet).
    kl_warmup_share
        Length of the KL warm-up as a fraction of its usual length: 1 for a training from scratch, 0 for no warm-up.
    """

    steps_per_epoch: int
    max_epochs: int
    patience: int
    beta: float
    peak_rate: float
    eases: bool
    epoch: int = 0
    step: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    noticed_loss: float = math.inf
    noticed_epoch: int = 0
    eased_epoch: int = 0
    kl_warmup_share: float = 1.0

    @classmethod
    def plan(cls, config: TrainConfig, steps_per_epoch: int, *, kl_warmup_share: float = 1.0) -> Schedule:
        """Create a schedule; the defaults of `max_epochs` and `patience` depend on the number of steps per epoch."""
        assert config.learning_rate is not None, "`settle` replaces None before the training"
        assert config.eased_dropout is not None, "`settle` replaces None before the training"
        max_epochs = config.max_epochs or max(1, min(MAX_EPOCHS, MAX_STEPS // steps_per_epoch))
        steps = PATIENCE_STEPS * (PATIENCE_IF_FLAT if config.flat else 1)
        patience = config.patience or max(MIN_PATIENCE_EPOCHS, math.ceil(steps / steps_per_epoch))
        return cls(
            steps_per_epoch=steps_per_epoch,
            max_epochs=max_epochs,
            patience=patience,
            beta=config.beta,
            peak_rate=config.learning_rate,
            eases=config.eased_dropout < 1,
            kl_warmup_share=kl_warmup_share,
        )

    @property
    def _last_step(self) -> int:
        return self.max_epochs * self.steps_per_epoch

    @property
    def _kl_warmup(self) -> int:
        wanted = max(KL_WARMUP_EPOCHS * self.steps_per_epoch, MIN_KL_WARMUP_STEPS)
        # In a short training, the KL warm-up is the first third of all steps.
        steps = max(1, min(wanted, MAX_KL_WARMUP_STEPS, self._last_step // 3))
        return math.ceil(self.kl_warmup_share * steps)

    @property
    def _warmed_up(self) -> bool:
        return self.step >= self._kl_warmup

    def kl_weight(self) -> float:
        """Return the weight of the KL term at the current step."""
        return self.beta if self._warmed_up else self.beta * self.step / self._kl_warmup

    def learning_rate(self) -> float:
        """Return the learning rate at the current step."""
        # In a short training, the learning rate warms up in the first tenth of all steps, so that it decreases before
        # the end.
        warmup = min(RATE_WARMUP_STEPS, 1 + self._last_step // 10)
        step = self.step + 1
        peak = self.peak_rate * (EASED_RATE if self.eased else 1)
        return peak * min(step / warmup, math.sqrt(warmup / step))

    @property
    def _on_plateau(self) -> bool:
        """Whether the held-out loss has stopped decreasing."""
        waited = self.epoch - max(self.noticed_epoch, self.eased_epoch)
        return self._warmed_up and self.best_epoch > 0 and waited >= self.patience

    @property
    def eased(self) -> bool:
        """Whether dropout has been lowered."""
        return self.eased_epoch > 0

    @property
    def due_to_ease(self) -> bool:
        """Whether dropout has to be lowered now."""
        return self.eases and not self.eased and self._on_plateau

    @property
    def converged(self) -> bool:
        """Whether the held-out loss has stopped decreasing and dropout will not be lowered any more."""
        return self._on_plateau and not self.due_to_ease

    @property
    def done(self) -> bool:
        """Whether training has ended."""
        return self.converged or self.epoch >= self.max_epochs

    def ease(self) -> None:
        """Record that dropout is lowered from this epoch on."""
        self.eased_epoch = self.epoch

    def end_epoch(self, heldout_loss: float) -> bool:
        """Count an epoch, record its held-out loss (NLL + β·KL), and return whether this loss is the lowest so far.

        An epoch before the KL weight has reached β never counts as the best epoch.
        """
        self.epoch += 1
        is_best = self._warmed_up and heldout_loss < self.best_loss
        if is_best:
            self.best_loss, self.best_epoch = heldout_loss, self.epoch
            if self.noticed_epoch == 0 or heldout_loss < self.noticed_loss - NOTICEABLE * abs(self.noticed_loss):
                self.noticed_loss, self.noticed_epoch = heldout_loss, self.epoch
        return is_best
