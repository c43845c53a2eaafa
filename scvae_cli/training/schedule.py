"""The course of a training: learning rate and KL weight by step, and when it ends.

The rate warms up, holds while the held-out loss falls, and cools down once it has stopped falling: no length need be
known beforehand. The KL weight rises by step, whatever the number of cells, and always reaches β.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from scvae_cli.config import TrainConfig

# Shares and lengths in steps, so that small and large data sets are treated alike.
RATE_WARMUP_STEPS = 100
KL_WARMUP_STEPS = 400
PATIENCE_STEPS = 400
MIN_PATIENCE_EPOCHS = 4
COOLDOWN_SHARE = 0.6
MIN_COOLDOWN_STEPS = 300
MAX_STEPS = 60_000
MAX_EPOCHS = 400


@dataclass(kw_only=True)
class Schedule:
    """Where the training stands; plain numbers, so that it can be saved and resumed.

    Parameters
    ----------
    steps_per_epoch, max_epochs, patience
        Steps in an epoch; bound on epochs; epochs without improvement before cooling down.
    beta, peak_rate
        Final KL weight; learning rate between warm-up and cool-down.
    epoch, step
        Finished so far.
    best_loss, best_epoch
        Lowest held-out loss after the KL warm-up and when it was reached (0: none yet).
    cooldown_start, cooldown_steps
        Step at which the cool-down began (−1: not yet) and its length.
    """

    steps_per_epoch: int
    max_epochs: int
    patience: int
    beta: float
    peak_rate: float
    epoch: int = 0
    step: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    cooldown_start: int = -1
    cooldown_steps: int = 0

    @classmethod
    def plan(cls, config: TrainConfig, steps_per_epoch: int) -> Schedule:
        """Fill in what the configuration leaves open, from the number of steps in an epoch."""
        max_epochs = config.max_epochs or max(1, min(MAX_EPOCHS, MAX_STEPS // steps_per_epoch))
        patience = config.patience or max(MIN_PATIENCE_EPOCHS, math.ceil(PATIENCE_STEPS / steps_per_epoch))
        return cls(
            steps_per_epoch=steps_per_epoch,
            max_epochs=max_epochs,
            patience=patience,
            beta=config.beta,
            peak_rate=config.learning_rate,
        )

    @property
    def _last_step(self) -> int:
        return self.max_epochs * self.steps_per_epoch

    @property
    def _kl_warmup(self) -> int:
        # A short training warms up over its first third.
        return max(1, min(KL_WARMUP_STEPS, self._last_step // 3))

    def kl_weight(self) -> float:
        """Weight of the KL term at this step."""
        return self.beta * min(1.0, self.step / self._kl_warmup)

    def learning_rate(self) -> float:
        """Learning rate at this step."""
        rate = self.peak_rate * min(1.0, (self.step + 1) / min(RATE_WARMUP_STEPS, 1 + self._last_step // 3))
        if self.cooling:
            left = 1 - (self.step - self.cooldown_start) / self.cooldown_steps
            rate *= max(left, 0.0) + 1e-3
        return rate

    @property
    def cooling(self) -> bool:
        """Whether the rate is being cooled down."""
        return self.cooldown_start >= 0

    @property
    def done(self) -> bool:
        """Whether the training is over."""
        cooled = self.cooling and self.step >= self.cooldown_start + self.cooldown_steps
        return cooled or self.epoch >= self.max_epochs

    def end_epoch(self, heldout_loss: float) -> bool:
        """Count an epoch, note its held-out loss (NLL + β·KL), start the cool-down when due.

        Returns
        -------
        Whether these are the best weights so far; none counts before the KL weight has reached β.
        """
        self.epoch += 1
        warmed_up = self.step >= self._kl_warmup
        is_best = warmed_up and heldout_loss < self.best_loss
        if is_best:
            self.best_loss, self.best_epoch = heldout_loss, self.epoch
        if not self.cooling and warmed_up:
            plateau = self.epoch - self.best_epoch >= self.patience
            # A bound on the epochs must leave room for the cool-down.
            if plateau or self.step + self._cooldown_length() >= self._last_step:
                self.cooldown_start = self.step
                self.cooldown_steps = max(1, min(self._cooldown_length(), self._last_step - self.step))
        return is_best

    def _cooldown_length(self) -> int:
        wanted = max(MIN_COOLDOWN_STEPS, round(COOLDOWN_SHARE * self.step))
        # Whole epochs, so that the training ends where an epoch does.
        epochs = max(1, round(wanted / self.steps_per_epoch))
        return min(epochs, max(1, self.max_epochs // 2)) * self.steps_per_epoch

    def state(self) -> dict[str, Any]:
        """All fields, for a checkpoint."""
        return asdict(self)
