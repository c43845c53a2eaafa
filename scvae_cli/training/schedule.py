"""The course of a training: learning rate and KL weight by step, when dropout is eased, and when it ends.

The rate warms up and then falls as one over the root of the step: early on it is high, late it is low, and no length
need be known beforehand. The KL weight rises by step, whatever the number of cells, and always reaches β. Once the
held-out loss has stopped falling noticeably, dropout is eased and the rate lowered, where the recipe has it so; once it
has stopped again, the training ends.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from scvae_cli.config import TrainConfig

# Lengths in steps, so that small and large data sets are treated alike.
RATE_WARMUP_STEPS = 100
# Small data sets overfit within a few hundred steps, and weights only count once the KL weight has reached β.
KL_WARMUP_EPOCHS = 10
MIN_KL_WARMUP_STEPS, MAX_KL_WARMUP_STEPS = 100, 400
PATIENCE_STEPS = 120
MIN_PATIENCE_EPOCHS = 3
# Of the rate, once dropout is eased: the network is to settle, not to wander.
EASED_RATE = 0.3
# With the penalty of `--flat` a training would often end early, some tenth of a percent above what it can reach.
PATIENCE_IF_FLAT = 3
# Share of the loss by which it must fall for the patience to begin anew.
NOTICEABLE = 2e-4
MAX_STEPS = 60_000
MAX_EPOCHS = 400


@dataclass(kw_only=True)
class Schedule:
    """Where the training stands; plain numbers, so that it can be saved and resumed.

    Parameters
    ----------
    steps_per_epoch, max_epochs, patience
        Steps in an epoch; bound on epochs; epochs without a noticeable improvement before the training ends.
    beta, peak_rate
        Final KL weight; learning rate at the end of its warm-up.
    eases
        Whether dropout is eased before the training ends.
    epoch, step
        Finished so far.
    best_loss, best_epoch
        Lowest held-out loss after the KL warm-up and when it was reached (0: none yet).
    noticed_loss, noticed_epoch
        The same, counting only losses noticeably below the one noticed before.
    eased_epoch
        Finished when dropout was eased (0: not yet).
    kl_warmup_share
        How much of the usual KL warm-up there is: 1 for a training that starts from nothing, 0 for none.
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
        """Fill in what the configuration leaves open, from the number of steps in an epoch."""
        assert config.learning_rate is not None, "settled before the training starts"
        assert config.eased_dropout is not None, "settled before the training starts"
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
        # A short training warms up over its first third.
        steps = max(1, min(wanted, MAX_KL_WARMUP_STEPS, self._last_step // 3))
        return math.ceil(self.kl_warmup_share * steps)

    @property
    def _warmed_up(self) -> bool:
        return self.step >= self._kl_warmup

    def kl_weight(self) -> float:
        """Weight of the KL term at this step."""
        return self.beta if self._warmed_up else self.beta * self.step / self._kl_warmup

    def learning_rate(self) -> float:
        """Learning rate at this step."""
        # A short training warms up over its first tenth, so that the rate still falls before the end.
        warmup = min(RATE_WARMUP_STEPS, 1 + self._last_step // 10)
        step = self.step + 1
        peak = self.peak_rate * (EASED_RATE if self.eased else 1)
        return peak * min(step / warmup, math.sqrt(warmup / step))

    @property
    def _on_plateau(self) -> bool:
        """Whether the held-out loss has stopped falling."""
        waited = self.epoch - max(self.noticed_epoch, self.eased_epoch)
        return self._warmed_up and self.best_epoch > 0 and waited >= self.patience

    @property
    def eased(self) -> bool:
        """Whether dropout has been eased."""
        return self.eased_epoch > 0

    @property
    def due_to_ease(self) -> bool:
        """Whether the time has come to ease dropout."""
        return self.eases and not self.eased and self._on_plateau

    @property
    def converged(self) -> bool:
        """Whether the held-out loss has stopped falling for good."""
        return self._on_plateau and not self.due_to_ease

    @property
    def done(self) -> bool:
        """Whether the training is over."""
        return self.converged or self.epoch >= self.max_epochs

    def ease(self) -> None:
        """Note that dropout is eased from here on."""
        self.eased_epoch = self.epoch

    def end_epoch(self, heldout_loss: float) -> bool:
        """Count an epoch and note its held-out loss (NLL + β·KL).

        Returns
        -------
        Whether these are the best weights so far; none counts before the KL weight has reached β.
        """
        self.epoch += 1
        is_best = self._warmed_up and heldout_loss < self.best_loss
        if is_best:
            self.best_loss, self.best_epoch = heldout_loss, self.epoch
            if self.noticed_epoch == 0 or heldout_loss < self.noticed_loss - NOTICEABLE * abs(self.noticed_loss):
                self.noticed_loss, self.noticed_epoch = heldout_loss, self.epoch
        return is_best

    def state(self) -> dict[str, Any]:
        """All fields, for a checkpoint."""
        return asdict(self)
