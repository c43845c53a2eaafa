"""A question that is answered with new cells, which go into a file of their own, or to Python as an AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from scvae_cli.data.new_cells import NewCells, check_output
from scvae_cli.progress import counted
from scvae_cli.question import AnyOptions, Question, Result
from scvae_cli.verb import Request

if TYPE_CHECKING:
    from anndata import AnnData


class NewCellsQuestion(Question[AnyOptions, Result]):
    """A question whose answer is cells that are not in the data; its options inherit `WritingNewCells`.

    With an output the cells are written to that file. Without one Python gets them as an AnnData, and a command line
    either refuses or only reports (`needs_file`).
    """

    # Whether a command line must name a file.
    needs_file: ClassVar[bool] = True
    # Title of the progress bar while the cells are computed.
    doing: ClassVar[str] = "Sampling"

    _in_memory: AnnData | None = None

    def new_cells(self, result: Result) -> NewCells:
        """The cells, with every slot that is written except their provenance; the blocks are computed once."""
        raise NotImplementedError

    @classmethod
    def check_files(cls, request: Request) -> None:
        """Refuse an output that is missing, holds the data, exists or cannot be written."""
        output = request.options.output
        if output is not None or (cls.needs_file and request.reported):
            check_output(output, request.data, force=request.options.force)

    @property
    def writes(self) -> bool:
        """Always: to a file, or to an AnnData in memory."""
        return True

    def check_destination(self) -> None:
        """A file of its own has no slots that could be in the way; `check_files` did the rest."""

    def write(self, result: Result) -> list[str]:
        """Write the cells to their file or make an AnnData of them; returns the paths of `slots`."""
        output = self.destination()
        if output is None and self.request.reported:
            return []
        cells = self.new_cells(result)
        record = self.session.record(
            cells.slots, names=self.names, run=self.run, options=self.record(result), new_file=True
        )
        with self.shell.progress(self.doing, len(cells.cell_names)) as advance:
            blocks: Any = counted(cells.blocks, advance)  # of either type
            cells = replace(cells, blocks=blocks, slots=[*cells.slots, record])
            if output is None:
                self._in_memory = cells.in_memory()
            else:
                cells.write(output, force=self.request.options.force)
        return [slot.path for slot in self.slots(result)]

    def value(self, result: Result) -> AnnData | None:  # noqa: ARG002  # made while it was written
        """The cells, unless they are in a file."""
        return self._in_memory

    def output(self) -> str | None:
        """The file of the cells, or None."""
        output = self.destination()
        return None if output is None else str(output)

    def places(self, slots: list[str]) -> Sequence[str]:  # noqa: ARG002  # the whole file is new
        """The file of the cells."""
        output = self.output()
        return () if output is None else (output,)
