"""Training steps that run on a device (a GPU) without waiting for the host (the CPU).

A GPU computes a training step in less time than the CPU needs to start the operations of the step one by one. The CPU
therefore prepares many steps at once (a segment), and copies the data of the segment to the GPU (`data/segments.py`).
The data of a step include its cells, its random numbers and its learning rate. A counter on the GPU selects the data of
each step. One training step is recorded as a CUDA graph (a fixed sequence of GPU operations), and the recorded
operations are repeated for every step. `torch.compile` can also compile the training step. The CPU reads the losses of
one segment of steps after it has started the next segment, so that the GPU always has work.

The tests run the training steps on a CPU, without a CUDA graph.

Letters in array shapes: s steps of a segment, n cells of a minibatch, k latent dimensions, l layers, f factors of the
optimizer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.minibatches import CellTable
from scvae_cli.data.segments import Segment
from scvae_cli.device import Compute
from scvae_cli.errors import ScvaeWarning
from scvae_cli.model.manual_backward import ElboGradients
from scvae_cli.model.torch_operations import TorchOperations
from scvae_cli.model.vae import VAE
from scvae_cli.training.optimizer import AveragedAdamW, Factors

# Number of training steps in a segment: large enough that the overhead between segments is negligible, and small enough
# to report progress often.
SEGMENT_STEPS = 64
# Number of times that a step runs before it is recorded. In the first runs of a step, libraries allocate working
# memory, and torch compiles the step.
_WARM_UP_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Inputs of a training step: the indices of its cells, the KL weight, and the optimizer's `Factors`."""

    cells: np.ndarray
    kl_weight: float
    factors: Factors


class Losses:
    """The losses of a segment of training steps, which are copied from the device while the CPU continues."""

    def __init__(self, loss_s: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if loss_s.device.type == "cuda":
            self._loss_s = torch.empty(loss_s.shape, dtype=loss_s.dtype, pin_memory=True)
            self._loss_s.copy_(loss_s, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            self._arrived.record()
        else:
            self._loss_s = loss_s.to("cpu", copy=True)

    def read(self) -> list[float]:
        """Wait until the losses have been copied from the device, and return the losses."""
        if self._arrived is not None:
            self._arrived.synchronize()
        losses: list[float] = self._loss_s.tolist()
        return losses


class DeviceSteps:
    """Training steps on a device, with at most `n_cells` cells in a minibatch.

    `mixing` is the weight of the discrepancy between the batches (`model/batch_discrepancy.py`). `labeling` is the
    weight of the cross-entropy of the labels (`model/label_loss.py`).
    """

    def __init__(
        self, vae: VAE, optimizer: AveragedAdamW, table: CellTable, n_cells: int, compute: Compute,
        *, mixing: float = 0.0, labeling: float = 0.0,
    ) -> None:  # fmt: skip
        self.vae, self._optimizer, self._compute = vae, optimizer, compute
        self._mixing, self._labeling = mixing, labeling
        device, size, k = compute.device, SEGMENT_STEPS, vae.n_latent
        self.segment = Segment(table, size, n_cells)
        self._noise_snk = torch.zeros(size, n_cells, k, device=device)
        self._seed_sl = torch.zeros(size, 2 * vae.config.n_layers, dtype=torch.long, device=device)
        self._factors_sf = torch.zeros(size, 1 + len(Factors._fields), device=device)
        self._loss_s = torch.zeros(size, device=device)
        self._at = torch.zeros(1, dtype=torch.long, device=device)
        self.play: Callable[[], None] | None = None

    @torch.no_grad()
    def take(self, plans: Sequence[Plan]) -> Losses:
        """Take the planned training steps, at most `SEGMENT_STEPS` of them, and return their losses.

        The noise of the posterior samples and the seeds of the dropout come from torch's random number generators.
        """
        self.segment.fill([plan.cells for plan in plans])
        factors_sf = np.array([[plan.kl_weight, *plan.factors] for plan in plans], dtype=np.float32)
        self.segment.send(self._factors_sf, factors_sf)
        self.segment.send(self._seed_sl, torch.randint(2**31, self._seed_sl.shape).numpy())
        self._noise_snk.normal_()
        if self.play is None:
            self.play = self._prepared()
        self._at.zero_()
        for _ in plans:
            self.play()
        return Losses(self._loss_s[: len(plans)])

    def forget(self) -> None:
        """Discard the compiled or recorded training step, which would still apply the old dropout rates."""
        self.play = None

    def step(self) -> None:
        """Take the next training step, whose number is stored on the device.

        The CPU does not wait for the device during a training step.
        """
        at = self._at
        cells = self.segment.cells(at)
        kl_weight, *factors = self._factors_sf.index_select(0, at)[0].unbind()
        seed_l, noise_nk = self._seed_sl.index_select(0, at)[0], self._noise_snk.index_select(0, at)[0]
        operations = TorchOperations(cells.x_ng, cells.library_n, cells.share_n, seed_l)
        narrow = self._compute.precision == "bf16"
        terms = ElboGradients(
            self.vae, cells.batch_n, noise_nk, kl_weight, operations, narrow=narrow, mixing=self._mixing,
            label_n=cells.label_n, labeling=self._labeling,
        )  # fmt: skip
        self._optimizer.advance_torch(terms.gradients, Factors(*factors))
        loss = terms.nll + kl_weight * terms.kl + terms.penalty
        self._loss_s.index_copy_(0, at, loss.to(self._loss_s.dtype).view(1))
        at.add_(1)

    def _prepared(self) -> Callable[[], None]:
        """Compile the training step and record it as a CUDA graph, where possible, and return the result.

        If compiling or recording fails, training takes longer, but the results do not change.
        """
        on_gpu = self._compute.device.type == "cuda"
        if self._compute.compiles:
            try:
                return self._tried(torch.compile(self.step, dynamic=False), record=on_gpu)
            except RuntimeError as error:
                self._without("compiled", error)
        if on_gpu:
            try:
                return self._tried(self.step, record=True)
            except RuntimeError as error:
                self._without("recorded as a CUDA graph", error)
        return self.step

    def _without(self, what: str, error: RuntimeError) -> None:
        """Warn the user that compiling or recording failed, and from now on copy data only between training steps."""
        self.segment.send_in_turn()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            ScvaeWarning(f"training steps could not be {what}, so training takes longer: {reason}"), stacklevel=4
        )

    def _tried(self, step: Callable[[], None], *, record: bool) -> Callable[[], None]:
        """Try a training step, record the step if `record` is True, and return the function that takes the step.

        After the trial, model and optimizer have the same state as before the trial.
        """
        moving = [*self.vae.parameters(), *(t for state in self._optimizer.state.values() for t in state.values())]
        before = [tensor.clone() for tensor in moving]
        try:
            if not record:
                self._at.zero_()
                step()
                return step
            now = torch.cuda.current_stream(self._compute.device)
            side = torch.cuda.Stream(self._compute.device)  # type: ignore[no-untyped-call]  # torch's
            side.wait_stream(now)
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_STEPS):
                    self._at.zero_()
                    step()
            now.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Without the argument `stream`, torch would use the stream of its first recording, which may belong to
            # another device.
            with torch.cuda.graph(graph, stream=side):
                step()
            return graph.replay
        finally:
            if record:
                # After a failed recording, the recording stream is still the current stream.
                torch.cuda.set_stream(now)
                torch.cuda.synchronize(self._compute.device)
            for tensor, value in zip(moving, before, strict=True):
                tensor.copy_(value)
