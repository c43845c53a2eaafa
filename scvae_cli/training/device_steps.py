"""Training steps on a device that go on without the host.

On a GPU a step of these networks takes less time than telling the device, operation by operation, what to do. So the
cells of many steps are laid out on the device beforehand (`data/stretches.py`), with the steps' noise, seeds and
factors; one step, which finds its place in them by a counter of the device's, is recorded as a CUDA graph and played
again for every other, or compiled by torch, or both. The host reads losses one stretch late, so that it never waits
for steps that have just been queued.

On a CPU the same steps run one operation after the other, or compiled: the twin that tests look at.

Shapes: s steps of a stretch, n cells of a minibatch, k latent dimensions, l layers, f factors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.minibatches import CellTable
from scvae_cli.data.segments import Stretch
from scvae_cli.device import Compute
from scvae_cli.errors import ScvaeWarning
from scvae_cli.model.manual_backward import ElboGradients
from scvae_cli.model.torch_operations import TorchOperations
from scvae_cli.model.vae import VAE
from scvae_cli.training.optimizer import AveragedAdamW, Factors

# Long enough that what happens between stretches does not count, short enough to be told of progress.
STRETCH_STEPS = 64
# What is recorded must have run before: libraries take their working memory, and torch compiles.
_WARM_UP_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One step: its cells, by their indices in the table, the weight of the KL, and the optimiser's factors."""

    cells: np.ndarray
    kl_weight: float
    factors: Factors


class Losses:
    """The losses of a stretch's steps, on their way from the device."""

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
        """Wait for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        losses: list[float] = self._loss_s.tolist()
        return losses


class DeviceSteps:
    """Takes steps.

    Parameters
    ----------
    vae, optimizer
        Model of counts, on the device, and what moves its parameters.
    table
        Training cells.
    n_cells
        Of the largest minibatch.
    compute
        Device, precision, and whether steps are compiled.
    """

    def __init__(self, vae: VAE, optimizer: AveragedAdamW, table: CellTable, n_cells: int, compute: Compute) -> None:
        self._vae, self._optimizer, self._compute = vae, optimizer, compute
        device, size, k = compute.device, STRETCH_STEPS, vae.config.n_latent
        self._stretch = Stretch(table, size, n_cells)
        self._noise_snk = torch.zeros(size, n_cells, k, device=device)
        self._seed_sl = torch.zeros(size, 2 * vae.config.n_layers, dtype=torch.long, device=device)
        self._factors_sf = torch.zeros(size, 1 + len(Factors._fields), device=device)
        self._loss_s = torch.zeros(size, device=device)
        self._at = torch.zeros(1, dtype=torch.long, device=device)
        self._play: Callable[[], None] | None = None

    @torch.no_grad()
    def take(self, plans: Sequence[Plan]) -> Losses:
        """Take at most `STRETCH_STEPS` steps; noise and dropout draw from torch's generators."""
        self._stretch.fill([plan.cells for plan in plans])
        factors_sf = np.array([[plan.kl_weight, *plan.factors] for plan in plans], dtype=np.float32)
        self._stretch.send(self._factors_sf, factors_sf)
        self._stretch.send(self._seed_sl, torch.randint(2**31, self._seed_sl.shape).numpy())
        self._noise_snk.normal_()
        if self._play is None:
            self._play = self._prepared()
        self._at.zero_()
        for _ in plans:
            self._play()
        return Losses(self._loss_s[: len(plans)])

    def forget(self) -> None:
        """Forget what was compiled or recorded: dropout is no longer what it was."""
        self._play = None

    def _step(self) -> None:
        """The step that the counter stands at. Nothing in it depends on a value that the host would have to know."""
        at = self._at
        cells = self._stretch.cells(at)
        kl_weight, *factors = self._factors_sf.index_select(0, at)[0].unbind()
        seed_l, noise_nk = self._seed_sl.index_select(0, at)[0], self._noise_snk.index_select(0, at)[0]
        operations = TorchOperations(cells.x_ng, cells.library_n, cells.share_n, seed_l)
        narrow = self._compute.precision == "bf16"
        terms = ElboGradients(self._vae, cells.batch_n, noise_nk, kl_weight, operations, narrow=narrow)
        self._optimizer.advance_torch(terms.of, Factors(*factors))
        self._loss_s.index_copy_(0, at, (terms.nll + kl_weight * terms.kl).to(self._loss_s.dtype).view(1))
        at.add_(1)

    def _prepared(self) -> Callable[[], None]:
        """A step as it will be played: compiled, recorded, or as it is. What goes wrong costs time, no result."""
        on_gpu = self._compute.device.type == "cuda"
        if self._compute.compiles:
            try:
                return self._tried(torch.compile(self._step, dynamic=False), record=on_gpu)
            except RuntimeError as error:
                self._without("compiled", error)
        if on_gpu:
            try:
                return self._tried(self._step, record=True)
            except RuntimeError as error:
                self._without("recorded", error)
        return self._step

    def _without(self, what: str, error: RuntimeError) -> None:
        """Go on without steps that are compiled or recorded, and say so."""
        self._stretch.send_in_turn()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(ScvaeWarning(f"training steps could not be {what}, and take longer: {reason}"), stacklevel=4)

    def _tried(self, step: Callable[[], None], *, record: bool) -> Callable[[], None]:
        """A step that has run, and perhaps its recording; the model is as it was before."""
        moving = [*self._vae.parameters(), *(t for state in self._optimizer.state.values() for t in state.values())]
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
            # By itself torch records on a stream it made for the first device that ever recorded.
            with torch.cuda.graph(graph, stream=side):
                step()
            return graph.replay
        finally:
            if record:
                # A recording that fails leaves its stream the current one.
                torch.cuda.set_stream(now)
                torch.cuda.synchronize(self._compute.device)
            for tensor, value in zip(moving, before, strict=True):
                tensor.copy_(value)
